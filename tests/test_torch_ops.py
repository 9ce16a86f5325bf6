"""The torch operator table: ONNX's conformance cases, onnxruntime on hard inputs, derivatives."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, defs, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases

import gdu_compile.torch_backend.ops_elementwise
import gdu_compile.torch_backend.ops_index
import gdu_compile.torch_backend.ops_linear
import gdu_compile.torch_backend.ops_norm
import gdu_compile.torch_backend.ops_pool
import gdu_compile.torch_backend.ops_quant
import gdu_compile.torch_backend.ops_reduce
import gdu_compile.torch_backend.ops_shape  # noqa: F401
from gdu_compile.errors import UnsupportedError
from gdu_compile.torch_backend.registry import TABLE, lookup

OLDEST_OPSET = 18

# name of conformance cases (regular expression, whole name) → why they cannot work
EXCLUDE = {
    r".*_?cast(like)?_.*(FLOAT8|FLOAT4|INT4|INT2).*": "no arithmetic for float8 or below 8 bits",
    r".*cast_e8m0_.*": "no arithmetic for float8",
    r"test_(de)?quantizelinear_(e4m3fn|e5m2|float4e2m1).*": "no arithmetic for float8 or below",
    r"test_(de)?quantizelinear_u?int[24]": "no arithmetic below 8 bits",
    r".*string.*": "torch has no strings",
    r"test_training_dropout.*": "draws at random (those that do not draw are run all the same)",
}
NOT_EXCLUDED = r"test_training_dropout_zero_ratio.*"


# --- a minimal evaluator of one node -----------------------------------------


def as_torch(value: Any) -> torch.Tensor:
    array = np.array(numpy_helper.to_array(value) if isinstance(value, TensorProto) else value)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def attribute(proto: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(proto)
    if isinstance(value, TensorProto):
        return as_torch(value)
    return value.decode() if isinstance(value, bytes) else value


def evaluate(node: onnx.NodeProto, opset: int, tensors: dict[str, torch.Tensor]) -> list[Any]:
    function = lookup(node.op_type, opset)
    attributes = {proto.name: attribute(proto) for proto in node.attribute}
    if "num_outputs_" in inspect.signature(function).parameters:
        attributes["num_outputs_"] = len(node.output)
    result = function(*(tensors[name] if name else None for name in node.input), **attributes)
    return list(result) if isinstance(result, tuple) else [result]


# --- ONNX's conformance cases ------------------------------------------------


def relevant_cases() -> list[Any]:
    """The cases of one node, of tensors only, whose operator is in the table.

    Cases of an operator version that opset 18 has replaced are left out.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflows that the cases provoke on purpose
        cases = collect_testcases(None)
    return [case for case in cases if case.model is not None and relevant(case.model)]


def relevant(model: onnx.ModelProto) -> bool:
    graph = model.graph
    if len(graph.node) != 1 or not all(x.type.HasField("tensor_type") for x in graph.input):
        return False
    name, opset = graph.node[0].op_type, opset_of(model)
    if graph.node[0].domain or name not in TABLE[""] or not opset:
        return False
    if opset >= OLDEST_OPSET:
        return True
    return bool(version(name, opset) == version(name, OLDEST_OPSET))


def opset_of(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if not entry.domain), 0)


def version(name: str, opset: int) -> int:
    return int(defs.get_schema(name, opset).since_version)


def excluded(name: str) -> bool:
    if re.fullmatch(NOT_EXCLUDED, name):
        return False
    return any(re.fullmatch(pattern, name) for pattern in EXCLUDE)


CASES = relevant_cases()


def compare(actual: torch.Tensor, wanted: torch.Tensor, rtol: float, atol: float) -> None:
    assert actual.dtype == wanted.dtype
    assert actual.shape == wanted.shape
    if wanted.dtype == torch.bfloat16:
        actual, wanted = actual.float(), wanted.float()
    np.testing.assert_allclose(actual.numpy(), wanted.numpy(), rtol=rtol, atol=atol)


# The cases' default tolerance (1e-3) is loose; only what a case asks for itself is granted.
def tolerance(case: Any) -> tuple[float, float]:
    rtol = 1e-5 if case.rtol == 1e-3 else max(1e-5, case.rtol)
    return rtol, max(1e-6, case.atol)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name) for case in CASES if not excluded(case.name)]
)
def test_conformance(case: Any) -> None:
    node, opset = case.model.graph.node[0], max(opset_of(case.model), OLDEST_OPSET)
    rtol, atol = tolerance(case)
    for inputs, outputs in case.data_sets:
        names = [x.name for x in case.model.graph.input]
        tensors = {name: as_torch(x) for name, x in zip(names, inputs, strict=True)}
        results = dict(zip(node.output, evaluate(node, opset, tensors), strict=True))
        for x, wanted in zip(case.model.graph.output, outputs, strict=True):
            compare(results[x.name], as_torch(wanted), rtol, atol)


@pytest.mark.parametrize("pattern", EXCLUDE)
def test_each_exclude_has_its_case(pattern: str) -> None:
    assert any(re.fullmatch(pattern, case.name) for case in CASES)


def test_the_cases_reach_most_of_the_table() -> None:
    reached = {case.model.graph.node[0].op_type for case in CASES if not excluded(case.name)}
    assert sorted(set(TABLE[""]) - reached) == []
