"""Where weights may be: computed from constants, in branches, shared, of narrow kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.backend.test
import onnx_ir as ir
import pytest
from conftest import parse, save_npz, save_onnx
from gdu_compile.passes import NormalizePass
from test_record import assert_reproduced

import gdu_compile
from gdu_compile import cli, constants, runtime, specialize
from gdu_compile.errors import InputError, UnsupportedError

Arrays = dict[str, np.ndarray[Any, Any]]
RNG = np.random.default_rng(11)
HALF = np.float32(0.5)


def r(*shape: int) -> np.ndarray[Any, Any]:
    """Normal float32 numbers."""
    return RNG.standard_normal(shape).astype(np.float32)


def ints(dtype: Any, *shape: int) -> np.ndarray[Any, Any]:
    """Whole numbers over the whole range of a dtype."""
    words = RNG.integers(0, 2**64, shape, dtype=np.uint64, endpoint=False)
    return words.astype(dtype)


# case → (graph, initial weights, oracle)
COMPUTED: dict[str, tuple[str, Arrays, Arrays]] = {
    "transposed": ("V = Transpose(W) z = MatMul(x, V)", {"W": r(3, 4)}, {"V": r(4, 3)}),
    "a chain": (
        "s = Constant<value = int64[2] {4, 3}>() a = Cast<to = 1>(W) b = Reshape(a, s) V = Exp(b)"
        "z = MatMul(x, V)", {"W": r(12).astype(np.float16)}, {"V": r(4, 3)},
    ),
    "the middle of a chain": (
        "s = Constant<value = int64[2] {4, 3}>() a = Cast<to = 1>(W) b = Reshape(a, s) V = Exp(b)"
        "z = MatMul(x, V)", {"W": r(12).astype(np.float16)}, {"a": r(12)},
    ),
    "its initializer": ("V = Transpose(W) z = MatMul(x, V)", {"W": r(3, 4)}, {"W": r(3, 4)}),
    "both, of two uses": (
        "V = Transpose(W) a = MatMul(x, V) z = MatMul(a, W2) ", {"W": r(3, 4), "W2": r(3, 3)},
        {"V": r(4, 3), "W": r(3, 4)},
    ),
    "generated": (
        "s = Constant<value = int64[2] {4, 3}>() W = ConstantOfShape<value = float[1] {0.5}>(s) "
        "z = MatMul(x, W)", {}, {"W": r(4, 3)},
    ),
    "dequantized": (
        "V = DequantizeLinear(W, s) z = MatMul(x, V)", {"W": ints(np.int8, 4, 3), "s": HALF},
        {"V": r(4, 3)},
    ),
    "quantized and its scale": (
        "V = DequantizeLinear(W, s) z = MatMul(x, V)", {"W": ints(np.int8, 4, 3), "s": HALF},
        {"W": ints(np.int8, 4, 3), "s": np.float32(0.25)},
    ),
    "one of two results": (
        "A, B = Split<axis = 0, num_outputs = 2>(W) a = Mul(x, A) b = Mul(a, B) z = MatMul(b, C)",
        {"W": r(2, 4), "C": r(4, 3)}, {"B": r(1, 4)},
    ),
    "used twice": (
        "V = Transpose(W) a = MatMul(x, V) b = Tanh(a) c = MatMul(b, V) z = MatMul(c, C)",
        {"W": r(4, 4), "C": r(4, 3)}, {"V": r(4, 4)},
    ),
    "in a branch": (
        "f = Constant<value = bool {1}>() z = If (f) <then_branch = t () => (float[N,3] u) "
        "{ V = Transpose(W) u = MatMul(x, V) }, else_branch = e () => (float[N,3] v) "
        "{ v = MatMul(x, C) }>", {"W": r(3, 4), "C": r(4, 3)}, {"V": r(4, 3)},
    ),
    "captured in a branch": (
        "f = Constant<value = bool {1}>() V = Transpose(W) z = If (f) <then_branch = t () => "
        "(float[N,3] u) { u = MatMul(x, V) }, else_branch = e () => (float[N,3] v) "
        "{ v = MatMul(x, C) }>", {"W": r(3, 4), "C": r(4, 3)}, {"V": r(4, 3)},
    ),
    "in a loop": (
        "k = Constant<value = int64 {3}>() y = Loop (k, , x) <body = b (int64 i, bool p, "
        "float[N,4] s) => (bool p, float[N,4] q) { V = Transpose(W) q = MatMul(s, V) }> "
        "z = MatMul(y, C)", {"W": r(4, 4), "C": r(4, 3)}, {"V": r(4, 4)},
    ),
    "a constant If": (
        "f = Constant<value = bool {1}>() V = If (f) <then_branch = t () => (float[4,3] u) "
        "{ u = Neg(W) }, else_branch = e () => (float[4,3] v) { v = Exp(W) }> z = MatMul(x, V)",
        {"W": r(4, 3)}, {"V": r(4, 3)},
    ),
    "results of branches": (
        "o = Constant<value = float {0}>() s = ReduceSum<keepdims = 0>(x) f = Greater(s, o) "
        "V = If (f) <then_branch = t () => (float[3] u) { u = Constant<value = float[3] {1,2,3}>() "
        "}, else_branch = e () => (float[3] v) <float[3] v = {3,2,1}> {}> y = MatMul(x, C) "
        "z = Add(y, V)", {"C": r(4, 3)}, {"u": r(3), "v": r(3)},
    ),
    "results of a body, one twice": (
        "k = Constant<value = int64 {2}>() y, A, B = Loop (k, , x) <body = b (int64 i, bool p, "
        "float[N,4] s) => (bool p, float[N,4] q, float[4] a, float[4] a) "
        "{ a = Constant<value = float[4] {1,2,3,4}>() q = Add(s, a) }> c = Add(y, y) "
        "d = ReduceSum<keepdims = 1>(A) e = ReduceSum<keepdims = 1>(B) f = Sum(c, d, e) "
        "z = MatMul(f, C)", {"C": r(4, 3)}, {"a": r(4)},
    ),
}  # fmt: skip


def net(body: str, weights: Arrays, opset: int = 18) -> ir.Model:
    """x [N, 4] → z [N, 3]."""
    model = parse(f"g (float[N,4] x) => (float[N,3] z) {{ {body} }}", weights)
    model.graph.opset_imports[""] = opset
    return model


def check(model: ir.Model, oracle: Arrays, folder: Path, **options: Any) -> ir.Model:
    """Compile, compare what is in the file, extract, compare with the base that holds w*."""
    compiled = gdu_compile.compile(model, oracle, output=folder / "m.gdu.onnx", **options)
    assert_reproduced(compiled.report)
    assert {row.name for row in compiled.report.weights} == set(oracle)
    plain = folder / "plain.onnx"
    extracted = gdu_compile.extract(folder / "m.gdu.trained.onnx", output=plain)
    expected = specialize.with_weights(model, specialize.oracle_in(compiled.extended))
    x = {"x": np.linspace(-2, 2, 20, dtype=np.float32).reshape(5, 4)}
    for level in ("all", "none"):
        with runtime.on_disk(expected) as path:
            one = runtime.run(path, x, level=level)
        other = runtime.run(plain, x, level=level)
        assert all(np.array_equal(one[n].view(np.uint32), other[n].view(np.uint32)) for n in one)
    return extracted


@pytest.mark.parametrize("case", COMPUTED)
def test_computed_from_constants(case: str, tmp_path: Path) -> None:
    """Each value that depends on constants only may be named; the switch stands there."""
    body, weights, oracle = COMPUTED[case]
    extracted = check(net(body, weights), oracle, tmp_path)
    for name, array in oracle.items():
        value = extracted.graph.initializers[name].const_value
        assert value is not None and np.array_equal(value.numpy(), array)


def test_what_only_made_the_value_goes() -> None:
    """Transpose and W are gone where V is named; where W serves something else, it stays."""
    compiled = gdu_compile.compile(*[net(*COMPUTED["transposed"][:2]), COMPUTED["transposed"][2]])
    assert "W" not in compiled.extended.graph.initializers and compiled.report.skipped == []
    plain = gdu_compile.extract(compiled.trained)
    assert [node.op_type for node in plain.graph] == ["MatMul"] and set(
        plain.graph.initializers) == {"V"}  # fmt: skip
    body = "V = Transpose(W) a = MatMul(x, V) z = MatMul(a, Y) u = Identity(W)"
    model = parse(f"g (float[N,4] x) => (float[N,3] z, float[3,4] u) {{ {body} }}",
                  {"W": r(3, 4), "Y": r(3, 3)})  # fmt: skip
    compiled = gdu_compile.compile(model, {"V": r(4, 3), "Y": r(3, 3)}, steps=1)
    assert_reproduced(compiled.report)
    assert [each["name"] for each in compiled.report.skipped] == ["W"]


def test_a_computed_value_that_is_an_output(tmp_path: Path) -> None:
    """The output keeps its name, and is the oracle's."""
    model = parse("g (float[N,4] x) => (float[N,3] z, float[4,3] V) "
                  "{ V = Transpose(W) z = MatMul(x, V) }", {"W": r(3, 4)})  # fmt: skip
    extracted = check(model, {"V": r(4, 3)}, tmp_path)
    assert [value.name for value in extracted.graph.outputs] == ["z", "V"]


