"""Models as exporters wrote them until 2018: IR version 3, weights among the inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from test_record import assert_reproduced

import gdu_compile

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


@pytest.mark.parametrize(("version", "said"), [(3, False), (4, True), (9, True)])
def test_default_values_of_inputs_become_constants(version: int, said: bool) -> None:
    """From IR version 4 on that takes something away, and is said; before, it is what it was."""
    model = onnx.parser.parse_model(
        f'<ir_version: {version}, opset_import: ["": 9]>'
        "g (float[N,3] x, float[3] w, float[3] b) => (float[N,3] z) "
        "<float[3] w = {1, 2, 3}, float[3] b = {4, 5, 6}> "
        "{ y = Mul(x, w) z = Add(y, b) }"
    )
    oracle = {"w": np.float32([3, 2, 1]), "b": np.float32([1, 1, 2])}
    compiled = gdu_compile.compile(ir.from_proto(model), oracle, steps=1)
    assert_reproduced(compiled.report)
    text = "inputs with default values ('w', 'b')"
    assert any(text in warning for warning in compiled.report.warnings) is said
    assert [value.name for value in compiled.extended.graph.inputs] == ["x"]
