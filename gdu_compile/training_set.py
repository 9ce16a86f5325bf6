"""What learn needs of the data: its form before it is read, and one class for each sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gdu_compile.arrays import read_arrays
from gdu_compile.contracts import Field, LogitsSite
from gdu_compile.data import Dataset, arrays_for, check_inputs, held_out, numpy_dtype
from gdu_compile.digits import Array
from gdu_compile.errors import InputError
from gdu_compile.losses import SIGNS, LossSpec
from gdu_compile.synthetic import synthetic_inputs

Classes = npt.NDArray[np.int64]


def form_of(
    inputs: Sequence[ir.Value], path: Path | None, hold_out: float = 0.0
) -> tuple[int, tuple[Field, ...]]:
    """The number of training samples, and the model's inputs sample by sample; headers are read.

    Args:
        inputs: the model's inputs.
        path: the data; None for synthetic data.
        hold_out: the share of the samples that is not trained on.

    Raises:
        InputError: the file lacks an input, or one does not fit the model.
        UnsupportedError: the model has an input that cannot hold samples.
    """
    check_inputs(inputs)
    if path is None:
        arrays = synthetic_inputs(inputs, np.random.default_rng(0))
        shapes = {name: array.shape for name, array in arrays.items()}
    else:
        chosen, problems = arrays_for(inputs, read_arrays(path))
        if problems:
            raise InputError(f"cannot use the data {path}", problems)
        shapes = {name: header.shape for name, header in chosen.items()}
    fields = tuple(
        Field(str(value.name), tuple(shapes[str(value.name)][1:]), str(numpy_dtype(value)))
        for value in inputs
    )
    samples = min(shape[0] for shape in shapes.values())
    return samples - held_out(samples, hold_out), fields


def classes_of(data: Dataset, site: LogitsSite, loss: LossSpec) -> Classes:
    """One class for each sample, int64 [n]: what ArgMax B reads back (0 or 1 for one logit).

    Raises:
        InputError: a sample has no class: an ignored label, or targets that are not one-hot.

    Example:
        >>> import numpy as np
        >>> site = LogitsSite("z", "z", -1, 3, "values", "", (None, 3))
        >>> y = np.eye(3, dtype=np.float32)[[2, 0]]
        >>> classes_of(Dataset("file", None, {}, y), site, LossSpec("mse_loss", {})).tolist()
        [2, 0]
    """
    labels = data.labels
    if loss.takes_classes:
        wrong, what = labels == data.ignore_index, f"are ignored (label {data.ignore_index})"
        classes = labels.astype(np.int64)
    else:
        low = -1 if loss.name in SIGNS else 0
        rows = labels.reshape(len(labels), -1)  # n x C
        on = rows == 1
        legal = (on | (rows == low)).all(axis=1)
        if rows.shape[1] == 1:
            wrong, what = ~legal, f"are neither {low} nor 1"
            classes = on[:, 0].astype(np.int64)
        else:
            wrong, what = ~(legal & (on.sum(axis=1) == 1)), f"are not one-hot ({low} and one 1)"
            classes = on.argmax(axis=1).astype(np.int64)
    if wrong.any():
        raise InputError(
            f"cannot learn from the data {data.path or ''}".rstrip(),
            [f"the targets of {int(wrong.sum())} of {len(labels)} samples {what}, so their class "
             f"cannot be recorded (first: y[{int(np.argmax(wrong))}]); leave them out"],
        )  # fmt: skip
    return classes


def check_samples(data: Dataset, samples: int) -> None:
    """Raise InputError unless there is one sample a slot, and none holds NaN."""
    problems = []
    if len(data) != samples:
        problems.append(f"it has {len(data)} samples to train on, and the memory {samples} slots: "
                        "give the data that the model was compiled for, with the same --hold-out, "
                        "or compile with this --data")  # fmt: skip
    for name, array in data.inputs.items():
        if array.dtype.kind in "iub":
            continue
        missing = np.flatnonzero(np.isnan(array.reshape(len(array), -1)).any(axis=1))
        if missing.size:
            problems.append(f"{name!r} holds NaN in {missing.size} samples (first: {missing[0]}); "
                            "leave them out")  # fmt: skip
    if problems:
        raise InputError(f"cannot learn from the data {data.path or ''}".rstrip(), problems)


def with_changes(data: Dataset, label_of: int, value_of: int) -> Dataset:
    """The data with another label for one sample, and one input value of one sample changed."""
    labels = data.labels.copy()
    row = labels.reshape(len(labels), -1)[label_of]
    if labels.dtype == np.int64:
        others = labels[labels != row[0]]  # a class that the loss is known to record
        row[0] = others[0] if len(others) else (row[0] + 1) % max(int(labels.max()) + 1, 2)
    elif row.size > 1:
        row[:] = np.roll(row, 1)
    else:
        row[0] = {1: 0 if 0 in labels else -1}.get(int(row[0]), 1)
    name, array = next(iter(data.inputs.items()))
    inputs = {**data.inputs, name: with_change(array, value_of)}
    return dataclasses.replace(data, inputs=inputs, labels=labels)


def with_change(array: Array, sample: int) -> Array:
    """A copy in which one bit of one element of one sample is another: the lowest of a finite
    element, the sign where all are infinite."""
    changed = array.copy()
    flat = changed.reshape(len(changed), -1)[sample]  # a view
    if array.dtype.kind == "b":
        flat[0] = not flat[0]
        return changed
    finite = np.isfinite(flat.astype(np.float64))
    first = int(np.argmax(finite))
    bits = flat[first : first + 1].view(f"u{array.dtype.itemsize}")
    bits ^= bits.dtype.type(1 if finite[first] else 1 << (8 * array.dtype.itemsize - 1))
    return changed
