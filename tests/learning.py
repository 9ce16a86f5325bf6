"""Small bases and algorithms for learn, written as ONNX text over inputs of any dtype and rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from conftest import parse, random_weights
from everywhere import patterns

import gdu_compile
from gdu_compile.confirmation import run_training
from gdu_compile.digits import Array
from gdu_compile.options import CompileOptions
from gdu_compile.preparation import prepare_training
from gdu_compile.report import Report

Fields = Mapping[str, tuple[str, tuple[int, ...]]]
"""Input → its dtype as ONNX text spells it, and the shape of one sample."""

X: Fields = {"x": ("float", (4,))}
MIXED: Fields = {
    "u": ("uint8", (2, 3)), "x": ("float", ()), "k": ("int64", (2,)), "g": ("bool", (1, 2, 1)),
    "h": ("float16", (3,)),
}  # fmt: skip
NUMPY = {"float": "float32", "double": "float64"}
TAILS = {
    "logits": "logits = Add(e, b)",
    "sigmoid": "z = Add(e, b)  logits = Sigmoid(z)",
    "softmax": "z = Add(e, b)  logits = Softmax(z)",
    "logsoftmax": "z = Add(e, b)  logits = LogSoftmax(z)",
}


def features(fields: Fields) -> tuple[str, int]:
    """Nodes that make one row of floats in −9 … 9 of all inputs, ``f`` [N, d]; and d."""
    lines = ["low = Constant <value = float {-9.0}> ()  high = Constant <value = float {9.0}> ()"]
    total = 0
    for i, (name, (_, shape)) in enumerate(fields.items()):
        total += (size := math.prod(shape))
        lines.append(
            f"s{i} = Constant <value = int64[2] {{-1, {size}}}> ()  v{i} = Reshape({name}, s{i})  "
            f"c{i} = Cast <to = 1> (v{i})  l{i} = Clip(c{i}, low, high)"
        )
    parts = ", ".join(f"l{i}" for i in range(len(fields)))
    return "\n".join([*lines, f"f = Concat <axis = 1> ({parts})"]), total


def signature(fields: Fields, batch: str | int) -> str:
    """The inputs of a graph."""
    return ", ".join(
        f"{kind}[{', '.join(map(str, [batch, *shape]))}] {name}"
        for name, (kind, shape) in fields.items()
    )


def network(
    fields: Fields = X, classes: int = 3, *, batch: str | int = "N", tail: str = "logits"
) -> ir.Model:
    """A linear base: weights W [d, C] and b [C]."""
    text, d = features(fields)
    return parse(
        f"""net ({signature(fields, batch)}) => (float[{batch}, {classes}] logits) {{
            {text}  e = MatMul(f, W)  {TAILS[tail]} }}""",
        random_weights({"W": (d, classes), "b": (classes,)}, np.random.default_rng(0)),
    )


def sums(
    fields: Fields = X, classes: int = 3, *, samples: str | int = "n", labels: str = "Y"
) -> ir.Model:
    """The algorithm: W[:, k] is the sum of the samples of class k, b[k] their number."""
    text, d = features(fields)
    end = "W = Identity(t)  b = Identity(m)"
    if classes == 1:
        end = "W = Slice(t, one, two, one)  b = Slice(m, one, two, zero)"
    return parse(
        f"""sums ({signature(fields, samples)}, int64[{samples}] {labels})
            => (float[{d}, {classes}] W, float[{classes}] b) {{
            {text}
            depth = Constant <value = int64 {{{max(classes, 2)}}}> ()
            off_on = Constant <value = float[2] {{0.0, 1.0}}> ()
            zero = Constant <value = int64[1] {{0}}> ()  one = Constant <value = int64[1] {{1}}> ()
            two = Constant <value = int64[1] {{2}}> ()
            hot = OneHot({labels}, depth, off_on)  ft = Transpose <perm = [1, 0]> (f)
            t = MatMul(ft, hot)  m = ReduceSum <keepdims = 0> (hot, zero)  {end} }}"""
    )


def sample(fields: Fields = X, n: int = 23, classes: int = 3, seed: int = 0) -> dict[str, Array]:
    """n samples of numbers of every kind, with ``y``."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for name, (kind, shape) in fields.items():
        if kind == "bool":
            arrays[name] = rng.integers(0, 2, (n, *shape)).astype(bool)
        else:
            size = n * math.prod(shape)
            arrays[name] = patterns(NUMPY.get(kind, kind), size, seed).reshape(n, *shape)
    return {**arrays, "y": rng.integers(0, classes, n)}


