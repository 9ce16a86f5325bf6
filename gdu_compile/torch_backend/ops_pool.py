"""The pooling operators: MaxPool, AveragePool, LpPool and their global forms."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gdu_compile.torch_backend.ops_linear import pad_list, spatial_pads
from gdu_compile.torch_backend.registry import operator


class Window:
    """How a window moves over the spatial axes: all attributes, completed.

    Attributes:
        sides: (begin, end) padding of each axis.
        places: how often the window is put down along each axis.
        beyond: by how much the last place of each axis exceeds the padded axis
            (ceil_mode).
    """

    def __init__(
        self,
        x: Tensor,
        kernel: list[int],
        strides: list[int] | None,
        dilations: list[int] | None,
        pads: list[int] | None,
        auto_pad: str,
        ceil_mode: int,
    ) -> None:
        self.sizes = list(x.shape[2:])
        self.kernel = kernel
        self.strides = strides or [1] * len(kernel)
        self.dilations = dilations or [1] * len(kernel)
        self.sides = spatial_pads(self.sizes, kernel, self.strides, self.dilations, pads, auto_pad)
        self.places, self.beyond = [], []
        traced = torch.compiler.is_compiling()  # a comparison of sizes would fix them
        for i, (begin, end) in enumerate(self.sides):
            length, stride = self.sizes[i] + begin + end, self.strides[i]
            reach = (kernel[i] - 1) * self.dilations[i] + 1
            places = (length - reach) // stride + 1
            if ceil_mode and auto_pad in ("NOTSET", ""):
                places = -(-(length - reach) // stride) + 1
                if (places - 1) * stride >= self.sizes[i] + begin:
                    places -= 1  # a window must not start in the padding at the end
            elif not traced and -stride < length - reach < 0:
                places = 1  # onnxruntime rounds towards 0: one window, larger than the axis
            self.places.append(places)
            exact = traced and not ceil_mode
            self.beyond.append(0 if exact else max(0, (places - 1) * stride + reach - length))

    def pad(self, x: Tensor, value: float) -> Tensor:
        """``x`` with all its padding, so that the window fits exactly."""
        sides = [
            (begin, end + beyond)
            for (begin, end), beyond in zip(self.sides, self.beyond, strict=True)
        ]
        return nnf.pad(x, pad_list(sides), value=value) if any(map(any, sides)) else x

    def views(self, padded: Tensor) -> Tensor:
        """What the window sees at each place, in as many further dimensions at the end."""
        for i, (taps, stride, dilation) in enumerate(
            zip(self.kernel, self.strides, self.dilations, strict=True)
        ):
            padded = padded.unfold(2 + i, (taps - 1) * dilation + 1, stride)[..., ::dilation]
        return padded

    def counts(self, like: Tensor, include_pad: int) -> Tensor:
        """At each place, how many elements the window sees (or elements and padding)."""
        counts = like.new_ones(())
        for i, (begin, end) in enumerate(self.sides):
            low, high = (-begin, self.sizes[i] + end) if include_pad else (0, self.sizes[i])
            seen = [
                sum(
                    low <= place * self.strides[i] - begin + tap * self.dilations[i] < high
                    for tap in range(self.kernel[i])
                )
                for place in range(self.places[i])
            ]
            counts = counts[..., None] * like.new_tensor(seen)
        return counts


@operator("MaxPool", since=12)
def max_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    storage_order: int = 0,
    strides: list[int] | None = None,
    num_outputs_: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    window = Window(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    pool = (nnf.max_pool1d, nnf.max_pool2d, nnf.max_pool3d)[len(kernel_shape) - 1]
    floating = x if x.is_floating_point() else x.to(torch.float32)  # (u)int8 is exact in it
    padded = window.pad(floating, -torch.inf)
    step, spread = window.strides, window.dilations
    if num_outputs_ == 1:
        return pool(padded, kernel_shape, step, 0, spread).to(x.dtype)
    values, places = pool(padded, kernel_shape, step, 0, spread, return_indices=True)
    return values.to(x.dtype), _unpadded(places, x, padded, window, storage_order)


def _unpadded(
    places: Tensor, x: Tensor, padded: Tensor, window: Window, storage_order: int
) -> Tensor:
    """Places within a channel of ``padded`` → places within the whole of ``x``."""
    coordinates = torch.unravel_index(places, padded.shape[2:])
    steps = [math.prod(x.shape[3 + i :]) for i in range(len(coordinates))]
    if storage_order:  # column by column
        steps = [math.prod(x.shape[2 : 2 + i]) for i in range(len(coordinates))]
    channel = torch.arange(x.shape[0] * x.shape[1], device=x.device) * math.prod(x.shape[2:])
    flat = channel.reshape(x.shape[:2] + (1,) * len(coordinates))
    for coordinate, (begin, _), step in zip(coordinates, window.sides, steps, strict=True):
        flat = flat + (coordinate - begin) * step
    return flat


@operator("MaxUnpool", since=11)
def max_unpool(
    x: Tensor,
    indices: Tensor,
    output_shape: Tensor | None = None,
    *,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    rank = len(kernel_shape)
    steps, sides = strides or [1] * rank, pads or [0] * 2 * rank
    sizes = [
        (x.shape[2 + i] - 1) * steps[i] + kernel_shape[i] - sides[i] - sides[rank + i]
        for i in range(rank)
    ]
    shape = [*x.shape[:2], *sizes]
    flat = x.new_zeros(math.prod(shape)).scatter(0, indices.reshape(-1), x.reshape(-1))
    result = flat.reshape(shape)
    if output_shape is None:
        return result
    more = [(0, end - size) for end, size in zip(output_shape.tolist(), shape, strict=True)]
    return nnf.pad(result, pad_list(more))


@operator("AveragePool", since=11)
def average_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    window = Window(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    padded = window.pad(x, 0.0)
    if len(kernel_shape) > 2 or any(dilation != 1 for dilation in window.dilations):
        # torch has no dilation here, and no three axes in half precision
        means = window.views(padded).mean(tuple(range(-len(kernel_shape), 0)))
    else:
        pool = nnf.avg_pool1d if len(kernel_shape) == 1 else nnf.avg_pool2d
        means = pool(padded, kernel_shape, window.strides)
    if padded is x:
        return means
    return means * (math.prod(kernel_shape) / window.counts(x, count_include_pad))


@operator("LpPool", since=18)
def lp_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    p: int = 2,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    window = Window(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    views = window.views(window.pad(x, 0.0))
    result: Tensor = torch.linalg.vector_norm(views, p, tuple(range(-len(kernel_shape), 0)))
    return result


# --- global ------------------------------------------------------------------


@operator("GlobalAveragePool", since=1)
def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool", since=1)
def global_max_pool(x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalLpPool", since=2)
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    result: Tensor = torch.linalg.vector_norm(x, p, tuple(range(2, x.ndim)), keepdim=True)
    return result
