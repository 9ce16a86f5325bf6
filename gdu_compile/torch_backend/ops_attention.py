"""Attention and rotary embeddings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gdu_compile.torch_backend.ops_elementwise import torch_dtype
from gdu_compile.torch_backend.registry import operator


def split_heads(x: Tensor, heads: int | None) -> Tensor:
    """[N, S, heads·size] → [N, heads, S, size]; four dimensions stay."""
    if x.ndim == 4:
        return x
    assert heads is not None
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[N, heads, S, size] → [N, S, heads·size]."""
    return x.transpose(1, 2).flatten(2)


@operator("Attention", since=23)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    num_outputs_: int = 1,
) -> tuple[Tensor, ...]:
    flat, past = q.ndim == 3, 0 if past_key is None else past_key.shape[2]
    q, k, v = (
        split_heads(q, q_num_heads),
        split_heads(k, kv_num_heads),
        split_heads(v, kv_num_heads),
    )
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    keys, values = _repeated(k, q.shape[1]), _repeated(v, q.shape[1])
    window = (left_window_size, right_window_size)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    plain = num_outputs_ < 4 and not softcap and softmax_precision is None
    unmasked = attn_mask is None and nonpad_kv_seqlen is None and window == (-1, -1)
    if plain and unmasked and is_causal and q.shape[2] == k.shape[2]:
        y = nnf.scaled_dot_product_attention(q, keys, values, is_causal=True, scale=factor)
        return (join_heads(y) if flat else y, k, v)[:num_outputs_]
    offset: Tensor | int = past
    if nonpad_kv_seqlen is not None and past_key is None:
        offset = nonpad_kv_seqlen.reshape(-1, 1, 1, 1) - q.shape[2]
    allowed = _allowed(q, k, offset, bool(is_causal), window)
    if nonpad_kv_seqlen is not None:
        inside = torch.arange(k.shape[2], device=k.device) < nonpad_kv_seqlen.reshape(-1, 1, 1, 1)
        allowed = inside if allowed is None else allowed & inside
    bias = _bias(attn_mask, allowed, q, k)
    if plain:
        y = attend(q, keys, values, bias, factor)
        return (join_heads(y) if flat else y, k, v)[:num_outputs_]
    precision = None if softmax_precision is None else torch_dtype(softmax_precision)
    y, stages = attend_in_stages(q, keys, values, bias, factor, softcap, precision)
    return (join_heads(y) if flat else y, k, v, stages[qk_matmul_output_mode])[:num_outputs_]


def _repeated(x: Tensor, heads: int) -> Tensor:
    """Each head as often as there are queries to it."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def _allowed(
    q: Tensor, k: Tensor, offset: Tensor | int, causal: bool, window: tuple[int, int]
) -> Tensor | None:
    """Which keys each query may look at; None: all."""
    if not causal and window == (-1, -1):
        return None
    queries = torch.arange(q.shape[2], device=q.device)[:, None] + offset
    ahead = torch.arange(k.shape[2], device=q.device) - queries  # [..., S, L]
    left, right = window
    if causal:
        right = 0 if right < 0 else min(right, 0)
    allowed = torch.ones_like(ahead, dtype=torch.bool)
    if right >= 0:
        allowed = allowed & (ahead <= right)
    if left >= 0:
        allowed = allowed & (-ahead <= left)
    return allowed


def _bias(mask: Tensor | None, allowed: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """What is added to the scores: a mask of floats, and −∞ where it is not allowed."""
    if mask is None:
        if allowed is None:
            return None
        return torch.where(allowed, 0.0, -torch.inf).to(q.dtype)
    lacking = k.shape[2] - mask.shape[-1]
    if mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, -torch.inf).to(q.dtype)
    if lacking > 0:
        mask = nnf.pad(mask, [0, lacking], value=-torch.inf)
    return mask if allowed is None else torch.where(allowed, mask, -torch.inf)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Attention; a query whose every key is masked with −∞ gives 0."""
    return nnf.scaled_dot_product_attention(q, k, v, bias, scale=scale)


def attend_in_stages(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, softcap: float = 0.0,
    precision: torch.dtype | None = None,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Attention written out: the result, and the scores: plain, capped, masked, as weights."""
    root = math.sqrt(scale)
    scores = (q * root) @ (k * root).transpose(-1, -2)
    capped = torch.tanh(scores / softcap) * softcap if softcap else scores
    masked = capped if bias is None else capped + bias
    working = masked if precision is None else masked.to(precision)
    if bias is None:
        weights = torch.softmax(working, -1)
    else:
        hidden = (bias == -torch.inf).all(-1, keepdim=True)
        # Not the softmax of −∞ alone: it and its derivative are NaN.
        weights = torch.softmax(torch.where(hidden, 0, working), -1)
        weights = torch.where(hidden, 0, weights)
    weights = weights.to(q.dtype)
    return weights @ v, [scores, capped, masked, weights]


# --- rotary embeddings ------------------------------------------------------------


@operator("RotaryEmbedding", since=23)
def rotary_embedding(
    x: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    position_ids: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    heads = split_heads(x, num_heads)
    cos, sin = (
        cache if position_ids is None else cache[position_ids] for cache in (cos_cache, sin_cache)
    )  # [N, S, half]
    size = rotary_embedding_dim or heads.shape[-1]
    cos, sin = cos[:, None, :, : size // 2], sin[:, None, :, : size // 2]
    turned = rotate(heads[..., :size], cos, sin, bool(interleaved))
    result = torch.cat([turned, heads[..., size:]], -1)
    return result if x.ndim == 4 else join_heads(result)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Pairs of the last dimension turned: (first half, second half), or neighbours."""
    first, second = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    if interleaved:
        return torch.stack([real, imaginary], -1).flatten(-2)
    return torch.cat([real, imaginary], -1)
