"""What learn costs with many samples: calls and memory are counted, times are never tested."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MODELS, mlp, parse, save_npz
from gdu_compile.passes import InsertMemoryPass, InsertRecorderPass

import gdu_compile
from gdu_compile import compiler, confirmation, model_io, runtime, training
from gdu_compile.data import Dataset
from gdu_compile.metadata import Extension
from gdu_compile.options import CompileOptions
from gdu_compile.report import Report
from gdu_compile.torch_backend import GraphModule, lower_to_torch
from gdu_compile.verification import Comparison, digest

SQUARE = "g (float[N,2] x) => (float[N,2] y) { y = Mul(x, x) }"


def test_torch_runs_the_algorithm_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of the armed network decodes the memory, so the comparison makes one call.

    There are more samples than one call of record's takes.
    """
    calls: list[int] = []
    run, compare = GraphModule.run, confirmation.compare_with_torch

    def counting(module: GraphModule, inputs: dict[str, torch.Tensor]) -> Any:
        calls.append(len(inputs["x"]))
        return run(module, inputs)

    def compare_counting(*arguments: Any) -> None:
        monkeypatch.setattr(GraphModule, "run", counting)
        compare(*arguments)

    monkeypatch.setattr(confirmation, "compare_with_torch", compare_counting)
    report = gdu_compile.compile(
        MODELS / "digits_linear.onnx", oracle="nearest-mean", data=MODELS / "digits.npz"
    ).report
    assert runtime.CHUNK < 1797 and calls == [1797]
    assert report.torch is not None and report.torch.agrees


@pytest.mark.parametrize("chunk", [8, 3], ids=["one call", "three calls"])
def test_results_are_in_memory_of_their_own(chunk: int) -> None:
    """What onnxruntime returns is no owner: it would keep the arena of its session alive."""
    x = np.arange(16, dtype=np.float32).reshape(8, 2)
    with runtime.on_disk(parse(SQUARE)) as path:
        (result,) = runtime.run(path, {"x": x}, chunk=chunk).values()
        (lent,) = runtime.session(path).run(None, {"x": x})
    assert result.flags.owndata and np.array_equal(result, x * x)
    assert not lent.flags.owndata


@pytest.mark.parametrize(
    ("gradient", "armed", "largest"),
    [
        ([0.0, -0.0], True, 0.0), ([0.0], True, 0.0), ([-3.0, 2.0], True, 3.0),
        ([-1.0, 2.0], False, 2.0),
        ([1.0, math.nan, 2.0], True, math.inf), ([math.nan], False, math.inf),
        ([-math.inf, 1.0], True, math.inf), (None, True, math.inf), (None, False, 0.0),
    ],
)  # fmt: skip
def test_the_largest_gradient(gradient: list[float] | None, armed: bool, largest: float) -> None:
    """max |∂L/∂θ|; NaN, and no gradient at all once armed, count as infinite."""
    theta = torch.nn.Parameter(torch.zeros(len(gradient or [0])))
    theta.grad = None if gradient is None else torch.tensor(gradient)
    found = training.largest_gradient(theta, armed)
    assert found == largest and math.copysign(1, found) == 1


SLOTS, IN_A_BUCKET = 23, 5
ROW_BYTES = 4 * (1 + 4 + 2 * 6)
"""c, four columns of labels, six elements of two digits."""


