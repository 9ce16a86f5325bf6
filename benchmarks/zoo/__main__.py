"""Run the zoo: ``python -m benchmarks.zoo``; ``--write`` puts the tables into docs/zoo.md."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict

from rich.console import Console
from rich.progress import track

from benchmarks.pages import write_tables
from benchmarks.zoo import page
from benchmarks.zoo.case import Case
from benchmarks.zoo.cases import CASES
from benchmarks.zoo.isolation import SECONDS, Worker
from benchmarks.zoo.run import REPRODUCED, Result


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("only", nargs="*", help="cases whose name or source holds this text")
    parser.add_argument("--quick", action="store_true", help="those of make test")
    parser.add_argument("--write", action="store_true", help="into docs/zoo.md; the rest stays")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="the most for one case")
    arguments = parser.parse_args()
    cases = [case for case in CASES.values() if chosen(case, arguments.only, arguments.quick)]
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    results = list(run_all(cases, console, arguments.seconds))
    if arguments.write:
        known = {**page.written(), **{result.name: result for result in results}}
        write_tables(page.PAGE, page.SCRIPT, page.tables([known[n] for n in CASES if n in known]))
    if arguments.json:
        rows = [asdict(result) for result in results]
        print(json.dumps({"schema": 1, "benchmark": "zoo", "results": rows}))
    elif not arguments.write:
        print("\n".join(page.networks(results)))
    console.print(page.verdict(results))


def chosen(case: Case, only: list[str], quick: bool) -> bool:
    """Whether a case was asked for."""
    wanted = not only or any(text in case.name or text in case.source for text in only)
    return wanted and (case.quick or not quick)


def run_all(cases: list[Case], console: Console, seconds: float) -> Iterator[Result]:
    """One after the other in one process; what is not reproduced is said at once."""
    worker = Worker()
    try:
        for case in track(cases, "zoo", console=console):
            result = worker.run(case, seconds)
            if result.outcome != REPRODUCED:
                console.print(f"{case.source}: {case.name}: {result.outcome} {result.reason}",
                              markup=False)  # fmt: skip
            yield result
    finally:
        worker.stop()


if __name__ == "__main__":
    main()