def test_names_like_ours() -> None:
    """Name collisions: the names that we would make are there already."""
    model = net("V = Transpose(W) V_computed = Neg(V) a = MatMul(x, V) z = Mul(a, c)",
                {"W": r(3, 4), "c": r(3)})  # fmt: skip
    compiled = gdu_compile.compile(model, {"V": r(4, 3)}, steps=1)
    assert_reproduced(compiled.report)


@pytest.mark.parametrize("name", ["y", "q", "u", "nothing"])
def test_what_depends_on_inputs_is_no_weight(name: str) -> None:
    """The control: neither is a result of a branch, nor a name that is not there."""
    model = net(
        "y = Neg(x) f = Constant<value = bool {1}>() q = If (f) <then_branch = t () => "
        "(float[4,3] u) { u = Neg(W) }, else_branch = e () => (float[4,3] v) { v = Exp(W) }> "
        "m = MatMul(y, q) z = Mul(m, c)".replace("q = If", "q0 = If").replace(
            "m = MatMul(y, q)", "d = ReduceSum<keepdims = 0>(x) q = Mul(q0, d) m = MatMul(y, q)"),
        {"W": r(4, 3), "c": r(3)},
    )  # fmt: skip
    with pytest.raises(InputError, match=f"{name!r} is no weight of the model"):
        gdu_compile.compile(model, {name: r(4, 3), "c": r(3)})


