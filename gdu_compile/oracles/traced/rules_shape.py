"""The rules that move elements: shapes, slices, indices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from gdu_compile.errors import UnsupportedError
from gdu_compile.oracles.traced.emit import Emitter, Number, aten, onnx_dtype, sizes_of

LIKE_INT = torch.empty((), dtype=torch.int64, device="meta")
"""The form of indices, but for their shape."""


@aten("view.default", "reshape.default", "_unsafe_view.default", "unsqueeze.default",
      "squeeze.dims", "squeeze.dim", "squeeze.default")  # fmt: skip
def view(e: Emitter, out: Tensor, x: ir.Value, *_: Any) -> ir.Value:
    return e.reshape(x, out.shape, out)


@aten("permute.default")
def permute(e: Emitter, out: Tensor, x: ir.Value, dims: Sequence[int]) -> ir.Value:
    return e.transpose(x, [dim % out.ndim for dim in dims], out)


@aten("transpose.int", "t.default")
def transpose(e: Emitter, out: Tensor, x: ir.Value, a: int = 0, b: int = 1) -> ir.Value:
    perm = list(range(out.ndim))
    perm[a], perm[b] = perm[b], perm[a]
    return e.transpose(x, perm, out)


@aten("expand.default")
def expand(e: Emitter, out: Tensor, x: ir.Value, *_: Any, **__: Any) -> ir.Value:
    assert x.shape is not None
    if list(x.shape.numpy()) == list(out.shape):
        return x
    return e.op("Expand", x, e.ints(out.shape), like=out)


@aten("copy.default")
def copy(e: Emitter, out: Tensor, _: Any, source: ir.Value, *__: Any) -> ir.Value:
    return expand(e, out, e.tensor(source, out.dtype))


@aten("unfold.default")
def unfold(e: Emitter, out: Tensor, x: ir.Value, dim: int, size: int, step: int) -> ir.Value:
    """Windows along an axis; their elements are the last axis."""
    rank = out.ndim - 1
    dim %= rank
    starts = torch.arange(out.shape[dim])[:, None] * step
    places = e.constant(starts + torch.arange(size))  # windows x size
    shape = [*out.shape[: dim + 1], size, *out.shape[dim + 1 : -1]]
    windows = e.op("Gather", x, places, like=out, shape=shape, axis=dim)
    perm = [axis for axis in range(rank + 1) if axis != dim + 1]
    return e.transpose(windows, [*perm, dim + 1], out)


@aten("repeat.default")
def repeat(e: Emitter, out: Tensor, x: ir.Value, repeats: Sequence[int]) -> ir.Value:
    assert x.shape is not None
    sizes = [1] * (len(repeats) - x.shape.rank()) + list(x.shape.numpy())
    return e.op("Tile", e.reshape(x, sizes, out), e.ints(repeats), like=out)


@aten("cat.default")
def cat(e: Emitter, out: Tensor, parts: Sequence[ir.Value], dim: int = 0) -> ir.Value:
    operands = [e.tensor(part, out.dtype) for part in parts
                if part.shape is None or part.shape.numpy() != (0,)]  # fmt: skip
    return e.op("Concat", *operands, like=out, axis=dim % out.ndim)


@aten("split_with_sizes.default")
def split(
    e: Emitter, out: Sequence[Tensor], x: ir.Value, sizes: Sequence[int], dim: int = 0
) -> list[ir.Value]:
    """Slices and not Split, so that a part that nobody uses is not made."""
    stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [
        cut(e, part, x, dim % part.ndim, stop - size, stop, 1)
        for part, size, stop in zip(out, sizes, stops, strict=True)
    ]


def cut(
    e: Emitter, out: Tensor, x: ir.Value, dim: int, start: int, stop: int, step: int,
    shape: Sequence[int] | None = None,
) -> ir.Value:  # fmt: skip
    """A range of indices along one axis."""
    bounds = [e.ints([number]) for number in (start, stop, dim, step)]
    return e.op("Slice", x, *bounds, like=out, shape=shape)


@aten("slice.Tensor")
def slice_(
    e: Emitter, out: Tensor, x: ir.Value, dim: int = 0, start: int | None = None,
    end: int | None = None, step: int = 1,
) -> ir.Value:  # fmt: skip
    assert x.shape is not None
    if tuple(x.shape.numpy()) == tuple(out.shape):
        return x
    size = int(x.shape.numpy()[dim % out.ndim])
    return cut(e, out, x, dim % out.ndim, start or 0, size if end is None else min(end, size), step)


@aten("select.int")
def select(e: Emitter, out: Tensor, x: ir.Value, dim: int, index: int) -> ir.Value:
    assert x.shape is not None
    dim %= x.shape.rank()
    index %= int(x.shape.numpy()[dim])
    row = [*out.shape[:dim], 1, *out.shape[dim:]]
    return e.reshape(cut(e, out, x, dim, index, index + 1, 1, row), out.shape, out)


@aten("constant_pad_nd.default")
def pad(e: Emitter, out: Tensor, x: ir.Value, sides: Sequence[int], value: float = 0) -> ir.Value:
    """torch names the last axis first; negative sides cut in both."""
    lacking = out.ndim - len(sides) // 2
    begins = [0] * lacking + list(sides[0::2])[::-1]
    ends = [0] * lacking + list(sides[1::2])[::-1]
    return e.op("Pad", x, e.ints([*begins, *ends]), e.number(value, out.dtype), like=out)


@aten("flip.default")
def flip(e: Emitter, out: Tensor, x: ir.Value, dims: Sequence[int]) -> ir.Value:
    count = len(dims)
    bounds = ([-1] * count, [torch.iinfo(torch.int64).min + 1] * count, list(dims), [-1] * count)
    return e.op("Slice", x, *[e.ints(numbers) for numbers in bounds], like=out)


@aten("sort.default", "sort.stable")
def sort(
    e: Emitter, out: Sequence[Tensor], x: ir.Value, dim: int = -1, descending: bool = False,
    stable: bool = True,
) -> Sequence[ir.Value]:  # fmt: skip
    return topk(e, out, x, out[0].shape[dim] if out[0].ndim else 1, dim, descending)


@aten("topk.default")
def topk(
    e: Emitter, out: Sequence[Tensor], x: ir.Value, k: int, dim: int = -1, largest: bool = True,
    _: bool = True,
) -> Sequence[ir.Value]:  # fmt: skip
    """Sorted, and of equal ones the first comes first."""
    forms = [(f"{e.prefix}TopK", onnx_dtype(part.dtype), list(part.shape)) for part in out]
    return e.b.multi_op("TopK", x, e.ints([k]), outputs=forms, axis=dim % out[0].ndim,
                        largest=int(largest), sorted=1)  # fmt: skip


# --- indices -----------------------------------------------------------------


@aten("embedding.default")
def embedding(e: Emitter, out: Tensor, table: ir.Value, indices: ir.Value, *_: Any) -> ir.Value:
    return e.op("Gather", table, indices, like=out, axis=0)


@aten("index_select.default")
def index_select(e: Emitter, out: Tensor, x: ir.Value, dim: int, indices: ir.Value) -> ir.Value:
    return e.op("Gather", x, indices, like=out, axis=dim)


@aten("index.Tensor")
def index(e: Emitter, out: Tensor, x: ir.Value, indices: Sequence[ir.Value | None]) -> ir.Value:
    """Several axes that are indexed at once are one axis, at the place of the first or in front."""
    axes, places = indexed(e, sizes_of(x), indices)
    if len(axes) == 1:
        return e.op("Gather", x, places, like=out, axis=axes[0])
    rows, place = sizes_of(places), place_of(axes)
    merged, others = together(e, out, x, axes)
    found = e.op("Gather", merged, places, like=out, shape=[*rows, *others], axis=0)
    back = range(len(rows), len(rows) + place)
    return e.transpose(found, [*back, *range(len(rows)), *range(len(rows) + place, out.ndim)], out)


def indexed(
    e: Emitter, sizes: Sequence[int], indices: Sequence[ir.Value | None]
) -> tuple[list[int], ir.Value]:
    """The axes that are indexed by integers, and the places along all of them as if they were one.

    Raises:
        UnsupportedError: there is a mask.
    """
    given = [(axis, each) for axis, each in enumerate(indices) if each is not None]
    if any(each.dtype == ir.DataType.BOOL for _, each in given):
        raise UnsupportedError(
            "the step of the algorithm puts several values at the places of a mask, which is not "
            "translated to ONNX; use torch.where"
        )
    (first, places), *more = [(axis, e.tensor(each, torch.int64)) for axis, each in given]
    if more:
        places = e.op("Mod", places, e.ints([sizes[first]]), like=LIKE_INT, shape=sizes_of(places))
    for axis, each in more:
        size, form = e.ints([sizes[axis]]), sizes_of(places)
        each = e.op("Mod", each, size, like=LIKE_INT, shape=sizes_of(each))  # below 0: from the end
        whole = e.op("Mul", places, size, like=LIKE_INT, shape=form)
        places = e.op("Add", whole, each, like=LIKE_INT,
                      shape=np.broadcast_shapes(tuple(form), tuple(sizes_of(each))))  # fmt: skip
    return [axis for axis, _ in given], places


def place_of(axes: Sequence[int]) -> int:
    """Where torch puts the axes of the indices: in place of theirs if these lie side by side."""
    return axes[0] if list(axes) == list(range(axes[0], axes[0] + len(axes))) else 0


def together(
    e: Emitter, like: Tensor, x: ir.Value, axes: Sequence[int]
) -> tuple[ir.Value, list[int]]:
    """x with these axes as one, in front of the others; and the others' sizes."""
    sizes = sizes_of(x)
    others = [axis for axis in range(len(sizes)) if axis not in axes]
    shape = [math.prod(sizes[axis] for axis in axes), *(sizes[axis] for axis in others)]
    return e.reshape(e.transpose(x, [*axes, *others], like), shape, like), shape[1:]


