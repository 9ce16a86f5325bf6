"""``python -m fuzz --seconds 300 --seed 1``: mutations, findings, and the figures as a table."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console

from fuzz.arena import Arena
from fuzz.cases import Outcome
from fuzz.driver import clock, mutation, ready, run_cases
from gdu_compile import cli
from gdu_compile.tables import new_table

ROOT = Path(__file__).resolve().parent.parent
FINDINGS = ROOT / "build" / "fuzz"


class Figures:
    """What is counted: cases and exit codes for each kind of file and mutation, the most used."""

    def __init__(self) -> None:
        self.codes: dict[str, Counter[str]] = {}
        self.plans: Counter[str] = Counter()
        self.findings: dict[str, tuple[int, int, Outcome]] = {}
        self.cases = 0
        self.seconds = self.mebibytes = 0.0

    def add(self, number: int, outcome: Outcome) -> bool:
        """Count a case; returns whether it is a finding that was not seen before."""
        self.cases += 1
        code = "died" if outcome.code is None else f"exit {outcome.code}"
        self.codes.setdefault(outcome.kind, Counter())[code] += 1
        self.plans.update(outcome.how.split(", "))
        self.seconds = max(self.seconds, outcome.seconds)
        self.mebibytes = max(self.mebibytes, outcome.mebibytes)
        if not outcome.problems:
            return False
        first, count, kept = self.findings.get(outcome.signature, (number, 0, outcome))
        self.findings[outcome.signature] = (first, count + 1, kept)
        return count == 0

    def show(self, console: Console) -> None:
        """The table, and the findings."""
        every = sorted({code for codes in self.codes.values() for code in codes})
        table = new_table("file", ">mutated", *(f">{code}" for code in every))
        for kind, codes in sorted(self.codes.items()):
            table.add_row(kind, str(codes.total()), *(str(codes[code]) for code in every))
        total = sum((codes for codes in self.codes.values()), Counter[str]())
        table.add_row("all", str(total.total()), *(str(total[code]) for code in every))
        console.print(table)
        plans = ", ".join(f"{count} {plan}" for plan, count in self.plans.most_common())
        console.print(f"mutations: {plans}", soft_wrap=True, markup=False)
        console.print(f"most: {self.seconds:.1f} s, {self.mebibytes:.0f} MiB")
        for signature, (number, count, _) in self.findings.items():
            console.print(f"case {number}, {count} times: {signature}", soft_wrap=True,
                          markup=False)  # fmt: skip
        console.print(f"{self.cases} cases, {len(self.findings)} findings")


def keep(arena: Arena, seed: int, number: int, outcome: Outcome) -> None:
    """The spoiled files and the command of a finding, below build/fuzz."""
    folder = FINDINGS / f"{seed}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(arena.here, folder, symlinks=True)
    lines = [f"gdu-compile {outcome.command}", outcome.how, *outcome.problems, outcome.message]
    (folder / "finding.txt").write_text("\n".join(lines), encoding="utf-8", errors="replace")


def main() -> int:
    """Parse, run, print; 1 when there were findings."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long (300)")
    parser.add_argument("--cases", type=int, default=10**9, help="at most so many cases")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices (0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (0)")
    chosen = parser.parse_args()
    end, figures = clock() + chosen.seconds, Figures()
    try:
        with tempfile.TemporaryDirectory(prefix="gdu-fuzz-") as folder:
            arena = ready(Path(folder))
            numbers = range(chosen.first, chosen.first + chosen.cases)
            for number, outcome in run_cases(arena, mutation(chosen.seed), numbers, cli.run):
                if figures.add(number, outcome):
                    keep(arena, chosen.seed, number, outcome)
                    print(f"case {number}: {outcome.command}: {outcome.signature}", flush=True)
                if clock() > end:
                    break
    finally:  # the figures until then, however it ends
        figures.show(Console(width=None if sys.stdout.isatty() else 120, highlight=False))
    return 1 if figures.findings else 0


if __name__ == "__main__":
    sys.exit(main())
