"""The operators that sample images: Resize, GridSample, RoiAlign, DeformConv, Col2Im, NMS."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gdu_compile.errors import UnsupportedError
from gdu_compile.torch_backend.ops_unsigned import modular
from gdu_compile.torch_backend.registry import operator

Kernel = Callable[[Tensor], Tensor]

# --- Resize --------------------------------------------------------------------


@operator("Resize", since=13)
def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    antialias: int = 0,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    dims = [axis % x.ndim for axis in axes or range(x.ndim)]
    factors, lengths = _target(x, dims, scales, sizes, keep_aspect_ratio_policy)
    regions = [(0.0, 1.0)] * len(dims)
    if coordinate_transformation_mode == "tf_crop_and_resize" and roi is not None:
        ends = roi.tolist()
        regions = list(zip(ends[: len(dims)], ends[len(dims) :], strict=True))
    plain = not antialias and not exclude_outside and cubic_coeff_a == -0.75
    if plain and dims == list(range(x.ndim)):
        how = (mode, coordinate_transformation_mode, nearest_mode)
        name = _name_in_torch(x, factors, lengths, *how)
        if name:
            given = sizes is not None and sizes.numel() > 0
            return nnf.interpolate(
                x, lengths[2:] if given else None, None if given else factors[2:], name,
                True if coordinate_transformation_mode == "align_corners" else None,
            )  # fmt: skip
    result = x if x.is_floating_point() or mode == "nearest" else x.to(torch.float64)
    for dim, factor, length, region in zip(dims, factors, lengths, regions, strict=True):
        size = x.shape[dim]
        if factor == 1 and length == size and region == (0.0, 1.0):
            continue
        # onnxruntime and torch find the nearest one in float32, where 17 / 1.7 is 10.
        dtype = torch.float32 if mode == "nearest" else torch.float64
        new = torch.arange(length, dtype=dtype)
        places = _places(new, size, length, factor, region, coordinate_transformation_mode)
        if mode == "nearest":
            index = _nearest(places, nearest_mode).clamp(0, size - 1)
            result = result.index_select(dim, index.to(x.device, torch.int64))
        else:
            kernel, radius = _kernel(mode, cubic_coeff_a)
            shrink = min(factor, 1.0) if antialias else 1.0
            result = _weighted(result, dim, places, kernel, radius, shrink, bool(exclude_outside))
        if coordinate_transformation_mode == "tf_crop_and_resize":
            outside = ((places < 0) | (places > size - 1)).to(x.device)
            outside = outside.reshape((-1,) + (1,) * (x.ndim - 1 - dim))
            result = torch.where(outside, extrapolation_value, result)
    if not x.is_floating_point() and mode != "nearest":
        limits = torch.iinfo(x.dtype)
        result = result.clamp(limits.min, limits.max)
    return result.to(x.dtype)


def _name_in_torch(
    x: Tensor, factors: list[float], lengths: list[int], mode: str, how: str, nearest: str
) -> str:
    """The mode of torch's own interpolation, five times as fast, that gives the same; or none."""
    if x.ndim not in (3, 4, 5) or not x.is_floating_point() or 0 in lengths:
        return ""
    if factors[:2] != [1, 1] or lengths[:2] != list(x.shape[:2]):
        return ""
    if any(int(f * size) != n for f, size, n in zip(factors, x.shape, lengths, strict=True)):
        return ""  # torch would come to another size
    if mode == "nearest":
        same = how == "asymmetric" and nearest == "floor"
        same = same or (how in ("half_pixel", "pytorch_half_pixel") and "round" in nearest)
        return "nearest" if same and all(f >= 1 and float(f).is_integer() for f in factors) else ""
    exact = [f * size == n for f, size, n in zip(factors, x.shape, lengths, strict=True)]
    same = how == "half_pixel" or (how == "pytorch_half_pixel" and min(lengths[2:]) > 1)
    if not same and not (how == "align_corners" and all(exact)):
        return ""
    if mode == "linear":
        return ("linear", "bilinear", "trilinear")[x.ndim - 3]
    return "bicubic" if x.ndim == 4 else ""


