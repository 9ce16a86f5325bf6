"""The rules: core aten operator → ONNX, one function each (opset 18)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from gdu_compile.errors import UnsupportedError
from gdu_compile.oracles.traced.emit import Emitter, aten, onnx_dtype
from gdu_compile.torch_backend.ops_elementwise import torch_dtype

Number = float | ir.Value

# --- elementwise -------------------------------------------------------------

UNARY = {
    "abs": "Abs", "acos": "Acos", "acosh": "Acosh", "asin": "Asin", "asinh": "Asinh",
    "atan": "Atan", "atanh": "Atanh", "ceil": "Ceil", "cos": "Cos", "cosh": "Cosh", "erf": "Erf",
    "exp": "Exp", "floor": "Floor", "isinf": "IsInf", "isnan": "IsNaN", "log": "Log",
    "logical_not": "Not", "bitwise_not": "Not", "neg": "Neg", "reciprocal": "Reciprocal",
    "relu": "Relu", "round": "Round", "sigmoid": "Sigmoid", "sign": "Sign", "sin": "Sin",
    "sinh": "Sinh", "sqrt": "Sqrt", "tan": "Tan", "tanh": "Tanh",
}  # fmt: skip
BINARY = {
    "add.Tensor": "Add", "add.Scalar": "Add", "sub.Tensor": "Sub", "sub.Scalar": "Sub",
    "mul.Tensor": "Mul", "mul.Scalar": "Mul", "div.Tensor": "Div", "div.Scalar": "Div",
    "maximum.default": "Max", "minimum.default": "Min", "pow.Tensor_Scalar": "Pow",
    "pow.Tensor_Tensor": "Pow", "pow.Scalar": "Pow", "logical_and.default": "And",
    "logical_or.default": "Or", "logical_xor.default": "Xor",
}  # fmt: skip
COMPARISONS = {"eq": "Equal", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual",
               "lt": "Less"}  # fmt: skip


def form(x: Number) -> Tensor | float:
    """An operand as torch sees it when it promotes dtypes."""
    if not isinstance(x, ir.Value):
        return x
    assert x.dtype is not None and x.shape is not None
    return torch.empty(sizes_of(x), dtype=torch_dtype(int(x.dtype)), device="meta")


def sizes_of(x: ir.Value) -> list[int]:
    """A value's shape."""
    assert x.shape is not None
    return [int(size) for size in x.shape.numpy()]


def unary(kind: str) -> Any:
    """The rule of an operator of one operand."""

    def rule(e: Emitter, out: Tensor, x: ir.Value) -> ir.Value:
        operand = x if kind in ("IsInf", "IsNaN") else e.tensor(x, out.dtype)
        return e.op(kind, operand, like=out)

    return rule


def binary(kind: str) -> Any:
    """The rule of an operator of two operands, the second perhaps times ``alpha``."""

    def rule(e: Emitter, out: Tensor, a: Number, b: Number, alpha: float = 1) -> ir.Value:
        left, right = e.tensor(a, out.dtype), e.tensor(b, out.dtype)
        if alpha != 1:
            shape = right.shape.numpy() if right.shape else ()
            right = e.op("Mul", right, e.number(alpha, out.dtype), like=out, shape=shape)
        return e.op(kind, left, right, like=out)

    return rule


def comparison(kind: str) -> Any:
    """The rule of a comparison, in the dtype that both operands promote to."""

    def rule(e: Emitter, out: Tensor, a: ir.Value, b: Number) -> ir.Value:
        dtype = torch.result_type(form(a), form(b))
        return e.op(kind, e.tensor(a, dtype), e.tensor(b, dtype), like=out)

    return rule


for name, kind in UNARY.items():
    aten(f"{name}.default")(unary(kind))
for name, kind in BINARY.items():
    aten(name)(binary(kind))
for name, kind in COMPARISONS.items():
    aten(f"{name}.Tensor", f"{name}.Scalar")(comparison(kind))


def bitwise(kind: str) -> Any:
    """The rule of And, Or or Xor of booleans, and of the bits of integers."""

    def rule(e: Emitter, out: Tensor, a: Number, b: Number) -> ir.Value:
        rule_of = binary(kind if out.dtype == torch.bool else f"Bitwise{kind}")
        found: ir.Value = rule_of(e, out, a, b)
        return found

    return rule


for kind in ("And", "Or", "Xor"):
    aten(f"bitwise_{kind.lower()}.Tensor", f"bitwise_{kind.lower()}.Scalar")(bitwise(kind))


@aten("__rshift__.Scalar")
def right_shift(e: Emitter, out: Tensor, x: ir.Value, places: int) -> ir.Value:
    """Of integers, the sign comes in from the left: a division by 2^places that rounds down."""
    if places >= torch.iinfo(out.dtype).bits - 1:
        below = e.op("Less", x, e.number(0, out.dtype), like=out, dtype=torch.bool)
        return e.op("Where", below, e.number(-1, out.dtype), e.number(0, out.dtype), like=out)
    power = e.number(2**places, out.dtype)
    whole = e.op("Sub", x, e.op("Mod", x, power, like=out), like=out)
    return e.op("Div", whole, power, like=out)


@aten("ne.Tensor", "ne.Scalar")
def not_equal(e: Emitter, out: Tensor, a: ir.Value, b: Number) -> ir.Value:
    return e.op("Not", comparison("Equal")(e, out, a, b), like=out)


