"""What the record extension costs, as ratios in one run: ``python -m benchmarks.record``.

Both sides of a ratio alternate within one process, so that a busy machine slows both; what
is compared are medians.  Session loads alternate too, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime as ort
from rich.console import Console

from benchmarks import networks, peak
from benchmarks.steps import BATCH, Inputs, Step, batch_of, profiled, step_rows
from benchmarks.timing import Candidate, Row, alternate, timed_row
from gdu_compile import compiler, model_io, specialize, workflows
from gdu_compile.bits import same_bits
from gdu_compile.digits import CODES, DEFAULT_CODE
from gdu_compile.metadata import Extension
from gdu_compile.tables import new_table
from gdu_compile.torch_backend import lower_to_torch

ROOT = Path(__file__).resolve().parent.parent
LOAD_SCRIPT = Path(__file__).with_name("load.py")
BASE = "base with w*"
MIB = 2.0**-20
SHOWN = 8
"""Operators of the recording step that are listed one by one."""


@dataclass(frozen=True)
class Files:
    """The files that are compared.

    Attributes:
        digits: the digit code.
        original: the base as it was given.
        base: the base that holds w*.
        extended: the extension, not trained.
        trained: the extension with trained θ.
        extracted: the trained extension, folded away.
        warm_up: a model of one node.
    """

    digits: str
    original: Path
    base: Path
    extended: Path
    trained: Path
    extracted: Path
    warm_up: Path


# --- what is compared ---------------------------------------------------------


def write_files(model: Path, extended: ir.Model, digits: str, step: Step, folder: Path) -> Files:
    """Train by one step, and write everything that is compared."""
    files = Files(
        digits=digits, original=model, base=folder / "base.onnx", extended=folder / "extended.onnx",
        trained=folder / "trained.onnx", extracted=folder / "extracted.onnx",
        warm_up=folder / "warm_up.onnx",
    )  # fmt: skip
    step.forget()
    step()
    theta = {name: t.detach().numpy() for name, t in step.module.named_parameters()}
    trained = specialize.filled(extended, theta)
    oracle = specialize.oracle_in(extended)
    model_io.save(specialize.with_weights(model_io.load(model), oracle), files.base)
    model_io.save(extended, files.extended)
    model_io.save(trained, files.trained)
    workflows.extract(files.trained, output=files.extracted)
    onnx.save(one_node(), files.warm_up)
    return files


def one_node() -> onnx.ModelProto:
    """The smallest model."""
    kind = onnx.TensorProto.FLOAT
    values = [onnx.helper.make_tensor_value_info(name, kind, [1]) for name in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["x"], ["y"])], "warm_up", values[:1], values[1:]
    )
    return onnx.helper.make_model(
        graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", model_io.OPSET)]
    )


# --- the comparisons ----------------------------------------------------------


def latency_rows(files: Files, inputs: Inputs, repeats: int) -> Iterator[Row]:
    """(b) Inference after session load, on one thread; the operators that are left."""
    base, base_operators = one_thread(files.base)
    trained, trained_operators = one_thread(files.trained)
    names = [output.name for output in base.get_outputs()]
    expected, got = base.run(names, inputs), trained.run(names, inputs)
    if not all(same_bits(a, b) for a, b in zip(expected, got, strict=True)):
        raise RuntimeError("the trained extension does not reproduce the base with w*")
    for size in (1, BATCH):
        part = {name: array[:size] for name, array in inputs.items()}
        seconds = alternate(
            {"base": Candidate(partial(base.run, names, part)),
             "trained": Candidate(partial(trained.run, names, part))}, repeats,
        )  # fmt: skip
        yield timed_row(f"latency, trained, batch {size}, 1 thread", BASE, seconds["base"],
                        seconds["trained"], "µs", 1e6)  # fmt: skip
    yield Row(
        "operators after optimisation, trained", BASE, len(base_operators),
        len(trained_operators), "nodes", identical=base_operators == trained_operators,
    )  # fmt: skip


def one_thread(path: Path) -> tuple[ort.InferenceSession, list[str]]:
    """A session, and the operators that onnxruntime's optimiser has left, in order.

    On one thread, because two idle thread pools would disturb each other by spinning.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="gdu-bench-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(optimized)
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return session, [node.op_type for node in onnx.load(optimized).graph.node]


