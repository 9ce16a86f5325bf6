"""Tables in the docs that a benchmark writes, between markers that name the command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def markers(script: str, name: str) -> tuple[str, str]:
    """What stands before and after a table."""
    return f"<!-- {name} table: python -m {script} --write -->", f"<!-- end of {name} table -->"


def write_tables(page: Path, script: str, tables: Mapping[str, Sequence[str]]) -> None:
    """Replace the tables of a page.

    Args:
        page: a Markdown file.
        script: the benchmark, as it stands in the markers: ``benchmarks.matrix``.
        tables: name → lines.

    Raises:
        ValueError: the page has no such markers.
    """
    text = page.read_text(encoding="utf-8")
    for name, lines in tables.items():
        begin, end = markers(script, name)
        before, rest = text.split(begin)
        text = before + "\n".join([begin, "", *lines, "", end]) + rest.split(end)[1]
    page.write_text(text, encoding="utf-8")
