"""What exporters remove because it does nothing is put back, where another export has it."""

from __future__ import annotations

import io
import re
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from conftest import parse, save_onnx
from gdu_compile.passes import NormalizePass, RestoreNeutralPass
from gdu_compile.passes.restore_neutral import differences
from test_record import assert_reproduced
from torch import nn

import gdu_compile
from gdu_compile import neutral, runtime
from gdu_compile.bits import same_bits
from gdu_compile.contracts import Restored, state_of
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.oracle_weights import OracleWeights

Arrays = dict[str, np.ndarray[Any, Any]]
RNG = np.random.default_rng(5)
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 3e38, -1e-42, 1.0]


def r(*shape: int, dtype: str = "float32") -> np.ndarray[Any, Any]:
    """Normal numbers."""
    return np.asarray(RNG.standard_normal(shape).astype(dtype))


NET = "net (float[N,4] x) => (float[N,3] z) {{ {} }}"
W, V, B, S = r(4, 3), r(3, 3), r(3), r()
IMAGE = "net (float[N,2,4,4] x) => (float[N,3,{0},{0}] z) {{ {1} }}"
BRANCH = """net (float[N,4] x, bool[1] c) => (float[N,3] z) {{ h = MatMul(x, W)
    z = If (c) <then_branch = t () => (float[N,3] u) {{ {} u = MatMul({}, V) }},
                else_branch = e () => (float[N,3] v) {{ v = Neg(h) }}> }}"""
LSTM = NET.format("""axis = Constant<value_ints = [0]>() i = Unsqueeze(x, axis) , y = LSTM
    <hidden_size = 3>(i, A, R) h = Squeeze(y, axis) z = Tanh(h)""")

