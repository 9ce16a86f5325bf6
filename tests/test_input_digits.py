"""The digits of inputs, computed in the graph: numpy, onnxruntime and torch, bit for bit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from everywhere import bits, patterns, run_everywhere, same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gdu_compile.builder import BOOL, FLOAT, Builder
from gdu_compile.digits import CODES, Array
from gdu_compile.emit_code import calibrator_signal, emit_quantize
from gdu_compile.emit_inputs import emit_input_signal, emit_units
from gdu_compile.emit_values import emit_values
from gdu_compile.encoding import Encoding, encoding_of
from gdu_compile.names import Names
from gdu_compile.number_formats import FORMATS, FloatFormat
from gdu_compile.torch_backend import blocks, lower_to_torch, registry, to_array
from gdu_compile.torch_backend.module import to_tensor

PAIRS = [(code, dtype) for code in CODES for dtype in FORMATS]
FLOATS = [name for name, kind in FORMATS.items() if isinstance(kind, FloatFormat)]
LINEAR16 = CODES["linear16"]
OPSET = 18


def model_of(encoding: Encoding, elements: int, rows: int | str = "N", *, bool_: bool = False,
             units: bool = False) -> ir.Model:  # fmt: skip
    """x → its signals; or [n] → its units."""
    dtype = BOOL if bool_ else ir.DataType.from_numpy(encoding.format.dtype)
    x = ir.val("x", dtype, [rows] if units else [rows, elements])
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": OPSET}, name="g")
    b = Builder(Names(ir.Model(graph, ir_version=10)), "test")
    output = emit_units(b, x, encoding) if units else emit_input_signal(b, x, encoding)
    graph.extend(b.nodes)
    graph.outputs.append(output)
    return ir.Model(graph, ir_version=10)


def memory_model(encoding: Encoding, slots: int, elements: int) -> ir.Model:
    """θ [slots, 1 + elements·digits], the calibrator in column 0 → x [slots·elements, 1]."""
    width = elements * encoding.digits
    theta = ir.val("x", FLOAT, [slots, 1 + width])
    graph = ir.Graph([theta], [], nodes=[], opset_imports={"": OPSET}, name="g")
    b = Builder(Names(ir.Model(graph, ir_version=10)), "test")
    parts = [("c", FLOAT, [slots, 1]), ("cells", FLOAT, [slots, width])]
    c, cells = b.multi_op("Split", theta, b.ints([1, width], "sizes"), axis=1, outputs=parts)
    q = emit_quantize(b, cells, c, encoding.code)
    shape = [slots * elements, encoding.digits]
    rows = b.op("Reshape", q, b.ints(shape, "shape"), name="rows", shape=shape)
    output = emit_values(b, rows, encoding, encoding.code.centre)
    graph.extend(b.nodes)
    graph.outputs.append(output)
    return ir.Model(graph, ir_version=10)


def expected(encoding: Encoding, x: Array) -> np.ndarray:
    """The signals in numpy, [rows, elements·digits]."""
    signal = encoding.code.signal(encoding.cut(encoding.units(x)))
    scaled = signal * np.float32(calibrator_signal(encoding.code))
    return np.asarray(scaled.reshape(len(x), x.shape[1] * encoding.digits), dtype=np.float32)


def check(encoding: Encoding, x: Array, rows: int | str = "N") -> None:
    """The graph's signals of x [rows, elements] are numpy's, everywhere."""
    wanted = expected(encoding, x)
    for where, (got,) in run_everywhere(model_of(encoding, x.shape[1], rows), x).items():
        assert got.shape == wanted.shape, where
        wrong = np.argwhere((bits(got) != bits(wanted)).reshape(got.shape).any(axis=1))[:, 0]
        assert not wrong.size, (where, x[wrong[:3]], got[wrong[:3]], wanted[wrong[:3]])
        assert got.dtype == np.float32


def all_exponents(dtype: str) -> Array:
    """Every exponent × mantissas 0, 1, all ones, the highest bit, random ones × both signs; no NaN.

    Next to mantissa 0 lie those of a power of two ± 1 ulp and of the largest subnormal.
    """
    kind = FORMATS[dtype]
    assert isinstance(kind, FloatFormat)
    rng = np.random.default_rng(0)
    top = 2**kind.mantissa - 1
    mantissas = [0, 1, 2, top, top - 1, 1 << (kind.mantissa - 1),
                 *(int(m) for m in rng.integers(0, top, 5))]  # fmt: skip
    words = [(sign << (kind.bits - 1)) | (e << kind.mantissa) | m
             for sign in (0, 1) for e in range(2**kind.exponent) for m in mantissas
             if e < 2**kind.exponent - 1 or m == 0]  # fmt: skip
    return np.array(words, dtype=f"u{kind.bits // 8}").view(kind.dtype)


@pytest.mark.parametrize(("code", "dtype"), PAIRS, ids=str)
def test_signals_agree_everywhere(code: str, dtype: str) -> None:
    """Every code on every format, with a dynamic number of rows."""
    check(encoding_of(CODES[code], dtype), patterns(dtype, 600).reshape(200, 3))


@pytest.mark.parametrize(("code", "dtype"), PAIRS, ids=str)
def test_units_agree_everywhere(code: str, dtype: str) -> None:
    """The units in between, as FLOAT [n, units]."""
    encoding = encoding_of(CODES[code], dtype)
    x = patterns(dtype, 300, seed=3)
    wanted = encoding.units(x).astype(np.float32)
    for where, (got,) in run_everywhere(model_of(encoding, 0, units=True), x).items():
        assert got.dtype == np.float32 and np.array_equal(got, wanted), where


@pytest.mark.parametrize("code", ["linear16", "linear8"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_exponent(dtype: str, code: str) -> None:
    """All exponents × tricky mantissas × both signs."""
    check(encoding_of(CODES[code], dtype), all_exponents(dtype)[:, None])


@pytest.mark.parametrize("code", ["linear16", "pow2"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "uint8"])
def test_every_small_number(dtype: str, code: str) -> None:
    """All 65 536 patterns of 16 bits (256 of 8), NaN left out."""
    kind = FORMATS[dtype]
    x = np.arange(2**kind.bits).astype(f"u{kind.bits // 8}").view(kind.dtype)
    if isinstance(kind, FloatFormat):
        with np.errstate(invalid="ignore"):  # ml_dtypes warns of signalling NaNs
            x = x[~np.isnan(x)]
    check(encoding_of(CODES[code], dtype), x[:, None])


@pytest.mark.parametrize("dtype", FLOATS)
def test_no_subnormal_is_flushed(dtype: str) -> None:
    """Subnormals alone, with the smallest and the largest: torch and onnxruntime keep them."""
    kind = FORMATS[dtype]
    assert isinstance(kind, FloatFormat)
    rng = np.random.default_rng(5)
    words = np.array([1, 2, 3, 2**kind.mantissa - 1, *rng.integers(1, 2**kind.mantissa, 200)])
    x = words.astype(f"u{kind.bits // 8}").view(kind.dtype)[:, None]
    assert (np.abs(x.astype(np.float64)) < float(ml_dtypes.finfo(kind.dtype).tiny)).all()
    check(encoding_of(LINEAR16, dtype), np.concatenate([x, -x]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_next_to_powers_of_two(dtype: str) -> None:
    """2^e and 1 ulp to either side, where a logarithm is on the wrong side of a whole number."""
    kind = FORMATS[dtype]
    assert isinstance(kind, FloatFormat)
    powers = kind.powers()
    powers = powers[np.isfinite(powers)]
    near = [powers, np.nextafter(powers, np.inf), np.nextafter(powers, -np.inf)]
    check(encoding_of(LINEAR16, dtype), np.stack(near, axis=1).astype(kind.dtype))


SHAPES = [(1, 1), (1, 7), (0, 5), (0, 1), (3, 1), (5, 11), (64, 2)]
MIXED = [("linear16", "float32"), ("linear8", "uint8"), ("pow2", "float64"), ("linear4", "int32")]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", ["dynamic", "fixed"])
@pytest.mark.parametrize(("code", "dtype"), MIXED)
def test_shapes(shape: tuple[int, int], rows: str, code: str, dtype: str) -> None:
    """A batch of 1, odd shapes, no rows at all; the number of rows dynamic or fixed."""
    x = patterns(dtype, shape[0] * shape[1]).reshape(shape)
    encoding = encoding_of(CODES[code], dtype)
    wanted = expected(encoding, x)
    model = model_of(encoding, shape[1], "N" if rows == "dynamic" else shape[0])
    assert wanted.shape == (shape[0], shape[1] * encoding.digits)
    for where, (got,) in run_everywhere(model, x).items():
        assert same(got, wanted) and got.shape == wanted.shape, where


@pytest.mark.parametrize(("code", "dtype"), MIXED)
def test_a_large_batch(code: str, dtype: str) -> None:
    """So large that torch takes it in blocks, the last one not full."""
    size = blocks.BLOCK * torch.get_num_threads() + 1000
    x = patterns(dtype, size - size % 8).reshape(-1, 8)
    assert x.size > blocks.BLOCK
    encoding = encoding_of(CODES[code], dtype)
    got = to_array(lower_to_torch(model_of(encoding, 8), ())(to_tensor(ir.Tensor(x))))
    assert same(got, expected(encoding, x))


@pytest.mark.parametrize("code", CODES)
def test_booleans(code: str) -> None:
    """BOOL as uint8: what the memory keeps of it."""
    encoding = encoding_of(CODES[code], "uint8")
    x = np.random.default_rng(0).random((9, 4)) < 0.5
    for where, (got,) in run_everywhere(model_of(encoding, 4, bool_=True), x).items():
        assert same(got, expected(encoding, x.astype(np.uint8))), where


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_bit_pattern(data: st.DataObject) -> None:
    """Any bits, NaN as 1, in any format and shape, by any code."""
    dtype = data.draw(st.sampled_from(sorted(FORMATS)))
    kind = FORMATS[dtype]
    rows, elements = data.draw(st.sampled_from([(1, 1), (2, 3), (7, 1), (1, 9), (4, 5)]))
    word = st.integers(0, 2**kind.bits - 1)
    words = data.draw(st.lists(word, min_size=rows * elements, max_size=rows * elements))
    x = np.array(words, dtype=f"u{kind.bits // 8}").view(kind.dtype)
    if isinstance(kind, FloatFormat):
        with np.errstate(invalid="ignore"):  # as above
            x[np.isnan(x)] = kind.dtype.type(1)
    code = CODES[data.draw(st.sampled_from(sorted(CODES)))]
    check(encoding_of(code, dtype), x.reshape(rows, elements))


def annotations(model: ir.Model) -> dict[str, tuple[ir.DataType | None, list[object]]]:
    """Name → (dtype, shape) of every value that is noted in the graph, None for an unknown size."""
    return {
        str(value.name): (value.dtype, [d if isinstance(d, int) else None for d in value.shape])
        for node in model.graph for value in node.outputs if value.shape is not None
    }  # fmt: skip


@pytest.mark.parametrize(("code", "dtype"), PAIRS, ids=str)
def test_dtypes_and_shapes_are_noted_as_they_are(code: str, dtype: str) -> None:
    """Of every value: what onnx infers from the operators alone, strictly, is what we wrote."""
    encoding = encoding_of(CODES[code], dtype)
    for model in (model_of(encoding, 3, 4), memory_model(encoding, 4, 3)):
        noted = annotations(model)
        assert len(noted) == len([output for node in model.graph for output in node.outputs])
        bare = model.clone()
        for node in bare.graph:
            for output in node.outputs:
                if not output.is_graph_output():
                    output.shape, output.type = None, None
        proto = onnx.shape_inference.infer_shapes(
            ir.to_proto(bare), check_type=True, strict_mode=True, data_prop=True
        )
        assert annotations(ir.from_proto(proto)) == noted


@pytest.mark.parametrize(("code", "dtype"), PAIRS, ids=str)
def test_a_memory_of_inputs_comes_back(code: str, dtype: str) -> None:
    """θ_j = κ_j·s(x_j), κ_j of either sign, its calibrator in column 0 → x, bit for bit."""
    encoding = encoding_of(CODES[code], dtype)
    x = patterns(dtype, 40 * 5, seed=7).reshape(40, 5)
    rng = np.random.default_rng(1)
    kappa = (10.0 ** rng.uniform(-6, 3, (40, 1)) * rng.choice([-1, 1], (40, 1))).astype(np.float32)
    signal = run_everywhere(model_of(encoding, 5), x)["torch"][0]
    calibrator = np.full((40, 1), calibrator_signal(encoding.code), dtype=np.float32)
    theta = kappa * np.concatenate([calibrator, signal.astype(np.float32)], axis=1)
    for where, (got,) in run_everywhere(memory_model(encoding, 40, 5), theta).items():
        assert same(got.reshape(x.shape), x), where
    # Negative control: a slot read with its neighbour's calibrator is wrong.
    theta[[0, 1], 0] = theta[[1, 0], 0]
    got = run_everywhere(memory_model(encoding, 40, 5), theta)["none"][0].reshape(x.shape)
    assert (code == "linear1" and kappa[0] * kappa[1] > 0) or not same(got[:2], x[:2])
    assert same(got[2:], x[2:])


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("code", CODES)
def test_the_next_number_has_other_digits(dtype: str, code: str) -> None:
    """Negative control: one unit in the last place changes its element's signals, and no other."""
    encoding = encoding_of(CODES[code], dtype)
    x = patterns(dtype, 12).reshape(4, 3)
    other = x.copy()
    other.view(f"u{x.dtype.itemsize}")[2, 1] ^= 1
    model = model_of(encoding, 3)
    first, second = run_everywhere(model, x), run_everywhere(model, other)
    for where in first:
        differs = (first[where][0] != second[where][0]).reshape(4, 3, encoding.digits)
        assert differs[2, 1, 0] and differs.sum() == 1, where


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_is_no_fault(dtype: str) -> None:
    """NaN is refused in data; a graph that meets one gives finite or NaN signals and goes on."""
    x = np.full((2, 2), np.nan).astype(FORMATS[dtype].dtype)
    x[1] = 1
    for code in CODES.values():
        encoding = encoding_of(code, dtype)
        for got, *_ in run_everywhere(model_of(encoding, 2), x).values():
            assert same(got[1:], expected(encoding, x[1:]))


@pytest.mark.parametrize("error", [-0.45, -1e-3, 1e-3, 0.45])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_logarithm_may_be_wrong(
    dtype: str, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By anything below ½ of log2: the same digits; negative control: not so by 3."""
    x, encoding = all_exponents(dtype)[:, None], encoding_of(LINEAR16, dtype)
    tensor = to_tensor(ir.Tensor(x))
    for shift, right in ((error, True), (3 * np.sign(error), False)):
        added = float(shift * np.log(2))
        monkeypatch.setitem(registry.TABLE[""]["Log"], 13, lambda t, added=added: t.log() + added)
        got = to_array(lower_to_torch(model_of(encoding, 1), ())(tensor))
        assert same(got, expected(encoding, x)) == right
