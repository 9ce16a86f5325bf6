"""One network of the zoo: where it comes from, how it is made, inputs that are legal for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from gdu_compile.digits import Array

Inputs = dict[str, Array]


@dataclass(frozen=True)
class Given:
    """A network on disk.

    Attributes:
        path: the file.
        inputs: model input → array, for one call; None to draw them.
        oracle: another export of the same network, with other weights; None to make it from
            the file.
    """

    path: Path
    inputs: Inputs | None = None
    oracle: Path | None = None


@dataclass(frozen=True)
class Case:
    """A network.

    Attributes:
        name: of its own in the whole zoo.
        source: who wrote it.
        make: puts it into a folder.
        quick: one of those that `make test` runs.
    """

    name: str
    source: str
    make: Callable[[Path], Given]
    quick: bool = False


def by_name(cases: Iterable[Case]) -> dict[str, Case]:
    """Name → case.

    Raises:
        ValueError: a name is there twice.
    """
    found: dict[str, Case] = {}
    for case in cases:
        if case.name in found:
            raise ValueError(f"two cases are called {case.name}")
        found[case.name] = case
    return found
