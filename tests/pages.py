"""The pages of the docs and the examples: the commands in them, and running those."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT

from gdu_compile.cli import run

DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*/README.md"))
RUNS = ("gdu-compile ", "python examples/", "cd ")


class Command(NamedTuple):
    """An indented line of a page; ``# exits N`` at its end says which exit code is expected."""

    arguments: list[str]
    exits: int


def commands(page: Path) -> list[Command]:
    """The indented lines of a page that run gdu-compile or an example, or change the folder."""
    lines = [line.strip() for line in page.read_text().splitlines() if line.startswith("    ")]
    return [command_of(line) for line in lines if line.startswith(RUNS)]


def command_of(line: str) -> Command:
    """A line, parsed as a shell does."""
    exits = re.search(r"  # exits (\d)$", line)
    return Command(shlex.split(line, comments=True), int(exits[1]) if exits else 0)


def run_commands(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run all of a page here, in order, and compare the exit codes."""
    for arguments, exits in commands(page):
        assert run_command(arguments, monkeypatch) == exits, arguments


def run_command(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run one of them; the exit code."""
    program, *rest = arguments
    if program == "gdu-compile":
        return run(rest)
    if program == "cd":
        monkeypatch.chdir(rest[0])
        return 0
    monkeypatch.setattr("sys.argv", rest)
    runpy.run_path(rest[0], run_name="__main__")
    return 0


def missing_links(page: Path) -> list[str]:
    """What a page links to and is not there."""
    targets = re.findall(r"\]\(([^)#]+)", page.read_text())
    return [t for t in targets if not (t.startswith("https://") or (page.parent / t).exists())]
