"""Which output is taken, as what, and why; which axis; outputs of every dtype and form."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from conftest import parse, save_npz
from gdu_compile.passes import LocateLogitsPass, NormalizePass
from onnx import TensorProto, helper, numpy_helper
from test_record import assert_reproduced

import gdu_compile
from gdu_compile import runtime
from gdu_compile.bits import same_bits
from gdu_compile.contracts import state_of
from gdu_compile.endings import ending_of
from gdu_compile.metadata import Extension

Array = np.ndarray[Any, Any]
W = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
ONE = "one = Constant<value_ints=[1]>() "
EXP = f"{ONE} m = ReduceMax(z, one) d = Sub(z, m) e = Exp(d) t = ReduceSum(e, one) "


def network(body: str, outputs: str = "float[N,3] o", inputs: str = "float[N,4] x") -> ir.Model:
    """z = x W [N, 3], and what the body makes of it."""
    return parse(f"g ({inputs}) => ({outputs}) {{ z = MatMul(x, W) {body} }}", {"W": W})


def compiled(base: ir.Model | Path, **options: Any) -> gdu_compile.Compiled:
    """Compiled with an oracle for W, reproduced at both levels, and extracted with equal bits."""
    oracle = {"W": W[::-1].copy()}
    result = gdu_compile.compile(base, oracle, **options)
    assert_reproduced(result.report)
    assert result.trained is not None
    plain = gdu_compile.extract(result.trained)
    given = base if isinstance(base, ir.Model) else gdu_compile.model_io.load(base)
    assert [v.name for v in plain.graph.outputs] == [v.name for v in given.graph.outputs]
    assert same_bits(plain.graph.initializers["W"].const_value.numpy(), oracle["W"])
    return result


def test_an_output_with_a_wrong_number_of_axes() -> None:
    """As a converter wrote it; onnxruntime goes by what it is."""
    result = compiled(network("s = Constant<value_ints=[-1,1,3]>() o = Reshape(z, s)",
                              "float[1,S] o"))  # fmt: skip
    assert result.report.logits["axis"] == -1
    assert list(result.extended.graph.outputs[0].shape or ())[1:] == [1, 3]


@pytest.mark.parametrize("body, outputs, inside", [
    ("o = Identity(z)", "float[N,4] o", ""), ("o = Relu(z)", "float[N,2] o", ""),
    ("o = Softmax(z)", "float[N,4] o", ""), ("o = Relu(z)", "float[N,4] o", "float[N,4] z"),
    ("p = Softmax(z) o = Identity(p)", "float[N,4] o", "float[N,4] p"),
    ("o = Relu(z)", "float[N,3,1] o", ""),
])  # fmt: skip
def test_an_output_with_wrong_sizes(body: str, outputs: str, inside: str) -> None:
    """skl2onnx's PLSRegression declares as many columns as the input has; onnxruntime says so and
    goes by what it is."""
    text = f"g (float[N,4] x) => ({outputs}) <{inside}> {{ z = MatMul(x, W) {body} }}"
    result = compiled(parse(text, {"W": W}))
    assert list(result.extended.graph.outputs[0].shape or ())[1:] == [3]
    assert Extension.from_metadata(result.extended.metadata_props).logits.classes == 3


def site_of(base: ir.Model, **options: Any) -> Any:
    """The logits site alone."""
    model = base.clone()
    for stage in (NormalizePass(), LocateLogitsPass(**options)):
        stage(model)
    return state_of(model).logits


# body, outputs, kind, axis, what is said of it
SOFTMAX = "Softmax spelled out (Exp, ReduceSum, Div)"
ENDINGS = {
    "Cast": ("p = Softmax(z) o = Cast<to=11>(p)", "double[N,3] o", "probabilities", -1,
             "Softmax, behind it Cast"),
    "Reshape": ("s = Constant<value_ints=[-1,3,1,1]>() p = Softmax(z) o = Reshape(p, s)",
                "float[N,3,1,1] o", "probabilities", -3, "Softmax, behind it Reshape"),
    "Flatten": ("p = LogSoftmax(z) o = Flatten(p)", "float[N,3] o", "log_probabilities", -1,
                "LogSoftmax, behind it Flatten"),
    "Squeeze": ("u = Unsqueeze(z, one) p = Softmax(u) o = Squeeze(p, one)", "float[N,3] o",
                "probabilities", -1, "Softmax, behind it Squeeze"),
    "Identity and Unsqueeze": ("p = Softmax(z) i = Identity(p) o = Unsqueeze(i, one)",
                               "float[N,1,3] o", "probabilities", -1, "Identity, Unsqueeze"),
    "Sigmoid": ("p = Sigmoid(z) o = Identity(p)", "float[N,3] o", "sigmoid", -1, "Sigmoid, behind"),
    "spelled out": (f"{EXP} o = Div(e, t)", "float[N,3] o", "probabilities", -1, SOFTMAX),
    "spelled out without ReduceMax": (
        "e = Exp(z) t = ReduceSum(e, one) o = Div(e, t)", "float[N,3] o", "probabilities", -1,
        SOFTMAX),
    "spelled out, the sum reshaped": (
        "e = Exp(z) t = ReduceSum<keepdims=0>(e, one) u = Unsqueeze(t, one) o = Div(e, u)",
        "float[N,3] o", "probabilities", -1, SOFTMAX),
    "spelled out by Reciprocal": (
        "e = Exp(z) t = ReduceSum(e, one) r = Reciprocal(t) o = Mul(e, r)", "float[N,3] o",
        "probabilities", -1, "Reciprocal"),
    "spelled out and cast": (f"{EXP} p = Div(e, t) o = Cast<to=10>(p)", "float16[N,3] o",
                             "probabilities", -1, f"{SOFTMAX}, behind it Cast"),
    "LogSoftmax spelled out": (f"{EXP} l = Log(t) o = Sub(d, l)", "float[N,3] o",
                               "log_probabilities", -1, "LogSoftmax spelled out"),
    "ReduceLogSumExp": ("l = ReduceLogSumExp(z, one) o = Sub(z, l)", "float[N,3] o",
                        "log_probabilities", -1, "LogSoftmax spelled out"),
    "Log of Softmax": ("p = Softmax(z) o = Log(p)", "float[N,3] o", "log_probabilities", -1,
                       "Log of Softmax"),
    "Exp of LogSoftmax": ("p = LogSoftmax(z) o = Exp(p)", "float[N,3] o", "probabilities", -1,
                          "Exp of LogSoftmax"),
    "Sigmoid spelled out": (
        "k = Constant<value_float=1.0>() n = Neg(z) e = Exp(n) s = Add(k, e) o = Div(k, s)",
        "float[N,3] o", "sigmoid", -1, "Sigmoid spelled out"),
}  # fmt: skip


@pytest.mark.parametrize("batch", ["N", 5])
def test_classes_along_axis_0(batch: str | int) -> None:
    """A Transpose brings them there: samples lie along axis 1 of the output, and calls in front."""
    base = network("p = LogSoftmax(z) o = Transpose<perm=[1,0]>(p)", f"float[3,{batch}] o",
                   f"float[{batch},4] x")  # fmt: skip
    result = compiled(base)
    site = Extension.from_metadata(result.extended.metadata_props).logits
    assert (site.kind, site.axis, site.classes, site.calls) == ("log_probabilities", -2, 3, True)
    square = network("p = LogSoftmax(z) o = Transpose<perm=[1,0]>(p)", "float[3,3] o",
                     "float[3,4] x")  # fmt: skip
    with pytest.raises(gdu_compile.UnsupportedError, match="--logits NAME") as error:
        gdu_compile.compile(square, {"W": W})
    assert "in front of it with --logits 'z'" in error.value.problems[0]
    compiled(square, logits="z")


@pytest.mark.parametrize("name", ENDINGS)
def test_probabilities_are_found(name: str) -> None:
    """Behind changes of form, and spelled out; the switch stands at the output itself."""
    body, outputs, kind, axis, said = ENDINGS[name]
    report = compiled(network(ONE * (ONE not in body) + body, outputs)).report
    assert report.logits is not None and said in report.logits["why"]
    assert (report.logits["kind"], report.logits["axis"]) == (kind, axis)
    assert report.logits["name"] == "o"


# What looks like an ending and is none: a control of the search.
LOOK_ALIKES = {
    "another sum": "f = Exp(d) t = ReduceSum(f, one) o = Div(e, t)",
    "not the whole": "t = ReduceSum(z, one) o = Div(e, t)",
    "2 − p": "two = Constant<value_float=2.0>() s = Sub(two, e) o = Add(e, s)",
    "1 + exp": "k = Constant<value_float=1.0>() s = Add(k, e) o = Div(k, s)",
    "Log of another": "t = ReduceSum(z, one) l = Log(t) o = Sub(z, l)",
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_what_only_looks_like_an_ending_is_logits(name: str) -> None:
    """e^z over something else than its own sum."""
    base = network(f"{ONE} d = Relu(z) e = Exp(z) {LOOK_ALIKES[name]}")
    assert site_of(base).kind == "logits"
    assert ending_of(base.graph.outputs[0]) is None


# inputs, body, outputs, axis and kind, what is said
AXES = {
    "tokens": ("float[N,5,4] x", "o = Relu(z)", "float[N,5,3] o", (-1, "logits"), ""),
    "transposed probabilities": ("float[N,5,4] x", "p = Softmax(z) o = Transpose<perm=[0,2,1]>(p)",
                                 "float[N,3,5] o", (-2, "probabilities"), "Transpose"),
    "scores of heads": ("float[N,2,5,4] x", "o = Relu(z)", "float[N,2,5,3] o", (-1, "logits"),
                        "axis 3 by the operator that makes it"),
    "the only fixed one": ("float[N,T,U,4] x", "o = Transpose<perm=[0,1,3,2]>(z)",
                           "float[N,T,3,U] o", (-2, "logits"), "axis 2, the only one of fixed"),
    "none fixed": ("float[N,T,4] x, float[N,S,3] u", "v = Transpose<perm=[0,2,1]>(u) "
                   "o = MatMul(z, v)", "float[N,T,S] o", (-1, "values"), "no axis of fixed size"),
    "rank 6": ("float[N,4] x", "a = Constant<value_ints=[2,3,4,5]>() o = Unsqueeze(z, a)",
               "float[N,3,1,1,1,1] o", (-5, "logits"), "the only output"),
    "a scalar": ("float[N,4] x", "o = ReduceMax<keepdims=0>(z)", "float o", (-1, "values"), ""),
    "[N]": ("float[N,4] x", f"{ONE} o = ReduceMax<keepdims=0>(z, one)", "float[N] o",
            (-1, "values"), ""),
    "[N, 1]": ("float[N,4] x", f"{ONE} o = ReduceMax(z, one)", "float[N,1] o", (-1, "values"), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", AXES)
def test_the_class_axis_is_found(name: str) -> None:
    """That of the Softmax, by the operator, by the rank, the only fixed one; or values."""
    inputs, body, outputs, wanted, said = AXES[name]
    report = compiled(network(body, outputs, inputs)).report
    assert report.logits is not None and said in report.logits["why"]
    assert (report.logits["axis"], report.logits["kind"]) == wanted


@pytest.mark.parametrize("rank", [3, 4])
def test_channels_come_first_behind_a_convolution(rank: int) -> None:
    """[N, C, L] of a Conv is no [N, T, C]; --class-axis overrides."""
    base = parse(
        f"g (float[N,4{',5' * (rank - 2)}] x) => (float[N,3{',5' * (rank - 2)}] o) "
        "{ c = Conv(x, W) o = Relu(c) }", {"W": W.T.reshape(3, 4, *[1] * (rank - 2)).copy()},
    )  # fmt: skip
    assert site_of(base).axis == 1 - rank
    assert site_of(base, class_axis=2).axis == 2 - rank


DTYPES = {"float16": 10, "bfloat16": 16, "double": 11}
FORMS = {"logits": ("i = Identity(z)", None), "probabilities": ("i = Softmax(z)", None),
         "sigmoid": ("i = Sigmoid(z)", None), "log_probabilities": ("i = LogSoftmax(z)", None),
         "values": ("i = Identity(z)", "mse_loss")}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_of_every_float_dtype(dtype: str, form: str, tmp_path: Path) -> None:
    """Also a batch without class 0, whose gradient is the smallest there is (Lemma 1)."""
    body, loss = FORMS[form]
    base = network(f"{body} o = Cast<to={DTYPES[dtype]}>(i)", f"{dtype}[N,3] o")
    rng = np.random.default_rng(1)
    x = rng.standard_normal((64, 4)).astype(np.float32)
    y = rng.integers(1, 3, 64) if form not in ("sigmoid", "values") else (
        np.zeros((64, 3), np.float32) if form == "sigmoid" else x[:, :3])  # fmt: skip
    data = save_npz(tmp_path / "d.npz", {"x": x, "y": y})
    result = compiled(base, loss=loss, data=data, batch_size=64)
    assert result.report.logits is not None and result.report.logits["kind"] == form
    output = result.extended.graph.outputs[0]
    assert output.dtype == base.graph.outputs[0].dtype  # the signature is the base's


def test_the_largest_batch_of_a_float16_output(tmp_path: Path) -> None:
    """N is 2048 there: at n = N every gradient is 2⁻²³ or more, and a larger batch is refused."""
    base = network("o = Cast<to=10>(z)", "float16[N,3] o")
    x = np.random.default_rng(1).standard_normal((2049, 4)).astype(np.float32)
    data = save_npz(tmp_path / "d.npz", {"x": x, "y": np.ones(2049, np.int64)})
    report = compiled(base, data=data, batch_size=2048, steps=1).report
    assert any("float16: batches of up to 2048" in warning for warning in report.warnings)
    with pytest.raises(gdu_compile.InputError, match="larger than N = 2048"):
        compiled(base, data=data, batch_size=2049)


def test_a_dense_float16_output_takes_batches_that_fit() -> None:
    """256 labels a sample: 8 samples, and not 64, when nothing is asked for."""
    base = network("o = Cast<to=10>(z)", "float16[N,256,3] o", "float[N,256,4] x")
    report = compiled(base).report
    assert report.batch_size == 8
    with pytest.raises(gdu_compile.InputError, match="larger than N = 2048"):
        compiled(base, batch_size=9)


def test_others_keep_the_values_of_the_base(tmp_path: Path) -> None:
    """While recording, a label beside the probabilities is still the base's own."""
    base = network("p = Softmax(z) i = ArgMax<axis=1, keepdims=0>(z) o = Identity(p)",
                   "int64[N] i, float[N,3] o")  # fmt: skip
    result = compiled(base)
    x = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    found = {}
    for name, model in {"base": base, "recording": result.extended}.items():
        with runtime.on_disk(model) as path:
            found[name] = runtime.run(path, {"x": x}, level="none")
    assert same_bits(found["base"]["i"], found["recording"]["i"])
    assert not same_bits(found["base"]["o"], found["recording"]["o"])


