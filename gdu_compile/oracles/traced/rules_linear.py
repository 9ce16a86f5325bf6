"""The rules that add up: reductions, products, convolutions, pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from gdu_compile.oracles.traced.emit import Emitter, aten, onnx_dtype, sizes_of


def reduction(kind: str) -> Any:
    """The rule of a sum, mean, maximum or minimum over axes; none are all axes."""

    def rule(
        e: Emitter, out: Tensor, x: ir.Value, dims: Sequence[int] | int | None = None,
        keepdim: bool = False, **_: Any,
    ) -> ir.Value:  # fmt: skip
        assert x.shape is not None
        operand = e.tensor(x, out.dtype)
        axes = [dims] if isinstance(dims, int) else list(dims or range(x.shape.rank()))
        if not axes:
            return operand
        if kind in ("ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd"):
            axes = [axis % x.shape.rank() for axis in axes]
        return e.op(kind, operand, e.ints(axes), like=out, keepdims=int(keepdim))

    return rule


for name, kind in {"sum": "ReduceSum", "mean": "ReduceMean", "amax": "ReduceMax",
                   "amin": "ReduceMin"}.items():  # fmt: skip
    aten(f"{name}.default", f"{name}.dim_IntList", f"{name}.dim")(reduction(kind))


@aten("var.correction", "var.dim")
def var(
    e: Emitter, out: Tensor, x: ir.Value, dims: Sequence[int] | None = None, *,
    correction: float | None = 1, keepdim: bool = False,
) -> ir.Value:  # fmt: skip
    assert x.shape is not None
    sizes = list(x.shape.numpy())
    axes = [axis % len(sizes) for axis in (dims or range(len(sizes)))]
    kept = [1 if axis in axes else size for axis, size in enumerate(sizes)]
    count = math.prod(sizes[axis] for axis in axes)
    mean = e.op("ReduceMean", x, e.ints(axes), like=out, shape=kept, keepdims=1)
    away = e.op("Sub", x, mean, like=out, shape=sizes)
    squares = e.op("Mul", away, away, like=out, shape=sizes)
    total = e.op("ReduceSum", squares, e.ints(axes), like=out, keepdims=int(keepdim))
    return e.op("Div", total, e.number(count - (correction or 0), out.dtype), like=out)


@aten("any.default", "any.dim", "any.dims")
def any_(
    e: Emitter, out: Tensor, x: ir.Value, dims: Sequence[int] | int | None = None,
    keepdim: bool = False,
) -> ir.Value:  # fmt: skip
    number = e.tensor(x, torch.int32)
    like = torch.empty(out.shape, dtype=torch.int32, device="meta")
    largest: ir.Value = reduction("ReduceMax")(e, like, number, dims, keepdim)
    return e.tensor(largest, torch.bool)


@aten("argmax.default")
def argmax(
    e: Emitter, out: Tensor, x: ir.Value, dim: int | None = None, keepdim: bool = False
) -> ir.Value:
    assert x.shape is not None
    if dim is None:
        x, dim = e.reshape(x, [math.prod(x.shape.numpy())], out), 0
    return e.op("ArgMax", x, like=out, axis=dim, keepdims=int(keepdim))


@aten("argmin.default")
def argmin(
    e: Emitter, out: Tensor, x: ir.Value, dim: int | None = None, keepdim: bool = False
) -> ir.Value:
    return argmax(e, out, e.op("Neg", x, like=out, shape=x.shape.numpy() if x.shape else ()), dim,
                  keepdim)  # fmt: skip


@aten("max.dim")
def max_dim(
    e: Emitter, out: Sequence[Tensor], x: ir.Value, dim: int, keepdim: bool = False
) -> list[ir.Value]:
    return [reduction("ReduceMax")(e, out[0], x, [dim], keepdim),
            argmax(e, out[1], x, dim, keepdim)]  # fmt: skip


@aten("cumsum.default")
def cumsum(e: Emitter, out: Tensor, x: ir.Value, dim: int, **_: Any) -> ir.Value:
    return e.op("CumSum", e.tensor(x, out.dtype), e.number(dim, torch.int64), like=out)


def softmax(kind: str) -> Any:
    """The rule of Softmax and LogSoftmax."""

    def rule(e: Emitter, out: Tensor, x: ir.Value, dim: int, _: bool = False) -> ir.Value:
        return e.op(kind, e.tensor(x, out.dtype), like=out, axis=dim)

    return rule


aten("_softmax.default")(softmax("Softmax"))
aten("_log_softmax.default")(softmax("LogSoftmax"))


# --- products and convolutions -------------------------------------------------


@aten("mm.default")
def mm(e: Emitter, out: Tensor, a: ir.Value, b: ir.Value) -> ir.Value:
    return e.product(a, b, out)


@aten("addmm.default")
def addmm(e: Emitter, out: Tensor, c: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    return e.op("Add", e.product(a, b, out), c, like=out)


@aten("bmm.default", "matmul.default", "mv.default", "dot.default")
def bmm(e: Emitter, out: Tensor, a: ir.Value, b: ir.Value) -> ir.Value:
    return e.op("MatMul", a, b, like=out)


@aten("convolution.default")
def convolution(
    e: Emitter, out: Tensor, x: ir.Value, w: ir.Value, b: ir.Value | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], transposed: bool,
    output_padding: Sequence[int], groups: int,
) -> ir.Value:  # fmt: skip
    assert w.shape is not None
    rank = out.ndim - 2
    operands = [x, w] if b is None else [x, w, b]
    extra: dict[str, Any] = {"output_padding": of_rank(output_padding, rank)} if transposed else {}
    return e.op(
        "ConvTranspose" if transposed else "Conv", *operands, like=out, group=groups,
        strides=of_rank(stride, rank), dilations=of_rank(dilation, rank),
        pads=2 * of_rank(padding, rank), kernel_shape=sizes_of(w)[2:], **extra,
    )  # fmt: skip


def of_rank(numbers: Sequence[int], rank: int) -> list[int]:
    """One number for each spatial axis: torch takes one for all."""
    return list(numbers) * (rank if len(numbers) == 1 else 1)


# --- pooling -----------------------------------------------------------------


@aten("max_pool2d_with_indices.default", "max_pool3d_with_indices.default")
def max_pool(
    e: Emitter, out: Sequence[Tensor], x: ir.Value, kernel: Sequence[int],
    stride: Sequence[int] = (), padding: Sequence[int] = (0,), dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Sequence[ir.Value]:  # fmt: skip
    """The places are those of ONNX: within the whole tensor, not within its channel."""
    values, places = out
    rank = len(kernel)
    return e.b.multi_op(
        "MaxPool", x,
        outputs=[(f"{e.prefix}MaxPool", onnx_dtype(values.dtype), list(values.shape)),
                 (f"{e.prefix}places", ir.DataType.INT64, list(places.shape))],
        kernel_shape=list(kernel), strides=of_rank(stride or kernel, rank),
        pads=2 * of_rank(padding, rank), dilations=of_rank(dilation, rank),
        ceil_mode=int(ceil_mode),
    )  # fmt: skip


@aten("max_pool2d_with_indices_backward.default", "max_pool3d_with_indices_backward.default")
def max_pool_backward(
    e: Emitter, out: Tensor, grad: ir.Value, x: ir.Value, *rest: Any
) -> ir.Value:  # fmt: skip
    """Each gradient is added where its maximum was."""
    assert grad.shape is not None
    elements, count = math.prod(out.shape), math.prod(grad.shape.numpy())
    places = e.reshape(rest[-1], [count], torch.empty(count, dtype=torch.int64, device="meta"))
    updates = e.reshape(grad, [count], out)
    zeros = e.constant(torch.zeros(elements, dtype=out.dtype))
    added = e.op("ScatterElements", zeros, places, updates, like=out, shape=[elements], axis=0,
                 reduction="add")  # fmt: skip
    return e.reshape(added, out.shape, out)