def test_a_size_has_a_bound() -> None:
    """A terabyte that a shape asks for is refused before it is made; inspect lists it unmade."""
    body = ("s = Constant<value = int64[2] {1000000, 1000000}>() "
            "c = ConstantOfShape<value = float[1] {0.5}>(s) m = ReduceMax<keepdims = 0>(c) "
            "V = Mul(W, m) z = MatMul(x, V)")  # fmt: skip
    model = net(body, {"W": r(4, 3)})
    with pytest.raises(UnsupportedError, match="'V': computing it from constants takes 4000000"):
        gdu_compile.compile(model, {"V": r(4, 3)})
    NormalizePass()(model)
    values = constants.constant_values(model)
    assert constants.described(model, values.values())["c"][1] == (10**6, 10**6)


def test_many_large_ones_are_evaluated_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is on what is held at once."""
    monkeypatch.setattr(constants, "EVALUATED_BYTES", 100)
    body = "V = Transpose(A) a = MatMul(x, V) U = Transpose(B) b = MatMul(a, U) z = MatMul(b, C)"
    model = net(body, {"A": r(4, 4), "B": r(4, 4), "C": r(4, 3)})
    assert_reproduced(gdu_compile.compile(model, {"V": r(4, 4), "U": r(4, 4)}, steps=1).report)


LIGHT = Path(onnx.backend.test.__file__).parent / "data" / "light" / "light_shufflenet.onnx"


def test_light_models_list_their_weights() -> None:
    """Files of the onnx package, whose weights ConstantOfShape makes: inspect lists them."""
    facts = gdu_compile.inspect(LIGHT)
    rows = facts["other_weights"]
    assert len(rows) == 243 and sum(row["elements"] for row in rows) == 1_420_032
    assert all("computed by ConstantOfShape" in row["source"] for row in rows)


@pytest.mark.slow
def test_a_light_model_is_reproduced() -> None:
    """All of its 243 generated weights, in one step."""
    oracle = {row["name"]: 0.05 * r(*row["shape"])
              for row in gdu_compile.inspect(LIGHT)["other_weights"]}  # fmt: skip
    assert_reproduced(gdu_compile.compile(LIGHT, oracle, steps=1).report)


def test_an_algorithm_computes_what_is_computed(tmp_path: Path) -> None:
    """Learn: an oracle's output may be a value that the base computes from constants."""
    base = net("V = Transpose(W) z = MatMul(x, V)", {"W": r(3, 4)})
    algorithm = parse("""own (float[n,4] X, int64[n] Y) => (float[4,3] V) {
        m = ReduceMean<keepdims = 1>(X) s = Constant<value = int64[2] {4, 3}>()
        V = Expand(m, s) }""")
    data = save_npz(tmp_path / "d.npz", {"x": r(12, 4), "y": RNG.integers(0, 3, 12)})
    report = gdu_compile.compile(base, oracle=algorithm, data=data).report
    assert report.reproduced is True, report.to_json()
    assert [row.name for row in report.weights] == ["V"]


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "uint64"])
def test_inputs_that_learn_stores(dtype: str, tmp_path: Path) -> None:
    """The memory of learn holds inputs of every integer kind."""
    base = parse(f"g ({dtype}[N,4] x) => (float[N,3] z) {{ c = Cast<to = 1>(x) z = MatMul(c, W) }}",
                 {"W": r(4, 3)})  # fmt: skip
    algorithm = parse(f"""own ({dtype}[n,4] X, int64[n] Y) => (float[4,3] W) {{
        c = Cast<to = 1>(X) m = ReduceMean<keepdims = 1>(c)
        s = Constant<value = int64[2] {{4, 3}}>() W = Expand(m, s) }}""")
    data = save_npz(tmp_path / "d.npz", {"x": ints(dtype, 12, 4), "y": RNG.integers(0, 3, 12)})
    report = gdu_compile.compile(base, oracle=algorithm, data=data).report
    assert report.reproduced is True, report.to_json()


