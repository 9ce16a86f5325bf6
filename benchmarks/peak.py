"""One job of compile's in a process of its own: its peak memory.

``python -m benchmarks.peak compile MODEL.onnx WEIGHTS.npz OUT.onnx`` compiles without training;
``python -m benchmarks.peak copy MODEL.onnx OUT.onnx`` is onnx_ir's load and save; ``learn
MODEL.onnx DATA.npz OUT.onnx`` is the whole command, and ``step`` of the same its one recording
step.  A small job of the same kind goes first, so that what a process pays once is not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx_ir as ir

from benchmarks.load import peak_bytes, reset_peak
from gdu_compile import compiler, training
from gdu_compile.options import TrainOptions
from gdu_compile.preparation import prepare_training
from gdu_compile.report import Report

ROOT = Path(__file__).resolve().parent.parent
SMALL = ROOT / "models" / "digits_linear.onnx"
ORACLE = "nearest-mean"


def job(kind: str, paths: list[str]) -> None:
    """Do it."""
    if kind == "compile":
        model, weights, output = paths
        compiler.compile(model, weights, confirm=False, output=Path(output), force=True)
    elif kind == "learn":
        model, data, output = paths
        compiler.compile(model, oracle=ORACLE, data=data, output=Path(output), force=True)
    elif kind == "step":
        record_once(*paths[:2])
    else:
        model, output = paths
        ir.save(ir.load(model), output)


def record_once(model: str, data: str) -> None:
    """Compile for learn, and train one full-batch step."""
    extended = compiler.compile(model, oracle=ORACLE, data=data, confirm=False).extended
    options = TrainOptions.of({"data": data})
    prepared = prepare_training(extended, options, Report("train", model))
    training.train(
        extended, prepared.data, loss=prepared.loss, optimizer=prepared.optimizer,
        lr=options.lr, steps=1, batch_size=len(prepared.data), measure=False,
    )  # fmt: skip


def peak(kind: str, *paths: Path) -> int:
    """Bytes at the peak of a job, above what was resident before it, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.peak", kind, *map(str, paths)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return int(json.loads(done.stdout)["bytes"])


def main() -> None:
    """Warm up, do the job, print."""
    kind, *paths = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="gdu-bench-") as folder:
        output = str(Path(folder) / "small.onnx")
        beside = {"copy": [], "compile": [str(SMALL.with_suffix(".oracle.npz"))]}
        job(kind, [str(SMALL), *beside.get(kind, [str(SMALL.with_name("digits.npz"))]), output])
    reset_peak()
    before = peak_bytes()
    job(kind, paths)
    print(json.dumps({"bytes": peak_bytes() - before}))


if __name__ == "__main__":
    main()
