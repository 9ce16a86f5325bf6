"""The element-wise operators: unary, binary, comparison, logic, bits, activations, casts."""

from __future__ import annotations

import math
from functools import reduce

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gdu_compile.errors import UnsupportedError
from gdu_compile.torch_backend.ops_unsigned import SIGNED_OF, by_value, modular, widen
from gdu_compile.torch_backend.registry import Operator, operator

# TensorProto.DataType → torch
TORCH_DTYPE = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    14: torch.complex64,
    15: torch.complex128,
    16: torch.bfloat16,
    17: torch.float8_e4m3fn,
    18: torch.float8_e4m3fnuz,
    19: torch.float8_e5m2,
    20: torch.float8_e5m2fnuz,
    # Narrower ones are held by value, one number in a byte; ops_cast.py makes them.
    21: torch.uint8,  # uint4
    22: torch.int8,  # int4
    23: torch.float8_e4m3fn,  # float4e2m1
    24: torch.float8_e8m0fnu,
    25: torch.uint8,  # uint2
    26: torch.int8,  # int2
}

SAME_IN_TORCH: dict[str, tuple[int, Operator]] = {
    "Acos": (7, torch.acos),
    "Acosh": (9, torch.acosh),
    "Add": (14, modular(torch.add)),
    "And": (7, torch.logical_and),
    "Asin": (7, torch.asin),
    "Asinh": (9, torch.asinh),
    "Atan": (7, torch.atan),
    "Atanh": (9, torch.atanh),
    "BitwiseAnd": (18, modular(torch.bitwise_and)),
    "BitwiseNot": (18, modular(torch.bitwise_not)),
    "BitwiseOr": (18, modular(torch.bitwise_or)),
    "BitwiseXor": (18, modular(torch.bitwise_xor)),
    "Ceil": (13, torch.ceil),
    "Cos": (7, torch.cos),
    "Cosh": (9, torch.cosh),
    "Equal": (13, torch.eq),
    "Erf": (13, torch.erf),
    "Exp": (13, torch.exp),
    "Floor": (13, torch.floor),
    "Greater": (13, by_value(torch.gt)),
    "GreaterOrEqual": (16, by_value(torch.ge)),
    "HardSwish": (14, nnf.hardswish),
    "IsNaN": (13, torch.isnan),
    "Less": (13, by_value(torch.lt)),
    "LessOrEqual": (16, by_value(torch.le)),
    "Log": (13, torch.log),
    "Mish": (18, nnf.mish),
    "Mul": (14, modular(torch.mul)),
    "Neg": (13, torch.neg),
    "Not": (1, torch.logical_not),
    "Or": (7, torch.logical_or),
    "Reciprocal": (13, torch.reciprocal),
    "Relu": (14, torch.relu),
    "Round": (11, torch.round),  # half to even, as ONNX has it
    "Sigmoid": (13, torch.sigmoid),
    "Sin": (7, torch.sin),
    "Sinh": (9, torch.sinh),
    "Softsign": (1, nnf.softsign),
    "Sqrt": (13, torch.sqrt),
    "Sub": (14, modular(torch.sub)),
    "Tan": (7, torch.tan),
    "Tanh": (13, torch.tanh),
    "Where": (16, torch.where),
    "Xor": (7, torch.logical_xor),
}


def inputs_only(function: Operator) -> Operator:
    """``function`` of positional inputs, with a signature: torch's built-in ones show none."""

    def run(*inputs: Tensor) -> Tensor:
        result: Tensor = function(*inputs)
        return result

    return run


for _name, (_since, _function) in SAME_IN_TORCH.items():
    operator(_name, since=_since)(inputs_only(_function))


# --- arithmetic --------------------------------------------------------------


@operator("Abs", since=13)
def abs_(x: Tensor) -> Tensor:
    return x if x.dtype in SIGNED_OF else x.abs()


