"""Weights of every dtype, digit code and dtype of θ: trained, every bit reproduced."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from conftest import mlp, oracle_for, parse
from test_digits import patterns
from test_record import assert_reproduced

import gdu_compile
from gdu_compile.digits import CODES
from gdu_compile.errors import InputError

ONNX_NAME = {"float32": "float", "float64": "double"}
DTYPES = ["float16", "bfloat16", "float64", "int8", "uint8", "int32", "int64"]


def with_weight(dtype: str) -> ir.Model:
    """A network with one weight W of ``dtype``, cast to float where it is used; b is float."""
    cast = "V = Cast <to = 1> (W)" if dtype != "float32" else "V = Identity(W)"
    model = parse(
        f"""g (float[N,6] x) => (float[N,5] logits) {{
            {cast}  m = MatMul(x, V)  t = Tanh(m)  logits = Add(t, b) }}""",
        {"b": np.ones(5, dtype=np.float32)},
    )
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    value = ir.val("W", const_value=ir.Tensor(np.ones((6, 5), dtype=kind), name="W"))
    old = next(node for node in model.graph if node.op_type in {"Cast", "Identity"})
    old.replace_input_with(0, value)
    model.graph.register_initializer(value)
    return model


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype: str, code: str) -> None:
    """Beside a float32 weight: each dtype has buckets of its own; ±∞, subnormals, extremes."""
    oracle = {"W": patterns(dtype, 30, seed=4).reshape(6, 5), "b": patterns("float32", 5)}
    finite = np.isfinite(oracle["b"])
    oracle["b"] = np.where(finite, oracle["b"], np.float32(0.5))
    report = gdu_compile.compile(with_weight(dtype), oracle, digits=code, steps=2).report
    assert_reproduced(report)
    assert {row.name: row.dtype for row in report.weights} == {"W": dtype, "b": "float32"}


def test_infinities_are_recorded_and_nan_is_refused() -> None:
    """Attention masks hold −∞; NaN has many patterns and no meaning as a weight."""
    base = mlp()
    oracle = oracle_for(base)
    oracle["b2"] = np.array([-np.inf, np.inf, 1, 2], dtype=np.float32)
    assert gdu_compile.compile(base, oracle, steps=2).report.reproduced is True
    oracle["b2"][3] = np.nan
    with pytest.raises(InputError) as caught:
        gdu_compile.compile(base, oracle)
    assert "'b2' holds NaN (first at flat index 3)" in caught.value.problems


@pytest.mark.parametrize("code", ["pow2", "linear4", "linear2", "linear1"])
def test_theta_in_bfloat16(code: str) -> None:
    """θ with 8 bits of precision carries digits of 4 bits and fewer, and powers of two."""
    base = mlp()
    compiled = gdu_compile.compile(base, oracle_for(base), digits=code, theta_dtype="bfloat16")
    assert_reproduced(compiled.report)
    assert compiled.theta is not None
    assert {str(theta.dtype) for theta in compiled.theta.values()} == {"bfloat16"}
    assert gdu_compile.verify(compiled.extended, compiled.theta).reproduced is True


def test_theta_in_bfloat16_does_not_carry_16_bit_digits() -> None:
    """Negative control: warned of, measured, not reproduced; auto takes a code that is carried."""
    base = mlp()
    wide = gdu_compile.compile(base, oracle_for(base), digits="linear16", theta_dtype="bfloat16")
    assert wide.report.reproduced is False
    assert any("needs more precision" in warning for warning in wide.report.warnings)
    auto = gdu_compile.compile(base, oracle_for(base), theta_dtype="bfloat16")
    assert auto.report.digits == "pow2"
    assert_reproduced(auto.report)


def test_integers_that_the_oracle_does_not_name_stay() -> None:
    """A shape is no weight; an equal one in the oracle (another .onnx of the network) is fine."""
    base = parse(
        "g (float[N,2,3] x) => (float[N,4] logits) { r = Reshape(x, s)  logits = MatMul(r, W) }",
        {"s": np.array([-1, 6]), "W": np.ones((6, 4), dtype=np.float32)},
    )
    oracle = {"W": np.full((6, 4), 0.25, dtype=np.float32), "s": np.array([-1, 6])}
    report = gdu_compile.compile(base, oracle, cover_all=True).report
    assert_reproduced(report)
    assert [row.name for row in report.weights] == ["W"] and report.skipped == []
