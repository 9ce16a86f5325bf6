"""Weights in attributes of classical-ML operators: lifted, recorded, or listed with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import save_onnx
from gdu_compile.passes import NormalizePass, lift_attributes
from gdu_compile.passes.lift_attributes import LiftAttributesPass
from onnx import TensorProto, helper
from test_record import assert_reproduced

import gdu_compile
from gdu_compile import bits, runtime, specialize
from gdu_compile.contracts import state_of
from gdu_compile.errors import InputError
from gdu_compile.node_rewriter import Rewriter

RNG = np.random.default_rng(3)
ML = "ai.onnx.ml"
F = 5


def r(*shape: int) -> np.ndarray[Any, Any]:
    """Normal float32 numbers."""
    return RNG.standard_normal(shape).astype(np.float32)


def model_of(*nodes: onnx.NodeProto, classes: int, dtype: int = TensorProto.FLOAT) -> ir.Model:
    """x [N, 5] → z [N, classes], and label where a classifier gives one."""
    x = helper.make_tensor_value_info("x", dtype, ["N", F])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", classes])
    outputs = [z]
    if any("label" in node.output for node in nodes):
        text = any(a.name == "classlabels_strings" for node in nodes for a in node.attribute)
        kind = TensorProto.STRING if text else TensorProto.INT64
        outputs = [helper.make_tensor_value_info("label", kind, ["N"]), z]
    graph = helper.make_graph(list(nodes), "net", [x], outputs)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(ML, 3)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def node(op_type: str, x: str = "x", *outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node of ai.onnx.ml."""
    plain = {name: each.reshape(-1).tolist() if isinstance(each, np.ndarray) else each
             for name, each in attributes.items()}  # fmt: skip
    return helper.make_node(op_type, [x], outputs or ["z"], op_type, domain=ML, **plain)


def classifier(rows: int, post: str, x: str = "x", **more: Any) -> onnx.NodeProto:
    """LinearClassifier."""
    labels = more or {"classlabels_ints": list(range(max(rows, 2)))}
    return node("LinearClassifier", x, "label", "z", coefficients=r(rows, F), intercepts=r(rows),
                post_transform=post, multi_class=int(rows > 2), **labels)  # fmt: skip