@operator("Sign", since=13)
@by_value
def sign(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x.sign()
    # torch says 0 for NaN; onnxruntime passes the NaN on.
    return torch.where(x.isnan(), torch.nan, x.sign())


@operator("Div", since=14)
@by_value
def div(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Mod", since=13)
@by_value
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    modulo = torch.fmod if fmod else torch.remainder
    if not a.is_floating_point():
        return modulo(a, b)
    # In float32 torch answers NaN where the quotient overflows.
    return modulo(a.to(torch.float64), b.to(torch.float64)).to(a.dtype)


@operator("Pow", since=15)
@by_value
def pow_(x: Tensor, y: Tensor) -> Tensor:
    y = widen(y)
    if not x.is_floating_point() and y.is_floating_point():
        return torch.pow(x.to(torch.float64), y.to(torch.float64)).to(x.dtype)
    return torch.pow(x, y).to(x.dtype)


@operator("Sum", since=13)
@modular
def sum_(*inputs: Tensor) -> Tensor:
    return reduce(torch.add, inputs)


@operator("Mean", since=13)
def mean(*inputs: Tensor) -> Tensor:
    return reduce(torch.add, inputs) / len(inputs)


@operator("Max", since=13)
@by_value
def max_(*inputs: Tensor) -> Tensor:
    return reduce(torch.maximum, inputs)


@operator("Min", since=13)
@by_value
def min_(*inputs: Tensor) -> Tensor:
    return reduce(torch.minimum, inputs)


@operator("Clip", since=13)
@by_value
def clip(x: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Tensor:
    limits = torch.finfo(x.dtype) if x.is_floating_point() else torch.iinfo(x.dtype)
    # An absent limit is the last finite number: it stops infinity.
    x = x.clamp(min=limits.min) if min is None else torch.clamp(x, min=min)
    return x.clamp(max=limits.max) if max is None else torch.clamp(x, max=max)


@operator("IsInf", since=10)
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    either = torch.isinf(x)
    if not detect_negative:
        either = either & (x > 0)
    if not detect_positive:
        either = either & (x < 0)
    return either


@operator("BitShift", since=11)
def bit_shift(x: Tensor, y: Tensor, *, direction: str) -> Tensor:
    bits = 8 * x.element_size()
    amount = y.to(torch.int64)
    if direction == "RIGHT" and x.dtype.is_signed:
        return x >> torch.where((amount < 0) | (amount >= bits), bits - 1, amount).to(x.dtype)
    inside = (amount >= 0) & (amount < bits)
    amount = amount.clamp(0, bits - 1)
    wide = x.to(torch.int64)
    if direction == "LEFT":
        shifted = wide << amount
    else:  # the bits that int64 fills in from its sign are masked away; only uint64 has any
        filled = torch.where(amount == 0, -1, (2**63 - 1) >> (amount - 1).clamp(min=0))
        shifted = (wide >> amount) & filled
    return torch.where(inside, shifted, 0).to(x.dtype)


# --- activations -------------------------------------------------------------


@operator("Celu", since=12)
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return nnf.celu(x, alpha)


@operator("Elu", since=6)
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return nnf.elu(x, alpha)


@operator("Gelu", since=20)
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate == "none" and x.dtype == torch.float32:
        # torch's own is oneDNN's here: NaN for infinity, and wrong by 2e-4 in the tail.
        return 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))
    return nnf.gelu(x, approximate=approximate)


@operator("HardSigmoid", since=6)
def hard_sigmoid(x: Tensor, *, alpha: float = 0.20000000298023224, beta: float = 0.5) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


@operator("LeakyRelu", since=16)
def leaky_relu(x: Tensor, *, alpha: float = 0.009999999776482582) -> Tensor:
    return nnf.leaky_relu(x, alpha)


@operator("PRelu", since=16)
@by_value
def p_relu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


@operator("Selu", since=6)
def selu(
    x: Tensor, *, alpha: float = 1.6732631921768188, gamma: float = 1.0507010221481323
) -> Tensor:
    return gamma * nnf.elu(x, alpha)


@operator("Shrink", since=9)
@by_value
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    moved = torch.where(x < -lambd, x + bias, x - bias).to(x.dtype)
    return torch.where((x < -lambd) | (x > lambd), moved, 0)


@operator("Softplus", since=1)
def softplus(x: Tensor) -> Tensor:
    # Past the threshold torch returns x itself: exact in float32 from 20, in float64 from 40.
    return nnf.softplus(x, threshold=40.0 if x.dtype == torch.float64 else 20.0)


@operator("SwiGLU", since=28)
def swi_glu(a: Tensor, b: Tensor, *, alpha: float = 1.0) -> Tensor:
    return swish(a, alpha=alpha) * b


@operator("Swish", since=24)
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return x * torch.sigmoid(alpha * x)


@operator("ThresholdedRelu", since=10)
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, 0)


@operator("Dropout", since=13)
def dropout(
    data: Tensor,
    ratio: Tensor | None = None,
    training_mode: Tensor | None = None,
    *,
    seed: int | None = None,
    num_outputs_: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    training = training_mode is not None and bool(training_mode)
    if training and (ratio is None or float(ratio) > 0):
        raise UnsupportedError("Dropout in training mode draws at random: export the model in eval")
    mask = torch.ones_like(data, dtype=torch.bool)
    return (data, mask) if num_outputs_ > 1 else data


# --- types -------------------------------------------------------------------


def torch_dtype(code: int) -> torch.dtype:
    """The torch type that holds a TensorProto.DataType.

    Raises:
        UnsupportedError: torch has none (strings).
    """
    if code not in TORCH_DTYPE:
        raise UnsupportedError(f"tensor type {code} (TensorProto.DataType) does not run in torch")
    return TORCH_DTYPE[code]
