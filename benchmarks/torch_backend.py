"""Speed of imported networks in torch against the same networks in plain PyTorch.

``python -m benchmarks.torch_backend [NETWORK …] [--threads N] [--json]``: forward, and forward with
backward, weights as parameters; onnxruntime's forward beside it; the time and the memory that an
import takes, also by onnx2torch 1.5.15 where that is installed and can convert the network at all.
``--write`` puts the table into docs/torch.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median

import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.pages import write_tables
from benchmarks.timing import Candidate, Row, alternate, timed_row
from benchmarks.torch_networks import NETWORKS, TorchNetwork, export, export_by_torchscript
from gdu_compile import model_io
from gdu_compile.tables import new_table
from gdu_compile.torch_backend import GraphModule, lower_to_torch

BATCHES = {"digits_cnn": 64, "resnet50": 4, "bert_base": 2}
REPEATS = 7
LARGEST_DIFFERENCE = 1e-5
"""Of the outputs; two orders of summation in float32."""
PAGE = Path(__file__).resolve().parent.parent / "docs" / "torch.md"


def imported(path: Path) -> GraphModule:
    """The file as a module, with its float weights as parameters, but for running statistics."""
    model = model_io.load(path)
    weights = [
        name for name, value in model.graph.initializers.items()
        if value.dtype == ir.DataType.FLOAT and ".running_" not in name
    ]  # fmt: skip
    return lower_to_torch(model, weights)


def agree(x: Tensor, plain: nn.Module, module: nn.Module) -> float:
    """The largest difference of the outputs, relative to the largest output."""
    with torch.no_grad():
        wanted, got = plain(x), module(x)
    return float((got - wanted).abs().max() / wanted.abs().max())


def forward(module: nn.Module, x: Tensor) -> Callable[[], object]:
    """Without a tape."""

    def call() -> object:
        with torch.no_grad():
            module(x)
        synchronize(x)
        return None

    return call


def backward(module: nn.Module, x: Tensor) -> Callable[[], object]:
    """Forward, a sum of squares, backward to all parameters."""

    def call() -> object:
        module.zero_grad(set_to_none=True)
        module(x).square().sum().backward()
        synchronize(x)
        return None

    return call


def synchronize(x: Tensor) -> None:
    """Wait for what was started on a GPU."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def compare(network: TorchNetwork, path: Path, device: str = "cpu") -> list[Row]:
    """All rows of one network; the module stays at ``path`` as ONNX."""
    torch.manual_seed(0)
    plain = network.make().eval()
    export(plain, network.batch(2), path)
    module, plain = imported(path).eval().to(device), plain.to(device)
    x = network.batch(BATCHES[network.name]).to(device)
    difference = agree(network.batch(3).to(device), plain, module)
    if difference > LARGEST_DIFFERENCE:
        raise RuntimeError(f"{network.name}: outputs differ by {difference:.1e} of the largest")
    rows = [Row(f"{network.name}: outputs, max relative difference", "0", 0.0, difference, "")]
    runs = {"forward": forward, "forward and backward": backward}
    for what, make in runs.items():
        ours, theirs = make(module, x), make(plain, x)
        seconds = alternate({"theirs": Candidate(theirs), "ours": Candidate(ours)}, REPEATS)
        rows.append(timed_row(f"{network.name}: {what}, batch {len(x)}", "plain PyTorch",
                              seconds["theirs"], seconds["ours"], "ms", 1e3))  # fmt: skip
    return rows


def against_onnxruntime(network: TorchNetwork, path: Path) -> Row:
    """The forward pass of the imported network beside onnxruntime's, on the CPU."""
    options, x = ort.SessionOptions(), network.batch(BATCHES[network.name])
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    module, feed = imported(path).eval(), {"x": x.numpy()}
    seconds = alternate({"ort": Candidate(lambda: session.run(None, feed)),
                         "ours": Candidate(forward(module, x))}, REPEATS)  # fmt: skip
    return timed_row(f"{network.name}: forward, batch {len(x)}", "onnxruntime",
                     seconds["ort"], seconds["ours"], "ms", 1e3)  # fmt: skip


def import_rows(network: TorchNetwork, path: Path) -> list[Row]:
    """Time and Python memory of an import: against reading the file, which no import can do
    without, and against onnx2torch, on a file that it can read."""
    rows = both(network.name, "onnx.load", lambda: onnx.load(path), path)
    if importlib.util.find_spec("onnx2torch") is None:
        return rows
    from onnx2torch import convert

    old = path.with_suffix(".old.onnx")
    export_by_torchscript(network.make(), network.batch(2), old)
    try:
        convert(str(old))
    except Exception as error:  # whatever it does not know
        logging.warning("%s: onnx2torch fails, %s: %s", network.name, type(error).__name__, error)
        return rows
    return rows + both(network.name, "onnx2torch, opset 14", lambda: convert(str(old)), old)


def both(name: str, against: str, theirs: Callable[[], object], path: Path) -> list[Row]:
    """Time and memory of another's import and of ours, of one file."""
    (seconds, peak), (our_seconds, our_peak) = (
        timed_import(call) for call in (theirs, lambda: imported(path))
    )
    return [
        Row(f"{name}: import", against, seconds * 1e3, our_seconds * 1e3, "ms", 3),
        Row(f"{name}: import, peak of Python's memory", against,
            peak / 2**20, our_peak / 2**20, "MiB"),
    ]  # fmt: skip


def timed_import(call: Callable[[], object]) -> tuple[float, int]:
    """(median seconds of three calls, peak of traced memory of one)."""
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    tracemalloc.start()
    call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return median(seconds), peak


def table_lines(rows: list[Row]) -> list[str]:
    """The rows as a Markdown table."""
    lines = ["| quantity | against | theirs | ours | ratio |", "|---|---|---:|---:|---:|"]
    for row in rows:
        ratio = "–" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append(f"| {row.quantity} | {row.against} | {row.base:.4g} {row.unit} | "
                     f"{row.extension:.4g} {row.unit} | {ratio} |")  # fmt: skip
    return lines


def main() -> None:
    """Measure, print, and write when asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="put the table into docs/torch.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="gdu-bench-") as folder:
        for name in options.networks or NETWORKS:
            path = Path(folder) / f"{name}.onnx"
            rows += compare(NETWORKS[name], path)
            rows += [against_onnxruntime(NETWORKS[name], path), *import_rows(NETWORKS[name], path)]
    if options.json:
        print(json.dumps([row.to_json() for row in rows]))
        return
    table = new_table("quantity", "against", ">theirs", ">ours", ">ratio")
    for row in rows:
        ratio = "–" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.quantity, row.against, f"{row.base:.4g} {row.unit}",
                      f"{row.extension:.4g} {row.unit}", ratio)  # fmt: skip
    Console(width=140).print(table)
    if options.write:
        write_tables(PAGE, "benchmarks.torch_backend", {"torch backend": table_lines(rows)})


if __name__ == "__main__":
    main()
