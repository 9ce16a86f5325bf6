"""Digit codes × number formats: numpy, the graph in onnxruntime, and in torch, bit for bit."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import every_pattern
from everywhere import patterns, run_everywhere, same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gdu_compile.builder import FLOAT, Builder
from gdu_compile.contracts import PASS_KEY
from gdu_compile.digits import CODES, UNIT_ROUNDOFF, Array, DigitCode, code_named
from gdu_compile.emit import emit_decode
from gdu_compile.emit_code import emit_signal
from gdu_compile.emit_values import emit_values
from gdu_compile.encoding import Encoding, encoding_of
from gdu_compile.errors import InputError
from gdu_compile.names import Names
from gdu_compile.number_formats import FORMATS, FloatFormat, ulp_distance

GAIN = 2.0**-80
PAIRS = [(code, dtype) for code in CODES for dtype in FORMATS]
LINEAR16 = CODES["linear16"]


def pair_id(value: object) -> str:
    """Readable test names."""
    return str(value)


def model_of(build: str, encoding: Encoding, rows: int) -> ir.Model:
    """A model around emit_signal, emit_decode or emit_values for ``rows`` elements."""
    kinds = {
        "signal": (ir.DataType.from_numpy(encoding.unit_dtype), [rows, encoding.units_per_element]),
        "decode": (FLOAT, [rows + 1, encoding.digits]),
        "values": (FLOAT, [rows, encoding.digits]),
    }
    x = ir.val("x", *kinds[build])
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 18}, name="g")
    b = Builder(Names(ir.Model(graph, ir_version=10)), "test")
    if build == "signal":
        outputs = [emit_signal(b, [x], encoding, rows)]
    elif build == "values":
        outputs = [emit_values(b, x, encoding)]
    else:
        weights, tie = emit_decode(b, x, encoding, GAIN, [rows])
        outputs = [*weights, tie]
    graph.extend(b.nodes)
    graph.outputs.extend(outputs)
    return ir.Model(graph, ir_version=10)


def trained(encoding: Encoding, weight: Array, scale: float) -> np.ndarray:
    """What one step of gradient descent leaves: −ηγκ·s, rounded to float32, c in row 0."""
    digits = encoding.cut(encoding.units(weight))
    first = np.full((1, encoding.digits), encoding.code.calibrator)
    signal = encoding.code.signal(np.concatenate([first, digits]))
    return (signal * np.float32(scale)).astype(np.float32)


@pytest.mark.parametrize(("code", "dtype"), PAIRS, ids=pair_id)
def test_weights_come_back_everywhere(code: str, dtype: str) -> None:
    """θ → weights in numpy, onnxruntime and torch, for κ of either sign; the tie is −0."""
    encoding = encoding_of(CODES[code], dtype)
    weight = patterns(dtype, 600)
    digits = encoding.cut(encoding.units(weight))
    model = model_of("decode", encoding, len(weight))
    for scale in (-3.3e-27, 7.7e-20, -1e-34):
        theta = trained(encoding, weight, scale)
        ratio = encoding.code.ratio(theta, GAIN)
        assert encoding.code.digit_error(ratio, digits) <= encoding.code.digit_error_bound(0)
        assert same(encoding.join(encoding.code.quantize(ratio), weight.shape), weight)
        for where, (got, tie) in run_everywhere(model, theta).items():
            assert same(got.reshape(-1), weight), (where, scale)
            assert tie == 0 and np.signbit(tie), (where, scale)


@pytest.mark.parametrize(("code", "dtype"), PAIRS, ids=pair_id)
def test_signals_agree_everywhere(code: str, dtype: str) -> None:
    """Units → signals in the graph are ∝ those of numpy, exactly; row 0 is the calibrator's."""
    encoding = encoding_of(CODES[code], dtype)
    units = encoding.units(patterns(dtype, 500, seed=1))
    expected = encoding.code.signal(encoding.cut(units))
    for where, (got,) in run_everywhere(model_of("signal", encoding, 500), units).items():
        assert set(got[0].tolist()) in ({0.5}, {1.0}), where
        assert np.array_equal(got[1:] / got[:1], expected), where


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_bit_pattern_survives(data: st.DataObject) -> None:
    """Any bits in any dtype and shape, any code, any rate: back in numpy, onnxruntime and torch."""
    code = CODES[data.draw(st.sampled_from(sorted(CODES)))]
    dtype = data.draw(st.sampled_from(sorted(FORMATS)))
    encoding = encoding_of(code, dtype)
    shape = data.draw(st.sampled_from([(), (0,), (1,), (3, 0, 2), (2, 3), (1, 1, 7), (5, 4, 2)]))
    size, width = math.prod(shape), encoding.format.bits
    words = data.draw(st.lists(st.integers(0, 2**width - 1), min_size=size, max_size=size))
    weight = np.array(words, dtype=f"u{width // 8}").view(encoding.format.dtype).reshape(shape)
    units = encoding.units(weight)
    assert units.shape == (size, encoding.units_per_element)
    assert same(encoding.from_units(units, shape), weight)
    scale = data.draw(st.floats(1e-36, 1e-16)) * data.draw(st.sampled_from([-1, 1]))
    theta = trained(encoding, weight, scale)
    ratio = encoding.code.ratio(theta, GAIN)
    back = encoding.join(encoding.code.quantize(ratio), shape)
    assert back.shape == shape and same(back, weight)
    if not size or (isinstance(encoding.format, FloatFormat) and np.isnan(weight).any()):
        return  # nothing to decode; NaN is refused on input
    for where, (got, _) in run_everywhere(model_of("decode", encoding, size), theta).items():
        assert same(got.reshape(shape), weight), where


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_graph_reads_any_ratio_as_numpy_does(data: st.DataObject) -> None:
    """Whatever θ is, the graph and numpy read it as the same weights (not only near a signal)."""
    code = CODES[data.draw(st.sampled_from(["linear16", "linear4", "linear1"]))]
    encoding = encoding_of(code, "float32")
    number = st.floats(-(2.0**17), 2.0**17, width=32)
    cells = data.draw(st.lists(number, min_size=6 * encoding.digits, max_size=6 * encoding.digits))
    theta = np.array(cells, dtype=np.float32).reshape(6, encoding.digits) * np.float32(2.0**-90)
    theta[0] = data.draw(st.sampled_from([1.0, -0.75, 3.0])) * 2.0**-90
    expected = encoding.join(code.quantize(code.ratio(theta, GAIN)), (5,))
    for where, (got, _) in run_everywhere(model_of("decode", encoding, 5), theta).items():
        finite = ~np.isnan(expected)
        assert same(got.reshape(-1)[finite], expected[finite]), where


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 4), (100_000,)], ids=str)
@pytest.mark.parametrize("dtype", FORMATS)
def test_units_are_a_view_and_come_back(shape: tuple[int, ...], dtype: str) -> None:
    """No copy in either direction: scalars, empty arrays, odd shapes, large ones."""
    weight = np.asarray(patterns(dtype, math.prod(shape))).reshape(shape)
    for code in CODES.values():
        encoding = encoding_of(code, dtype)
        units = encoding.units(weight)
        assert units.shape == (weight.size, encoding.units_per_element)
        back = encoding.from_units(units, shape)
        assert back.shape == shape and same(back, weight)
        assert not weight.size or (
            np.shares_memory(units, weight) and np.shares_memory(back, weight)
        )