LINEAR = ["LinearClassifier.coefficients", "LinearClassifier.intercepts"]
# case → (nodes, classes, the shapes of the weights)
LIFTED: dict[str, tuple[list[onnx.NodeProto], int, dict[str, tuple[int, ...]]]] = {
    **{f"{rows} scores, {post}": (
        [classifier(rows, post)], max(rows, 2), dict(zip(LINEAR, [(rows, F), (rows,)], strict=True))
    ) for rows in (1, 2, 4) for post in ("NONE", "SOFTMAX", "LOGISTIC")},
    "behind a scaler": (
        [node("Scaler", "x", "s", offset=r(F), scale=r(F)), classifier(3, "SOFTMAX", "s")], 3,
        {"Scaler.offset": (F,), "Scaler.scale": (F,),
         **dict(zip(LINEAR, [(3, F), (3,)], strict=True))},
    ),
    "a regression": (
        [node("LinearRegressor", coefficients=r(1, F), intercepts=r(1), targets=1)], 1,
        {"LinearRegressor.coefficients": (1, F), "LinearRegressor.intercepts": (1,)},
    ),
    "three regressions without intercepts": (
        [node("LinearRegressor", coefficients=r(3, F), targets=3)], 3,
        {"LinearRegressor.coefficients": (3, F)},
    ),
    "a linear SVM": (
        [node("SVMRegressor", coefficients=r(F), rho=r(1), n_supports=0, kernel_type="LINEAR",
              kernel_params=[0.1, 0.0, 3.0])], 1,
        {"SVMRegressor.coefficients": (1, F), "SVMRegressor.rho": (1,)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LIFTED)
def test_lifted(case: str, tmp_path: Path) -> None:
    """Recorded like any initializer; the same bits as the operator that holds the oracle itself."""
    nodes, classes, shapes = LIFTED[case]
    assert_lifted(model_of(*nodes, classes=classes), shapes, tmp_path)


def assert_lifted(model: ir.Model, shapes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    """Listed, recorded, and extracted with the bits of the operator that holds the oracle."""
    oracle = {name: r(*shape) for name, shape in shapes.items()}
    rows = {row["name"]: row for row in gdu_compile.inspect(save_onnx(tmp_path / "m.onnx", model))[
        "other_weights"]}  # fmt: skip
    assert {name: tuple(rows[name]["shape"]) for name in rows} == shapes
    compiled = gdu_compile.compile(model, oracle, output=tmp_path / "m.gdu.onnx", strict=True)
    assert_reproduced(compiled.report)
    assert {row.name for row in compiled.report.weights} == set(oracle)
    original = with_attributes(model, oracle)
    plain = tmp_path / "plain.onnx"
    gdu_compile.extract(tmp_path / "m.gdu.trained.onnx", output=plain)
    for level in ("all", "none"):
        for samples in (1, 2, 33):
            x = {"x": r(samples, F)}
            with runtime.on_disk(original) as path:
                expected = runtime.run(path, x, level=level)
            got = runtime.run(plain, x, level=level)
            assert all(bits.same_bits(expected[name], got[name]) for name in expected), level


def with_attributes(model: ir.Model, oracle: dict[str, np.ndarray[Any, Any]]) -> ir.Model:
    """The model as it was, with the oracle's numbers in its attributes."""
    model = model.clone()
    for each in model.graph:
        for name in [name for name in each.attributes if f"{each.name}.{name}" in oracle]:
            numbers = oracle[f"{each.name}.{name}"].reshape(-1).tolist()
            each.attributes[name] = ir.AttrFloat32s(name, numbers)
        if (constant := oracle.get(f"{each.name}.coef0")) is not None:
            gamma, _, degree = each.attributes["kernel_params"].as_floats()
            params = [gamma, float(constant[0]), degree]
            each.attributes["kernel_params"] = ir.AttrFloat32s("kernel_params", params)
    return model


def test_the_control_of_lifted() -> None:
    """One coefficient of the oracle moved: the outputs are no longer the operator's."""
    nodes, classes, shapes = (
        LIFTED["3 scores"] if "3 scores" in LIFTED else LIFTED["2 scores, NONE"]
    )
    model = model_of(*nodes, classes=classes)
    oracle = {name: r(*shape) for name, shape in shapes.items()}
    other = with_attributes(model, oracle)
    oracle["LinearClassifier.coefficients"][0, 0] += 1
    x = {"x": r(4, F)}
    with runtime.on_disk(specialize.with_weights(model, oracle)) as path:
        got = runtime.run(path, x)["z"]
    with runtime.on_disk(other) as path:
        assert not np.array_equal(runtime.run(path, x)["z"], got)


def test_classes_with_names() -> None:
    """Labels that are texts stay the classifier's own, also at another oracle."""
    each = classifier(3, "SOFTMAX", classlabels_strings=["a", "b", "c"])
    model, x = model_of(each, classes=3), {"x": r(9, F)}
    oracle = {name: r(*shape) for name, shape in zip(LINEAR, [(3, F), (3,)], strict=True)}
    with runtime.on_disk(with_attributes(model, oracle)) as path:
        expected = runtime.run(path, x)
    with runtime.on_disk(specialize.with_weights(model, oracle)) as path:
        got = runtime.run(path, x)
    assert set(got["label"]) <= {"a", "b", "c"} and len(set(got["label"])) > 1
    assert all(bits.same_bits(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize("dtype", [TensorProto.INT64, TensorProto.DOUBLE])
def test_inputs_of_other_dtypes(dtype: int) -> None:
    """The operator itself takes them as float32: a Cast does it here."""
    model = model_of(classifier(3, "NONE"), classes=3, dtype=dtype)
    NormalizePass()(model)
    assert state_of(model).attributes == {}
    assert model.graph[0].op_type == "Cast"


def test_nothing_is_lifted_twice() -> None:
    """The pass, once more, finds nothing to do; weights keep their names."""
    model = model_of(*LIFTED["behind a scaler"][0], classes=3)
    assert LiftAttributesPass()(model).modified is True
    names = sorted(model.graph.initializers)
    assert LiftAttributesPass()(model).modified is False
    assert sorted(model.graph.initializers) == names and len(names) == 4


def test_another_export_by_structure(tmp_path: Path) -> None:
    """An oracle given as another .onnx of the classifier, whose node has another name."""
    model, other = (model_of(classifier(3, "SOFTMAX"), classes=3) for _ in range(2))
    next(iter(other.graph)).name = "other"
    compiled = gdu_compile.compile(model, save_onnx(tmp_path / "w.onnx", other), strict=True)
    assert_reproduced(compiled.report)
    assert {row.name for row in compiled.report.weights} == set(LINEAR)


TREE = node("TreeEnsembleRegressor", nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2],
            nodes_featureids=[0, 0, 0], nodes_values=[0.5, 0.0, 0.0],
            nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_truenodeids=[1, 0, 0],
            nodes_falsenodeids=[2, 0, 0], target_treeids=[0, 0], target_nodeids=[1, 2],
            target_ids=[0, 0], target_weights=[1.0, 2.0], n_targets=1)  # fmt: skip
LARGE = node("SVMRegressor", coefficients=np.ones(500_000), support_vectors=np.ones(500_000 * F),
             rho=r(1), n_supports=500_000, kernel_type="RBF",
             kernel_params=[0.1, 0.0, 3.0])  # fmt: skip
# case → (the node, words of the reason)
LISTED = {
    "trees": (TREE, "holds its trees in attributes"),
    "too many support vectors": (
        LARGE, "rewritten, they take 10000000 bytes a sample, and at most 8388608 are taken"),
    "a transform": (
        node("LinearRegressor", coefficients=r(1, F), intercepts=r(1), post_transform="LOGISTIC"),
        "post_transform LOGISTIC is not rewritten",
    ),
    "too many scores": (
        node("LinearClassifier", "x", "label", "y", coefficients=r(5000 * F),
             intercepts=r(5000), classlabels_ints=list(range(5000))),
        "cannot be rewritten (5000 scores, and at most 4096 are rewritten)",
    ),
    "no whole number of rows": (
        node("LinearRegressor", coefficients=r(F + 2), intercepts=r(3), targets=3),
        "cannot be rewritten (7 coefficients for 3 rows)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LISTED)
def test_listed(case: str) -> None:
    """What stays an attribute is named under skipped, and --strict refuses it."""
    each, words = LISTED[case]
    bias = helper.make_node("Add", ["y", "b"], ["z"])
    each = onnx.NodeProto.FromString(each.SerializeToString())
    each.output[-1] = "y"
    model = model_of(each, bias, classes=1)
    tensor = ir.tensor(np.ones(1, np.float32), name="b")
    value = ir.val("b", const_value=tensor)
    model.graph.register_initializer(value)
    model.graph[1].replace_input_with(1, value)
    model.graph[0].outputs[0].shape = None
    NormalizePass()(copy := model.clone())
    reasons = state_of(copy).attributes
    assert reasons is not None and words in reasons[each.op_type]
    if "cannot" in words:
        return
    report = gdu_compile.compile(model, {"b": r(1)}).report
    assert report.reproduced is True
    assert words in {row["name"]: row["reason"] for row in report.skipped}[each.op_type]
    with pytest.raises(InputError, match=f"{each.op_type!r}: .*--strict"):
        gdu_compile.compile(model, {"b": r(1)}, strict=True)


def test_only_trees(tmp_path: Path) -> None:
    """Nothing to record: the error says what was seen, and so does inspect."""
    path = save_onnx(tmp_path / "t.onnx", model_of(TREE, classes=1))
    with pytest.raises(InputError) as caught:
        gdu_compile.compile(path, {"w": r(1)}, allow_extra=True)
    assert any("holds its trees in attributes" in each for each in caught.value.problems)
    with pytest.raises(InputError, match=r"holds no arrays\n.*holds its trees in attributes"):
        gdu_compile.compile(path, path)
    (row,) = gdu_compile.inspect(path)["attributes"]
    assert row["name"] == "TreeEnsembleRegressor" and "trees" in row["reason"]


def test_an_old_opset(tmp_path: Path) -> None:
    """Lifted once the model is raised; so is the base that it is compared with."""
    model = model_of(*LIFTED["a regression"][0], classes=1)
    model.graph.opset_imports.update({"": 9, ML: 1})
    path = save_onnx(tmp_path / "m.onnx", model)
    shapes = LIFTED["a regression"][2]
    assert {row["name"] for row in gdu_compile.inspect(path)["other_weights"]} == set(shapes)
    oracle = {name: r(*shape) for name, shape in shapes.items()}
    assert_reproduced(gdu_compile.compile(path, oracle).report)
    other = save_onnx(tmp_path / "w.onnx", with_attributes(model, oracle))
    report = gdu_compile.compile(path, other, strict=True).report
    assert_reproduced(report)
    assert {row.name for row in report.weights} == set(shapes)


def test_a_difference_is_told_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a rewriting that is wrong in the last bit is not taken."""

    def wrong(rewriter: Rewriter) -> None:
        x = rewriter.data()
        zero = rewriter.weight("tiny", np.full(F, 1e-6, np.float32))
        rewriter.finish(rewriter.op("Add", x, zero))

    monkeypatch.setitem(lift_attributes.LIFTED, "Scaler", wrong)
    lift_attributes.compared.cache_clear()
    model = model_of(node("Scaler", offset=np.zeros(F), scale=np.ones(F)), classes=F)
    NormalizePass()(model)
    reason = (state_of(model).attributes or {})["Scaler"]
    assert "that differs by" in reason and "(1 samples, optimisations: none)" in reason
    assert not model.graph.initializers
    lift_attributes.compared.cache_clear()
