"""What the onnx package brings: files of its test data, and its control-flow cases."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
from onnx import numpy_helper

from benchmarks.zoo.case import Case, Given, Inputs

DATA = Path(onnx.backend.test.__file__).parent / "data"
FOLDERS = ("light", "simple", "pytorch-converted", "pytorch-operator")
QUICK = {
    "light_shufflenet", "Conv1d_groups", "Conv2d_depthwise", "Conv3d_dilated_strided",
    "ConvTranspose2d", "Embedding", "Linear_no_bias", "BatchNorm2d_eval", "Softmax",
    "operator_conv", "operator_symbolic_override", "sequence_model1", "test_if", "test_loop11",
}  # fmt: skip
CONTROL_FLOW = re.compile(r"test_(if|loop|scan)")


def cases() -> Iterator[Case]:
    """All of them, with weights or without: the run says which."""
    for folder in FOLDERS:
        for path in sorted((DATA / folder).glob("*.onnx" if folder == "light" else "*/model.onnx")):
            name = path.stem if folder == "light" else path.parent.name.removeprefix("test_")
            yield Case(name, f"onnx, {folder}", partial(given, path), name in QUICK)
    for name in control_flow():
        yield Case(name, "onnx, control flow", partial(written, name), name in QUICK)


def given(path: Path, folder: Path) -> Given:
    """A file of the package, with its first inputs."""
    data = path.parent / "test_data_set_0"
    names = [each.name for each in inputs_of(onnx.load(path))]
    files = [data / f"input_{i}.pb" for i in range(len(names))]
    if not all(file.exists() for file in files):
        return Given(path)
    return Given(path, {name: read(file) for name, file in zip(names, files, strict=True)})


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that are no weights."""
    weights = {each.name for each in model.graph.initializer}
    return [each for each in model.graph.input if each.name not in weights]


def read(file: Path) -> Any:
    """An array, or a sequence of arrays."""
    content = file.read_bytes()
    try:
        tensor = onnx.TensorProto.FromString(content)
        return numpy_helper.to_array(tensor)
    except Exception:  # no tensor: protobuf's own errors, or no dtype
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))


@cache
def control_flow() -> dict[str, Any]:
    """Name → case of onnx.backend.test that is about If, Loop or Scan."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflows that the cases provoke on purpose
        found = collect_testcases(None)
    return {case.name: case for case in found if CONTROL_FLOW.match(case.name)}


def written(name: str, folder: Path) -> Given:
    """A case as a file."""
    case = control_flow()[name]
    path = folder / f"{name}.onnx"
    onnx.save(case.model, path)
    arrays = case.data_sets[0][0]
    inputs: Inputs = {
        each.name: array_of(array)
        for each, array in zip(inputs_of(case.model), arrays, strict=True)
    }
    return Given(path, inputs)


def array_of(value: Any) -> Any:
    """An input as onnxruntime takes it."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return value if isinstance(value, list) or value is None else np.asarray(value)