# --- single uses ----------------------------------------------------------------

SHARED = "[a] h = Add(x, b) t = Tanh(h) [c] k = Add(t, b) [d] j = Sub(k, b) z = MatMul(j, W)"
SHARED_WEIGHTS = {"b": r(4), "W": r(4, 3)}


def test_untie(tmp_path: Path) -> None:
    """A use that is named gets its own; NAME is for the others, and the rest keep their values."""
    oracle = {"b@c.1": r(4), "b": r(4), "W": r(4, 3)}
    extracted = check(net(SHARED, SHARED_WEIGHTS), oracle, tmp_path, untie=True)
    assert set(extracted.graph.initializers) == {"b@c.1", "b", "W"}
    report = gdu_compile.compile(net(SHARED, SHARED_WEIGHTS), {"b@d.1": r(4)}, untie=True).report
    assert_reproduced(report)
    assert {each["name"] for each in report.skipped} == {"b", "W"}


def test_untie_every_use(tmp_path: Path) -> None:
    """Then nothing is left of the shared one."""
    oracle = {f"b@{node}.1": r(4) for node in "acd"}
    extracted = check(net(SHARED, SHARED_WEIGHTS), oracle, tmp_path, untie=True)
    assert set(extracted.graph.initializers) == {*oracle, "W"}


def test_untie_copies_and_computed_values(tmp_path: Path) -> None:
    """A use behind Identity is one of the original's; what is computed can be split, too."""
    body = ("V = Transpose(w) i = Identity(V) [a] a = MatMul(x, V) [b] b = MatMul(a, i) "
            "z = MatMul(b, W)")  # fmt: skip
    weights = {"w": r(4, 4), "W": r(4, 3)}
    check(net(body, weights), {"V@b.1": r(4, 4)}, tmp_path / "one", untie=True)
    check(net(body, weights), {"V@b.1": r(4, 4), "V": r(4, 4)}, tmp_path / "two", untie=True)


def test_without_untie_a_use_is_no_weight() -> None:
    """Weights that are tied stay tied unless it is said; the message says how."""
    with pytest.raises(InputError) as caught:
        gdu_compile.compile(net(SHARED, SHARED_WEIGHTS), {"b@c.1": r(4)})
    assert "'b@c.1' is one of the 3 uses of 'b'" in caught.value.problems[0]
    assert "--untie" in caught.value.problems[0]


