"""An oracle from another export of the network: matched by structure where names differ."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from conftest import ALL_MODELS, MODELS, mlp, oracle_for, parse, save_onnx
from test_record import assert_reproduced

import gdu_compile
from gdu_compile import model_io, specialize
from gdu_compile.errors import InputError
from gdu_compile.oracle_weights import OracleWeights

Arrays = dict[str, np.ndarray[Any, Any]]
RNG = np.random.default_rng(7)


def r(*shape: int) -> np.ndarray[Any, Any]:
    """Normal float32 numbers."""
    return RNG.standard_normal(shape).astype(np.float32)


NET = """net (float[N,4] x) => (float[N,3] z) {
    [one] a = MatMul(x, %s) [two] b = Add(a, %s) t = Tanh(b) [three] c = MatMul(t, %s)
    [four] z = Add(c, %s) }"""
BASE = NET % ("U", "p", "V", "q")
SHAPES = {"U": (4, 3), "p": (3,), "V": (3, 3), "q": (3,)}
P, Q, U, V = r(3), r(3), r(4, 3), r(3, 3)
OTHER = {"m1": U, "v1": P, "m2": V, "v2": Q}

# case → (the oracle's graph, its initializers, what the base gets, words of the warning)
MATCHES: dict[str, tuple[str, Arrays, Arrays, str]] = {
    "other names": (
        NET % ("m1", "v1", "m2", "v2"), OTHER, {"U": U, "p": P, "V": V, "q": Q},
        "4 weights matched by their places in the graph, 4 of them under another name",
    ),
    "names that mean something else": (
        NET % ("m1", "q", "m2", "p"), {"m1": U, "q": P, "m2": V, "p": Q},
        {"U": U, "p": P, "V": V, "q": Q}, "4 of them under another name",
    ),
    "one bias merged in the oracle": (
        NET % ("m1", "v1", "m2", "v1"), {"m1": U, "v1": P, "m2": V},
        {"U": U, "p": P, "V": V, "q": P}, "4 weights matched",
    ),
    "a copy of the merged bias": (
        (NET % ("m1", "v1", "m2", "k")).replace("t = Tanh", "k = Identity(v1) t = Tanh"),
        {"m1": U, "v1": P, "m2": V}, {"U": U, "p": P, "V": V, "q": P}, "4 weights matched",
    ),
    "a transposed weight": (
        (NET % ("m1", "v1", "k", "v2")).replace("t = Tanh", "k = Transpose(mt) t = Tanh"),
        {"m1": U, "v1": P, "mt": V.T.copy(), "v2": Q}, {"U": U, "p": P, "V": V, "q": Q},
        "4 weights matched",
    ),
    "the model's names, two of them exchanged": (
        NET % ("U", "q", "V", "p"), {"U": U, "q": P, "V": V, "p": Q},
        {"U": U, "p": P, "V": V, "q": Q},
        "4 weights matched by their places in the graph, 2 of them under another name",
    ),
    "the model's names, a square weight transposed": (
        (NET % ("U", "p", "k", "q")).replace("t = Tanh", "k = Transpose(V) t = Tanh"),
        {"U": U, "p": P, "V": V.T.copy(), "q": Q}, {"U": U, "p": P, "V": V, "q": Q},
        "4 weights matched by their places in the graph, 1 of them under another name",
    ),
    "in a Constant node": (
        (NET % ("m1", "v1", "m2", "k")).replace(
            "t = Tanh", "k = Constant<value = float[3] {1, 2, 3}>() t = Tanh"),
        {"m1": U, "v1": P, "m2": V}, {"U": U, "p": P, "V": V, "q": np.float32([1, 2, 3])},
        "4 weights matched",
    ),
}  # fmt: skip


def base(text: str = BASE, shapes: dict[str, tuple[int, ...]] = SHAPES) -> ir.Model:
    """The base, all weights 1."""
    return parse(text, {name: np.ones(shape, np.float32) for name, shape in shapes.items()})


def weights_of(extended: ir.Model) -> Arrays:
    """The oracle in an extended model, by the names of the base."""
    return dict(sorted(specialize.oracle_in(extended).items()))


def equal(one: Arrays, other: Arrays) -> bool:
    """The same names and numbers."""
    return set(one) == set(other) and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("case", MATCHES)
def test_matched_by_structure(case: str, tmp_path: Path) -> None:
    """Each weight gets what stands at its place; reproduced bit for bit; the report says how."""
    text, arrays, expected, words = MATCHES[case]
    path = save_onnx(tmp_path / "w.onnx", parse(text, arrays))
    compiled = gdu_compile.compile(base(), path, output=tmp_path / "m.gdu.onnx")
    assert_reproduced(compiled.report)
    assert equal(weights_of(compiled.extended), expected)
    assert any(words in warning for warning in compiled.report.warnings)
    plain = gdu_compile.extract(tmp_path / "m.gdu.trained.onnx")
    assert plain.graph.initializers.keys() == set(SHAPES)


def test_names_come_first_where_they_are_the_same(tmp_path: Path) -> None:
    """Control: an oracle with the model's names is read by them, as before, with no warning."""
    net = mlp()
    oracle = oracle_for(net)
    for name, array in oracle.items():
        net.graph.initializers[name].const_value = ir.tensor(array, name=name)
    compiled = gdu_compile.compile(mlp(), save_onnx(tmp_path / "w.onnx", net), confirm=False)
    assert equal(weights_of(compiled.extended), oracle) and compiled.report.warnings == []