# --- labels and maps ----------------------------------------------------------------


def zipmap_of(name: str) -> onnx.NodeProto:
    """A ZipMap of the three labels."""
    return helper.make_node("ZipMap", [name], ["probs"], domain="ai.onnx.ml",
                            classlabels_int64s=[5, 6, 7])  # fmt: skip


ZIPMAP = zipmap_of("p")
HEAD = [helper.make_node("MatMul", ["x", "W"], ["z"])]
LABEL = [
    helper.make_node("ArgMax", ["p"], ["i"], axis=1, keepdims=0),
    helper.make_node("ArrayFeatureExtractor", ["classes", "i"], ["row"], domain="ai.onnx.ml"),
    helper.make_node("Reshape", ["row", "flat"], ["label"]),
]
LINEAR = helper.make_node(
    "LinearClassifier", ["z"], ["label", "s"], domain="ai.onnx.ml", multi_class=1,
    coefficients=[float(v) for v in np.eye(3).reshape(-1)], intercepts=[0.0, 0.1, 0.2],
    classlabels_ints=[5, 6, 7], post_transform="LOGISTIC",
)  # fmt: skip
NORMALIZER = helper.make_node("Normalizer", ["s"], ["p"], domain="ai.onnx.ml", norm="L1")
CONVERTED = {
    "an MLP": ([*HEAD, helper.make_node("Softmax", ["z"], ["p"]), *LABEL, ZIPMAP],
               "probabilities", "Softmax"),
    "a linear classifier without a Normalizer": (
        [*HEAD, LINEAR, zipmap_of("s")], "sigmoid", "LinearClassifier (LOGISTIC)"),
    "a linear classifier": ([*HEAD, LINEAR, NORMALIZER, ZIPMAP], "probabilities", "Normalizer"),
}  # fmt: skip


