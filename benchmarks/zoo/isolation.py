"""Cases in a process of their own: one that takes the process down with it is a result, too."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess

from benchmarks.zoo.case import Case
from benchmarks.zoo.run import CRASH, Result

SECONDS = 600
"""For one case."""


class Worker:
    """A process that runs cases one after the other, and is replaced when it has died."""

    def __init__(self) -> None:
        self.context: SpawnContext = multiprocessing.get_context("spawn")
        self.process: SpawnProcess | None = None
        self.connection: Connection | None = None

    def run(self, case: Case, seconds: float = SECONDS) -> Result:
        """The result of a case; *crash* when the process ends, or takes too long."""
        connection = self.start()
        connection.send(case)
        try:
            if connection.poll(seconds):
                result: Result = connection.recv()
                return result
            reason = f"no result after {seconds:.0f} s"
        except EOFError:
            assert self.process is not None
            self.process.join()
            reason = f"the process ended with exit code {self.process.exitcode}"
        self.stop(seconds=0)
        return Result(case.name, case.source, CRASH, reason)

    def start(self) -> Connection:
        """The connection to a process that lives."""
        if self.connection is None:
            self.connection, other = self.context.Pipe()
            self.process = self.context.Process(target=serve, args=(other,), daemon=True)
            self.process.start()
            other.close()
        return self.connection

    def stop(self, seconds: float = 10) -> None:
        """Let the process end; kill it after some seconds."""
        if self.process is not None and self.connection is not None:
            self.connection.close()
            self.process.join(seconds)
            self.process.kill()
            self.process.join()
        self.process = self.connection = None


def serve(connection: Connection) -> None:
    """What the process does: a case comes in, a result goes out."""
    from benchmarks.zoo.run import run

    while True:
        try:
            case = connection.recv()
        except EOFError:
            return
        connection.send(run(case))
