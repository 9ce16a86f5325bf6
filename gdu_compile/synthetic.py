"""Synthetic data, seeded: legal for the network, and no more than is useful."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from gdu_compile.contracts import LogitsSite
from gdu_compile.data import (
    CALLS_NOTE,
    Dataset,
    check_inputs,
    fitting_loss,
    fixed_batch,
    lifted,
    numpy_dtype,
    positions_of,
)
from gdu_compile.digits import Array
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.legal_inputs import Sizes, limits, whole_numbers
from gdu_compile.losses import SIGNS, LossSpec

SYNTHETIC_SAMPLES = 256
SYNTHETIC_CALLS = 16
# Together no more numbers than this, but for the least number of samples.
SYNTHETIC_NUMBERS, SYNTHETIC_LEAST = 1 << 21, 4
# Dynamic dimensions other than the batch get this size in synthetic data.
SYNTHETIC_SIZES = Sizes(8)
# Others that are tried where the network does not run with it: a picture may be too small, a
# sequence longer than its table of positions, a sound shorter than a window.
OTHER_DIMS = (32, 128, 4, 2, 1, 512)


def synthetic_data(
    inputs: Sequence[ir.Value],
    site: LogitsSite,
    seed: int,
    loss: LossSpec | None = None,
    shape: Sequence[int] | None = None,
    dims: Sizes = SYNTHETIC_SIZES,
) -> Dataset:
    """Standard normal inputs; uniform random labels, or standard normal targets of values.

    Args:
        inputs: the model's inputs.
        site: the logits.
        seed: of the random numbers.
        loss: what the labels are for; None for the default of the output kind.
        shape: of the logits; None to read it off ``site.dims``, where that is possible.
        dims: the sizes of dynamic dimensions other than the batch.

    Example:
        >>> import onnx_ir as ir
        >>> from gdu_compile.contracts import LogitsSite
        >>> x = ir.val("x", ir.DataType.FLOAT, ["N", 4])
        >>> site = LogitsSite("logits", "logits", -1, 3, "logits", "", (("x", 0), 3))
        >>> data = synthetic_data([x], site, seed=0)
        >>> data.inputs["x"].shape, data.labels.shape
        ((256, 4), (256,))
    """
    loss = loss or fitting_loss(site, None)
    rng = np.random.default_rng(seed)
    arrays, calls = synthetic_inputs(inputs, rng, calls=site.calls, dims=dims), site.calls
    if calls:
        _, site = lifted(inputs, site)
    sizes = known_shape(site, arrays, shape)
    labels: Array
    if loss.takes_classes:
        del sizes[site.axis]
        labels = rng.integers(0, site.classes, sizes).astype(np.int64)
    elif loss.name in SIGNS:
        labels = (2 * rng.integers(0, 2, sizes) - 1).astype(np.float32)
    elif site.kind == "values":
        labels = rng.standard_normal(sizes).astype(np.float32)
    else:
        labels = rng.integers(0, 2, sizes).astype(np.float32)
    return Dataset("synthetic", None, arrays, labels, (CALLS_NOTE,) if calls else (),
                   positions_of(labels, site, loss), loss.ignore_index, calls)  # fmt: skip


def known_shape(
    site: LogitsSite, inputs: dict[str, Array], shape: Sequence[int] | None = None
) -> list[int]:
    """The logits' shape on these inputs; a batch of no name is the inputs' own.

    Args:
        site: the logits.
        inputs: the arrays.
        shape: what a run with as large inputs, but for axis 0, has given; None without one.

    Raises:
        UnsupportedError: another dimension can only be known by running the model.
    """
    first = site.dims[0]
    sizes = [len(next(iter(inputs.values()))) if first is None else size_of(first, inputs)]
    if shape is not None:
        return [*sizes, *shape[1:]]
    for dim in site.dims[1:]:
        if dim is None:
            raise UnsupportedError(f"the shape of the output {site.output!r} is not known; "
                                   "give --data")  # fmt: skip
        sizes.append(size_of(dim, inputs))
    return sizes


def size_of(dim: int | tuple[str, int], inputs: dict[str, Array]) -> int:
    """A fixed size, or the size of an input's dimension."""
    return dim if isinstance(dim, int) else inputs[dim[0]].shape[dim[1]]


def synthetic_inputs(
    inputs: Sequence[ir.Value], rng: np.random.Generator, *, calls: bool = False,
    dims: Sizes = SYNTHETIC_SIZES, samples: int | None = None,
) -> dict[str, Array]:  # fmt: skip
    """Standard normal arrays; whole numbers that the network's operators allow, 0 and 1 where
    nothing is known; booleans.

    Args:
        inputs: the model's inputs.
        rng: the random numbers.
        calls: whether a sample is a whole call.
        dims: the sizes of dynamic dimensions other than the batch.
        samples: how many, where the model does not fix the batch; None for the usual number.

    Raises:
        InputError: an input has sizes that no array can have.
        UnsupportedError: one has a kind that cannot be made.
    """
    check_inputs(inputs, calls=calls)
    shapes = sample_shapes(inputs, calls=calls, dims=dims)
    count = samples or usual_number(shapes, calls=calls)
    if not calls:
        count = fixed_batch(inputs) or count
    arrays: dict[str, Array] = {}
    for value, sizes in zip(inputs, shapes, strict=True):
        dtype, shape = numpy_dtype(value), (count, *sizes)
        try:
            if dtype.kind in "iub":
                bounds = limits(value, dims.of)
                arrays[str(value.name)] = whole_numbers(shape, dtype, bounds, rng)
            else:
                arrays[str(value.name)] = rng.standard_normal(shape).astype(dtype)
        except (ValueError, MemoryError) as error:
            raise InputError(
                f"input {value.name!r}: a synthetic batch {list(shape)} of it cannot be made "
                f"({error}); give --data with fewer samples, if the sizes are right"
            ) from error
    return arrays


def seeded_inputs(model: ir.Model) -> dict[str, Array]:
    """Seeded inputs for a comparison of two models, two calls: their samples may lie anywhere."""
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    return synthetic_inputs(inputs, np.random.default_rng(0), calls=True, samples=2)


def sample_shapes(
    inputs: Sequence[ir.Value], *, calls: bool, dims: Sizes
) -> list[tuple[int, ...]]:  # fmt: skip
    """The shape of one sample of each input."""
    shapes = []
    for value in inputs:
        if value.shape is None:
            raise UnsupportedError(f"input {value.name!r} has no shape; give --data")
        sizes = [dims.of(dim) for dim in value.shape]
        shapes.append(tuple(sizes if calls else sizes[1:]))
    return shapes


def usual_number(shapes: Sequence[tuple[int, ...]], *, calls: bool) -> int:
    """How many samples of these shapes: fewer of large ones."""
    numbers = sum(math.prod(shape) for shape in shapes)
    most = max(SYNTHETIC_LEAST, SYNTHETIC_NUMBERS // max(numbers, 1))
    return min(SYNTHETIC_CALLS if calls else SYNTHETIC_SAMPLES, most)