def converted(path: Path, nodes: Sequence[onnx.NodeProto], maps: bool = True) -> Path:
    """label INT64 [N] and probs, a sequence of maps, as classical-ML converters write them."""
    value = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(1, None))
    outputs = [helper.make_tensor_value_info("label", TensorProto.INT64, ["N"])]
    if maps:
        outputs.append(helper.make_value_info("probs", helper.make_sequence_type_proto(value)))
    constants = {"W": W, "classes": np.int64([5, 6, 7]), "flat": np.int64([-1])}
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info("x", 1, ["N", 4])], outputs,
        [numpy_helper.from_array(array, name) for name, array in constants.items() if name in used],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


@pytest.mark.parametrize("name", CONVERTED)
def test_labels_and_maps(name: str, tmp_path: Path) -> None:
    """The probabilities in front of ZipMap become an output; extract takes it away again."""
    nodes, kind, said = CONVERTED[name]
    base = converted(tmp_path / "m.onnx", nodes)
    result = compiled(base, output=tmp_path / "e.onnx")
    logits = result.report.logits
    assert logits is not None and logits["kind"] == kind
    assert said in logits["why"] and "no output is a tensor of floats" in logits["why"]
    assert [v.name for v in result.extended.graph.outputs] == ["label", "probs", logits["name"]]
    assert Extension.from_metadata(result.extended.metadata_props).logits.exposed
    assert gdu_compile.inspect(base)["logits"]["name"] == logits["name"]
    assert_reproduced(gdu_compile.train(tmp_path / "e.onnx"))
    gdu_compile.extract(tmp_path / "e.trained.onnx", output=tmp_path / "plain.onnx")
    before, after = (onnx.load(tmp_path / file).graph for file in ("m.onnx", "plain.onnx"))
    assert [info.type for info in before.output] == [info.type for info in after.output]


