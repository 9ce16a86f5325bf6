"""Training a 3-node network: gradient descent gets stuck, the exhaustive oracle does not.

    python examples/06_three_nodes/blum_rivest.py

It trains models/three_node.onnx (two sigmoid units and an output, on 7 booleans) with several
optimizers from several initial weights, then lets the oracle ``exhaustive`` compute weights for it.
The data are Blum & Rivest's (1988) for a Set Splitting instance, the Fano plane without one of its
lines: a splittable one, so that two threshold units and their AND answer everything right.  Most
runs end in a local minimum that gets the origin wrong.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import binary_cross_entropy

from gdu_compile import runtime
from gdu_compile.digits import Array
from gdu_compile.optimizers import OptimizerSpec
from gdu_compile.oracles import build, problem_of, run_alone
from gdu_compile.specialize import with_weights
from gdu_compile.torch_backend import lower_to_torch

MODEL, DATA = "models/three_node.onnx", "models/three_node.npz"
STEPS = 3000
SEEDS = 8
RUNS = (("SGD()", 0.3), ("SGD()", 1.0), ("SGD(momentum=0.9)", 0.3), ("Adam()", 0.01),
        ("Adam()", 0.1))  # fmt: skip


class Row(NamedTuple):
    """What one way to train has reached.

    Attributes:
        way: the optimizer and its rate, or the oracle.
        accuracies: one per seed.
        losses: the binary cross-entropy at the end, one per seed.
    """

    way: str
    accuracies: list[float]
    losses: list[float]


def initial_weights(seed: int) -> dict[str, torch.Tensor]:
    """PyTorch's for the two layers, by their names in the base."""
    torch.manual_seed(seed)
    layers: OrderedDict[str, torch.nn.Module] = OrderedDict(
        fc1=torch.nn.Linear(7, 2), fc2=torch.nn.Linear(2, 1)
    )
    return torch.nn.Sequential(layers).state_dict()


def descend(
    base: ir.Model, x: Array, y: Array, optimizer: str, lr: float, *, seeds: int, steps: int
) -> Row:
    """Full-batch gradient descent from seeded weights: all seeds side by side."""
    module = lower_to_torch(base, list(base.graph.initializers))
    starts = [initial_weights(seed) for seed in range(seeds)]
    weights = {
        module.attribute_of[name]: torch.nn.Parameter(torch.stack([w[name] for w in starts]))
        for name in starts[0]
    }  # [seeds, …]
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)[:, None].float()
    answer = torch.vmap(lambda one: torch.func.functional_call(module, one, (inputs,)))
    descent = OptimizerSpec.parse(optimizer).build(weights.values(), lr)
    for _ in range(steps):
        descent.zero_grad()
        p = answer(weights)  # [seeds, n, 1]
        # The mean over the samples, the sum over the seeds: no seed sees another.
        loss = seeds * binary_cross_entropy(p, targets.expand_as(p))
        loss.backward()  # type: ignore[no-untyped-call]
        descent.step()
    ends = [score(p, y) for p in answer(weights).detach().numpy()]
    return Row(f"{optimizer}, lr {lr:g}", [a for a, _ in ends], [b for _, b in ends])


def search(base: ir.Model, x: Array, y: Array) -> tuple[float, float]:
    """(accuracy, loss) of the network with the weights that the exhaustive oracle computes."""
    weights = run_alone(build("exhaustive", problem_of(base, len(y))), {"x": x}, y)
    with runtime.on_disk(with_weights(base, weights)) as path:
        return score(runtime.run(path, {"x": x})["p"], y)


def score(p: Array, y: Array) -> tuple[float, float]:
    """(accuracy, binary cross-entropy) of the probabilities [n, 1]."""
    likely = p[:, 0].astype(np.float64)
    right = np.where(y == 1, likely, 1 - likely)
    return float(np.mean((likely > 0.5) == y)), float(-np.log(right).mean())


def compare(runs: tuple[tuple[str, float], ...], seeds: int, steps: int) -> list[Row]:
    """One row per optimizer, then the oracle's."""
    base = ir.load(MODEL)
    with np.load(DATA) as data:
        x, y = data["x"], data["y"]
    rows = [descend(base, x, y, name, lr, seeds=seeds, steps=steps) for name, lr in runs]
    accuracy, loss = search(base, x, y)
    return [*rows, Row("exhaustive", [accuracy], [loss])]


def main(
    runs: tuple[tuple[str, float], ...] = RUNS, seeds: int = SEEDS, steps: int = STEPS
) -> None:
    """Print the table."""
    table = Table("trained by", "runs", "all right", "accuracy", "loss", box=None)
    for way, accuracies, losses in compare(runs, seeds, steps):
        right = sum(accuracy == 1 for accuracy in accuracies)
        table.add_row(
            way, str(len(accuracies)), str(right), f"{min(accuracies):.1%} … {max(accuracies):.1%}",
            f"{min(losses):.4f} … {max(losses):.4f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
