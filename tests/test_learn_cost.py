"""What learn costs with many samples: calls and memory are counted, times are never tested."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MODELS, parse

import gdu_compile
from gdu_compile import confirmation, runtime, training
from gdu_compile.torch_backend import GraphModule

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
        ([0.0, -0.0], True, 0.0), ([-3.0, 2.0], True, 3.0), ([-1.0, 2.0], False, 2.0),
        ([1.0, math.nan, 2.0], True, math.inf), ([math.nan], False, math.inf),
        ([-math.inf, 1.0], True, math.inf), (None, True, math.inf), (None, False, 0.0),
    ],
)  # fmt: skip
def test_the_largest_gradient(gradient: list[float] | None, armed: bool, largest: float) -> None:
    """max |∂L/∂θ|; NaN, and no gradient at all once armed, count as infinite."""
    theta = torch.nn.Parameter(torch.zeros(len(gradient or [0])))
    theta.grad = None if gradient is None else torch.tensor(gradient)
    assert training.largest_gradient(theta, armed) == largest
