"""The data that the extension is trained on, from an .npz file (or ``synthetic``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from gdu_compile.arrays import ArrayHeader, Headers, read_arrays
from gdu_compile.contracts import DimSource, LogitsSite
from gdu_compile.digits import Array
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.losses import DEFAULT_LOSS, IN_0_1, SIGNS, LossSpec, column_kind
from gdu_compile.shapes import fits, list_shape

CALLS_NOTE = ("samples do not lie along axis 0 of every input and of the output: each sample is a "
              "call of its own, and arrays have the axis of samples in front")  # fmt: skip


@dataclass(frozen=True)
class Targets:
    """What ``y`` says before the model is known: for the choice between logits and values."""

    header: ArrayHeader

    def __repr__(self) -> str:
        return f"Targets({self.header.dtype} {list(self.header.shape)})"

    @property
    def integers(self) -> bool:
        """Whether they are whole numbers or booleans."""
        return self.header.dtype.kind in "iub"

    def below(self, axis: int, rank: int) -> float | None:
        """A number well below all targets of column 0; None when they are no finite numbers.

        Half the range below the lowest, at least 1: then |κ| = |mean(z0 − y)| is of the order
        of the range, and later targets may go a little lower.
        """
        if self.header.dtype.kind not in "iubf" or 0 in self.header.shape:
            return None
        y = self.header.load().astype(np.float64)
        column = y.take(0, axis=axis) if rank > 1 and y.ndim >= rank else y
        low, high = float(column.min()), float(column.max())
        if not np.isfinite([low, high]).all():
            return None
        return low - max(1.0, (high - low) / 2, abs(low) / 128)


def peek_targets(path: Path | None) -> Targets | None:
    """``y`` of a data file; None without a file or without ``y``.

    Raises:
        InputError: the file cannot be read.
    """
    header = None if path is None else read_arrays(path).get("y")
    return None if header is None else Targets(header)


@dataclass(frozen=True)
class Dataset:
    """Samples along axis 0.

    Attributes:
        kind: "synthetic" or "file".
        path: the file, or None.
        inputs: model input name → array [n, …].
        labels: int64 classes, [n] or the logits' shape without the class axis; or
            float32 targets in the logits' shape.
        notes: what a reader should know.
        positions: labels that count per sample: 1, or the number of tokens or pixels.
        ignore_index: the label that means "leave out"; None when there is none.
        calls: whether a sample is a whole call (``calls.py``), and axis 0 none of the model's.
    """

    kind: str
    path: str | None
    inputs: dict[str, Array]
    labels: Array
    notes: tuple[str, ...] = ()
    positions: int = 1
    ignore_index: int | None = None
    calls: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Array) -> Dataset:
        """These samples, in this order."""
        inputs = {name: array[indices] for name, array in self.inputs.items()}
        return dataclasses.replace(self, inputs=inputs, labels=self.labels[indices])


def held_out(samples: int, share: float) -> int:
    """How many samples a share of them is; at least one is left to train on."""
    return min(round(samples * share), samples - 1)


def split(data: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """(to train on, held out): a seeded choice; both keep the order of the data.

    Example:
        >>> data = Dataset("file", None, {"x": np.arange(10)}, np.arange(10))
        >>> train, test = split(data, 0.3, seed=0)
        >>> len(train), len(test), sorted([*train.labels, *test.labels]) == list(range(10))
        (7, 3, True)
    """
    order = np.random.default_rng(seed).permutation(len(data))
    size = held_out(len(data), share)
    return data.take(np.sort(order[size:])), data.take(np.sort(order[:size]))


def load_data(
    path: Path, inputs: Sequence[ir.Value], site: LogitsSite, loss: LossSpec | None = None
) -> Dataset:
    """Read ``y`` and one array per model input (``x`` when there is only one).

    Args:
        path: an .npz or .safetensors file.
        inputs: the model's inputs.
        site: the logits: what shape ``y`` has.
        loss: what ``y`` is for; None for any that goes with the output.

    Raises:
        InputError: with all problems: missing arrays, shapes, dtypes, labels.
        UnsupportedError: the model has an input that cannot hold samples.
    """
    calls = site.calls
    if calls:
        inputs, site = lifted(inputs, site)
    check_inputs(inputs)
    headers = read_arrays(path)
    chosen, problems = arrays_for(inputs, headers)
    loss = loss or fitting_loss(site, headers.get("y"))
    problems += label_problems(headers, chosen, site, loss)
    if problems:
        raise InputError(f"cannot use the data {path}", problems)
    labels = targets_of(headers["y"].load(), site, loss)
    arrays = {name: cast(header, value_named(inputs, name)) for name, header in chosen.items()}
    unused = set(headers) - {"y"} - {header.name for header in chosen.values()}
    notes: tuple[str, ...] = ()
    if unused:
        notes = (f"arrays of {path} that are not used: {', '.join(sorted(unused))}",)
    if calls:
        notes += (CALLS_NOTE,)
    return Dataset("file", str(path), arrays, labels, notes, positions_of(labels, site, loss),
                   loss.ignore_index, calls)  # fmt: skip


def lifted(
    inputs: Sequence[ir.Value], site: LogitsSite
) -> tuple[list[ir.Value], LogitsSite]:  # fmt: skip
    """Inputs and logits with the axis of calls in front, where a sample is a whole call."""
    values = [
        ir.Value(name=value.name, type=value.type,
                 shape=None if value.shape is None else ir.Shape(["calls", *value.shape]))
        for value in inputs
    ]  # fmt: skip
    dims = (None, *((dim[0], dim[1] + 1) if isinstance(dim, tuple) else dim for dim in site.dims))
    return values, dataclasses.replace(site, dims=dims, calls=False)


def arrays_for(
    inputs: Sequence[ir.Value], headers: Headers
) -> tuple[dict[str, ArrayHeader], list[str]]:
    """The array of each model input (``x`` when there is only one), and what is wrong with them."""
    problems: list[str] = []
    chosen: dict[str, ArrayHeader] = {}
    for value in inputs:
        name = str(value.name)
        key = name if name in headers or len(inputs) > 1 else "x"
        if key not in headers:
            problems.append(
                f"no array {name!r}"
                + (" (or 'x')" if len(inputs) == 1 and name != "x" else "")
                + f" for the model's input; it holds {', '.join(headers) or 'nothing'}"
            )
            continue
        chosen[name] = headers[key]
        problems += input_problems(value, headers[key])
    return chosen, problems


def fitting_loss(site: LogitsSite, y: ArrayHeader | None) -> LossSpec:
    """The default loss; for several columns with one target each, one that takes those."""
    loss = LossSpec(DEFAULT_LOSS[column_kind(site)], {})
    columns = y is not None and len(y.shape) == len(site.dims) and y.dtype.kind in "fb"
    if columns and loss.takes_classes and site.kind == "logits":
        return LossSpec(DEFAULT_LOSS["one logit"], {})
    return loss


def targets_of(y: Array, site: LogitsSite, loss: LossSpec) -> Array:
    """``y`` as the loss takes it: int64 classes, or float32 in the shape of the logits."""
    if loss.takes_classes:
        return y.astype(np.int64)
    floats = y.astype(np.float32)
    return floats if floats.ndim == len(site.dims) else np.expand_dims(floats, site.axis)


def positions_of(labels: Array, site: LogitsSite, loss: LossSpec) -> int:
    """How many samples, tokens or pixels one sample counts for in Lemma 1's N; 0 for values,
    where N has no part."""
    if site.kind == "values":
        return 0
    columns = 1 if loss.takes_classes else site.classes
    return labels.size // (len(labels) * columns)


def check_inputs(inputs: Sequence[ir.Value], *, calls: bool = False) -> None:
    """Raise UnsupportedError unless samples can lie along axis 0 of every model input, or where
    they are calls."""
    if not inputs:
        raise UnsupportedError("the model has no inputs, so there is nothing to run it on; "
                               "--no-confirm only writes the extended model")  # fmt: skip
    problems = []
    for value in inputs:
        if not isinstance(value.type, ir.TensorType) or value.dtype is None:
            problems.append(f"input {value.name!r} is no tensor ({value.type})")
        elif value.dtype == ir.DataType.STRING:
            problems.append(f"input {value.name!r} takes strings")
        elif value.shape is not None and not value.shape.rank() and not calls:
            problems.append(f"input {value.name!r} is a scalar; make it a constant of the model")
        elif value.shape is not None and 0 in value.shape:
            problems.append(
                f"input {value.name!r} has shape {list_shape(value.shape)}: no elements"
            )
    sizes = {str(value.name): size for value in inputs if (size := fixed_batch([value]))}
    if len(set(sizes.values())) > 1 and not calls:
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
    """The array in the model's dtype (float64 data for a float32 input is rounded).

    Raises:
        InputError: whole numbers that the dtype does not have.
    """
    array, wanted = header.load(), numpy_dtype(value)
    with np.errstate(over="ignore"):
        taken = array.astype(wanted, copy=False)
    if wanted.kind in "iu" and not np.array_equal(taken, array):
        raise InputError(f"{header.name!r} holds numbers that {wanted} does not have, which input "
                         f"{value.name!r} of the model takes")  # fmt: skip
    return taken


def input_problems(value: ir.Value, header: ArrayHeader) -> list[str]:
    """What is wrong with the array for one model input."""
    problems = []
    if not np.can_cast(header.dtype, numpy_dtype(value), "same_kind"):
        problems.append(f"{header.name!r} is {header.dtype}, but input {value.name!r} takes "
                        f"{numpy_dtype(value)}")  # fmt: skip
    if value.shape is None:
        scalar = f"{header.name!r} is a single number, and has no axis of samples"
        return problems if header.shape else [*problems, scalar]
    dims = list(value.shape)
    if not fits([None, *dims[1:]], header.shape):
        problems.append(f"{header.name!r} has shape {list(header.shape)}, but input "
                        f"{value.name!r} takes {list_shape(value.shape)}")  # fmt: skip
    elif isinstance(dims[0], int) and header.shape[0] < dims[0]:
        problems.append(f"{header.name!r} has {header.shape[0]} samples, but the model's batch "
                        f"is fixed to {dims[0]}")  # fmt: skip
    return problems


def label_problems(
    headers: Headers, inputs: dict[str, ArrayHeader], site: LogitsSite, loss: LossSpec
) -> list[str]:
    """What is wrong with ``y`` and the numbers of samples."""
    labels = headers.get("y")
    wanted = label_shape(site, loss)
    what = f"labels are integers {wanted}" if loss.takes_classes else f"targets are floats {wanted}"
    if labels is None:
        return [f"no array 'y' with the {what.replace(' are', ':')}"]
    kinds = "iu" if loss.takes_classes else "iubf"
    if labels.dtype.kind not in kinds or not shape_fits(labels.shape, site, loss):
        return [f"'y' is {labels.dtype} {list(labels.shape)}; {what} (--loss {loss})"]
    if 0 in labels.shape:
        return ["'y' is empty; give one label or more"]
    problems = [
        f"{header.name!r} has {header.shape[0] if header.shape else 0} samples, "
        f"but 'y' has {labels.shape[0]}"
        for header in inputs.values()
        if not header.shape or header.shape[0] != labels.shape[0]
    ]
    return problems + value_problems(labels.load(), site, loss)


def value_problems(y: Array, site: LogitsSite, loss: LossSpec) -> list[str]:
    """Which labels are no classes, or which targets are no numbers that the loss takes."""
    if loss.takes_classes:
        signed = y.astype(np.int64)  # what lies beyond int64 comes out negative
        wrong = (signed < 0) | (signed >= site.classes)
        if loss.ignore_index is not None:
            wrong &= signed != loss.ignore_index
        what = f"labels are outside 0 … {site.classes - 1}"
    elif loss.name in IN_0_1:
        wrong = ~((y.astype(np.float32) >= 0) & (y.astype(np.float32) <= 1))
        what = f"targets are outside 0 … 1, which {loss.name} needs"
        if column_kind(site) == "one logit":
            what += " (targets that are numbers need --loss mse_loss)"
    elif loss.name in SIGNS:
        wrong = np.abs(y.astype(np.float32)) != 1
        what = f"targets are not −1 or 1, which {loss.name} needs"
    else:
        wrong = ~np.isfinite(y.astype(np.float32))
        what = "targets are not finite in float32"
    outside = np.argwhere(wrong)
    if not len(outside):
        return []
    first = tuple(outside[0])
    where = ", ".join(map(str, first))
    return [f"{len(outside)} of {y.size} {what} (first: y[{where}] = {y[first]})"]


def label_shape(site: LogitsSite, loss: LossSpec) -> str:
    """The shape of ``y`` as people write it."""
    dims = ["n", *(str(d) if isinstance(d, int) else "…" for d in site.dims[1:])]
    if loss.takes_classes:
        del dims[site.axis]
    return f"[{', '.join(dims)}]"


def shape_fits(shape: tuple[int, ...], site: LogitsSite, loss: LossSpec) -> bool:
    """Whether ``y`` may have this shape; one column need not be an axis of its own."""

    def agrees(dims: list[DimSource]) -> bool:
        return len(dims) == len(shape) and all(
            not isinstance(dim, int) or dim == size
            for dim, size in list(zip(dims, shape, strict=True))[1:]
        )

    dims = list(site.dims)
    without = dims.copy()
    del without[site.axis]
    if loss.takes_classes:
        return agrees(without)
    return agrees(dims) or (site.classes == 1 and bool(without) and agrees(without))


def fixed_batch(inputs: Sequence[ir.Value]) -> int | None:
    """The batch size that the model prescribes, or None; weights may be inputs, too (IR 3)."""
    for value in inputs:
        if value.is_initializer():
            continue
        if value.shape is not None and value.shape.rank() and isinstance(value.shape[0], int):
            return int(value.shape[0])
    return None
