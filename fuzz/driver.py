"""Workers that can die: cases run in forked processes with limits, and are watched from outside."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from fuzz.arena import Arena
from fuzz.cases import SECONDS, Outcome, Run, choose, execute, spoil
from fuzz.seeds import TARGETS, Target, build

FORK = multiprocessing.get_context("fork")
ADDRESS_SPACE = 3 << 30
"""Bytes that a worker may map beyond what it has at its start."""
FILE_BYTES = 256 << 20
CASES_A_WORKER = 250
TICK = 0.25
Begin = Callable[[Arena, int], tuple[Outcome, list[str]]]
"""Lays a case out: its number → what is known of it, and the command."""


def preload() -> None:
    """Import once, in the parent, what every command imports."""
    import gdu_compile.cli
    import gdu_compile.torch_backend
    import gdu_compile.torch_files
    import gdu_compile.training  # noqa: F401


def apart(job: Callable[[], object]) -> None:
    """Run a job in a process of its own: threads and memory of it do not stay."""
    process = FORK.Process(target=job)
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"the good files could not be made (exit {process.exitcode})")


def ready(root: Path) -> Arena:
    """An arena with the good files."""
    preload()
    seeds = root / "seeds"
    seeds.mkdir(parents=True)
    apart(lambda: build(seeds))
    return Arena(root / "arena", seeds)


def mutation(seed: int, targets: Sequence[Target] = TARGETS) -> Begin:
    """Lays out case after case of a seed."""

    def begin(arena: Arena, number: int) -> tuple[Outcome, list[str]]:
        rng, chosen, name = choose(seed, number, targets)
        arena.lay_out(chosen)
        how = spoil(rng, arena.here / name)
        return Outcome(Path(name).suffix, how, chosen.command), chosen.arguments

    return begin


def work(link: Connection, arena: Arena, begin: Begin, numbers: range, run: Run) -> None:
    """A worker: cases one after the other, told to the parent before and after each."""
    limits(arena)
    for number in numbers:
        outcome, command = begin(arena, number)
        link.send((number, outcome, False))
        execute(arena, command, run, outcome)
        link.send((number, outcome, True))
        link.recv()  # the parent may want to keep the files
    os._exit(0)  # no clean-up: what a mutation left in memory is not touched again


def limits(arena: Arena) -> None:
    """Bounds that the system keeps; faults of libraries leave their stack in ``died``."""
    sys.dont_write_bytecode = True
    # Where a test runner has replaced them, they would not see what captured() redirects.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    faulthandler.enable((arena.seeds.parent / "died").open("w"), all_threads=False)


def run_cases(
    arena: Arena, begin: Begin, numbers: range, run: Run, seconds: float = SECONDS
) -> Iterator[tuple[int, Outcome]]:
    """Every case with its outcome; a worker that dies or hangs costs its own case only.

    Args:
        arena: where they run.
        begin: lays them out.
        numbers: which ones.
        run: the command line: arguments → exit code.
        seconds: processor time after which a worker is ended; four times that on the clock.
    """
    at, tries = numbers.start, 0
    while at < numbers.stop:
        part = range(at, min(at + CASES_A_WORKER, numbers.stop))
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=work, args=(theirs, arena, begin, part, run))
        process.start()
        theirs.close()
        try:
            for number, outcome in watched(process, ours, arena, seconds):
                at = number + 1
                yield number, outcome
        finally:
            process.kill()
        tries = tries + 1 if at == part.start else 0
        if tries == 3:
            raise RuntimeError(f"three workers ended before case {at}")


def watched(
    process: multiprocessing.context.ForkProcess, link: Connection, arena: Arena, seconds: float
) -> Iterator[tuple[int, Outcome]]:
    """The outcomes of one worker until it ends."""
    assert process.pid is not None
    open_case: tuple[int, Outcome] | None = None
    start, ticks = 0.0, 0
    while True:
        try:
            if not link.poll(TICK):
                ticks += 1
                # Ticks, not the clock: where everything is paused, they are, too.
                if used(process.pid) - start > seconds + 2 or ticks * TICK > 4 * seconds:
                    os.kill(process.pid, signal.SIGABRT)
                continue
            number, outcome, done = link.recv()
        except EOFError:
            break
        start, ticks = used(process.pid), 0
        open_case = None if done else (number, outcome)
        if done:
            yield number, outcome
            link.send(None)
    process.join()
    link.close()
    if open_case is not None:
        yield died(*open_case, process.exitcode or 0, arena)


def used(pid: int) -> float:
    """Processor time of a process so far, in seconds; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def died(number: int, outcome: Outcome, exit_code: int, arena: Arena) -> tuple[int, Outcome]:
    """The outcome of a case in which the worker ended."""
    outcome.message = (arena.seeds.parent / "died").read_text(errors="replace")
    name = signal.Signals(-exit_code).name if exit_code < 0 else f"exit {exit_code}"
    what = "took too long" if exit_code == -signal.SIGABRT and "Aborted" in outcome.message else ""
    lines = [line.strip() for line in outcome.message.splitlines() if "File " in line]
    outcome.problems = [f"the process died ({name}) {what} in {' < '.join(lines[:3])}"]
    return number, outcome


def clock() -> float:
    """Seconds, for --seconds."""
    return time.monotonic()
