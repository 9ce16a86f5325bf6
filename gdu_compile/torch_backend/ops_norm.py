"""The normalisations, and Softmax and its kin."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gdu_compile.torch_backend.ops_elementwise import torch_dtype
from gdu_compile.torch_backend.registry import operator

EPSILON = 9.999999747378752e-06  # 1e-5 as the float32 that ONNX stores


def _channels(parameter: Tensor, x: Tensor) -> Tensor:
    """One value per channel, shaped to broadcast against ``x``."""
    return parameter.reshape((-1,) + (1,) * (x.ndim - 2))


def _stash(x: Tensor, stash_type: int) -> Tensor:
    """``x`` in the type to calculate in; a wider type stays, so that float64 runs are float64."""
    return x.to(torch.promote_types(x.dtype, torch_dtype(stash_type)))


def _normal_groups(x: Tensor, groups: int, epsilon: float) -> Tensor:
    """``x``, in each group of channels of each batch with mean 0 and variance 1."""
    grouped = x.reshape(x.shape[0], groups, -1)
    return nnf.layer_norm(grouped, grouped.shape[-1:], eps=epsilon).reshape(x.shape)


@operator("BatchNormalization", since=15)
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    b: Tensor,
    input_mean: Tensor,
    input_var: Tensor,
    *,
    epsilon: float = EPSILON,
    momentum: float = 0.8999999761581421,
    training_mode: int = 0,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    mean, var = input_mean, input_var
    alike = all(each.dtype == x.dtype for each in (scale, b, mean, var))
    if alike and not (training_mode or mean.requires_grad or var.requires_grad):
        return nnf.batch_norm(x, mean, var, scale, b, training=False, eps=epsilon)
    # Written out: nnf.batch_norm has no derivative by mean and variance.
    if training_mode:
        dims = (0, *range(2, x.ndim))
        mean, var = x.mean(dims), x.var(dims, correction=0)
    factor = scale / torch.sqrt(var + epsilon)
    y = (x - _channels(mean, x)) * _channels(factor, x) + _channels(b, x)
    y = y.to(x.dtype)
    if not training_mode:
        return y
    running_mean = input_mean * momentum + mean * (1 - momentum)
    running_var = input_var * momentum + var * (1 - momentum)
    return y, running_mean.to(input_mean.dtype), running_var.to(input_var.dtype)


@operator("InstanceNormalization", since=6)
def instance_normalization(
    x: Tensor, scale: Tensor, b: Tensor, *, epsilon: float = EPSILON
) -> Tensor:
    return _normal_groups(x, x.shape[1], epsilon) * _channels(scale, x) + _channels(b, x)


@operator("GroupNormalization", since=18)
def group_normalization_18(
    x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = EPSILON, num_groups: int
) -> Tensor:
    """The first version: one scale and bias per group."""
    size = x.shape[1] // num_groups
    scale, bias = scale.repeat_interleave(size), bias.repeat_interleave(size)
    return _normal_groups(x, num_groups, epsilon) * _channels(scale, x) + _channels(bias, x)


@operator("GroupNormalization", since=21)
def group_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    epsilon: float = EPSILON,
    num_groups: int,
    stash_type: int = 1,
) -> Tensor:
    normal = _normal_groups(_stash(x, stash_type), num_groups, epsilon).to(x.dtype)
    return normal * _channels(scale, x) + _channels(bias, x)


@operator("LayerNormalization", since=17)
def layer_normalization(
    x: Tensor,
    scale: Tensor,
    b: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = EPSILON,
    stash_type: int = 1,
    num_outputs_: int = 1,
) -> Tensor | tuple[Tensor, ...]:
    stash, axis = _stash(x, stash_type), axis % x.ndim
    normal = nnf.layer_norm(stash, stash.shape[axis:], eps=epsilon).to(x.dtype)
    y = normal * scale if b is None else normal * scale + b
    if num_outputs_ == 1:
        return y
    dims = tuple(range(axis, x.ndim))
    mean = stash.mean(dims, keepdim=True)
    deviation = torch.rsqrt(stash.var(dims, correction=0, keepdim=True) + epsilon)
    return (y, mean, deviation)[:num_outputs_]


@operator("RMSNormalization", since=23)
def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = EPSILON, stash_type: int = 1
) -> Tensor:
    stash = _stash(x, stash_type)
    return nnf.rms_norm(stash, stash.shape[axis % x.ndim :], eps=epsilon).to(x.dtype) * scale


@operator("LpNormalization", since=1)
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / torch.where(norm == 0, 1, norm)


@operator("MeanVarianceNormalization", since=13)
def mean_variance_normalization(x: Tensor, *, axes: list[int] | None = None) -> Tensor:
    dims = tuple(axes or (0, 2, 3))
    centred = x - x.mean(dims, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(centred, 2, dims, keepdim=True)
    deviation = norm * math.sqrt(norm.numel() / max(x.numel(), 1))
    return centred / (deviation + 1e-9)


@operator("LRN", since=13)
def lrn(
    x: Tensor,
    *,
    alpha: float = 9.999999747378752e-05,
    beta: float = 0.75,
    bias: float = 1.0,
    size: int,
) -> Tensor:
    before, after = (size - 1) // 2, size // 2  # torch's own has them the other way round
    squares = nnf.pad(x.square(), [0, 0] * (x.ndim - 2) + [before, after])
    return x / torch.pow(bias + alpha / size * squares.unfold(1, size, 1).sum(-1), beta)


# --- Softmax and its kin -----------------------------------------------------


@operator("Softmax", since=13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


@operator("LogSoftmax", since=13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, axis)


@operator("Hardmax", since=13)
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)
