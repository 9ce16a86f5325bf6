"""float16 networks: onnxruntime does not round everywhere, and not otherwise in the extension."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import parse
from gdu_compile.passes import insert_switches
from test_record import assert_reproduced

import gdu_compile
from gdu_compile import runtime

RNG = np.random.default_rng(16)
SHAPES = {
    "W": (16, 8), "b": (16,), "s": (16,), "t": (16,), "V": (5, 16), "c": (5,), "u": (5,),
    "v": (5,), "K": (4, 2, 3, 3), "k": (4,),
}  # fmt: skip
FIRST = "a = Gemm<transB = 1>(x, W, b) r = Relu(a) "
LAST = "z = Gemm<transB = 1>(l, V, c) "
NORM = "l = LayerNormalization(r, s, t) "
# case → (nodes, outputs, options); r [N, 16] → z [N, 5]
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "normalization between products": (NORM + LAST, "float16[N,5] z", {}),
    "two normalizations": (
        "k1 = LayerNormalization(r, s, t) l = LayerNormalization(k1, s, t) " + LAST,
        "float16[N,5] z", {},
    ),
    "at the end": (
        "l = Identity(r) " + LAST + "y = LayerNormalization(z, u, v)", "float16[N,5] y", {},
    ),
    "in front of Softmax": (
        "l = Identity(r) " + LAST + "q = LayerNormalization(z, u, v) y = Softmax(q)",
        "float16[N,5] y", {},
    ),
    "Softmax in float32": (
        NORM + LAST + "f = Cast<to = 1>(z) y = Softmax(f)", "float[N,5] y", {},
    ),
    "label and probabilities": (
        NORM + LAST + "y = Softmax(z) i = ArgMax(y)", "float16[N,5] y, int64[N,1] i", {},
    ),
    "a label": (NORM + LAST + "y = Softmax(z) i = ArgMax<keepdims = 0>(y)", "int64[N] i", {}),
    "logits that are named": (
        NORM + LAST + "y = Softmax(z) i = ArgMax(y)", "float16[N,5] y, int64[N,1] i",
        {"logits": "z"},
    ),
    "an output inside": (NORM + LAST, "float16[N,5] z, float16[N,16] l", {}),
    "convolution": (
        "shape = Constant<value = int64[4] {-1,2,2,4}>() w = Reshape(r, shape) "
        "p = Conv<pads = [1,1,1,1]>(w, K, k) o = Relu(p) g = GlobalAveragePool(o) "
        "y = Flatten(g)", "float16[N,4] y", {},
    ),
}  # fmt: skip


def compiled(case: str, folder: Path) -> tuple[gdu_compile.Compiled, Path]:
    """A network with an oracle for all weights; and the extracted file."""
    nodes, outputs, options = CASES[case]
    text = f"g (float16[N,8] x) => ({outputs}) {{ {FIRST}{nodes} }}"
    used = {name for name in SHAPES if f" {name}," in text or f" {name})" in text}
    base, oracle = (
        {name: RNG.standard_normal(SHAPES[name]).astype(np.float16) for name in sorted(used)}
        for _ in range(2)
    )
    model = parse(text, base)
    model.graph.opset_imports[""] = 20
    done = gdu_compile.compile(model, oracle, output=folder / "m.onnx", steps=1, **options)
    return done, folder / "m.trained.onnx"


@pytest.mark.parametrize("case", CASES)
def test_float16(case: str, tmp_path: Path) -> None:
    """At both levels the outputs are those of the base with the oracle's weights."""
    done, trained = compiled(case, tmp_path)
    assert_reproduced(done.report)
    plain = tmp_path / "plain.onnx"
    gdu_compile.extract(trained, output=plain)
    x = {"x": RNG.standard_normal((33, 8)).astype(np.float16)}
    for level in runtime.LEVELS:
        one, other = (runtime.run(path, x, level=level) for path in (plain, trained))
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_without_the_product_onnxruntime_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: behind a bare If the normalization runs in float16."""
    monkeypatch.setattr(insert_switches, "as_constant", lambda b, switched: switched)
    done, _ = compiled("normalization between products", tmp_path)
    assert not done.report.forward_unoptimized.bit_equal and not done.report.reproduced
