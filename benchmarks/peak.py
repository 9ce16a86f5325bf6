"""One job of compile's in a process of its own: its peak memory.

``python -m benchmarks.peak compile MODEL.onnx WEIGHTS.npz OUT.onnx`` compiles without training;
``python -m benchmarks.peak copy MODEL.onnx OUT.onnx`` is onnx_ir's load and save.  A small job of
the same kind goes first, so that what a process pays once is not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx_ir as ir

from benchmarks.load import peak_bytes, reset_peak
from gdu_compile import compiler

ROOT = Path(__file__).resolve().parent.parent
SMALL = ROOT / "models" / "digits_linear.onnx"


def job(kind: str, paths: list[str]) -> None:
    """Do it."""
    if kind == "compile":
        model, weights, output = paths
        compiler.compile(model, weights, confirm=False, output=Path(output), force=True)
    else:
        model, output = paths
        ir.save(ir.load(model), output)


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
        weights = [str(SMALL.with_suffix(".oracle.npz"))] if kind == "compile" else []
        job(kind, [str(SMALL), *weights, output])
    reset_peak()
    before = peak_bytes()
    job(kind, paths)
    print(json.dumps({"bytes": peak_bytes() - before}))


if __name__ == "__main__":
    main()