# case → (the graph of which it was removed, the graph that has it, weights of both, of that alone)
CASES: dict[str, tuple[str, str, Arrays, Arrays]] = {
    "the bias of Gemm": (
        NET.format("y = Gemm(x, W) t = Tanh(y) z = MatMul(t, V)"),
        NET.format("y = Gemm(x, W, b) t = Tanh(y) z = MatMul(t, V)"), {"W": W, "V": V}, {"b": B}),
    "the bias of Gemm, times -2": (
        NET.format("z = Gemm<beta = -2.0>(x, W)"), NET.format("z = Gemm<beta = -2.0>(x, W, b)"),
        {"W": W}, {"b": B}),
    "the bias of Conv": (
        IMAGE.format(3, "z = Conv(x, W)"), IMAGE.format(3, "z = Conv(x, W, b)"),
        {"W": r(3, 2, 2, 2)}, {"b": B}),
    "the bias of ConvTranspose": (
        IMAGE.format(5, "z = ConvTranspose(x, W)"), IMAGE.format(5, "z = ConvTranspose(x, W, b)"),
        {"W": r(2, 3, 2, 2)}, {"b": B}),
    "Add": (NET.format("y = MatMul(x, W) z = MatMul(y, V)"),
            NET.format("y = MatMul(x, W) h = Add(y, s) z = MatMul(h, V)"),
            {"W": W, "V": V}, {"s": S}),
    "Add, from the left, of a row": (
        NET.format("y = MatMul(x, W) z = Tanh(y)"),
        NET.format("y = MatMul(x, W) h = Add(b, y) z = Tanh(h)"), {"W": W}, {"b": B}),
    "Sub": (NET.format("y = MatMul(x, W) z = Tanh(y)"),
            NET.format("y = MatMul(x, W) h = Sub(y, s) z = Tanh(h)"), {"W": W}, {"s": S}),
    "Mul": (NET.format("y = MatMul(x, W) z = Tanh(y)"),
            NET.format("y = MatMul(x, W) h = Mul(s, y) z = Tanh(h)"), {"W": W}, {"s": S}),
    "Div": (NET.format("y = MatMul(x, W) z = Tanh(y)"),
            NET.format("y = MatMul(x, W) h = Div(y, s) z = Tanh(h)"), {"W": W}, {"s": S}),
    "in front of an operator without its first output": (
        LSTM, LSTM.replace("i = Uns", "j = Uns").replace(" , y", " i = Mul(j, s) , y"),
        {"A": r(1, 12, 4), "R": r(1, 12, 3)}, {"s": S}),
    "at the end": (NET.format("z = MatMul(x, W)"), NET.format("y = MatMul(x, W) z = Mul(y, s)"),
                   {"W": W}, {"s": S}),
    "at the beginning": (NET.format("z = MatMul(x, W)"),
                         NET.format("y = Mul(x, s) z = MatMul(y, W)"), {"W": W}, {"s": S}),
    "in front of a Softmax": (
        NET.format("y = MatMul(x, W) z = Softmax(y)"),
        NET.format("y = MatMul(x, W) h = Mul(y, s) z = Softmax(h)"), {"W": W}, {"s": S}),
    "three behind each other": (
        NET.format("y = MatMul(x, W) z = Tanh(y)"),
        NET.format("y = MatMul(x, W) h = Mul(y, s) i = Add(h, b) k = Div(i, d) z = Tanh(k)"),
        {"W": W}, {"s": S, "b": B, "d": r(1)}),
    "at the outer one of two": (
        NET.format("y = MatMul(x, W) h = Mul(y, v) z = Tanh(h)"),
        NET.format("y = MatMul(x, W) h = Mul(y, v) i = Mul(h, s) z = Tanh(i)"),
        {"W": W, "v": B}, {"s": S}),
    "for some uses only": (
        NET.format("y = MatMul(x, W) t = Tanh(y) e = Sigmoid(y) a = Neg(y) f = Add(t, e) "
                   "z = Add(f, a)"),
        NET.format("y = MatMul(x, W) m = Mul(y, s) k = Add(m, b) t = Tanh(k) e = Sigmoid(y) "
                   "a = Neg(m) f = Add(t, e) z = Add(f, a)"), {"W": W}, {"s": S, "b": B}),
    "behind a copy": (
        NET.format("y = MatMul(x, W) i = Identity(y) z = Tanh(i)"),
        NET.format("y = MatMul(x, W) k = Identity(s) h = Mul(y, k) z = Tanh(h)"),
        {"W": W}, {"s": S}),
    "in a branch": (
        BRANCH.format("k = Neg(h)", "k"), BRANCH.format("k = Neg(h) m = Mul(k, s)", "m"),
        {"W": W, "V": V}, {"s": S}),
    "in a branch, of what is outside": (
        BRANCH.format("", "h"), BRANCH.format("m = Mul(h, s)", "m"), {"W": W, "V": V}, {"s": S}),
    "in float16": (
        "net (float16[N,4] x) => (float16[N,3] z) { y = MatMul(x, W) z = Tanh(y) }",
        "net (float16[N,4] x) => (float16[N,3] z) { y = MatMul(x, W) h = Add(y, s) z = Tanh(h) }",
        {"W": r(4, 3, dtype="float16")}, {"s": r(1, dtype="float16")}),
    "one factor for two": (
        NET.format("y = MatMul(x, W) t = Tanh(y) z = MatMul(t, V)"),
        NET.format("y = MatMul(x, W) h = Mul(y, s) t = Tanh(h) i = Mul(t, s) z = MatMul(i, V)"),
        {"W": W, "V": V}, {"s": S}),
}  # fmt: skip


def special(model: ir.Model) -> Arrays:
    """Inputs with zeros of both signs, infinities, NaN and numbers near the ends."""
    found = {}
    for value in model.graph.inputs:
        shape = [dim if isinstance(dim, int) else 5 for dim in value.shape or ()]
        array = RNG.standard_normal(shape)
        array.reshape(-1)[: len(SPECIAL)] = SPECIAL[: array.size]
        assert value.dtype is not None
        with np.errstate(over="ignore"):
            found[str(value.name)] = array.astype(value.dtype.numpy())
    return found


def assert_same_answers(one: Path, other: Path, inputs: Arrays) -> None:
    """The same bits at both levels."""
    for level in runtime.LEVELS:
        a, b = (runtime.run(path, inputs, level=level, calls=True) for path in (one, other))
        for name, array in b.items():
            assert same_bits(a[name], array), (level, a[name], array)


def calls(inputs: Arrays) -> Arrays:
    """As one call."""
    return {name: array[None] for name, array in inputs.items()}


def other(arrays: Arrays) -> Arrays:
    """Other numbers of the same kind."""
    return {name: r(*array.shape, dtype=str(array.dtype)) for name, array in arrays.items()}


