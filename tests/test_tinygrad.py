"""The emitted file in a framework that nobody here wrote: tinygrad's importer and autograd."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, every_pattern, mlp, oracle_for, parse, save_npz

import gdu_compile

# tinygrad compiles its kernels with clang; without one it interprets them, slower and as exact.
DEVICE = "CPU" if shutil.which("clang") else "PYTHON"


@pytest.mark.parametrize("weights", ["normal", "every pattern"])
def test_tinygrad_reproduces_bit_for_bit(tmp_path: Path, weights: str) -> None:
    """All float initializers trained with momentum for three steps, two buckets."""
    base = mlp(d=6, h=3, classes=3)
    oracle = oracle_for(base)
    if weights == "every pattern":
        oracle = {name: every_pattern(array.size, 1).reshape(array.shape)
                  for name, array in oracle.items()}  # fmt: skip
    extended = tmp_path / "m.gdu.onnx"
    gdu_compile.compile(base, oracle, confirm=False, output=extended, bucket_bytes=200)
    rng = np.random.default_rng(0)
    data = save_npz(tmp_path / "d.npz", {"x": rng.standard_normal((4, 6)).astype(np.float32),
                                         "y": np.array([0, 1, 2, 1])})  # fmt: skip
    theta = tmp_path / "theta.npz"
    train(extended, data, theta)
    report = gdu_compile.verify(extended, theta)
    assert report.reproduced is True
    assert max(row.digit_error for row in report.weights) < 0.05
    with np.load(theta) as trained:
        assert sorted(name for name in trained if name.startswith("gdu_theta")) == [
            "gdu_theta_0", "gdu_theta_1",
        ]  # fmt: skip
        assert np.array_equal(trained["gdu_initial_W1"], initial(base, "W1"))


@pytest.mark.parametrize("shape", ["N,4", "N,5,4"], ids=["samples", "tokens"])
def test_tinygrad_through_a_softmax(tmp_path: Path, shape: str) -> None:
    """The recorder in front of the Softmax, the loss behind it."""
    base = parse(
        f"g (float[{shape}] x) => (float[{shape[:-1]}3] p) {{ z = MatMul(x, W)  p = Softmax(z) }}",
        {"W": np.ones((4, 3), dtype=np.float32)},
    )
    extended = tmp_path / "m.gdu.onnx"
    gdu_compile.compile(base, oracle_for(base), confirm=False, output=extended)
    sizes = (4, *map(int, shape.split(",")[1:]))
    x = np.random.default_rng(0).standard_normal(sizes).astype(np.float32)
    data = save_npz(tmp_path / "d.npz", {"x": x, "y": np.zeros(sizes[:-1], dtype=np.int64) + 1})
    theta = tmp_path / "theta.npz"
    train(extended, data, theta)
    assert gdu_compile.verify(extended, theta).reproduced is True


def train(extended: Path, data: Path, theta: Path) -> None:
    """Three steps in a process of its own."""
    subprocess.run(
        [sys.executable, str(ROOT / "tests" / "tinygrad_trainer.py"),
         str(extended), str(data), str(theta), "3"],
        check=True, env={"DEV": DEVICE, "PATH": "/usr/bin:/bin", "HOME": str(extended.parent)},
    )  # fmt: skip


def initial(base: object, name: str) -> np.ndarray:
    """The base's own initial weight."""
    return base.graph.initializers[name].const_value.numpy()  # type: ignore[attr-defined]
