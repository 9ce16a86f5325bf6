"""An oracle by itself: the problem of a model file, and the weights of an algorithm on data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from gdu_compile import model_io, runtime
from gdu_compile.contracts import Field, state_of
from gdu_compile.digits import Array
from gdu_compile.errors import UnsupportedError
from gdu_compile.oracles.problem import Problem
from gdu_compile.shapes import list_shape


def problem_of(model: ir.Model | Path | str, samples: int) -> Problem:
    """The problem that a base poses; a given model is left as it is.

    Args:
        model: the base, or its file.
        samples: n.

    Raises:
        UnsupportedError: an input has no batch axis, or another axis without a fixed size.
        InputError: the file cannot be read.

    Example:
        >>> problem = problem_of("models/digits_linear.onnx", 1797)
        >>> problem.fields, problem.site.classes
        ((Field(name='x', shape=(1, 8, 8), dtype='float32'),), 10)
    """
    from gdu_compile.passes import LocateLogitsPass, NormalizePass  # they may import the oracles

    base = model.clone() if isinstance(model, ir.Model) else model_io.load(Path(model))
    base = model_io.raise_opset(base)
    NormalizePass()(base)
    LocateLogitsPass()(base)
    site = state_of(base).logits
    assert site is not None
    return Problem(base, site, tuple(field_of(value) for value in base.graph.inputs), samples)


def field_of(value: ir.Value) -> Field:
    """A model input, sample by sample."""
    if value.shape is None or value.dtype is None or value.shape.rank() == 0:
        raise UnsupportedError(f"input {value.name!r} has no known shape with an axis of samples")
    shape = [size for size in value.shape[1:] if isinstance(size, int)]
    if len(shape) < value.shape.rank() - 1:
        raise UnsupportedError(f"input {value.name!r} has shape {list_shape(value.shape)}: all "
                               "sizes but the number of samples have to be fixed")  # fmt: skip
    return Field(str(value.name), tuple(shape), str(value.dtype.numpy()))


def run_alone(
    algorithm: ir.Model, inputs: Mapping[str, Array], labels: Array, *, level: str = "none"
) -> dict[str, Array]:
    """The weights that an algorithm computes in onnxruntime.

    Args:
        algorithm: what an oracle's builder gives.
        inputs: one array [n, *shape] per model input.
        labels: INT64 [n].
        level: "all" or "none".

    Raises:
        InputError: onnxruntime refuses the model, or fails on the data.
    """
    with runtime.on_disk(algorithm) as path:
        return runtime.run(path, {**inputs, "Y": labels}, level=level, batch=len(labels))
