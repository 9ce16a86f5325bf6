"""The included oracles, run alone in onnxruntime, against independent implementations."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from conftest import DIGITS_MODELS, MODELS, ROOT, mlp, parse
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestCentroid

from gdu_compile import oracles, runtime
from gdu_compile.contracts import graph_problems
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.oracles.compose import features
from gdu_compile.oracles.exhaustive import MOST_CELLS
from gdu_compile.oracles.head import last_layer
from gdu_compile.specialize import with_weights
from gdu_compile.torch_backend import lower_to_torch, registry

Weights = dict[str, np.ndarray]
HEADS = ["nearest-mean", "ridge", "perceptron"]


def linear(d: int, classes: int, *, batch: str | int = "N", bias: bool = True) -> ir.Model:
    """x → logits, one MatMul; weights W [d, C] and b; one logit ends in Sigmoid."""
    end = "logits = Identity(z)" if classes > 1 else "logits = Sigmoid(z)"
    add = "z = Add(m, b)" if bias else "z = Identity(m)"
    weights = {"W": np.ones((d, classes), np.float32), "b": np.ones(classes, np.float32)}
    return parse(
        f"""linear (float[{batch}, {d}] x) => (float[{batch}, {classes}] logits) {{
            m = MatMul(x, W)  {add}  {end} }}""",
        weights if bias else {"W": weights["W"]},
    )


def fit(model: ir.Model, oracle: str, x: np.ndarray, y: np.ndarray) -> Weights:
    """The weights that an oracle computes, alone."""
    algorithm = oracles.build(oracle, oracles.problem_of(model, len(y)))
    return oracles.run_alone(algorithm, {"x": x}, y)


def logits_of(model: ir.Model, weights: Weights, x: np.ndarray) -> np.ndarray:
    """The logits [n, C] in float64, of a ``linear`` model."""
    return x.astype(np.float64) @ weights["W"].astype(np.float64) + weights.get("b", 0)


def classify(logits: np.ndarray) -> np.ndarray:
    """The class of each sample."""
    return logits.argmax(axis=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).astype(int)


def blobs(n: int, d: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping Gaussian classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, max(classes, 2), n)
    centres = rng.standard_normal((max(classes, 2), d))
    return (centres[y] + rng.standard_normal((n, d))).astype(np.float32), y


# --- what an algorithm looks like


@pytest.mark.parametrize("name", [*DIGITS_MODELS, "digits_probs", "iris_binary"])
@pytest.mark.parametrize("oracle", HEADS)
def test_the_algorithm_fits_the_contract(name: str, oracle: str, tmp_path: Path) -> None:
    """Valid ONNX, names and shapes of Problem's docstring, one name for one value, base untouched;
    two builds give the same bytes."""
    problem = oracles.problem_of(MODELS / f"{name}.onnx", 7)
    before = ir.to_proto(problem.base).SerializeToString(deterministic=True)
    algorithm = oracles.build(oracle, problem)
    assert ir.to_proto(problem.base).SerializeToString(deterministic=True) == before
    assert graph_problems(algorithm) == []
    onnx.checker.check_model(ir.to_proto(algorithm), full_check=True)
    inputs = {str(v.name): (v.dtype, list(v.shape or ())[1:]) for v in algorithm.graph.inputs}
    (field,) = problem.fields
    assert inputs == {field.name: (ir.DataType.FLOAT, [*field.shape]), "Y": (ir.DataType.INT64, [])}
    layer = last_layer(problem)
    for value, weight in zip(algorithm.graph.outputs, (layer.weight, layer.bias), strict=True):
        assert weight is not None and weight.const_value is not None
        assert (value.name, value.dtype) == (weight.name, ir.DataType.FLOAT)
        assert list(value.shape or ()) == list(weight.const_value.shape)
    again = oracles.build(oracle, oracles.problem_of(MODELS / f"{name}.onnx", 7))
    first, second = (
        ir.to_proto(m).SerializeToString(deterministic=True) for m in (algorithm, again)
    )
    assert first == second


def test_torch_is_not_imported() -> None:
    code = """if True:
        import sys
        from gdu_compile import oracles
        problem = oracles.problem_of("models/three_node.onnx", 14)
        for name in [each.name for each in oracles.describe()]:
            if name not in ("sgd", "adam", "evolution"):  # PyTorch: imported when they are built
                oracles.build(name, problem)
        sys.exit("torch" in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_torch_has_every_operator() -> None:
    """So that an armed module can compute its weights; Loop and If are the backend's own."""
    for oracle in oracles.ORACLES:
        algorithm = oracles.build(oracle, oracles.problem_of(MODELS / "three_node.onnx", 14))
        for node in algorithm.graph.all_nodes():
            if node.op_type not in {"Loop", "Constant"}:
                registry.lookup(node.op_type, 18)


@pytest.mark.parametrize("oracle", ["nearest-mean", "exhaustive"])
def test_torch_computes_the_same(oracle: str) -> None:
    """Those without a Loop, on numbers whose sums and means are exact: to the bit."""
    model: ir.Model | Path = MODELS / "three_node.onnx"
    with np.load(MODELS / "three_node.npz") as data:
        x, y = data["x"], data["y"]
    if oracle == "nearest-mean":  # eight samples, four of each class
        model, x, y = linear(7, 1), x[:8], np.array([0, 1, 1, 0, 1, 0, 0, 1])
    algorithm = oracles.build(oracle, oracles.problem_of(model, len(y)))
    wanted = oracles.run_alone(algorithm, {"x": x}, y)
    module = lower_to_torch(algorithm, [])
    got = module.run({"x": torch.from_numpy(x), "Y": torch.from_numpy(y)})
    assert {name: tensor.numpy().tobytes() for name, tensor in got.items()} == {
        name: array.tobytes() for name, array in wanted.items()
    }
    assert all(array.any() for array in wanted.values())


# --- the last layer: every form of it

W3, B3 = "W [4, 3]", "b [3]"
# name, nodes from φ (4 features) to z (3 classes), shape of the weight, shape of the bias, and
# what the layer makes of a weight [C, d] and a bias [C]
FORMS: list[tuple[str, str, tuple[int, ...], tuple[int, ...] | None]] = [
    ("MatMul, Add", "m = MatMul(f, W) z = Add(m, b)", (4, 3), (3,)),
    ("Add the other way", "m = MatMul(f, W) z = Add(b, m)", (4, 3), (3,)),
    ("bias [1, C]", "m = MatMul(f, W) z = Add(m, b)", (4, 3), (1, 3)),
    ("no bias", "z = MatMul(f, W)", (4, 3), None),
    ("Transpose of the weight", "t = Transpose(W) m = MatMul(f, t) z = Add(m, b)", (3, 4), (3,)),
    ("Identity", "m = MatMul(f, W) i = Identity(m) s = Add(i, b) z = Identity(s)", (4, 3), (3,)),
    ("Gemm", "z = Gemm(f, W, b)", (4, 3), (3,)),
    ("Gemm transB", "z = Gemm <transB = 1> (f, W, b)", (3, 4), (3,)),
    ("Gemm transA", "t = Transpose(f) z = Gemm <transA = 1> (t, W, b)", (4, 3), (3,)),
    ("Gemm both", "t = Transpose(f) z = Gemm <transA = 1, transB = 1> (t, W, b)", (3, 4), (3,)),
    ("Gemm without a bias", "z = Gemm(f, W)", (4, 3), None),
    ("Gemm, beta 0", "z = Gemm <beta = 0.0> (f, W, c)", (4, 3), None),
    ("Gemm, Add", "g = Gemm(f, W) z = Add(g, b)", (4, 3), (3,)),
    ("alpha, beta", "z = Gemm <alpha = 0.5, beta = 4.0> (f, W, b)", (4, 3), (3,)),
    ("alpha, Add", "g = Gemm <alpha = -2.0> (f, W) z = Add(g, b)", (4, 3), (3,)),
]


@pytest.mark.parametrize(("name", "nodes", "weight", "bias"), FORMS, ids=[f[0] for f in FORMS])
def test_every_form_of_the_last_layer(
    name: str, nodes: str, weight: tuple[int, ...], bias: tuple[int, ...] | None
) -> None:
    """All of them answer like the plain one, to the bit: the perceptron's numbers are integers."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(-3, 4, (40, 4)).astype(np.float32), rng.integers(0, 3, 40)
    tensors = {"W": rng.standard_normal(weight).astype(np.float32)}
    if bias is not None:
        tensors["b"] = rng.standard_normal(bias).astype(np.float32)
    if "c)" in nodes:
        tensors["c"] = np.ones(3, np.float32)
    model = parse(f"m (float[N, 4] x) => (float[N, 3] z) {{ f = Relu(x) {nodes} }}", tensors)
    learnt = fit(model, "perceptron(epochs=3)", x, y)
    assert {name: array.shape for name, array in learnt.items()} == {
        name: tensors[name].shape for name in tensors if name != "c"
    }
    plain = linear(4, 3, bias=bias is not None)
    wanted = logits_of(
        plain, fit(plain, "perceptron(epochs=3)", np.maximum(x, 0), y), np.maximum(x, 0)
    )
    with runtime.on_disk(with_weights(model, learnt)) as path:
        assert np.array_equal(runtime.run(path, {"x": x})["z"], wanted)
    assert np.any(wanted)


VECTORS = [
    ("a vector", "float[N] z", "z = MatMul(x, W)", (4,), None),
    ("a vector, Add", "float[N] z", "m = MatMul(x, W) z = Add(m, b)", (4,), (1,)),
    ("Squeeze", "float[N] z", "m = Gemm(x, W, b) z = Squeeze(m, last)", (4, 1), (1,)),
    ("Squeeze, Add", "float[N] z", "m = MatMul(x, W) s = Squeeze(m, last) z = Add(s, b)", (4, 1),
     (1,)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "output", "nodes", "weight", "bias"), VECTORS)
def test_one_logit_without_an_axis(
    name: str, output: str, nodes: str, weight: tuple[int, ...], bias: tuple[int, ...] | None
) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.integers(-3, 4, (40, 4)).astype(np.float32), rng.integers(0, 2, 40)
    tensors = {"W": np.ones(weight, np.float32), "last": np.array([-1])}
    if bias is not None:
        tensors["b"] = np.ones(bias, np.float32)
    text = f"m (float[N, 4] x) => (float[N] p) {{ {nodes} p = Sigmoid(z) }}"
    learnt = fit(parse(text, tensors), "perceptron(epochs=3)", x, y)
    wanted = fit(linear(4, 1, bias=bias is not None), "perceptron(epochs=3)", x, y)
    assert set(learnt) == set(wanted)
    for name, array in learnt.items():
        assert array.shape == tensors[name].shape
        assert np.array_equal(array.ravel(), wanted[name].ravel())


def ones(*shape: int, dtype: type = np.float32) -> np.ndarray:
    """A weight."""
    return np.ones(shape, dtype)


# name, model text, weights, words of the message
REFUSED: list[tuple[str, str, dict[str, np.ndarray], str]] = [
    ("an activation", "(float[N, 4] x) => (float[N, 3] z) { m = MatMul(x, W) z = Relu(m) }",
     {"W": ones(4, 3)}, r"comes from node of 'z' \(Relu\), not from MatMul or Gemm"),
    ("an input", "(float[N, 3] x) => (float[N, 3] z) { z = Add(x, b) }",
     {"b": ones(3)}, "comes from value 'x'"),
    ("a sum", "(float[N, 3] x) => (float[N, 3] z) { a = MatMul(x, W) z = Add(a, x) }",
     {"W": ones(3, 3)}, "adds 'a' and 'x', and neither is a bias"),
    ("a computed weight", "(float[N, 3] x) => (float[N, 3] z) { v = Relu(W) z = MatMul(x, v) }",
     {"W": ones(3, 3)}, "right operand 'v' .* is no initializer"),
    ("the weight on the left", "(float[3, 2] x) => (float[3, 2] z) { z = MatMul(W, x) }",
     {"W": ones(3, 3)}, "right operand 'x' .* is no initializer"),
    ("a product of inputs", "(float[3, 3] x) => (float[3, 3] z) { z = MatMul(x, x) }",
     {}, "right operand 'x' .* is no initializer"),
    ("tied", "(float[N, 3] x) => (float[N, 3] z) { h = MatMul(x, W) z = MatMul(h, W) }",
     {"W": ones(3, 3)}, "'W' is used 2 times: by node of 'h'"),
    ("a tied bias", "(float[N, 3] x) => (float[N, 3] z) { h = Add(x, b) m = MatMul(h, W) "
     "z = Add(m, b) }", {"W": ones(3, 3), "b": ones(3)}, "'b' is used 2 times"),
    ("a bias for all", "(float[N, 3] x) => (float[N, 3] z) { m = MatMul(x, W) z = Add(m, b) }",
     {"W": ones(3, 3), "b": ones(1)}, "bias 'b' has 1 elements for 3 outputs"),
    ("a computed bias", "(float[N, 3] x) => (float[N, 3] z) { c = Relu(b) z = Gemm(x, W, c) }",
     {"W": ones(3, 3), "b": ones(3)}, "the bias 'c' is no initializer"),
    ("two biases", "(float[N, 3] x) => (float[N, 3] z) { g = Gemm(x, W, b) z = Add(g, c) }",
     {"W": ones(3, 3), "b": ones(3), "c": ones(3)}, "two biases, 'b' .* and 'c'"),
    ("alpha 0", "(float[N, 3] x) => (float[N, 3] z) { z = Gemm <alpha = 0.0> (x, W) }",
     {"W": ones(3, 3)}, "alpha 0"),
    ("tokens", "(float[N, 5, 4] x) => (float[N, 5, 3] z) { z = MatMul(x, W) }",
     {"W": ones(4, 3)}, r"features 'x' of node of 'z' \(MatMul\) are not 2-D"),
    ("a stack of weights", "(float[2, 5, 4] x) => (float[2, 5, 3] z) { z = MatMul(x, W) }",
     {"W": ones(2, 4, 3)}, r"'W' .* is no matrix, but \[2, 4, 3\]"),
    ("another dtype", "(float[N, 4] x) => (float[N, 3] z) { v = Cast <to = 1> (W) "
     "z = MatMul(x, v) }", {"W": ones(4, 3, dtype=np.float16)}, "operand 'v' .* is no initial"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "weights", "words"), REFUSED, ids=[r[0] for r in REFUSED])
@pytest.mark.parametrize("oracle", HEADS)
def test_other_last_layers_are_refused(
    name: str, text: str, weights: dict[str, np.ndarray], words: str, oracle: str
) -> None:
    problem = oracles.problem_of(parse(f"m {text}", weights), 5)
    with pytest.raises(UnsupportedError, match=words):
        oracles.build(oracle, problem)


# --- a name for every value


def test_names_do_not_collide() -> None:
    """Weights that are called what the algorithm calls its own values."""
    rng = np.random.default_rng(3)
    x, y = rng.integers(-3, 4, (30, 6)).astype(np.float32), rng.integers(0, 4, 30)
    names = {"W1": "features/a", "b1": "ridge/W", "W2": "perceptron/w2", "b2": "features/W1"}
    for oracle in HEADS:
        model = mlp()
        wanted = fit(model, oracle, x, y)
        for old, new in names.items():
            ir.convenience.rename_values(model.graph.initializers[old], new)
        algorithm = oracles.build(oracle, oracles.problem_of(model, 30))
        assert graph_problems(algorithm) == []
        learnt = oracles.run_alone(algorithm, {"x": x}, y)
        assert list(learnt) == [names["W2"], names["b2"]]
        for old in ("W2", "b2"):
            assert np.array_equal(learnt[names[old]], wanted[old])


@pytest.mark.parametrize("name", ["x", "W", "b"])
def test_a_name_that_the_labels_have(name: str) -> None:
    model = linear(4, 3)
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    ir.convenience.rename_values(next(value for value in values if value.name == name), "Y")
    with pytest.raises(UnsupportedError, match="is called 'Y', as the labels are"):
        oracles.build("ridge", oracles.problem_of(model, 5))


def test_a_fixed_batch() -> None:
    x, y = blobs(6, 4, 3)
    wanted = fit(linear(4, 3), "ridge", x, y)
    learnt = fit(linear(4, 3, batch=6), "ridge", x, y)
    assert all(np.array_equal(learnt[name], wanted[name]) for name in ("W", "b"))
    with pytest.raises(UnsupportedError, match=r"'x' of the base takes batches of 6 only.*all 7"):
        oracles.build("ridge", oracles.problem_of(linear(4, 3, batch=6), 7))


def test_several_inputs_and_integers() -> None:
    """One that the features do not use stays an input; integers go through the base's Cast."""
    model = parse(
        """m (uint8[N, 2, 2] a, float[N, 3] unused, int64[N] b) => (float[N, 3] z) {
            f = Flatten(a)  g = Cast <to = 1> (f)  h = Cast <to = 1> (b)
            i = Unsqueeze(h, one)  j = Concat <axis = 1> (g, i)  z = MatMul(j, W) }""",
        {"W": ones(5, 3), "one": np.array([1])},
    )
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (20, 2, 2), dtype=np.uint8), rng.integers(-9, 9, 20)
    y = rng.integers(0, 3, 20)
    problem = oracles.problem_of(model, 20)
    algorithm = oracles.build("perceptron(epochs=4)", problem)
    assert [value.name for value in algorithm.graph.inputs] == ["a", "unused", "b", "Y"]
    x = np.concatenate([a.reshape(20, 4), b[:, None]], axis=1).astype(np.float32)
    given = {"a": a, "unused": np.zeros((20, 3), np.float32), "b": b}
    learnt = oracles.run_alone(algorithm, given, y)
    wanted = fit(linear(5, 3, bias=False), "perceptron(epochs=4)", x, y)
    assert np.array_equal(learnt["W"], wanted["W"])


