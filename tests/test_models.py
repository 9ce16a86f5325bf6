"""The files of models/: what they claim about themselves, in onnxruntime and in torch."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from conftest import ALL_MODELS, DIGITS_MODELS, MODELS, model_data

from gdu_compile.torch_backend import lower_to_torch

THREE_NODE = "three_node"
# the least accuracy on the test part that an oracle of this task should have
GOOD = {"digits_linear": 0.95, "digits_mlp": 0.95, "iris_binary": 0.9}
# operators that the model is there for, how many; the last operator of the graph
OPERATORS: dict[str, tuple[dict[str, int], str]] = {
    "digits_linear": ({"Gemm": 1}, "Gemm"),
    "digits_mlp": ({"Gemm": 3, "Relu": 2}, "Gemm"),
    "digits_cnn": ({"Conv": 3, "BatchNormalization": 2, "MaxPool": 1, "Add": 1}, "Gemm"),
    "digits_attention": ({"LayerNormalization": 3, "MatMul": 9, "Softmax": 1, "Erf": 1}, "Gemm"),
    "digits_gru": ({"GRU": 1}, "Gemm"),
    "digits_probs": ({"Gemm": 2, "Softmax": 1}, "Softmax"),
    "iris_binary": ({"Gemm": 2, "Sigmoid": 1}, "Sigmoid"),
}


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """models/build.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("models_build", MODELS / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def base_of(name: str) -> onnx.ModelProto:
    """The base network."""
    return onnx.load(MODELS / f"{name}.onnx")


def oracle_of(name: str) -> dict[str, np.ndarray]:
    """The oracle weights."""
    with np.load(MODELS / f"{name}.oracle.npz") as file:
        return dict(file)


def with_oracle(name: str) -> onnx.ModelProto:
    """The base network with the oracle weights in it."""
    proto, oracle = base_of(name), oracle_of(name)
    for tensor in proto.graph.initializer:
        if tensor.name in oracle:
            array = onnx.numpy_helper.from_array(oracle[tensor.name], tensor.name)
            tensor.CopyFrom(array)
    return proto


def floats_of(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The float initializers."""
    return {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }


def run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """The output in onnxruntime."""
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def stated() -> dict[str, tuple[int, str, str]]:
    """README's table: model → weights, the base's and the oracle's accuracy."""
    text = (MODELS / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (\d+) \| ([\d.]+%) \| ([\d.]+%) \|$", text, re.MULTILINE)
    return {name: (int(count), base, oracle) for name, count, base, oracle in rows}


def test_every_file_is_known() -> None:
    # three_node has no trained oracle: its own is the algorithm `exhaustive`
    assert sorted(path.stem for path in MODELS.glob("*.onnx")) == sorted([*ALL_MODELS, THREE_NODE])
    assert sorted(path.name for path in MODELS.glob("*.npz")) == sorted(
        {f"{name}.oracle.npz" for name in ALL_MODELS}
        | {model_data(n).name for n in ALL_MODELS}
        | {f"{THREE_NODE}.npz"}
    )
    assert list(stated()) == ALL_MODELS


def test_all_of_it_is_small() -> None:
    assert sum(path.stat().st_size for path in MODELS.iterdir() if path.is_file()) < 5e6


@pytest.mark.parametrize("name", ALL_MODELS)
def test_accuracy_is_what_the_readme_says(name: str, build: ModuleType) -> None:
    network = next(network for network in build.BASE_NETWORKS if network.name == name)
    part = build.split(network.task.samples()).test
    accuracies = [
        np.mean(network.task.predict(run(model, part.x)) == part.y)
        for model in (base_of(name), with_oracle(name))
    ]
    count, *texts = stated()[name]
    assert [f"{accuracy:.2%}" for accuracy in accuracies] == texts
    assert accuracies[0] < 0.8 * accuracies[1]  # the base knows nothing
    assert accuracies[1] >= GOOD.get(name, 0.96)
    assert count == sum(w.size for w in oracle_of(name).values())


def test_the_data_are_scikit_learns(build: ModuleType) -> None:
    for samples in (build.digits(), build.iris()):
        path = MODELS / ("iris.npz" if len(samples.y) == 150 else "digits.npz")
        with np.load(path) as file:
            assert file.files == ["x", "y"]
            for got, wanted in zip((file["x"], file["y"]), samples, strict=True):
                assert got.dtype == wanted.dtype and np.array_equal(got, wanted)
            assert file["y"].shape == (len(file["x"]),)
        parts = build.split(samples)
        assert sum(len(part.y) for part in parts) == len(samples.y)
        rows = [x.tobytes() for part in parts for x in part.x]
        assert Counter(rows) == Counter(x.tobytes() for x in samples.x)


@pytest.mark.parametrize("name", ALL_MODELS)
def test_the_graph_is_what_the_model_is_there_for(name: str) -> None:
    proto = base_of(name)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 18)]
    count, (wanted, last) = Counter(node.op_type for node in proto.graph.node), OPERATORS[name]
    assert {op: count[op] for op in wanted} == wanted
    (output,) = proto.graph.output
    assert [node.op_type for node in proto.graph.node if output.name in node.output] == [last]
    shapes = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
              for value in (*proto.graph.input, output)]  # fmt: skip
    assert [shape[0] for shape in shapes] == ["N", "N"]
    if name in DIGITS_MODELS:
        assert (output.name, shapes[1]) == ("logits", ["N", 10])
    with np.load(model_data(name)) as data:
        assert run(proto, data["x"][:1]).shape == (1, *shapes[1][1:])


