"""Memory for large results."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def fresh(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor; on the CPU from numpy, which asks the system for large pages."""
    known = dtype in (torch.float32, torch.float64)
    if device.type == "cpu" and known and not torch.compiler.is_compiling():
        return torch.from_numpy(np.empty(shape, dtype=str(dtype).removeprefix("torch.")))
    return torch.empty(shape, dtype=dtype, device=device)