# --- nearest mean


def mean_distances(x: np.ndarray, y: np.ndarray, classes: int) -> np.ndarray:
    """−½‖x − μ_c‖² in float64, [n, C]."""
    x = x.astype(np.float64)
    means = np.stack([x[y == c].mean(axis=0) for c in range(classes)])
    return np.stack([-0.5 * ((x - mean) ** 2).sum(axis=1) for mean in means], axis=1)


@pytest.mark.parametrize("classes", [1, 2, 3, 10])
@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1e-12, 0), (1e12, 0), (1, 3000), (1e-3, 1)])
def test_nearest_mean(classes: int, scale: float, offset: float) -> None:
    """Differences of logits are those of the squared distances, to float32's relative precision of
    the largest term, even where the offset is thousands of times the spread."""
    x, y = blobs(200, 5, classes)
    x = (x * np.float32(scale) + np.float32(offset)).astype(np.float32)
    model = linear(5, classes)
    learnt = fit(model, "nearest-mean", x, y)
    z, wanted = logits_of(model, learnt, x), mean_distances(x, y, max(classes, 2))
    z = z - z[:, :1] if classes > 1 else z
    wanted = (wanted - wanted[:, :1]) if classes > 1 else wanted[:, 1:] - wanted[:, :1]
    spread = np.abs(x - x.mean(axis=0)).max()
    terms = 5 * spread * np.abs(x).max()  # what is added up in the dot products
    assert np.abs(z - wanted).max() <= 4 * np.finfo(np.float32).eps * terms
    assert np.abs(wanted).max() > 100 * np.finfo(np.float32).eps * terms  # and could be told apart
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about features of no variance
        theirs = NearestCentroid().fit(x.astype(np.float64), y).predict(x.astype(np.float64))
    assert np.mean(classify(z) == theirs) == 1


