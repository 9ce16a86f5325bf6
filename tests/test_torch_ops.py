"""The torch operator table: ONNX's conformance cases, onnxruntime on hard inputs, derivatives."""

from __future__ import annotations

import inspect
import re
import warnings
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
import gdu_compile.torch_backend.ops_recurrent
import gdu_compile.torch_backend.ops_reduce
import gdu_compile.torch_backend.ops_shape  # noqa: F401
from gdu_compile.errors import UnsupportedError
from gdu_compile.torch_backend.registry import TABLE, lookup

OLDEST_OPSET = 18

# name of conformance cases (regular expression, whole name) → why they cannot work
EXCLUDE = {
    r".*_?cast(like)?_.*(FLOAT8|FLOAT4|INT4|INT2).*": "numpy has no such types; test_narrow.py",
    r".*cast_e8m0_.*": "numpy has no such type; test_narrow.py",
    r"test_(de)?quantizelinear_(e4m3fn|e5m2|float4e2m1).*": "numpy has no such types",
    r"test_(de)?quantizelinear_u?int[24]": "numpy has no such types",
    r".*string.*": "torch has no strings",
    r"test_training_dropout.*": "draws at random (those that do not draw are run all the same)",
}
NOT_EXCLUDED = r"test_training_dropout_zero_ratio.*"

# cases whose expected values are written down with four digits
ROUNDED = {
    "test_averagepool_2d_ceil_last_window_starts_on_pad", "test_gridsample_bicubic",
    "test_roialign_aligned_false", "test_roialign_aligned_true",
}  # fmt: skip
# operators without a case of one node with tensors: the first is compared with onnxruntime below,
# the others have sequences or optional values, and their cases run in test_onnx_backend.py
WITHOUT_CASE = [
    "ConcatFromSequence", "GlobalLpPool", "Optional", "SequenceAt", "SequenceConstruct",
    "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SplitToSequence",
]  # fmt: skip


# --- a minimal evaluator of one node -----------------------------------------