GENERATED = """net (float[N,3] x) => (float[N,3] z) {
    n = Constant<value = int64[1] {3}>() k = ConstantOfShape<value = float[1] {%s}>(n)
    %s = Constant<value = float[3] {1, %s, 3}>() y = Mul(x, k) u = Add(y, %s) z = Mul(u, w) }"""


def test_what_no_name_tells_is_not_left_out(tmp_path: Path) -> None:
    """A value that an attribute generates, and a Constant of another name: both are the oracle's
    where all initializers have the model's names."""
    net = parse(GENERATED % (0.5, "c", 2, "c"), {"w": r(3)})
    oracle = parse(GENERATED % (0.25, "d", 7, "d"), {"w": P})
    compiled = gdu_compile.compile(net, save_onnx(tmp_path / "w.onnx", oracle))
    assert_reproduced(compiled.report)
    expected = {"w": P, "k": np.full(3, 0.25, np.float32), "c": np.float32([1, 7, 3])}
    assert equal(weights_of(compiled.extended), expected)


def test_names_count_where_the_graphs_differ_and_that_is_said(tmp_path: Path) -> None:
    """An oracle with the model's names and another operator; with --rename, names alone count."""
    arrays = {"U": U, "p": P, "V": V, "q": Q}
    path = save_onnx(tmp_path / "w.onnx", parse(BASE.replace("Tanh", "Relu"), arrays))
    compiled = gdu_compile.compile(base(), path, confirm=False)
    assert equal(weights_of(compiled.extended), arrays)
    words = "its outputs may be others: node of 't' is Tanh, where the oracle has Relu"
    assert any(words in text for text in compiled.report.warnings)
    other = parse(NET % ("A", "q", "V", "p"), {"A": U, "q": P, "V": V, "p": Q})
    path = save_onnx(tmp_path / "v.onnx", other)
    compiled = gdu_compile.compile(base(), path, rename=["^A$=U"], confirm=False)
    assert equal(weights_of(compiled.extended), {"U": U, "p": Q, "V": V, "q": P})


@pytest.mark.parametrize("name", ALL_MODELS)
def test_real_models_under_other_names(name: str, tmp_path: Path) -> None:
    """Every weight, node and value called otherwise, initializers in another order: all found."""
    oracle = OracleWeights.load(MODELS / f"{name}.oracle.npz")
    other = specialize.with_weights(
        model_io.load(MODELS / f"{name}.onnx"), {key: h.load() for key, h in oracle.items()}
    )
    weights = list(other.graph.initializers.values())
    order = np.random.default_rng(1).permutation(len(weights))
    for index in order:
        del other.graph.initializers[str(weights[index].name)]
    for index, place in enumerate(order):
        ir.convenience.rename_values(weights[place], f"onnx::Any_{index}")
        other.graph.register_initializer(weights[place])
    for index, node in enumerate(other.graph.all_nodes()):
        node.name = f"n{index}"
    path = save_onnx(tmp_path / "w.onnx", other)
    got = gdu_compile.compile(MODELS / f"{name}.onnx", path, confirm=False).extended
    wanted = gdu_compile.compile(
        MODELS / f"{name}.onnx", MODELS / f"{name}.oracle.npz", confirm=False
    ).extended
    assert equal(weights_of(got), weights_of(wanted))


MERGED = NET % ("U", "p", "V", "p")
FEW = {"U": (4, 3), "p": (3,), "V": (3, 3)}


