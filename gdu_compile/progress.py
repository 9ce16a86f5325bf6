"""Progress of long work, on standard error, and only where a person is watching."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def training_progress(steps: int, *, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar over optimizer steps; yields the callback, or None when nobody is watching."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("training", total=steps)
        yield lambda done, total: bar.update(task, completed=done, total=total)
