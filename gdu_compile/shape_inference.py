"""Shapes and dtypes that a model does not say, from onnx.shape_inference.

Operators that onnx does not know, and types that onnx_ir has no words for, are passed over.
"""

from __future__ import annotations

import logging

import onnx
import onnx_ir as ir

from gdu_compile import streaming

ALIKE = {"Normalizer", "Scaler"}
logger = logging.getLogger(__name__)


def infer(model: ir.Model) -> None:
    """Add what is known of the main graph's values; what the model says itself stays, but for a
    name that stands for a fixed size, and a shape with another number of axes than there are."""
    proto = streaming.described(model)
    for output in proto.graph.output:  # onnx keeps what is said there, right or wrong
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    try:
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception as error:  # the C++ library raises what it likes
        logger.info("no shapes inferred: %s", error)
        return
    found = {info.name: info.type for info in [*proto.graph.value_info, *proto.graph.output]}
    for node in model.graph:
        if node.domain == "ai.onnx.ml" and node.op_type in ALIKE:
            like_input(node)
        for value in node.outputs:
            if value.name in found and found[value.name].HasField("tensor_type"):
                add(value, found[value.name].tensor_type)


def like_input(node: ir.Node) -> None:
    """The output of an operator that onnx infers nothing for: float32 in the input's shape."""
    source, value = node.inputs[0], node.outputs[0]
    value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
    value.shape = value.shape or (None if source is None else source.shape)


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