def test_nearest_mean_needs_a_bias() -> None:
    with pytest.raises(UnsupportedError, match="nearest-mean sets a bias, and the layer of weight"):
        oracles.build("nearest-mean", oracles.problem_of(linear(4, 3, bias=False), 9))


# --- ridge


def centred_gram(x: np.ndarray) -> np.ndarray:
    """ΦᵀΦ of the centred features, float64."""
    centred = x.astype(np.float64) - x.astype(np.float64).mean(axis=0)
    gram: np.ndarray = centred.T @ centred
    return gram


@pytest.mark.parametrize("classes", [1, 2, 7])
@pytest.mark.parametrize("penalty", [1e-3, 0.1, 10])
@pytest.mark.parametrize(
    ("scale", "offset", "bias"),
    [
        (1, 0, True),
        (1e-15, 0, True),
        (1e25, 0, True),
        (1, 100, True),
        (1, 0, False),
        (1e25, 0, False),
    ],
)
def test_ridge(classes: int, penalty: float, scale: float, offset: float, bias: bool) -> None:
    """scikit-learn's Ridge in float64, on the same targets and penalty."""
    x, y = blobs(300, 6, classes)
    x = (x * np.float32(scale) + np.float32(offset)).astype(np.float32)
    wide = x.astype(np.float64)
    targets = np.eye(max(classes, 2))[y]
    targets = targets[:, 1:] - targets[:, :1] if classes == 1 else targets
    gram = centred_gram(x) if bias else wide.T @ wide
    theirs = Ridge(alpha=penalty * np.trace(gram) / 6, fit_intercept=bias).fit(wide, targets)
    model = linear(6, classes, bias=bias)
    learnt = fit(model, f"ridge(penalty={penalty})", x, y)
    z, wanted = logits_of(model, learnt, x), theirs.predict(wide).reshape(len(x), -1)
    # float32 weights; the offset costs its ratio to the spread in digits of the bias
    assert np.abs(z - wanted).max() <= 1e-6 * max(1, offset)
    assert np.ptp(wanted) > 0.05


