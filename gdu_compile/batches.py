"""In which order samples are presented, and how many at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def permutations(samples: int, seed: int) -> Iterator[Indices]:
    """Endless seeded permutations of 0 … samples − 1, int64 [samples], one an epoch."""
    rng = np.random.default_rng(seed)
    while True:
        yield rng.permutation(samples)


def whole_batches(samples: int, size: int, seed: int) -> Iterator[Indices]:
    """Endless batches, int64 [size]; what is left of an epoch is dropped."""
    for order in permutations(samples, seed):
        for start in range(0, samples - size + 1, size):
            yield order[start : start + size]


def every_sample(samples: int, size: int, seed: int, *, fixed: bool) -> Iterator[Indices]:
    """Endless batches, int64 [size or fewer], that leave no sample of an epoch out: for learn.

    Args:
        samples: their number.
        size: of a batch.
        seed: of the permutations.
        fixed: the model takes batches of ``size`` only, so the last one of an epoch goes on into
            the next; otherwise it is smaller.

    Example:
        >>> batches = every_sample(5, 2, seed=0, fixed=False)
        >>> [len(next(batches)) for _ in range(4)]
        [2, 2, 1, 2]
    """
    rest = np.zeros(0, dtype=np.int64)
    for order in permutations(samples, seed):
        order = np.concatenate([rest, order])
        end = len(order) - len(order) % size if fixed else len(order)
        for start in range(0, end, size):
            yield order[start : min(start + size, end)]
        rest = order[end:]


def first_pass(samples: int, seed: int) -> Indices:
    """The order in which ``every_sample`` presents the samples for the first time: int64 [n]."""
    return next(permutations(samples, seed))


def steps_of_a_pass(samples: int, size: int) -> int:
    """Batches until every sample was presented."""
    return math.ceil(samples / size)