def test_shared_weights_are_pointed_to() -> None:
    """An oracle with a bias for each layer, where the export has one for all."""
    with pytest.raises(InputError) as caught:
        gdu_compile.compile(net(SHARED, SHARED_WEIGHTS), {"layer.bias": r(4), "W": r(4, 3)})
    assert "several nodes share 'b' (3 uses): inspect" in caught.value.problems[-1]
    with pytest.raises(InputError) as caught:  # the control: another shape
        gdu_compile.compile(net(SHARED, SHARED_WEIGHTS), {"layer.bias": r(5), "W": r(4, 3)})
    assert "several nodes share" not in str(caught.value)


def test_inspect_names_the_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the JSON and on the table, so that an .npz can be made of them."""
    path = save_onnx(tmp_path / "m.onnx", net(SHARED, SHARED_WEIGHTS))
    rows = {row["name"]: row for row in gdu_compile.inspect(path)["weights"]}
    assert sorted(rows["b"]["places"]) == ["b@a.1", "b@c.1", "b@d.1"] and not rows["W"]["places"]
    assert cli.run(["inspect", str(path)]) == 0
    assert "b@c.1" in capsys.readouterr().out
    weights = save_npz(tmp_path / "w.npz", {place: r(4) for place in rows["b"]["places"]})
    command = [str(path), "--weights", str(weights), "--untie", "--json", "-o"]
    assert cli.run([*command, str(tmp_path / "e.gdu.onnx")]) == 0
    assert json.loads(capsys.readouterr().out)["reproduced"] is True
    command.remove("--untie")
    assert cli.run([*command, str(tmp_path / "f.gdu.onnx")]) == 2


# --- kinds of numbers -----------------------------------------------------------

DQ = "V = DequantizeLinear(W, s) z = MatMul(x, V)"
CAST = "V = Cast<to = 1>(W) z = MatMul(x, V)"
F8 = {name: getattr(ml_dtypes, f"float8_{name}") for name in ("e4m3fn", "e5m2", "e4m3fnuz",
                                                              "e5m2fnuz")}  # fmt: skip
# case → (graph, opset, W, the oracle's W)
KINDS: dict[str, tuple[str, int, Any, Any]] = {
    **{f"float8_{name}": (DQ, 19, r(4, 3).astype(kind), r(4, 3).astype(kind))
       for name, kind in F8.items()},
    "float8 with infinities": (
        "v = Cast<to = 1>(W) V = Mul(v, s) m = Mul(x, V) z = MatMul(m, C)", 19,
        np.ones(4, F8["e5m2"]), np.array([np.inf, -0.0, 57344, -np.inf]).astype(F8["e5m2"]),
    ),
    "int4": (DQ, 21, ints(ml_dtypes.int4, 4, 3), ints(ml_dtypes.int4, 4, 3)),
    "uint4": (DQ, 21, ints(ml_dtypes.uint4, 4, 3), ints(ml_dtypes.uint4, 4, 3)),
    "int4 from int8": (DQ, 21, ints(ml_dtypes.int4, 4, 3), ints(np.int8, 4, 3) // 16),
    "an odd number of int4": (
        "V = DequantizeLinear(W, s) m = MatMul(x, C) z = Mul(m, V)", 21,
        ints(ml_dtypes.int4, 3), ints(ml_dtypes.int4, 3),
    ),
    "int16": (DQ, 21, ints(np.int16, 4, 3), ints(np.int16, 4, 3)),
    "uint16": (DQ, 21, ints(np.uint16, 4, 3), ints(np.uint16, 4, 3)),
    "int32": (DQ, 21, ints(np.int32, 4, 3), ints(np.int32, 4, 3)),
    "uint32": (CAST, 18, ints(np.uint32, 4, 3), ints(np.uint32, 4, 3)),
    "uint64": (CAST, 18, ints(np.uint64, 4, 3), ints(np.uint64, 4, 3)),
    "bool": ("V = Where(W, s, C) z = MatMul(x, V)", 18, r(4, 3) > 0, r(4, 3) > 0),
}  # fmt: skip


@pytest.mark.parametrize("case", KINDS)
def test_kinds(case: str, tmp_path: Path) -> None:
    """Recorded like any other; a narrow kind as a wider one, exactly."""
    body, opset, initial, oracle = KINDS[case]
    weights = {"W": initial, "s": HALF}
    if "C)" in body:
        weights["C"] = r(4, 3)
    check(net(body, weights, opset), {"W": oracle}, tmp_path)


@pytest.mark.parametrize("case", ["float8_e4m3fn", "int4", "bool", "uint16"])
def test_kinds_in_npz(case: str, tmp_path: Path) -> None:
    """numpy keeps the bytes of a kind that it does not know, and loses its name."""
    body, opset, initial, oracle = KINDS[case]
    model = net(
        body, {"W": initial, "s": HALF, **({"C": r(4, 3)} if case == "bool" else {})}, opset
    )
    path = save_npz(tmp_path / "w.npz", {"W": oracle})
    compiled = gdu_compile.compile(model, path, steps=1)
    assert_reproduced(compiled.report)
    wide = specialize.oracle_in(compiled.extended)["W"]
    assert np.array_equal(wide, oracle.astype(wide.dtype))


@pytest.mark.parametrize(("kind", "given", "words"), [
    ("int4", np.int8([[8, 0, 0]]), "holds numbers that int4 of the model does not have"),
    ("uint4", np.uint8([[16, 0, 0]]), "holds numbers that uint4 of the model does not have"),
    ("float8_e4m3fn", np.float16([[1.03, 0, 0]]), "holds numbers that float8_e4m3fn"),
    ("float8_e4m3fn", np.array([[np.nan, 0, 0]]).astype(F8["e4m3fn"]), "holds NaN"),
    ("float8_e4m3fn", np.float32([[1, 0, 0]]), "is float32, but float8_e4m3fn in the model"),
])  # fmt: skip
def test_numbers_that_the_kind_does_not_have(kind: str, given: Any, words: str) -> None:
    """Nothing is rounded or cut."""
    body, opset, initial, _ = KINDS[kind]
    with pytest.raises(InputError) as caught:
        gdu_compile.compile(net(body, {"W": initial[:4], "s": HALF}, opset),
                            {"W": np.repeat(given, 4, axis=0)})  # fmt: skip
    assert words in caught.value.problems[0]


def test_a_wrong_number_is_seen() -> None:
    """The negative control: one int4 of the base that is not the oracle's, and outputs differ."""
    body, opset, initial, oracle = KINDS["int4"]
    model = net(body, {"W": initial, "s": HALF}, opset)
    compiled = gdu_compile.compile(model, {"W": oracle}, steps=1)
    assert compiled.theta is not None and compiled.trained is not None
    theta = {name: array.copy() for name, array in compiled.theta.items()}
    theta["gdu_theta_0"][1, 0] += theta["gdu_theta_0"][0, 0] * 2
    report = gdu_compile.verify(compiled.extended, theta)
    assert report.reproduced is False and not report.weights[0].bit_equal


