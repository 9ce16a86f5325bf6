"""Shapes and dtypes that a model does not say, from onnx.shape_inference.

Operators that onnx does not know, and types that onnx_ir has no words for, are passed over.
"""

from __future__ import annotations

import logging

import onnx
import onnx_ir as ir

from gdu_compile import streaming
from gdu_compile.svm_nodes import score_columns

ML = "ai.onnx.ml"
ALIKE = {"Normalizer": 0, "Scaler": 0}
"""Operator → which output is like its input."""
MACHINES = {"SVMClassifier": 1, "SVMRegressor": 0}
"""Operator → which output is [N, scores]."""
logger = logging.getLogger(__name__)


def infer(model: ir.Model) -> None:
    """Add what is known of the main graph's values; what the model says itself stays, but for a
    name that stands for a fixed size, and a shape with another number of axes than there are."""
    while by_onnx(model):
        news = [by_rule(node) for node in model.graph if node.domain == ML]
        if not any(news):
            return


def by_onnx(model: ir.Model) -> bool:
    """Add what onnx.shape_inference finds; whether it works at all."""
    proto = streaming.described(model)
    for output in proto.graph.output:  # onnx keeps what is said there, right or wrong
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    try:
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception as error:  # the C++ library raises what it likes
        logger.info("no shapes inferred: %s", error)
        return False
    found = {info.name: info.type for info in [*proto.graph.value_info, *proto.graph.output]}
    for node in model.graph:
        for value in node.outputs:
            if value.name in found and found[value.name].HasField("tensor_type"):
                add(value, found[value.name].tensor_type)
    return True


def by_rule(node: ir.Node) -> bool:
    """Add float32, and the shape where the input's is known, to the output of an operator that
    onnx infers nothing for; whether that is news."""
    scores = {**ALIKE, **MACHINES}.get(node.op_type, len(node.outputs))
    if scores >= len(node.outputs):
        return False
    source = None if not node.inputs or node.inputs[0] is None else node.inputs[0].shape
    value, shape = node.outputs[scores], source
    if node.op_type in MACHINES:
        batch = source[0] if source is not None and source.rank() == 2 else None
        shape = ir.Shape([batch, score_columns(node)])
    news = value.type is None or (value.shape is None and shape is not None)
    value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
    value.shape = value.shape or shape
    return news


def add(value: ir.Value, found: onnx.TypeProto.Tensor) -> None:
    """The dtype and the sizes that were found for one value."""
    if value.type is None and found.elem_type:
        value.type = ir.TensorType(ir.DataType(found.elem_type))
    if not found.HasField("shape"):
        return
    dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in found.shape.dim]  # fmt: skip
    if value.shape is None or len(value.shape) != len(dims):
        value.shape = ir.Shape(dims)
    value.shape = ir.Shape(
        new if isinstance(new, int) or not known(old) else old
        for old, new in zip(value.shape, dims, strict=True)
    )


def known(dim: int | ir.SymbolicDim | None) -> bool:
    """Whether a dimension has a size or a name."""
    return isinstance(dim, int) or (isinstance(dim, ir.SymbolicDim) and dim.value is not None)
