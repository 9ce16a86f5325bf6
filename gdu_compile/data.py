"""The data that the extension is trained on: from an .npz file, or synthetic and seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from gdu_compile.arrays import ArrayHeader, Headers, read_arrays
from gdu_compile.contracts import LogitsSite
from gdu_compile.digits import Array
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.logits import list_shape

SYNTHETIC_SAMPLES = 256
# A dynamic dimension other than the batch gets this size in synthetic data.
SYNTHETIC_DIM = 8


@dataclass(frozen=True)
class Dataset:
    """Samples along axis 0.

    Attributes:
        kind: "synthetic" or "file".
        path: the file, or None.
        inputs: model input name → array [n, …].
        labels: int64 [n], classes.
        notes: what a reader should know.
    """

    kind: str
    path: str | None
    inputs: dict[str, Array]
    labels: np.ndarray[tuple[int], np.dtype[np.int64]]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


def load_data(path: Path, inputs: Sequence[ir.Value], site: LogitsSite) -> Dataset:
    """Read ``y`` and one array per model input (``x`` when there is only one).

    Raises:
        InputError: with all problems: missing arrays, shapes, dtypes, labels.
        UnsupportedError: the model has an input that cannot hold samples.
    """
    check_inputs(inputs)
    headers = read_arrays(path)
    problems: list[str] = []
    chosen: dict[str, ArrayHeader] = {}
    for value in inputs:
        name = str(value.name)
        key = name if name in headers or len(inputs) > 1 else "x"
        if key not in headers:
            problems.append(
                f"no array {name!r}"
                + (" (or 'x')" if len(inputs) == 1 else "")
                + f" for the model's input; it holds {', '.join(headers) or 'nothing'}"
            )
            continue
        chosen[name] = headers[key]
        problems += input_problems(value, headers[key])
    problems += label_problems(headers, chosen, site.classes)
    if problems:
        raise InputError(f"cannot use the data {path}", problems)
    labels = headers["y"].load().astype(np.int64)
    arrays = {name: cast(header, value_named(inputs, name)) for name, header in chosen.items()}
    unused = set(headers) - {"y"} - {header.name for header in chosen.values()}
    notes = (f"arrays of {path} that are not used: {', '.join(sorted(unused))}",) if unused else ()
    return Dataset("file", str(path), arrays, labels, notes)


def check_inputs(inputs: Sequence[ir.Value]) -> None:
    """Raise UnsupportedError unless samples can lie along axis 0 of every model input."""
    if not inputs:
        raise UnsupportedError("the model has no inputs, so there is nothing to run it on; "
                               "--no-confirm only writes the extended model")  # fmt: skip
    problems = []
    for value in inputs:
        if not isinstance(value.type, ir.TensorType) or value.dtype is None:
            problems.append(f"input {value.name!r} is no tensor ({value.type})")
        elif value.dtype == ir.DataType.STRING:
            problems.append(f"input {value.name!r} takes strings")
        elif value.shape is not None and not value.shape.rank():
            problems.append(f"input {value.name!r} is a scalar; make it a constant of the model")
        elif value.shape is not None and 0 in value.shape:
            problems.append(
                f"input {value.name!r} has shape {list_shape(value.shape)}: no elements"
            )
    sizes = {str(value.name): size for value in inputs if (size := fixed_batch([value]))}
    if len(set(sizes.values())) > 1:
        batches = ", ".join(f"{size} for {name!r}" for name, size in sizes.items())
        problems.append(f"the batch is fixed to different sizes: {batches}")
    if problems:
        raise UnsupportedError("the model's inputs cannot hold samples along axis 0; --no-confirm "
                               "only writes the extended model", problems)  # fmt: skip


def value_named(values: Sequence[ir.Value], name: str) -> ir.Value:
    """The value with this name."""
    return next(value for value in values if value.name == name)


def numpy_dtype(value: ir.Value) -> np.dtype[np.generic]:
    """The dtype of a model input, which check_inputs has seen."""
    assert value.dtype is not None
    return np.dtype(value.dtype.numpy())


def cast(header: ArrayHeader, value: ir.Value) -> Array:
    """The array in the model's dtype (float64 data for a float32 input is rounded)."""
    return header.load().astype(numpy_dtype(value), copy=False)


