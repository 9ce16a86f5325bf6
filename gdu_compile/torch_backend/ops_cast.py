"""Cast, CastLike and BitCast; the types of 8 bits and fewer that torch does not calculate with.

Torch has the float8 types.  Numbers of 4 and 2 bits are held by value in a type that it has
(``TORCH_DTYPE``), so what reads them needs nothing special; what makes them, here and in
ops_quant.py, goes by their ONNX type.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from onnx import TensorProto
from torch import Tensor

from gdu_compile.errors import UnsupportedError
from gdu_compile.torch_backend.ops_elementwise import torch_dtype
from gdu_compile.torch_backend.registry import operator

# integers of fewer than 8 bits → (least, greatest)
NARROW: dict[int, tuple[int, int]] = {
    TensorProto.UINT4: (0, 15),
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT2: (0, 3),
    TensorProto.INT2: (-2, 1),
}
FLOAT8 = {torch_dtype(code) for code in range(TensorProto.FLOAT8E4M3FN, TensorProto.UINT4)}
HELD: set[int] = {*NARROW, TensorProto.FLOAT4E2M1}
"""Types that torch lacks, held in another."""


@operator("Cast", since=13)
def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return cast_to(x, to, bool(saturate), round_mode)


@operator("CastLike", since=15)
def cast_like(
    x: Tensor,
    target_type: Tensor,
    *,
    saturate: int = 1,
    round_mode: str = "up",
    dtypes_: Sequence[int | None] = (None, None),
) -> Tensor:
    like = dtypes_[1]
    if like in HELD:
        return cast_to(x, like, bool(saturate), round_mode)
    return _cast(x, target_type.dtype, bool(saturate), round_mode)


@operator("BitCast", since=26)
def bit_cast(x: Tensor, *, to: int, dtypes_: Sequence[int | None] = (None,)) -> Tensor:
    if to in HELD or dtypes_[0] in HELD:
        raise UnsupportedError("BitCast of numbers of 4 or 2 bits: torch holds each in a byte")
    return x.view(torch_dtype(to))


def cast_to(x: Tensor, to: int, saturate: bool = True, round_mode: str = "up") -> Tensor:
    """``x`` as a TensorProto.DataType; of integers below 8 bits the low bits remain."""
    if to in NARROW:
        return wrapped(x, *NARROW[to]).to(torch_dtype(to))
    if to == TensorProto.FLOAT4E2M1:
        return to_float4(x)
    return _cast(x, torch_dtype(to), saturate, round_mode)


def _cast(x: Tensor, dtype: torch.dtype, saturate: bool, round_mode: str) -> Tensor:
    if x.dtype == dtype:
        return x
    if x.dtype in FLOAT8 or x.dtype == torch.float8_e8m0fnu:
        x = x.to(torch.float32)
    if dtype in FLOAT8:
        return to_float8(x, dtype, saturate)
    if dtype == torch.float8_e8m0fnu:
        return to_power_of_two(x, saturate, round_mode)
    return x.to(dtype)


def wrapped(x: Tensor, least: int, greatest: int) -> Tensor:
    """The low bits of whole numbers."""
    whole = x.to(torch.int32)
    return ((whole - least) & (greatest - least)) + least


def to_float8(x: Tensor, dtype: torch.dtype, saturate: bool) -> Tensor:
    """``x`` rounded; what is too large becomes the largest number, or else infinity or NaN."""
    largest = torch.finfo(dtype).max
    if saturate:
        return x.clamp(-largest, largest).to(dtype)
    rounded = x.to(dtype)
    if dtype != torch.float8_e4m3fn:
        return rounded
    # torch saturates here; 464 is half way to the next number, and a tie goes to the even 448.
    return torch.where(x.abs() > 464, torch.nan, rounded.to(torch.float32)).to(dtype)


def to_power_of_two(x: Tensor, saturate: bool, round_mode: str) -> Tensor:
    """float8e8m0: the exponent bits of a float32, after rounding as ONNX's reference does it."""
    bits = x.to(torch.float32).view(torch.int32)
    exponent, fraction = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    up = torch.zeros_like(exponent, dtype=torch.bool)
    if round_mode == "up":
        up = fraction > 0
    elif round_mode == "nearest":
        half = 0x400000
        up = (fraction > half) | ((fraction == half) & (exponent > 0))
    highest = 0xFE if saturate else 0xFF
    raised = torch.where(up & (exponent < highest), exponent + 1, exponent)
    return raised.to(torch.uint8).view(torch.float8_e8m0fnu)


def to_float4(x: Tensor) -> Tensor:
    """0, ½, 1, 1½, 2, 3, 4, 6 and their negatives, to the nearest, ties to the even one."""
    x = x.to(torch.promote_types(x.dtype, torch.float32)).clamp(-6, 6)
    step = torch.where(x.abs() < 2, 0.5, torch.where(x.abs() < 4, 1.0, 2.0))
    return (torch.round(x / step) * step).to(torch_dtype(TensorProto.FLOAT4E2M1))
