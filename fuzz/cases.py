"""One case: what is run on which spoiled file, and the verdict on what came of it."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuzz import archives, models
from fuzz.arena import Arena, captured
from fuzz.seeds import TARGETS, Target

MUTATORS = {".onnx": models.mutate} | dict.fromkeys(archives.PLANS, archives.mutate)
ALLOWED = (0, 1, 2)
SECONDS = 20.0
"""Processor time that a case may take; the good files take a tenth of a second."""
MEBIBYTES = 1024.0
"""Memory that a case may need beyond that of the program; the files have some kilobytes."""
MESSAGE = 40_000
"""Characters that a message may have."""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
Run = Callable[[list[str]], int]


@dataclass
class Outcome:
    """What a case did.

    Attributes:
        kind: the suffix of the spoiled file.
        how: the mutations.
        code: the exit code; None when the process died or was ended.
        seconds: processor time.
        mebibytes: the most memory beyond what the process had before.
        problems: what it should not have done; empty is well.
        message: what it said on standard error, or how it died.
    """

    kind: str
    how: str
    command: str
    code: int | None = None
    seconds: float = 0.0
    mebibytes: float = 0.0
    problems: list[str] = field(default_factory=list)
    message: str = ""

    @property
    def signature(self) -> str:
        """The same for findings that are the same fault, as far as one can see."""
        return re.sub(r"0x[0-9a-f]+|\d{3,}|'[^']*'", "_", "; ".join(self.problems))[:160]


def choose(seed: int, number: int, targets: Sequence[Target] = TARGETS) -> tuple[
    random.Random, Target, str
]:  # fmt: skip
    """The random numbers of a case, its command, and the file that is spoiled."""
    rng = random.Random(f"{seed}:{number}")
    chosen = rng.choices(targets, [target.share for target in targets])[0]
    return rng, chosen, rng.choice(chosen.mutated)


def spoil(rng: random.Random, path: Path) -> str:
    """One to three mutations of a file; says which."""
    done: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        try:
            done.append(MUTATORS[path.suffix](rng, path))
        except Exception as error:  # what is spoiled already cannot always be spoiled by a plan
            done.append(f"({type(error).__name__})")
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
    return ", ".join(done)


def execute(arena: Arena, command: Sequence[str], run: Run, outcome: Outcome) -> Outcome:
    """Run a command on what lies in the present folder, and judge it."""
    start, before = time.process_time(), peak(reset=True)
    arena.begin()
    with captured() as said:
        outcome.code = run(list(command))
    outcome.seconds = time.process_time() - start
    outcome.problems = arena.problems(outcome.code)
    outcome.mebibytes = peak() - before
    text, outcome.message = (content.decode("utf-8", "replace") for content in said)
    outcome.problems += judge(outcome, text)
    return outcome


def judge(outcome: Outcome, text: str) -> list[str]:
    """What is wrong with an exit code, its message, its cost."""
    problems = []
    said = outcome.message + text
    if outcome.code not in ALLOWED:
        problems.append(f"exit {outcome.code}: {said[-300:].strip()}")
    elif outcome.code == 2 and "--json" not in outcome.command:
        problems += message_problems(outcome.message)
    if "Traceback (most recent call last)" in said:
        problems.append(f"a traceback: {said[-300:].strip()}")
    if control := CONTROL.search(said):
        problems.append(f"the character {control[0]!r} goes to the terminal")
    if outcome.seconds > SECONDS:
        problems.append(f"{outcome.seconds:.0f} s of processor time")
    if outcome.mebibytes > MEBIBYTES:
        problems.append(f"{outcome.mebibytes:.0f} MiB of memory")
    return problems


def message_problems(message: str) -> list[str]:
    """Why a message of exit 2 is none: one error, which names something, of bounded length."""
    lines = [line for line in message.splitlines() if line.startswith("error: ")]
    if len(lines) != 1 or len(lines[0]) < 20:
        return [f"{len(lines)} errors in the message: {message[:200]}"]
    if not re.search(r"\.(onnx|npz|safetensors|pt|data)\b|'|\"|--\w|the model", message):
        return [f"the message names nothing: {message[:200]}"]
    if len(message) > MESSAGE:
        return [f"a message of {len(message)} characters: {message[:100]}"]
    return []


def peak(reset: bool = False) -> float:
    """The most memory that the process has held since the last reset, in MiB."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024
