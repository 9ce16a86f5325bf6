"""What the learn extension costs: ``python -m benchmarks.learn``; ``--write`` puts the tables into
docs/cost.md.

Both sides of a ratio alternate within one process, so that a busy machine slows both; what is
compared are medians.  Peaks of memory are those of processes of their own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from gdu_compile.passes.insert_memory import MEMORY_BUCKET_BYTES
from rich.console import Console

from benchmarks import networks, peak
from benchmarks.pages import write_tables
from benchmarks.steps import Step, one_torch_thread
from benchmarks.timing import Candidate, alternate
from gdu_compile import compiler, model_io, runtime, workflows
from gdu_compile.arrays import read_arrays
from gdu_compile.bases import Source
from gdu_compile.confirmation import confirm, verifier_for
from gdu_compile.metadata import Extension
from gdu_compile.options import TrainOptions
from gdu_compile.preparation import prepare_training
from gdu_compile.report import Report
from gdu_compile.torch_backend import lower_to_torch

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "cost.md"
MB = 1e6

FULL, SMALL = (60_000, 784), (600, 49)
"""Samples and features of the large data set, and of the one for --quick."""
ORACLES = ("nearest-mean", "ridge", "perceptron")
BUCKETS = (64 << 20, 16 << 20, MEMORY_BUCKET_BYTES, 4 << 20, 1 << 20, 1 << 18)
BATCHES = (64, 256, 1024, 4096)
MOST_STEPS = 9
"""Steps that are timed; each of a pass takes as long as another."""
Line = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A base and its training set.

    Attributes:
        name: what to call it.
        model: the base.
        data: the samples.
    """

    name: str
    model: Path
    data: Path

    def extended(self, bucket_bytes: int | None = None) -> ir.Model:
        """The base with a memory for all samples."""
        return compiler.compile(
            self.model, oracle=peak.ORACLE, data=self.data, confirm=False,
            bucket_bytes=bucket_bytes,
        ).extended  # fmt: skip

    def step(self, extended: ir.Model, batch: int | None = None) -> Step:
        """One step on the first samples; on all of them unless said."""
        arrays = {name: header.load()[:batch] for name, header in read_arrays(self.data).items()}
        labels = torch.from_numpy(arrays.pop("y").astype(np.int64))
        facts = Extension.from_metadata(extended.metadata_props)
        (name,) = (str(value.name) for value in extended.graph.inputs)
        return Step(lower_to_torch(extended), facts.logits.output, {name: arrays["x"]}, labels)


def tasks(folder: Path, sizes: tuple[int, int]) -> list[Task]:
    """The digits, and bytes of MNIST's shape."""
    models = ROOT / "models"
    samples, features = sizes
    name = f"{samples} × {features} bytes".replace("60000", "60 000")
    return [Task("digits, 1797 × 64 float32", models / "digits_linear.onnx", models / "digits.npz"),
            Task(name, *networks.bytes_linear(folder, samples, features))]  # fmt: skip


# --- the full-batch step -------------------------------------------------------


def parameters(step: Step) -> int:
    """The size of θ."""
    return sum(theta.numel() for theta in step.module.parameters())


def step_line(task: Task, extended: ir.Model, repeats: int) -> Line:
    """A recording step, and one once armed, against the copy: read the data, write θ once.

    A digit of 8 bits stands for one byte of the data, one of 16 bits for two.
    """
    step = task.step(extended)
    size = parameters(step)
    whole = next(iter(step.inputs.values())).dtype == torch.uint8
    units = torch.ones(size, dtype=torch.uint8 if whole else torch.uint16)
    copy = Candidate(partial(torch.zeros(size).copy_, units))
    rows, classes = len(step.labels), networks.CLASSES
    z = torch.zeros(rows, classes, requires_grad=True)

    def loss_alone() -> None:
        torch.autograd.backward(torch.nn.functional.cross_entropy(z, step.labels))

    with one_torch_thread():
        recording = alternate({
            "step": Candidate(step, step.forget), "copy": copy, "loss": Candidate(loss_alone)
        }, repeats)  # fmt: skip

        armed = alternate({"armed": Candidate(step), "copy": copy}, repeats)
    return {
        "task": task.name, "parameters": size, "buckets": len(list(step.module.parameters())),
        "theta_bytes": 4 * size, "copy": median(recording["copy"]),
        "step": median(recording["step"]), "armed_step": median(armed["armed"]),
        "loss": median(recording["loss"]),
        "step_ratio": median(recording["step"]) / median(recording["copy"]),
        "armed_ratio": median(armed["armed"]) / median(armed["copy"]),
    }  # fmt: skip


