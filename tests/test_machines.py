"""Support vector machines: every number an initializer, with the bits of the operator itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import save_onnx
from gdu_compile.passes import NormalizePass, lift_attributes
from gdu_compile.passes.lift_attributes import LiftAttributesPass
from onnx import helper
from test_attributes import F, assert_lifted, model_of, node, r, with_attributes
from test_record import assert_reproduced

import gdu_compile
from gdu_compile import bits, runtime, specialize, svm_nodes
from gdu_compile.contracts import state_of
from gdu_compile.shape_inference import infer

KERNELS = ("LINEAR", "POLY", "RBF", "SIGMOID")
PARAMS = [0.2, 0.5, 3.0]
Shapes = dict[str, tuple[int, ...]]


def classifier(
    classes: int, kernel: str, coupled: bool = False, post: str = "NONE", x: str = "x",
    per_class: list[int] | None = None, **more: Any,
) -> onnx.NodeProto:  # fmt: skip
    """SVMClassifier with several support vectors for each class."""
    per_class = per_class or [2 + i % 3 for i in range(classes)]
    supports, pairs = sum(per_class), classes * (classes - 1) // 2
    attributes = {"classlabels_ints": [3 * i for i in range(classes)], "post_transform": post,
                  "vectors_per_class": per_class, "support_vectors": r(supports, F),
                  "coefficients": r(classes - 1, supports), "rho": r(pairs),
                  "kernel_type": kernel, "kernel_params": PARAMS}  # fmt: skip
    if coupled:
        attributes |= {"prob_a": r(pairs), "prob_b": r(pairs)}
    attributes |= more
    return node("SVMClassifier", x, "label", "z", **attributes)


def regressor(kernel: str, supports: int = 6, **more: Any) -> onnx.NodeProto:
    """SVMRegressor."""
    attributes = {
        "coefficients": r(supports),
        "support_vectors": r(supports, F),
        "rho": r(1),
        "n_supports": supports,
        "kernel_type": kernel,
        "kernel_params": PARAMS,
    }
    return node("SVMRegressor", **{**attributes, **more})


def columns(classes: int, coupled: bool) -> int:
    """How many scores there are."""
    return classes if coupled or classes == 2 else classes * (classes - 1) // 2


def shapes_of(each: onnx.NodeProto) -> Shapes:
    """The weights of a machine."""
    given = {a.name: helper.get_attribute_value(a) for a in each.attribute}
    supports = len(given["support_vectors"]) // F
    rows = len(given["coefficients"]) // supports
    found: Shapes = {"support_vectors": (supports, F), "coefficients": (rows, supports)}
    found |= {name: (len(given[name]),) for name in ("rho", "prob_a", "prob_b") if name in given}
    if given["kernel_type"] in (b"POLY", b"SIGMOID"):
        found["coef0"] = (1,)
    return {f"{each.name}.{name}": shape for name, shape in found.items()}


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("kernel", KERNELS)
def test_classifiers(kernel: str, classes: int, coupled: bool, tmp_path: Path) -> None:
    """Labels and scores, with and without probabilities."""
    each = classifier(classes, kernel, coupled)
    model = model_of(each, classes=columns(classes, coupled))
    assert_lifted(model, shapes_of(each), tmp_path)


@pytest.mark.parametrize(("classes", "post", "coupled"), [
    (2, "LOGISTIC", False), (2, "SOFTMAX", False), (2, "SOFTMAX_ZERO", False),
    (4, "SOFTMAX", False), (4, "LOGISTIC", False), (3, "SOFTMAX", True), (2, "PROBIT", True),
])  # fmt: skip
def test_transforms(classes: int, post: str, coupled: bool, tmp_path: Path) -> None:
    """What is made of the scores is the operator's own, also where only it knows how."""
    each = classifier(classes, "RBF", coupled, post)
    model = model_of(each, classes=columns(classes, coupled))
    assert_lifted(model, shapes_of(each), tmp_path)


@pytest.mark.parametrize("degree", [1.0, 2.0, 4.0])
def test_degrees(degree: float, tmp_path: Path) -> None:
    """Each power by the code that the operator takes for it."""
    each = classifier(3, "POLY", kernel_params=[0.2, 3.0, degree])
    assert_lifted(model_of(each, classes=3), shapes_of(each), tmp_path)


def test_a_power_that_may_be_nan_stays(tmp_path: Path) -> None:
    """One score that is NaN would make all of its sample NaN."""
    each = classifier(3, "POLY", kernel_params=[0.2, 3.0, 2.5])
    facts = gdu_compile.inspect(save_onnx(tmp_path / "m.onnx", model_of(each, classes=3)))
    assert facts["other_weights"] == []
    assert "a degree that is no whole number" in str(facts["attributes"])