def test_a_map_that_differs_is_seen(tmp_path: Path) -> None:
    """The control: a map of other weights is not the same."""
    nodes, _, _ = CONVERTED["an MLP"]
    x = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    maps = []
    for scale in (1.0, 1.0, np.nextafter(np.float32(1), np.float32(2))):
        path = converted(tmp_path / "m.onnx", nodes)
        proto = onnx.load(path)
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(W * np.float32(scale), "W"))
        onnx.save(proto, path)
        maps.append(runtime.run(path, x, ["probs"])["probs"])
    assert same_bits(maps[0], maps[1]) and not same_bits(maps[0], maps[2])


@pytest.mark.parametrize(("body", "outputs"), [
    ("o = ArgMax<axis=1, keepdims=0>(z)", "int64[N] o"),
    ("v, o = TopK(z, one)", "int64[N,1] o"),
    ("k = Constant<value_float=0.5>() o = Greater(z, k)", "bool[N,3] o"),
    ("o = SplitToSequence<axis=1>(z)", "seq(float[N,1]) o"),
])  # fmt: skip
def test_outputs_that_are_no_floats(body: str, outputs: str) -> None:
    """What they are computed from is taken."""
    report = compiled(network(f"{ONE} {body}", outputs)).report
    assert report.logits is not None and report.logits["name"] in ("z", "v")


