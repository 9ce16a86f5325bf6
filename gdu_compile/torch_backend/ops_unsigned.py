"""Unsigned 16, 32 and 64 bit integers: torch stores them, but hardly calculates with them.

Two detours make an operator work for them.  ``modular`` reinterprets the bits
as the signed type of the same width, for what only moves values or is the same
modulo 2**n (adding, multiplying, gathering).  ``by_value`` goes through int64,
for what depends on the values (dividing, ordering).  All other types pass
straight through both.
"""

from __future__ import annotations

from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from gdu_compile.errors import UnsupportedError
from gdu_compile.torch_backend.registry import Operator

F = TypeVar("F", bound=Operator)

SIGNED_OF = {
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
}


def modular(function: F) -> F:
    """``function``, run on the bits; its first input has the type of its result.

    Example:
        >>> modular(torch.add)(*torch.tensor([[65535], [2]], dtype=torch.uint16))
        tensor([1], dtype=torch.uint16)
    """

    @wraps(function)
    def run(first: Any, *others: Any, **attributes: Any) -> Any:
        signed = SIGNED_OF.get(first.dtype) if isinstance(first, Tensor) else None
        if signed is None:
            return function(first, *others, **attributes)
        inputs = [
            x.view(signed) if isinstance(x, Tensor) and x.dtype == first.dtype else x
            for x in (first, *others)
        ]
        return function(*inputs, **attributes).view(first.dtype)

    return cast(F, run)


def by_value(function: F) -> F:
    """``function``, run in int64; an int64 result gets the type of the first input again.

    Example:
        >>> by_value(torch.maximum)(*torch.tensor([[65535], [2]], dtype=torch.uint16))
        tensor([65535], dtype=torch.uint16)
    """

    @wraps(function)
    def run(first: Any, *others: Any, **attributes: Any) -> Any:
        if not isinstance(first, Tensor) or first.dtype not in SIGNED_OF:
            return function(first, *others, **attributes)
        inputs = [widen(x) if isinstance(x, Tensor) else x for x in (first, *others)]
        result = function(*inputs, **attributes)
        return result.to(first.dtype) if result.dtype == torch.int64 else result

    return cast(F, run)


def widen(x: Tensor) -> Tensor:
    """``x``, as int64 if torch cannot calculate with its type.

    Raises:
        UnsupportedError: a uint64 value does not fit.
    """
    if x.dtype not in SIGNED_OF:
        return x
    wide = x.to(torch.int64)
    if x.dtype == torch.uint64 and bool((wide < 0).any()):
        raise UnsupportedError(
            "a uint64 value of 2**63 or more meets an operator that orders or divides: torch "
            "has no such arithmetic, so cast the tensor to another type before it"
        )
    return wide