def learn(
    folder: Path, arrays: Mapping[str, Array], base: ir.Model, oracle: Any, **options: Any
) -> gdu_compile.Compiled:
    """compile() with the data in a file."""
    path = folder / "d.npz"
    np.savez(path, **dict(arrays))
    return gdu_compile.compile(base, oracle=oracle, data=path, **options)


def memorise(
    folder: Path, arrays: Mapping[str, Array], base: ir.Model, oracle: Any, **options: Any
) -> Report:
    """compile(), one training without controls, verify(): a third of ``learn``'s time."""
    compiled = learn(folder, arrays, base, oracle, confirm=False, **options)
    chosen = CompileOptions(data=folder / "d.npz", **options)
    prepared = prepare_training(compiled.extended, chosen, Report("train", ""))
    theta = run_training(compiled.extended, prepared, None).theta
    return gdu_compile.verify(compiled.extended, theta, data=chosen.data, loss=chosen.loss)


def assert_memorised(report: Report, slots: int) -> None:
    """The whole training set, in an order that the verifier was not told."""
    assert report.reproduced is True, report.to_json()
    assert report.memory is not None and report.algorithm is not None
    assert report.memory.filled == report.memory.slots == slots and report.memory.wrong == []
    assert report.memory.bit_equal and report.memory.labels_equal
    assert report.algorithm.bit_equal_to_oracle_run
    assert [control.reproduced for control in report.negative_controls] == [False]
    assert report.memory.permuted_order is None  # nothing was trained by verify
    assert report.torch is not None and report.torch.agrees


def assert_learnt(report: Report) -> None:
    """The verdict and everything behind it."""
    assert report.reproduced is True, report.to_json()
    memory = report.memory
    assert memory is not None and memory.filled == memory.slots
    assert memory.bit_equal and memory.labels_equal and memory.wrong == []
    assert memory.permuted_order and memory.changed_slots_only
    assert memory.digit_error is not None and memory.digit_error < 1
    assert report.algorithm is not None and report.algorithm.bit_equal_to_oracle_run
    assert all(row.bit_equal and row.max_ulp == 0 for row in report.weights)
    assert report.forward is None and report.forward_unoptimized is not None
    assert report.forward_unoptimized.bit_equal
    assert [(control.name, control.reproduced) for control in report.negative_controls] == [
        ("untrained", False), ("learning rate 0", False), ("one label and one value changed", False)
    ]  # fmt: skip
    assert report.gradient_after_arming == 0.0
    assert report.torch is not None and report.torch.agrees


@dataclass
class ByHand:
    """An extended network, and a training loop that is not ours.

    Attributes:
        extended: the extended model.
        data: the data file it was compiled for.
        arrays: what is in it.
    """

    extended: ir.Model
    data: Path
    arrays: dict[str, Array]

    def train(
        self, batches: list[Array], optimizer: Any, *, rates: Any = None, accumulate: int = 1,
        loss: Any = torch.nn.functional.cross_entropy,
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        """θ after one step a batch.

        Args:
            batches: indices of samples.
            optimizer: parameters → a torch optimizer.
            rates: step's number → its learning rate; None leaves the optimizer's own.
            accumulate: batches a step.
            loss: of logits and classes.
        """
        module = gdu_compile.to_torch(self.extended)
        stepping = optimizer(module.parameters())
        for step, indices in enumerate(batches):
            for group in stepping.param_groups:
                group["lr"] = group["lr"] if rates is None else rates(step)
            x, y = (torch.from_numpy(self.arrays[name][indices]) for name in ("x", "y"))
            loss(module(x), y).backward()
            if (step + 1) % accumulate == 0:
                stepping.step()
                stepping.zero_grad()
        return {name: theta.detach() for name, theta in module.named_parameters()}

    def verify(self, theta: Mapping[str, Any]) -> Report:
        """The verdict on a θ."""
        return gdu_compile.verify(self.extended, theta, data=self.data)


def by_hand(folder: Path, n: int = 41, **options: Any) -> ByHand:
    """The small network, not yet trained."""
    arrays = sample(n=n)
    path = folder / f"{n}-{'-'.join(map(str, options.values()))}.npz"
    np.savez(path, **arrays)
    compiled = gdu_compile.compile(network(), oracle=sums(), data=path, confirm=False, **options)
    return ByHand(compiled.extended, path, arrays)


def cut(order: Array, sizes: list[int]) -> list[Array]:
    """Batches of these sizes; the last size again and again until the order is used up."""
    batches = []
    while len(order):
        size = sizes[min(len(batches), len(sizes) - 1)]
        batches.append(order[:size])
        order = order[size:]
    return batches
