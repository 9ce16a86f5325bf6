"""The base for every comparison: the original file, or what is left of an extended one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from gdu_compile import model_io, runtime, specialize
from gdu_compile.bits import same_bits
from gdu_compile.constants import alias
from gdu_compile.contracts import Restored, state_of
from gdu_compile.default_inputs import make_constants
from gdu_compile.digits import Array
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.metadata import Extension
from gdu_compile.synthetic import seeded_inputs

ModelLike = str | PathLike[str] | ir.Model


class Base(Protocol):
    """A base network that can be had with any weights."""

    def holding(
        self, weights: Mapping[str, Array], *, constants: bool = False
    ) -> AbstractContextManager[Path]:
        """The base with these weights, as a file.

        Args:
            weights: name → array.
            constants: whether inputs with default values shall be constants instead.
        """
        ...

    def initial(self) -> AbstractContextManager[Path]:
        """The base with its initial weights, as a file."""
        ...


class Rebuilt:
    """The base as it is left when the extension is removed from an extended model."""

    def __init__(self, extended: ir.Model) -> None:
        self.extended = extended

    def holding(
        self, weights: Mapping[str, Array], *, constants: bool = False
    ) -> AbstractContextManager[Path]:
        """The base with these weights, as a file."""
        model = specialize.without_extension(self.extended, weights)
        return runtime.on_disk(make_constants(model) if constants else model)

    def initial(self) -> AbstractContextManager[Path]:
        """The base with its initial weights, as a file."""
        facts = Extension.from_metadata(self.extended.metadata_props)
        weights: dict[str, Array] = {}
        for name, kept in facts.initial.items():
            value = self.extended.graph.initializers[kept].const_value
            assert value is not None
            weights[name] = value.numpy()
        return self.holding(weights)


class Source:
    """The base as it was given: a file, or a model in memory.

    Attributes:
        name: what to call it in messages.
        tensor_bytes: bytes of its initializers, once it was read.
        file_bytes: bytes of its file and external data, once it was read; None in memory.
        restored: places of weights that RestoreNeutralPass has put back.
    """

    def __init__(self, model: ModelLike) -> None:
        self._model = model
        self.name = str(model.graph.name if isinstance(model, ir.Model) else model)
        self.tensor_bytes: int | None = None
        self.file_bytes: int | None = None
        self.restored: Sequence[Restored] = ()

    def fresh(self) -> ir.Model:
        """A copy that may be changed; tensors are shared or memory-mapped."""
        if isinstance(self._model, ir.Model):
            model = with_own_tensors(self._model.clone())
        else:
            model = model_io.load(self._model)
            self.file_bytes = model_io.file_bytes(Path(self._model), model)
        self.tensor_bytes = model_io.tensor_bytes(model)
        return model

    def holding(
        self, weights: Mapping[str, Array], *, constants: bool = False
    ) -> AbstractContextManager[Path]:
        """The base with these weights, as a file."""
        model = specialize.with_weights(self.fresh(), weights, self.restored)
        return runtime.on_disk(make_constants(model) if constants else model)

    def initial(self) -> AbstractContextManager[Path]:
        """The base as it was given, as a file."""
        return runtime.on_disk(self.fresh())

    def raised(self, least: int = model_io.OPSET) -> ir.Model:
        """A copy at opset ``least`` or above, compared with the original in onnxruntime.

        Raises:
            UnsupportedError: the raised model does not give the same bits.
        """
        original = self.fresh()
        before = model_io.opset_of(original)
        if before >= least:
            return original
        model = model_io.raise_opset(self.fresh(), least)
        with runtime.on_disk(original) as old, runtime.on_disk(model) as new:
            runtime.session(old, "none", called=self.name)
            try:
                inputs = seeded_inputs(model)
                expected = runtime.run(old, inputs, level="none", calls=True, called=self.name)
            except (InputError, UnsupportedError) as error:
                state_of(model).notes.append(
                    f"raised from opset {before} to {least}; not compared on synthetic inputs: "
                    f"{error.message}"
                )
                return model
            got = runtime.run(new, inputs, list(expected), level="none", calls=True)
        if different := [n for n in expected if not same_bits(expected[n], got[n])]:
            raise UnsupportedError(
                f"{self.name}: raising it from opset {before} to {least} changes the "
                f"output {', '.join(different)}; export it with opset {least} or above"
            )
        return model


def with_own_tensors(model: ir.Model) -> ir.Model:
    """Tensors of their own names: onnx_ir renames a tensor with its value, and a clone shares its
    tensors with the caller's model.  The contents stay shared."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = alias(value.const_value)
        for node in graph:
            for name, attribute in node.attributes.items():
                if attribute.type == ir.AttributeType.TENSOR:
                    node.attributes[name] = ir.AttrTensor(name, alias(attribute.as_tensor()))
    return model