def as_torch(value: Any) -> torch.Tensor:
    array = np.array(numpy_helper.to_array(value) if isinstance(value, TensorProto) else value)
    if array.dtype == np.uint64:  # which numpy knows under two names, and torch under one
        array = array.astype(np.uint64)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def attribute(proto: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(proto)
    if isinstance(value, TensorProto):
        return as_torch(value)
    if isinstance(value, list):
        return [entry.decode() if isinstance(entry, bytes) else entry for entry in value]
    return value.decode() if isinstance(value, bytes) else value


def evaluate(node: onnx.NodeProto, opset: int, tensors: dict[str, torch.Tensor]) -> list[Any]:
    function = lookup(node.op_type, opset)
    attributes = {proto.name: attribute(proto) for proto in node.attribute}
    if "num_outputs_" in inspect.signature(function).parameters:
        attributes["num_outputs_"] = len(node.output)
    result = function(*(tensors[name] if name else None for name in node.input), **attributes)
    return list(result) if isinstance(result, tuple) else [result]


# --- ONNX's conformance cases ------------------------------------------------


def all_cases() -> list[Any]:
    """All that have a model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflows that the cases provoke on purpose
        cases = collect_testcases(None)
    return [case for case in cases if case.model is not None]


def relevant(model: onnx.ModelProto) -> bool:
    """One node, of tensors only, whose operator is in the table.

    Cases of an operator version that opset 18 has replaced are left out.
    """
    graph = model.graph
    values = [*graph.input, *graph.output]
    if len(graph.node) != 1 or not all(x.type.HasField("tensor_type") for x in values):
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


ALL_CASES = all_cases()
CASES = [case for case in ALL_CASES if relevant(case.model)]


def compare(actual: torch.Tensor, wanted: torch.Tensor, rtol: float, atol: float) -> None:
    assert actual.dtype == wanted.dtype
    assert actual.shape == wanted.shape
    if wanted.dtype == torch.bfloat16:
        actual, wanted = actual.float(), wanted.float()
    np.testing.assert_allclose(actual.numpy(), wanted.numpy(), rtol=rtol, atol=atol)


# The cases' default tolerance (1e-3) is loose; only what a case asks for itself is granted.
def tolerance(case: Any) -> tuple[float, float]:
    if case.name in ROUNDED:
        return 1e-3, 1e-6
    if "attention" in case.name and case.name.endswith(("fp16", "bf16")):
        return (2**-9 if "_fp16" in case.name else 2**-6), 1e-6  # two units in the last place
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


def test_the_cases_reach_the_whole_table() -> None:
    reached = {case.model.graph.node[0].op_type for case in CASES if not excluded(case.name)}
    assert sorted(set(TABLE[""]) - reached) == WITHOUT_CASE


@pytest.mark.parametrize("op", sorted(TABLE[""]))
def test_entries_take_the_attributes_of_their_schema(op: str) -> None:
    for opset in range(max(OLDEST_OPSET, min(TABLE[""][op])), defs.onnx_opset_version() + 1):
        parameters = inspect.signature(lookup(op, opset)).parameters
        for name, schema in defs.get_schema(op, opset).attributes.items():
            assert name in parameters
            default = attribute(schema.default_value) if schema.default_value.name else None
            if default is not None and not isinstance(default, list):
                assert parameters[name].default == default


# --- onnxruntime on hard inputs ----------------------------------------------


def onnx_node(op: str, inputs: list[Any], outputs: int, attributes: dict[str, Any]) -> Any:
    names = ["" if x is None else f"in{i}" for i, x in enumerate(inputs)]
    return helper.make_node(op, names, [f"out{i}" for i in range(outputs)], **attributes)


def reference(op: str, inputs: list[Any], opset: int, outputs: int, **attributes: Any) -> Any:
    node = onnx_node(op, inputs, outputs, attributes)
    feeds = {name: x for name, x in zip(node.input, inputs, strict=True) if name}
    graph = helper.make_graph(
        [node],
        "graph",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in feeds.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in node.output],
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def check_with_onnxruntime(
    op: str, *inputs: Any, opset: int = 18, outputs: int = 1, **attributes: Any
) -> None:
    given = [None if x is None else np.asarray(x) for x in inputs]
    wanted = reference(op, given, opset, outputs, **attributes)
    node = onnx_node(op, given, outputs, attributes)
    tensors = {
        name: as_torch(x) for name, x in zip(node.input, given, strict=True) if x is not None
    }
    for actual, expected in zip(evaluate(node, opset, tensors), wanted, strict=True):
        compare(actual, as_torch(expected), 1e-5, 1e-6)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def floats(*shape: int) -> Any:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


HARD = np.array(
    [
        0.0,
        -0.0,
        1e-45,
        -1e-45,
        1e-39,
        0.5,
        1.5,
        2.5,
        -0.5,
        -1.5,
        -2.5,
        1.0,
        -1.0,
        300.7,
        -300.7,
        3e9,
        -3e9,
        1e19,
        -1e19,
        3e38,
        np.inf,
        -np.inf,
        np.nan,
    ],
    np.float32,
)
PAIRS = [x.ravel().copy() for x in np.meshgrid(HARD, HARD)]


@pytest.mark.parametrize(
    "op",
    [
        "Abs",
        "Ceil",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "IsInf",
        "IsNaN",
        "LeakyRelu",
        "Neg",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Softplus",
        "Sqrt",
        "Tanh",
    ],
)
@pytest.mark.parametrize("x", [HARD, HARD[5], HARD[:0]], ids=["many", "scalar", "empty"])
def test_hard_unary(op: str, x: Any) -> None:
    check_with_onnxruntime(op, x, opset=20)


@pytest.mark.parametrize(
    "op", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Equal", "Greater", "LessOrEqual"]
)
def test_hard_binary(op: str) -> None:
    check_with_onnxruntime(op, *PAIRS)


@pytest.mark.parametrize("limits", [(-1, 1), (2, 1), (None, 0), (-np.inf, None), (None, None)])
def test_hard_clip(limits: tuple[float | None, float | None]) -> None:
    given = [None if limit is None else np.array(limit, np.float32) for limit in limits]
    check_with_onnxruntime("Clip", HARD, *given)


def test_hard_mod() -> None:
    check_with_onnxruntime("Mod", *PAIRS, fmod=1)
    a, b = np.array([7, -7, 7, -7], np.int32), np.array([3, 3, -3, -3], np.int32)
    for fmod in (0, 1):
        check_with_onnxruntime("Mod", a, b, fmod=fmod)
    check_with_onnxruntime("Div", a, b)


def test_hard_where_and_pow() -> None:
    check_with_onnxruntime("Where", HARD > 0, HARD, HARD[::-1].copy())
    bases, exponents = np.meshgrid(HARD[:15], np.array([-2, -1, 0, 0.5, 1, 2, 3], np.float32))
    check_with_onnxruntime("Pow", bases, exponents)
    check_with_onnxruntime("Pow", np.array([2, -2, 1, 9], np.int32), ints(-1, 3, -3, 2))


@pytest.mark.parametrize(
    "to", ["INT8", "UINT8", "UINT16", "INT32", "INT64", "BOOL", "FLOAT16", "DOUBLE"]
)
def test_hard_cast(to: str) -> None:
    # Out of range is undefined in ONNX; in range, and for NaN to bool, nothing is.
    finite = HARD[np.abs(HARD) < 100]
    unsigned = finite[finite > -1] if to.startswith("UINT") else finite
    values = HARD if to in ("BOOL", "FLOAT16", "DOUBLE") else unsigned
    check_with_onnxruntime("Cast", values, to=getattr(TensorProto, to))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_unsigned(dtype: Any) -> None:
    top = np.iinfo(dtype).max
    x, y = np.array([top, top - 1, 7, 0, 3], dtype), np.array([2, top, 0, 1, 3], dtype)
    for op in ("Add", "Sub", "Mul", "Equal", "BitwiseAnd", "BitwiseXor"):
        check_with_onnxruntime(op, x, y)
    for op in ("BitwiseNot", "Abs"):
        check_with_onnxruntime(op, x)
    for to in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64):
        check_with_onnxruntime("Cast", x, to=to)
    check_with_onnxruntime("Concat", x, y, axis=0)
    check_with_onnxruntime("Gather", x, ints(-1, 0))
    check_with_onnxruntime("Slice", x, ints(4), ints(0), ints(0), ints(-2))
    check_with_onnxruntime("Reshape", x, ints(5, -1))
    check_with_onnxruntime("Expand", x, ints(2, 5))
    check_with_onnxruntime("Transpose", x[None])


def test_unsigned_order() -> None:
    x, y = np.array([2**31, 7], np.uint32), np.array([5, 2**32 - 1], np.uint32)
    for op in ("Max", "Min", "Div", "Mod", "Greater", "LessOrEqual"):
        check_with_onnxruntime(op, x, y)
    large = torch.tensor([2**64 - 1], dtype=torch.uint64)
    with pytest.raises(UnsupportedError, match="2\\*\\*63"):
        lookup("Max", 18)(large, large)


def test_slice_clamps_a_start_before_the_first_element() -> None:
    check_with_onnxruntime("Slice", floats(4, 3), ints(-7), ints(-9), ints(0), ints(-1))
    check_with_onnxruntime("Slice", floats(4, 3), ints(9), ints(-(2**62)), ints(1), ints(-2))
    check_with_onnxruntime("Slice", floats(4, 3), ints(2, 5), ints(1, 9), ints(0, -1))


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad_some_axes(mode: str) -> None:
    pads = ints(2, 0, 1, 2) if mode != "constant" else ints(2, -1, 1, 2)
    check_with_onnxruntime("Pad", floats(3, 4, 5), pads, None, ints(-1, 0), opset=19, mode=mode)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("size", [(7,), (5, 6), (4, 5, 6)])
def test_pool_uneven(op: str, ceil_mode: int, size: tuple[int, ...]) -> None:
    rank = len(size)
    attributes: dict[str, Any] = {"kernel_shape": [3] * rank, "pads": [0] * rank + [1] * rank}
    attributes |= {"strides": [2] * rank, "ceil_mode": ceil_mode}
    check_with_onnxruntime(op, floats(1, 2, *size), opset=19, **attributes)
    if op == "AveragePool":
        check_with_onnxruntime(op, floats(1, 2, *size), opset=19, count_include_pad=1, **attributes)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 0, 0]])
def test_pool_of_a_window_that_is_too_large(op: str, pads: list[int]) -> None:
    """onnxruntime rounds the number of places towards 0, and so has one."""
    attributes = {"kernel_shape": [4, 2], "strides": [3, 2], "pads": pads}
    more = [{"count_include_pad": 1}] if op == "AveragePool" else []
    for each in [{}, *more]:
        check_with_onnxruntime(op, floats(1, 2, 2, 5), opset=19, **attributes, **each)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_global_lp_pool(p: int) -> None:
    check_with_onnxruntime("GlobalLpPool", floats(2, 3, 4, 5), p=p)


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 0, 0, 1], "output_padding": [1, 0]},
        {"auto_pad": "SAME_UPPER"},
        {"auto_pad": "SAME_LOWER"},
        {"output_shape": [8, 7]},
        {"output_shape": [10, 7], "auto_pad": "SAME_UPPER"},
    ],
    ids=str,
)
def test_conv_transpose(attributes: dict[str, Any]) -> None:
    weights = floats(2, 2, 3, 2)
    check_with_onnxruntime(
        "ConvTranspose", floats(1, 2, 4, 4), weights, floats(2), strides=[2, 2], **attributes
    )


@pytest.mark.parametrize("op", [name for name in sorted(TABLE[""]) if name.startswith("Reduce")])
@pytest.mark.parametrize("noop", [0, 1])
def test_reduce_without_axes(op: str, noop: int) -> None:
    x = np.abs(floats(2, 3))
    check_with_onnxruntime(op, x, noop_with_empty_axes=noop)
    check_with_onnxruntime(op, x, ints(), noop_with_empty_axes=noop, keepdims=0)
    check_with_onnxruntime(op, np.array(2, np.float32))


def test_batch_of_one_and_empty() -> None:
    one = floats(1, 4, 1)
    check_with_onnxruntime("InstanceNormalization", one, floats(4), floats(4))
    check_with_onnxruntime("Gemm", floats(1, 3), floats(3, 2), floats(2))
    check_with_onnxruntime("MatMul", floats(0, 3), floats(3, 2))
    check_with_onnxruntime("Concat", floats(0, 3), floats(1, 3), axis=0)
    for column in (floats(5, 1), floats(2, 3, 1), floats(0, 1)):
        check_with_onnxruntime("Concat", column, -column, column, axis=-1)
    check_with_onnxruntime("Concat", floats(5, 1), floats(5, 2), axis=1)
    check_with_onnxruntime("Softmax", floats(0, 3))
    check_with_onnxruntime("ReduceSum", floats(0, 3), ints(0))
    check_with_onnxruntime("ReduceMax", floats(0, 3), ints(0))
    check_with_onnxruntime("NonZero", np.zeros((2, 3), np.float32))
    check_with_onnxruntime("TopK", np.array([2, 2, 1, 2], np.float32), ints(2), outputs=2)


# --- what small algorithms use, in the types they use ------------------------------

ALGORITHM_TYPES = [np.float64, np.int32, np.int64]
# operator → types that onnxruntime lacks it in
NOT_IN_ONNXRUNTIME = {
    "Gemm": [np.int32, np.int64],
    "Mod": [np.float64],  # without fmod
    "NonZero": [np.float64],
    "OneHot": [np.float64, np.int32],
    "Sum": [np.int32, np.int64],
    "Unique": [np.int32],
}


def algorithm_cases(dtype: Any) -> list[tuple[str, list[Any], dict[str, Any]]]:
    """(operator, inputs, attributes); ``outputs`` beside the attributes where there are several."""
    rng = np.random.default_rng(0)

    def some(*shape: int) -> Any:
        whole = np.issubdtype(dtype, np.integer)
        return rng.integers(-9, 10, shape).astype(dtype) if whole else rng.normal(size=shape)

    def nonzero(*shape: int) -> Any:
        return np.where((x := some(*shape)) == 0, dtype(3), x)

    doubled = np.array([[2, 1], [1, 3], [2, 1]], dtype)
    rows, cells = np.array([[1], [-1], [0]]), np.array([[0, 1], [3, -1]])
    columns = np.array([[0, 0], [1, 3]])
    cases: list[tuple[str, list[Any], dict[str, Any]]] = [
        ("MatMul", [some(3, 4), some(4, 2)], {}),
        ("MatMul", [some(4), some(2, 4, 3)], {}),
        ("Gemm", [some(3, 4), some(4, 2), some(2)], {}),
        ("Einsum", [some(3, 4), some(4, 2)], {"equation": "ij,jk->ik"}),
        ("Einsum", [some(3, 4)], {"equation": "ij->j"}),
        ("Einsum", [some(3, 3)], {"equation": "ii"}),
        ("Div", [some(20), nonzero(20)], {}),
        ("Mod", [some(20), nonzero(20)], {}),
        ("Mod", [some(20), nonzero(20)], {"fmod": 1}),
        *[("Pow", [np.abs(some(4)), np.array([0, 1, 2, 3], t)], {})
          for t in (np.float32, np.float64, np.int32, np.int64)],
        *[(op, [some(3), some(2, 3), some(1)], {}) for op in ("Min", "Max", "Sum")],
        *[(f"Reduce{op}", [some(3, 4), ints(1)], {"keepdims": 0})
          for op in ("Max", "Min", "Sum", "SumSquare", "L1", "L2", "Mean", "Prod")],
        ("TopK", [some(2, 5), ints(3)], {"outputs": 2}),
        ("TopK", [some(2, 5), ints(1)], {"outputs": 2, "axis": 0, "largest": 0}),
        ("ArgMax", [some(3, 9)], {"axis": 1, "select_last_index": 1}),
        ("ArgMin", [some(3, 9)], {"axis": -1, "keepdims": 0}),
        ("CumSum", [some(3, 4), np.array(1)], {}),
        ("CumSum", [some(3, 4), np.array(0)], {"exclusive": 1, "reverse": 1}),
        ("Sign", [some(9)], {}),
        ("Clip", [some(9), np.array(-2, dtype), np.array(5, dtype)], {}),
        ("Where", [some(9) > 0, some(9), some(1)], {}),
        ("NonZero", [some(3, 9)], {}),
        ("Unique", [doubled], {"outputs": 4}),
        ("Unique", [doubled], {"outputs": 4, "sorted": 0}),
        ("Unique", [doubled], {"outputs": 4, "axis": 0, "sorted": 0}),
        ("Unique", [doubled.T.copy()], {"outputs": 4, "axis": 1}),
        ("Unique", [doubled[:0]], {"outputs": 4}),
        ("OneHot", [ints(0, -1, 2), np.array(4), np.array([1, 5], dtype)], {"axis": 0}),
        ("Compress", [some(3, 4), np.array([True, False, True])], {"axis": 0}),
        ("GatherElements", [some(3, 4), np.array([[0, -1, 2, 1]])], {}),
        ("GatherND", [some(2, 3, 4), np.array([[1], [0]])], {"batch_dims": 1}),
        *[("ScatterElements", [some(4, 3), columns, some(2, 2)], {"reduction": r})
          for r in ("add", "mul", "max", "min")],
        *[("ScatterND", [some(4, 3), rows, some(3, 3)], {"reduction": r})
          for r in ("none", "add", "mul", "max", "min")],
        ("ScatterND", [some(4, 3), cells, some(2)], {}),
        ("Trilu", [some(3, 4), np.array(-1)], {}),
        ("EyeLike", [some(3, 4)], {"k": 1}),
        ("EyeLike", [some(3, 4)], {"k": -1, "dtype": TensorProto.DOUBLE}),
        ("Range", [np.array(1, dtype), np.array(9, dtype), np.array(3, dtype)], {}),
        ("Range", [np.array(9, dtype), np.array(-1, dtype), np.array(-3, dtype)], {}),
        ("Size", [some(3, 4)], {}),
    ]  # fmt: skip
    return [case for case in cases if dtype not in NOT_IN_ONNXRUNTIME.get(case[0], [])
            or case[2].get("fmod")]  # fmt: skip


@pytest.mark.parametrize("dtype", ALGORITHM_TYPES)
def test_what_algorithms_use(dtype: Any) -> None:
    for op, inputs, attributes in algorithm_cases(dtype):
        check_with_onnxruntime(op, *inputs, **attributes)


def test_unique_of_unsigned_and_of_zeros() -> None:
    """By value, not by the bits of the signed type; of equals the first is taken."""
    x = torch.tensor([2**31, 7, 2**31], dtype=torch.uint32)
    values, first, inverse, counts = lookup("Unique", 18)(x)
    assert values.dtype == torch.uint32 and values.tolist() == [7, 2**31]
    assert (first.tolist(), inverse.tolist(), counts.tolist()) == ([1, 0], [1, 0, 1], [1, 2])
    check_with_onnxruntime("Unique", np.array([1, -0.0, 0.0], np.float32), outputs=4)
    assert np.signbit(lookup("Unique", 18)(torch.tensor([1, -0.0, 0.0]))[0][0].item())


# --- recurrent operators -----------------------------------------------------

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def recurrent_inputs(
    op: str, directions: int, *, batch: int, steps: int = 5, lengths: list[int] | None = None
) -> list[Any]:
    """X, W, R, B, sequence_lens, initial_h; for LSTM initial_c and the peepholes P too."""
    size, rows = 4, 4 * GATES[op]
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.normal(scale=0.5, size=shape).astype(np.float32)

    inputs = [
        normal(steps, batch, 3),
        normal(directions, rows, 3),
        normal(directions, rows, size),
        normal(directions, 2 * rows),
        None if lengths is None else np.array(lengths, np.int32),
        normal(directions, batch, size),
    ]
    if op == "LSTM":
        inputs += [normal(directions, batch, size), normal(directions, 3 * size)]
    return inputs


def check_recurrent(op: str, inputs: list[Any], **attributes: Any) -> None:
    outputs = 3 if op == "LSTM" else 2
    check_with_onnxruntime(op, *inputs, outputs=outputs, hidden_size=4, **attributes)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("batch, lengths", [(1, None), (1, [3]), (3, None), (3, [5, 0, 2])])
def test_recurrent(op: str, direction: str, batch: int, lengths: list[int] | None) -> None:
    directions = 2 if direction == "bidirectional" else 1
    inputs = recurrent_inputs(op, directions, batch=batch, lengths=lengths)
    check_recurrent(op, inputs, direction=direction)
    check_recurrent(op, inputs, direction=direction, clip=0.3)
    check_recurrent(op, inputs[:3], direction=direction)
    if op == "GRU":
        check_recurrent(op, inputs, direction=direction, linear_before_reset=1)
        check_recurrent(op, inputs, direction=direction, linear_before_reset=1, clip=0.3)
    if op == "LSTM":
        check_recurrent(op, inputs, direction=direction, input_forget=1)
    check_recurrent(op, recurrent_inputs(op, directions, batch=2, steps=1), direction=direction)


# In onnxruntime a parameter not given is 0 here, which is not what ONNX says.
WITHOUT_DEFAULT = ("Affine", "ScaledTanh", "ThresholdedRelu")


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize(
    "name",
    ["Affine", "Elu", "HardSigmoid", "LeakyRelu", "Relu", "ScaledTanh", "Sigmoid", "Softplus",
     "Softsign", "Tanh", "ThresholdedRelu"],
)  # fmt: skip
def test_recurrent_activations(op: str, name: str) -> None:
    inputs = recurrent_inputs(op, 2, batch=2, steps=2)
    count = {"RNN": 1, "GRU": 2, "LSTM": 3}[op]
    names = [name, *["HardSigmoid", "LeakyRelu"][: count - 1]] * 2
    given = {"activation_alpha": [0.3, 0.25, 0.1] * 2, "activation_beta": [0.7, 0.6, 0.5] * 2}
    for parameters in (given,) if name in WITHOUT_DEFAULT else ({}, given):
        check_recurrent(op, inputs, direction="bidirectional", activations=names, **parameters)


def test_an_activation_that_cannot_be_is_named() -> None:
    inputs = [torch.from_numpy(x) for x in recurrent_inputs("RNN", 1, batch=1)[:3]]
    with pytest.raises(UnsupportedError, match="'Swish'"):
        lookup("RNN", 18)(*inputs, activations=["Swish"])
    for name in WITHOUT_DEFAULT:
        with pytest.raises(UnsupportedError, match=rf"'{name}'.*activation_alpha"):
            lookup("RNN", 18)(*inputs, activations=[name], activation_beta=[0.5])


@pytest.mark.parametrize("op", GATES)
def test_recurrent_of_no_time_steps(op: str) -> None:
    inputs = recurrent_inputs(op, 1, batch=2, steps=0)
    given = [None if x is None else as_torch(x) for x in inputs]
    y, h, *_ = lookup(op, 18)(*given)
    assert y.shape == (0, 1, 2, 4) and torch.equal(h, given[5])


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_batch_first(op: str, direction: str) -> None:
    """layout 1, which onnxruntime lacks, is layout 0 with the axes moved."""
    inputs = recurrent_inputs(op, 1 + (direction == "bidirectional"), batch=3, lengths=[5, 0, 2])
    given = [None if x is None else as_torch(x) for x in inputs]
    y, *states = lookup(op, 18)(*given, direction=direction)
    for i in (0, 5, 6):
        if i < len(given):
            given[i] = given[i].transpose(0, 1)
    y_1, *states_1 = lookup(op, 18)(*given, direction=direction, layout=1)
    assert torch.equal(y_1, y.permute(2, 0, 1, 3))
    assert all(torch.equal(a, b.transpose(0, 1)) for a, b in zip(states_1, states, strict=True))


# --- derivatives -------------------------------------------------------------

DIFFERENTIABLE: dict[str, tuple[list[Any], dict[str, Any]]] = {
    # each: (shape of a differentiable input, or an integer tensor), attributes
    "Div": ([(2, 3), (3,)], {}),
    "Gelu": ([(2, 3)], {}),
    "Clip": ([(2, 3), (), ()], {}),
    "PRelu": ([(2, 3), (3,)], {}),
    "ReduceL2": ([(2, 3), ints(1)], {}),
    "ReduceProd": ([(2, 3), ints(0, 1)], {}),
    "CumSum": ([(2, 3), ints(1)[0]], {"exclusive": 1, "reverse": 1}),
    "TopK": ([(2, 3), ints(2)], {}),
    "Unique": ([(2, 3)], {"sorted": 0}),
    "Slice": ([(4, 3), ints(3), ints(0), ints(0), ints(-2)], {}),
    "Pad": ([(2, 3), ints(1, -1, 0, 2), ()], {}),
    "Gather": ([(3, 2), ints(-1, 0)], {}),
    "ScatterND": ([(3, 2), ints(2)[:, None], (1, 2)], {"reduction": "mul"}),
    "Gemm": ([(2, 3), (4, 3), (4,)], {"transB": 1, "alpha": 0.5}),
    "Einsum": ([(2, 3), (3, 2)], {"equation": "ij,ji->i"}),
    "Conv": ([(1, 2, 4, 4), (2, 1, 3, 3), (2,)], {"group": 2, "auto_pad": "SAME_UPPER"}),
    "ConvTranspose": ([(1, 2, 3), (2, 1, 3), (1,)], {"strides": [2], "pads": [1, 0]}),
    "MaxPool": ([(1, 2, 5)], {"kernel_shape": [2], "ceil_mode": 1, "strides": [2]}),
    "AveragePool": ([(1, 2, 5)], {"kernel_shape": [3], "pads": [1, 1]}),
    "BatchNormalization": ([(2, 3, 4), (3,), (3,), (3,), (3,)], {}),
    "LayerNormalization": ([(2, 4), (4,), (4,)], {}),
    "LRN": ([(1, 4, 2)], {"size": 3, "alpha": 0.5}),
    "LogSoftmax": ([(2, 3)], {}),
    "DequantizeLinear": ([np.array([[3, 4]], np.uint8), ()], {}),
    "RNN": ([(3, 2, 2), (1, 2, 2), (1, 2, 2), (1, 4), np.array([3, 1]), (1, 2, 2)], {}),
    "GRU": (
        [(3, 1, 2), (2, 6, 2), (2, 6, 2), (2, 12), np.array([2]), (2, 1, 2)],
        {"direction": "bidirectional", "linear_before_reset": 1},
    ),
    "LSTM": (
        [(3, 1, 2), (1, 8, 2), (1, 8, 2), (1, 16), np.array([2]), (1, 1, 2), (1, 1, 2), (1, 6)],
        {"direction": "reverse", "clip": 9.0},
    ),
}


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_derivative(op: str) -> None:
    inputs, attributes = DIFFERENTIABLE[op]
    torch.manual_seed(0)
    arguments = [
        torch.rand(x, dtype=torch.float64).add(0.5).requires_grad_()
        if isinstance(x, tuple)
        else as_torch(x)
        for x in inputs
    ]
    if op == "Clip":  # limits that are not equal to a value
        arguments[1:] = [torch.tensor(v).double().requires_grad_() for v in (0.8, 1.2)]
    function = lookup(op, 24)
    assert torch.autograd.gradcheck(lambda *xs: function(*xs, **attributes), arguments)


@pytest.mark.parametrize("op", ["Round", "Floor", "Ceil", "Sign"])
def test_steps_have_derivative_zero(op: str) -> None:
    x = torch.tensor([-1.5, 0.0, 0.3, 2.0], requires_grad=True)
    lookup(op, 24)(x).sum().backward()
    assert x.grad is not None and not x.grad.any()


@pytest.mark.parametrize("op", ["Equal", "Greater", "LessOrEqual"])
def test_comparisons_have_no_derivative(op: str) -> None:
    x = torch.tensor([-1.5, 0.3], requires_grad=True)
    assert not lookup(op, 24)(x, x).requires_grad


def test_casts_to_integers_have_no_derivative() -> None:
    x = torch.tensor([-1.5, 0.3], requires_grad=True)
    assert not lookup("Cast", 24)(x, to=TensorProto.INT32).requires_grad
    assert lookup("Cast", 24)(x, to=TensorProto.FLOAT16).requires_grad


@pytest.mark.parametrize("op", ["ReduceL2", "LpNormalization", "Softplus", "Elu", "Mish"])
def test_derivatives_are_finite_at_hard_points(op: str) -> None:
    x = torch.tensor([[0.0, 0.0], [1000.0, -1000.0]], requires_grad=True)
    if op == "ReduceL2":
        lookup(op, 24)(x, torch.tensor([1])).sum().backward()
    else:
        lookup(op, 24)(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
