"""One step as a graph of core aten operators, its derivatives included.

torch decomposes most of what a step uses.  Ours are the backward passes that ONNX has no operator
for, as other convolutions; MaxPool's is a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from gdu_compile.errors import GduError, UnsupportedError

OPS = torch.ops.aten
Decompositions = dict[Any, Callable[..., Any]]

FURTHER = [
    OPS.native_batch_norm, OPS.gelu, OPS.elu,
    OPS.leaky_relu, OPS.silu, OPS.mish, OPS.hardswish, OPS.hardsigmoid, OPS.softplus, OPS.celu,
    OPS.linalg_vector_norm, OPS.std, OPS.addcmul, OPS.addcdiv, OPS.lerp, OPS.threshold,
    OPS.embedding_dense_backward, OPS.log_sigmoid_forward, OPS.select_backward,
    OPS.slice_backward, OPS.unfold_backward, OPS.baddbmm, OPS.logaddexp, OPS.stack,
    OPS.native_dropout, OPS.sgn, OPS.frac, OPS.trunc, OPS.tril, OPS.triu, OPS.mse_loss,
]  # fmt: skip
"""Operators of the core that others compute; ONNX at opset 18 has fewer."""


@cache
def decompositions() -> Decompositions:
    """What operators are replaced by while a step is traced."""
    return {
        **core_aten_decompositions(), **get_decompositions(FURTHER),
        OPS.var_mean.correction: var_mean, OPS.native_layer_norm.default: native_layer_norm,
        OPS.native_group_norm.default: native_group_norm,
        OPS.convolution_backward.default: convolution_backward,
        OPS.avg_pool2d.default: avg_pool(2),
        OPS.avg_pool2d_backward.default: avg_pool_backward(2),
        OPS.avg_pool3d.default: avg_pool(3),
        OPS.avg_pool3d_backward.default: avg_pool_backward(3),
    }  # fmt: skip


def trace(
    function: Callable[..., Sequence[Tensor]], arguments: Sequence[Tensor], called: str,
    table: Decompositions | None = None,
) -> torch.fx.GraphModule:  # fmt: skip
    """The operators that a function of tensors runs, on tensors of these sizes.

    Args:
        function: returns a list of tensors.
        arguments: examples.
        called: what to call the function in a message.
        table: operator → function that replaces it.

    Raises:
        UnsupportedError: it looks at the values of tensors, or fails.
    """
    try:
        with sdpa_kernel(SDPBackend.MATH):
            found = make_fx(function, decomposition_table=table or decompositions())(*arguments)
            found = without_mutation(found, arguments, table or decompositions())
    except GduError:
        raise
    except Exception as error:  # whatever somebody's code, or torch, raises
        line = next(iter(str(error).strip().splitlines()), "")
        raise UnsupportedError(
            f"{called} cannot be traced ({type(error).__name__}: {line}); it has to be a function "
            "of tensors that takes no decision by their values"
        ) from error
    found.graph.eliminate_dead_code()
    return found


def without_mutation(
    found: torch.fx.GraphModule, arguments: Sequence[Tensor], table: Decompositions
) -> torch.fx.GraphModule:
    """The same trace where no operator changes a tensor in place."""
    names = [str(node.target).split(".") for node in found.graph.nodes]
    if not any(len(name) > 1 and name[-2].endswith("_") for name in names):
        return found
    # Not at once: functionalize hides the values of constants, such as shapes, from the function.
    return make_fx(torch.func.functionalize(found), decomposition_table=table)(*arguments)


# --- normalisations ------------------------------------------------------------


def var_mean(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None,
    keepdim: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The two by themselves; torch's own goes to operators below the core."""
    axes = list(range(x.ndim)) if dim is None else list(dim)
    return x.var(axes, correction=correction, keepdim=keepdim), x.mean(axes, keepdim=keepdim)


