"""Models as exporters wrote them until 2018: IR version 3, weights among the inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from test_record import assert_reproduced

import gdu_compile
from gdu_compile import specialize

DATA = Path(onnx.backend.test.__file__).parent / "data"
CONVERTED = ["Conv1d_groups", "Conv2d_padding", "Conv3d_dilated_strided", "ConvTranspose2d",
             "Embedding", "Linear_no_bias"]  # fmt: skip


def moved(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Oracle weights: every float weight a little elsewhere."""
    rng = np.random.default_rng(0)
    weights = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    return {
        name: (array + 0.01 * rng.standard_normal(array.shape)).astype(array.dtype)
        for name, array in weights.items() if array.dtype == np.float32
    }  # fmt: skip


@pytest.mark.parametrize("name", CONVERTED)
def test_files_of_the_onnx_package(name: str, tmp_path: Path) -> None:
    """They say IR version 3; ours is that of opset 18; extract gives back a model that runs."""
    path = DATA / "pytorch-converted" / f"test_{name}" / "model.onnx"
    model = onnx.load(path)
    assert model.ir_version == 3 and len(model.graph.input) > 1
    compiled = gdu_compile.compile(path, moved(model), output=tmp_path / "net.gdu.onnx")
    assert_reproduced(compiled.report)
    assert compiled.extended.ir_version >= 8
    plain = gdu_compile.extract(tmp_path / "net.gdu.trained.onnx", output=tmp_path / "plain.onnx")
    assert plain is not None
    onnx.checker.check_model(tmp_path / "plain.onnx")


def test_a_weight_is_the_first_input(tmp_path: Path) -> None:
    """Its first dimension is no batch size."""
    model = onnx.parser.parse_model("""
        <ir_version: 3, opset_import: ["": 9]>
        net (float[5,3] W, float[1,5] x, float[3] b) => (float[1,3] z)
            <float[5,3] W = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}, float[3] b = {1,2,3}>
        { y = MatMul (x, W)  z = Add (y, b) }
    """)
    onnx.save(model, tmp_path / "net.onnx")
    report = gdu_compile.compile(tmp_path / "net.onnx", moved(model)).report
    assert_reproduced(report)
    assert [row.name for row in report.weights] == ["W", "b"]


WEIGHTS_AND_SWITCH = (
    "g (float[3] b, float[N,40] x, float[40,30] W, bool[1] flag, float[30,3] V) => (float[N,3] z) "
    "{ y = MatMul(x, W) h = Relu(y) r = MatMul(h, V) s = Add(r, b) z = Where(flag, s, r) }"
)


