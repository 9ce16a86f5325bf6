"""The docs are true: their commands run, the README's table is what is printed, docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path
from typing import Any

import gdu_compile.passes
import pytest
from conftest import ROOT
from pages import DOCS, EXAMPLES, commands, missing_links, run_commands

import gdu_compile
import gdu_compile.oracles
import gdu_compile.oracles.traced
import gdu_compile.torch_backend
from benchmarks import figures
from gdu_compile.cli import run


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_commands(page: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, from the root of a checkout; all exit 0."""
    assert {command.exits for command in commands(page)} <= {0}
    run_commands(page, monkeypatch)


def test_there_are_commands_to_test() -> None:
    """The check above does not pass because nothing was found."""
    assert len(commands(ROOT / "README.md")) == 6
    assert len(commands(ROOT / "docs" / "commands.md")) == 9
    assert len(commands(ROOT / "docs" / "learn.md")) == 11
    assert len(commands(ROOT / "docs" / "torch.md")) == 3
    assert len(commands(ROOT / "docs" / "theory.md")) == 4
    assert sum(len(python_blocks(page)) for page in DOCS) >= 2


def demo_arguments() -> list[str]:
    """What `make demo` runs."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"\$\(BIN\)/gdu-compile (.*)", makefile)
    return shlex.split(line)


def test_the_demo_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, verdicts and digit errors of the README are what `make demo` prints."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    assert run(demo_arguments()) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    block = (ROOT / "README.md").read_text().split("<!-- demo table")[1].split("```")[1]
    table = [line.split() for line in block.splitlines() if line.strip(" ─")]
    assert len(table) > 12
    # What torch measures differs between machines in its last bits; all else is exact.
    exact = [row for row in table if row[0] != "torch"]
    assert [row for row in exact if row not in printed] == []


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_python_in_the_pages(page: Path, here: Path) -> None:
    """The code blocks run, one after the other."""
    names: dict[str, Any] = {}
    for code in python_blocks(page):
        exec(compile(code, page.name, "exec"), names)
    if page.name == "torch.md":
        assert [name for name, _ in names["model"].named_parameters()] == ["gdu_theta_0"]
        assert "If" not in {node.op_type for node in names["compiled"].extended.graph}


def python_blocks(page: Path) -> list[str]:
    """The Python code blocks of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


PACKAGES = (
    gdu_compile, gdu_compile.oracles, gdu_compile.oracles.traced, gdu_compile.passes,
    gdu_compile.torch_backend,
)  # fmt: skip
MODULES = sorted(
    {
        name
        for package in PACKAGES
        for name in [
            package.__name__,
            *(f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)),
        ]
    }
)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    """The examples in docstrings run."""
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_there_are_examples_to_test() -> None:
    """Every public function that a user calls has one that runs."""
    names = ["compile", "train", "verify", "apply", "extract", "export_torch", "inspect",
             "to_torch"]  # fmt: skip
    assert set(names) < set(gdu_compile.__all__)
    for name in names:
        assert ">>>" in (getattr(gdu_compile, name).__doc__ or ""), name


def test_links() -> None:
    """Files that the pages link to exist."""
    for page in [*DOCS, ROOT / "examples" / "README.md", *EXAMPLES]:
        assert missing_links(page) == [], page


def test_links_within_a_page() -> None:
    """What follows # in a link is a heading of the page, as GitHub spells it."""
    for page in DOCS:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
            other = page.parent / target if target else page
            assert anchor in anchors(other), (page.name, target, anchor)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_theory_has_what_the_code_cites() -> None:
    """THEORY §n and Lemma n, in messages and docstrings, are sections and lemmas of the page."""
    page = (ROOT / "docs" / "theory.md").read_text()
    sections = set(re.findall(r"^## (\d)", page, re.MULTILINE))
    lemmas = set(re.findall(r"^(?:### |\*\*)Lemma (\d)", page, re.MULTILINE))
    assert lemmas == set("123456789")
    sources = [*ROOT.glob("gdu_compile/**/*.py"), *ROOT.glob("passes/*.py")]
    text = "".join(source.read_text() for source in sources)
    cited = set(re.findall(r"THEORY §(\d)", text))
    assert {"2", "3", "4"} <= cited <= sections
    assert {"1", "2", "4"} <= set(re.findall(r"Lemmas? (\d)", text)) <= lemmas


def test_tests_that_the_theory_names_exist() -> None:
    """`tests/file.py` and `tests/file.py::test` of "See it"."""
    page = (ROOT / "docs" / "theory.md").read_text()
    named = re.findall(r"`tests/(\w+\.py)(?:::(\w+))?`", page)
    assert len(named) > 15
    for file, test in named:
        assert f"def {test}" in (ROOT / "tests" / file).read_text(), (file, test)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_figures_show_what_is_computed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn again they are the same; with one rate fewer, or another ε, they are not."""
    there = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert figures.FIGURES[name]() == there
    monkeypatch.setattr(figures, "RATES", (0.1,))
    monkeypatch.setattr(figures, "EPS", 1e-6)
    assert figures.FIGURES[name]() != there
