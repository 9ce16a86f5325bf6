"""What is carried: models × digit codes, optimizers × steps, with the bound beside each measured
digit error: ``python -m benchmarks.matrix``; ``--write`` puts the tables into docs/stacks.md.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

import gdu_compile
from benchmarks.pages import write_tables
from gdu_compile import carrying, training
from gdu_compile.bases import Source
from gdu_compile.digits import CODES, DEFAULT_GAIN
from gdu_compile.metadata import Extension
from gdu_compile.optimizers import OptimizerSpec
from gdu_compile.options import TrainOptions
from gdu_compile.preparation import prepare_training
from gdu_compile.report import Report, WeightRow
from gdu_compile.verification import Verifier

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "stacks.md"

MODELS = ("digits_linear", "digits_mlp", "digits_cnn", "digits_attention", "digits_gru",
          "digits_probs", "iris_binary")  # fmt: skip
RATES = (1e-4, 0.1, 37.0)
BATCHES = (0, 32)

CARRIED = (
    "SGD()", "SGD(momentum=0.9)", "SGD(momentum=0.9, nesterov=True)",
    "SGD(momentum=0.9, dampening=0.5)", "SGD(weight_decay=0.0001)",
    "SGD(momentum=0.9, weight_decay=0.0001)", "SGD(momentum=0.9, foreach=True)",
    "SGD(momentum=0.9, fused=True)", "Adam()", "Adam(amsgrad=True)", "Adam(foreach=True)",
    "Adam(fused=True)", "AdamW()", "AdamW(weight_decay=0.05)", "AdamW(amsgrad=True)",
    "AdamW(foreach=True)", "AdamW(fused=True)", "NAdam()",
    "NAdam(weight_decay=0.01, decoupled_weight_decay=True)", "RAdam()",
    "RAdam(weight_decay=0.01, decoupled_weight_decay=True)", "Adamax()", "Adamax(foreach=True)",
    "RMSprop()", "RMSprop(centered=True)", "RMSprop(momentum=0.9)", "Adagrad()",
    "Adagrad(lr_decay=0.1)", "Adadelta()", "Adadelta(foreach=True)", "Adafactor()", "ASGD()",
)  # fmt: skip
"""Optimizers that record at two parameters a float32 weight with the quiet gain."""

# label → (optimizer, options that differ, digit code)
BEYOND: dict[str, tuple[str, dict[str, Any], str]] = {
    "signs, 16 bits": ("Rprop()", {}, "linear16"),
    "signs, 1 bit": ("Rprop()", {}, "linear1"),
    "L2 decay inside Adam": ("Adam(weight_decay=0.01)", {}, "linear16"),
    "loud gain": ("Adam()", {"gain": 1.0}, "linear16"),
    "small ε": ("Adam(eps=1e-16)", {}, "linear16"),
    "small ε, quieter gain": ("Adam(eps=1e-16)", {"gain": 2.0**-92}, "linear16"),
    "ε = 0": ("Adam(eps=0)", {}, "linear16"),
    "orthogonalised": ("Muon()", {}, "linear16"),
    "decay erases": ("SGD(weight_decay=1.0)", {"lr": 1.0}, "linear16"),
    "900 steps of decay, linear": (
        "SGD(momentum=0.9, weight_decay=0.0001)", {"steps": 901}, "linear16"),
    "900 steps of decay, float-like": (
        "SGD(momentum=0.9, weight_decay=0.0001)", {"steps": 901}, "float16"),
    "900 steps of decay, powers of two": (
        "SGD(momentum=0.9, weight_decay=0.0001)", {"steps": 901}, "pow2"),
    "bfloat16 θ, 16 bits": ("SGD()", {"theta_dtype": "bfloat16"}, "linear16"),
    "bfloat16 θ, 4 bits": ("SGD()", {"theta_dtype": "bfloat16"}, "linear4"),
    "bfloat16 θ, powers of two": (
        "SGD(momentum=0.9)", {"theta_dtype": "bfloat16", "steps": 30}, "pow2"),
}  # fmt: skip
"""Where Lemmas 2 and 4 end, and what helps."""


@dataclass(frozen=True)
class Run:
    """One training run, checked.

    Attributes:
        label: the model, or the case.
        optimizer: as PyTorch writes it.
        digits: the digit code.
        lr: learning rate.
        batch_size: samples a step; 0 is the full batch.
        steps: optimizer steps.
        predicted: the bound on the digit error.
        measured: the largest digit error.
        reproduced: every bit of every weight and output.
        armed_at: after which step the network was armed.
        gradient: largest gradient after arming; None when it never armed.
    """

    label: str
    optimizer: str
    digits: str
    lr: float
    batch_size: int
    steps: int
    predicted: float
    measured: float
    reproduced: bool
    armed_at: int | None
    gradient: float | None


def paths(model: str) -> tuple[Path, Path, Path]:
    """Base, oracle and data of a model."""
    folder = ROOT / "models"
    data = folder / f"{model.partition('_')[0]}.npz"
    return folder / f"{model}.onnx", folder / f"{model}.oracle.npz", data


def model_runs(model: str, digits: str) -> Iterator[Run]:
    """One model and code: every learning rate × batch size, two steps; the untrained one last.

    The base is run once; the control, labelled ``untrained``, must not be reproduced.
    """
    base, weights, data = paths(model)
    extended = gdu_compile.compile(base, weights, digits=digits, confirm=False).extended
    facts = Extension.from_metadata(extended.metadata_props)
    options = TrainOptions(data=data, batch_size=0)
    prepared = prepare_training(extended, options, Report("matrix", model))
    verifier = Verifier(extended, Source(base), prepared.data, model)
    for lr in RATES:
        for batch_size in BATCHES:
            result = training.train(
                extended, prepared.data, loss=prepared.loss, optimizer=prepared.optimizer,
                lr=lr, steps=2, batch_size=batch_size or len(prepared.data),
            )  # fmt: skip
            verdict = verifier.check(result.theta)
            plan = carrying.Training(prepared.optimizer, lr, 2, facts.gain)
            yield Run(
                model, str(prepared.optimizer), digits, lr, batch_size, 2,
                carrying.predicted_digit_error(plan, CODES[digits]),
                largest_error(verdict.weights), verdict.reproduced,
                result.armed_at_step, result.gradient_after_arming,
            )  # fmt: skip
    yield Run("untrained", "", digits, 0, 0, 0, math.inf, math.inf,
              verifier.untrained().reproduced, None, None)  # fmt: skip


def largest_error(rows: list[WeightRow]) -> float:
    """The largest digit error of the weights."""
    return max(math.inf if row.digit_error is None else row.digit_error for row in rows)


def optimizer_run(label: str, optimizer: str, digits: str, **options: Any) -> Run:
    """One optimizer on digits_mlp and the digits, in batches of 64."""
    base, weights, data = paths("digits_mlp")
    chosen = {"lr": 1e-3, "steps": 101, "batch_size": 64, **options}
    report = gdu_compile.compile(
        base, weights, data=data, optimizer=optimizer, digits=digits, **chosen
    ).report
    plan = carrying.Training(
        OptimizerSpec.parse(optimizer), chosen["lr"], chosen["steps"],
        chosen.get("gain", DEFAULT_GAIN), chosen.get("theta_dtype", "float32"),
    )  # fmt: skip
    return Run(
        label, optimizer, digits, chosen["lr"], 64, chosen["steps"],
        carrying.predicted_digit_error(plan, CODES[digits]),
        largest_error(report.weights), bool(report.reproduced),
        report.armed_at_step, report.gradient_after_arming,
    )  # fmt: skip


# --- the three tables ---------------------------------------------------------


def models_table(say: Callable[[str], None]) -> tuple[list[Run], list[str]]:
    """Models × codes: the largest digit error over rates and batches, and the bound."""
    runs: list[Run] = []
    lines = ["| model | " + " | ".join(CODES) + " |", "|---|" + "---:|" * len(CODES)]
    for model in MODELS:
        cells = []
        for digits in CODES:
            *trained, control = model_runs(model, digits)
            runs += [*trained, control]
            good = all(run.reproduced and run.gradient == 0 for run in trained)
            good = good and not control.reproduced
            cells.append(f"{'' if good else '**not reproduced** '}"
                         f"{short(max(run.measured for run in trained))}")  # fmt: skip
            say(f"{model} {digits}: {cells[-1]}")
        lines.append(f"| {model} | {' | '.join(cells)} |")
    bounds = [runs[i * (len(RATES) * len(BATCHES) + 1)].predicted for i in range(len(CODES))]
    lines.append(f"| *bound* | {' | '.join(map(short, bounds))} |")
    return runs, lines


def optimizers_table(say: Callable[[str], None]) -> tuple[list[Run], list[str]]:
    """Optimizers: 100 steps after arming with linear16, 3000 with float16."""
    runs: list[Run] = []
    lines = [
        "| optimizer | linear16, 101 steps: bound | measured | float16, 3001 steps: bound "
        "| measured |",
        "|---|---:|---:|---:|---:|",
    ]
    for optimizer in CARRIED:
        pair = [optimizer_run("", optimizer, digits, steps=steps)
                for digits, steps in (("linear16", 101), ("float16", 3001))]  # fmt: skip
        runs += pair
        cells = [f"{short(run.predicted)} | {outcome(run)}" for run in pair]
        lines.append(f"| `{optimizer}` | {' | '.join(cells)} |")
        say(lines[-1])
    return runs, lines


def beyond_table(say: Callable[[str], None]) -> tuple[list[Run], list[str]]:
    """Where the bounds end."""
    runs: list[Run] = []
    lines = [
        "| case | optimizer | code | steps | bound | measured |",
        "|---|---|---|---:|---:|---:|",
    ]
    for label, (optimizer, options, digits) in BEYOND.items():
        run = optimizer_run(label, optimizer, digits, **{"steps": 6, **options})
        runs.append(run)
        lines.append(f"| {label} | `{optimizer}` | {digits} | {run.steps} | {short(run.predicted)} "
                     f"| {outcome(run)} |")  # fmt: skip
        say(lines[-1])
    return runs, lines


TABLES = {"models": models_table, "optimizers": optimizers_table, "limits": beyond_table}


def outcome(run: Run) -> str:
    """The measured digit error, marked when it was too large."""
    return short(run.measured) if run.reproduced else f"**not reproduced** {short(run.measured)}"


def short(number: float) -> str:
    """Three digits; ∞ where nothing is guaranteed or nothing was left."""
    return "∞" if math.isinf(number) else f"{number:.3g}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.matrix", description=__doc__)
    parser.add_argument("tables", nargs="*", choices=[[], *TABLES], help="all without a name")
    parser.add_argument("--write", action="store_true", help="into docs/stacks.md")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    arguments = parser.parse_args()
    console = Console(stderr=True, highlight=False)
    runs, tables = [], {}
    for name in track(arguments.tables or list(TABLES), console=console):
        found, tables[name] = TABLES[name](console.print)
        runs += [{"table": name, **asdict(run)} for run in found]
    if arguments.write:
        write_tables(PAGE, "benchmarks.matrix", tables)
    if arguments.json:
        infinite = {math.inf: None}
        clean = [{k: infinite.get(v, v) for k, v in run.items()} for run in runs]
        print(json.dumps({"schema": 1, "benchmark": "matrix", "runs": clean}))
    elif not arguments.write:
        print("\n\n".join("\n".join(lines) for lines in tables.values()))


if __name__ == "__main__":
    main()