def test_ridge_of_one_value_has_the_targets_0_and_1() -> None:
    x, y = blobs(100, 4, 2)
    model = parse("m (float[N, 4] x) => (float[N, 1] z) { m = MatMul(x, W) z = Add(m, b) }",
                  {"W": ones(4, 1), "b": ones(1)})  # fmt: skip
    problem = oracles.problem_of(model, 100)
    assert problem.site.kind == "values"
    learnt = fit(model, "ridge", x, y)
    theirs = Ridge(alpha=1e-3 * np.trace(centred_gram(x)) / 4).fit(x.astype(np.float64), y)
    assert np.abs(logits_of(model, learnt, x)[:, 0] - theirs.predict(x)).max() < 1e-5
    for oracle in ("nearest-mean", "perceptron"):
        with pytest.raises(
            UnsupportedError, match="output 'z' is one value per sample; take ridge"
        ):
            oracles.build(oracle, problem)


def test_ridge_without_penalty_interpolates() -> None:
    """n < d: all targets are met, by the weights of least norm."""
    x, y = blobs(8, 20, 3, seed=5)
    model = linear(20, 3)
    learnt = fit(model, "ridge(penalty=0)", x, y)
    wide = x.astype(np.float64) - x.astype(np.float64).mean(axis=0)
    targets = np.eye(3)[y]
    least = np.linalg.pinv(wide, rcond=1e-10) @ (targets - targets.mean(axis=0))
    assert np.abs(logits_of(model, learnt, x) - targets).max() < 1e-4
    assert np.abs(learnt["W"] - least).max() < 1e-4 * np.abs(least).max()