def memory_of(size: int, path: Path) -> tuple[GraphModule, Extension]:
    """The mlp with a memory of 23 slots, so many in a bucket."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((SLOTS, 6), dtype=np.float32)
    data = save_npz(path / "data.npz", {"x": x, "y": rng.integers(0, 4, SLOTS)})
    extended = gdu_compile.compile(
        mlp(), oracle="nearest-mean", data=data, confirm=False, bucket_bytes=size * ROW_BYTES
    ).extended
    return lower_to_torch(extended), Extension.from_metadata(extended.metadata_props)


@pytest.mark.parametrize("batch", [1, 4, 5, 7, 23, 40])
def test_only_the_buckets_of_a_batch_get_a_gradient(tmp_path: Path, batch: int) -> None:
    """The others get none at all, so a step does not pay for them; θ is that of a single bucket."""
    split, facts = memory_of(IN_A_BUCKET, tmp_path)
    whole, _ = memory_of(SLOTS, tmp_path)
    assert facts.memory is not None
    starts = [bucket.first for bucket in facts.memory.buckets]
    assert starts == [0, 5, 10, 15, 20]
    rng = np.random.default_rng(1)
    for first in range(0, SLOTS, batch):
        x = torch.from_numpy(rng.standard_normal((batch, 6), dtype=np.float32))
        y = torch.from_numpy(rng.integers(0, 4, batch))
        for module in (split, whole):
            module.zero_grad()
            torch.nn.functional.cross_entropy(module(x), y).backward()  # type: ignore[arg-type]
            torch.optim.SGD(module.parameters(), lr=0.1).step()
        touched = [theta.grad is not None for theta in split.parameters()]
        assert touched == [first < start + 5 and start < first + batch for start in starts]
    thetas = [theta.detach() for theta in split.parameters()]
    assert torch.equal(torch.cat(thetas), next(whole.parameters()).detach())
    assert bool((thetas[-1][:, 0] != 0).all())


@pytest.mark.parametrize(
    ("options", "size"), [({}, 8 << 20), ({"bucket_bytes": 1 << 20}, 1 << 20)], ids=str
)
def test_the_size_of_a_bucket(options: dict[str, int], size: int) -> None:
    """8 MB unless said, for learn; record has 64 MB."""
    data = MODELS / "digits.npz"
    chosen = CompileOptions.of({"data": data, **options})
    base = model_io.load(MODELS / "digits_linear.onnx")
    learn = compiler.plan(base, None, "ridge", chosen, Report("compile", "base"))
    assert [p.bucket_bytes for p in learn if isinstance(p, InsertMemoryPass)] == [size]
    oracle = MODELS / "digits_linear.oracle.npz"
    record = compiler.plan(base, oracle, None, chosen, Report("compile", "base"))
    found = [p.bucket_bytes for p in record if isinstance(p, InsertRecorderPass)]
    assert found == [size if options else 64 << 20]


def test_the_accuracy_runs_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Base, oracle and trained are run on the data once; on held-out data once more, alike."""
    calls: list[int] = []
    real = Comparison.run_on

    def run_on(self: Comparison, path: Path, data: Dataset, *more: Any) -> dict[str, np.ndarray]:
        calls.append(len(data))
        return real(self, path, data, *more)

    monkeypatch.setattr(Comparison, "run_on", run_on)
    data, found = MODELS / "digits.npz", []
    for test_data in (None, data):
        report = gdu_compile.compile(
            MODELS / "digits_linear.onnx", oracle="ridge", data=data, test_data=test_data
        ).report
        assert report.accuracy is not None
        found.append({who: report.accuracy[who] for who in ("base", "oracle", "trained")})
    assert calls == [1797] * (3 + 6)
    assert found[0] == found[1] and found[0]["oracle"] == found[0]["trained"] > 0.9


def test_controls_are_told_apart_by_every_bit() -> None:
    """−0 is not 0, and a bucket has its name and shape; equal bits have one digest."""
    theta = {"a": np.zeros((2, 2), np.float32), "b": np.ones((1, 2), np.float32)}
    minus = {**theta, "a": np.float32([[0, 0], [0, -0.0]])}
    others = [minus, {"b": theta["a"], "a": theta["b"]}, {**theta, "a": np.zeros((4, 1), "f4")}]
    known = digest(theta)
    assert digest({name: theta[name].copy() for name in ("b", "a")}) == known
    assert known not in {digest(other) for other in others}
