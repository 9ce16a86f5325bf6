"""Shared fixtures: the real models, small base networks written as ONNX text, their oracles."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

# One thread of torch a worker: two workers with two threads each wait for each other, up to 100 ms
# a step (measured).  Before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import onnx_ir as ir
import pytest

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
REAL = ["digits_linear", "digits_mlp"]
# All that end in logits [N, 10], and the rest; model_data says what each is about.
DIGITS_MODELS = [*REAL, "digits_cnn", "digits_attention", "digits_gru"]
ALL_MODELS = [*DIGITS_MODELS, "digits_probs", "iris_binary"]

HEADER = '<ir_version: 10, opset_import: ["" : 18]>\n'


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docs and docstrings name files from the root of the checkout."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder: what a command finds in a checkout, and room for what it writes."""
    for name in ("models", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    # A copy: where a command changes into it, .. is this folder.
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def model_data(name: str) -> Path:
    """The data of a real model."""
    own = MODELS / f"{name}.npz"
    return own if own.exists() else MODELS / f"{name.partition('_')[0]}.npz"


def parse(text: str, weights: Mapping[str, np.ndarray] | None = None) -> ir.Model:
    """An onnx_ir model from the ONNX text format, opset 18, with these initializers."""
    proto = onnx.parser.parse_model(HEADER + text)
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def mlp(
    *, d: int = 6, h: int = 5, classes: int = 4, batch: str | int = "N", seed: int = 0
) -> ir.Model:
    """d → h → classes with ReLU; weights W1, b1, W2, b2."""
    shapes = {"W1": (d, h), "b1": (h,), "W2": (h, classes), "b2": (classes,)}
    return parse(
        f"""mlp (float[{batch}, {d}] x) => (float[{batch}, {classes}] logits) {{
            a = MatMul(x, W1)  c = Add(a, b1)  r = Relu(c)
            e = MatMul(r, W2)  logits = Add(e, b2) }}""",
        random_weights(shapes, np.random.default_rng(seed)),
    )


def random_weights(
    shapes: Mapping[str, tuple[int, ...]], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Standard normal float32 arrays."""
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def oracle_for(model: ir.Model, seed: int = 1) -> dict[str, np.ndarray]:
    """Random oracle weights for every float initializer."""
    rng = np.random.default_rng(seed)
    return random_weights(
        {
            name: tuple(value.shape.numpy()) if value.shape is not None else ()
            for name, value in model.graph.initializers.items()
            if value.dtype == ir.DataType.FLOAT
        },
        rng,
    )


def every_pattern(size: int, seed: int = 0) -> np.ndarray:
    """float32 over the whole range: random exponents, subnormals, ±0, ±1, the largest, ±∞ no."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, size, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32).copy()
    values[~np.isfinite(values)] = np.finfo(np.float32).max
    special = np.array(
        [0.0, -0.0, 1.0, -1.0, np.finfo(np.float32).max, -np.finfo(np.float32).max,
         np.finfo(np.float32).tiny, np.finfo(np.float32).smallest_subnormal,
         -np.finfo(np.float32).smallest_subnormal, 2.0**-130],
        dtype=np.float32,
    )  # fmt: skip
    values[: min(size, special.size)] = special[:size]
    return values


def save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """np.savez under arbitrary names."""
    np.savez(path, **dict(arrays))
    return path


def save_onnx(path: Path, model: ir.Model) -> Path:
    """Write a model."""
    ir.save(model, path)
    return path