def load_rows(files: Files, repeats: int) -> Iterator[Row]:
    """(c) Session load, each in a fresh process: seconds and peak memory."""
    loads: dict[Path, list[dict[str, float]]] = {
        path: [] for path in (files.base, files.trained, files.extracted)
    }
    for _ in range(repeats):
        for path, measured in loads.items():
            measured.append(fresh_load(files.warm_up, path))
    for label, path in (("trained", files.trained), ("extracted", files.extracted)):
        for what, key, unit, scale in (("time", "seconds", "ms", 1e3),
                                       ("peak memory", "bytes", "MiB", 2.0**-20)):  # fmt: skip
            yield timed_row(
                f"session load, {what}, {label}", BASE, [m[key] for m in loads[files.base]],
                [m[key] for m in loads[path]], unit, scale,
            )  # fmt: skip


def fresh_load(warm_up: Path, path: Path) -> dict[str, float]:
    """One session load in a process of its own."""
    command = [sys.executable, str(LOAD_SCRIPT), str(warm_up), str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def size_rows(files: Files, facts: Extension) -> Iterator[Row]:
    """(e) Bytes of the files; parameters."""
    original = model_io.file_bytes(files.original)
    for label in ("extended", "trained", "extracted"):
        size = model_io.file_bytes(getattr(files, label))
        yield Row(f"file, {label}", "base", original, size, "bytes")
    theta = sum(math.prod(bucket.theta_shape(facts.code)) for bucket in facts.buckets)
    weights = sum(bucket.rows for bucket in facts.buckets)
    yield Row("trainable parameters θ", "recorded weights", weights, theta, "numbers")


def compile_rows(model: Path, weights: Path, files: Files, repeats: int) -> Iterator[Row]:
    """(a) compile() without training against loading and saving a file of the same size."""
    folder = files.extended.parent
    compiled, copied = folder / "compiled.onnx", folder / "copied.onnx"

    def compile_it() -> None:
        compiler.compile(
            model, weights, confirm=False, output=compiled, force=True, digits=files.digits
        )

    def copy_it() -> None:
        ir.save(ir.load(files.extended), copied)

    seconds = alternate({"compile": Candidate(compile_it), "copy": Candidate(copy_it)}, repeats)
    yield timed_row("compile, not trained", "onnx_ir load + save, same size",
                    seconds["copy"], seconds["compile"], "ms", 1e3)  # fmt: skip


def peak_rows(model: Path, weights: Path, files: Files, repeats: int) -> Iterator[Row]:
    """(a) Peak memory of compile(), each in a fresh process."""
    fresh = files.extended.with_name("fresh.onnx")
    largest = max(
        value.const_value.nbytes
        for value in model_io.load(files.extended).graph.initializers.values()
        if value.const_value is not None
    )
    peaks: dict[str, list[float]] = {"compile": [], "base": [], "same size": []}
    for _ in range(repeats):
        for name, paths in (("compile", [model, weights]), ("base", [model]),
                            ("same size", [files.extended])):  # fmt: skip
            fresh.unlink(missing_ok=True)
            job = "compile" if name == "compile" else "copy"
            peaks[name].append(peak.peak(job, *paths, fresh))
    within = [bytes_ + largest for bytes_ in peaks["base"]]
    for against, base in (("onnx_ir load + save of the base + largest tensor", within),
                          ("onnx_ir load + save, same size", peaks["same size"])):  # fmt: skip
        yield timed_row("compile, peak memory", against, base, peaks["compile"], "MiB", MIB)


@dataclass(frozen=True)
class Measured:
    """All that was measured on one base with one digit code.

    Attributes:
        model: name of the base.
        digits: the digit code.
        rows: the comparisons.
        step: the recording step by operator of torch.
    """

    model: str
    digits: str
    rows: list[Row]
    step: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        rows = [row.to_json() for row in self.rows]
        return {"model": self.model, "digits": self.digits, "rows": rows, "step": self.step}


def measure(model: Path, weights: Path, digits: str, repeats: int) -> Measured:
    """Every comparison for one base and its oracle weights.

    Args:
        model: the base, an ONNX file.
        weights: w*, an .npz or .safetensors file.
        digits: the digit code.
        repeats: rounds of each comparison, at least.

    Raises:
        RuntimeError: training did not reproduce w*, so nothing can be compared.
    """
    with tempfile.TemporaryDirectory(prefix="gdu-bench-") as name:
        extended = compiler.compile(model, weights, confirm=False, digits=digits).extended
        facts = Extension.from_metadata(extended.metadata_props)
        inputs, labels = batch_of(extended)
        recording = Step(lower_to_torch(extended), facts.logits.output, inputs, labels)
        files = write_files(model, extended, digits, recording, Path(name))
        base = ir.load(files.base)
        weight_names = {slot.weight for _, slot in facts.slots()}
        ordinary = Step(lower_to_torch(base, weight_names), facts.logits.output, inputs, labels)
        rows = [*step_rows(recording, ordinary, facts, repeats)]
        step = profiled(recording, min(repeats, 5))
        del recording, ordinary, extended, base
        return Measured(model.stem, digits, [
            *compile_rows(model, weights, files, repeats),
            *peak_rows(model, weights, files, min(repeats, 3)),
            *latency_rows(files, inputs, repeats),
            *load_rows(files, repeats),
            *rows,
            *size_rows(files, facts),
        ], step)  # fmt: skip


# --- output -------------------------------------------------------------------


GENERATED = {"mlp": networks.mlp, "resnet": networks.resnet, "many_small": networks.many_small}
SMALL_MODEL = "digits_mlp"


def results(models: Sequence[str], digits: Sequence[str], *, quick: bool) -> Iterator[Measured]:
    """One base and code after the other."""
    with tempfile.TemporaryDirectory(prefix="gdu-bench-") as folder:
        for name in models:
            if name in GENERATED:
                model, weights = GENERATED[name](Path(folder))
            else:
                model = ROOT / "models" / f"{name}.onnx"
                weights = model.with_suffix(".oracle.npz")
            for code in digits:
                yield measure(model, weights, code, repeats=(
                    3 if quick else 5 if name in GENERATED else 11
                ))  # fmt: skip


def number(value: float | None) -> str:
    """Whole numbers in full, others with three digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 1000 or value == round(value) else f"{value:.3g}"


def print_measured(measured: Measured, console: Console) -> None:
    """Two tables: the comparisons, and the recording step by operator."""
    name = f"{measured.model}, {measured.digits}"
    table = new_table("quantity", "against", ">base", ">extension", ">ratio", "unit", ">repeats",
                      title=name)  # fmt: skip
    for row in measured.rows:
        same = {None: "", True: ", identical", False: ", different"}[row.identical]
        ratio = "–" if row.ratio is None else f"{row.ratio:.3g}"
        table.add_row(row.quantity, row.against, number(row.base), number(row.extension), ratio,
                      row.unit + same, str(row.repeats))  # fmt: skip
    console.print(table)
    table = new_table("recording step, operator of torch", ">ms", title=name)
    for entry in measured.step[:SHOWN]:
        table.add_row(str(entry["operator"]), number(float(entry["ms"])))
    table.add_row("all others", number(sum(float(entry["ms"]) for entry in measured.step[SHOWN:])))
    console.print(table)


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    packages = ("gdu-compile", "numpy", "onnx", "onnx-ir", "onnxruntime", "torch")
    return {
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "processor": platform.machine(), "cpus": os.cpu_count(),
        "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE") == "1",
    }  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--quick", action="store_true", help="digits_mlp only, few repeats")
    parser.add_argument("--digits", nargs="+", choices=CODES, default=[DEFAULT_CODE.name],
                        help="digit codes, one after the other")  # fmt: skip
    parser.add_argument("--models", nargs="+", choices=[SMALL_MODEL, *GENERATED],
                        help="which bases; all unless said")  # fmt: skip
    arguments = parser.parse_args()
    chosen = arguments.models or [SMALL_MODEL, *([] if arguments.quick else GENERATED)]
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    models = []
    for measured in results(chosen, arguments.digits, quick=arguments.quick):
        models.append(measured.to_json())
        if not arguments.json:
            print_measured(measured, console)
    facts = machine()
    if arguments.json:
        print(json.dumps({"schema": 1, "benchmark": "record", "quick": arguments.quick,
                          **facts, "models": models}))  # fmt: skip
    else:
        console.print(", ".join(f"{name} {number}" for name, number in facts["versions"].items()))
        pages = "on" if facts["huge_pages"] else "off"
        console.print(f"{facts['processor']}, {facts['cpus']} cores; numbers are medians; "
                      f"large pages for torch: {pages}")  # fmt: skip


if __name__ == "__main__":
    main()
