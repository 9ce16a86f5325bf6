"""The operators of com.microsoft on quantised tensors: what onnxruntime's quantizer emits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gdu_compile.torch_backend.ops_microsoft import MICROSOFT, microsoft_attention
from gdu_compile.torch_backend.ops_pool import average_pool, global_average_pool
from gdu_compile.torch_backend.ops_quant import (
    dequantize_linear,
    dynamic_quantize_linear,
    mat_mul_integer,
    quantize_linear,
)
from gdu_compile.torch_backend.ops_recurrent import Recurrence, functions_of, run_lstm
from gdu_compile.torch_backend.registry import operator

operator("QuantizeLinear", domain=MICROSOFT)(quantize_linear)
operator("DequantizeLinear", domain=MICROSOFT)(dequantize_linear)


def _quantized(y: Tensor, scale: Tensor, zero_point: Tensor | None, like: Tensor) -> Tensor:
    """As an integer of the type of the zero point, or of ``like``."""
    zero = like.new_zeros(()) if zero_point is None else zero_point
    return quantize_linear(y, scale, zero)


# --- element by element ---------------------------------------------------------------


@operator("QLinearAdd", domain=MICROSOFT)
def q_linear_add(
    a: Tensor, a_scale: Tensor, a_zero_point: Tensor | None, b: Tensor, b_scale: Tensor,
    b_zero_point: Tensor | None, c_scale: Tensor, c_zero_point: Tensor | None = None,
) -> Tensor:  # fmt: skip
    left = dequantize_linear(a, a_scale, a_zero_point)
    right = dequantize_linear(b, b_scale, b_zero_point)
    return _quantized(left + right, c_scale, c_zero_point, a)


@operator("QLinearMul", domain=MICROSOFT)
def q_linear_mul(
    a: Tensor, a_scale: Tensor, a_zero_point: Tensor | None, b: Tensor, b_scale: Tensor,
    b_zero_point: Tensor | None, c_scale: Tensor, c_zero_point: Tensor | None = None,
) -> Tensor:  # fmt: skip
    left = dequantize_linear(a, a_scale, a_zero_point)
    right = dequantize_linear(b, b_scale, b_zero_point)
    return _quantized(left * right, c_scale, c_zero_point, a)


@operator("QLinearWhere", domain=MICROSOFT)
def q_linear_where(
    condition: Tensor, x: Tensor, x_scale: Tensor, x_zero_point: Tensor, y: Tensor,
    y_scale: Tensor, y_zero_point: Tensor, z_scale: Tensor, z_zero_point: Tensor,
) -> Tensor:  # fmt: skip
    true = dequantize_linear(x, x_scale, x_zero_point)
    false = dequantize_linear(y, y_scale, y_zero_point)
    return _quantized(torch.where(condition, true, false), z_scale, z_zero_point, x)


@operator("QLinearSigmoid", domain=MICROSOFT)
def q_linear_sigmoid(
    x: Tensor, x_scale: Tensor, x_zero_point: Tensor | None, y_scale: Tensor,
    y_zero_point: Tensor | None = None,
) -> Tensor:  # fmt: skip
    y = torch.sigmoid(dequantize_linear(x, x_scale, x_zero_point))
    return _quantized(y, y_scale, y_zero_point, x)


@operator("QLinearLeakyRelu", domain=MICROSOFT)
def q_linear_leaky_relu(
    x: Tensor, x_scale: Tensor, x_zero_point: Tensor | None, y_scale: Tensor,
    y_zero_point: Tensor | None = None, *, alpha: float = 0.009999999776482582,
) -> Tensor:  # fmt: skip
    y = nnf.leaky_relu(dequantize_linear(x, x_scale, x_zero_point), alpha)
    return _quantized(y, y_scale, y_zero_point, x)


# --- over axes ------------------------------------------------------------------------


@operator("QLinearConcat", domain=MICROSOFT)
def q_linear_concat(y_scale: Tensor, y_zero_point: Tensor, *inputs: Tensor, axis: int) -> Tensor:
    parts = [dequantize_linear(*inputs[i : i + 3]) for i in range(0, len(inputs), 3)]
    return _quantized(torch.cat(parts, axis), y_scale, y_zero_point, inputs[0])


@operator("QLinearSoftmax", domain=MICROSOFT)
def q_linear_softmax(
    x: Tensor, x_scale: Tensor, x_zero_point: Tensor | None, y_scale: Tensor,
    y_zero_point: Tensor, *, axis: int = -1, opset: int,
) -> Tensor:  # fmt: skip
    real = dequantize_linear(x, x_scale, x_zero_point)
    if opset < 13:  # over all axes from this one on
        y = torch.softmax(real.flatten(axis % x.ndim), -1).reshape(x.shape)
    else:
        y = torch.softmax(real, axis)
    return _quantized(y, y_scale, y_zero_point, x)


@operator("QLinearAveragePool", domain=MICROSOFT)
def q_linear_average_pool(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    real = dequantize_linear(x.movedim(-1, 1) if channels_last else x, x_scale, x_zero_point)
    y = average_pool(real, auto_pad=auto_pad, ceil_mode=ceil_mode, kernel_shape=kernel_shape,
                     count_include_pad=count_include_pad, pads=pads, strides=strides)  # fmt: skip
    result = _quantized(y, y_scale, y_zero_point, x)
    return result.movedim(1, -1) if channels_last else result


@operator("QLinearGlobalAveragePool", domain=MICROSOFT)
def q_linear_global_average_pool(
    x: Tensor, x_scale: Tensor, x_zero_point: Tensor, y_scale: Tensor, y_zero_point: Tensor, *,
    channels_last: int = 0,
) -> Tensor:  # fmt: skip
    real = dequantize_linear(x.movedim(-1, 1) if channels_last else x, x_scale, x_zero_point)
    result = _quantized(global_average_pool(real), y_scale, y_zero_point, x)
    return result.movedim(1, -1) if channels_last else result


# --- products -------------------------------------------------------------------------


@operator("QGemm", domain=MICROSOFT)
def q_gemm(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    c: Tensor | None = None,
    y_scale: Tensor | None = None,
    y_zero_point: Tensor | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Tensor:
    left, right = (a.T if transA else a), (b.T if transB else b)
    total = mat_mul_integer(left, right, a_zero_point, b_zero_point)
    if c is not None:
        total = total + c
    y = total.to(a_scale.dtype) * (alpha * a_scale * b_scale)
    return y if y_scale is None else _quantized(y, y_scale, y_zero_point, a)


@operator("MatMulIntegerToFloat", domain=MICROSOFT)
def mat_mul_integer_to_float(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, a_zero_point: Tensor | None = None,
    b_zero_point: Tensor | None = None, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    total = mat_mul_integer(a, b, a_zero_point, b_zero_point)
    y = total.to(a_scale.dtype) * (a_scale * b_scale)
    return y if bias is None else y + bias


@operator("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_mat_mul(
    a: Tensor, b: Tensor, b_scale: Tensor, b_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    steps, scale, zero = dynamic_quantize_linear(a)
    return mat_mul_integer_to_float(steps, b, scale, b_scale, zero, b_zero_point, bias)


@operator("QAttention", domain=MICROSOFT)
def q_attention(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    input_scale: Tensor,
    weight_scale: Tensor,
    mask_index: Tensor | None = None,
    input_zero_point: Tensor | None = None,
    weight_zero_point: Tensor | None = None,
    past: Tensor | None = None,
    *,
    do_rotary: int = 0,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    past_present_share_buffer: int = 0,
    scale: float | None = None,
    unidirectional: int = 0,
    num_outputs_: int = 1,
) -> tuple[Tensor, ...]:
    real = dequantize_linear(x, input_scale, input_zero_point)
    weights = dequantize_linear(weight, weight_scale, weight_zero_point)
    return microsoft_attention(
        real, weights, bias, mask_index, past, do_rotary=do_rotary, num_heads=num_heads,
        mask_filter_value=mask_filter_value, scale=scale, unidirectional=unidirectional,
        past_present_share_buffer=past_present_share_buffer, num_outputs_=num_outputs_,
    )  # fmt: skip


@operator("DynamicQuantizeLSTM", domain=MICROSOFT)
def dynamic_quantize_lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    sequence_lens: Tensor | None,
    initial_h: Tensor | None,
    initial_c: Tensor | None,
    p: Tensor | None,
    w_scale: Tensor,
    w_zero_point: Tensor,
    r_scale: Tensor,
    r_zero_point: Tensor,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: Sequence[str] = ("Sigmoid", "Tanh", "Tanh") * 2,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    num_outputs_: int = 3,
) -> tuple[Tensor, ...]:
    weights = _transposed(w, w_scale, w_zero_point)
    hidden = _transposed(r, r_scale, r_zero_point)
    given = Recurrence(_through_bytes(x), weights, hidden, b, sequence_lens,
                       [initial_h, initial_c], direction, layout=0)  # fmt: skip
    functions = functions_of(activations, activation_alpha, activation_beta)
    results = run_lstm(given, hidden, p, functions, clip, input_forget, seen=_through_bytes)
    return results[:num_outputs_]


def _transposed(steps: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """[D, I, G·H] → [D, G·H, I], real; one scale for each direction, or for each column of it."""
    zero = zero_point.reshape(len(steps), 1, -1)
    return ((steps.to(scale.dtype) - zero) * scale.reshape(len(steps), 1, -1)).transpose(1, 2)


def _through_bytes(x: Tensor) -> Tensor:
    """What a product with quantised weights sees of ``x``: bytes, with one scale for all of it."""
    return dequantize_linear(*dynamic_quantize_linear(x))


@operator("MatMulNBits", domain=MICROSOFT)
def mat_mul_n_bits(
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    g_idx: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,  # noqa: N803
    N: int,  # noqa: N803
    accuracy_level: int = 0,
    bits: int = 4,
    block_size: int,
    weight_prepacked: int = 0,
) -> Tensor:
    blocks = -(-K // block_size)
    steps = _unpacked(b.reshape(N, -1), bits).reshape(N, blocks, block_size)
    if zero_points is None:
        zero = scales.new_full((), 2 ** (bits - 1))
    elif zero_points.is_floating_point():
        zero = zero_points.reshape(N, blocks, 1)
    else:
        zero = _unpacked(zero_points.reshape(N, -1), bits)[:, :blocks, None]
    factors = scales.reshape(N, blocks, 1)
    if g_idx is None:
        weights = ((steps.to(scales.dtype) - zero) * factors).reshape(N, -1)[:, :K]
    else:  # the block of each row of the product
        zeros = zero.expand(N, blocks, 1)[:, g_idx[:K].long(), 0]
        weights = steps.reshape(N, -1)[:, :K].to(scales.dtype) - zeros
        weights = weights * factors[:, g_idx[:K].long(), 0]
    y = a @ weights.to(a.dtype).T
    return y if bias is None else y + bias


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """[N, bytes] → [N, numbers], the low bits of each byte first."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    numbers: Tensor = (packed[..., None] >> shifts) & (2**bits - 1)
    return numbers.flatten(1)