@pytest.mark.parametrize("iterations", [None, 500])
@pytest.mark.parametrize("seed", range(3))
def test_ridge_stops_where_float32_ends(seed: int, iterations: int | None) -> None:
    """Hilbert's matrix makes the features nearly dependent; followed along all of them, the weights
    get 1e4 times as large.  They are those of a pseudoinverse cut off at √ε of float32."""
    x, y = blobs(40, 10, 3, seed=seed)
    x = (x @ (1 / (np.arange(10)[:, None] + np.arange(10) + 1))).astype(np.float32)
    learnt = fit(linear(10, 3), f"ridge(penalty=0, iterations={iterations})", x, y)
    wide = x.astype(np.float64) - x.astype(np.float64).mean(axis=0)
    targets = np.eye(3)[y] - np.eye(3)[y].mean(axis=0)
    singular = np.linalg.svd(wide)[1]
    share = np.sqrt(np.finfo(np.float32).eps * np.mean(singular**2)) / singular[0]
    wanted = np.linalg.pinv(wide, rcond=share) @ targets
    assert np.linalg.norm(learnt["W"]) < 1.05 * np.linalg.norm(wanted)
    losses = [np.sum((wide @ w - targets) ** 2) for w in (learnt["W"], wanted)]
    assert losses[0] < 1.001 * losses[1] < np.sum(targets**2)


def test_ridge_ends_when_told() -> None:
    """Fewer iterations are further away; the default is enough."""
    x, y = blobs(100, 8, 3)
    x *= np.float32([1, 2, 4, 8, 1, 2, 4, 8])
    model = linear(8, 3)
    runs = [fit(model, f"ridge(iterations={k})", x, y)["W"] for k in (1, 2, 4, 9)]
    end = fit(model, "ridge", x, y)["W"]
    errors = [float(np.abs(w - end).max()) for w in runs]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 2e-4 < 2e-3 < errors[2]


# --- perceptron


def rosenblatt(x: np.ndarray, y: np.ndarray, classes: int, epochs: int) -> Weights:
    """The perceptron in Python's integers, one sample after the other."""
    rows = [[int(v) for v in row] + [1] for row in x]
    k = max(classes, 2)
    w = [[0] * len(rows[0]) for _ in range(k)]
    for _ in range(epochs):
        mistakes = 0
        for row, label in zip(rows, y, strict=True):
            scores = [sum(a * b for a, b in zip(unit, row, strict=True)) for unit in w]
            guess = scores.index(max(scores))
            if guess != label:
                mistakes += 1
                for i, value in enumerate(row):
                    w[label][i] += value
                    w[guess][i] -= value
        if not mistakes:
            break
    full = np.array(w if classes > 1 else w[1:])  # [C, d + 1]
    return {"W": full[:, :-1].T, "b": full[:, -1]}


CASES = [(1, 1), (2, 1), (3, 1), (31, 3), (32, 3), (33, 4), (100, 5), (65, 20)]


@pytest.mark.parametrize("classes", [1, 2, 3, 6])
@pytest.mark.parametrize(("n", "epochs"), CASES)
def test_perceptron_is_exact(classes: int, n: int, epochs: int) -> None:
    """Bit for bit, for numbers of samples around the size of a block; ties included."""
    rng = np.random.default_rng(n + classes)
    x = rng.integers(-4, 5, (n, 6)).astype(np.float32)
    y = rng.integers(0, max(classes, 2), n)
    learnt = fit(linear(6, classes), f"perceptron(epochs={epochs})", x, y)
    wanted = rosenblatt(x, y, classes, epochs)
    for name in ("W", "b"):
        assert learnt[name].tobytes() == np.ascontiguousarray(wanted[name], np.float32).tobytes()


@pytest.mark.parametrize("classes", [1, 4])
def test_perceptron_ends_when_all_is_right(classes: int) -> None:
    """Separable samples: a billion epochs would not end."""
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 10, (200, 5)).astype(np.float32)
    y = classify(x @ rng.integers(-3, 4, (5, classes)) + 0.5 * np.arange(classes))
    learnt = fit(linear(5, classes), "perceptron(epochs=1000000000)", x, y)
    assert np.array_equal(classify(logits_of(linear(5, classes), learnt, x)), y)
    wanted = rosenblatt(x, y, classes, 10_000)
    assert np.array_equal(learnt["W"], wanted["W"]) and np.array_equal(learnt["b"], wanted["b"])


def test_perceptron_on_the_digits_is_exact() -> None:
    """Pixels are sixteenths: in units of them everything is an integer, but the bias's 1 is 16."""
    with np.load(MODELS / "digits.npz") as data:
        x, y = data["x"][:300], data["y"][:300]
    learnt = fit(ir.load(MODELS / "digits_linear.onnx"), "perceptron(epochs=3)", x, y)
    units = np.concatenate([x.reshape(300, 64) * 16, np.full((300, 1), 16)], axis=1).astype(int)
    w = np.zeros((10, 65), dtype=int)
    for _ in range(3):
        for row, label in zip(units, y, strict=True):
            guess = int(np.argmax(w @ row))
            if guess != label:
                w[label] += row
                w[guess] -= row
    assert np.array_equal(learnt["fc.weight"] * 16, w[:, :64])
    assert np.array_equal(learnt["fc.bias"] * 16, w[:, 64])


# --- hard cases, all heads


def same(n: int, d: int = 4, value: float = 0.1) -> np.ndarray:
    """Constant features; 0.1 has no exact mean."""
    return np.full((n, d), value, np.float32)