def test_a_merged_bias_is_split(tmp_path: Path) -> None:
    """One zero bias for two nodes, which the oracle has two of: each use gets its own."""
    path = save_onnx(tmp_path / "w.onnx", parse(NET % ("m1", "v1", "m2", "v2"), OTHER))
    compiled = gdu_compile.compile(base(MERGED, FEW), path, output=tmp_path / "m.gdu.onnx")
    assert_reproduced(compiled.report)
    got = weights_of(compiled.extended)
    assert equal(got, {"U": U, "p": P, "V": V, "p@four.1": Q})
    assert any("'p' has 2 values there" in warning for warning in compiled.report.warnings)
    x = {"x": r(5, 4)}
    plain = tmp_path / "plain.onnx"
    gdu_compile.extract(tmp_path / "m.gdu.trained.onnx", output=plain)
    for level in ("all", "none"):
        one = gdu_compile.runtime.run(plain, x, level=level)["z"]
        other = gdu_compile.runtime.run(path, x, level=level)["z"]
        assert np.array_equal(one.view(np.uint32), other.view(np.uint32))


def test_the_name_stays_with_its_own_tensor(tmp_path: Path) -> None:
    """The oracle has the merged name, too, for the second use: there it stays."""
    path = save_onnx(tmp_path / "w.onnx", parse(
        NET % ("m1", "v1", "m2", "p"), {"m1": U, "v1": P, "m2": V, "p": Q}))  # fmt: skip
    compiled = gdu_compile.compile(base(MERGED, FEW), path, confirm=False)
    assert equal(weights_of(compiled.extended), {"U": U, "p@two.1": P, "V": V, "p": Q})


def test_a_tied_weight_stays_tied(tmp_path: Path) -> None:
    """The control: where the oracle has one value for both uses, nothing is split."""
    path = save_onnx(tmp_path / "w.onnx", parse(
        NET % ("m1", "v1", "m2", "v1"), {"m1": U, "v1": P, "m2": V}))  # fmt: skip
    compiled = gdu_compile.compile(base(MERGED, FEW), path, confirm=False)
    assert equal(weights_of(compiled.extended), {"U": U, "p": P, "V": V})
    # Two tensors with the same bits are one value, too.
    arrays = {**OTHER, "v2": P.copy()}
    save_onnx(path, parse(NET % ("m1", "v1", "m2", "v2"), arrays))
    compiled = gdu_compile.compile(base(MERGED, FEW), path, confirm=False)
    assert equal(weights_of(compiled.extended), {"U": U, "p": P, "V": V})


def test_forty_nine_uses(tmp_path: Path) -> None:
    """As in a real export: one zero bias for 49 nodes, of which three share a value."""
    count = 49
    steps = "".join(f"[n{i}] h{i + 1} = Add(h{i}, %s) " for i in range(count))
    text = f"net (float[N,3] h0) => (float[N,3] z) {{ {steps} z = MatMul(h{count}, W) }}"
    biases = {f"b{i}": r(3) for i in range(count)}
    for i in (7, 9):
        biases[f"b{i}"] = biases["b30"]
    oracle = parse(text % tuple(biases), {**biases, "M": r(3, 3)})
    oracle.graph.node(count).replace_input_with(1, oracle.graph.initializers["M"])
    net = base(text % (("b",) * count), {"b": (3,), "W": (3, 3)})
    compiled = gdu_compile.compile(net, save_onnx(tmp_path / "w.onnx", oracle), steps=1)
    assert_reproduced(compiled.report)
    got = weights_of(compiled.extended)
    assert len(got) == count - 3 + 1 + 1 and np.array_equal(got["b"], biases["b30"])
    assert all(np.array_equal(got[f"b@n{i}.1"], biases[f"b{i}"]) for i in range(count)
               if i not in (7, 9, 30))  # fmt: skip


POWERS = """net (float[N,3] x) => (float[N,3] z) { %s [a] p = Pow(x, %s) [b] q = Pow(p, %s)
    [c] s = Pow(q, %s) z = MatMul(s, %s) }"""


@pytest.mark.parametrize(("exponents", "expected"), [
    ((3, 3, 2), {"k": 3, "k@c.1": 2}), ((2, 3, 2), {"k": 2, "k@b.1": 3}), ((2, 2, 2), {}),
    ((3, 3, 3), {"k": 3}),
])  # fmt: skip
def test_constants_that_differ_at_some_uses(
    exponents: tuple[int, ...], expected: dict[str, int], tmp_path: Path
) -> None:
    """One exponent of the base for three nodes: equal everywhere it stays, else no use is lost."""
    net = base(POWERS % ("k = Constant<value = float {2}>()", "k", "k", "k", "W"), {"W": (3, 3)})
    made = " ".join(f"e{i} = Constant<value = float {{{each}}}>()"
                    for i, each in enumerate(exponents))  # fmt: skip
    oracle = parse(POWERS % (made, "e0", "e1", "e2", "M"), {"M": U[:3]})
    path = save_onnx(tmp_path / "w.onnx", oracle)
    compiled = gdu_compile.compile(net, path)
    assert_reproduced(compiled.report)
    got = weights_of(compiled.extended)
    assert {name: float(array) for name, array in got.items() if name != "W"} == expected
    x = {"x": abs(r(5, 3))}
    with gdu_compile.runtime.on_disk(specialize.with_weights(net, got)) as one:
        for level in ("all", "none"):
            z = [gdu_compile.runtime.run(each, x, level=level)["z"] for each in (one, path)]
            assert np.array_equal(z[0].view(np.uint32), z[1].view(np.uint32))


