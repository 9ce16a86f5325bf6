"""The reductions: ReduceX, ArgMax and ArgMin, TopK, cumulative sums and products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gdu_compile.torch_backend.ops_unsigned import by_value, modular, widen
from gdu_compile.torch_backend.registry import Operator, operator

# (data, dimensions, keep them) → reduced
Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def reduction_operator(reduction: Reduction) -> Operator:
    """The ONNX operator around ``reduction``: which axes, and what to do without any."""

    def run(
        data: Tensor,
        axes: Tensor | None = None,
        *,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        dims = () if axes is None else tuple(axis % data.ndim for axis in axes.tolist())
        if not dims and not noop_with_empty_axes:
            dims = tuple(range(data.ndim))
        if not dims:  # only the element-wise part: over an axis of one, for torch reduces () whole
            return reduction(data.unsqueeze(-1), (-1,), False)
        return reduction(data, dims, bool(keepdims))

    return run


def _l1(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return x.abs().sum(dims, keep, dtype=x.dtype)


def _l2(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    # not the square root of a sum, whose derivative at zero is infinite
    norm: Tensor = torch.linalg.vector_norm(_floating(x), 2, dims, keep)
    return norm.to(x.dtype)


def _log_sum(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return _floating(x).sum(dims, keep).log().to(x.dtype)


def _log_sum_exp(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return torch.logsumexp(_floating(x), dims, keep).to(x.dtype)


def _max(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    if _is_empty(x, dims):
        return _sum(x, dims, keep).bool() if x.dtype == torch.bool else _lowest(x, dims, keep)
    return x.amax(dims, keep)


def _min(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    if _is_empty(x, dims):
        return _prod(x, dims, keep).bool() if x.dtype == torch.bool else _highest(x, dims, keep)
    return x.amin(dims, keep)


def _mean(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(dims, keep)
    total = x.sum(dims, keep, dtype=torch.int64)
    count = max(x.numel(), 1) // max(total.numel(), 1)
    return torch.div(total, count, rounding_mode="trunc").to(x.dtype)


def _prod(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    for dim in sorted((dim % x.ndim for dim in dims), reverse=True):
        x = x.prod(dim, keep, dtype=x.dtype)
    return x


def _sum(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(dims, keep, dtype=x.dtype)


def _sum_square(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return x.square().sum(dims, keep, dtype=x.dtype)


def _floating(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.to(torch.float64)


def _is_empty(x: Tensor, dims: tuple[int, ...]) -> bool:
    return any(x.shape[dim] == 0 for dim in dims)


def _lowest(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    bottom = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    return torch.full_like(_sum(x, dims, keep), bottom)


def _highest(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    top = torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).max
    return torch.full_like(_sum(x, dims, keep), top)


REDUCTIONS: dict[str, tuple[int, Reduction]] = {
    "ReduceL1": (18, by_value(_l1)),
    "ReduceL2": (18, by_value(_l2)),
    "ReduceLogSum": (18, by_value(_log_sum)),
    "ReduceLogSumExp": (18, by_value(_log_sum_exp)),
    "ReduceMax": (18, by_value(_max)),
    "ReduceMean": (18, by_value(_mean)),
    "ReduceMin": (18, by_value(_min)),
    "ReduceProd": (18, modular(_prod)),
    "ReduceSum": (13, modular(_sum)),
    "ReduceSumSquare": (18, modular(_sum_square)),
}
for _name, (_since, _reduction) in REDUCTIONS.items():
    operator(_name, since=_since)(reduction_operator(_reduction))


# --- places and order ---------------------------------------------------------


@operator("ArgMax", since=13)
def arg_max(
    data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Tensor:
    return _arg(torch.argmax, data, axis, bool(keepdims), select_last_index)


@operator("ArgMin", since=13)
def arg_min(
    data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Tensor:
    return _arg(torch.argmin, data, axis, bool(keepdims), select_last_index)


def _arg(function: Operator, data: Tensor, axis: int, keep: bool, last: int) -> Tensor:
    data = widen(data)
    if last:  # torch names the first of equals
        place: Tensor = data.shape[axis] - 1 - function(data.flip(axis), axis, keep)
    else:
        place = function(data, axis, keep)
    return place


@operator("TopK", since=11)
def top_k(
    x: Tensor, k: Tensor, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, Tensor]:
    # A stable sort, as torch.topk leaves the order of equals open and ONNX does not.
    values, indices = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    count = int(k)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


@operator("CumSum", since=14)
@modular
def cum_sum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _cumulate(torch.cumsum, x, int(axis), 0, exclusive, reverse)


@operator("CumProd", since=26)
@modular
def cum_prod(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _cumulate(torch.cumprod, x, int(axis), 1, exclusive, reverse)


def _cumulate(
    function: Operator, x: Tensor, axis: int, neutral: int, exclusive: int, reverse: int
) -> Tensor:
    if reverse:
        x = x.flip(axis)
    if exclusive and x.shape[axis]:
        first = torch.full_like(x.narrow(axis, 0, 1), neutral)
        x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    total: Tensor = function(x, axis, dtype=x.dtype)
    return total.flip(axis) if reverse else total
