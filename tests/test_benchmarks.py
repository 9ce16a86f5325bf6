"""The benchmark runs and prints what it measured; times themselves are never tested."""

from __future__ import annotations

import json
import subprocess
import sys

from conftest import ROOT


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