def _target(
    x: Tensor, dims: list[int], scales: Tensor | None, sizes: Tensor | None, policy: str
) -> tuple[list[float], list[int]]:
    """Of each axis its factor and its new size."""
    if sizes is None or not sizes.numel():
        assert scales is not None
        # In float32, as onnx.shape_inference has it: 20 · 0.7 is 14.
        products = torch.tensor([x.shape[d] for d in dims], dtype=torch.float32) * scales.cpu()
        return [float(scale) for scale in scales.tolist()], [int(n) for n in products.tolist()]
    lengths = [int(size) for size in sizes.tolist()]
    factors = [length / x.shape[d] for d, length in zip(dims, lengths, strict=True)]
    if policy == "stretch":
        return factors, lengths
    common = min(factors) if policy == "not_larger" else max(factors)
    return [common] * len(dims), [int(x.shape[d] * common + 0.5) for d in dims]


def _places(
    new: Tensor, size: int, length: int, factor: float, region: tuple[float, float], mode: str
) -> Tensor:
    """Where on the old axis each place of the new one lies; on the CPU."""
    exact = factor * size
    scale = torch.full_like(new, factor)  # by a plain number torch does not divide exactly
    if mode == "align_corners":
        return new * 0 if exact == 1 else new * (size - 1) / (exact - 1)
    if mode == "asymmetric":
        return new / scale
    if mode == "tf_crop_and_resize":
        start, end = region
        if exact == 1:
            return new * 0 + (start + end) / 2 * (size - 1)
        return new * (end - start) * (size - 1) / (exact - 1) + start * (size - 1)
    half = (new + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return new * 0 if length == 1 else half
    if mode == "half_pixel_symmetric":
        return half + size / 2 * (1 - length / exact)
    if mode == "half_pixel":
        return half
    raise UnsupportedError(f"Resize: coordinate_transformation_mode {mode!r} is not in ONNX")


def _nearest(places: Tensor, mode: str) -> Tensor:
    """The one neighbour of each place."""
    places = places.to(torch.float64)  # in which half a pixel more is exact
    if mode == "floor":
        return places.floor()
    if mode == "ceil":
        return places.ceil()
    return (places - 0.5).ceil() if mode == "round_prefer_floor" else (places + 0.5).floor()


def _kernel(mode: str, a: float) -> tuple[Kernel, int]:
    """The weight of a neighbour by its distance, and the distance from which on it is 0."""
    if mode == "linear":
        return lambda t: (1 - t.abs()).clamp(min=0), 1

    def cubic(t: Tensor) -> Tensor:
        t = t.abs()
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = ((t - 5) * t + 8) * t * a - 4 * a
        return torch.where(t <= 1, near, torch.where(t < 2, far, 0))

    return cubic, 2


def _weighted(
    x: Tensor, dim: int, places: Tensor, kernel: Kernel, radius: int, shrink: float, inside: bool
) -> Tensor:
    """The mean of the neighbours, each weighted by its distance; ``inside``: not those beyond."""
    size = x.shape[dim]
    first = math.floor(-radius / shrink) + 1
    base = places.ceil() - 1  # a place on a neighbour counts as just right of it
    index = base[:, None] + torch.arange(first, 2 - first)  # [length, taps]
    weights = kernel((index - places[:, None]) * shrink)
    if inside:
        weights = torch.where((index < 0) | (index >= size), 0, weights)
    if inside or shrink != 1:
        weights = weights / weights.sum(1, keepdim=True)
    index = index.clamp(0, size - 1).to(x.device, torch.int64)
    weights = weights.to(x.device, x.dtype)
    shape = (-1,) + (1,) * (x.ndim - 1 - dim)
    parts = (
        x.index_select(dim, index[:, tap]) * weights[:, tap].reshape(shape)
        for tap in range(index.shape[1])
    )
    total = next(parts)
    for part in parts:
        total = total + part
    return total


# --- sampling at given places ---------------------------------------------------


@operator("GridSample", since=16)
def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "bilinear",
    padding_mode: str = "zeros",
) -> Tensor:  # fmt: skip
    return _grid_sample(x, grid, align_corners, mode, padding_mode)


@operator("GridSample", since=20)
def grid_sample_20(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear",
    padding_mode: str = "zeros",
) -> Tensor:  # fmt: skip
    """linear and cubic instead of bilinear and bicubic; volumes, too."""
    return _grid_sample(x, grid, align_corners, mode, padding_mode)