@pytest.mark.parametrize("layout", ["big-endian", "Fortran order", "a slice"])
def test_units_of_other_layouts(layout: str) -> None:
    """Byte order and strides of the oracle's array make no difference."""
    weight = every_pattern(24).reshape(4, 6)
    other = {"big-endian": weight.astype(">f4"), "Fortran order": np.asfortranarray(weight),
             "a slice": np.repeat(weight, 2, axis=1)[:, ::2]}[layout]  # fmt: skip
    encoding = encoding_of(LINEAR16, "float32")
    assert np.array_equal(encoding.units(other), encoding.units(weight))


def test_units_of_another_dtype_are_refused() -> None:
    """An encoding is of one number format."""
    with pytest.raises(TypeError, match="float32 was given float64"):
        encoding_of(LINEAR16, "float32").units(np.zeros(3))


@pytest.mark.parametrize("code", CODES)
def test_bits_are_exact_for_every_upper_half(code: str) -> None:
    """All 65 536 upper halves × a sample of lower halves: onnxruntime and torch give the float."""
    lows = np.array([0, 1, 0x7FFF, 0x8000, 0xFFFF], dtype=np.uint32)
    words = ((np.arange(65536, dtype=np.uint32)[:, None] << 16) | lows[None, :]).reshape(-1)
    values = words.view(np.float32)
    values = values[~np.isnan(values)]
    encoding = encoding_of(CODES[code], "float32")
    digits = encoding.cut(encoding.units(values)).astype(np.float32)
    model = model_of("values", encoding, len(values))
    for where, (got,) in run_everywhere(model, digits).items():
        assert same(got.reshape(-1), values), where


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "uint8"])
def test_bits_are_exact_for_every_small_number(dtype: str) -> None:
    """Every pattern of the formats of 16 bits and fewer, NaN left out."""
    kind = FORMATS[dtype]
    values = np.arange(2**kind.bits).astype(f"u{kind.bits // 8}").view(kind.dtype)
    if isinstance(kind, FloatFormat):
        with np.errstate(invalid="ignore"):  # as above
            values = values[~np.isnan(values)]
    encoding = encoding_of(LINEAR16, dtype)
    digits = encoding.cut(encoding.units(values)).astype(np.float32)
    model = model_of("values", encoding, len(values))
    for where, (got,) in run_everywhere(model, digits).items():
        assert same(got.reshape(-1), values), where


