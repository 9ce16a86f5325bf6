"""Hostile files: what was found stays found, new ones are refused, and the checks catch faults."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz.arena import SECRET, Arena
from fuzz.cases import Outcome
from fuzz.driver import mutation, ready, run_cases
from fuzz.seeds import TARGETS, Target
from gdu_compile import cli

CORPUS = Path(__file__).parent / "corpus"
FOUND = sorted(CORPUS.iterdir())
GOOD = Target("inspect m.onnx", ("m.onnx",))


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    """The good files, and room to run."""
    return ready(tmp_path_factory.mktemp("fuzz"))


def command_of(folder: Path) -> Target:
    """What was run on a finding."""
    return Target((folder / "command.txt").read_text().strip(), ())


def replayed(arena: Arena, number: int) -> tuple[Outcome, list[str]]:
    """A finding, beside the good files that its command reads."""
    folder = FOUND[number]
    target = command_of(folder)
    arena.lay_out(target)
    for path in folder.iterdir():
        if path.name != "command.txt":
            shutil.copy(path, arena.here)
    return Outcome("", folder.name, target.command), target.arguments


def test_corpus(arena: Arena) -> None:
    """Everything that the fuzzer has found ends in 0, 1 or 2 now, and as it should."""
    outcomes = dict(run_cases(arena, replayed, range(len(FOUND)), cli.run))
    assert len(outcomes) == len(FOUND) > 20
    wrong = {outcome.how: outcome.problems for outcome in outcomes.values() if outcome.problems}
    assert not wrong
    assert Counter(outcome.code for outcome in outcomes.values())[2] > len(FOUND) / 2


def test_corpus_is_small() -> None:
    """It stays below a megabyte."""
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 1_000_000


def test_some(arena: Arena) -> None:
    """New files of a fixed seed: good ones among them, and most refused."""
    outcomes = [outcome for _, outcome in run_cases(arena, mutation(5), range(150), cli.run)]
    wrong = {outcome.command: outcome.problems for outcome in outcomes if outcome.problems}
    assert not wrong
    codes = Counter(outcome.code for outcome in outcomes)
    assert codes[0] > 10 and codes[2] > 80


@pytest.mark.slow
def test_many(arena: Arena) -> None:
    """As above, some thousands."""
    outcomes = [outcome for _, outcome in run_cases(arena, mutation(6), range(5000), cli.run)]
    assert not {outcome.command: outcome.problems for outcome in outcomes if outcome.problems}


def test_good_files(arena: Arena) -> None:
    """Unspoiled, every command ends in 0, and a model that is loaded on trial is none to report."""

    def unspoiled(arena: Arena, number: int) -> tuple[Outcome, list[str]]:
        arena.lay_out(TARGETS[number])
        return Outcome("", "", TARGETS[number].command), TARGETS[number].arguments

    outcomes = [o for _, o in run_cases(arena, unspoiled, range(len(TARGETS)), cli.run)]
    assert not {o.command: (o.code, o.message) for o in outcomes if o.code or o.problems}


def test_the_same_seed_gives_the_same_files(arena: Arena) -> None:
    """A case is its seed and its number."""

    def files(number: int) -> dict[str, bytes]:
        mutation(7)(arena, number)
        return {p.name: p.read_bytes() for p in arena.here.iterdir() if p.is_file()}

    here = Path.cwd()
    try:
        assert [files(n) for n in range(9)] == [files(n) for n in range(9)]
        assert files(1) != files(2)
    finally:
        os.chdir(here)


# --- negative controls: a program that misbehaves is caught ---------------------

Fault = Callable[[list[str]], int]


def whole(arena: Arena, number: int) -> tuple[Outcome, list[str]]:
    """Nothing is spoiled."""
    arena.lay_out(GOOD)
    return Outcome(".onnx", "", GOOD.command), GOOD.arguments


def says(text: str, code: int = 2) -> Fault:
    """Prints a text to standard error, and exits so."""

    def run(_: list[str]) -> int:
        os.write(2, text.encode())
        return code

    return run


def writes(path: str, code: int = 2, text: str = "error: m.onnx: is no good at all\n") -> Fault:
    """Writes a file, and exits so."""

    def run(_: list[str]) -> int:
        Path(path).write_bytes(b"half")
        return says(text if code == 2 else "", code)([])

    return run


def removes(_: list[str]) -> int:
    """Removes an input."""
    Path("m.onnx").unlink()
    return 0


def reads(_: list[str]) -> int:
    """Reads what lies outside."""
    return 0 if Path("../secret.bin").read_bytes() else 1


def leaks(_: list[str]) -> int:
    """What lies outside is in the output, however it got there."""
    Path("out/o.onnx").write_bytes(SECRET)
    return 0


def crashes(_: list[str]) -> int:
    """Dies as a library does."""
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


def hangs(_: list[str]) -> int:
    """Never ends."""
    while True:
        pass


def sleeps(_: list[str]) -> int:
    """Never ends, and takes no time."""
    time.sleep(1000)
    return 0


def runs_something(_: list[str]) -> int:
    """Starts a program."""
    return os.system("true")


def runs_python(_: list[str]) -> int:
    """Starts an interpreter, but not on what a model is loaded with on trial."""
    return subprocess.run([sys.executable, "-P", "-c", "pass"], check=False).returncode


def eats(_: list[str]) -> int:
    """Takes more memory than it should."""
    return 0 if len(b"\1" * (1100 << 20)) else 1


def internal(_: list[str]) -> int:
    """Fails in the program itself."""
    return cli.run(["inspect", "m.onnx", "--no-such-flag"]) + 1


def emits(_: list[str]) -> int:
    """A name of the file became code."""
    Path("out/o.py").write_text("x = __import__('os').system('true')\n")
    return 0


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (writes("canary"), "changed outside of the output folder: around/here/canary"),
        (writes("../canary"), "open of "),
        (writes("/tmp/gdu-fuzz-canary"), "open of /tmp/gdu-fuzz-canary"),
        (writes("out/o.onnx"), "exit 2, but written: around/here/out/o.onnx"),
        (writes("out/o.onnx", 0), "o.onnx cannot be read back"),
        (removes, "os.remove of "),
        (reads, "read ../secret.bin"),
        (leaks, "o.onnx holds the secret"),
        (runs_something, "os.system"),
        (runs_python, "subprocess.Popen"),
        (emits, "the source runs __import__"),
        (internal, "exit 3"),
        (says("error: m.onnx: is no good at all\n", 130), "exit 130"),
        (says(""), "0 errors in the message"),
        (says("error: bad\n"), "1 errors in the message"),
        (says("error: it cannot be used at all\n"), "the message names nothing"),
        (says(f"error: m.onnx {'n' * 99_999}\n"), "a message of 100014 characters"),
        (says("error: m.onnx: is \x1b[2J no good\n"), "'\\x1b' goes to the terminal"),
        (says("Traceback (most recent call last):\n", 0), "a traceback"),
        (crashes, "the process died (SIGSEGV)"),
        (hangs, "took too long in File"),
        (sleeps, "took too long in File"),
        (eats, "MiB of memory"),
    ],
)  # fmt: skip
def test_faults_are_caught(arena: Arena, fault: Fault, found: str) -> None:
    """Each fault is found, and the next case is well again."""

    def faulty(arena: Arena, number: int) -> tuple[Outcome, list[str]]:
        outcome, command = whole(arena, number)
        return outcome, ["fault"] if number == 0 else command

    def run(command: list[str]) -> int:
        return fault(command) if command == ["fault"] else cli.run(command)

    outcomes = [
        o
        for _, o in run_cases(
            arena, faulty, range(2), run, seconds=1.0 if fault in (hangs, sleeps) else 20.0
        )
    ]
    Path("/tmp/gdu-fuzz-canary").unlink(missing_ok=True)
    problems = "; ".join(outcomes[0].problems)
    assert found in problems
    assert [(outcome.code, outcome.problems) for outcome in outcomes[1:]] == [(0, [])]
