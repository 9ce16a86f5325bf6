"""The linear operators: matrix products, Einsum, convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gdu_compile.torch_backend.ops_unsigned import modular
from gdu_compile.torch_backend.registry import operator


@operator("MatMul", since=13)
@modular
def mat_mul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@operator("Gemm", since=13)
@modular
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Tensor:
    product = (a.T if transA else a) @ (b.T if transB else b)
    if alpha != 1:
        product = (product * alpha).to(a.dtype)
    if c is None or beta == 0:
        return product
    return product + (c if beta == 1 else (c * beta).to(a.dtype))


@operator("Einsum", since=12)
@modular
def einsum(*inputs: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *inputs).to(inputs[0].dtype)  # torch sums int32 into int64


@operator("Det", since=11)
def det(x: Tensor) -> Tensor:
    return torch.det(x)


# --- convolutions ------------------------------------------------------------


def spatial_pads(
    sizes: list[int],
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    pads: list[int] | None,
    auto_pad: str,
) -> list[tuple[int, int]]:
    """(begin, end) of each spatial axis, out of ``pads`` or ``auto_pad``."""
    rank = len(sizes)
    if auto_pad in ("NOTSET", ""):
        pads = [0] * 2 * rank if pads is None else pads
        return list(zip(pads[:rank], pads[rank:], strict=True))
    if auto_pad == "VALID":
        return [(0, 0)] * rank
    sides = []
    for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        covered = (-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1
        total = max(0, covered - size)
        small, large = total // 2, total - total // 2
        sides.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
    return sides


def pad_list(sides: list[tuple[int, int]]) -> list[int]:
    """Sides of each axis, first axis first → torch's flat list, last axis first."""
    return [amount for side in reversed(sides) for amount in side]


@operator("Conv", since=11)
def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    sizes, kernel = list(x.shape[2:]), list(w.shape[2:])
    strides, dilations = strides or [1] * len(sizes), dilations or [1] * len(sizes)
    sides = spatial_pads(sizes, kernel, strides, dilations, pads, auto_pad)
    padding = [begin for begin, _ in sides]
    if any(begin != end for begin, end in sides):  # torch pads both sides alike
        x, padding = nnf.pad(x, pad_list(sides)), [0] * len(sizes)
    convolve = (nnf.conv1d, nnf.conv2d, nnf.conv3d)[len(sizes) - 1]
    return convolve(x, w, b, strides, padding, dilations, group)


@operator("ConvTranspose", since=11)
def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    sizes, rank = list(x.shape[2:]), x.ndim - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    extra = output_padding or [0] * rank
    convolve = (nnf.conv_transpose1d, nnf.conv_transpose2d, nnf.conv_transpose3d)[rank - 1]
    # Everything, with neither pads nor bias; the pads then cut it, or lengthen it with zeros.
    full = convolve(x, w, None, strides, 0, 0, group, dilations)
    whole = [length + more for length, more in zip(full.shape[2:], extra, strict=True)]
    if output_shape is not None:
        sides = _sides(whole, output_shape[-rank:], auto_pad)
    elif auto_pad.startswith("SAME"):  # size times stride, where there is as much
        wanted = [min(n * stride, w) for n, stride, w in zip(sizes, strides, whole, strict=True)]
        sides = _sides(whole, wanted, auto_pad)
    else:
        sides = spatial_pads(sizes, sizes, strides, dilations, pads, auto_pad)
    cuts = [(-begin, more - end) for (begin, end), more in zip(sides, extra, strict=True)]
    result = nnf.pad(full, pad_list(cuts)) if any(map(any, cuts)) else full
    return result if b is None else result + b.reshape((-1,) + (1,) * rank)


def _sides(whole: list[int], wanted: list[int], auto_pad: str) -> list[tuple[int, int]]:
    """What to cut at (begin, end) of each axis to have the wanted size; what lacks, at the end."""
    sides = []
    for size, target in zip(whole, wanted, strict=True):
        total = max(0, size - target)
        begin = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
        sides.append((begin, size - target - begin))
    return sides
