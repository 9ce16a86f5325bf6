"""How well the oracles' networks answer: ``python -m benchmarks.accuracy``; ``--write`` puts the
tables into docs/oracles.md.

Every cell is a whole compile, with its confirmation, on four fifths of the data; counted are the
right answers of the network that gradient descent trained, on the last fifth.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.pages import write_tables
from gdu_compile import compiler
from gdu_compile.errors import GduError
from gdu_compile.report import Report

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "oracles.md"
MODELS = ("digits_linear", "digits_mlp", "digits_probs", "digits_cnn", "digits_attention",
          "digits_gru", "iris_binary", "three_node")  # fmt: skip
ORACLES = ("nearest-mean", "ridge", "perceptron", "sgd", "adam", "evolution")
HELD_OUT = 0.2
LONG = {(model, "evolution") for model in ("digits_cnn", "digits_attention", "digits_gru")}
"""A step takes 0.05 to 0.3 s, and a compile runs all of them eight times."""
Line = dict[str, Any]


def measured(models: Sequence[str], oracles: Sequence[str], kept: Path | None) -> Iterator[Line]:
    """One line for each model and oracle that go together; those of the file are not run again."""
    known: dict[tuple[str, str], Line] = {}
    if kept is not None and kept.exists():
        for line in map(json.loads, kept.read_text(encoding="utf-8").splitlines()):
            known[line["model"], line["oracle"]] = line
    for model in models:
        for oracle in oracles:
            if (model, oracle) in known:
                yield known[model, oracle]
            elif (model, oracle) not in LONG:
                line = line_of(model, oracle)
                if kept is not None:
                    with kept.open("a", encoding="utf-8") as file:
                        file.write(f"{json.dumps(line)}\n")
                yield line


def line_of(model: str, oracle: str) -> Line:
    """The figures, or why the oracle does not fit."""
    try:
        return {"model": model, "oracle": oracle, **figures(report_of(model, oracle))}
    except GduError as error:
        return {"model": model, "oracle": oracle, "refused": str(error)}


def report_of(model: str, oracle: str) -> Report:
    """What a compile reports.  All samples of the 3-node network are its training set."""
    small = model == "three_node"
    data = model if small else model.partition("_")[0]
    return compiler.compile(
        ROOT / "models" / f"{model}.onnx", oracle=oracle, data=ROOT / "models" / f"{data}.npz",
        hold_out=0.0 if small else HELD_OUT,
    ).report  # fmt: skip


def figures(report: Report) -> Line:
    """The accuracies, and how near PyTorch's own run comes.

    Raises:
        RuntimeError: the network did not reproduce the algorithm.
    """
    if not report.reproduced or report.accuracy is None:
        raise RuntimeError(f"{report.model}: not reproduced")
    found: Line = {"untrained": report.accuracy["base"], "network": report.accuracy["trained"]}
    if report.original is not None:
        found |= {
            "pytorch": report.original.accuracy, "step": report.original.step_difference,
            "agrees": report.original.agrees, "difference": report.original.max_relative_diff,
            "tolerance": report.original.tolerance, "vague": report.original.vague,
        }  # fmt: skip
    return found


def accuracy_table(lines: Sequence[Line]) -> list[str]:
    """Models × oracles: the network, and PyTorch's own run where there is one."""
    cells = {(line["model"], line["oracle"]): accuracy_cell(line) for line in lines}
    untrained = {line["model"]: line["untrained"] for line in lines if "untrained" in line}
    oracles = list(dict.fromkeys(line["oracle"] for line in lines))
    head = ["| model | untrained | " + " | ".join(f"`{oracle}`" for oracle in oracles) + " |",
            "|---|" + "---:|" * (1 + len(oracles))]  # fmt: skip
    return head + [
        f"| {model} | {share(before)} | "
        + " | ".join(cells.get((model, oracle), "") for oracle in oracles) + " |"
        for model, before in untrained.items()
    ]  # fmt: skip


def accuracy_cell(line: Line) -> str:
    """``96.66 = 96.66``; the second is PyTorch's."""
    if "network" not in line:
        return "–"
    if "pytorch" not in line:
        return share(line["network"])
    sign = "=" if line["network"] == line["pytorch"] else "≠"
    return f"{share(line['network'])} {sign} {share(line['pytorch'])}"


def difference_table(lines: Sequence[Line]) -> list[str]:
    """How near the network's own computation and PyTorch's come."""
    head = ["| model | oracle | a step differs by | the weights, in the end | tolerance "
            "| weights that cannot be compared |", "|---|---|---:|---:|---:|---|"]  # fmt: skip
    return head + [
        f"| {line['model']} | `{line['oracle']}` | {line['step']:.0e} | {line['difference']:.0e} "
        f"| {line['tolerance']:.0e}{'' if line['agrees'] else ', not kept'} "
        f"| {', '.join(line['vague'])} |"
        for line in lines if "step" in line
    ]  # fmt: skip


def share(number: float) -> str:
    """Per cent."""
    return f"{100 * number:.2f}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--oracles", nargs="+", default=ORACLES)
    parser.add_argument("--keep", type=Path, help="a file of lines measured, which it adds to")
    parser.add_argument("--write", action="store_true", help="into docs/oracles.md")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    arguments = parser.parse_args()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    lines = []
    for line in measured(arguments.models, arguments.oracles, arguments.keep):
        console.print(line)
        lines.append(line)
    tables = {"accuracy": accuracy_table(lines), "difference": difference_table(lines)}
    if arguments.write:
        write_tables(PAGE, "benchmarks.accuracy", tables)
    if arguments.json:
        print(json.dumps({"schema": 1, "benchmark": "accuracy", "lines": lines}))
    else:
        console.print("\n\n".join("\n".join(rows) for rows in tables.values()))


if __name__ == "__main__":
    main()
