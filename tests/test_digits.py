"""The digit code: numpy against the emitted graph in onnxruntime and torch, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import every_pattern

from gdu_compile import runtime
from gdu_compile.contracts import PASS_KEY
from gdu_compile.digits import LINEAR16, Float32, exponent_table, ulp_distance
from gdu_compile.emit import Builder, emit_bits, emit_decode
from gdu_compile.names import Names
from gdu_compile.torch_backend import lower_to_torch


def graph_of(build: str, rows: int) -> ir.Model:
    """A model around emit_bits or emit_decode for ``rows`` rows."""
    x = ir.val("x", ir.DataType.FLOAT, [rows if build == "bits" else rows + 1, 2])
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 18}, name="g")
    b = Builder(Names(ir.Model(graph, ir_version=10)), "test")
    if build == "bits":
        outputs = [emit_bits(b, x, rows)]
    else:
        weights, tie = emit_decode(b, x, LINEAR16, 2.0**-80, [rows])
        outputs = [*weights, tie]
    graph.extend(b.nodes)
    graph.outputs.extend(outputs)
    return ir.Model(graph, ir_version=10)


def run_everywhere(model: ir.Model, x: np.ndarray) -> dict[str, list[np.ndarray]]:
    """The model's outputs in onnxruntime (both levels) and in torch."""
    import torch

    results = {}
    with runtime.on_disk(model) as path:
        for level in ("none", "all"):
            results[level] = list(runtime.run(path, {"x": x}, level=level, batch=len(x)).values())
    outputs = lower_to_torch(model, ())(torch.from_numpy(x))
    several = outputs if isinstance(outputs, tuple) else (outputs,)
    results["torch"] = [output.numpy() for output in several]
    return results


def test_digits_are_a_view_and_come_back() -> None:
    """No copy, every pattern, both directions."""
    weight = every_pattern(1000).reshape(10, 100)
    digits = LINEAR16.to_digits(weight)
    assert np.shares_memory(digits, weight)
    back = LINEAR16.from_digits(digits, weight.shape)
    assert np.array_equal(back.view(np.uint32), weight.view(np.uint32))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 4)])
def test_shapes(shape: tuple[int, ...]) -> None:
    """Scalars, empty arrays, odd shapes."""
    weight = np.asarray(every_pattern(int(np.prod(shape))), dtype=np.float32).reshape(shape)
    digits = LINEAR16.to_digits(weight)
    assert digits.shape == (weight.size, 2)
    assert LINEAR16.from_digits(digits, shape).shape == shape


def test_bits_are_exact_for_every_upper_half() -> None:
    """All 65 536 upper halves × a sample of lower halves: onnxruntime and torch give the float."""
    lows = np.array([0, 1, 2, 0x7FFF, 0x8000, 0xFFFF], dtype=np.uint32)
    highs = np.arange(65536, dtype=np.uint32)
    patterns = ((highs[:, None] << 16) | lows[None, :]).reshape(-1)
    values = patterns.view(np.float32)
    patterns = patterns[~np.isnan(values)]
    digits = np.stack([patterns & 0xFFFF, patterns >> 16], axis=1).astype(np.float32)
    for where, (got,) in run_everywhere(graph_of("bits", len(digits)), digits).items():
        assert np.array_equal(got.reshape(-1).view(np.uint32), patterns), where


def theta_for(weight: Float32, scale: float) -> Float32:
    """What one step of gradient descent leaves: −ηγκ·s, rounded to float32."""
    digits = np.concatenate([np.full((1, 2), LINEAR16.calibrator), LINEAR16.to_digits(weight)])
    return (LINEAR16.signal(digits) * np.float32(scale)).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-30, -3.3e-27, 7.7e-20, -1e-34])
def test_decode_agrees_everywhere(scale: float) -> None:
    """θ → weights in numpy, onnxruntime and torch, for κ of either sign; the tie is −0."""
    weight = every_pattern(5000)
    theta = theta_for(weight, scale)
    ratio = LINEAR16.ratio(theta, 2.0**-80)
    assert LINEAR16.digit_error(ratio, LINEAR16.to_digits(weight)) <= LINEAR16.digit_error_bound(0)
    assert np.array_equal(LINEAR16.quantize(ratio), LINEAR16.to_digits(weight))
    for where, (got, tie) in run_everywhere(graph_of("decode", len(weight)), theta).items():
        assert np.array_equal(got.reshape(-1).view(np.uint32), weight.view(np.uint32)), where
        assert tie == 0 and np.signbit(tie), where


def test_unarmed_decoder_is_finite() -> None:
    """θ = 0 divides by 1, not by 0: a runtime that computes both branches gets no NaN."""
    model = graph_of("decode", 3)
    for got, tie in run_everywhere(model, np.zeros((4, 2), dtype=np.float32)).values():
        assert np.isfinite(got).all() and np.isfinite(tie).all()


def test_digit_error_names_a_flipped_digit() -> None:
    """Negative control: a ratio that is off by more than 1 gives a wrong digit, and NaN is ∞."""
    digits = LINEAR16.to_digits(np.float32([1.5, -2.5]))
    signal = LINEAR16.signal(digits)
    wrong = signal.copy()
    wrong[1, 0] += 1.5
    assert np.array_equal(LINEAR16.quantize(signal), digits)
    assert not np.array_equal(LINEAR16.quantize(wrong), digits)
    assert LINEAR16.digit_error(wrong, digits) == 1.5
    wrong[0, 0] = np.nan
    assert LINEAR16.digit_error(wrong, digits) == np.inf


def test_bounds_of_lemma_2_hold_under_repeated_scaling() -> None:
    """Measured digit errors stay under the bound while θ is scaled again and again."""
    weight = every_pattern(20000)
    digits = LINEAR16.to_digits(weight)
    theta = theta_for(weight, 1e-27)
    for step in range(LINEAR16.exact_scalings() + 1):
        ratio = LINEAR16.ratio(theta, 2.0**-80)
        assert LINEAR16.digit_error(ratio, digits) <= LINEAR16.digit_error_bound(step), step
        assert np.array_equal(LINEAR16.quantize(ratio), digits), step
        theta = (theta * np.float32(0.9993)).astype(np.float32)


def test_tables() -> None:
    """T: all finite entries are normal, e = 255 is ±∞, sign in the upper half."""
    table = exponent_table()
    finite = table[np.isfinite(table)]
    assert len(table) == 512 and np.abs(finite).min() == np.finfo(np.float32).tiny
    assert np.isposinf(table[255]) and np.isneginf(table[511])
    assert np.array_equal(table[:256], -table[256:])


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [(1.0, 1.0, 0), (0.0, -0.0, 1), (1e-45, -1e-45, 3), (3.4028235e38, np.inf, 1)],
)
def test_ulp_distance(a: float, b: float, expected: int) -> None:
    """Counted over the number line of floats."""
    assert ulp_distance(np.float32([a]), np.float32([b])) == expected


def test_the_builder_notes_its_pass(tmp_path: Path) -> None:
    """Provenance: each node says which pass put it there."""
    for node in graph_of("decode", 2).graph:
        assert node.metadata_props[PASS_KEY] == "test"
