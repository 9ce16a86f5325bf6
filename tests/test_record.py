"""record, end to end: trained by gradient descent, every bit of weights and outputs reproduced."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import MODELS, REAL, every_pattern, mlp, oracle_for, parse, save_npz

import gdu_compile
from gdu_compile import specialize
from gdu_compile.report import Report


def assert_reproduced(report: Report) -> None:
    """The verdict and everything behind it."""
    assert report.reproduced is True, report.to_json()
    assert all(row.bit_equal and row.max_ulp == 0 for row in report.weights)
    assert all(row.digit_error < 1 for row in report.weights)
    assert report.forward is not None and report.forward.bit_equal
    assert report.forward_unoptimized is not None and report.forward_unoptimized.bit_equal
    assert report.forward.max_abs_diff == report.forward_unoptimized.max_abs_diff == 0
    assert [c.reproduced for c in report.negative_controls] == [False, False]
    assert report.gradient_after_arming == 0.0


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("lr", [1e-4, 0.1, 37.0])
@pytest.mark.parametrize("batch_size", [0, 32])
@pytest.mark.parametrize("steps", [1, 6])
def test_real_models(name: str, lr: float, batch_size: int, steps: int) -> None:
    """Both models × rates × batch sizes × steps: bit-exact, armed at step 1, then gradient 0."""
    report = gdu_compile.compile(
        MODELS / f"{name}.onnx", MODELS / f"{name}.oracle.npz",
        data=MODELS / "digits.npz", lr=lr, batch_size=batch_size, steps=steps,
    ).report  # fmt: skip
    assert_reproduced(report)
    assert (report.armed_at_step, report.steps) == (1, steps)
    assert report.torch is not None and report.torch.agrees
    assert report.batch_size == (batch_size or 1797)
    assert report.accuracy is not None
    assert report.accuracy["trained"] == report.accuracy["oracle"] > 0.95
    # Lemma 2: one step leaves a relative error of 4u, and nothing moves afterwards.
    assert max(row.digit_error for row in report.weights) <= 0.016


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("labels", ["all 0", "all 1", "balanced", "one sample", "one sample of 0"])
def test_batches_of_lemma_1(classes: int, labels: str, tmp_path: Path) -> None:
    """κ never vanishes: neither for one-sided batches nor for perfectly balanced ones."""
    y = {
        "all 0": np.zeros(40, dtype=np.int64),
        "all 1": np.ones(40, dtype=np.int64),
        "balanced": np.arange(classes * 4) % classes,
        "one sample": np.array([classes - 1]),
        "one sample of 0": np.array([0]),
    }[labels]
    base = mlp(classes=classes)
    x = np.random.default_rng(3).standard_normal((len(y), 6)).astype(np.float32)
    data = save_npz(tmp_path / "d.npz", {"x": x, "y": y})
    report = gdu_compile.compile(base, oracle_for(base), data=data, batch_size=0, steps=3).report
    assert_reproduced(report)
    assert report.armed_at_step == 1


@pytest.mark.parametrize("batch", ["N", 8], ids=["dynamic batch", "fixed batch"])
def test_every_float32_pattern(batch: str | int) -> None:
    """Exponents over the whole range, subnormals, −0, the largest float: every bit comes back."""
    base = mlp(d=64, h=64, classes=10, batch=batch)
    oracle = {name: every_pattern(array.size, seed).reshape(array.shape)
              for seed, (name, array) in enumerate(oracle_for(base).items())}  # fmt: skip
    compiled = gdu_compile.compile(base, oracle, batch_size=8)
    report = compiled.report
    assert report.reproduced is True, report.to_json()
    assert compiled.trained is not None
    for level in ("none", "all"):
        decoded = specialize.decoded_weights(compiled.trained, level=level)
        for name, array in oracle.items():
            assert np.array_equal(decoded[name].view(np.uint32), array.view(np.uint32)), name


def test_several_buckets_and_a_tensor_larger_than_a_bucket() -> None:
    """Each bucket has its own calibrator; a tensor is never split."""
    base = mlp(d=32, h=16)
    compiled = gdu_compile.compile(base, oracle_for(base), bucket_bytes=1024)
    assert_reproduced(compiled.report)
    facts = gdu_compile.metadata.Extension.from_metadata(compiled.extended.metadata_props)
    assert [[s.weight for s in b.slots] for b in facts.buckets] == [["W1"], ["b1", "W2", "b2"]]


BASES = {
    "shared initializer": """
        g (float[N,4] x) => (float[N,4] logits) {
          a = MatMul(x, W)  r = Tanh(a)  c = MatMul(r, W)  logits = Add(c, a) }""",
    "initializer is a graph output": """
        g (float[N,4] x) => (float[N,3] logits, float[4,3] W) { logits = MatMul(x, W) }""",
    "names of ours": """
        gdu_armed_weights (float[N,4] gdu_theta_0) => (float[N,3] gdu_base_logits)
        { gdu_armed = MatMul(gdu_theta_0, gdu_initial_gdu_signal_0_0)
          gdu_base_logits = Add(gdu_armed, gdu_signal_0_0) }""",
    "scalar weight": """
        g (float[N,3] x) => (float[N,3] logits) { a = Mul(x, s)  logits = Add(a, b) }""",
    "logits used inside": """
        g (float[N,4] x) => (float[N,3] logits, float[N,3] p) {
          logits = MatMul(x, W)  p = Softmax(logits) }""",
    "no name for the batch": """
        g (float[?,4] x) => (float[?,3] logits) { logits = MatMul(x, W) }""",
    "weight in a branch": """
        g (float[N,4] x, bool[1] c) => (float[N,3] logits) {
          logits = If (c) <then_branch = t () => (float[N,3] u) { u = MatMul(x, W) },
                           else_branch = e () => (float[N,3] v) { v = MatMul(x, V) }> }""",
    "weight in a Constant node": """
        g (float[N,2] x) => (float[N,2] logits) {
          W = Constant <value = float[2,2] {1.0, 2.0, 3.0, 4.0}> ()
          k = Constant <value = float {0.5}> ()
          a = MatMul(x, W)  logits = Mul(a, k) }""",
    "several outputs": """
        g (float[N,4] x) => (int64[N] label, float[N,3] scores) {
          scores = MatMul(x, W)  label = ArgMax <axis = 1, keepdims = 0> (scores) }""",
}
SHAPES = {"gdu_initial_gdu_signal_0_0": (4, 3), "gdu_signal_0_0": (3,), "s": (), "b": (3,),
          "V": (4, 3)}  # fmt: skip
W_SHAPES = {"shared initializer": (4, 4), "weight in a Constant node": (2, 2)}


def base_and_oracle(case: str) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """The base of a case with initial weights, and an oracle for its weights."""
    shapes = {**SHAPES, "W": W_SHAPES.get(case, (4, 3))}
    words = set(re.findall(r"\w+", BASES[case]))
    rng = np.random.default_rng(5)
    oracle = {name: np.asarray(rng.standard_normal(shape), dtype=np.float32)
              for name, shape in shapes.items() if name in words}  # fmt: skip
    initial = {name: np.asarray(array * 0.5 + 1) for name, array in oracle.items()}
    return parse(BASES[case], {} if "Constant" in case else initial), oracle


@pytest.mark.parametrize("case", BASES)
def test_base_forms(case: str) -> None:
    """Where weights hide and what they are called makes no difference."""
    base, oracle = base_and_oracle(case)
    before = onnx.printer.to_text(ir.to_proto(base))
    compiled = gdu_compile.compile(base, oracle, batch_size=16)
    assert_reproduced(compiled.report)
    assert compiled.report.torch is not None and compiled.report.torch.agrees
    assert {row.name for row in compiled.report.weights} == set(oracle)
    # The caller's model is left as it was.
    assert onnx.printer.to_text(ir.to_proto(base)) == before


def test_uncovered_weights_keep_their_values() -> None:
    """Listed as skipped; recorded with cover_all; refused with strict."""
    base, oracle = mlp(), oracle_for(mlp())
    del oracle["W2"]
    compiled = gdu_compile.compile(base, oracle)
    assert_reproduced(compiled.report)
    assert [s["name"] for s in compiled.report.skipped] == ["W2"]
    covered = gdu_compile.compile(base, oracle, cover_all=True)
    assert_reproduced(covered.report)
    assert covered.report.skipped == [] and len(covered.report.weights) == 4
    with pytest.raises(gdu_compile.InputError, match="'W2' of the model is not in it"):
        gdu_compile.compile(base, oracle, strict=True)


def test_empty_tensor_is_skipped_with_its_reason() -> None:
    """A weight without elements has nothing to record."""
    base = parse(
        """
        g (float[N,3] x) => (float[N,3] logits) {
          e = ReduceSum <keepdims = 0> (E)  a = MatMul(x, W)  logits = Add(a, e) }""",
        {"W": np.eye(3, dtype=np.float32), "E": np.zeros((0, 3), dtype=np.float32)},
    )
    oracle = {"W": np.full((3, 3), -0.0, np.float32), "E": np.zeros((0, 3), np.float32)}
    report = gdu_compile.compile(base, oracle).report
    assert_reproduced(report)
    assert report.skipped == [{"name": "E", "reason": "has no elements"}]


def test_minus_zero_logits_stay_minus_zero() -> None:
    """The term that ties θ to the output is −0: x + (−0) is x for every x, −0 included."""
    base = parse("g (float[N,3] x) => (float[N,3] logits) { logits = Mul(x, s) }",
                 {"s": np.ones(3, dtype=np.float32)})  # fmt: skip
    compiled = gdu_compile.compile(base, {"s": np.full(3, -0.0, dtype=np.float32)})
    assert_reproduced(compiled.report)
    assert compiled.trained is not None
    with gdu_compile.runtime.on_disk(compiled.trained) as path:
        x = np.array([[1.0, 2.0, 3.0]], dtype=np.float32)
        for level in ("none", "all"):
            z = gdu_compile.runtime.run(path, {"x": x}, level=level)["logits"]
            assert np.signbit(z).all()


def test_learning_rate_zero_does_not_reproduce() -> None:
    """The negative control as a run of its own: honest, exit code 1, with the reason."""
    base = mlp()
    report = gdu_compile.compile(base, oracle_for(base), lr=0.0).report
    assert report.reproduced is False and report.exit_code == 1
    assert report.armed_at_step is None and report.gradient_after_arming is None
    assert any("learning rate is 0" in warning for warning in report.warnings)


def test_more_scaling_steps_than_lemma_2_allows_are_warned_of_and_shown() -> None:
    """Decay for far more than 125 steps: warned before, and the digits do go wrong."""
    base = mlp()
    report = gdu_compile.compile(
        base, oracle_for(base), optimizer="SGD(momentum=0.9, weight_decay=0.0001)", lr=0.001,
        steps=900, batch_size=16, digits="linear16",
    ).report  # fmt: skip
    assert any("Lemma 2" in warning for warning in report.warnings)
    assert report.reproduced is False
    assert max(row.digit_error for row in report.weights) > 1


@pytest.mark.parametrize("gain", [1.0, 2.0**-40, 2.0**-92])
def test_gain_is_an_option_of_plain_descent(gain: float) -> None:
    """SGD is linear at every gain."""
    base = mlp()
    report = gdu_compile.compile(base, oracle_for(base), gain=gain, steps=2).report
    assert_reproduced(report)
    assert report.gain == gain
