"""The operators of com.microsoft on floats: what onnxruntime's optimiser and exporters emit."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gdu_compile.errors import UnsupportedError
from gdu_compile.torch_backend.ops_attention import (
    attend,
    attend_in_stages,
    join_heads,
    rotate,
    split_heads,
)
from gdu_compile.torch_backend.ops_elementwise import gelu, hard_sigmoid, swish
from gdu_compile.torch_backend.ops_image import grid_sample
from gdu_compile.torch_backend.ops_linear import conv, gemm
from gdu_compile.torch_backend.ops_pool import max_pool
from gdu_compile.torch_backend.ops_shape import trilu
from gdu_compile.torch_backend.registry import operator

MICROSOFT = "com.microsoft"
EPSILON = 9.999999960041972e-13  # 1e-12 as the float32 that ONNX stores

# --- activations, and what they are fused to ----------------------------------------

operator("GridSample", domain=MICROSOFT)(grid_sample)
operator("Trilu", domain=MICROSOFT)(trilu)


def activated(x: Tensor, activation: str, parameters: list[float]) -> Tensor:
    """The activation that a fused operator ends with."""
    if activation in ("", "Identity"):
        return x
    if activation in ("Relu", "Sigmoid", "Tanh"):
        function = {"Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh}[activation]
        return function(x)
    if activation == "LeakyRelu":
        return nnf.leaky_relu(x, parameters[0])
    if activation == "Clip":
        return x.clamp(parameters[0], parameters[1])
    if activation == "HardSigmoid":
        return hard_sigmoid(x, alpha=parameters[0], beta=parameters[1])
    raise UnsupportedError(f"activation {activation!r} of a fused operator does not run in torch")


@operator("Gelu", domain=MICROSOFT)
def microsoft_gelu(x: Tensor) -> Tensor:
    return gelu(x)


@operator("BiasGelu", domain=MICROSOFT)
def bias_gelu(a: Tensor, b: Tensor) -> Tensor:
    return gelu(a + b)


@operator("FastGelu", domain=MICROSOFT)
def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return gelu(x if bias is None else x + bias, approximate="tanh")


@operator("QuickGelu", domain=MICROSOFT)
def quick_gelu(x: Tensor, *, alpha: float = 1.7020000219345093) -> Tensor:
    return swish(x, alpha=alpha)


@operator("FusedConv", domain=MICROSOFT)
def fused_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    z: Tensor | None = None,
    *,
    activation: str = "",
    activation_params: list[float] | None = None,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    y = conv(x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads,
             strides=strides)  # fmt: skip
    return activated(y if z is None else y + z, activation, activation_params or [])


@operator("FusedGemm", domain=MICROSOFT)
def fused_gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    activation: str = "",
    activation_alpha: float = 0.0,
    activation_beta: float = 0.0,
    activation_gamma: float = 0.0,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Tensor:
    y = gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return activated(y, activation, [activation_alpha, activation_beta])


@operator("TransposeMatMul", domain=MICROSOFT)
@operator("FusedMatMul", domain=MICROSOFT)
def fused_mat_mul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
    transBatchA: int = 0,  # noqa: N803
    transBatchB: int = 0,  # noqa: N803
) -> Tensor:
    left, right = _turned(a, transBatchA, transA), _turned(b, transBatchB, transB)
    product = left @ right
    return product if alpha == 1 else product * alpha


def _turned(x: Tensor, batch: int, matrix: int) -> Tensor:
    if batch:  # the first dimension goes behind those of the batch
        x = x.movedim(0, -2)
    return x.transpose(-1, -2) if matrix and x.ndim > 1 else x


@operator("NhwcMaxPool", domain=MICROSOFT)
def nhwc_max_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    y = max_pool(x.movedim(-1, 1), auto_pad=auto_pad, ceil_mode=ceil_mode, dilations=dilations,
                 kernel_shape=kernel_shape, pads=pads, strides=strides)  # fmt: skip
    assert isinstance(y, Tensor)
    return y.movedim(1, -1)


@operator("Inverse", domain=MICROSOFT)
def inverse(x: Tensor) -> Tensor:
    return x.inverse()


# --- normalisations with what is added before ----------------------------------------


@operator("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = EPSILON,
    num_outputs_: int = 1,
) -> tuple[Tensor | None, ...]:
    total = x + skip if bias is None else x + skip + bias
    y = nnf.layer_norm(total, total.shape[-1:], gamma, beta, epsilon)
    return _with_sum(y, total, num_outputs_)


@operator("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_simplified_layer_normalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float = EPSILON,
    num_outputs_: int = 1,
) -> tuple[Tensor | None, ...]:
    total = x + skip if bias is None else x + skip + bias
    y = nnf.rms_norm(total, total.shape[-1:], gamma, epsilon)
    return _with_sum(y, total, num_outputs_)


def _with_sum(y: Tensor, total: Tensor, outputs: int) -> tuple[Tensor | None, ...]:
    """The result and the sum; onnxruntime computes mean and deviation on no CPU, nor do we."""
    return (y, None, None, total)[:outputs]


@operator("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(
    input_ids: Tensor,
    segment_ids: Tensor | None,
    word_embedding: Tensor,
    position_embedding: Tensor,
    segment_embedding: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    epsilon: float = EPSILON,
    mask_index_type: int = 0,
    num_outputs_: int = 1,
) -> tuple[Tensor, ...]:
    if position_ids is None:
        places = position_embedding[: input_ids.shape[1]]
    else:
        places = position_embedding[position_ids]
    total = word_embedding[input_ids] + places
    if segment_ids is not None and segment_embedding is not None:
        total = total + segment_embedding[segment_ids]
    y = nnf.layer_norm(total, total.shape[-1:], gamma, beta, epsilon)
    lengths = input_ids.new_zeros(len(input_ids)) if mask is None else mask.sum(1)
    return (y, lengths.to(torch.int32), total)[:num_outputs_]


# --- attention -----------------------------------------------------------------------


@operator("Attention", domain=MICROSOFT)
def microsoft_attention(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    mask_index: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_sequence_length: Tensor | None = None,
    *,
    do_rotary: int = 0,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    past_present_share_buffer: int = 0,
    qkv_hidden_sizes: list[int] | None = None,
    rotary_embedding_dim: int = 0,
    scale: float | None = None,
    unidirectional: int = 0,
    num_outputs_: int = 1,
) -> tuple[Tensor, ...]:
    refuse(do_rotary=do_rotary, past_present_share_buffer=past_present_share_buffer)
    projected = x @ weights if bias is None else x @ weights + bias
    sizes = qkv_hidden_sizes or [projected.shape[-1] // 3] * 3
    q, k, v = (split_heads(part, num_heads) for part in torch.split(projected, sizes, -1))
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    hidden = _hidden_by_index(mask_index, q, k)
    if unidirectional:
        ahead = after(q, k)
        hidden = ahead if hidden is None else hidden | ahead
    added = filtered(hidden, mask_filter_value, attention_bias, q)
    y = attend(q, k, v, added, scale or q.shape[-1] ** -0.5)
    return (join_heads(y),) if num_outputs_ == 1 else (join_heads(y), torch.stack([k, v]))


def refuse(**attributes: object) -> None:
    """Raise UnsupportedError for an attribute that is set."""
    given = [name for name, value in attributes.items() if value]
    if given:
        raise UnsupportedError(f"an attention of com.microsoft with {', '.join(given)} does not "
                               "run in torch")  # fmt: skip


def after(q: Tensor, k: Tensor) -> Tensor:
    """The keys that come after each query, [S, L]; the last query is at the last key."""
    queries = torch.arange(q.shape[2], device=q.device)[:, None] + (k.shape[2] - q.shape[2])
    return torch.arange(k.shape[2], device=q.device) > queries


def _hidden_by_index(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """The keys that a mask of one of its five forms hides, to broadcast to [N, heads, S, L]."""
    if mask is None:
        return None
    if mask.ndim == 1:  # the end of each sequence, and perhaps its start after all the ends
        places = torch.arange(k.shape[2], device=q.device)
        ends, *starts = mask.reshape(-1, q.shape[0], 1, 1, 1).unbind(0)
        hidden = places >= ends
        return hidden | (places < starts[0]) if starts else hidden
    if mask.ndim == 2:
        return mask[:, None, None, :] == 0
    if mask.ndim == 3:
        return mask[:, None] == 0
    first = k.shape[2] - q.shape[2]
    return mask[:, :, first : k.shape[2], : k.shape[2]] == 0


def filtered(
    hidden: Tensor | None, value: float, bias: Tensor | None, like: Tensor
) -> Tensor | None:
    """What is added to the scores: ``value`` where a key is hidden, and a bias."""
    if hidden is None:
        return bias
    mask = torch.where(hidden, value, 0.0).to(like.dtype)
    return mask if bias is None else mask + bias


@operator("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    past_sequence_length: Tensor | None = None,
    cache_indirection: Tensor | None = None,
    *,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    scale: float | None = None,
    unidirectional: int = 0,
    num_outputs_: int = 1,
) -> tuple[Tensor, ...]:
    refuse(cache_indirection=cache_indirection is not None, qk=num_outputs_ > 3,
           past_sequence_length=past_sequence_length is not None)  # fmt: skip
    q, k, v = _three(query, key, value, bias, num_heads)
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    hidden = _hidden_by_index(key_padding_mask, q, k)
    if unidirectional:
        ahead = after(q, k)
        hidden = ahead if hidden is None else hidden | ahead
    added = filtered(hidden, mask_filter_value, attention_bias, q)
    y = attend(q, k, v, added, scale or q.shape[-1] ** -0.5)
    return (join_heads(y), k, v)[:num_outputs_]


def _three(
    query: Tensor, key: Tensor | None, value: Tensor | None, bias: Tensor | None, heads: int
) -> tuple[Tensor, ...]:
    """Queries, keys and values, each [N, heads, S, size], out of the ways they may be packed."""
    if key is None:  # [N, S, heads, 3, size]
        query, key, value = (part.flatten(2) for part in query.unbind(3))
    elif value is None:  # [N, L, heads, 2, size]
        key, value = (part.flatten(2) for part in key.unbind(3))
    parts = [query, key, value]
    if bias is not None:
        width = query.shape[-1]
        pieces = torch.split(bias, [width, width, len(bias) - 2 * width])
        # Keys and values of four dimensions come from elsewhere, where they had their bias.
        parts = [x + piece if x.ndim == 3 else x for x, piece in zip(parts, pieces, strict=True)]
    return tuple(split_heads(x, heads) for x in parts)


@operator("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    seqlens_k: Tensor,
    total_sequence_length: Tensor,
    cos_cache: Tensor | None = None,
    sin_cache: Tensor | None = None,
    position_ids: Tensor | None = None,
    attention_bias: Tensor | None = None,
    *others: Tensor | None,
    do_rotary: int = 0,
    kv_num_heads: int,
    local_window_size: int = -1,
    num_heads: int,
    rotary_interleaved: int = 0,
    scale: float | None = None,
    smooth_softmax: int = -1,
    softcap: float = 0.0,
    num_outputs_: int = 1,
) -> tuple[Tensor, ...]:
    refuse(smooth_softmax=smooth_softmax > 0, further_inputs=any(x is not None for x in others),
           output_qk=num_outputs_ > 3)  # fmt: skip
    if key is None or value is None:
        size = query.shape[-1] // (num_heads + 2 * kv_num_heads)
        sizes = [num_heads * size, kv_num_heads * size, kv_num_heads * size]
        query, key, value = torch.split(query, sizes, -1)
    q, k, v = (split_heads(x, heads) for x, heads in (
        (query, num_heads), (key, kv_num_heads), (value, kv_num_heads)))  # fmt: skip
    length, total = q.shape[2], int(total_sequence_length)
    before = seqlens_k.reshape(-1).to(torch.int64) + 1 - length
    if total == length:  # the prompt, whose shorter sequences are filled up at the end
        before = before * 0
    places = before[:, None] + torch.arange(length, device=q.device)  # [N, S]
    if do_rotary and cos_cache is not None and sin_cache is not None:
        at = places if position_ids is None else position_ids
        cos, sin = cos_cache[at][:, None], sin_cache[at][:, None]
        q, k = (_rotated(x, cos, sin, bool(rotary_interleaved)) for x in (q, k))
    k, v = _placed(past_key, k, places, total), _placed(past_value, v, places, total)
    ahead = torch.arange(k.shape[2], device=q.device) - places[:, None, :, None]
    hidden = ahead > 0
    if local_window_size > 0:
        hidden = hidden | (ahead <= -local_window_size)
    repeat = num_heads // kv_num_heads
    added = filtered(hidden, -torch.inf, attention_bias, q)
    keys, values = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    factor = scale or q.shape[-1] ** -0.5
    if softcap:
        y, _ = attend_in_stages(q, keys, values, added, factor, softcap)
    else:
        y = attend(q, keys, values, added, factor)
    return (join_heads(y), k, v)[:num_outputs_]


def _placed(past: Tensor | None, new: Tensor, places: Tensor, total: int) -> Tensor:
    """New keys or values written into the cache at their places, [N, heads, L, size]."""
    size = total if past is None else max(total, past.shape[2])
    cache = new.new_zeros(*new.shape[:2], size, new.shape[-1])
    if past is not None:
        cache = torch.cat([past, cache[:, :, past.shape[2] :]], 2)
    return cache.scatter(2, places[:, None, :, None].expand(new.shape), new)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """The first dimensions of each head turned, as many as the caches have."""
    size = 2 * cos.shape[-1]
    return torch.cat([rotate(x[..., :size], cos, sin, interleaved), x[..., size:]], -1)


@operator("RotaryEmbedding", domain=MICROSOFT)
def microsoft_rotary_embedding(
    x: Tensor,
    position_ids: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> Tensor:
    size = rotary_embedding_dim or 2 * cos_cache.shape[-1]
    heads = split_heads(x, num_heads or x.shape[-1] // size)
    if position_ids.ndim == 1:  # the place of the first
        steps = torch.arange(heads.shape[2], device=x.device)
        position_ids = (position_ids + steps).expand(len(x), -1)
    cos, sin = (cache[position_ids][:, None] for cache in (cos_cache, sin_cache))
    turned = _rotated(heads, cos, sin, bool(interleaved))
    return turned if x.ndim == 4 else join_heads(turned)
