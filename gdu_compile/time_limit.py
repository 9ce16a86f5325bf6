"""How long one forward call may take: a file decides what is computed, and its loops may not end.

onnxruntime looks at ``RunOptions.terminate`` after every node, also inside the bodies of loops.
One thread for all calls sets it.  It looks once a second what runs, and not at all where nothing
does, so that a call costs an entry in a dict.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from gdu_compile.errors import TimeLimitError

SHORTEST, LONGEST = 0.01, 1.0
"""Seconds between two looks of the thread while something runs."""
SILENT = 4
"""Its severity of log messages: what it has to say comes as an exception."""


@dataclass(frozen=True)
class Limit:
    """What a command allows, and on which file."""

    seconds: float
    name: str

    def error(self) -> TimeLimitError:
        """What is said of a call that has taken longer."""
        return TimeLimitError(
            f"{self.name}: one forward call of it takes longer than {self.seconds:g} s "
            "(--run-limit): a Loop that does not end? Else allow more, or give fewer samples"
        )


FREE = Limit(math.inf, "the model")
PRESENT: ContextVar[Limit] = ContextVar("limit", default=FREE)
"""The limit of the command that runs; none for who runs a module or a session of his own."""


@contextmanager
def run_limit(seconds: float, name: object) -> Iterator[None]:
    """Forward calls inside take at most so many seconds each; ``name`` is the file they run."""
    before = PRESENT.set(Limit(seconds, str(name)))
    try:
        yield
    finally:
        PRESENT.reset(before)


class Deadline:
    """The end of a call of ours that runs in Python; begins now."""

    def __init__(self) -> None:
        self.limit = PRESENT.get()
        self.at = time.monotonic() + self.limit.seconds

    def check(self) -> None:
        """Raise TimeLimitError when it is past."""
        if time.monotonic() > self.at:
            raise self.limit.error()


class Watch:
    """The thread that ends calls of onnxruntime, and the calls that it knows of."""

    def __init__(self) -> None:
        self.running: dict[ort.RunOptions, float] = {}  # the options of a call → when it is due
        self.begun = threading.Event()
        self.thread: threading.Thread | None = None

    def begin(self, options: ort.RunOptions, seconds: float) -> None:
        """Watch a call; ``options.terminate`` will say whether it was ended."""
        self.running[options] = time.monotonic() + seconds
        if self.thread is None or not self.thread.is_alive():  # the first, or after a fork
            self.begun = threading.Event()
            self.thread = threading.Thread(target=self.watch, name="run-limit", daemon=True)
            self.thread.start()
        if not self.begun.is_set():
            self.begun.set()

    def end(self, options: ort.RunOptions) -> None:
        """The call is over."""
        del self.running[options]

    def watch(self) -> None:
        """End what is due, and look again; wait without looking where nothing runs."""
        while True:
            self.begun.clear()  # before the look: a call that begins after it is not missed
            running, now = list(self.running.items()), time.monotonic()
            for options, due in running:
                if due <= now:
                    options.terminate = True
            if running:
                next_due = min(due for _, due in running)
                time.sleep(min(max(next_due - now, SHORTEST), LONGEST))
            else:
                self.begun.wait()


WATCH = Watch()


def bounded(run: Callable[[ort.RunOptions | None], list[Any]]) -> list[Any]:
    """What a call of onnxruntime gives, which is to hand the options on.

    Raises:
        TimeLimitError: it has taken longer than the command allows.
    """
    limit = PRESENT.get()
    if limit.seconds == math.inf:
        return run(None)
    options = ort.RunOptions()
    options.log_severity_level = SILENT
    WATCH.begin(options, limit.seconds)
    try:
        return run(options)
    except Exception as error:  # onnxruntime's have no common public base class
        if options.terminate:
            raise limit.error() from error
        raise
    finally:
        WATCH.end(options)