@pytest.mark.parametrize("one_class", [0, 1])
@pytest.mark.parametrize("kernel", KERNELS)
def test_regressors(kernel: str, one_class: int, tmp_path: Path) -> None:
    """One value, or whether a sample is one of the class."""
    each = regressor(kernel, one_class=one_class)
    assert_lifted(model_of(each, classes=1), shapes_of(each), tmp_path)


def test_without_support_vectors(tmp_path: Path) -> None:
    """A row of coefficients for each class, and one ρ for all."""
    each = node("SVMClassifier", "x", "label", "z", coefficients=r(3, F), rho=r(1),
                classlabels_ints=[1, 2, 3], kernel_params=[0.0] * 3)  # fmt: skip
    shapes: Shapes = {"SVMClassifier.coefficients": (3, F), "SVMClassifier.rho": (1,)}
    assert_lifted(model_of(each, classes=3), shapes, tmp_path)


@pytest.mark.parametrize("coupled", [False, True])
def test_labels_with_names(coupled: bool, tmp_path: Path) -> None:
    """Texts stay the classifier's own, and torch, which has none, does not ask for them."""
    named = {"classlabels_ints": None, "classlabels_strings": ["a", "b", "c"]}
    each = classifier(3, "LINEAR", coupled, **named)
    model = model_of(each, classes=3)
    oracle = {name: r(*shape) for name, shape in shapes_of(each).items()}
    assert_reproduced(gdu_compile.compile(model, oracle, output=tmp_path / "m.gdu.onnx").report)
    x = {"x": r(200, F)}
    with runtime.on_disk(with_attributes(model, oracle)) as path:
        expected = runtime.run(path, x)
    with runtime.on_disk(specialize.with_weights(model, oracle)) as path:
        got = runtime.run(path, x)
    assert len(set(expected["label"])) > 1
    assert expected["label"].tolist() == got["label"].tolist()
    assert bits.same_bits(expected["z"], got["z"])


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_old_opsets(opset: int, tmp_path: Path) -> None:
    """As skl2onnx writes two classes; below opset 11 once the model is raised."""
    each = classifier(2, "RBF", True)
    model = model_of(each, classes=2)
    model.graph.opset_imports.update({"": opset, "ai.onnx.ml": 1})
    assert_lifted(model, shapes_of(each), tmp_path)


def test_a_map_of_scores(tmp_path: Path) -> None:
    """onnx infers nothing for the scores; their dtype and shape are known all the same."""
    zipmap = helper.make_node("ZipMap", ["z"], ["maps"], domain="ai.onnx.ml",
                              classlabels_int64s=[0, 3, 6])  # fmt: skip
    value = helper.make_map_type_proto(
        onnx.TensorProto.INT64, helper.make_tensor_type_proto(1, None)
    )
    x = helper.make_tensor_value_info("x", 1, ["N", F])
    outputs = [helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["N"]),
               helper.make_value_info("maps", helper.make_sequence_type_proto(value))]  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 1)]
    for coupled, kind in ((True, "probabilities"), (False, "logits")):
        each = classifier(3, "LINEAR", coupled)
        graph = helper.make_graph([each, zipmap], "net", [x], outputs)
        path = tmp_path / "m.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        oracle = {name: r(*shape) for name, shape in shapes_of(each).items()}
        report = gdu_compile.compile(path, oracle, strict=True).report
        assert_reproduced(report)
        assert report.logits is not None
        assert (report.logits["name"], report.logits["kind"]) == ("z", kind)


@pytest.mark.parametrize(("each", "expected"), [
    (classifier(4, "RBF"), "[N,6]"), (classifier(4, "RBF", True), "[N,4]"),
    (classifier(2, "RBF"), "[N,2]"), (regressor("RBF"), "[N,1]"),
])  # fmt: skip
def test_shapes(each: onnx.NodeProto, expected: str) -> None:
    """Also of what stands behind."""
    each = onnx.NodeProto.FromString(each.SerializeToString())
    each.output[-1] = "s"
    model = model_of(each, helper.make_node("Neg", ["s"], ["z"]), classes=1)
    for value in model.graph.outputs:
        value.shape = None
    infer(model)
    for made in model.graph:
        assert str(made.outputs[-1].shape) == expected and made.outputs[-1].dtype == 1