BRANCHES = """net (float[N,4] x, bool[1] c) => (float[N,3] z) {
    z = If (c) <then_branch = t () => (float[N,3] u) { [then] u = MatMul(x, %s) },
                else_branch = e () => (float[N,3] v) { y = Neg(x) [other] v = MatMul(y, %s) }> }"""


def test_uses_in_branches(tmp_path: Path) -> None:
    """Bodies are walked beside each other; a use inside one is split like any other."""
    path = save_onnx(tmp_path / "w.onnx", parse(BRANCHES % ("m", "n"), {"m": U, "n": 2 * U}))
    net = base(BRANCHES % ("W", "W"), {"W": (4, 3)})
    compiled = gdu_compile.compile(net, path)
    assert_reproduced(compiled.report)
    assert equal(weights_of(compiled.extended), {"W": U, "W@other.1": 2 * U})


OLD = """<ir_version: 8, opset_import: ["": 12]> net (float[N,4] x) => (float[N,3] z)
    <float[4,3] %s = {1,2,3,4,5,6,7,8,9,10,11,%d}> {
    m = ReduceSum<axes = [1], keepdims = 1>(x) y = Sub(x, m) z = MatMul(y, %s) }"""


def test_old_opsets(tmp_path: Path) -> None:
    """The base is raised to opset 18; so is the oracle, before the two are laid side by side."""
    import onnx

    for name, weight, last in (("m", "W", 12), ("w", "onnx::MatMul_7", 13)):
        text = OLD.replace("%s = {", "W = {") % (last, "W")
        model = onnx.parser.parse_model(text)
        model.graph.initializer[0].name = weight
        model.graph.node[-1].input[1] = weight
        onnx.save(model, tmp_path / f"{name}.onnx")
    compiled = gdu_compile.compile(tmp_path / "m.onnx", tmp_path / "w.onnx")
    assert_reproduced(compiled.report)
    assert weights_of(compiled.extended)["W"][3, 2] == 13


# case → (the base's graph, the oracle's, its initializers, words of the error)
REFUSED: dict[str, tuple[str, str, Arrays, str]] = {
    "another operator": (
        BASE, (NET % tuple(OTHER)).replace("Tanh", "Relu"), OTHER, "is Tanh, where the oracle",
    ),
    "one node more": (
        BASE, (NET % tuple(OTHER)).replace("t = Tanh(b)", "s = Exp(b) t = Tanh(s)"), OTHER,
        "where the oracle has",
    ),
    "another shape": (
        BASE, (NET % tuple(OTHER)).replace("float[N,4]", "float[N,5]"), {**OTHER, "m1": r(5, 3)},
        "'U' has shape [5, 3], but [4, 3] in the model",
    ),
    "what is computed once is computed twice": (
        "net (float[N,4] x) => (float[N,3] z) { a = MatMul(x, U) z = Add(a, a) }",
        "net (float[N,4] x) => (float[N,3] z) "
        "{ a = MatMul(x, m1) b = MatMul(x, m2) z = Add(a, b) }",
        {"m1": U, "m2": 2 * U}, "'m1', 'm2'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    """Networks that are not the same: an error that says where, and no guess."""
    ours, theirs, arrays, words = REFUSED[case]
    path = save_onnx(tmp_path / "w.onnx", parse(theirs, arrays))
    shapes = {name: shape for name, shape in SHAPES.items() if re.search(rf"\b{name}\b", ours)}
    with pytest.raises(InputError) as caught:
        gdu_compile.compile(base(ours, shapes), path, confirm=False)
    assert any(words in problem for problem in caught.value.problems), caught.value.problems


def test_why_says_the_name_in_the_oracle(tmp_path: Path) -> None:
    """--why of a weight that the oracle has under another name, and of a single use."""
    path = save_onnx(tmp_path / "w.onnx", parse(NET % tuple(OTHER), OTHER))
    why = gdu_compile.compile(base(), path, confirm=False, why="U").report.why
    assert why is not None and "hold it as 'm1'" in why[0]
    why = gdu_compile.compile(base(MERGED, FEW), path, confirm=False, why="p@four.1").report.why
    assert why is not None and "for input 1 of Add 'four'" in " ".join(why)
