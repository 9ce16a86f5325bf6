"""The rules of the elementwise operators: core aten → ONNX (opset 18)."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from gdu_compile.oracles.traced.emit import Emitter, Number, aten, form, sizes_of

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
    upper = e.op("BitwiseAnd", x, e.number(-(2**places), out.dtype), like=out)
    return e.op("Div", upper, e.number(2**places, out.dtype), like=out)


@aten("remainder.Scalar", "remainder.Tensor")
def remainder(e: Emitter, out: Tensor, a: Number, b: Number) -> ir.Value:
    """With the divisor's sign; of floats, the rest with the dividend's sign, moved where needed."""
    left, right = e.tensor(a, out.dtype), e.tensor(b, out.dtype)
    if not out.dtype.is_floating_point:
        return e.op("Mod", left, right, like=out)
    rest = e.op("Mod", left, right, like=out, fmod=1)
    signs = [e.op("Sign", x, like=out, shape=sizes_of(x)) for x in (rest, right)]
    opposite = e.op("Less", e.op("Mul", *signs, like=out), e.number(0, out.dtype), like=out,
                    dtype=torch.bool)  # fmt: skip
    return e.op("Where", opposite, e.op("Add", rest, right, like=out), rest, like=out)


@aten("fmod.Scalar", "fmod.Tensor")
def fmod(e: Emitter, out: Tensor, a: Number, b: Number) -> ir.Value:
    return e.op("Mod", e.tensor(a, out.dtype), e.tensor(b, out.dtype), like=out, fmod=1)


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
