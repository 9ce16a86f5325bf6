"""Everything that says CUDA, on a GPU: reproduction of all models, the speed of the torch side.

``python -m benchmarks.gpu [--device cuda] [--write]``.  ``--write`` puts the tables into
docs/gpu.md, with the date and the card.  Without a GPU it says so, and leaves the page as it is.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

import gdu_compile
from benchmarks.pages import write_tables
from benchmarks.torch_backend import compare, table_lines
from benchmarks.torch_networks import NETWORKS
from gdu_compile.report import Report

ROOT = Path(__file__).resolve().parent.parent
MODELS, PAGE = ROOT / "models", ROOT / "docs" / "gpu.md"
RECORD = ("digits_linear", "digits_mlp", "digits_cnn", "digits_attention", "digits_gru",
          "digits_probs", "iris_binary")  # fmt: skip
LEARN = (("digits_linear", "nearest-mean"), ("digits_mlp", "ridge"),
         ("digits_linear", "perceptron"), ("three_node", "exhaustive"))  # fmt: skip


def reproductions(
    device: str, record: Sequence[str] = RECORD, learn: Sequence[tuple[str, str]] = LEARN
) -> list[Report]:
    """Every model by record, and some by learn."""
    reports = [
        gdu_compile.compile(
            MODELS / f"{name}.onnx", MODELS / f"{name}.oracle.npz", data=data_of(name),
            device=device,
        ).report
        for name in record
    ]  # fmt: skip
    reports += [
        gdu_compile.compile(
            MODELS / f"{name}.onnx", oracle=oracle, data=data_of(name), device=device
        ).report
        for name, oracle in learn
    ]
    return reports


def data_of(name: str) -> Path:
    """The data of a model."""
    own = MODELS / f"{name}.npz"
    return own if own.exists() else MODELS / f"{name.partition('_')[0]}.npz"


def report_lines(reports: list[Report]) -> list[str]:
    """The verdicts as a Markdown table."""
    lines = ["| model | method | reproduced | largest digit error | gradient after arming |",
             "|---|---|---|---:|---:|"]  # fmt: skip
    for report in reports:
        algorithm = "" if report.algorithm is None else f" ({report.algorithm.name})"
        lines.append(
            f"| {Path(report.model).stem} | {report.method}{algorithm} | "
            f"{'yes' if report.reproduced else 'no'} | {largest_error(report):.4g} | "
            f"{report.gradient_after_arming} |"
        )
    return lines


def largest_error(report: Report) -> float:
    """Of the weights, or of the memory."""
    if report.memory is not None:
        return report.memory.digit_error or 0.0
    return max(row.digit_error or 0.0 for row in report.weights)


def main() -> None:
    """Measure, print, and write when asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/gpu.md")
    options = parser.parse_args()
    console = Console(width=140)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        console.print("no GPU is at hand: nothing was measured, docs/gpu.md is as it was")
        return
    verdicts = report_lines(reproductions(options.device))
    rows = []
    with tempfile.TemporaryDirectory(prefix="gdu-bench-") as folder:
        for name, network in NETWORKS.items():
            rows += compare(network, Path(folder) / f"{name}.onnx", options.device)
    card = torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device
    measured = f"{datetime.date.today().isoformat()}, {card}, torch {torch.__version__}"
    tables = {"measured": [measured], "reproduction": verdicts, "speed": table_lines(rows)}
    for lines in tables.values():
        console.print("\n".join(lines), markup=False)
    if options.write:
        write_tables(PAGE, "benchmarks.gpu", tables)


if __name__ == "__main__":
    main()