def command_line(task: Task, folder: Path) -> Line:
    """The whole command: seconds, peak memory, bytes; and a verification without controls."""
    output = folder / "learnt.onnx"
    begin = time.perf_counter()
    compiled = compiler.compile(
        task.model, oracle=peak.ORACLE, data=task.data, output=output, force=True
    )
    seconds = time.perf_counter() - begin
    report = compiled.report
    if not report.reproduced or compiled.theta is None:
        raise RuntimeError(f"{task.name}: the training set was not reproduced")
    return {
        "command": seconds, **report.seconds,
        "controls": controls_seconds(task, compiled.extended, compiled.theta),
        "data_bytes": sum(h.load().nbytes for h in read_arrays(task.data).values()),
        "file_bytes": model_io.file_bytes(output),
        "step_peak": peak.peak("step", task.model, task.data, output),
        "command_peak": peak.peak("learn", task.model, task.data, output),
    }  # fmt: skip


def controls_seconds(task: Task, extended: ir.Model, theta: dict[str, Any]) -> float:
    """What the controls that train add to a confirmation."""
    prepared = prepare_training(
        extended, TrainOptions.of({"data": task.data}), Report("train", task.name)
    )
    found = []
    for retrain in (None, prepared):
        verifier = verifier_for(extended, Source(task.model), prepared, task.name)
        report = Report("train", task.name)
        confirm(report, verifier, theta, retrain=retrain)
        found.append(report.seconds["verify"] or 0.0)
    return found[1] - found[0]


def step_table(folder: Path, *, quick: bool) -> tuple[list[Line], list[str]]:
    """The full-batch step and the whole command, one column a data set."""
    lines = [
        {**step_line(task, task.extended(), 3 if quick else 9), **command_line(task, folder)}
        for task in tasks(folder, SMALL if quick else FULL)
    ]
    rows: list[tuple[str, Callable[[Line], str]]] = [
        ("θ", lambda r: f"{r['theta_bytes'] / MB:.1f} MB in {r['buckets']}"),
        ("copy: read the data, write θ once", lambda r: f"{short(1e3 * r['copy'])} ms"),
        ("recording step", lambda r: ratio(r["step"], r["step_ratio"])),
        ("of it the loss alone, forward and backward", lambda r: f"{short(1e3 * r['loss'])} ms"),
        ("step once armed", lambda r: ratio(r["armed_step"], r["armed_ratio"])),
        ("peak memory of the step, in θ", lambda r: short(r["step_peak"] / r["theta_bytes"])),
        ("peak memory of the command, in θ", lambda r: short(r["command_peak"] / r["theta_bytes"])),
        ("whole command", lambda r: f"{short(r['command'])} s"),
        ("of it training", lambda r: f"{short(r['train'])} s"),
        ("of it confirmation", lambda r: f"{short(r['verify'])} s"),
        ("of that, three more trainings and what is checked of them",
         lambda r: f"{short(r['controls'])} s"),
        ("file against the data's bytes", lambda r: short(r["file_bytes"] / r["data_bytes"])),
    ]  # fmt: skip
    head = ["| | " + " | ".join(line["task"] for line in lines) + " |", "|---|" + "---:|" * 2]
    return lines, head + [f"| {what} | " + " | ".join(map(cell, lines)) + " |"
                          for what, cell in rows]  # fmt: skip