@pytest.mark.parametrize("kind", ["float8_e8m0fnu", "int2", "uint2"])
def test_what_is_not_supported_is_listed(kind: str) -> None:
    """An initializer of numbers that cannot be recorded is named, and --strict refuses it."""
    model = net("e = Cast<to = 1>(E) a = Mul(x, e) z = MatMul(a, W)",
                {"E": np.ones(4, np.float32), "W": r(4, 3)}, 25)  # fmt: skip
    tensor = ir.tensor(np.ones(4, getattr(ml_dtypes, kind)), name="E")
    model.graph.initializers["E"].const_value = tensor
    model.graph.initializers["E"].dtype = tensor.dtype
    compiled = gdu_compile.compile(model, {"W": r(4, 3)}, confirm=False)
    (skipped,) = compiled.report.skipped
    assert skipped["name"] == "E" and f"is {kind} in the model" in skipped["reason"]
    with pytest.raises(InputError, match=f"'E' is {kind} in the model"):
        gdu_compile.compile(model, {"W": r(4, 3)}, strict=True)
    with pytest.raises(InputError, match=f"'E' is {kind} in the model"):
        gdu_compile.compile(model, {"E": 2 * tensor.numpy()})


# case → (graph, initial weights); all weights are moved
QUANTIZED: dict[str, tuple[str, Arrays]] = {
    "QDQ with an int32 bias": (
        "q = QuantizeLinear(x, s, p) d = DequantizeLinear(q, s, p) V = DequantizeLinear(W, t) "
        "B = DequantizeLinear(b, t) m = MatMul(d, V) z = Add(m, B)",
        {"s": np.float32(0.02), "p": np.uint8(128), "W": ints(np.int8, 4, 3), "t": np.float32(0.01),
         "b": RNG.integers(-900, 900, 3).astype(np.int32)},
    ),
    "QLinearMatMul": (
        "q = QuantizeLinear(x, s, p) y = QLinearMatMul(q, s, p, W, t, u, o, k) "
        "z = DequantizeLinear(y, o, k)",
        {"s": np.float32(0.02), "p": np.uint8(128), "W": ints(np.uint8, 4, 3),
         "t": np.float32(0.01), "u": np.uint8(120), "o": np.float32(0.05), "k": np.uint8(127)},
    ),
    "QLinearConv": (
        "n = Constant<value = int64[4] {-1, 4, 1, 1}>() r = Reshape(x, n) "
        "q = QuantizeLinear(r, s, p) y = QLinearConv(q, s, p, W, t, u, o, k, b) "
        "f = DequantizeLinear(y, o, k) l = Constant<value = int64[2] {-1, 3}>() "
        "z = Reshape(f, l)",
        {"s": np.float32(0.02), "p": np.uint8(128), "W": ints(np.int8, 3, 4, 1, 1),
         "t": np.float32(0.01), "u": np.int8(0), "o": np.float32(0.05), "k": np.uint8(127),
         "b": RNG.integers(-900, 900, 3).astype(np.int32)},
    ),
    "MatMulInteger": (
        "q, s, p = DynamicQuantizeLinear(x) i = MatMulInteger(q, W, p, u) c = Cast<to = 1>(i) "
        "a = Mul(c, s) z = Mul(a, t)",
        {"W": ints(np.uint8, 4, 3), "u": np.uint8(120), "t": np.float32(0.01)},
    ),
}  # fmt: skip


