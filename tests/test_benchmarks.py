"""The benchmark runs and prints what it measured; times themselves are never tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from benchmarks import gpu, learn, torch_backend
from benchmarks.pages import markers, write_tables
from benchmarks.torch_networks import NETWORKS, export


def test_record_benchmark_quick() -> None:
    """One JSON object; outputs bit-equal and operators identical, or it would have failed."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.record", "--quick", "--json"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    result = json.loads(done.stdout)
    (model,) = result["models"]
    assert (model["model"], model["digits"]) == ("digits_mlp", "linear16")
    assert {"aten::dot", "aten::copy_"} <= {entry["operator"] for entry in model["step"]}
    rows = {row["quantity"]: row for row in model["rows"]}
    assert rows["trainable parameters θ"]["extension"] == 2 * (6570 + 1)
    assert rows["operators after optimisation, trained"]["ratio"] == 1
    assert all(row["base"] > 0 and row["extension"] > 0 for row in rows.values())


def test_torch_backend_benchmark(tmp_path: Path) -> None:
    """The imported network gives plain PyTorch's outputs, or it would have failed."""
    rows = torch_backend.compare(NETWORKS["digits_cnn"], tmp_path / "n.onnx")
    rows.append(torch_backend.against_onnxruntime(NETWORKS["digits_cnn"], tmp_path / "n.onnx"))
    assert rows[0].extension < torch_backend.LARGEST_DIFFERENCE
    assert [row.against for row in rows[1:]] == ["plain PyTorch", "plain PyTorch", "onnxruntime"]
    assert len(torch_backend.table_lines(rows)) == 2 + len(rows)


def test_another_network_is_not_taken_for_the_imported_one(tmp_path: Path) -> None:
    """Negative control of the comparison above."""
    network = NETWORKS["digits_cnn"]
    plain, x = network.make().eval(), network.batch(3)
    export(plain, network.batch(2), tmp_path / "n.onnx")
    module = torch_backend.imported(tmp_path / "n.onnx")
    assert torch_backend.agree(x, plain, module) < torch_backend.LARGEST_DIFFERENCE
    assert torch_backend.agree(x, network.make().eval(), module) > 1e-2


def test_gpu_benchmark_on_the_cpu() -> None:
    """The same runs as on a GPU; the verdicts are those of the reports."""
    reports = gpu.reproductions("cpu", ["iris_binary"], [("three_node", "exhaustive")])
    lines = gpu.report_lines(reports)
    assert [line.split("|")[1:4] for line in lines[2:]] == [
        [" iris_binary ", " record ", " yes "], [" three_node ", " learn (exhaustive) ", " yes "]
    ]  # fmt: skip


def test_tables_go_between_their_markers(tmp_path: Path) -> None:
    """What stands around them stays; a page without the markers is refused."""
    begin, end = markers("benchmarks.x", "t")
    page = tmp_path / "p.md"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    write_tables(page, "benchmarks.x", {"t": ["| new |"]})
    assert page.read_text() == f"before\n{begin}\n\n| new |\n\n{end}\nafter\n"
    with pytest.raises(ValueError):
        write_tables(page, "benchmarks.x", {"u": []})


def test_learn_benchmark_quick() -> None:
    """One JSON object; the training set reproduced in every call, or it would have failed."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.learn", "call", "batch", "--quick", "--json"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    tables = json.loads(done.stdout)["tables"]
    assert [line["oracle"] for line in tables["call"]] == ["nearest-mean"] * 2
    times = [line[name] for line in tables["call"] for name in line if name.startswith("call_")]
    assert len(times) == 6 and min(times) > 0
    passes = {(line["batch"], line["buckets"]): line["seconds"] for line in tables["batch"]}
    assert {batch for batch, _ in passes} == {64, 256, 600} and min(passes.values()) > 0


def test_the_page_shows_the_tables_of_learn() -> None:
    """docs/cost.md has what the benchmark writes: every batch and bucket, every oracle."""
    page = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    tables = {}
    for name in learn.TABLES:
        begin, end = markers("benchmarks.learn", name)
        block = page.split(begin)[1].split(end)[0]
        lines = [line for line in block.splitlines() if line.startswith("|")]
        tables[name] = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    head, _, *rows = tables["batch"]
    assert [cell.partition(":")[0] for cell in head[1:]] == [
        learn.size_of(s) for s in learn.BUCKETS
    ]
    assert [int(row[0]) for row in rows] == [*learn.BATCHES, learn.FULL[0]]
    oracles = [row[1] for row in tables["call"][2:]]
    assert oracles == [*learn.ORACLES, learn.ORACLES[0]]
    assert [row[0] for row in tables["size"][2:]][-3:] == ["60000", "15000", "15000"]
    assert "60 000 × 784 bytes" in tables["step"][0]
