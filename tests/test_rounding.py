"""How far torch and onnxruntime may lie apart: by what a network rounds to; measured, and seen."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from conftest import oracle_for, parse
from test_record import assert_reproduced

import gdu_compile
from gdu_compile import rounding, torch_backend
from gdu_compile.rounding import path_to

WIDTH, LAYERS = 64, 8
# What stands behind every layer: the form in which its numbers go on, and the way that is.
ROUNDED = {
    "float16": ("r{i} = Cast<to=10>(t{i}) h{i} = Cast<to=1>(r{i})", "8 to float16"),
    "bfloat16": ("r{i} = Cast<to=16>(t{i}) h{i} = Cast<to=1>(r{i})", "8 to bfloat16"),
    "int8": ("r{i} = QuantizeLinear(t{i}, s, zero) h{i} = DequantizeLinear(r{i}, s, zero)",
             "8 to steps of 8 bits"),
    "dynamic": ("r{i}, s{i}, z{i} = DynamicQuantizeLinear(t{i}) "
                "h{i} = DequantizeLinear(r{i}, s{i}, z{i})", "8 to steps of 8 bits"),
    "nothing": ("h{i} = Identity(t{i})", "float32 sums in other orders"),
}  # fmt: skip


def deep(form: str, out: str = "o = MatMul(h7, V)", kind: str = "float") -> ir.Model:
    """A network of eight layers, float32 in front of what it rounds to."""
    rng = np.random.default_rng(3)
    layers = [
        f"m{i} = MatMul({f'h{i - 1}' if i else 'x'}, W{i}) t{i} = Tanh(m{i}) " + form.format(i=i)
        for i in range(LAYERS)
    ]
    weights: dict[str, Any] = {
        f"W{i}": (1.5 * rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
        for i in range(LAYERS)
    }
    weights["V"] = rng.standard_normal((WIDTH, 10)).astype(np.float32)
    weights |= {"s": np.float32(1 / 127), "zero": np.int8(0)} if "zero" in form else {}
    body = " ".join([*layers, out])
    return parse(f"g (float[N,{WIDTH}] x) => ({kind}[N,10] o) {{ {body} }}", weights)


def compared(model: ir.Model, *weights: str) -> Any:
    """The report of a run with other weights of these names."""
    drawn = oracle_for(model)
    oracle = {name: drawn[name] / np.float32(WIDTH**0.5) for name in weights or ("W0", "V")}
    report = gdu_compile.compile(model, oracle, steps=1).report
    assert_reproduced(report)
    return report


@pytest.mark.parametrize("kind", ROUNDED)
def test_numbers_that_are_rounded_inside(kind: str) -> None:
    """The output is float32; what lies in front of it decides."""
    form, said = ROUNDED[kind]
    report = compared(deep(form))
    assert said in report.torch.rounds
    assert report.torch.agrees and not any("torch" in text for text in report.warnings)
    assert (report.torch.tolerance == rounding.SUMS) is (kind == "nothing")


@pytest.mark.parametrize("kind, code", [("float16", 10), ("bfloat16", 16)])
def test_an_error_of_four_units_is_seen(
    kind: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an output that is rounded once: one unit in the last place is allowed, four are not."""
    model = deep("h{i} = Identity(t{i})", f"z = MatMul(h7, V) o = Cast<to={code}>(z)", kind)
    report = compared(model)
    unit = 2.0 ** (1 - rounding.BITS[ir.DataType(code)])
    assert report.torch.agrees and unit < report.torch.tolerance < 2 * unit
    right = torch_backend.to_array
    monkeypatch.setattr(torch_backend, "to_array", lambda tensor: right(tensor) * (1 + 4 * unit))
    wrong = compared(model)
    assert not wrong.torch.agrees
    (warning,) = [text for text in wrong.warnings if text.startswith("torch's logits differ")]
    assert "1 to " + kind in warning and f"{wrong.torch.tolerance:.1e} is expected" in warning


def test_the_longest_way_counts() -> None:
    """Weights do not; branches and bodies do; nodes that only move numbers do not."""
    model = parse("""g (float16[N,4] x, bool c) => (float16[N,4] o) {
        w = Mul(W, W)  a = Mul(x, w)  t = Transpose<perm = [1,0]>(a)
        u = Transpose<perm = [1,0]>(t)  b = Tanh(u)  d = Add(x, b)
        o = If(c) <then_branch = one () => (p) { q = Neg(d) p = Exp(d) },
                   else_branch = two () => (r) { r = Identity(x) }> }""",
                  {"W": np.ones(4, np.float16)})  # fmt: skip
    path = path_to(model, "o")
    assert str(path) == "roundings in a row: 4 to float16"  # Mul, Tanh, Add, Exp
    u = 2.0**-11
    assert path.expected == pytest.approx(2 * u + math.sqrt(24) / 3 * 2 * u)
    assert str(path_to(model, "none")) == "float32 sums in other orders"


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_the_extension_does_not_count(kind: str) -> None:
    """The way is that of the base."""
    base = deep(ROUNDED[kind][0])
    done = gdu_compile.compile(base, {"W0": oracle_for(base)["W0"]}, confirm=False)
    assert path_to(done.extended, "o") == path_to(base, "o")


@pytest.mark.parametrize("zero, level, said", [
    (np.int16(0), "", "steps of 16 bits"), (np.uint8(3), "", "steps of 8 bits"),
    (np.int8(0), "4", "steps of 8 bits"),
    (np.array(0, ml_dtypes.float8_e4m3fn), "", "float8e4m3fn"),
])  # fmt: skip
def test_how_many_bits_steps_have(zero: Any, level: str, said: str) -> None:
    """By the zero point; activations of a MatMulNBits where its accuracy level says so."""
    text = ("o = com.microsoft.MatMulNBits<K=4,N=4,bits=4,block_size=16,accuracy_level=4>(x, b, s)"
            if level else "q = QuantizeLinear(x, s, z) o = DequantizeLinear(q, s, z)")  # fmt: skip
    model = parse(f"g (float[N,4] x) => (float[N,4] o) {{ {text} }}",
                  {"s": np.float32([1]).reshape(()), "z": zero})  # fmt: skip
    assert str(path_to(model, "o")) == f"roundings in a row: 1 to {said}"
