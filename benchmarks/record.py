"""What the record extension costs, as ratios in one run: ``python -m benchmarks.record``.

Both sides of a ratio alternate within one process, so that a busy machine slows both; what
is compared are medians.  Session loads alternate too, each in a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from rich.console import Console

from gdu_compile import compiler, model_io, specialize, workflows
from gdu_compile.data import synthetic_data
from gdu_compile.metadata import Extension
from gdu_compile.tables import new_table
from gdu_compile.torch_backend import GraphModule, lower_to_torch
from gdu_compile.verification import same_bits

Inputs = dict[str, npt.NDArray[Any]]

ROOT = Path(__file__).resolve().parent.parent
LOAD_SCRIPT = Path(__file__).with_name("load.py")
BATCH = 64
LEARNING_RATE = 1e-3
WIDTHS = (2048, 3072, 3072, 3072, 10)  # 25.2 M weights, 101 MB
BASE = "base with w*"

# A comparison makes at least ``repeats`` rounds, and more while it has taken less than this.
SECONDS = 0.5
MOST_ROUNDS = 1000
# Fast calls are timed in groups that take about this long.
GROUP_SECONDS = 1e-3


@dataclass(frozen=True)
class Row:
    """One comparison; the numbers are medians.

    Attributes:
        quantity: what was measured.
        against: what ``base`` is.
        base: its value.
        extension: the value with the extension.
        unit: of both.
        repeats: measurements of each.
        identical: for lists, whether they are equal in order; None for numbers.
    """

    quantity: str
    against: str
    base: float
    extension: float
    unit: str
    repeats: int = 1
    identical: bool | None = None

    @property
    def ratio(self) -> float | None:
        """Extension / base."""
        return self.extension / self.base if self.base else None

    def to_json(self) -> dict[str, Any]:
        """All fields and the ratio."""
        return {**dataclasses.asdict(self), "ratio": self.ratio}


@dataclass(frozen=True)
class Candidate:
    """Something to be timed; ``prepare`` runs before each call, outside the time."""

    call: Callable[[], object]
    prepare: Callable[[], object] | None = None


@dataclass(frozen=True)
class Files:
    """The files that are compared.

    Attributes:
        original: the base as it was given.
        base: the base that holds w*.
        extended: the extension, not trained.
        trained: the extension with trained θ.
        extracted: the trained extension, folded away.
        warm_up: a model of one node.
    """

    original: Path
    base: Path
    extended: Path
    trained: Path
    extracted: Path
    warm_up: Path


# --- timing -------------------------------------------------------------------


def alternate(candidates: Mapping[str, Candidate], repeats: int) -> dict[str, list[float]]:
    """Seconds a call of each candidate, taken in turns; the first round is not counted."""
    groups = {name: group_size(candidate) for name, candidate in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    begin = time.perf_counter()
    for done in range(MOST_ROUNDS):
        if done >= repeats and time.perf_counter() - begin > SECONDS:
            break
        for name, candidate in candidates.items():
            seconds[name].append(seconds_of(candidate, groups[name]))
    return seconds


def group_size(candidate: Candidate) -> int:
    """How many calls are timed as one; 1 where something is prepared before each."""
    seconds_of(candidate, 1)
    once = seconds_of(candidate, 1)
    return 1 if candidate.prepare else max(1, round(GROUP_SECONDS / once))


def seconds_of(candidate: Candidate, calls: int) -> float:
    """Wall time of one of ``calls`` calls."""
    if candidate.prepare is not None:
        candidate.prepare()
    begin = time.perf_counter()
    for _ in range(calls):
        candidate.call()
    return (time.perf_counter() - begin) / calls


def timed_row(
    quantity: str, against: str, base: list[float], extension: list[float],
    unit: str, scale: float,
) -> Row:  # fmt: skip
    """A row of two medians, ``scale`` units each."""
    return Row(
        quantity, against, median(base) * scale, median(extension) * scale, unit, len(extension)
    )


# --- what is compared ---------------------------------------------------------


class Step:
    """One step of SGD on cross-entropy: zero_grad, forward, backward, update."""

    def __init__(
        self, module: GraphModule, logits: str, inputs: Inputs, labels: torch.Tensor
    ) -> None:
        self.module = module
        self.logits = logits
        self.inputs = {name: torch.from_numpy(array) for name, array in inputs.items()}
        self.labels = labels
        self.optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        logits = self.module.run(self.inputs)[self.logits]
        torch.autograd.backward(torch.nn.functional.cross_entropy(logits, self.labels))
        self.optimizer.step()

    @torch.no_grad()
    def forget(self) -> None:
        """θ back to 0: not armed."""
        for theta in self.module.parameters():
            theta.zero_()


def batch_of(extended: ir.Model) -> tuple[Inputs, torch.Tensor]:
    """A seeded batch of ``BATCH`` samples with labels."""
    site = Extension.from_metadata(extended.metadata_props).logits
    data = synthetic_data(extended.graph.inputs, site, seed=0)
    inputs = {name: array[:BATCH] for name, array in data.inputs.items()}
    return inputs, torch.from_numpy(data.labels[:BATCH])


def write_files(model: Path, extended: ir.Model, step: Step, folder: Path) -> Files:
    """Train by one step, and write everything that is compared."""
    files = Files(
        original=model, base=folder / "base.onnx", extended=folder / "extended.onnx",
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


def generate(folder: Path) -> tuple[Path, Path]:
    """An MLP of ``WIDTHS`` and its oracle weights, both seeded and random."""
    rng = np.random.default_rng(0)
    nodes, initial, oracle = [], [], {}
    last = len(WIDTHS) - 2
    for i, (rows, columns) in enumerate(pairwise(WIDTHS)):
        for name, shape in ((f"fc{i}.weight", (rows, columns)), (f"fc{i}.bias", (columns,))):
            scale = np.float32(rows**-0.5)
            value = rng.standard_normal(shape, dtype=np.float32) * scale
            initial.append(onnx.numpy_helper.from_array(value, name))
            oracle[name] = rng.standard_normal(shape, dtype=np.float32) * scale
        z = "logits" if i == last else f"z{i}"
        names = [f"h{i}" if i else "x", f"fc{i}.weight", f"fc{i}.bias"]
        nodes.append(onnx.helper.make_node("Gemm", names, [z], name=f"fc{i}"))
        if i < last:
            nodes.append(onnx.helper.make_node("Relu", [z], [f"h{i + 1}"], name=f"relu{i}"))
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", width])
            for name, width in (("x", WIDTHS[0]), ("logits", WIDTHS[-1]))]  # fmt: skip
    graph = onnx.helper.make_graph(nodes, "generated_mlp", ends[:1], ends[1:], initial)
    opsets = [onnx.helper.make_opsetid("", model_io.OPSET)]
    model, weights = folder / "generated_mlp.onnx", folder / "generated_mlp.oracle.npz"
    onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=opsets), model)
    np.savez(weights, **oracle)  # type: ignore[arg-type]
    return model, weights


# --- the comparisons ----------------------------------------------------------


def latency_rows(files: Files, inputs: Inputs, repeats: int) -> Iterator[Row]:
    """(a) Inference after session load, on one thread; the operators that are left."""
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
    """(b) Session load, each in a fresh process: seconds and peak memory."""
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
    """(c) Bytes of the files; parameters."""
    original = model_io.file_bytes(files.original)
    for label in ("extended", "trained", "extracted"):
        size = model_io.file_bytes(getattr(files, label))
        yield Row(f"file, {label}", "base", original, size, "bytes")
    theta = sum(math.prod(bucket.theta_shape(facts.code)) for bucket in facts.buckets)
    weights = sum(bucket.rows for bucket in facts.buckets)
    yield Row("trainable parameters θ", "recorded weights", weights, theta, "numbers")


def step_rows(recording: Step, base: Step, facts: Extension, repeats: int) -> Iterator[Row]:
    """(d) One recording step against an ordinary one, and against a plain copy."""
    digits = sum(math.prod(bucket.theta_shape(facts.code)) for bucket in facts.buckets)
    signal, theta = torch.ones(digits, dtype=torch.uint16), torch.zeros(digits)
    with one_torch_thread():
        seconds = alternate(
            {"record": Candidate(recording, recording.forget), "sgd": Candidate(base),
             "copy": Candidate(partial(theta.copy_, signal))}, repeats,
        )  # fmt: skip
    for against, name in ((f"SGD step of the base, batch {BATCH}", "sgd"),
                          ("read signal, write θ once (copy)", "copy")):  # fmt: skip
        yield timed_row("recording step, 1 thread", against, seconds[name], seconds["record"],
                        "ms", 1e3)  # fmt: skip


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """One thread for torch: on a busy machine several wait for each other, up to 100 ms a step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def compile_rows(model: Path, weights: Path, files: Files, repeats: int) -> Iterator[Row]:
    """(e) compile() without training against loading and saving a file of the same size."""
    folder = files.extended.parent
    compiled, copied = folder / "compiled.onnx", folder / "copied.onnx"

    def compile_it() -> None:
        compiler.compile(model, weights, confirm=False, output=compiled, force=True)

    def copy_it() -> None:
        ir.save(ir.load(files.extended), copied)

    seconds = alternate({"compile": Candidate(compile_it), "copy": Candidate(copy_it)}, repeats)
    yield timed_row("compile, not trained", "onnx_ir load + save, same size",
                    seconds["copy"], seconds["compile"], "ms", 1e3)  # fmt: skip