@pytest.mark.parametrize("code", CODES)
def test_every_digit_has_its_own_signal(code: str) -> None:
    """Signals are never 0, all different, and read back as their digit; the calibrator's is 1."""
    digits = np.arange(CODES[code].top + 1)
    signal = CODES[code].signal(digits)
    assert (signal != 0).all() and len(np.unique(signal)) == len(digits)
    assert float(np.abs(signal).max()) == CODES[code].largest_signal
    assert np.array_equal(CODES[code].quantize(signal), digits)
    assert CODES[code].signal(np.array(CODES[code].calibrator)) == 1


@pytest.mark.parametrize("code", CODES)
def test_the_digit_error_is_1_where_the_next_digit_begins(code: str) -> None:
    """Negative control: just inside every digit is right, just outside the nearest one is wrong."""
    kind = CODES[code]
    digits = np.arange(0, kind.top + 1, max(1, kind.top // 997))
    signal = kind.signal(digits).astype(np.float64)
    half_gap = {"pow2": np.abs(signal) * (math.sqrt(2) - 1)}.get(code, np.ones(len(digits)))
    if code == "float16":
        half_gap = 2.0 ** np.floor(np.log2(np.abs(signal))) / 2048
    outwards = np.sign(signal)
    for fraction, right in ((0.97, True), (1.03, False)):
        ratio = (signal + outwards * fraction * half_gap).astype(np.float32)
        errors = kind.errors(ratio, digits)
        assert ((errors < 1) == right).all()
        # The outermost digits are clipped, so what lies beyond them is still read as them.
        inner = np.abs(signal) < kind.largest_signal / 2.1 if code != "linear1" else signal == 0
        wrong = kind.quantize(ratio) != digits
        assert not wrong[inner].any() if right else wrong[inner].all()


@pytest.mark.parametrize("code", CODES)
def test_nan_and_the_wrong_sign_are_errors(code: str) -> None:
    """NaN counts as infinite, a flipped sign as more than 1."""
    kind = CODES[code]
    digits = np.array([[kind.calibrator]])
    assert kind.digit_error(np.float32([[np.nan]]), digits) == math.inf
    assert kind.digit_error(np.float32([[-1.0]]), digits) > 1
    assert kind.digit_error(np.zeros((0, 2), dtype=np.float32), np.zeros((0, 2), dtype=int)) == 0


@pytest.mark.parametrize("code", CODES)
def test_bounds_of_lemma_2_hold_under_repeated_scaling(code: str) -> None:
    """Measured digit errors stay under the bound, and digits right, while θ is scaled again."""
    kind = CODES[code]
    encoding = encoding_of(kind, "float32")
    weight = every_pattern(3000)
    digits = encoding.cut(encoding.units(weight))
    theta = trained(encoding, weight, 1e-27)
    for step in range(min(kind.exact_scalings() + 1, 2100)):
        if step % 50 == 0 or step == kind.exact_scalings():
            ratio = kind.ratio(theta, GAIN)
            error = kind.digit_error(ratio, digits)
            assert error <= kind.digit_error_bound(step), step
            assert error == 0 or not kind.linear_is_exact
            assert np.array_equal(kind.quantize(ratio), digits), step
        theta = (theta * np.float32(0.9993)).astype(np.float32)


def test_bounds_depend_on_the_dtype_of_theta() -> None:
    """bfloat16 has 8 bits: 16-bit digits never fit, 4-bit ones last a few steps (Lemma 2)."""
    lives = {name: code.exact_scalings(UNIT_ROUNDOFF["bfloat16"]) for name, code in CODES.items()}
    assert lives["linear16"] == lives["float16"] == lives["linear8"] == -1
    assert lives["linear4"] == 6 and lives["pow2"] > 40


@pytest.mark.parametrize("dtype", [name for name in FORMATS if "float" in name])
def test_tables(dtype: str) -> None:
    """All finite powers are normal numbers, the last exponent is ±∞, the sign in the upper half."""
    kind = FORMATS[dtype]
    assert isinstance(kind, FloatFormat)
    table = kind.powers()
    finite = table[np.isfinite(table)]
    assert np.abs(finite).min() >= np.finfo(kind.work).tiny
    half = 2**kind.exponent
    assert np.isposinf(table[half - 1]) and np.isneginf(table[-1]) and len(table) == 2 * half
    assert np.array_equal(table[:half], -table[half:])


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("filling", [0.0, np.nan, np.inf, -1e30])
def test_any_theta_reads_inside_the_tables(code: str, filling: float) -> None:
    """θ = 0 divides by 1, not by 0; NaN and infinity give some weight, not a fault."""
    encoding = encoding_of(CODES[code], "float32")
    theta = np.full((4, encoding.digits), filling, dtype=np.float32)
    for got, tie in run_everywhere(model_of("decode", encoding, 3), theta).values():
        assert got.shape == (3, 1)
        assert filling != 0 or (np.isfinite(got).all() and tie == 0)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [(1.0, 1.0, 0), (0.0, -0.0, 1), (1e-45, -1e-45, 3), (3.4028235e38, np.inf, 1),
     (-np.inf, np.inf, 2 * 0x7F800000 + 1)],
)  # fmt: skip
def test_ulp_distance(a: float, b: float, expected: int) -> None:
    """Counted over the number line of floats."""
    assert ulp_distance(np.float32([a]), np.float32([b])) == expected


def test_ulp_distance_of_other_dtypes() -> None:
    """Integers differ by their difference; the widest distances do not overflow."""
    limits = np.iinfo(np.int64)
    assert ulp_distance(np.int64([limits.min]), np.int64([limits.max])) == 2**64 - 1
    assert ulp_distance(np.uint8([255]), np.uint8([0])) == 255
    assert ulp_distance(np.float64([-np.inf]), np.float64([np.inf])) == 2 * 0x7FF0000000000000 + 1


def test_unknown_codes_are_named() -> None:
    """The error lists those that there are."""
    with pytest.raises(InputError, match="linear12: no such digit code; there are linear16, float"):
        code_named("linear12")


def test_the_builder_notes_its_pass(tmp_path: Path) -> None:
    """Provenance: each node says which pass put it there."""
    for node in model_of("decode", encoding_of(LINEAR16, "float32"), 2).graph:
        assert node.metadata_props[PASS_KEY] == "test"


def test_codes_are_found_by_name() -> None:
    """Every code reads its own name."""
    codes: list[DigitCode] = [code_named(name) for name in CODES]
    assert [code.name for code in codes] == list(CODES)
