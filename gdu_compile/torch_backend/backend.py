"""ONNX's backend interface over the torch side: what ONNX's own conformance suite runs on.

Example:
    >>> import numpy as np, onnx
    >>> from gdu_compile.torch_backend import backend
    >>> node = onnx.helper.make_node("Relu", ["x"], ["y"])
    >>> backend.run_node(node, [np.array([-1.0, 2.0], np.float32)])[0]
    array([0., 2.], dtype=float32)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx.backend.base import Backend, BackendRep
from onnx.helper import np_dtype_to_tensor_dtype as code_of

from gdu_compile.model_io import raise_opset
from gdu_compile.torch_backend import lower_to_torch
from gdu_compile.torch_backend.module import GraphModule, to_array, to_tensor
from gdu_compile.torch_backend.ops_cast import HELD


class TorchRep(BackendRep):
    """A model that is ready to run.

    Attributes:
        module: the model as a torch module.
    """

    def __init__(self, module: GraphModule, held: Sequence[ir.DataType | None], device: str):
        self.module = module.to(device)
        self._held = held  # of each output the type below 8 bits that it is declared with
        self._device = device

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Outputs in the model's order, as numpy arrays; a sequence is a list of them.

        Args:
            inputs: in the model's order, or by name.
            kwargs: none are known; the interface has them.
        """
        if not isinstance(inputs, dict):
            inputs = dict(zip(self.module.inputs, inputs, strict=False))
        given = {name: self._to_torch(value) for name, value in inputs.items()}
        results = self.module.run(given)
        return tuple(
            to_numpy(value, held) for value, held in zip(results.values(), self._held, strict=True)
        )

    def _to_torch(self, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, list):
            return [self._to_torch(entry) for entry in value]
        return to_tensor(ir.tensor(np.asarray(value))).to(self._device)


def to_numpy(value: Any, held: ir.DataType | None = None) -> Any:
    """A result as numpy has it; ``held``: a type below 8 bits, which torch holds in another."""
    if value is None:
        return None
    if isinstance(value, list):
        return [to_numpy(entry, held) for entry in value]
    array = to_array(value)
    return array if held is None else array.astype(held.numpy())


class TorchBackend(Backend):
    """``onnx.backend.base.Backend``: one model, or one node."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> TorchRep:
        """Lower a model; below opset 18 it is raised first.

        Args:
            model: the model.
            device: ``CPU``, ``CUDA`` or ``CUDA:1``.
            kwargs: none are known; the interface has them.

        Raises:
            UnsupportedError: the model is too old to be raised.
        """
        imported = ir.from_proto(model)
        if "" in imported.opset_imports:
            imported = raise_opset(imported)
        types = [value.dtype for value in imported.graph.outputs]
        held = [None if kind is None or int(kind) not in HELD else kind for kind in types]
        return TorchRep(lower_to_torch(imported, ()), held, device.lower())

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Run one node on numpy arrays; ``opset_version`` is the newest unless it is given.

        Args:
            node: the node.
            inputs: in the node's order, absent ones left out.
            device: as in ``prepare``.
            outputs_info: not needed.
            kwargs: ``opset_version``.
        """
        names = [name for name in dict.fromkeys(node.input) if name]
        values = [
            onnx.helper.make_tensor_value_info(name, code_of(np.asarray(x).dtype), np.shape(x))
            for name, x in zip(names, inputs, strict=True)
        ]
        outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name]
        graph = onnx.helper.make_graph([node], "node", values, outputs)
        version = kwargs.get("opset_version", onnx.defs.onnx_opset_version())
        opsets = [onnx.helper.make_opsetid("", version)]
        if node.domain:
            opsets.append(onnx.helper.make_opsetid(node.domain, 1))
        model = onnx.helper.make_model(graph, opset_imports=opsets)
        return cls.run_model(model, inputs, device)

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """``prepare`` and ``run``."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether torch has it."""
        kind = device.partition(":")[0].upper()
        return kind == "CPU" or (kind == "CUDA" and torch.cuda.is_available())


prepare = TorchBackend.prepare
run_node = TorchBackend.run_node
run_model = TorchBackend.run_model
supports_device = TorchBackend.supports_device
is_compatible = TorchBackend.is_compatible