@pytest.mark.parametrize("case", CASES)
def test_put_back_into_the_model(case: str, tmp_path: Path) -> None:
    """Named as in the oracle; reproduced; the extracted file answers as the oracle's."""
    without, having, shared, alone = CASES[case]
    base, oracle = parse(without, other(shared)), {**shared, **alone}
    save_onnx(tmp_path / "m.onnx", base)
    path = save_onnx(tmp_path / "w.onnx", parse(having, oracle))
    compiled = gdu_compile.compile(
        tmp_path / "m.onnx", path, output=tmp_path / "m.gdu.onnx", steps=1
    )
    assert_reproduced(compiled.report)
    assert {row.name for row in compiled.report.weights} == set(oracle)
    warnings = " ".join(compiled.report.warnings)
    assert "the model: its exporter has removed" in warnings and all(name in warnings
                                                                     for name in alone)  # fmt: skip
    plain = tmp_path / "plain.onnx"
    extracted = gdu_compile.extract(tmp_path / "m.gdu.trained.onnx", output=plain)
    assert [v.name for v in extracted.graph.outputs] == [v.name for v in base.graph.outputs]
    assert_same_answers(plain, path, calls(special(base)))
    assert gdu_compile.verify(tmp_path / "m.gdu.onnx", tmp_path / "m.gdu.trained.onnx").reproduced


@pytest.mark.parametrize("case", CASES)
def test_put_back_into_the_oracle(case: str, tmp_path: Path) -> None:
    """The oracle is the export that lacks it: the weight does nothing there, and keeps no value."""
    without, having, shared, alone = CASES[case]
    base = parse(having, other({**shared, **alone}))
    path = save_onnx(tmp_path / "w.onnx", parse(without, shared))
    compiled = gdu_compile.compile(base, path, output=tmp_path / "m.gdu.onnx", steps=1)
    assert_reproduced(compiled.report)
    assert {row.name for row in compiled.report.weights} == {*shared, *alone}
    assert not compiled.report.skipped
    plain = tmp_path / "plain.onnx"
    gdu_compile.extract(tmp_path / "m.gdu.trained.onnx", output=plain)
    assert_same_answers(plain, path, calls(special(base)))


@pytest.mark.parametrize("case", CASES)
def test_it_does_nothing(case: str, tmp_path: Path) -> None:
    """The model answers as before, also on numbers that are not easy."""
    without, having, shared, alone = CASES[case]
    before = save_onnx(tmp_path / "m.onnx", parse(without, shared))
    model = gdu_compile.model_io.load(before)
    path = save_onnx(tmp_path / "w.onnx", parse(having, {**other(shared), **alone}))
    ir.passes.Sequential(NormalizePass(), RestoreNeutralPass(OracleWeights.load(path)))(model)
    assert {each.weight for each in state_of(model).restored} == set(alone)
    assert all(model.graph.initializers[name].shape == array.shape
               for name, array in alone.items())  # fmt: skip
    after = save_onnx(tmp_path / "after.onnx", model)
    assert_same_answers(after, before, calls(special(model)))


QUANTIZED = """net (float[N,2,4,4] x) => (float[N,3,3,3] z) {
    q = QuantizeLinear(x, sx, zero) c = QLinearConv(q, sx, zero, w, sw, none, sy, zero%s)
    z = DequantizeLinear(c, sy, zero) }"""


def test_the_bias_of_a_quantized_convolution(tmp_path: Path) -> None:
    """int32: 0 does nothing there."""
    shared = {"sx": np.float32(0.05), "zero": np.uint8(128), "sw": np.float32(0.02),
              "none": np.int8(0), "sy": np.float32(0.1),
              "w": RNG.integers(-90, 90, (3, 2, 2, 2)).astype(np.int8)}  # fmt: skip
    bias = {"b": np.int32([500, -700, 900])}
    path = save_onnx(tmp_path / "w.onnx", parse(QUANTIZED % ", b", {**shared, **bias}))
    compiled = gdu_compile.compile(parse(QUANTIZED % "", shared), path,
                                   output=tmp_path / "m.gdu.onnx")  # fmt: skip
    assert_reproduced(compiled.report)
    plain = tmp_path / "plain.onnx"
    extracted = gdu_compile.extract(tmp_path / "m.gdu.trained.onnx", output=plain)
    tensor = extracted.graph.initializers["b"].const_value
    assert tensor is not None and np.array_equal(tensor.numpy(), bias["b"])
    assert_same_answers(plain, path, {"x": r(1, 5, 2, 4, 4)})


OLD = """<ir_version: 8, opset_import: ["": 12]> net (float[N,4] x) => (float[N,3] z)
    <float[4,3] W = {1,2,3,4,5,6,7,8,9,10,11,12}%s> {
    m = ReduceSum<axes = [1], keepdims = 1>(x) y = Sub(x, m) h = MatMul(y, W) %s }"""


