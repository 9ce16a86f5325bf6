"""What oracles written in PyTorch cost: ``python -m benchmarks.traced``; ``--write`` puts the
tables into docs/cost.md.

Both sides of a ratio alternate within one process, on one thread; what is compared are medians.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from rich.console import Console

from benchmarks.learn import PAGE, ROOT, Line, session, short
from benchmarks.pages import write_tables
from benchmarks.steps import Step, one_torch_thread
from benchmarks.timing import Candidate, alternate
from gdu_compile import compiler, oracles, runtime
from gdu_compile.metadata import Extension
from gdu_compile.oracles import ORIGINAL
from gdu_compile.torch_backend import lower_to_torch
from models.build import BASE_NETWORKS, construct_base

DATA = ROOT / "models" / "digits.npz"
BASES = ("digits_linear", "digits_mlp", "digits_cnn", "digits_attention", "digits_gru")
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.03, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.005),
}
"""With the rates of the oracles of these names."""
LEVELS = {"none": "unoptimised", "all": "optimised"}
STEPS, BATCH = 500, 64


def digits() -> tuple[Any, Any]:
    """All samples and labels."""
    with np.load(DATA) as data:
        return data["x"], data["y"]


# --- the network against the oracle's graph alone ------------------------------


def network_table(*, quick: bool) -> tuple[list[Line], list[str]]:
    """Recording and the armed computation, against the graph of the algorithm alone."""
    oracle = f"adam(steps={STEPS // 10 if quick else STEPS})"
    base, (x, y) = ROOT / "models" / "digits_mlp.onnx", digits()
    algorithm = oracles.build(oracle, oracles.problem_of(base, len(y)))
    compiled = compiler.compile(base, oracle=oracle, data=DATA)
    assert compiled.trained is not None and compiled.report.reproduced
    facts = Extension.from_metadata(compiled.extended.metadata_props)
    step = Step(lower_to_torch(compiled.extended), facts.logits.output, {"x": x},
                torch.from_numpy(y))  # fmt: skip
    lines: list[Line] = []
    with runtime.on_disk(algorithm) as alone, runtime.on_disk(compiled.trained) as trained:
        for level in LEVELS:
            runs = {
                "recording": Candidate(step, step.forget),
                "armed": Candidate(partial(session(trained, level).run, None, {"x": x[:1]})),
                "alone": Candidate(partial(session(alone, level).run, None, {"x": x, "Y": y})),
            }
            with one_torch_thread():
                times = alternate(runs, 3 if quick else 9)
            found = {name: median(seconds) for name, seconds in times.items()}
            ratio = (found["recording"] + found["armed"]) / found["alone"]
            lines.append({"level": level, "oracle": oracle, **found, "ratio": ratio})
    head = ["| onnxruntime | recording step, ms | one call once armed, ms | the oracle alone, ms "
            "| ratio |", "|---|" + "---:|" * 4]  # fmt: skip
    return lines, head + [
        f"| {LEVELS[line['level']]} | {short(1e3 * line['recording'])} "
        f"| {short(1e3 * line['armed'])} | {short(1e3 * line['alone'])} | {short(line['ratio'])} |"
        for line in lines
    ]


# --- the oracle's graph against plain PyTorch ------------------------------------


class Plain:
    """The same algorithm as one writes it in PyTorch: the module of models/build.py, torch.optim
    and its cross_entropy, on the batches in the same order."""

    def __init__(self, base: str, optimizer: str, order: torch.Tensor) -> None:
        (network,) = (each for each in BASE_NETWORKS if each.name == base)
        self.net = construct_base(network).eval()  # BatchNormalization's statistics stay
        self.optimizer, self.order = OPTIMIZERS[optimizer], order
        x, y = digits()
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)

    def __call__(self) -> None:
        optimizer = self.optimizer(self.net.parameters())
        steps = len(self.order)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / steps)
        for batch in self.order:
            optimizer.zero_grad()
            torch.autograd.backward(nnf.cross_entropy(self.net(self.x[batch]), self.y[batch]))
            optimizer.step()
            rates.step()


def plain_line(base: str, optimizer: str, steps: int, repeats: int) -> Line:
    """Seconds a step in onnxruntime, with and without optimisations, and in PyTorch."""
    x, y = digits()
    problem = oracles.problem_of(ROOT / "models" / f"{base}.onnx", len(y))
    algorithm = oracles.build(f"{optimizer}(steps={steps}, batch_size={BATCH})", problem)
    plain = Plain(base, optimizer, torch.from_numpy(algorithm.meta[ORIGINAL].order))
    with runtime.on_disk(algorithm) as path:
        runs = {level: Candidate(partial(session(path, level).run, None, {"x": x, "Y": y}))
                for level in LEVELS}  # fmt: skip
    with one_torch_thread():
        found = alternate({**runs, "torch": Candidate(plain)}, repeats)
    seconds = {name: median(times) / steps for name, times in found.items()}
    ratios = {f"ratio_{level}": seconds[level] / seconds["torch"] for level in LEVELS}
    return {"base": base, "oracle": optimizer, **seconds, **ratios}


def plain_table(*, quick: bool) -> tuple[list[Line], list[str]]:
    """Bases × optimizers."""
    steps, repeats = (20, 3) if quick else (100, 7)
    lines = [plain_line(base, name, steps, repeats) for base in BASES for name in OPTIMIZERS]
    head = ["| model | oracle | PyTorch, ms a step | onnxruntime | ratio | optimised | ratio |",
            "|---|---|" + "---:|" * 5]  # fmt: skip
    return lines, head + [
        f"| {r['base']} | `{r['oracle']}` | {short(1e3 * r['torch'])} | {short(1e3 * r['none'])} "
        f"| {short(r['ratio_none'])} | {short(1e3 * r['all'])} | {short(r['ratio_all'])} |"
        for r in lines
    ]  # fmt: skip


Table = Callable[..., tuple[list[Line], list[str]]]
TABLES: dict[str, Table] = {"network": network_table, "plain": plain_table}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traced", description=__doc__)
    parser.add_argument("tables", nargs="*", choices=[[], *TABLES], help="all without a name")
    parser.add_argument("--quick", action="store_true", help="few steps, few repeats")
    parser.add_argument("--write", action="store_true", help="into docs/cost.md")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    arguments = parser.parse_args()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    lines: dict[str, list[Line]] = {}
    rows: dict[str, Sequence[str]] = {}
    for name in arguments.tables or list(TABLES):
        lines[name], rows[name] = TABLES[name](quick=arguments.quick)
        console.print("\n".join([name, *rows[name]]))
    if arguments.write:
        write_tables(PAGE, "benchmarks.traced", rows)
    if arguments.json:
        print(json.dumps({"schema": 1, "benchmark": "traced", "quick": arguments.quick,
                          "tables": lines}))  # fmt: skip


if __name__ == "__main__":
    main()