HARD: list[tuple[str, Callable[[], tuple[np.ndarray, np.ndarray]]]] = [
    ("one sample", lambda: (same(1), np.array([1]))),
    ("n < d", lambda: blobs(3, 50, 3)),
    ("a class is absent", lambda: (blobs(40, 4, 2)[0], blobs(40, 4, 2)[1])),
    ("only the last class", lambda: (blobs(40, 4, 3)[0], np.full(40, 2))),
    ("constant features", lambda: (same(100), np.arange(100) % 3)),
    ("constant, large", lambda: (same(50, value=3e7), np.array([0] * 30 + [2] * 20))),
    ("all 0", lambda: (same(9, value=0), np.arange(9) % 3)),
    ("one constant feature", lambda: (np.append(blobs(40, 3, 3)[0], same(40, 1), axis=1),
                                      blobs(40, 3, 3)[1])),
    ("duplicate samples", lambda: (np.repeat(blobs(4, 4, 3)[0], 9, axis=0),
                                   np.repeat(blobs(4, 4, 3)[1], 9))),
    ("duplicate features", lambda: (np.repeat(blobs(60, 2, 3)[0], 3, axis=1), blobs(60, 2, 3)[1])),
    ("contradicting labels", lambda: (np.repeat(blobs(9, 4, 3)[0], 3, axis=0),
                                      np.tile(np.arange(3), 9))),
    ("large", lambda: (blobs(40, 4, 3)[0] * np.float32(1e13), blobs(40, 4, 3)[1])),
    ("small", lambda: (blobs(40, 4, 3)[0] * np.float32(1e-18), blobs(40, 4, 3)[1])),
    ("of all sizes", lambda: (blobs(40, 4, 3)[0] * np.float32([1e-9, 1e-3, 1, 1e6]),
                              blobs(40, 4, 3)[1])),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make"), HARD, ids=[h[0] for h in HARD])
@pytest.mark.parametrize("oracle", [*HEADS, "ridge(penalty=0)", "ridge(penalty=0, iterations=500)"])
def test_hard_cases(
    name: str, make: Callable[[], tuple[np.ndarray, np.ndarray]], oracle: str
) -> None:
    """Everything is finite, a class without a sample never wins, and a sample that has one label
    only is as right as a constant answer at least."""
    x, y = make()
    model = linear(x.shape[1], 3)
    learnt = fit(model, oracle, x, y)
    assert all(np.isfinite(array).all() for array in learnt.values())
    guesses = classify(logits_of(model, learnt, x))
    assert set(guesses) <= set(y)
    constant = np.ptp(x, axis=0) == 0
    if oracle != "perceptron":  # a constant feature tells nothing, however its mean is rounded
        assert not learnt["W"][constant].any()
    if oracle != "perceptron":  # whose last mistake may be any
        assert np.mean(guesses == y) >= np.bincount(y).max() / len(y)


def test_one_logit_of_one_class() -> None:
    """Only one label in the data: the answer is that label."""
    x = blobs(20, 4, 2)[0]
    for label in (0, 1):
        for oracle in ("nearest-mean", "ridge", "perceptron"):
            learnt = fit(linear(4, 1), oracle, x, np.full(20, label))
            assert set(classify(logits_of(linear(4, 1), learnt, x))) == {label}, oracle


# --- all models of the digits, beside scikit-learn on the same features


@pytest.mark.parametrize("name", [*DIGITS_MODELS, "digits_probs"])
def test_accuracy_on_the_digits(name: str) -> None:
    """Trained on the first 1200, counted on the other 597: all answers are
    scikit-learn's, and far above the base's."""
    with np.load(MODELS / "digits.npz") as data:
        x, y = data["x"], data["y"]
    train, test = slice(0, 1200), slice(1200, None)
    problem = oracles.problem_of(MODELS / f"{name}.onnx", 1200)
    part = features(problem, last_layer(problem))
    with runtime.on_disk(ir.Model(part, ir_version=10)) as path:
        (phi,) = runtime.run(path, {"x": x}).values()
    wide = phi.astype(np.float64)
    gram = centred_gram(phi[train])
    ridge = Ridge(alpha=1e-3 * np.trace(gram) / len(gram)).fit(wide[train], np.eye(10)[y[train]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pixels that are always 0
        nearest = NearestCentroid().fit(wide[train], y[train])
    theirs = {
        "nearest-mean": nearest.predict(wide[test]),
        "ridge": ridge.predict(wide[test]).argmax(axis=1),
    }
    base = problem.base
    for oracle, guesses in theirs.items():
        learnt = oracles.run_alone(oracles.build(oracle, problem), {"x": x[train]}, y[train])
        with runtime.on_disk(with_weights(base, learnt)) as path:
            (output,) = runtime.run(path, {"x": x[test]}).values()
        ours = output.argmax(axis=1)
        assert np.array_equal(ours, guesses), oracle
        assert np.mean(ours == y[test]) > 0.4
        if name == "digits_linear":
            assert np.mean(ours == y[test]) > 0.87


# --- exhaustive


def brute_force(x: np.ndarray, y: np.ndarray) -> int:
    """The largest number of right answers of two threshold units and their AND, in Python."""
    d = x.shape[1]
    units = []
    for number in range(2**d):
        weights = [d if number >> j & 1 else -1 for j in range(d)]
        units.append([sum(w * v for w, v in zip(weights, row, strict=True)) > -0.5 for row in x])
    return max(
        sum((p and q) == bool(label) for p, q, label in zip(first, second, y, strict=True))
        for first in units
        for second in units
    )


def three_node(d: int, *, bias: bool = True) -> ir.Model:
    """d → 2 → 1, sigmoids."""
    add = "a = Gemm(x, V, c)" if bias else "a = Gemm(x, V)"
    return parse(
        f"""three_node (float[N, {d}] x) => (float[N, 1] p) {{
            {add}  h = Sigmoid(a)  m = MatMul(h, W)  z = Add(m, b)  p = Sigmoid(z) }}""",
        {"V": ones(d, 2), "W": ones(2, 1), "b": ones(1), **({"c": ones(2)} if bias else {})},
    )


def set_splitting(d: int, sets: list[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Blum & Rivest's training set."""
    eye = np.eye(d, dtype=np.float32)
    rows = [np.zeros(d, np.float32), *eye, *(eye[list(each)].sum(axis=0) for each in sets)]
    return np.stack(rows), np.array([1, *[0] * d, *[1] * len(sets)])


def right_answers(model: ir.Model, x: np.ndarray, y: np.ndarray) -> int:
    """Of the base with the oracle's weights, in onnxruntime; it has to be sure of each."""
    with runtime.on_disk(with_weights(model, fit(model, "exhaustive", x, y))) as path:
        p = runtime.run(path, {"x": x})["p"][:, 0]
    assert np.all((p < 1e-6) | (p > 1 - 1e-6))
    return int(np.sum((p > 0.5) == y))


def test_exhaustive_solves_every_splittable_instance() -> None:
    """Random sets of 2 or 3 elements that a hidden split cuts; sets of Python find it too."""
    rng = np.random.default_rng(0)
    for d in (2, 3, 5, 8, 12):
        side = np.arange(d) % 2
        rng.shuffle(side)
        sets = [tuple(rng.choice(d, min(d, int(k)), replace=False)) for k in rng.integers(2, 4, 60)]
        x, y = set_splitting(d, [s for s in sets if 0 < side[list(s)].sum() < len(s)])
        assert right_answers(three_node(d), x, y) == len(y)


@pytest.mark.parametrize("seed", range(4))
def test_exhaustive_finds_the_best_pair(seed: int) -> None:
    """Random labels on random booleans: as many right as brute force in Python."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 2, (20, 5)).astype(np.float32), rng.integers(0, 2, 20)
    best = right_answers(three_node(5), x, y)
    assert best == brute_force(x, y)
    assert best < 20  # not all such data can be had


def test_exhaustive_knows_what_cannot_be_split() -> None:
    """The whole Fano plane: one wrong at least."""
    lines = [(0, 1, 2), (0, 3, 4), (0, 5, 6), (1, 3, 5), (1, 4, 6), (2, 3, 6), (2, 4, 5)]
    x, y = set_splitting(7, lines)
    assert right_answers(three_node(7), x, y) == len(y) - 1
    x, y = set_splitting(7, lines[:-1])
    assert right_answers(three_node(7), x, y) == len(y)
    with np.load(MODELS / "three_node.npz") as data:
        assert np.array_equal(data["x"], x) and np.array_equal(data["y"], y)


def without_sigmoid() -> ir.Model:
    """A 3-node network whose output is a value."""
    return parse(
        """m (float[N, 3] x) => (float[N, 1] z) {
            a = Gemm(x, V, c)  h = Sigmoid(a)  z = Gemm(h, W, b) }""",
        {"V": ones(3, 2), "c": ones(2), "W": ones(2, 1), "b": ones(1)},
    )


NOT_THREE_NODE = [
    ("a value", without_sigmoid, 5, "the output 'z' is one value per sample"),
    ("classes", lambda: linear(2, 3), 5, "it has 3 classes, not one logit"),
    ("no hidden layer", lambda: linear(2, 1), 5, "come from value 'x', not from Sigmoid"),
    ("three units", lambda: mlp(h=3, classes=2), 5, "has 3 inputs"),
    ("another activation", lambda: mlp(h=2, classes=2), 5, r"\(Relu\), not from Sigmoid"),
    ("too many inputs", lambda: three_node(13), 5, r"d = 13 inputs \(weight 'V'\); at most 12"),
    ("no bias", lambda: three_node(5, bias=False), 5, "layer of weight 'V' has none"),
    ("too many samples", lambda: three_node(12), MOST_CELLS // 2**12 + 1, "give fewer samples"),
]


@pytest.mark.parametrize(("name", "model", "samples", "words"), NOT_THREE_NODE)
def test_exhaustive_refuses(
    name: str, model: Callable[[], ir.Model], samples: int, words: str
) -> None:
    with pytest.raises(UnsupportedError, match=words):
        oracles.build("exhaustive", oracles.problem_of(model(), samples))
    oracles.build("exhaustive", oracles.problem_of(three_node(12), MOST_CELLS // 2**12))


# --- the page about them


def test_the_page_is_true() -> None:
    """Its code runs, and its table has the included ones with their arguments."""
    page = (ROOT / "docs" / "oracles.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "docs/oracles.md", "exec"), {})
    rows = re.findall(r"^\| `([\w-]+)(?:\((.*)\))?` \|", page, re.MULTILINE)
    assert rows == [(each.name, each.arguments) for each in oracles.describe()]


# --- the registry

BAD_TEXTS: list[tuple[str, tuple[str, ...]]] = [
    ("", ("--oracle ''", "cannot be read")),
    ("ridge(0.1)", ("cannot be read", "ridge(penalty=0.1)")),
    ("nearest-mean(", ("'nearest-mean('", "cannot be read")),
    ("nearest--mean", ("cannot be read",)),
    ("-ridge", ("cannot be read",)),
    ("ridge-2", ("cannot be read",)),
    ("nearest-mean + 1", ("cannot be read",)),
    ("__import__('os').abort()", ("cannot be read",)),
    ("rigde", ("no oracle is called 'rigde'", "exhaustive, nearest-mean, perceptron, ridge",
               "gdu_compile.oracles")),
    ("nearest_mean", ("no oracle is called 'nearest_mean'", "nearest-mean")),
    ("ridge(penalti=1, steps=2)", ("penalti", "steps", "ridge(penalty=0.001, iterations=None)")),
    ("nearest-mean(k=3)", ("write nearest-mean()", "no argument 'k'")),
    ("ridge(problem=3)", ("no argument 'problem'",)),
    ("ridge(penalty=-1, iterations=0)", ("penalty=-1 ", "iterations=0 ")),
    ("ridge(penalty='much', iterations=1.5)", ("penalty='much' is no number", "iterations=1.5")),
    ("ridge(penalty=1e999)", ("penalty=inf",)),
    ("ridge(penalty=1e39)", ("penalty=1e+39",)),
    ("ridge(penalty=True)", ("penalty=True",)),
    ("ridge(iterations=True)", ("iterations=True",)),
    ("perceptron(epochs=0)", ("perceptron: epochs=0",)),
    ("perceptron(epochs=2.0)", ("epochs=2.0 has to be a whole number",)),
    ("perceptron(epochs=None)", ("epochs=None",)),
    ("exhaustive(d=3)", ("no argument 'd'",)),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), BAD_TEXTS)
def test_bad_texts(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        oracles.build(text, oracles.problem_of(linear(4, 3), 5))
    assert [word for word in words if word not in str(caught.value)] == []


GOOD_TEXTS = ["nearest-mean", " nearest-mean () ", "ridge", "ridge(penalty=1)",
              "ridge(\n    iterations=3,\n)", "perceptron(epochs=2)"]  # fmt: skip


@pytest.mark.parametrize("text", GOOD_TEXTS)
def test_good_texts(text: str) -> None:
    assert len(oracles.build(text, oracles.problem_of(linear(4, 3), 5)).graph.outputs) == 2


def test_every_included_oracle_is_described() -> None:
    described = {each.name: each for each in oracles.describe()}
    assert list(described) == list(oracles.ORACLES)
    for each in described.values():
        assert each.line.endswith(".") and len(each.line) < 90, each
        assert any(digit.isdigit() for digit in each.source) and "d" in each.cost, each
        assert ">>>" in (oracles.ORACLES[each.name].__doc__ or "")
        assert "Limits:" in (oracles.ORACLES[each.name].__doc__ or "")


PLUGIN = """
from gdu_compile.errors import UnsupportedError
from gdu_compile.oracles import ridge

def mine(problem, *, strength, flavour="plain"):
    return ridge(problem, penalty=strength)

def breaks(problem):
    raise RuntimeError("out of luck")

def refuses(problem):
    raise UnsupportedError("not this one")

def empty(problem, **anything):
    return None

number = 3
"""
ENTRIES = """
[gdu_compile.oracles]
mine = plugin_of_a_test:mine
breaks = plugin_of_a_test:breaks
refuses = plugin_of_a_test:refuses
empty = plugin_of_a_test:empty
number = plugin_of_a_test:number
gone = plugin_of_a_test:gone
no-module = plugin_of_nobody:mine
ridge = plugin_of_a_test:breaks
twice = plugin_of_a_test:mine
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two distributions with entry points, on sys.path."""
    (tmp_path / "plugin_of_a_test.py").write_text(PLUGIN)
    for name, entries in (("theirs", ENTRIES), ("others", ENTRIES.splitlines()[1] + "\n"
                                                "twice = plugin_of_a_test:empty\n")):  # fmt: skip
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(entries)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("plugin_of_a_test", None)


def test_an_oracle_by_entry_point(plugin: Path) -> None:
    x, y = blobs(30, 4, 3)
    learnt = fit(linear(4, 3), "mine(strength=0.5)", x, y)
    wanted = fit(linear(4, 3), "ridge(penalty=0.5)", x, y)
    assert np.array_equal(learnt["W"], wanted["W"])


BAD_ENTRIES = [
    ("mine", "write mine(strength, flavour='plain')", "'strength' has no default and is not given"),
    ("mine(strengt=1)", "no argument 'strengt'", "'strength' has no default"),
    ("breaks", "'breaks' of theirs (plugin_of_a_test:breaks) failed", "RuntimeError: out of luck"),
    ("empty(any=1)", "'empty' of theirs (plugin_of_a_test:empty)", "returned NoneType, not an"),
    ("number", "'number' of theirs (plugin_of_a_test:number) is int", "not a function"),
    ("gone", "'gone' of theirs (plugin_of_a_test:gone) cannot be loaded", "AttributeError"),
    ("no-module", "'no-module' of theirs (plugin_of_nobody:mine)", "ModuleNotFoundError"),
    ("twice", "several distributions register an oracle 'twice'", "others (plugin_of_a_test:empty"),
    (
        "neither",
        "no oracle is called 'neither'",
        "adam, breaks, empty, evolution, exhaustive, gone, mine, nearest-",
    ),
]


@pytest.mark.parametrize(("text", "one", "two"), BAD_ENTRIES)
def test_bad_entry_points(plugin: Path, text: str, one: str, two: str) -> None:
    with pytest.raises(InputError) as caught:
        oracles.build(text, oracles.problem_of(linear(4, 3), 5))
    assert one in str(caught.value) and two in str(caught.value)


def test_their_own_refusal_stays(plugin: Path) -> None:
    with pytest.raises(UnsupportedError, match="not this one"):
        oracles.build("refuses", oracles.problem_of(linear(4, 3), 5))


def test_included_names_win(plugin: Path, caplog: pytest.LogCaptureFixture) -> None:
    problem = oracles.problem_of(linear(4, 3), 5)
    with caplog.at_level(logging.WARNING):
        oracles.build("ridge", problem)
    assert "'ridge' of theirs (plugin_of_a_test:breaks) is not used" in caplog.text
    caplog.clear()
    oracles.build("perceptron", problem)
    assert caplog.text == ""


def test_entry_points_are_listed_and_not_loaded(plugin: Path) -> None:
    lines = [(each.name, each.line) for each in oracles.describe()]
    assert [name for name, _ in lines[: len(oracles.ORACLES)]] == list(oracles.ORACLES)
    assert ("mine", "registered by theirs (plugin_of_a_test:mine)") in lines
    hidden = (
        "registered by theirs (plugin_of_a_test:breaks), not used: an included one has this name"
    )
    assert ("ridge", hidden) in lines
    assert "plugin_of_a_test" not in sys.modules