def test_an_old_model(tmp_path: Path) -> None:
    """Raised to opset 18 and then restored; the base that is compared with stays at opset 12."""
    texts = OLD % ("", "z = Tanh(h)"), OLD % (", float s = {2}", "i = Mul(h, s) z = Tanh(i)")
    paths = tmp_path / "m.onnx", tmp_path / "w.onnx"
    for text, path in zip(texts, paths, strict=True):
        onnx.save(onnx.parser.parse_model(text), path)
    assert_reproduced(gdu_compile.compile(paths[0], paths[1]).report)


class Blocks(nn.Module):
    """A convolution, a norm, a linear layer and a factor: as they are made, they do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 3, 3), nn.Linear(12, 3)
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(2))
        self.scale = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.zeros(()))
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, 2, 4, 4] → [N, 3]."""
        h = (self.conv(x) * self.scale).flatten(1)
        for norm in self.norms:
            h = torch.tanh(norm(h)) + self.shift
        logits: torch.Tensor = self.fc(h)
        return logits


def exported(module: nn.Module, path: Path, **options: Any) -> Path:
    """By PyTorch's exporter, with its defaults."""
    shapes = ({0: torch.export.Dim("N")},)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (torch.randn(2, 2, 4, 4),), path, dynamo=True,
                          dynamic_shapes=shapes, **options)  # fmt: skip
    return path


@pytest.mark.parametrize("back", [False, True])
def test_a_real_export(back: bool, tmp_path: Path) -> None:
    """A module as it is made, and trained; exported both times.  And the other way round."""
    torch.manual_seed(0)
    module = Blocks()
    base = exported(module, tmp_path / "m.onnx")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) / 8)
    oracle = exported(module, tmp_path / "w.onnx")
    kinds = [[node.op_type for node in ir.load(path).graph] for path in (base, oracle)]
    assert len(kinds[0]) == len(kinds[1]) - 3  # the control: the exporter has removed them
    if back:
        base, oracle = oracle, base
    compiled = gdu_compile.compile(base, oracle, output=tmp_path / "m.gdu.onnx")
    assert_reproduced(compiled.report)
    numbers = sum(parameter.numel() for parameter in module.parameters())
    assert sum(row.elements for row in compiled.report.weights) == numbers
    plain = tmp_path / "plain.onnx"
    gdu_compile.extract(tmp_path / "m.gdu.trained.onnx", output=plain)
    assert_same_answers(plain, oracle, {"x": r(1, 5, 2, 4, 4)})


