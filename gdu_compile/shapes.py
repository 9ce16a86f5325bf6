"""Declared shapes: how people write them, and whether a tensor's sizes are allowed by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir


def list_shape(shape: ir.Shape) -> str:
    """A shape as people write it: [N, 10]."""
    dims = [dim if isinstance(dim, int) else (dim.value or "?") for dim in shape]
    return f"[{', '.join(map(str, dims))}]"


def fits(declared: Iterable[object], sizes: Sequence[int]) -> bool:
    """Whether a declared shape, in which sizes may be names or unknown, allows these sizes.

    Example:
        >>> fits(["N", None, 10], [5, 8, 10]), fits(["N", 10], [5, 8]), fits([], [5])
        (True, False, False)
    """
    dims = list(declared)
    return len(dims) == len(sizes) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(dims, sizes, strict=True)
    )
