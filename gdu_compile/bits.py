"""Arrays compared bit by bit, and how far they are apart."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from gdu_compile.digits import Array


def same_bits(a: Array, b: Array) -> bool:
    """Same dtype, shape and bytes: −0 is not 0, and NaN equals a NaN with the same bits."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.hasobject:  # strings
        return bool(np.array_equal(a, b))
    return bool(np.array_equal(raw(a), raw(b)))


def raw(array: Array) -> npt.NDArray[np.uint8]:
    """The bytes of an array."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def max_abs_diff(a: Array, b: Array) -> float:
    """max |a − b| in float64; equal infinities and equal NaNs differ by 0; shapes must agree."""
    if a.shape != b.shape or not np.issubdtype(a.dtype, np.number):
        return 0.0 if same_bits(a, b) else math.inf
    if a.size == 0:
        return 0.0
    left, right = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.abs(left - right)
    alike = (left == right) | (np.isnan(left) & np.isnan(right))
    return float(np.max(np.where(alike, 0.0, np.nan_to_num(difference, nan=math.inf))))
