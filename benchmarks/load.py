"""One onnxruntime session load in a process of its own: seconds and peak memory.

``python benchmarks/load.py WARM_UP.onnx MODEL.onnx`` prints one JSON object.  Only
onnxruntime is imported, and a tiny session is loaded first, so that what a process
pays once (thread pool, lazily loaded code) is not counted.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import onnxruntime as ort

STATUS = Path("/proc/self/status")


def load(path: str) -> ort.InferenceSession:
    """A CPU session as anybody would make it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def reset_peak() -> None:
    """Let the peak begin at what is resident now, where the system can do that (Linux)."""
    if STATUS.exists():
        STATUS.with_name("clear_refs").write_text("5")


def peak_bytes() -> int:
    """Peak resident memory of this process.

    Linux counts the parent's memory at the fork into ``ru_maxrss`` of a child
    (measured: 789 MB in a child of 11 MB), hence VmHWM there.
    """
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Warm up, load, print."""
    warm_up, path = sys.argv[1:]
    load(warm_up)
    reset_peak()
    before = peak_bytes()
    begin = time.perf_counter()
    session = load(path)
    seconds = time.perf_counter() - begin
    peak = peak_bytes() - before
    del session
    print(json.dumps({"seconds": seconds, "bytes": peak}))


if __name__ == "__main__":
    main()