def moved(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Another value of the same kind, as legal as the first."""
    if array.dtype.kind == "f":
        return np.asarray(array * 1.25, dtype=array.dtype)
    return np.asarray(np.where(array > 0, array - 1, array), dtype=array.dtype)


@pytest.mark.parametrize("case", QUANTIZED)
def test_quantized_networks(case: str, tmp_path: Path) -> None:
    """Weights, scales and zero points are recorded; none is left out unnamed, int32 biases too."""
    body, weights = QUANTIZED[case]
    check(net(body, weights), {name: moved(array) for name, array in weights.items()}, tmp_path)
    few = {"W": moved(weights["W"])}
    report = gdu_compile.compile(net(body, weights), few, confirm=False).report
    assert {each["name"] for each in report.skipped} == set(weights) - {"W"}


def test_the_int32_bias_of_qgemm() -> None:
    """An operator of com.microsoft, which onnxruntime's quantizer writes: its bias is a weight."""
    text = """<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]>
        g (float[N,4] x) => (float[N,3] z) {
        q = QuantizeLinear(x, s, p)
        y = com.microsoft.QGemm(q, s, p, W, t, u, b, o, k)
        z = DequantizeLinear(y, o, k) }"""
    proto = onnx.parser.parse_model(text)
    weights = {**QUANTIZED["QLinearMatMul"][1], "b": RNG.integers(-900, 900, 3).astype(np.int32)}
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    few = gdu_compile.compile(ir.from_proto(proto), {"W": moved(weights["W"])}, confirm=False)
    assert {each["name"] for each in few.report.skipped} == set(weights) - {"W"}
    oracle = {name: moved(array) for name, array in weights.items()}
    report = gdu_compile.compile(ir.from_proto(proto), oracle, strict=True).report
    assert_reproduced(report)
    assert {row.name for row in report.weights} == set(weights)


def test_packed_blocks() -> None:
    """MatMulNBits of com.microsoft: two 4-bit weights a byte, and a scale a block."""
    text = """<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]>
        g (float[N,32] x) => (float[N,3] z) {
        z = com.microsoft.MatMulNBits<K = 32, N = 3, bits = 4, block_size = 32>(x, W, s, p) }"""
    proto = onnx.parser.parse_model(text)
    weights = {"W": ints(np.uint8, 3, 1, 16), "s": abs(r(3)), "p": ints(np.uint8, 3)}
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    oracle = {"W": ints(np.uint8, 3, 1, 16), "s": abs(r(3)), "p": ints(np.uint8, 3)}
    report = gdu_compile.compile(ir.from_proto(proto), oracle).report
    assert_reproduced(report)
    assert {row.name for row in report.weights} == set(oracle)