@aten("gather.default")
def gather(e: Emitter, out: Tensor, x: ir.Value, dim: int, indices: ir.Value) -> ir.Value:
    return e.op("GatherElements", x, indices, like=out, axis=dim)


def scattered(how: str) -> Any:
    """The rule of a scatter that adds, or replaces."""

    def rule(
        e: Emitter, out: Tensor, x: ir.Value, dim: int, indices: ir.Value, source: Number
    ) -> ir.Value:
        assert indices.shape is not None
        sizes = list(indices.shape.numpy())
        if not isinstance(source, ir.Value):
            source = e.constant(torch.full(sizes, source, dtype=out.dtype))
        return e.op("ScatterElements", x, indices, source, like=out, axis=dim,
                    reduction=how)  # fmt: skip

    return rule


aten("scatter_add.default")(scattered("add"))
aten("scatter.src", "scatter.value")(scattered("none"))


@aten("index_put.default", "_unsafe_index_put.default")
def index_put(
    e: Emitter, out: Tensor, x: ir.Value, indices: Sequence[ir.Value | None], source: ir.Value,
    accumulate: bool = False,
) -> ir.Value:  # fmt: skip
    """Elements added, or put.

    ScatterElements and not ScatterND, which in onnxruntime adds from several threads at once and
    loses what it adds to the same place.
    """
    masks = [(axis, each) for axis, each in enumerate(indices)
             if each is not None and each.dtype == ir.DataType.BOOL]  # fmt: skip
    if len(masks) == 1 and math.prod(sizes_of(source)) == 1 and not accumulate:
        return put_by_mask(e, out, x, *masks[0], source)
    axes, places = indexed(e, out.shape, indices)
    merged, others = together(e, out, x, axes)
    rows, place, width = sizes_of(places), place_of(axes), math.prod(others)
    wide = [*others[:place], *rows, *others[place:]]
    source = expand(e, torch.empty(wide, dtype=out.dtype, device="meta"), source)
    taken = range(place, place + len(rows))
    source = e.transpose(source, [*taken, *(n for n in range(len(wide)) if n not in taken)], out)
    flat = [math.prod(rows), width]
    places = e.op("Expand", e.reshape(places, [flat[0], 1], LIKE_INT), e.ints(flat), like=LIKE_INT,
                  shape=flat)  # fmt: skip
    table = e.reshape(merged, [sizes_of(merged)[0], width], out)
    put = e.op("ScatterElements", table, places, e.reshape(source, flat, out), like=out,
               shape=sizes_of(table), axis=0,
               reduction="add" if accumulate else "none")  # fmt: skip
    order = [*axes, *(axis for axis in range(out.ndim) if axis not in axes)]
    put = e.reshape(put, [out.shape[axis] for axis in order], out)
    return e.transpose(put, [order.index(axis) for axis in range(out.ndim)], out)