# --- a call of the armed file ----------------------------------------------------


def session(path: Path, level: str) -> ort.InferenceSession:
    """On one thread, because idle thread pools disturb each other by spinning."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = runtime.LEVELS[level]
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def call_line(task: Task, oracle: str, folder: Path, repeats: int) -> Line:
    """One sample, and a session load: the extracted base, the armed file at both levels."""
    output, plain = folder / "learnt.onnx", folder / "plain.onnx"
    report = compiler.compile(
        task.model, oracle=oracle, data=task.data, output=output, force=True
    ).report
    if not report.reproduced:
        raise RuntimeError(f"{task.name}, {oracle}: the training set was not reproduced")
    workflows.extract(Path(str(report.files["trained"])), output=plain, force=True)
    trained = Path(str(report.files["trained"]))
    candidates = {"extracted": (plain, "all"), "all": (trained, "all"), "none": (trained, "none")}
    x = read_arrays(task.data)["x"].load()[:1]
    loads = alternate({name: Candidate(partial(session, *how))
                       for name, how in candidates.items()}, repeats)  # fmt: skip
    runners = {name: session(*how) for name, how in candidates.items()}
    calls = alternate(
        {name: Candidate(partial(runner.run, None, {runner.get_inputs()[0].name: x}))
         for name, runner in runners.items()}, repeats,
    )  # fmt: skip
    return {"task": task.name, "oracle": oracle,
            **{f"call_{name}": median(found) for name, found in calls.items()},
            **{f"load_{name}": median(found) for name, found in loads.items()}}  # fmt: skip


def call_table(folder: Path, *, quick: bool) -> tuple[list[Line], list[str]]:
    """Data sets × oracles; the large one with the oracle that ends on random labels soon."""
    digits, large = tasks(folder, SMALL if quick else FULL)
    chosen = [(digits, oracle) for oracle in (ORACLES[:1] if quick else ORACLES)]
    lines = [call_line(task, oracle, folder, 3) for task, oracle in [*chosen, (large, ORACLES[0])]]
    names = [f"{what}_{how}" for what in ("call", "load") for how in ("extracted", "none", "all")]
    head = ["| data | oracle | call, ms: extracted | armed, unoptimised | armed, optimised "
            "| session load, ms: extracted | armed, unoptimised | armed, optimised |",
            "|---|---|" + "---:|" * 6]  # fmt: skip
    return lines, head + [
        f"| {line['task']} | {line['oracle']} | "
        + " | ".join(short(1e3 * line[name]) for name in names) + " |" for line in lines
    ]  # fmt: skip


# --- curves ----------------------------------------------------------------------


def size_table(folder: Path, *, quick: bool) -> tuple[list[Line], list[str]]:
    """The full-batch step over the numbers of samples and of features."""
    samples, features = SMALL if quick else FULL
    curve = [(samples // part, features) for part in (16, 4, 1)]
    curve += [(samples // 4, features // part) for part in (16, 4)]
    lines = []
    for n, d in curve:
        task = Task("", *networks.bytes_linear(folder, n, d))
        line = step_line(task, task.extended(), 3 if quick else 7)
        lines.append({**line, "samples": n, "features": d})
    head = ["| samples | features | θ, MB | copy, ms | recording step, ms | of the copy "
            "| ns a parameter |", "|---:|" * 1 + "---:|" * 6]  # fmt: skip
    return lines, head + [
        f"| {r['samples']} | {r['features']} | {short(r['theta_bytes'] / MB)} "
        f"| {short(1e3 * r['copy'])} | {short(1e3 * r['step'])} | {short(r['step_ratio'])} "
        f"| {short(1e9 * r['step'] / r['parameters'])} |" for r in lines
    ]  # fmt: skip


def steps_in_turn(steps: Sequence[Step], fit: int) -> list[float]:
    """Median seconds of a step of each, on the slots after its last; so many fit in the memory."""
    seconds: list[list[float]] = [[] for _ in steps]
    with one_torch_thread():
        for count in range(MOST_STEPS):
            for step, found in zip(steps, seconds, strict=True):
                if count % fit == 0:
                    step.forget()
                begin = time.perf_counter()
                step()
                found.append(time.perf_counter() - begin)
    return [median(found) for found in seconds]


def batch_table(folder: Path, *, quick: bool) -> tuple[list[Line], list[str]]:
    """One pass over the data: batch sizes × sizes of a bucket, the sizes in turns."""
    samples, features = SMALL if quick else FULL
    task = tasks(folder, (samples, features))[1]
    batches = [*(batch for batch in BATCHES if batch < samples), samples]
    buckets = BUCKETS[3:] if quick else BUCKETS
    memories = [task.step(task.extended(size), samples) for size in buckets]
    whole, labels = dict(memories[0].inputs), memories[0].labels
    lines: list[Line] = []
    for batch in batches:
        for step in memories:
            step.inputs = {name: tensor[:batch] for name, tensor in whole.items()}
            step.labels = labels[:batch]
        passes = samples / batch
        found = steps_in_turn(memories, samples // batch)
        for size, step, seconds in zip(buckets, memories, found, strict=True):
            count = len(list(step.module.parameters()))
            lines.append({"batch": batch, "bucket_bytes": size, "buckets": count,
                          "seconds": seconds * passes})  # fmt: skip
    cells = [f"{size_of(r['bucket_bytes'])}: {r['buckets']}" for r in lines[: len(buckets)]]
    head = ["| samples a step | " + " | ".join(cells) + " |",
            "|---:|" + "---:|" * len(buckets)]  # fmt: skip
    rows = [lines[i : i + len(buckets)] for i in range(0, len(lines), len(buckets))]
    return lines, head + [
        f"| {row[0]['batch']} | " + " | ".join(short(line["seconds"]) for line in row) + " |"
        for row in rows
    ]


def size_of(number: int) -> str:
    """Bytes in words."""
    return f"{number >> 20} MB" if number >> 20 else f"{number >> 10} KB"


# --- output ----------------------------------------------------------------------

Table = Callable[..., tuple[list[Line], list[str]]]
TABLES: dict[str, Table] = {
    "step": step_table, "call": call_table, "size": size_table, "batch": batch_table,
}  # fmt: skip


def short(number: float) -> str:
    """Three digits."""
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"


def ratio(seconds: float, of_copy: float) -> str:
    """Milliseconds, and how many copies that is."""
    return f"{short(1e3 * seconds)} ms, {short(of_copy)} copies"


def measure(
    names: Sequence[str], *, quick: bool, say: Callable[[str], None]
) -> Iterator[tuple[str, list[Line], list[str]]]:
    """One table after the other."""
    with tempfile.TemporaryDirectory(prefix="gdu-bench-") as folder:
        for name in names:
            lines, rows = TABLES[name](Path(folder), quick=quick)
            say("\n".join([name, *rows]))
            yield name, lines, rows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learn", description=__doc__)
    parser.add_argument("tables", nargs="*", choices=[[], *TABLES], help="all without a name")
    parser.add_argument("--quick", action="store_true", help="small data, few repeats")
    parser.add_argument("--write", action="store_true", help="into docs/cost.md")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    arguments = parser.parse_args()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    names = arguments.tables or list(TABLES)
    found = list(measure(names, quick=arguments.quick, say=console.print))
    if arguments.write:
        write_tables(PAGE, "benchmarks.learn", {name: rows for name, _, rows in found})
    if arguments.json:
        print(json.dumps({"schema": 1, "benchmark": "learn", "quick": arguments.quick,
                          "tables": {name: lines for name, lines, _ in found}}))  # fmt: skip


if __name__ == "__main__":
    main()
