"""The operators that pick and place values by index: gathering, scattering, one-hot, selecting."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gdu_compile.torch_backend.ops_unsigned import by_value, modular, widen
from gdu_compile.torch_backend.registry import operator

SCATTER_REDUCE = {"mul": "prod", "max": "amax", "min": "amin"}


def _from_start(indices: Tensor, size: int) -> Tensor:
    """``indices`` with the negative ones, counted from the end, made positive."""
    narrow = indices.dtype == torch.int32 and size < 2**31
    indices = indices if narrow else indices.to(torch.int64)
    # −1 & size where an index is negative, else 0; torch.where takes four times as long.
    return indices + ((indices >> (31 if narrow else 63)) & size)


def _flat_index(indices: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Index tuples (in the last dimension) into dimensions of ``sizes`` → indices into one."""
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for i, size in enumerate(sizes):
        flat = flat * size + _from_start(indices[..., i], size)
    return flat


def _scatter(data: Tensor, dim: int, index: Tensor, updates: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return modular(torch.scatter)(data, dim, index, updates)
    if reduction == "add":
        return modular(torch.scatter_add)(data, dim, index, updates)
    wrap = modular if reduction == "mul" else by_value
    return wrap(torch.scatter_reduce)(data, dim, index, updates, SCATTER_REDUCE[reduction])


@operator("Gather", since=13)
@modular
def gather(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    axis %= data.ndim
    picked = data.index_select(axis, _from_start(indices, data.shape[axis]).reshape(-1))
    return picked.reshape(data.shape[:axis] + indices.shape + data.shape[axis + 1 :])


@operator("GatherElements", since=13)
@modular
def gather_elements(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return data.gather(axis, _from_start(indices.to(torch.int64), data.shape[axis]))


@operator("GatherND", since=13)
@modular
def gather_nd(data: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    depth = batch_dims + indices.shape[-1]
    batch, inner, rest = data.shape[:batch_dims], data.shape[batch_dims:depth], data.shape[depth:]
    flat = _flat_index(indices, inner).reshape(math.prod(batch), -1)
    offsets = torch.arange(math.prod(batch), device=flat.device) * math.prod(inner)
    rows = data.reshape(math.prod(batch) * math.prod(inner), math.prod(rest))
    picked = rows.index_select(0, (flat + offsets[:, None]).reshape(-1))
    return picked.reshape(indices.shape[:-1] + rest)


@operator("ScatterElements", since=18)
def scatter_elements(
    data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    index = _from_start(indices.to(torch.int64), data.shape[axis])
    return _scatter(data, axis, index, updates, reduction)


@operator("ScatterND", since=18)
def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none"
) -> Tensor:
    depth = indices.shape[-1]
    inner, rest = data.shape[:depth], math.prod(data.shape[depth:])
    rows = data.reshape(math.prod(inner), rest)
    index = _flat_index(indices, inner).reshape(-1, 1).expand(-1, rest)
    return _scatter(rows, 0, index, updates.reshape(index.shape), reduction).reshape(data.shape)


@operator("OneHot", since=11)
def one_hot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    axis %= indices.ndim + 1
    places = torch.arange(int(depth), device=indices.device)
    places = places.reshape((-1,) + (1,) * (indices.ndim - axis))
    hot = _from_start(indices, int(depth)).unsqueeze(axis) == places
    return torch.where(hot, values[1], values[0])


@operator("NonZero", since=13)
def non_zero(x: Tensor) -> Tensor:
    return widen(x).nonzero().T


@operator("Compress", since=11)
@modular
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, condition.nonzero().reshape(-1))


@operator("Unique", since=11)
def unique(
    x: Tensor, *, axis: int | None = None, sorted: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if axis is None:
        x, axis = x.reshape(-1), 0
    _, inverse, counts = torch.unique(widen(x), return_inverse=True, return_counts=True, dim=axis)
    places = torch.arange(len(inverse), device=x.device)
    first = torch.full_like(counts, len(inverse)).scatter_reduce(0, inverse, places, "amin")
    if not sorted:
        order = first.argsort()
        first, counts, inverse = first[order], counts[order], order.argsort()[inverse]
    # not torch's distinct values: these have a derivative
    return modular(torch.index_select)(x, axis, first), first, inverse, counts


@operator("ReverseSequence", since=10)
@modular
def reverse_sequence(
    x: Tensor, sequence_lens: Tensor, *, batch_axis: int = 1, time_axis: int = 0
) -> Tensor:
    batched = x.movedim((batch_axis, time_axis), (0, 1))
    times = torch.arange(batched.shape[1], device=x.device)
    lengths = sequence_lens.to(torch.int64)[:, None]
    source = torch.where(times < lengths, lengths - 1 - times, times)
    source = source.reshape(source.shape + (1,) * (x.ndim - 2)).expand(batched.shape)
    return batched.gather(1, source).movedim((0, 1), (batch_axis, time_axis))


@operator("TensorScatter", since=24)
@modular
def tensor_scatter(
    past_cache: Tensor,
    update: Tensor,
    write_indices: Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> Tensor:
    axis %= past_cache.ndim
    places = torch.arange(update.shape[axis], device=update.device)[None]  # [N, length]
    if write_indices is not None:
        places = places + write_indices[:, None]
    if mode == "circular":
        places = places % past_cache.shape[axis]
    shape = [len(places), *[1] * (past_cache.ndim - 1)]
    shape[axis] = places.shape[1]
    return past_cache.scatter(axis, places.reshape(shape).expand(update.shape), update)