def put_by_mask(
    e: Emitter, out: Tensor, x: ir.Value, axis: int, mask: ir.Value, source: ir.Value
) -> ir.Value:
    """One number at all places of a mask, which may have fewer axes."""
    sizes = sizes_of(mask)
    wide = [*sizes, *[1] * (out.ndim - axis - len(sizes))]
    mask = e.reshape(mask, wide, torch.empty((), dtype=torch.bool))
    return e.op("Where", mask, e.reshape(e.tensor(source, out.dtype), [], out), x, like=out)


@aten("slice_scatter.default")
def slice_scatter(
    e: Emitter, out: Tensor, x: ir.Value, source: ir.Value, dim: int = 0, start: int | None = None,
    end: int | None = None, step: int = 1,
) -> ir.Value:  # fmt: skip
    """A slice put back: each index along the axis is taken from the one or the other."""
    dim %= out.ndim
    size = out.shape[dim]
    inside = list(range(*slice(start, end, step).indices(size)))
    places = [size + inside.index(i) if i in set(inside) else i for i in range(size)]
    both = [*out.shape[:dim], size + len(inside), *out.shape[dim + 1 :]]
    joined = e.op("Concat", x, source, like=out, shape=both, axis=dim)
    return e.op("Gather", joined, e.ints(places), like=out, axis=dim)


@aten("select_scatter.default")
def select_scatter(
    e: Emitter, out: Tensor, x: ir.Value, source: ir.Value, dim: int, index: int
) -> ir.Value:
    dim %= out.ndim
    index %= out.shape[dim]
    row = [*out.shape[:dim], 1, *out.shape[dim + 1 :]]
    return slice_scatter(e, out, x, e.reshape(source, row, out), dim, index, index + 1)