@pytest.mark.parametrize("name", ALL_MODELS)
def test_the_oracle_has_every_weight(name: str) -> None:
    """Each float initializer, trained; none was merged with another, which it could not equal."""
    base, oracle = floats_of(base_of(name)), oracle_of(name)
    assert {n: (w.shape, w.dtype) for n, w in oracle.items()} == {
        n: (w.shape, w.dtype) for n, w in base.items()
    }
    for weights in (base, oracle):
        assert all(np.isfinite(w).all() for w in weights.values())
        assert len({w.tobytes() for w in weights.values()}) == len(weights)
    assert all((oracle[n] != base[n]).any() for n in base)
    assert not [n for n in base if n.startswith("val_")]


@pytest.mark.parametrize("name", ALL_MODELS)
def test_torch_agrees_with_onnxruntime(name: str) -> None:
    """On all samples; its parameters are the weights, and each has a gradient."""
    oracle = oracle_of(name)
    module = lower_to_torch(ir.from_proto(with_oracle(name)), list(oracle))
    with np.load(model_data(name)) as data:
        x = data["x"]
    wanted = run(with_oracle(name), x)
    got = module(torch.from_numpy(x))
    assert got.shape == wanted.shape
    tolerance = 1e-5 * np.abs(wanted).max()
    assert np.abs(got.detach().numpy() - wanted).max() <= tolerance
    assert np.abs(run(base_of(name), x) - wanted).max() > 1000 * tolerance  # and can disagree
    assert sorted(p.numel() for p in module.parameters()) == sorted(w.size for w in oracle.values())
    got.square().sum().backward()
    for attribute, parameter in module.named_parameters():
        assert parameter.grad is not None, attribute
        assert parameter.grad.isfinite().all(), attribute
        # Softmax does not see what adds the same to all scores: only rounding would be left.
        assert parameter.grad.any() or attribute == "key_bias", attribute


def test_a_build_gives_the_same_bytes(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, and the base is that of the folder; the oracle may depend on the machine."""
    network = next(network for network in build.BASE_NETWORKS if network.name == "iris_binary")
    parts = build.split(network.task.samples())
    runs = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        monkeypatch.setattr(build, "FOLDER", folder)
        result = build.build(network, parts)
        runs.append({path.name: path.read_bytes() for path in folder.iterdir()} | {"": result})
    assert runs[0] == runs[1]
    assert runs[0]["iris_binary.onnx"] == (MODELS / "iris_binary.onnx").read_bytes()


def test_the_three_node_network_is_what_the_script_makes(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    build.build_three_node()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["three_node.npz", "three_node.onnx"]
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (MODELS / path.name).read_bytes(), path.name
    operators = [node.op_type for node in base_of(THREE_NODE).graph.node]
    assert operators == ["Gemm", "Sigmoid", "Gemm", "Sigmoid"]
    samples = build.splitting()
    # Blum & Rivest: the origin in, the elements out, the sets in; two lines share one point
    assert samples.y.tolist() == [1, *[0] * 7, *[1] * 6]
    assert samples.x.sum(axis=1).tolist() == [0, *[1] * 7, *[3] * 6]
    lines = samples.x[8:]
    assert (lines @ lines.T == 1 + 2 * np.eye(6)).all()


def test_a_build_refuses_merged_weights(build: ModuleType) -> None:
    """The exporter merges equal initializers: found by the count, avoided by make_distinct."""

    def construct() -> torch.nn.Module:
        norms = [torch.nn.LayerNorm(4), torch.nn.LayerNorm(4)]
        return torch.nn.Sequential(*norms, torch.nn.Linear(4, 1), torch.nn.Sigmoid())

    network = build.BaseNetwork("norms", build.VIRGINICA, construct, 0, None)
    parts = build.split(network.task.samples())

    def weights(net: torch.nn.Module) -> dict[str, Any]:
        base = build.export(network, net, parts)
        tensors = build.weight_tensors(net)
        with torch.no_grad():
            for tensor in tensors:
                tensor += 1
        trained = build.export(network, net, parts)
        return build.oracle_weights(base, trained, sum(t.numel() for t in tensors))

    with pytest.raises(ValueError, match="are not 21 numbers"):
        weights(construct().eval())
    assert len(weights(build.construct_base(network))) == 6
