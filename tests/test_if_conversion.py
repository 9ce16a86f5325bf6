"""IfConversionPass: the bits of the If form in onnxruntime and torch, the same θ after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from conftest import ALL_MODELS, MODELS, model_data, parse
from everywhere import run_everywhere, same
from gdu_compile.passes import CheckExtensionPass, IfConversionPass, RemoveExtensionPass

import gdu_compile
from gdu_compile import runtime, specialize
from gdu_compile.contracts import state_of
from gdu_compile.digits import Array
from gdu_compile.errors import ContractError, UnsupportedError
from gdu_compile.torch_backend import lower_to_torch

Theta = dict[str, Array]
SLOTS = 100
BUCKETS = {"one bucket": 64 << 20, "three buckets": 20_000}


def converted(model: ir.Model, *, foreign: bool = False) -> ir.Model:
    """A copy in which no If is left."""
    result = model.clone()
    IfConversionPass(foreign=foreign)(result)
    assert not any(node.op_type == "If"
                   for node in ir.traversal.RecursiveGraphIterator(result.graph))  # fmt: skip
    return result


def samples(name: str, count: int = SLOTS) -> tuple[torch.Tensor, torch.Tensor]:
    """The first samples of a model's data."""
    with np.load(model_data(name)) as arrays:
        return tuple(torch.from_numpy(arrays[key][:count]) for key in ("x", "y"))


def train(model: ir.Model, name: str, momentum: float, sizes: tuple[int, ...]) -> Theta:
    """θ after steps of SGD with batches of these sizes; the last gradient is 0."""
    module = gdu_compile.to_torch(model)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3, momentum=momentum)
    x, y = samples(name, sum(sizes))
    for part, labels in zip(x.split(sizes), y.split(sizes), strict=True):
        optimizer.zero_grad()
        output = module(part)
        loss = torch.nn.functional.cross_entropy(output, labels.clamp(max=output.shape[1] - 1))
        (loss + output[:, 0].mean()).backward()
        optimizer.step()
    assert all(float(p.grad.abs().max()) == 0 for p in module.parameters())
    return {key: p.detach().numpy().copy() for key, p in module.named_parameters()}


def outputs(model: ir.Model, name: str) -> list[Array]:
    """In onnxruntime, at both levels, for two batches."""
    x = samples(name)[0].numpy()
    with runtime.on_disk(model) as path:
        return [array for level in ("none", "all") for size in (1, 5)
                for array in runtime.run(path, {"x": x[:size]}, level=level).values()]  # fmt: skip


def check_same(extended: ir.Model, name: str, theta: Theta) -> None:
    """The same bits while recording and armed; and other ones armed than while recording."""
    plain = converted(extended)
    before = [outputs(model, name) for model in (extended, plain)]
    after = [outputs(specialize.filled(model, theta), name) for model in (extended, plain)]
    for left, right in (before, after):
        assert all(same(a, b) for a, b in zip(left, right, strict=True))
    assert not any(same(a, b) for a, b in zip(before[0], after[0], strict=True))


QUICK = ["digits_linear", "digits_cnn", "digits_probs", "iris_binary"]
MODELS_MARKED = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
                 for name in ALL_MODELS]  # fmt: skip


@pytest.mark.parametrize("name", MODELS_MARKED)
def test_record(name: str) -> None:
    """Both levels of onnxruntime, recording and armed; θ of torch bit for bit."""
    extended = gdu_compile.compile(
        MODELS / f"{name}.onnx", MODELS / f"{name}.oracle.npz", confirm=False
    ).extended
    sizes = (64, 7, 20)
    theta = train(extended, name, 0.9, sizes)
    other = train(converted(extended), name, 0.9, sizes)
    assert all(same(theta[key], other[key]) for key in theta)
    assert gdu_compile.verify(extended, other).reproduced is True
    check_same(extended, name, theta)


@pytest.mark.parametrize("digits", ["float16", "linear8", "pow2", "linear1"])
def test_digit_codes(digits: str) -> None:
    """Their decoders are as safe where a calibrator is 0."""
    name = "digits_linear"
    extended = gdu_compile.compile(MODELS / f"{name}.onnx", MODELS / f"{name}.oracle.npz",
                                   confirm=False, digits=digits).extended  # fmt: skip
    theta, other = (train(m, name, 0.0, (9, 9)) for m in (extended, converted(extended)))
    assert all(same(theta[key], other[key]) for key in theta)
    check_same(extended, name, theta)


