"""The emitted file in a framework that nobody here wrote: tinygrad's importer and autograd."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, every_pattern, mlp, oracle_for, save_npz

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
    subprocess.run(
        [sys.executable, str(ROOT / "tests" / "tinygrad_trainer.py"),
         str(extended), str(data), str(theta), "3"],
        check=True, env={"DEV": DEVICE, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    report = gdu_compile.verify(extended, theta)
    assert report.reproduced is True
    assert max(row.digit_error for row in report.weights) < 0.05
    with np.load(theta) as trained:
        assert sorted(name for name in trained if name.startswith("gdu_theta")) == [
            "gdu_theta_0", "gdu_theta_1",
        ]  # fmt: skip
        assert np.array_equal(trained["gdu_initial_W1"], initial(base, "W1"))


def initial(base: object, name: str) -> np.ndarray:
    """The base's own initial weight."""
    return base.graph.initializers[name].const_value.numpy()  # type: ignore[attr-defined]
