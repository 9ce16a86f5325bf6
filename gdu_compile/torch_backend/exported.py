"""The module as a program of torch.export: NAME.pt2, with a dynamic batch and trainable θ."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from gdu_compile.errors import UnsupportedError
from gdu_compile.names import identifier
from gdu_compile.torch_backend.module import GraphModule
from gdu_compile.torch_backend.ops_elementwise import torch_dtype

SIZES = (5, 7, 11, 13, 17, 19, 23)
"""Of the example's dynamic dimensions: none is 0 or 1, which torch.export takes as fixed."""


def save_program(model: ir.Model, module: GraphModule, path: Path) -> None:
    """Export and write; every If becomes torch.cond.

    Args:
        model: the model; says which dimensions are dynamic.
        module: the same model, lowered.
        path: NAME.pt2.

    Raises:
        UnsupportedError: torch.export cannot trace the model; says why.
    """
    inputs = [value for value in model.graph.inputs if value.name in module.inputs]
    symbols = Symbols()
    examples = [symbols.example(value) for value in inputs]
    dynamic = tuple(symbols.dynamic(value) for value in inputs)  # a tuple, as the inputs
    log = logging.getLogger("torch")
    level = log.level
    try:
        log.setLevel(logging.CRITICAL)  # what fails is said below
        program = torch.export.export(module, tuple(examples), dynamic_shapes=(dynamic,),
                                      strict=True)  # fmt: skip
    except Exception as error:  # torch.export raises whatever its parts do
        lines = str(error).splitlines() or [type(error).__name__]
        details = [line.strip(" -") for line in lines[1:] if line.startswith("  - ")]
        reason = " ".join([lines[0], *details[:1]])
        raise UnsupportedError(
            f"torch.export cannot trace this model ({type(error).__name__}: {reason}); "
            "the form of NAME.py takes every model"
        ) from error
    finally:
        log.setLevel(level)
    torch.export.save(program, path)


class Symbols:
    """The dynamic dimensions of a model's inputs, by name."""

    def __init__(self) -> None:
        self.dims: dict[str, tuple[Any, int]] = {}

    def of(self, value: ir.Value) -> list[tuple[Any, int]]:
        """For every axis (None where it is fixed, else torch's dimension; a size)."""
        axes = []
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, int):
                axes.append((None, size))
                continue
            name = identifier(str(size.value or f"{value.name}_{axis}"))
            number = SIZES[len(self.dims) % len(SIZES)]
            axes.append(self.dims.setdefault(name, (torch.export.Dim(name), number)))
        return axes

    def example(self, value: ir.Value) -> Tensor:
        """An input of zeros.

        Raises:
            UnsupportedError: the model does not say of which form the input is.
        """
        if value.dtype is None or value.shape is None:
            raise UnsupportedError(f"torch.export needs to know the shape of input {value.name!r}; "
                                   "run onnx.shape_inference on the model")  # fmt: skip
        sizes = [size for _, size in self.of(value)]
        return torch.zeros(sizes, dtype=torch_dtype(int(value.dtype)))

    def dynamic(self, value: ir.Value) -> dict[int, Any]:
        """Axis → dimension."""
        return {axis: dim for axis, (dim, _) in enumerate(self.of(value)) if dim is not None}