@pytest.mark.parametrize("buckets", BUCKETS)
def test_learn(buckets: str, tmp_path: Path) -> None:
    """A bucket that the batch does not touch is computed, too: no rows, and a gradient of 0.

    With momentum such a bucket moves, slots and calibrators alike: other bits, the same samples.
    """
    name = "digits_linear"
    x, y = (each.numpy() for each in samples(name))
    np.savez(tmp_path / "d.npz", x=x, y=y)
    extended = gdu_compile.compile(
        MODELS / f"{name}.onnx", oracle="nearest-mean", data=tmp_path / "d.npz", confirm=False,
        bucket_bytes=BUCKETS[buckets], digits="linear16",
    ).extended  # fmt: skip
    thetas = [key for key in extended.graph.initializers if key.startswith("gdu_theta")]
    assert len(thetas) == (1 if buckets == "one bucket" else 3)
    sizes = (64, 7, 29)  # no bucket ends with a batch
    theta, other = (fill(m, x, y, sizes, 0.0) for m in (extended, converted(extended)))
    assert all(same(theta[key], other[key]) for key in theta)
    check_same(extended, name, theta)
    moved = fill(converted(extended), x, y, sizes, 0.9)
    assert gdu_compile.verify(extended, moved, data=tmp_path / "d.npz").reproduced is True


def fill(model: ir.Model, x: Array, y: Array, sizes: tuple[int, ...], momentum: float) -> Theta:
    """θ after one pass over the samples."""
    module = gdu_compile.to_torch(model)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3, momentum=momentum)
    parts = (torch.from_numpy(each).split(sizes) for each in (x, y))
    for part, labels in zip(*parts, strict=True):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(part), labels).backward()
        optimizer.step()
    return {key: p.detach().numpy().copy() for key, p in module.named_parameters()}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "uint8", "int32", "float64"])
def test_weights_of_every_type(dtype: str) -> None:
    """Where does not take all of them: they go through a type that holds their values."""
    text = """g (float[N, 4] x) => (float[N, 3] z) { w = Cast <to = 1> (W)  z = MatMul(x, w) }"""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    rng = np.random.default_rng(0)
    weights = [rng.integers(0, 9, (4, 3)).astype(kind) for _ in range(2)]
    model = parse(text, {"W": weights[0]})
    compiled = gdu_compile.compile(model, {"W": weights[1]}, steps=1)
    assert compiled.report.reproduced and compiled.theta is not None
    x = rng.standard_normal((5, 4)).astype(np.float32)
    results = [run_everywhere(specialize.filled(model, compiled.theta), x).values()
               for model in (compiled.extended, converted(compiled.extended))]  # fmt: skip
    for left, right in zip(*results, strict=True):
        assert all(same(a, b) for a, b in zip(left, right, strict=True))


NESTED = """g (float[N, 2] x, bool a, bool[1] b) => (float[N, 2] y, float s) {
  y, s = If (a) <
    then_branch = t () => (float[N, 2] p, float q) {
      p, q = If (b) <
        then_branch = tt () => (float[N, 2] p1, float q1) {
          p1 = Add(x, x)  q1 = Constant <value_float = 1.0> () },
        else_branch = te () => (float[N, 2] p2, float q2) {
          p2 = Neg(x)  q2 = Constant <value_float = 2.0> () }> },
    else_branch = e () => (float[N, 2] p3, float q3) {
      zero = Sub(x, x)  p3 = Div(x, zero)  q3 = Constant <value_float = 3.0> () }> }"""


@pytest.mark.parametrize("a", [True, False])
@pytest.mark.parametrize("b", [True, False])
def test_nested(a: bool, b: bool) -> None:
    """Tensors and scalars, a condition of shape [1], a branch full of ∞."""
    model = parse(NESTED)
    inputs = {"x": np.array([[1, -2], [4, 3]], dtype=np.float32), "a": np.array(a),
              "b": np.array([b])}  # fmt: skip
    results = []
    for each in (model, converted(model, foreign=True)):
        with runtime.on_disk(each) as path:
            runs = [runtime.call(runtime.session(path, level), ["y", "s"], inputs)
                    for level in ("none", "all")]  # fmt: skip
        results.append([array for arrays in runs for array in arrays])
    assert all(same(left, right) for left, right in zip(*results, strict=True))