def measure(model: Path, weights: Path, repeats: int) -> list[Row]:
    """Every comparison for one base and its oracle weights.

    Args:
        model: the base, an ONNX file.
        weights: w*, an .npz or .safetensors file.
        repeats: rounds of each comparison, at least.

    Raises:
        RuntimeError: training did not reproduce w*, so nothing can be compared.
    """
    with tempfile.TemporaryDirectory(prefix="gdu-bench-") as name:
        extended = compiler.compile(model, weights, confirm=False).extended
        facts = Extension.from_metadata(extended.metadata_props)
        inputs, labels = batch_of(extended)
        recording = Step(lower_to_torch(extended), facts.logits.output, inputs, labels)
        files = write_files(model, extended, recording, Path(name))
        base = ir.load(files.base)
        weight_names = {slot.weight for _, slot in facts.slots()}
        ordinary = Step(lower_to_torch(base, weight_names), facts.logits.output, inputs, labels)
        rows = [*step_rows(recording, ordinary, facts, repeats)]
        del recording, ordinary, extended, base
        return [
            *latency_rows(files, inputs, repeats),
            *load_rows(files, repeats),
            *size_rows(files, facts),
            *rows,
            *compile_rows(model, weights, files, repeats),
        ]


# --- output -------------------------------------------------------------------


