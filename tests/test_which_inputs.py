"""Several inputs: whole numbers that are legal, sizes that fit, samples that are whole calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from conftest import parse, random_weights, save_npz
from test_record import assert_reproduced

import gdu_compile
from gdu_compile.calls import by_calls
from gdu_compile.errors import InputError
from gdu_compile.metadata import Extension
from gdu_compile.synthetic import SYNTHETIC_CALLS, SYNTHETIC_SAMPLES, synthetic_inputs

Shapes = dict[str, tuple[int, ...]]
W: Shapes = {"W": (4, 3)}
LSTM: Shapes = {"W": (1, 20, 4), "R": (1, 20, 5)}
RECURRENT = "y = LSTM<hidden_size=5>(x, W, R, , lengths, h, c)"
TIMES = "z = MatMul(x, W) o = Mul(z, s)"
BERT = """
    e = Gather(E, ids)  k = Gather(K, kinds)  n = Shape<start=1>(ids)
    zero = Constant<value_int=0>()  one = Constant<value_int=1>()
    axes = Constant<value_ints=[0]>()  last = Constant<value_ints=[-1]>()
    l = Squeeze(n, axes)  p = Range(zero, l, one)  q = Gather(P, p)  a = Add(e, k)  d = Add(a, q)
    m = Cast<to=1>(mask)  u = Unsqueeze(m, last)  f = Mul(d, u)  o = MatMul(f, W)"""

QKV: Shapes = {"Q": (8, 8), "K": (8, 8), "V": (8, 8)}
CACHED = """
    q = MatMul(x, Q)  k = MatMul(x, K)  v = MatMul(x, V)
    o, nk, nv = com.microsoft.GroupQueryAttention<num_heads=1, kv_num_heads=1>(
        q, k, v, pk, pv, last, total)"""
CACHE = "float[B,S,8] x, float[B,1,P,8] pk, float[B,1,P,8] pv, int32[B] last, int32 total"

# inputs, outputs, body, weights, whether samples are calls
NETWORKS: dict[str, tuple[str, str, str, Shapes, bool]] = {
    "ids, a mask, kinds": (
        "int64[N,T] ids, int64[N,T] mask, int64[N,T] kinds", "float[N,T,3] o", BERT,
        {"E": (30, 6), "K": (1, 6), "P": (5, 6), "W": (6, 3)}, False),
    "int32 ids cast and reshaped": (
        "int32[N,5] ids", "float[N,5,3] o", "i = Cast<to=7>(ids) u = Transpose<perm=[1,0]>(i) "
        "v = Transpose<perm=[1,0]>(u) o = Gather(W, v)", {"W": (2, 3)}, False),
    "a flag": (
        "float[N,4] x, bool[N] flag", "float[N,3] o", "z = MatMul(x, W) f = Cast<to=1>(flag) "
        "a = Constant<value_ints=[1]>() u = Unsqueeze(f, a) o = Mul(z, u)", W, False),
    "a scalar": ("float[N,4] x, float s", "float[N,3] o", TIMES, W, True),
    "a scalar with a fixed batch": ("float[5,4] x, float s", "float[5,3] o", TIMES, W, True),
    "two batches": ("float[3,4] x, float[2,4] u", "float[3,3] o",
                    "z = MatMul(x, W) v = ReduceSum<keepdims=0>(u) o = Add(z, v)", W, True),
    "pairs": ("float[N,4] x, float[M,3] u", "float[N,M] o",
              "z = MatMul(x, W) t = Transpose(u) o = MatMul(z, t)", W, True),
    "sequences first": (
        "float[T,B,4] x, int32[B] lengths, float[1,B,5] h, float[1,B,5] c", "float[T,1,B,5] y",
        RECURRENT, LSTM, True),
    "sequences first, fixed": (
        "float[6,2,4] x, int32[2] lengths, float[1,2,5] h, float[1,2,5] c", "float[6,1,2,5] y",
        RECURRENT, LSTM, True),
    "a past": ("float[N,S,4] x, float[N,P,3] past, float[N,P + S] mask", "float[N,S,3] o",
               "z = MatMul(x, W) k = Concat<axis=1>(past, z) a = Constant<value_ints=[2]>() "
               "u = Unsqueeze(mask, a) m = Mul(k, u) b = Constant<value_ints=[1]>() "
               "r = ReduceSum(m, b) o = Add(z, r)", W, False),
    "a picture of 32 at least": (
        "float[N,4,H,K] x", "float[N,3,P,Q] o", "o = Conv<strides=[9,9]>(x, W)",
        {"W": (3, 4, 9, 9)}, False),
    "a sound of 300 at least": (
        "float[N,4,T] x", "float[N,3,P] o", "o = Conv<strides=[100]>(x, W)", {"W": (3, 4, 300)},
        False),
    "a size with an answer over nothing": (  # 8: no window, and a mean of no numbers
        "float[N,4,T] x", "float[N,3] o", "p = MaxPool<kernel_shape=[12], strides=[4]>(x) "
        "a = Constant<value_ints=[2]>() m = ReduceMean<keepdims=0>(p, a) o = MatMul(m, W)", W,
        False),
    "a size left in a Reshape": (
        "float[T,N,4] x", "float[5,N,3] o", "z = MatMul(x, W) "
        "s = Constant<value_ints=[5,-1,3]>() o = Reshape<allowzero=1>(z, s)", W, True),
    "tokens of all samples in one axis": (
        "float[N,5,4] x", "float[M,3] o",
        "s = Constant<value_ints=[-1,4]>() r = Reshape(x, s) o = MatMul(r, W)", W, True),
    "samples along axis 1 of the input": (
        "float[5,N] x", "float[M,3] o", "t = Transpose<perm=[1,0]>(x) o = MatMul(t, W)",
        {"W": (5, 3)}, True),
    "rows of another name": ("float[N,4] x", "float[rows,3] o", "o = MatMul(x, W)", W, False),
    "a cache with its lengths": (
        CACHE.replace("B", "1").replace("S", "6").replace("P", "4"), "float[1,6,8] o", CACHED, QKV,
        True),
    "a cache, several tokens": (CACHE, "float[B,S,8] o", CACHED, QKV, True),
    "a cache, one token": (CACHE.replace("S", "1"), "float[B,1,8] o", CACHED, QKV, True),
    "a cache, lengths in a vector": (
        CACHE.replace("32 total", "32[1] total"), "float[B,S,8] o", CACHED, QKV, True),
    "a cache behind an embedding, lengths by a mask": (
        "int64[B,S] ids, int64[B,T] mask, float[B,1,P,8] pk, float[B,1,P,8] pv", "float[B,S,8] o",
        "x = Gather(E, ids) a = Constant<value_ints=[1]>() n = ReduceSum(mask, a) d = Sub(n, a) "
        "last = Cast<to=6>(d) s = Shape<start=1>(mask) total = Cast<to=6>(s) " + CACHED,
        {"E": (30, 8), **QKV}, False),
    "a mask of past and new tokens under a name of its own": (
        "int64[N,S] ids, int64[N,T] mask, float[N,P,4] past", "float[N,S,3] o",
        "x = Gather(E, ids) k = Concat<axis=1>(past, x) f = Cast<to=1>(mask) "
        "two = Constant<value_ints=[2]>() u = Unsqueeze(f, two) m = Mul(k, u) "
        "one = Constant<value_ints=[1]>() r = ReduceSum(m, one) y = Add(x, r) o = MatMul(y, W)",
        {"E": (9, 4), "W": (4, 3)}, False),
    "how many tokens to keep": (
        "float[N,T,4] x, int64 keep", "float[N,K,3] o", "a = Constant<value_ints=[1]>() "
        "k = Neg(keep) zero = Constant<value_ints=[0]>() s = Unsqueeze(k, zero) "
        "e = Constant<value_ints=[9223372036854775807]>() h = Slice(x, s, e, a) o = MatMul(h, W)",
        W, True),
    "a size of a range": (
        "float[N,4] x, int64 n", "float[N,3] o", "zero = Constant<value_int=0>() "
        "one = Constant<value_int=1>() p = Range(one, n, one) q = Range(zero, n, one) "
        "c = Cast<to=1>(q) s = ReduceSum<keepdims=0>(c) y = Add(x, s) o = MatMul(y, W)", W, True),
    "where a range begins": (
        "int64[N,T] ids, int64 past", "float[N,T,3] o", "x = Gather(E, ids) "
        "one = Constant<value_int=1>() s = Shape<start=1>(ids) l = Squeeze(s) e = Add(past, l) "
        "r = Range(past, e, one) p = Gather(P, r) y = Add(x, p) o = MatMul(y, W)",
        {"E": (9, 4), "P": (8, 4), "W": (4, 3)}, True),
    "times that must be 4": ("float[N,F] x", "float[N,3] o", "o = MatMul(x, W)", W, False),
}  # fmt: skip


def network(name: str) -> ir.Model:
    """The base with initial weights; the parser has no sums as names of dimensions."""
    inputs, outputs, body, shapes, _ = NETWORKS[name]
    weights = random_weights(shapes, np.random.default_rng(0))
    base = parse(f"g ({inputs.replace('P + S', 'P_S')}) => ({outputs}) {{ {body} }}", weights)
    base.graph.opset_imports["com.microsoft"] = 1
    for value in base.graph.inputs:
        value.shape = ir.Shape("P + S" if str(dim) == "P_S" else dim for dim in value.shape or ())
    return base


@pytest.mark.parametrize("name", NETWORKS)
def test_synthetic_data_is_legal(name: str) -> None:
    """Reproduced on it bit for bit, and extracted."""
    base = network(name)
    oracle = random_weights(NETWORKS[name][3], np.random.default_rng(1))
    result = gdu_compile.compile(base, oracle)
    assert_reproduced(result.report)
    calls = NETWORKS[name][4]
    assert any("a call of its own" in text for text in result.report.warnings) is calls
    assert result.report.data is not None and result.report.forward is not None
    samples = result.report.forward.samples
    assert samples == (SYNTHETIC_CALLS if calls else SYNTHETIC_SAMPLES)
    assert result.trained is not None
    gdu_compile.extract(result.trained)
    assert_reproduced(gdu_compile.train(result.extended))


def test_fewer_samples_of_large_inputs() -> None:
    """Together no more than two million numbers, but for four samples."""
    picture = ir.val("x", ir.DataType.FLOAT, ["N", 3, 224, 224])
    for size, count in ((8, 256), (224, 13), (1024, 4)):
        picture.shape = ir.Shape(["N", 3, size, size])
        drawn = synthetic_inputs([picture], np.random.default_rng(0))
        assert drawn["x"].shape == (count, 3, size, size)


def test_rows_of_another_name_are_read_off_the_input() -> None:
    """The base does not run while recording; a number of rows of its own is left to the base."""
    for name, first in [("rows of another name", ("x", 0)), ("pairs", ("x", 0))]:
        base = network(name)
        oracle = random_weights(NETWORKS[name][3], np.random.default_rng(1))
        extended = gdu_compile.compile(base, oracle, confirm=False).extended
        assert Extension.from_metadata(extended.metadata_props).logits.dims[0] == first
    chosen = parse("g (float[N,4] x) => (float[M,3] o) { z = MatMul(x, W) k = Constant<value=float "
                   "{9}>() s = ReduceSum<keepdims=0>(x, a) c = Greater(s, k) "
                   "o = Compress<axis=0>(z, c) }",
                   {"W": np.ones((4, 3), np.float32), "a": np.int64([1])})  # fmt: skip
    oracle = random_weights(W, np.random.default_rng(1))
    extended = gdu_compile.compile(chosen, oracle, confirm=False).extended
    assert Extension.from_metadata(extended.metadata_props).logits.dims[0] is None
    with pytest.raises(gdu_compile.UnsupportedError, match="rows for 256 samples"):
        gdu_compile.compile(chosen, oracle)


def test_what_whole_numbers_are_drawn() -> None:
    """The control of the above: rows of tables, lengths, flags, each up to its own limit."""
    drawn = synthetic_inputs(network("ids, a mask, kinds").graph.inputs, np.random.default_rng(0))
    assert [int(drawn[name].max()) for name in ("ids", "mask", "kinds")] == [29, 1, 0]
    assert int(drawn["ids"].min()) == 0
    inputs = network("sequences first").graph.inputs
    lengths = synthetic_inputs(inputs, np.random.default_rng(0), calls=True)["lengths"]
    assert (int(lengths.min()), int(lengths.max())) == (1, 8)


def test_lengths_of_a_cache() -> None:
    """Past and new tokens; several tokens in several sequences only at the start; masks of 1."""
    fixed, many, one = (
        synthetic_inputs(network(name).graph.inputs, np.random.default_rng(0), calls=True)
        for name in ("a cache with its lengths", "a cache, several tokens", "a cache, one token")
    )
    found = [(set(a["last"].flat), set(a["total"].flat)) for a in (fixed, many, one)]
    assert found == [({9}, {10}), ({7}, {8}), ({8}, {9})]
    by_mask = network("a cache behind an embedding, lengths by a mask").graph.inputs
    assert synthetic_inputs(by_mask, np.random.default_rng(0))["mask"].min() == 1


def test_other_shapes_in_each_call() -> None:
    """As many rows as the numbers say; refused, once an internal error."""
    base = parse("g (float[N,4] x, float s) => (float[M,3] o) { z = MatMul(x, W) t = Add(z, s) "
                 "a = Constant<value_ints=[1]>() m = ReduceMax<keepdims=0>(t, a) "
                 "k = Constant<value_float=1.0>() c = Greater(m, k) o = Compress<axis=0>(t, c) }",
                 random_weights(W, np.random.default_rng(0)))  # fmt: skip
    with pytest.raises(InputError, match=r"'o' has another shape in each call.*--logits"):
        gdu_compile.compile(base, random_weights(W, np.random.default_rng(1)))


def test_an_illegal_number_is_said(tmp_path: Path) -> None:
    """A token id beyond the table, in a file."""
    base = network("int32 ids cast and reshaped")
    data = save_npz(tmp_path / "d.npz", {"ids": np.full((4, 5), 7), "y": np.zeros((4, 5), int)})
    with pytest.raises(InputError, match="onnxruntime cannot run it"):
        gdu_compile.compile(base, {"W": np.ones((2, 3), np.float32)}, data=data)


@pytest.mark.parametrize("fixed", [False, True])
def test_calls_from_a_file(fixed: bool, tmp_path: Path) -> None:
    """Arrays have the axis of samples in front; others are refused with the shape they need."""
    name = "a scalar with a fixed batch" if fixed else "a scalar"
    base, rng = network(name), np.random.default_rng(2)
    arrays: dict[str, Any] = {
        "x": rng.standard_normal((7, 5, 4)).astype(np.float32),
        "s": rng.standard_normal(7).astype(np.float32), "y": rng.integers(0, 3, (7, 5)),
    }  # fmt: skip
    oracle = random_weights(W, rng)
    data = save_npz(tmp_path / "d.npz", arrays)
    report = gdu_compile.compile(base, oracle, data=data, steps=2).report
    assert_reproduced(report)
    assert report.batch_size == 1 and report.accuracy is not None
    assert report.accuracy["samples"] == 7
    wrong = save_npz(tmp_path / "w.npz", {**arrays, "x": arrays["x"][:, :, :3]})
    with pytest.raises(InputError, match=r"cannot use the data") as error:
        gdu_compile.compile(base, oracle, data=wrong)
    assert f"takes [calls, {'5' if fixed else 'N'}, 4]" in " ".join(error.value.problems)


def test_learn_needs_samples_along_axis_0() -> None:
    """The memory holds rows."""
    with pytest.raises(gdu_compile.UnsupportedError, match=r"'s' is a scalar"):
        gdu_compile.compile(network("a scalar"), oracle="nearest-mean")


def test_names_of_dimensions_tell_calls_from_rows() -> None:
    """A batch of the same name everywhere is none; exporters' different names are none either."""
    for shapes, calls in [
        ([["N", 4], ["N", 2]], False), ([["a", 4], ["b", 2]], False), ([[3, 4], ["N", 4]], False),
        ([["N", "T"], ["T"]], True), ([["T", "N"], [1, "N"]], True), ([[3, 4], [3]], False),
    ]:  # fmt: skip
        inputs = [ir.val(f"x{i}", ir.DataType.FLOAT, shape) for i, shape in enumerate(shapes)]
        output = ir.val("o", ir.DataType.FLOAT, [shapes[0][0], 3])
        assert (by_calls(inputs, output) is not None) is calls, shapes
