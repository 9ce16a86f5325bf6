"""The operators that move data by shape: reshaping, slicing, joining, padding, making tensors."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from gdu_compile.errors import UnsupportedError
from gdu_compile.torch_backend.memory import fresh
from gdu_compile.torch_backend.ops_elementwise import torch_dtype
from gdu_compile.torch_backend.ops_unsigned import modular
from gdu_compile.torch_backend.registry import operator

# --- the same values in another shape ----------------------------------------


@operator("Identity", since=16)
def identity(x: Tensor) -> Tensor:
    return x


@operator("Reshape", since=14)
def reshape(data: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    sizes = shape.tolist()
    if not allowzero:
        sizes = [data.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return data.reshape(sizes)


@operator("Flatten", since=13)
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Squeeze", since=13)
def squeeze(data: Tensor, axes: Tensor | None = None) -> Tensor:
    return data.squeeze() if axes is None else data.squeeze(axes.tolist())


@operator("Unsqueeze", since=13)
def unsqueeze(data: Tensor, axes: Tensor) -> Tensor:
    places = axes.reshape(-1).tolist()
    rank = data.ndim + len(places)
    for axis in sorted(axis % rank for axis in places):
        data = data.unsqueeze(axis)
    return data


@operator("Transpose", since=13)
def transpose(data: Tensor, *, perm: list[int] | None = None) -> Tensor:
    return data.permute(tuple(reversed(range(data.ndim))) if perm is None else perm)


@operator("DepthToSpace", since=13)
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b, depth = blocksize, c // blocksize**2
    if mode == "DCR":
        x = x.reshape(n, b, b, depth, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, depth, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, depth, h * b, w * b)


@operator("SpaceToDepth", since=13)
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    x = x.reshape(n, c, h // b, b, w // b, b)
    x = x.permute((0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4))
    return x.reshape(n, c * b * b, h // b, w // b)


# --- parts, copies and joins -------------------------------------------------


@operator("Concat", since=13)
def concat(*inputs: Tensor, axis: int) -> Tensor:
    first = inputs[0]
    columns = first.ndim > 1 and first.shape[-1] == 1 and axis in (-1, first.ndim - 1)
    if not columns or any(
        x.shape != first.shape or x.requires_grad or is_functorch_wrapped_tensor(x) for x in inputs
    ):
        return torch.cat(inputs, axis)
    # torch.cat takes five times as long to place single columns beside each other.
    joined = fresh((*first.shape[:-1], len(inputs)), first.dtype, first.device)
    for place, x in zip(torch.split(joined, 1, -1), inputs, strict=True):
        place.copy_(x)
    return joined


@operator("Split", since=18)
def split(
    x: Tensor,
    split: Tensor | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    num_outputs_: int,
) -> tuple[Tensor, ...]:
    if split is not None:
        sizes = split.tolist()
    else:  # equal parts, the last one smaller if need be
        size, parts = x.shape[axis], num_outputs or num_outputs_
        part = -(-size // parts)
        edges = [min(i * part, size) for i in range(parts + 1)]
        sizes = [end - start for start, end in pairwise(edges)]
    return torch.split(x, sizes, axis)


@operator("Slice", since=13)
@modular
def slice_(
    data: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first, last = starts.tolist(), ends.tolist()
    dims = range(len(first)) if axes is None else axes.tolist()
    strides = [1] * len(first) if steps is None else steps.tolist()
    for start, end, dim, step in zip(first, last, dims, strides, strict=True):
        before = (slice(None),) * (dim % data.ndim)
        taken = _taken(data.shape[dim], start, end, step)
        if step > 0:
            data = data[(*before, slice(taken.start, max(taken.start, taken.stop), step))]
        elif len(taken) == 0:
            data = data[(*before, slice(0))]
        else:  # torch knows no negative step
            data = data[(*before, slice(taken[-1], taken[0] + 1, -step))].flip(dim)
    return data


def _taken(size: int, start: int, end: int, step: int) -> range:
    start, end = (start + size if start < 0 else start), (end + size if end < 0 else end)
    if step > 0:
        return range(min(max(start, 0), size), min(max(end, 0), size), step)
    # Unlike Python, ONNX also clamps a start before the first element, to the first element.
    return range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step)


@operator("Expand", since=13)
def expand(x: Tensor, shape: Tensor) -> Tensor:
    sizes = shape.tolist()
    sizes = [1] * (x.ndim - len(sizes)) + sizes
    new = len(sizes) - x.ndim
    # In both directions: where the shape says 1, x keeps its own size (-1 for torch).
    return x.expand([-1 if size == 1 and i >= new else size for i, size in enumerate(sizes)])


@operator("Tile", since=13)
def tile(x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(repeats.tolist())


@operator("Trilu", since=14)
@modular
def trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return x.triu(diagonal) if upper else x.tril(diagonal)


@operator("Pad", since=18)
@modular
def pad(
    data: Tensor,
    pads: Tensor,
    constant_value: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    amounts = pads.tolist()
    dims = range(data.ndim) if axes is None else axes.tolist()
    half = len(amounts) // 2
    for dim, begin, end in zip(dims, amounts[:half], amounts[half:], strict=True):
        cut = max(0, -begin)
        data = data.narrow(dim, cut, data.shape[dim] - cut - max(0, -end))
        begin, end = max(0, begin), max(0, end)
        if not begin and not end:
            continue
        if mode == "constant":  # joined, so that the filling is exact in every type and derivable
            value = data.new_zeros(()) if constant_value is None else constant_value.reshape(())
            sides = [list(data.shape), list(data.shape)]
            sides[0][dim], sides[1][dim] = begin, end
            data = torch.cat([value.expand(sides[0]), data, value.expand(sides[1])], dim)
        else:
            places = torch.arange(-begin, data.shape[dim] + end, device=data.device)
            data = data.index_select(dim, _inside(places, data.shape[dim], mode))
    return data


def _inside(places: Tensor, size: int, mode: str) -> Tensor:
    """Which element stands at each place, some of them outside 0..size."""
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places.remainder(size)
    period = max(1, 2 * (size - 1))
    places = places.remainder(period)
    return torch.minimum(places, period - places)


# --- tensors out of shapes and numbers ---------------------------------------


@operator("Shape", since=15)
def shape(data: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(data.shape[start:end], dtype=torch.int64, device=data.device)


@operator("Size", since=13)
def size(data: Tensor) -> Tensor:
    return torch.tensor(data.numel(), dtype=torch.int64, device=data.device)


@operator("Constant", since=13)
def constant(
    *,
    value: Tensor | None = None,
    value_float: float | None = None,
    value_floats: list[float] | None = None,
    value_int: int | None = None,
    value_ints: list[int] | None = None,
    value_string: str | None = None,
    value_strings: list[str] | None = None,
    sparse_value: object = None,
) -> Tensor:
    if value is not None:
        return value
    floats = value_floats if value_float is None else value_float
    if floats is not None:
        return torch.tensor(floats, dtype=torch.float32)
    ints = value_ints if value_int is None else value_int
    if ints is not None:
        return torch.tensor(ints, dtype=torch.int64)
    raise UnsupportedError("a Constant of strings or of a sparse tensor does not run in torch")


@operator("ConstantOfShape", since=9)
def constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    fill = torch.zeros((), device=shape.device) if value is None else value.to(shape.device)
    return fill.reshape(()).expand(shape.tolist())


@operator("Range", since=11)
def range_(start: Tensor, limit: Tensor, delta: Tensor, *, stash_type: int = 1) -> Tensor:
    dtype = start.dtype
    if dtype in (torch.float16, torch.bfloat16):
        stash = torch_dtype(stash_type)
        start, limit, delta = start.to(stash), limit.to(stash), delta.to(stash)
    if dtype.is_floating_point:
        count = math.ceil(float(limit - start) / float(delta))
    else:
        count = -((int(start) - int(limit)) // int(delta))  # rounded up
    steps = torch.arange(max(count, 0), dtype=start.dtype, device=start.device)
    return (start + steps * delta).to(dtype)


@operator("EyeLike", since=9)
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    rows, columns = x.shape
    places = torch.arange(columns, device=x.device) - torch.arange(rows, device=x.device)[:, None]
    return (places == k).to(x.dtype if dtype is None else torch_dtype(dtype))
