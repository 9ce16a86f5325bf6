"""Random numbers by counting: hashes of (seed, counters, place), alike in PyTorch and in the graph.

No operator is random, nothing is stored, and there is no state to carry: a step hands in its own
number.  Products stay below 2⁶², so that it is the same everywhere.  Not for secrets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

Counter = int | Tensor
Whole = TypeVar("Whole", int, Tensor, Counter)

PRIME = 2**31 - 1
FACTORS = (1_540_483_477, 1_812_433_253, 48_271)
"""Multipliers of MurmurHash2, MT19937 and MINSTD; below PRIME."""
BITS = 31
"""Of a hash."""
FRACTION = 24
"""Bits of a float32's significand."""
SUMMANDS = 12
"""Uniform numbers whose sum is taken for a normal one: its variance is 1."""


def mixed(x: Whole) -> Whole:
    """A hash of whole numbers in 0 … PRIME − 1 to 31 bits.

    Example:
        >>> mixed(torch.arange(1, 4)).tolist(), mixed(3)
        ([1969009528, 822839179, 1934775535], 1934775535)
    """
    for factor in FACTORS:
        x = x * factor % PRIME
        x = x ^ (x >> 15)
    return x


def integers(shape: Sequence[int], *counters: Counter, seed: Counter) -> Tensor:
    """Whole numbers 0 … 2³¹ − 1, each as likely as the others; int64.

    Other counters, or another seed, give other numbers.  They may be tensors that are known only
    when the graph runs, such as the ``i`` of a step.

    Args:
        shape: how many.
        counters: what the numbers belong to: the step, and a number for each use within a step.
        seed: 0 or more.

    Example:
        >>> integers([3], 7, seed=0).tolist()
        [901987134, 595512647, 114550162]
        >>> torch.equal(integers([3], torch.tensor(7), seed=0), integers([3], 7, seed=0))
        True
    """
    key: Counter = 0
    for counter in (seed, *counters):  # not alike for all: a seed and a counter change places
        key = mixed((mixed((counter + 1) % PRIME) ^ key) % PRIME)
    # Two different hashes of the key, so that no two keys give the same numbers at other places.
    places = torch.arange(math.prod(shape)) + 1
    found = mixed((mixed((places + key) % PRIME) ^ mixed(key % PRIME)) % PRIME)
    return found.reshape(list(shape))


def uniform(shape: Sequence[int], *counters: Counter, seed: Counter) -> Tensor:
    """Multiples of 2⁻²⁴ in [0, 1), float32; arguments as for ``integers``.

    Example:
        >>> uniform([3], 7, seed=0)
        tensor([0.4200, 0.2773, 0.0533])
    """
    return (integers(shape, *counters, seed=seed) >> BITS - FRACTION) * 0.5**FRACTION


def signs(shape: Sequence[int], *counters: Counter, seed: Counter) -> Tensor:
    """−1 and 1, float32, 31 from one hash; arguments as for ``integers``.

    Example:
        >>> signs([2, 4], 7, seed=0).tolist()
        [[-1.0, 1.0, 1.0, 1.0], [1.0, 1.0, -1.0, -1.0]]
    """
    count = math.prod(shape)
    words = integers([-(-count // BITS), 1], *counters, seed=seed)
    ones = (words & (1 << torch.arange(BITS))) != 0  # words x 31
    return torch.where(ones, 1.0, -1.0).reshape(-1)[:count].reshape(list(shape))


def normal(shape: Sequence[int], *counters: Counter, seed: Counter) -> Tensor:
    """Nearly normal numbers of mean 0 and variance 1, float32; arguments as for ``integers``.

    The sum of 12 uniform ones (Irwin–Hall) less its mean, so within ±6: whole numbers are added,
    and nothing is rounded but the last result, so PyTorch and the graph get the same bits.  A
    logarithm and a cosine would differ in the last one.

    Example:
        >>> normal([3], 7, seed=0)
        tensor([ 0.8422,  0.3806, -0.0748])
    """
    parts = integers([SUMMANDS, *shape], *counters, seed=seed)
    total: Tensor = (2 * parts - (2**BITS - 1)).sum(0)
    return total * 0.5 ** (BITS + 1)