@contextmanager
def generated() -> Iterator[tuple[Path, Path]]:
    """The generated network, as files that go away."""
    with tempfile.TemporaryDirectory(prefix="gdu-bench-") as folder:
        yield generate(Path(folder))


def results(quick: bool) -> Iterator[tuple[str, list[Row]]]:
    """(model name, rows), one after the other."""
    small = ROOT / "models" / "digits_mlp.onnx"
    oracle = small.with_suffix(".oracle.npz")
    yield small.stem, measure(small, oracle, repeats=3 if quick else 11)
    if not quick:
        with generated() as (model, weights):
            yield model.stem, measure(model, weights, repeats=5)


def number(value: float | None) -> str:
    """Whole numbers in full, others with three digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 1000 or value == round(value) else f"{value:.3g}"


def print_rows(model: str, rows: list[Row], console: Console) -> None:
    """One table."""
    table = new_table("quantity", "against", ">base", ">extension", ">ratio", "unit", ">repeats",
                      title=model)  # fmt: skip
    for row in rows:
        same = {None: "", True: ", identical", False: ", different"}[row.identical]
        ratio = "–" if row.ratio is None else f"{row.ratio:.3g}"
        table.add_row(row.quantity, row.against, number(row.base), number(row.extension), ratio,
                      row.unit + same, str(row.repeats))  # fmt: skip
    console.print(table)


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    packages = ("gdu-compile", "numpy", "onnx", "onnx-ir", "onnxruntime", "torch")
    return {
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "processor": platform.machine(), "cpus": os.cpu_count(),
    }  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--quick", action="store_true", help="digits_mlp only, few repeats")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    models = []
    for name, rows in results(arguments.quick):
        models.append({"model": name, "rows": [row.to_json() for row in rows]})
        if not arguments.json:
            print_rows(name, rows, console)
    facts = machine()
    if arguments.json:
        print(json.dumps({"schema": 1, "benchmark": "record", "quick": arguments.quick,
                          **facts, "models": models}))  # fmt: skip
    else:
        console.print(", ".join(f"{name} {number}" for name, number in facts["versions"].items()))
        console.print(f"{facts['processor']}, {facts['cpus']} CPUs; numbers are medians")


if __name__ == "__main__":
    main()
