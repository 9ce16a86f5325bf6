"""Gradient descent on the base, and on its extensions: the same optimizer, batches and steps.

    python examples/07_base_and_extension/curves.py build/curves

It writes build/curves.svg, and the numbers in it as build/curves.csv.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import onnx_ir as ir
import torch
from matplotlib.figure import Figure
from torch.nn.functional import cross_entropy

import gdu_compile
from gdu_compile.torch_backend import lower_to_torch

MODEL, WEIGHTS = "models/digits_mlp.onnx", "models/digits_mlp.oracle.npz"
ORACLE = "adam(lr=0.01, steps=150)"
Build = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Build] = {
    "SGD, lr 0.3": lambda parameters: torch.optim.SGD(parameters, lr=0.3),
    "Adam, lr 0.01": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}
STEPS, BATCH, TEST = 36, 64, 359
STYLES = {
    "base": ("#0072b2", "-"),
    "extension for weights (record)": ("#d55e00", "--"),
    "extension for an algorithm (learn)": ("#009e73", "-."),
}


class Samples(NamedTuple):
    """Digits: x float32 [n, 1, 8, 8], y int64 [n]."""

    x: torch.Tensor
    y: torch.Tensor


class Point(NamedTuple):
    """What a network is worth after some steps, on the samples that it was not trained on."""

    optimizer: str
    network: str
    step: int
    loss: float
    accuracy: float


def split() -> tuple[Samples, Samples]:
    """Training set and test set, seeded."""
    with np.load("models/digits.npz") as data:
        x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return Samples(x[order[TEST:]], y[order[TEST:]]), Samples(x[order[:TEST]], y[order[:TEST]])


def networks(train: Samples) -> dict[str, ir.Model]:
    """The base and its two extensions."""
    record = gdu_compile.compile(MODEL, WEIGHTS, confirm=False)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "train.npz"
        np.savez(data, x=train.x.numpy(), y=train.y.numpy())
        learn = gdu_compile.compile(MODEL, oracle=ORACLE, data=data, confirm=False)
    return dict(zip(STYLES, (ir.load(MODEL), record.extended, learn.extended), strict=True))


def module_of(network: str, model: ir.Model) -> torch.nn.Module:
    """Parameters: the weights of the base, or θ of an extension."""
    if network != "base":
        return gdu_compile.to_torch(model)  # type: ignore[no-any-return]
    floats = [n for n, v in model.graph.initializers.items() if v.dtype == ir.DataType.FLOAT]
    return lower_to_torch(model, floats)


def descend(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, train: Samples, test: Samples
) -> Iterator[tuple[float, float]]:
    """(loss, accuracy) on the test set before the first step and after each."""
    yield measure(module, test)
    for step in range(STEPS):
        batch = torch.arange(step * BATCH, (step + 1) * BATCH) % len(train.y)
        optimizer.zero_grad()
        loss = cross_entropy(module(train.x[batch]), train.y[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield measure(module, test)


@torch.no_grad()
def measure(module: torch.nn.Module, test: Samples) -> tuple[float, float]:
    """(loss, accuracy)."""
    logits = module(test.x)
    right = (logits.argmax(1) == test.y).double().mean()
    return cross_entropy(logits, test.y).item(), right.item()


def compare() -> list[Point]:
    """All curves."""
    train, test = split()
    points = []
    for network, model in networks(train).items():
        for name, build in OPTIMIZERS.items():
            module = module_of(network, model)
            curve = descend(module, build(module.parameters()), train, test)
            points += [Point(name, network, step, *values) for step, values in enumerate(curve)]
    return points


def draw(points: list[Point], path: Path) -> None:
    """Loss and accuracy, a column for each optimizer; the same points give the same bytes."""
    with matplotlib.rc_context({"svg.hashsalt": "gdu-compile", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        axes = figure.subplots(2, len(OPTIMIZERS), sharex=True, sharey="row")
        for column, name in enumerate(OPTIMIZERS):
            for network, (color, line) in STYLES.items():
                curve = [p for p in points if (p.optimizer, p.network) == (name, network)]
                steps = [p.step for p in curve]
                style = {"color": color, "linestyle": line, "label": network,
                         "drawstyle": "steps-post"}  # fmt: skip
                axes[0, column].plot(steps, [p.loss for p in curve], **style)
                axes[1, column].plot(steps, [p.accuracy for p in curve], **style)
            axes[0, column].set(title=name, yscale="log")
            axes[1, column].set(xlabel="step of gradient descent", ylim=(0, 1))
        axes[0, 0].set_ylabel("loss on the test set")
        axes[1, 0].set_ylabel("accuracy on the test set")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def main(output: Path) -> None:
    """Write the picture and the numbers."""
    output.parent.mkdir(parents=True, exist_ok=True)
    points = compare()
    with output.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([Point._fields, *points])
    draw(points, output.with_suffix(".svg"))
    for point in points:
        if point.step in {0, 1, STEPS}:
            print(f"{point.optimizer:14} {point.network:35} step {point.step:2}: "
                  f"loss {point.loss:.4f}, accuracy {point.accuracy:.2%}")  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