def with_default_inputs(version: int) -> onnx.ModelProto:
    """A network whose initializers are inputs, too, in front of the data and behind."""
    model = onnx.parser.parse_model(
        f'<ir_version: {version}, opset_import: ["": 11]> {WEIGHTS_AND_SWITCH}'
    )
    rng = np.random.default_rng(1)
    for value in model.graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if value.name == "flag":
            model.graph.initializer.append(numpy_helper.from_array(np.array([True]), "flag"))
        elif value.name != "x":
            array = rng.standard_normal(shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
    return model


def holding(model: onnx.ModelProto, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The file as an oracle would have it: the same but for the contents of its initializers."""
    oracle = onnx.ModelProto.FromString(model.SerializeToString())
    for each in oracle.graph.initializer:
        if each.name in weights:
            each.CopyFrom(numpy_helper.from_array(weights[each.name], each.name))
    return oracle


def answers(model: onnx.ModelProto, level: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The output in onnxruntime, packing ahead included."""
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


@pytest.mark.parametrize("version", [4, 9])
def test_default_values_of_inputs(version: int, tmp_path: Path) -> None:
    """extract gives back the oracle's file: the same inputs, and its bits also for one sample,
    where onnxruntime takes another kernel for constants; a value that is given counts."""
    model = with_default_inputs(version)
    weights = moved(model)
    onnx.save(model, tmp_path / "net.onnx")
    compiled = gdu_compile.compile(
        tmp_path / "net.onnx", weights, steps=1, output=tmp_path / "net.gdu.onnx"
    )
    assert_reproduced(compiled.report)
    text = "inputs with default values ('b', 'W', 'flag', 'V') are constants in the extended model"
    assert any(text in warning for warning in compiled.report.warnings)
    assert [value.name for value in compiled.extended.graph.inputs] == ["x"]
    trained = tmp_path / "net.gdu.trained.onnx"
    assert gdu_compile.verify(tmp_path / "net.gdu.onnx", trained).reproduced
    gdu_compile.extract(trained, output=tmp_path / "plain.onnx")
    plain, oracle = onnx.load(tmp_path / "plain.onnx"), holding(model, weights)
    assert [value.name for value in plain.graph.input] == ["b", "x", "W", "flag", "V"]
    rng = np.random.default_rng(2)
    for samples in (1, 5, 33):
        x = {"x": rng.standard_normal((samples, 40)).astype(np.float32)}
        for feeds in (x, {**x, "flag": np.array([False])}, {**x, "b": np.float32([1, 2, 3])}):
            for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
                got, wanted = (answers(each, level, feeds) for each in (plain, oracle))
                assert got.tobytes() == wanted.tobytes()


def test_what_differs_from_a_base_with_default_inputs_is_said(tmp_path: Path) -> None:
    """With all optimisations the armed weights are constants: the gap is measured, not hidden."""
    model = with_default_inputs(9)
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "net.onnx")
    compiled = gdu_compile.compile(tmp_path / "net.onnx", moved(model), steps=1)
    assert_reproduced(compiled.report)
    extended = ir.to_proto(compiled.trained)
    x = {"x": np.random.default_rng(0).standard_normal((1, 40)).astype(np.float32)}
    oracle = holding(model, moved(model))
    differ = (answers(extended, "ORT_ENABLE_ALL", x) != answers(oracle, "ORT_ENABLE_ALL", x)).any()
    said = [text for text in compiled.report.warnings if "differ from the base's by" in text]
    assert differ and len(said) == 1


def test_what_is_extracted_counts_where_it_has_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An extracted file that is not the base's bits is not reproduced."""
    extracted = specialize.without_extension

    def wrong(model: ir.Model, weights: dict[str, np.ndarray]) -> ir.Model:
        return extracted(model, {name: array + 1 for name, array in weights.items()})

    monkeypatch.setattr(specialize, "without_extension", wrong)
    model = with_default_inputs(9)
    report = gdu_compile.compile(ir.from_proto(model), moved(model), steps=1).report
    assert report.reproduced is False
    assert not report.forward.bit_equal and report.forward_unoptimized.bit_equal


def test_learn_with_default_inputs() -> None:
    """An algorithm's weights are inputs again, too."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> '
        "g (float[N,5] x, float[5,3] W, float[3] b) => (float[N,3] z) { z = Gemm(x, W, b) }"
    )
    for name, shape in (("W", (5, 3)), ("b", (3,))):
        model.graph.initializer.append(
            numpy_helper.from_array(np.zeros(shape, dtype=np.float32), name)
        )
    learnt = gdu_compile.compile(ir.from_proto(model), oracle="nearest-mean")
    assert learnt.report.reproduced
    plain = gdu_compile.extract(learnt.trained)
    assert [value.name for value in plain.graph.inputs] == ["x", "W", "b"]


def test_before_version_4_initializers_are_constants() -> None:
    """They had to be inputs, and onnxruntime takes them for constants: nothing is taken away."""
    model = with_default_inputs(3)
    compiled = gdu_compile.compile(ir.from_proto(model), moved(model), steps=1)
    assert_reproduced(compiled.report)
    assert not any("default values" in warning for warning in compiled.report.warnings)
    assert [value.name for value in gdu_compile.extract(compiled.trained).graph.inputs] == ["x"]