def native_layer_norm(
    x: Tensor, sizes: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNormalization: the result, the mean and 1/σ."""
    axes = list(range(x.ndim - len(sizes), x.ndim))
    mean = x.mean(axes, keepdim=True)
    away = x - mean
    rstd = torch.rsqrt((away * away).mean(axes, keepdim=True) + eps)
    y = away * rstd
    y = y if weight is None else y * weight
    return y if bias is None else y + bias, mean, rstd


def native_group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, samples: int, channels: int, area: int,
    groups: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """GroupNormalization: the result, the mean and 1/σ, [N, groups]."""
    rows = x.reshape(samples, groups, -1)
    y, mean, rstd = native_layer_norm(rows, rows.shape[2:], None, None, eps)
    y, each = y.reshape(x.shape), [1, channels] + [1] * (x.ndim - 2)
    y = y if weight is None else y * weight.reshape(each)
    y = y if bias is None else y + bias.reshape(each)
    return y, mean[..., 0], rstd[..., 0]


# --- backward passes as other convolutions -----------------------------------


def convolution_backward(
    grad: Tensor, x: Tensor, w: Tensor, bias_sizes: Sequence[int] | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool,
    output_padding: Sequence[int], groups: int, output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """The derivatives by the input, the weight and the bias.

    By the input a convolution's is the transposed convolution of the gradient with the same
    weight, and the other way round.  By the weight it is the convolution of the input with the
    gradient, samples and channels exchanged, stride and dilation too.
    """
    rank = x.ndim - 2
    stride, padding, dilation = ([*n] * (rank if len(n) == 1 else 1)
                                 for n in (stride, padding, dilation))  # fmt: skip
    by_x = by_w = by_b = None
    if output_mask[0] and transposed:
        by_x = OPS.convolution(grad, w, None, stride, padding, dilation, False, [0] * rank, groups)
    elif output_mask[0]:
        lacking = [
            x.shape[2 + i] - ((grad.shape[2 + i] - 1) * stride[i] - 2 * padding[i]
                              + dilation[i] * (w.shape[2 + i] - 1) + 1)
            for i in range(rank)
        ]  # fmt: skip
        by_x = OPS.convolution(grad, w, None, stride, padding, dilation, True, lacking, groups)
    if output_mask[1]:
        pair = (grad, x) if transposed else (x, grad)
        by_w = weight_gradient(*pair, w.shape[2:], stride, padding, dilation, groups)
    if output_mask[2]:
        by_b = grad.sum([0, *range(2, grad.ndim)])
    return by_x, by_w, by_b


def weight_gradient(
    x: Tensor, grad: Tensor, kernel: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """[out, in/groups, *kernel]: the samples are summed over, so they take the channels' place."""
    samples, channels = x.shape[:2]
    each = channels // groups
    parts = x.reshape(samples, groups, each, *x.shape[2:]).transpose(0, 2)  # in/groups x g x N
    swapped = parts.reshape(each, groups * samples, *x.shape[2:])
    taps = grad.transpose(0, 1)  # out x N
    full = OPS.convolution(swapped, taps, None, dilation, padding, stride, False,
                           [0] * len(stride), groups)  # fmt: skip
    for axis, size in enumerate(kernel):
        full = full.narrow(2 + axis, 0, size)  # a stride may leave rows at the end
    result: Tensor = full.transpose(0, 1)
    return result


# --- average pooling -----------------------------------------------------------


@dataclass(frozen=True)
class Averages:
    """Windows over the last axes, and how many elements each is divided by.

    Attributes:
        kernel, stride, padding: one number for each axis.
        sizes: of the input along these axes.
        outputs: how many windows.
        counts: the divisors, float64 [*outputs].
    """

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    sizes: list[int]
    outputs: list[int]
    counts: Tensor

    @classmethod
    def of(
        cls, x: Tensor, rank: int, kernel: Sequence[int], stride: Sequence[int],
        padding: Sequence[int], ceil_mode: bool, count_include_pad: bool, divisor: int | None,
    ) -> Averages:  # fmt: skip
        """Arguments as torch has them."""
        kernel, stride, padding = (
            [*n] * (rank if len(n) == 1 else 1) for n in (kernel, stride or kernel, padding)
        )
        sizes, outputs = [int(size) for size in x.shape[-rank:]], []
        counts = torch.ones((), dtype=torch.float64)
        for size, k, step, pad in zip(sizes, kernel, stride, padding, strict=True):
            room = size + 2 * pad - k
            count = (room + step - 1 if ceil_mode else room) // step + 1
            if ceil_mode and (count - 1) * step >= size + pad:
                count -= 1  # the last window begins in the data, or in front of it
            begins = torch.arange(count) * step - pad
            ends = (begins + k).clamp(max=size + pad)
            if not count_include_pad:
                begins, ends = begins.clamp(min=0), ends.clamp(max=size)
            outputs.append(count)
            counts = counts[..., None] * (ends - begins)
        if divisor is not None:
            counts = torch.full_like(counts, divisor)
        return cls(kernel, stride, padding, sizes, outputs, counts)

    def taps(self, x: Tensor) -> Tensor:
        """The kernel of a sum, [1, 1, *kernel]."""
        return torch.ones([1, 1, *self.kernel], dtype=x.dtype)

    def padded(self) -> list[tuple[int, int]]:
        """What is put in front and behind, so that the windows fit exactly."""
        ends = [(n - 1) * step + k for n, step, k in
                zip(self.outputs, self.stride, self.kernel, strict=True)]  # fmt: skip
        return [(pad, end - size - pad) for pad, end, size in
                zip(self.padding, ends, self.sizes, strict=True)]  # fmt: skip

    def convolution(self, planes: Tensor, transposed: bool) -> Tensor:
        """Sums over the windows of [M, 1, …], or each element given to all of its window."""
        nothing, ones = [0] * len(self.kernel), [1] * len(self.kernel)
        found: Tensor = OPS.convolution(planes, self.taps(planes), None, self.stride, nothing,
                                        ones, transposed, nothing, 1)  # fmt: skip
        return found


def avg_pool(rank: int) -> Callable[..., Tensor]:
    """AveragePool over so many axes: a convolution of each channel, divided by the counts."""

    def pool(
        x: Tensor, kernel: Sequence[int], stride: Sequence[int] = (),
        padding: Sequence[int] = (0,), ceil_mode: bool = False, count_include_pad: bool = True,
        divisor: int | None = None,
    ) -> Tensor:  # fmt: skip
        windows = Averages.of(x, rank, kernel, stride, padding, ceil_mode, count_include_pad,
                              divisor)  # fmt: skip
        sides = [n for pair in reversed(windows.padded()) for n in pair]
        planes = OPS.constant_pad_nd(x.reshape(-1, 1, *windows.sizes), sides)
        sums = windows.convolution(planes, transposed=False)
        return sums.reshape(*x.shape[:-rank], *windows.outputs) / windows.counts.to(x.dtype)

    return pool


def avg_pool_backward(rank: int) -> Callable[..., Tensor]:
    """Its derivative: the transposed convolution."""

    def backward(
        grad: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int],
        padding: Sequence[int], ceil_mode: bool, count_include_pad: bool, divisor: int | None,
    ) -> Tensor:  # fmt: skip
        windows = Averages.of(x, rank, kernel, stride, padding, ceil_mode, count_include_pad,
                              divisor)  # fmt: skip
        shares = (grad / windows.counts.to(grad.dtype)).reshape(-1, 1, *windows.outputs)
        spread = windows.convolution(shares, transposed=True)
        sides = [-n for pair in reversed(windows.padded()) for n in pair]
        result: Tensor = OPS.constant_pad_nd(spread, sides)
        return result.reshape(x.shape)

    return backward