@aten("log1p.default")
def log1p(e: Emitter, out: Tensor, x: ir.Value) -> ir.Value:
    """Kahan: log(u)·x/(u − 1) with u = 1 + x is as exact as log1p; x where u is 1."""
    one = e.number(1, out.dtype)
    u = e.op("Add", e.tensor(x, out.dtype), one, like=out)
    less = e.op("Sub", u, one, like=out)
    none = e.op("Equal", less, e.number(0, out.dtype), like=out, dtype=torch.bool)
    infinite = e.op("IsInf", u, like=out, dtype=torch.bool)
    ratio = e.op("Div", x, e.op("Where", none, one, less, like=out), like=out)
    log = e.op("Log", u, like=out)
    exact = e.op("Mul", log, ratio, like=out)
    finite = e.op("Where", infinite, log, exact, like=out)
    return e.op("Where", none, x, finite, like=out)


@aten("expm1.default")
def expm1(e: Emitter, out: Tensor, x: ir.Value) -> ir.Value:
    """2·tanh(x/2)/(1 − tanh(x/2)): no cancellation near 0."""
    half = e.op("Tanh", e.op("Mul", x, e.number(0.5, out.dtype), like=out), like=out)
    below = e.op("Sub", e.number(1, out.dtype), half, like=out)
    near = e.op("Div", e.op("Add", half, half, like=out), below, like=out)
    far = e.op("Sub", e.op("Exp", x, like=out), e.number(1, out.dtype), like=out)
    large = e.op("Greater", x, e.number(1, out.dtype), like=out, dtype=torch.bool)
    return e.op("Where", large, far, near, like=out)


@aten("rsqrt.default")
def rsqrt(e: Emitter, out: Tensor, x: ir.Value) -> ir.Value:
    return e.op("Div", e.number(1, out.dtype), e.op("Sqrt", x, like=out), like=out)


@aten("square.default")
def square(e: Emitter, out: Tensor, x: ir.Value) -> ir.Value:
    return e.op("Mul", x, x, like=out)


@aten("where.self")
def where(e: Emitter, out: Tensor, condition: ir.Value, a: Number, b: Number) -> ir.Value:
    return e.op("Where", condition, e.tensor(a, out.dtype), e.tensor(b, out.dtype), like=out)


@aten("clamp.default", "clamp.Tensor", "hardtanh.default")
def clamp(
    e: Emitter, out: Tensor, x: Number, low: Number | None = None, high: Number | None = None
) -> ir.Value:
    result = e.tensor(x, out.dtype)
    if low is not None:
        result = e.op("Max", result, e.tensor(low, out.dtype), like=out)
    if high is not None:
        result = e.op("Min", result, e.tensor(high, out.dtype), like=out)
    return result


@aten("clone.default", "alias.default", "detach.default", "lift_fresh_copy.default",
      "contiguous.default")  # fmt: skip
def same(e: Emitter, out: Tensor, x: ir.Value, **_: Any) -> ir.Value:
    return x


@aten("_to_copy.default")
def to_copy(e: Emitter, out: Tensor, x: ir.Value, **_: Any) -> ir.Value:
    return e.tensor(x, out.dtype)


# --- shape -------------------------------------------------------------------


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


# --- reductions --------------------------------------------------------------


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

# --- linear ------------------------------------------------------------------


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


# --- indices -----------------------------------------------------------------


@aten("embedding.default")
def embedding(e: Emitter, out: Tensor, table: ir.Value, indices: ir.Value, *_: Any) -> ir.Value:
    return e.op("Gather", table, indices, like=out, axis=0)


@aten("index_select.default")
def index_select(e: Emitter, out: Tensor, x: ir.Value, dim: int, indices: ir.Value) -> ir.Value:
    return e.op("Gather", x, indices, like=out, axis=dim)


@aten("index.Tensor")
def index(e: Emitter, out: Tensor, x: ir.Value, indices: Sequence[ir.Value | None]) -> ir.Value:
    axis, places = only_index(indices)
    return e.op("Gather", x, places, like=out, axis=axis)


def only_index(indices: Sequence[ir.Value | None]) -> tuple[int, ir.Value]:
    """The only axis that is indexed by integers, and its indices."""
    given = [(axis, each) for axis, each in enumerate(indices) if each is not None]
    if len(given) != 1 or given[0][1].dtype == ir.DataType.BOOL:
        raise UnsupportedError("the step of the algorithm takes elements by masks, or along "
                               "several axes at once, which is not translated to ONNX")  # fmt: skip
    return given[0]


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
    """Elements added, or put, at their places along one axis, which is brought to the front."""
    axis, places = only_index(indices)
    places, rank = e.tensor(places, torch.int64), out.ndim
    rows = sizes_of(places)
    first = [axis, *(other for other in range(rank) if other != axis)]
    wide = [*out.shape[:axis], *rows, *out.shape[axis + 1 :]]
    source = expand(e, torch.empty(wide, dtype=out.dtype, device="meta"), source)
    taken = range(axis, axis + len(rows))
    source = e.transpose(source, [*taken, *(n for n in range(len(wide)) if n not in taken)], out)
    index = e.reshape(places, [*rows, 1], torch.empty((), dtype=torch.int64))
    turned = e.transpose(x, first, out)
    put = e.op("ScatterND", turned, index, source, like=out, shape=sizes_of(turned),
               reduction="add" if accumulate else "none")  # fmt: skip
    return e.transpose(put, [first.index(n) for n in range(rank)], out)


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