REFUSED: dict[str, tuple[str, bool, str]] = {
    "an If of the base": (NESTED, False, "is not of gdu-compile"),
    "other shapes": (
        """g (bool c, float[2] x) => (float[n] y) {
             one = Constant <value = float[1] {1}> ()
             named = If (c) <then_branch = t () => (float[2] p) { p = Neg(x) },
                             else_branch = e () => (float[1] q) { q = Neg(one) }>
             y = Neg(named) }""",
        True, "'named' is [2] in one branch and [1] in the other",
    ),
    "sizes that are not known": (
        """g (bool c, float[2] x) => (float[n] y) {
             named = If (c) <then_branch = t () => (float[?] p) { p = Neg(x) },
                         else_branch = e () => (float[?] q) { q = Abs(x) }>  y = Neg(named) }""",
        True, "Where needs one shape",
    ),
    "a type that Where does not take": (
        """g (bool c, uint64[2] x) => (uint64[2] y) {
             named = If (c) <then_branch = t () => (uint64[2] p) { p = Identity(x) },
                         else_branch = e () => (uint64[2] q) { q = Identity(x) }>
             y = Identity(named) }""",
        True, "'named' is UINT64",
    ),
    "sequences": (
        """g (bool c, float[2] x) => (float[2] y) {
             named = If (c) <then_branch = t () => (seq(float[2]) p) { p = SequenceConstruct(x) },
                             else_branch = e () => (seq(float[2]) q) { q = SequenceConstruct(x) }>
             i = Constant <value = int64 {0}> ()  y = SequenceAt(named, i) }""",
        True, "'named' is Sequence(Tensor(FLOAT)), and Where takes tensors only",
    ),
    "in a function": (
        """g (bool c, float[2] x) => (float[2] y) { y = local.f(c, x) }
           <domain: "local", opset_import: ["" : 18]> f (c, x) => (named) {
             named = If (c) <then_branch = t () => (float[2] p) { p = Neg(x) },
                             else_branch = e () => (float[2] q) { q = Abs(x) }> }""",
        True, "of 'named': stands in the function 'f'; inline it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    """By the name of the If, and the model is left as it was."""
    text, foreign, message = REFUSED[case]
    model = parse(text)
    before = ir.to_proto(model).SerializeToString()
    with pytest.raises(UnsupportedError) as caught:
        IfConversionPass(foreign=foreign)(model)
    assert message in str(caught.value)
    assert ir.to_proto(model).SerializeToString() == before


@pytest.fixture(scope="module")
def extended() -> ir.Model:
    """An extended model."""
    return gdu_compile.compile(
        MODELS / "digits_linear.onnx", MODELS / "digits_linear.oracle.npz", confirm=False
    ).extended


def test_it_says_that_the_base_has_to_be_frozen(extended: ir.Model) -> None:
    """As a note; and not when there was nothing to convert."""
    model = extended.clone()
    IfConversionPass()(model)
    (note,) = [note for note in state_of(model).notes if "freeze" in note]
    assert "train θ only" in note
    before = list(state_of(model).notes)
    assert IfConversionPass()(model).modified is False
    assert state_of(model).notes == before


def base_gradients(model: ir.Model) -> tuple[Array, Array]:
    """Gradients of the base's weight and of θ at the first step, by a trainer that trains both."""
    module = lower_to_torch(model, {"gdu_theta_0", "gdu_initial_W"})
    output = module(torch.zeros(4, 3))
    torch.nn.functional.cross_entropy(output, torch.tensor([0, 1, 1, 0])).backward()
    names: dict[str, Any] = dict(module.named_parameters())
    gradients = (names[key].grad for key in ("gdu_initial_W", "gdu_theta_0"))
    return tuple(np.zeros(1) if g is None else g.numpy() for g in gradients)


def test_where_the_base_has_no_finite_derivative() -> None:
    """Sqrt at 0: NaN in the base's gradient, as the pass says, θ's is clean; with If, no NaN."""
    base = parse("g (float[N, 3] x) => (float[N, 2] z) { h = MatMul(x, W)  z = Sqrt(h) }",
                 {"W": np.ones((3, 2), dtype=np.float32)})  # fmt: skip
    oracle = {"W": np.full((3, 2), 2, dtype=np.float32)}
    extended = gdu_compile.compile(base, oracle, confirm=False).extended
    of_base, of_theta = base_gradients(extended)
    assert not of_base.any() and of_theta.any()
    nan, same_theta = base_gradients(converted(extended))
    assert np.isnan(nan).any()
    assert same(same_theta, of_theta)


def test_it_comes_last(extended: ir.Model) -> None:
    """The passes that look for the switches refuse, and say why."""
    plain = converted(extended)
    with pytest.raises(ContractError) as caught:
        CheckExtensionPass()(plain)
    assert "IfConversionPass" in str(caught.value)
    with pytest.raises(ir.passes.PreconditionError, match="IfConversionPass"):
        RemoveExtensionPass({})(plain)