def input_problems(value: ir.Value, header: ArrayHeader) -> list[str]:
    """What is wrong with the array for one model input."""
    problems = []
    if not np.can_cast(header.dtype, numpy_dtype(value), "same_kind"):
        problems.append(f"{header.name!r} is {header.dtype}, but input {value.name!r} takes "
                        f"{numpy_dtype(value)}")  # fmt: skip
    if value.shape is None:
        return problems
    dims = list(value.shape)
    fits = len(dims) == len(header.shape) and all(
        not isinstance(dim, int) or dim == size
        for dim, size in list(zip(dims, header.shape, strict=False))[1:]
    )
    if not fits:
        problems.append(f"{header.name!r} has shape {list(header.shape)}, but input "
                        f"{value.name!r} takes {list_shape(value.shape)}")  # fmt: skip
    elif isinstance(dims[0], int) and header.shape[0] < dims[0]:
        problems.append(f"{header.name!r} has {header.shape[0]} samples, but the model's batch "
                        f"is fixed to {dims[0]}")  # fmt: skip
    return problems


def label_problems(headers: Headers, inputs: dict[str, ArrayHeader], classes: int) -> list[str]:
    """What is wrong with ``y`` and the numbers of samples."""
    labels = headers.get("y")
    if labels is None:
        return ["no array 'y' with the labels: integers [n]"]
    if len(labels.shape) != 1 or not np.issubdtype(labels.dtype, np.integer):
        return [f"'y' is {labels.dtype} {list(labels.shape)}; labels are integers [n]"]
    if labels.shape[0] == 0:
        return ["'y' is empty; give one label or more"]
    problems = [
        f"{header.name!r} has {header.shape[0] if header.shape else 0} samples, "
        f"but 'y' has {labels.shape[0]}"
        for header in inputs.values()
        if not header.shape or header.shape[0] != labels.shape[0]
    ]
    y = labels.load()
    signed = y.astype(np.int64)  # what lies beyond int64 comes out negative
    outside = np.flatnonzero((signed < 0) | (signed >= classes))
    if outside.size:
        problems.append(f"{outside.size} of {len(y)} labels are outside 0 … {classes - 1} "
                        f"(first: y[{outside[0]}] = {y[outside[0]]})")  # fmt: skip
    return problems


def synthetic_data(inputs: Sequence[ir.Value], site: LogitsSite, seed: int) -> Dataset:
    """Standard normal inputs (0 and 1 for integers and booleans) and uniform random labels.

    Example:
        >>> import onnx_ir as ir
        >>> from gdu_compile.contracts import LogitsSite
        >>> x = ir.val("x", ir.DataType.FLOAT, ["N", 4])
        >>> site = LogitsSite("logits", -1, 3, "logits", "", None)
        >>> synthetic_data([x], site, seed=0).inputs["x"].shape
        (256, 4)
    """
    check_inputs(inputs)
    rng = np.random.default_rng(seed)
    samples = fixed_batch(inputs) or SYNTHETIC_SAMPLES
    arrays: dict[str, Array] = {}
    for value in inputs:
        dtype = numpy_dtype(value)
        if value.shape is None:
            raise UnsupportedError(f"input {value.name!r} has no shape; give --data")
        dims = [dim if isinstance(dim, int) else SYNTHETIC_DIM for dim in value.shape]
        shape = (samples, *dims[1:])
        if np.issubdtype(dtype, np.floating):
            arrays[str(value.name)] = rng.standard_normal(shape).astype(dtype)
        else:
            arrays[str(value.name)] = rng.integers(0, 2, shape).astype(dtype)
    labels = rng.integers(0, site.classes, samples)
    return Dataset("synthetic", None, arrays, labels.astype(np.int64))


def fixed_batch(inputs: Sequence[ir.Value]) -> int | None:
    """The batch size that the model prescribes, or None."""
    for value in inputs:
        if value.shape is not None and value.shape.rank() and isinstance(value.shape[0], int):
            return int(value.shape[0])
    return None
