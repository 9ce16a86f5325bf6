"""The quantisation operators: to integers with a scale and a zero point, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from onnx import TensorProto
from torch import Tensor

from gdu_compile.torch_backend.ops_cast import FLOAT8, HELD, NARROW, to_float4, to_float8
from gdu_compile.torch_backend.ops_elementwise import torch_dtype
from gdu_compile.torch_backend.ops_linear import conv
from gdu_compile.torch_backend.registry import operator


def _along(parameter: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """A scale or zero point, per tensor, axis or block, shaped to broadcast against ``x``."""
    if block_size:
        return parameter.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])
    if parameter.numel() == 1:
        return parameter.reshape(())
    return parameter.reshape((-1,) + (1,) * (x.ndim - 1 - axis % x.ndim))


@operator("QuantizeLinear", since=13)
def quantize_linear(
    x: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
    dtypes_: Sequence[int | None] = (),
) -> Tensor:
    # The type below 8 bits, if it is one: torch's own does not tell.
    code = next((code for code in (*dtypes_[2:], output_dtype) if code in HELD), None)
    dtype = torch_dtype(output_dtype or 2) if y_zero_point is None else y_zero_point.dtype
    working = torch_dtype(precision) if precision else y_scale.dtype
    ratio = x.to(working) / _along(y_scale, x, axis, block_size).to(working)
    if code == TensorProto.FLOAT4E2M1:
        return to_float4(ratio)
    if dtype in FLOAT8:
        return to_float8(ratio, dtype, bool(saturate))
    # Not added in float16, where 65504 is the last number.
    steps = torch.round(ratio).to(torch.promote_types(working, torch.float32))
    if y_zero_point is not None:
        steps = steps + _along(y_zero_point.to(torch.int32), x, axis, block_size)
    return _limited(steps, dtype, code)


def _limited(steps: Tensor, dtype: torch.dtype, code: int | None = None) -> Tensor:
    """Whole numbers as integers, those outside the type as its last ones."""
    if code in NARROW:
        return steps.clamp(*NARROW[code]).to(dtype)
    limits = torch.iinfo(dtype)
    return steps.clamp(limits.min, limits.max).to(dtype)


@operator("DequantizeLinear", since=13)
def dequantize_linear(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    floating = x.is_floating_point()  # float8, whose zero point is 0
    steps = x.to(x_scale.dtype if floating else torch.int32)
    if x_zero_point is not None and not floating:
        steps = steps - _along(x_zero_point.to(torch.int32), x, axis, block_size)
    result = steps.to(x_scale.dtype) * _along(x_scale, x, axis, block_size)
    return result.to(torch_dtype(output_dtype)) if output_dtype else result


@operator("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, 1, scale)
    zero = torch.round(-low / scale).clamp(0, 255)
    y = (torch.round(x / scale) + zero).clamp(0, 255)
    return y.to(torch.uint8), scale, zero.to(torch.uint8)


# --- sums of products of integers ---------------------------------------------


def _centred(x: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    """int32 less the zero point: one in all, or one for each place of ``axis``."""
    whole = x.to(torch.int32)
    if zero_point is None:
        return whole
    zero = zero_point.to(torch.int32)
    per_place = zero.ndim == 1 and zero.numel() > 1
    return whole - (_along(zero, x, axis, 0) if per_place else zero)


def _requantized(total: Tensor, factor: Tensor, zero_point: Tensor | None, like: Tensor) -> Tensor:
    """A sum times (scales in / scale out), as a quantised tensor."""
    steps = torch.round(total.to(factor.dtype) * factor).to(torch.float32)
    dtype = like.dtype if zero_point is None else zero_point.dtype
    return _limited(steps if zero_point is None else steps + zero_point.to(torch.int32), dtype)


@operator("MatMulInteger", since=10)
def mat_mul_integer(
    a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    return _centred(a, a_zero_point, -2) @ _centred(b, b_zero_point, -1)


@operator("QLinearMatMul", since=10)
def q_linear_mat_mul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
) -> Tensor:
    total = mat_mul_integer(a, b, a_zero_point, b_zero_point)
    per_row = a_scale.reshape(-1, 1) if a_scale.ndim == 1 and a_scale.numel() > 1 else a_scale
    return _requantized(total, per_row * b_scale / y_scale, y_zero_point, a)


@operator("ConvInteger", since=10)
def conv_integer(
    x: Tensor,
    w: Tensor,
    x_zero_point: Tensor | None = None,
    w_zero_point: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    # torch convolves no integers on every device; float64 holds their sums exactly.
    total = conv(
        _centred(x, x_zero_point, 1).to(torch.float64),
        _centred(w, w_zero_point, 0).to(torch.float64),
        auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides,
    )  # fmt: skip
    return total.to(torch.int32)


@operator("QLinearConv", since=10)
def q_linear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    total = conv_integer(
        x, w, x_zero_point, w_zero_point,
        auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides,
    )  # fmt: skip
    per_channel = (-1,) + (1,) * (x.ndim - 2)
    if b is not None:
        total = total + b.reshape(per_channel)
    factor = x_scale * w_scale / y_scale
    return _requantized(total, factor.reshape(per_channel), y_zero_point, x)