BEHIND = {
    "the body of a classifier behind another's Normalizer": (
        "n = ai.onnx.ml.Normalizer<norm=\"L1\">(z) k = Cast<to=1>(n) s = Add(k, k) p = Softmax(s)"
    ),
    "an Imputer in front": (
        "n = ai.onnx.ml.Imputer<imputed_value_floats=[0.5]>(z) p = Softmax(n)"),
    "a FeatureVectorizer": (
        "n = ai.onnx.ml.FeatureVectorizer<inputdimensions=[3, 3]>(z, z) p = Softmax(n)"),
    "an operator of onnxruntime's own": (
        "k = Neg(W) n = com.microsoft.FusedMatMul<transB=1>(z, k) p = Softmax(n)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BEHIND)
def test_labels_behind_operators_of_which_onnx_infers_nothing(name: str) -> None:
    """Their shapes are known all the same, and with them those of what follows."""
    base = network(f"{BEHIND[name]} o = ArgMax<axis=1, keepdims=0>(p)", "int64[N] o")
    base.graph.opset_imports.update({"ai.onnx.ml": 3, "com.microsoft": 1})
    site = site_of(base)
    assert site.name == "p" and site.kind == "probabilities"
    compiled(base)


def test_why_what_is_behind_a_label_is_no_logits() -> None:
    """The reason is that of the value behind, and the way out is named."""
    base = network("t = Softmax<axis=0>(z) o = ArgMax<axis=1, keepdims=0>(t)", "int64[N] o")
    with pytest.raises(gdu_compile.UnsupportedError, match="--logits NAME takes a value") as error:
        site_of(base)
    assert len(error.value.problems) == 2
    assert "'t', which an output is computed from, comes from Softmax" in error.value.problems[1]
    compiled(base, logits="z")


def test_a_value_inside_may_be_named() -> None:
    """--logits names a value that is no output."""
    result = compiled(network("o = Softmax(z)"), logits="z")
    assert result.report.logits is not None and result.report.logits["kind"] == "logits"
    assert [v.name for v in result.extended.graph.outputs] == ["o", "z"]


def test_what_no_weight_reaches_comes_last() -> None:
    """Of two float outputs the one that depends on a weight is taken, and both are named."""
    base = network("s = Softmax(x) a = Neg(x) u = Relu(a) o = Relu(z)",
                   "float[N,4] u, float[N,3] o")  # fmt: skip
    site = site_of(base)
    assert site.output == "o" and "the first of 2 outputs that can be logits: u, o" in site.why


def test_learn_takes_the_same_outputs(tmp_path: Path) -> None:
    """The memory's logits end as the recorder's do; an oracle finds the layer in front."""
    rng = np.random.default_rng(3)
    arrays = {"x": rng.standard_normal((40, 4)).astype(np.float32), "y": rng.integers(0, 3, 40)}
    data = save_npz(tmp_path / "d.npz", arrays)
    nodes, _, _ = CONVERTED["an MLP"]
    for base in (
        network("p = Softmax(z) o = Cast<to=11>(p)", "double[N,3] o"),
        network("p = Softmax(z) i = Identity(p) o = Cast<to=10>(i)", "float16[N,3] o"),
        converted(tmp_path / "m.onnx", nodes),
    ):
        result = gdu_compile.compile(base, oracle="ridge", data=data)
        assert result.report.reproduced and result.report.memory is not None
        assert result.report.memory.bit_equal and result.report.memory.labels_equal


def test_torch_sees_the_output_of_the_loss(tmp_path: Path) -> None:
    """Where the base has a label and a map, the module returns the probabilities alone."""
    nodes, _, _ = CONVERTED["an MLP"]
    result = compiled(converted(tmp_path / "m.onnx", nodes))
    module = gdu_compile.to_torch(result.trained)
    found = module(torch.ones(2, 4))
    assert found.shape == (2, 3) and torch.allclose(found.sum(1), torch.ones(2))
    source, _ = gdu_compile.export_torch(result.trained, output=tmp_path / "net.py")
    own = runpy.run_path(str(source))["Model"]()
    assert torch.equal(own(torch.ones(2, 4)), found)
