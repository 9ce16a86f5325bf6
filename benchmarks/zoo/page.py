"""The tables of docs/zoo.md, from the results of a run and back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.pages import markers
from benchmarks.zoo.run import CRASH, NO_WEIGHTS, NOT_RUN, REFUSED, REPRODUCED, WRONG, Result

PAGE = Path(__file__).resolve().parents[2] / "docs" / "zoo.md"
SCRIPT = "benchmarks.zoo"
LONGEST = 220
"""Characters of a reason."""
COUNTED = (REPRODUCED, REFUSED, WRONG, CRASH)
"""Outcomes of networks that onnxruntime runs and that have weights."""


def tables(results: Sequence[Result]) -> dict[str, list[str]]:
    """Name → lines: the counts, the networks with weights, and the others."""
    return {
        "summary": summary(results),
        "networks": networks(results),
        "others": others(results),
    }


def summary(results: Sequence[Result]) -> list[str]:
    """Counts by source, and what they say in a sentence."""
    columns = (*COUNTED, NO_WEIGHTS, NOT_RUN)
    lines = [f"| source | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    groups = {group_of(result.source): None for result in results}
    for group in groups:
        counts = Counter(r.outcome for r in results if group_of(r.source) == group)
        lines.append(f"| {group} | {' | '.join(str(counts[c]) for c in columns)} |")
    counts = Counter(result.outcome for result in results)
    lines.append(f"| *all* | {' | '.join(str(counts[c]) for c in columns)} |")
    return [*lines, "", verdict(results)]


def group_of(source: str) -> str:
    """The package."""
    return source.partition(",")[0]


def verdict(results: Sequence[Result]) -> str:
    """How many of those that onnxruntime runs and that have weights are reproduced."""
    counts = Counter(result.outcome for result in results)
    counted = sum(counts[outcome] for outcome in COUNTED)
    return (
        f"Of {counted} networks that onnxruntime runs and that have weights, "
        f"{counts[REPRODUCED]} are reproduced and {counts[REFUSED]} are refused "
        f"({counts[REFUSED] / max(counted, 1):.1%}; the aim is at most 5%); {counts[WRONG]} are "
        f"wrong, and {counts[CRASH]} end in an internal error."
    )


def networks(results: Sequence[Result]) -> list[str]:
    """A row for each network with weights."""
    lines = ["| model | source | opset | IR | parameters | result | reason |",
             "|---|---|---:|---:|---:|---|---|"]  # fmt: skip
    for r in results:
        if r.outcome in COUNTED:
            outcome = r.outcome if r.outcome == REPRODUCED else f"**{r.outcome}**"
            lines.append(f"| {r.name} | {r.source} | {number(r.opset)} | {number(r.ir_version)} "
                         f"| {number(r.parameters)} | {outcome} | {cell(r.reason)} |")  # fmt: skip
    return lines


def number(value: int | None) -> str:
    """With spaces between thousands, as the other pages have them; nothing for None."""
    return "" if value is None else f"{value:,}".replace(",", " ")


def others(results: Sequence[Result]) -> list[str]:
    """The networks that are not counted, and why."""
    lines = ["| model | source | result | reason |", "|---|---|---|---|"]
    for r in results:
        if r.outcome not in COUNTED:
            lines.append(f"| {r.name} | {r.source} | {r.outcome} | {cell(r.reason)} |")
    return lines


def cell(text: str) -> str:
    """A text as a cell of a table: one line, of bounded length, nothing taken for Markdown."""
    flat = " ".join(text.split())
    short = flat if len(flat) <= LONGEST else f"{flat[:LONGEST]} …"
    for sign in "\\|<>*_`[]":
        short = short.replace(sign, f"\\{sign}")
    return short


def written() -> dict[str, Result]:
    """Name → result, as the page has it; times are not on it."""
    text = PAGE.read_text(encoding="utf-8")
    found: dict[str, Result] = {}
    for name in ("networks", "others"):
        begin, end = markers(SCRIPT, name)
        lines = [line for line in text.split(begin)[1].split(end)[0].splitlines() if line]
        for line in lines[2:]:
            result = result_of([part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]])
            found[result.name] = result
    return found


def result_of(cells: list[str]) -> Result:
    """A row of one of the two tables of networks."""
    name, source, *numbers, outcome, reason = cells
    opset, ir_version, parameters = [integer(text) for text in numbers] or [None] * 3
    return Result(name, source, outcome.strip("*"), re.sub(r"\\(.)", r"\1", reason),
                  opset, ir_version, parameters)  # fmt: skip


def integer(text: str) -> int | None:
    """What ``number`` has written."""
    return int(text.replace(" ", "")) if text else None
