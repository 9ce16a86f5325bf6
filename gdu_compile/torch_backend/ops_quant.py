"""The quantisation operators: to integers with a scale and a zero point, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from gdu_compile.torch_backend.ops_elementwise import torch_dtype
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
) -> Tensor:
    if y_zero_point is None:
        dtype, zero = torch_dtype(output_dtype or 2), y_scale.new_zeros(())
    else:
        dtype, zero = y_zero_point.dtype, _along(y_zero_point.to(torch.int32), x, axis, block_size)
    working = torch_dtype(precision) if precision else y_scale.dtype
    scale = _along(y_scale, x, axis, block_size).to(working)
    steps = torch.round(x.to(working) / scale)
    # Not added in float16, where 65504 is the last number.
    steps = steps.to(torch.promote_types(working, torch.float32)) + zero
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
    steps = x.to(torch.int32)
    if x_zero_point is not None:
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


@operator("MatMulInteger", since=10)
def mat_mul_integer(
    a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    left, right = a.to(torch.int32), b.to(torch.int32)
    if a_zero_point is not None:  # one per row, if not one in all
        zero = a_zero_point.to(torch.int32)
        left = left - (zero if a_zero_point.ndim != 1 else zero[:, None])
    if b_zero_point is not None:
        right = right - b_zero_point.to(torch.int32)
    return left @ right