def test_one_minus_a_score_is_no_probability() -> None:
    """What onnxruntime makes of two classes with SOFTMAX."""
    for post, kind in (("SOFTMAX", "logits"), ("LOGISTIC", "probabilities"), ("NONE", "logits")):
        model = model_of(classifier(2, "LINEAR", post=post), classes=2)
        oracle = {"SVMClassifier.rho": r(1)}
        report = gdu_compile.compile(model, oracle).report
        assert_reproduced(report)
        assert report.logits is not None and report.logits["kind"] == kind


@pytest.mark.parametrize("each", [classifier(3, "RBF", True), regressor("POLY", one_class=1)])
def test_nothing_is_lifted_twice(each: onnx.NodeProto) -> None:
    """What is left of a machine is left alone."""
    model = model_of(each, classes=3)
    assert LiftAttributesPass()(model).modified is True
    names = sorted(model.graph.initializers)
    assert LiftAttributesPass()(model).modified is False
    assert sorted(model.graph.initializers) == names


# case → (the node, words of the reason)
REFUSED = {
    "two classes without support vectors": (
        node("SVMClassifier", "x", "label", "z", coefficients=r(2, F), rho=r(1),
             classlabels_ints=[1, 2], kernel_params=[0.0] * 3),
        "the labels of two classes depend in onnxruntime on the signs",
    ),
    "PROBIT": (classifier(2, "RBF", post="PROBIT"), "leaves one score of two classes unset"),
    "one class": (
        classifier(2, "RBF", classlabels_ints=[1]), "1 classes, and 2 to 64 are rewritten"),
    "too many classes": (
        node("SVMClassifier", "x", "label", "z", coefficients=r(65, F), rho=r(1),
             classlabels_ints=list(range(65)), kernel_params=[0.0] * 3),
        "65 classes, and 2 to 64 are rewritten",
    ),
    "a class without support vectors": (
        classifier(3, "RBF", per_class=[2, 0, 3]), "vectors_per_class [2, 0, 3] for 3 classes"),
    "counts of other classes": (
        classifier(3, "RBF", vectors_per_class=[4, 5]), "vectors_per_class [4, 5] for 3 classes"),
    "counts that the vectors do not have": (
        classifier(3, "RBF", vectors_per_class=[10**9, 1, 1]), "45 support_vectors for 1000000002"),
    "too few coefficients": (
        classifier(3, "RBF", coefficients=r(17)), "17 coefficients, and 18 are rewritten"),
    "a ρ too many": (classifier(3, "RBF", rho=r(4)), "4 rho, and 3 are rewritten"),
    "prob_b of another size": (
        classifier(3, "RBF", True, prob_b=r(2)), "2 prob_b, and 3 are rewritten"),
    "two parameters": (
        classifier(3, "RBF", kernel_params=[0.1, 0.2]), "kernel_params are not three numbers"),
    "a transform that onnxruntime leaves out": (
        regressor("RBF", post_transform="LOGISTIC"), "post_transform LOGISTIC is not rewritten"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    """By name, with the reason; a broken file ends no other way."""
    each, words = REFUSED[case]
    model = model_of(each, classes=2)
    NormalizePass()(model)
    assert words in (state_of(model).attributes or {})[each.op_type]


@pytest.mark.parametrize("coupled", [False, True])
def test_other_weights_beside_a_machine(
    coupled: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A machine that is not rewritten runs in torch, is skipped, and the Scaler is recorded."""
    monkeypatch.setattr(svm_nodes, "MOST_BYTES", 100)
    scaler = node("Scaler", "x", "s", offset=r(F), scale=r(F))
    model = model_of(scaler, classifier(3, "RBF", coupled, x="s"), classes=3)
    shapes: Shapes = {"Scaler.offset": (F,), "Scaler.scale": (F,)}
    oracle = {name: r(*shape) for name, shape in shapes.items()}
    report = gdu_compile.compile(model, oracle, output=tmp_path / "m.gdu.onnx").report
    assert_reproduced(report)
    (skipped,) = report.skipped
    assert skipped["name"] == "SVMClassifier" and "bytes a sample" in skipped["reason"]


def test_a_wrong_sum_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a score without its last support vector is not taken."""
    terms = svm_nodes.terms
    monkeypatch.setattr(
        svm_nodes, "terms", lambda counts: (*terms(counts)[:2], terms(counts)[2] - 1)
    )
    lift_attributes.compared.cache_clear()
    model = model_of(classifier(3, "LINEAR"), classes=3)
    NormalizePass()(model)
    assert "that differs by" in (state_of(model).attributes or {})["SVMClassifier"]
    lift_attributes.compared.cache_clear()
