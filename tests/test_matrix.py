"""All seven models × each digit code × learning rates × batches; docs/stacks.md shows them all."""

from __future__ import annotations

import re

import pytest
from conftest import ALL_MODELS, ROOT

from benchmarks import matrix
from benchmarks.pages import markers
from gdu_compile.digits import CODES

PAGE = (ROOT / "docs" / "stacks.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("digits", CODES)
@pytest.mark.parametrize("model", ALL_MODELS)
def test_every_model_and_code(model: str, digits: str) -> None:
    """Rates 1e-4, 0.1, 37 × full batch and 32: bit-exact, below the bound, then gradient 0."""
    *trained, control = matrix.model_runs(model, digits)
    assert [(run.lr, run.batch_size) for run in trained] == [
        (lr, size) for lr in (1e-4, 0.1, 37.0) for size in (0, 32)
    ]
    for run in trained:
        assert run.reproduced and run.armed_at == 1 and run.gradient == 0.0, run
        assert run.measured <= run.predicted < 1, run
    assert not control.reproduced


def rows(table: str) -> list[list[str]]:
    """The cells of a table of docs/stacks.md, without its two head lines."""
    begin, end = markers("benchmarks.matrix", table)
    block = PAGE.split(begin)[1].split(end)[0]
    lines = [line for line in block.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_shows_every_model_and_code() -> None:
    """One row a model and the bound, one column a code; nothing that was not reproduced."""
    table = rows("models")
    assert [row[0] for row in table] == [*matrix.MODELS, "*bound*"]
    assert set(matrix.MODELS) == set(ALL_MODELS)
    bounds = [float(cell) for cell in table[-1][1:]]
    for row in table[:-1]:
        assert len(row) == 1 + len(CODES)
        assert all(float(cell) <= bound for cell, bound in zip(row[1:], bounds, strict=True))


def test_the_page_shows_every_optimizer() -> None:
    """Measured below the bound in every row; the cases beyond it are there too."""
    table = rows("optimizers")
    assert [row[0] for row in table] == [f"`{optimizer}`" for optimizer in matrix.CARRIED]
    for row in table:
        assert float(row[2]) <= float(row[1]) and float(row[4]) <= float(row[3]), row
    limits = rows("limits")
    assert [row[0] for row in limits] == list(matrix.BEYOND)
    for row in limits:
        if not row[5].startswith("**not reproduced**"):
            assert float(row[5]) < 1, row


def test_the_page_s_table_of_codes() -> None:
    """Parameters a weight and guaranteed steps are those of the code itself."""
    block = PAGE.split("## Digit codes")[1].split("`--digits auto`")[0]
    lines = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \|.*\| (.*) \|$", block, re.MULTILINE)
    assert [name for name, *_ in lines] == list(CODES)
    for name, bits, parameters, steps in lines:
        assert CODES[name].bits == int(bits) and -(-32 // int(bits)) == int(parameters)
        number = re.sub(r"\D", "", steps)
        assert not number or int(number) == CODES[name].exact_scalings()