TANH = NET.format("y = MatMul(x, W) z = Tanh(y)")
# case → (the base's graph, the oracle's, words of the error)
REFUSED = {
    "a Relu more": (
        TANH, NET.format("y = MatMul(x, W) h = Relu(y) [k] i = Add(h, b) z = Tanh(i)"),
        "'b' is no weight of the model: nothing was found there like Add 'k', which has it"),
    "an addition of what is no constant": (
        TANH, NET.format("y = MatMul(x, W) n = ReduceMax(y) h = Mul(y, b) z = Add(h, n)"),
        "is Tanh, where the oracle has Add"),
    "a constant less another": (
        TANH, NET.format("y = MatMul(x, W) h = Sub(b, y) z = Tanh(h)"),
        "is MatMul, where the oracle has Sub"),
    "a factor of integers": (
        "net (int32[N,4] x) => (float[N,3] z) { h = Cast<to = 1>(x) z = MatMul(h, W) }",
        "net (int32[N,4] x) => (float[N,3] z) "
        "{ y = Mul(x, k) h = Cast<to = 1>(y) z = MatMul(h, U) }",
        "where the oracle has the result of Mul"),
    "for one use and not for the other": (
        NET.format("y = MatMul(x, W) t = Tanh(y) z = Add(t, t)"),
        NET.format("y = MatMul(x, W) h = Mul(y, b) t = Tanh(h) u = Tanh(y) z = Add(t, u)"),
        "the oracle has no place for 'b'"),
    "two factors for one use": (
        NET.format("y = MatMul(x, W) t = Tanh(y) z = Add(t, t)"),
        NET.format("y = MatMul(x, W) h = Mul(y, b) t = Tanh(h) i = Mul(y, c) u = Tanh(i) "
                   "z = Add(t, u)"), "stands for several tensors of the oracle: 'b', 'c'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    """The control: what is no addition of 0 and no multiplication by 1 is not made one."""
    ours, theirs, words = REFUSED[case]
    arrays = {"W": W, "b": B, "c": 2 * B, "U": W, "k": np.int32([2, 3, 4, 5])}
    base, oracle = (
        parse(text, {name: a for name, a in arrays.items() if re.search(rf"[ (]{name}[,)]", text)})
        for text in (ours, theirs)
    )
    with pytest.raises(InputError) as caught:
        gdu_compile.compile(base, save_onnx(tmp_path / "w.onnx", oracle), confirm=False)
    assert words in str(caught.value) and "optimize=False" in str(caught.value)


@pytest.mark.parametrize(("array", "words"), [
    (B.reshape(1, 1, 3), "it changes the outputs' shape"), (r(2), "onnxruntime cannot"),
    (np.float64(2), "onnxruntime cannot load it"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(
    array: np.ndarray[Any, Any], words: str, tmp_path: Path
) -> None:
    """A weight of another shape or dtype than the model's values: seen when the model is run."""
    path = save_onnx(tmp_path / "w.onnx", parse(
        NET.format("y = MatMul(x, W) h = Add(y, b) z = Tanh(h)"), {"W": W, "b": np.asarray(array)}
    ))  # fmt: skip
    with pytest.raises(UnsupportedError, match="the model is another network") as caught:
        gdu_compile.compile(parse(TANH, {"W": W}), path, confirm=False)
    assert words in str(caught.value)


def test_what_does_something_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the comparison: 1 added is not 0 added."""
    without, having, shared, alone = CASES["Add"]
    path = save_onnx(tmp_path / "w.onnx", parse(having, {**shared, **alone}))
    monkeypatch.setitem(neutral.NEUTRAL, "Add", 1e-6)
    with pytest.raises(UnsupportedError, match="put back, it changes the outputs by") as caught:
        gdu_compile.compile(parse(without, shared), path, confirm=False)
    assert caught.value.problems == ("'s' (input 1 of Add 'Add')",)


def test_nothing_happens_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other kinds of oracles, and names that are all known: no graph is walked."""
    monkeypatch.setattr("gdu_compile.passes.restore_neutral.match_structure", None)
    arrays = {"W": W}
    same = save_onnx(tmp_path / "w.onnx", parse(TANH, arrays))
    for oracle in (same, arrays):
        compiled = gdu_compile.compile(parse(TANH, other(arrays)), oracle, confirm=False)
        (row,) = [row for row in compiled.report.passes if row.name == "RestoreNeutralPass"]
        assert row.counts == {} and not row.modified and compiled.report.warnings == []


def test_names_alone_are_warned_of(tmp_path: Path) -> None:
    """Another graph whose names are the model's, but not all weights: the rest stay."""
    path = save_onnx(tmp_path / "w.onnx", parse(TANH, {"W": W}))
    base = parse(NET.format("y = MatMul(x, W) h = Relu(y) z = Mul(h, b)"), {"W": W, "b": B})
    report = gdu_compile.compile(base, path, confirm=False).report
    assert [row["name"] for row in report.skipped] == ["b"]
    assert "taken by its names alone" in report.warnings[0] and "is Relu" in report.warnings[0]


def test_why(tmp_path: Path) -> None:
    """--why names the place."""
    without, having, shared, alone = CASES["the bias of Gemm"]
    path = save_onnx(tmp_path / "w.onnx", parse(having, {**shared, **alone}))
    why = gdu_compile.compile(parse(without, shared), path, confirm=False, why="b").report.why
    assert why is not None and any("as it did nothing; put back as -0" in each for each in why)
    path = save_onnx(tmp_path / "w.onnx", parse(without, shared))
    base = parse(having, {**shared, **alone})
    why = gdu_compile.compile(base, path, confirm=False, why="b").report.why
    assert why is not None and "hold it, put back, as their exporter had removed it" in why[0]


def test_what_is_fused_is_warned_of() -> None:
    """Other bits with all optimisations are no error, and are said; so is what cannot be run."""
    one = {"z": np.float32([1, 2])}
    fused = {"none": one, "all": {"z": np.nextafter(one["z"], np.float32(9))}}
    place = Restored("b", (2,), ir.DataType.FLOAT, -0.0, "Gemm", 2, uses=(("y", 2),))
    (warning,) = differences({"none": one, "all": one}, fused, [place], "the model")
    assert "change by 2.4e-07" in warning
    assert differences(fused, fused, [place], "the model") == []
    (warning,) = differences("it has no shape", fused, [place], "the model")
    assert warning.endswith("was not compared on synthetic inputs: it has no shape")
