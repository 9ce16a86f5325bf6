"""What rounding errors do to a computation in PyTorch, measured by making some.

Monte Carlo arithmetic (Parker 1997): every result that may have been rounded is moved up or down by
one rounding error, at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


def nudged(x: Tensor, generator: torch.Generator) -> Tensor:
    """Floats moved up or down by one rounding error; other tensors as they are."""
    if not x.is_floating_point():
        return x
    signs = torch.randint(0, 2, x.shape, generator=generator) * 2 - 1
    return x * (1 + signs * torch.finfo(x.dtype).eps).to(x.dtype)


class Nudging(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, the results of all operators are ``nudged``.

    Views stay what they view, and whole numbers as they are: they may be counts or indices.

    Args:
        generator: decides which go up.

    Example:
        >>> x = torch.tensor([0.1, 0.2, 3.0])
        >>> with Nudging(torch.Generator().manual_seed(0)):
        ...     y = x * 1
        >>> (y != x).tolist(), float(abs(y - x).max()) < 1e-7
        ([True, True, False], True)
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = generator

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """One operator."""
        result = func(*args, **(kwargs or {}))
        if any(each.alias_info is not None for each in func._schema.returns):
            return result
        return tree_map_only(Tensor, self.moved, result)

    def moved(self, x: Tensor) -> Tensor:
        """One result."""
        if not x.is_floating_point():
            return x
        return torch.where(x == x.round(), x, nudged(x, self.generator))
