"""Timing two things in turns, and the row of a table that comes of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

# A comparison makes at least ``repeats`` rounds, and more while it has taken less than this.
SECONDS = 0.5
MOST_ROUNDS = 1000
# Fast calls are timed in groups that take about this long.
GROUP_SECONDS = 1e-3


@dataclass(frozen=True)
class Row:
    """One comparison; the numbers are medians.

    Attributes:
        quantity: what was measured.
        against: what ``base`` is.
        base: its value.
        extension: the value with the extension.
        unit: of both.
        repeats: measurements of each.
        identical: for lists, whether they are equal in order; None for numbers.
    """

    quantity: str
    against: str
    base: float
    extension: float
    unit: str
    repeats: int = 1
    identical: bool | None = None

    @property
    def ratio(self) -> float | None:
        """Extension / base."""
        return self.extension / self.base if self.base else None

    def to_json(self) -> dict[str, Any]:
        """All fields and the ratio."""
        return {**dataclasses.asdict(self), "ratio": self.ratio}


@dataclass(frozen=True)
class Candidate:
    """Something to be timed; ``prepare`` runs before each call, outside the time."""

    call: Callable[[], object]
    prepare: Callable[[], object] | None = None


def alternate(candidates: Mapping[str, Candidate], repeats: int) -> dict[str, list[float]]:
    """Seconds a call of each candidate, taken in turns; the first round is not counted."""
    groups = {name: group_size(candidate) for name, candidate in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    begin = time.perf_counter()
    for done in range(MOST_ROUNDS):
        if done >= repeats and time.perf_counter() - begin > SECONDS:
            break
        for name, candidate in candidates.items():
            seconds[name].append(seconds_of(candidate, groups[name]))
    return seconds


def group_size(candidate: Candidate) -> int:
    """How many calls are timed as one; 1 where something is prepared before each."""
    seconds_of(candidate, 1)
    once = seconds_of(candidate, 1)
    return 1 if candidate.prepare else max(1, round(GROUP_SECONDS / once))


def seconds_of(candidate: Candidate, calls: int) -> float:
    """Wall time of one of ``calls`` calls."""
    if candidate.prepare is not None:
        candidate.prepare()
    begin = time.perf_counter()
    for _ in range(calls):
        candidate.call()
    return (time.perf_counter() - begin) / calls


def timed_row(
    quantity: str, against: str, base: list[float], extension: list[float],
    unit: str, scale: float,
) -> Row:  # fmt: skip
    """A row of two medians, ``scale`` units each."""
    return Row(
        quantity, against, median(base) * scale, median(extension) * scale, unit, len(extension)
    )