def _grid_sample(x: Tensor, grid: Tensor, align: int, mode: str, padding: str) -> Tensor:
    names = {"linear": "bilinear", "cubic": "bicubic"}
    mode = names.get(mode, mode)
    if x.ndim not in (4, 5) or (x.ndim == 5 and mode == "bicubic"):
        raise UnsupportedError(f"GridSample: torch has no mode {mode!r} for {x.ndim - 2} axes")
    return nnf.grid_sample(x, grid.to(x.dtype), mode, padding, bool(align))


@operator("AffineGrid", since=20)
def affine_grid(theta: Tensor, size: Tensor, *, align_corners: int = 0) -> Tensor:
    # ONNX's own body for it fails on a batch of one.
    return nnf.affine_grid(theta, size.tolist(), bool(align_corners))


@operator("RoiAlign", since=16)
def roi_align(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    offset = 0.5 if coordinate_transformation_mode == "half_pixel" else 0.0
    corners = rois * spatial_scale - offset
    extents = corners[:, 2:] - corners[:, :2]
    if not offset:
        extents = extents.clamp(min=1)
    results = []
    for start, extent, batch in zip(corners, extents, batch_indices.tolist(), strict=True):
        image = x[batch]  # [C, H, W]
        taps = []
        for i, bins in ((1, output_height), (0, output_width)):
            step = extent[i] / bins
            count = sampling_ratio or math.ceil(float(step))
            places = torch.arange(bins * count, dtype=x.dtype, device=x.device) + 0.5
            places = places / max(count, 1)
            taps.append((_neighbours(start[i] + places * step, image.shape[2 - i]), count))
        results.append(_roi(image, *taps[0], *taps[1], mode))
    if not results:
        return x.new_zeros(0, x.shape[1], output_height, output_width)
    return torch.stack(results)


def _neighbours(places: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The two neighbours of each place and their weights, 0 where it is outside the image."""
    inside = (places >= -1) & (places <= size)
    places = places.clamp(0, size - 1)
    low = places.floor()
    high = (low + 1).clamp(max=size - 1)
    right = places - low
    return [
        (low.to(torch.int64), torch.where(inside, 1 - right, 0)),
        (high.to(torch.int64), torch.where(inside, right, 0)),
    ]


def _roi(
    image: Tensor, rows: list[tuple[Tensor, Tensor]], per_row: int,
    columns: list[tuple[Tensor, Tensor]], per_column: int, mode: str,
) -> Tensor:  # fmt: skip
    """One region: the four weighted corners of every place, pooled over the places of a bin."""
    corners = torch.stack([
        image[:, row][:, :, column] * (row_weight[:, None] * column_weight)
        for row, row_weight in rows for column, column_weight in columns
    ])  # [4, C, rows, columns]  # fmt: skip
    if not per_row or not per_column:
        return corners.new_zeros(image.shape[0], 0, 0)
    values = corners.sum(0) if mode == "avg" else corners.amax(0)
    channels, height, width = values.shape
    bins = values.reshape(channels, height // per_row, per_row, width // per_column, per_column)
    return bins.mean((2, 4)) if mode == "avg" else bins.amax((2, 4))


@operator("DeformConv", since=19)
def deform_conv(
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    offset_group: int = 1,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    if x.ndim != 4:
        raise UnsupportedError(f"DeformConv over {x.ndim - 2} axes does not run in torch")
    n, channels, *sizes = x.shape
    kernel, out = list(w.shape[2:]), list(offset.shape[2:])
    taps, stride, spread = math.prod(kernel), strides or [1, 1], dilations or [1, 1]
    shifts = offset.reshape(n * offset_group, taps, 2, *out)
    places = []
    for i in range(2):
        step = torch.arange(out[i], device=x.device) * stride[i] - (pads or [0] * 4)[i]
        tap = torch.arange(kernel[i], device=x.device) * spread[i]
        step = step.reshape((-1, 1) if i == 0 else (1, -1))
        tap = (tap[:, None] if i == 0 else tap[None]).expand(kernel).reshape(-1, 1, 1)
        place = shifts[:, :, i] + (tap + step)  # [N·groups, taps, H, W]
        places.append((2 * place + 1) / sizes[i] - 1)  # as GridSample has it
    grid = torch.stack(places[::-1], -1).reshape(n * offset_group, taps * out[0], out[1], 2)
    images = x.reshape(n * offset_group, channels // offset_group, *sizes)
    seen = nnf.grid_sample(images, grid.to(x.dtype), align_corners=False)
    seen = seen.reshape(n, offset_group, -1, taps, *out)
    if mask is not None:
        seen = seen * mask.reshape(n, offset_group, 1, taps, *out)
    columns = seen.reshape(n, group, channels // group * taps, math.prod(out))
    rows = w.reshape(group, w.shape[0] // group, -1)
    result = (rows @ columns).reshape(n, w.shape[0], *out)
    return result if b is None else result + b[:, None, None]


# --- images out of parts --------------------------------------------------------


@operator("Col2Im", since=18)
@modular
def col2im(
    x: Tensor,
    image_shape: Tensor,
    block_shape: Tensor,
    *,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    sizes, block = image_shape.tolist(), block_shape.tolist()
    rank = len(sizes)
    spread, stride = dilations or [1] * rank, strides or [1] * rank
    before, after = (pads or [0] * 2 * rank)[:rank], (pads or [0] * 2 * rank)[rank:]
    whole = [b + size + a for b, size, a in zip(before, sizes, after, strict=True)]
    index = torch.zeros((), dtype=torch.int64, device=x.device)
    taps, places = [1] * rank, [1] * rank
    for i in range(rank):  # index: [*block, *places] → a place in the padded image
        tap = torch.arange(block[i], device=x.device) * spread[i]
        count = (whole[i] - (block[i] - 1) * spread[i] - 1) // stride[i] + 1
        place = torch.arange(count, device=x.device) * stride[i]
        taps[i], places[i] = block[i], count
        shape = [1] * 2 * rank
        shape[i] = block[i]
        tap = tap.reshape(shape)
        shape[i], shape[rank + i] = 1, count
        index = index * whole[i] + (tap + place.reshape(shape))
    columns = x.reshape(x.shape[0], -1, index.numel())
    image = columns.new_zeros(*columns.shape[:2], math.prod(whole))
    image = image.index_add(2, index.reshape(-1), columns)
    image = image.reshape(*columns.shape[:2], *whole)
    for i in range(rank):
        image = image.narrow(2 + i, before[i], sizes[i])
    return image


# --- which boxes -----------------------------------------------------------------


@operator("NonMaxSuppression", since=11)
def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    max_output_boxes_per_class: Tensor | None = None,
    iou_threshold: Tensor | None = None,
    score_threshold: Tensor | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    most = 0 if max_output_boxes_per_class is None else int(max_output_boxes_per_class)
    overlap = 0.0 if iou_threshold is None else float(iou_threshold)
    least = -math.inf if score_threshold is None else float(score_threshold)
    chosen = []
    for batch, (corners, rows) in enumerate(zip(boxes, scores, strict=True)):
        close = (_overlaps(corners, center_point_box) > overlap).cpu()  # [boxes, boxes]
        for label, row in enumerate(rows.cpu()):
            order = row.argsort(descending=True, stable=True)
            taken: list[int] = []
            for box in order[row[order] > least].tolist():
                if len(taken) >= most:
                    break
                if not close[box, taken].any():
                    taken.append(box)
            chosen += [(batch, label, box) for box in taken]
    return torch.tensor(chosen, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _overlaps(boxes: Tensor, centred: int) -> Tensor:
    """Intersection over union of every two boxes; 0 where one has no area."""
    if centred:
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        low, high = centre - half, centre + half
    else:
        low, high = (
            torch.minimum(boxes[:, :2], boxes[:, 2:]),
            torch.maximum(boxes[:, :2], boxes[:, 2:]),
        )
    area = (high - low).prod(1)
    shared = torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)
    shared = shared.clamp(min=0).prod(2)
    union = area[:, None] + area - shared
    proper = (area[:, None] > 0) & (area > 0) & (union > 0)
    return torch.where(proper, shared / torch.where(proper, union, 1), 0)
