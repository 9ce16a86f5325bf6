"""Shapes and dtypes that a model does not say, from onnx.shape_inference and onnxruntime.

Operators that neither knows, and types that onnx_ir has no words for, are passed over.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import onnx
import onnx_ir as ir

from gdu_compile import runtime, streaming
from gdu_compile.errors import InputError
from gdu_compile.svm_nodes import score_columns

ML = "ai.onnx.ml"
ALIKE = {"Imputer": 0, "Normalizer": 0, "Scaler": 0}
"""Operator → which output is like its input."""
MACHINES = {"SVMClassifier": 1, "SVMRegressor": 0}
"""Operator → which output is [N, scores]."""
COLUMNS: dict[str, Callable[[ir.Node], int]] = {
    **dict.fromkeys(MACHINES, score_columns),
    "FeatureVectorizer": lambda node: sum(node.attributes.get_ints("inputdimensions", [])),
    "LinearRegressor": lambda node: node.attributes.get_int("targets", 1),
}  # fmt: skip
"""Operator → how many columns its output has."""
logger = logging.getLogger(__name__)


def infer(model: ir.Model) -> None:
    """Add what is known of the main graph's values; what the model says itself stays, but for a
    name that stands for a fixed size, and a shape with another number of axes than there are."""
    while by_onnx(model):
        news = [by_rule(node) for node in model.graph if node.domain == ML]
        if not any(news):
            break
    if any(node.domain not in ("", "ai.onnx", ML) for node in model.graph):
        ask_onnxruntime(model)


def ask_onnxruntime(model: ir.Model) -> None:
    """Add what onnxruntime knows of values behind operators of its own."""
    outputs = model.graph.outputs
    unknown = [
        value for node in model.graph for value in node.outputs
        if value.name and None in (value.type, value.shape)
    ]  # fmt: skip
    before = len(outputs)
    outputs.extend(value for value in unknown if not value.is_graph_output())
    try:
        with runtime.on_disk(model) as path:
            found = {info.name: info for info in runtime.session(path, "none").get_outputs()}
    except InputError as error:
        logger.info("no shapes from onnxruntime: %s", error)
        return
    finally:
        del outputs[before:]
    for value in unknown:
        kind = re.fullmatch(r"tensor\((\w+)\)", found[value.name].type)
        if kind is not None and found[value.name].shape:  # [] may be anything
            value.type = value.type or ir.TensorType(ir.DataType[kind[1].upper()])
            value.shape = value.shape or ir.Shape(found[value.name].shape)


def by_onnx(model: ir.Model) -> bool:
    """Add what onnx.shape_inference finds; whether it works at all."""
    found = found_by_onnx(model)
    for node in model.graph if found else ():
        for value in node.outputs:
            if value.name in found:
                add(value, found[value.name])
    return bool(found)


def correct_outputs(model: ir.Model) -> None:
    """Give the outputs the fixed sizes and the number of axes that they have, whatever is declared:
    onnxruntime says so in a warning and goes on.  Names stay, other values too."""
    found = found_by_onnx(model, believing=False)
    for value in model.graph.outputs:
        if value.name not in found or value.shape is None:
            continue
        dims = sizes_in(found[value.name])
        if dims is not None and len(dims) != len(value.shape):
            value.shape = ir.Shape(dims)
        elif dims is not None:
            pairs = list(zip(value.shape, dims, strict=True))
            value.shape = ir.Shape(
                new if isinstance(old, int) and isinstance(new, int) else old for old, new in pairs
            )


def found_by_onnx(
    model: ir.Model, *, believing: bool = True
) -> dict[str, onnx.TypeProto.Tensor]:  # fmt: skip
    """What onnx.shape_inference finds of tensors, by name; nothing where it does not work.

    Args:
        model: the model.
        believing: whether what is declared of values inside is believed.
    """
    proto = streaming.described(model)
    if not believing:
        del proto.graph.value_info[:]
    for output in proto.graph.output:  # onnx keeps what is said there, right or wrong
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    try:
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception as error:  # the C++ library raises what it likes
        logger.info("no shapes inferred: %s", error)
        return {}
    found = [*proto.graph.value_info, *proto.graph.output]
    return {info.name: info.type.tensor_type for info in found
            if info.type.HasField("tensor_type")}  # fmt: skip


def by_rule(node: ir.Node) -> bool:
    """Add float32, and the shape where the input's is known, to the output of an operator that
    onnx infers nothing for; whether that is news."""
    scores = {**dict.fromkeys(COLUMNS, 0), **ALIKE, **MACHINES}.get(node.op_type, len(node.outputs))
    if scores >= len(node.outputs):
        return False
    source = None if not node.inputs or node.inputs[0] is None else node.inputs[0].shape
    value, shape = node.outputs[scores], source
    if node.op_type in COLUMNS:
        batch = source[0] if source is not None and source.rank() == 2 else None
        shape = ir.Shape([batch, COLUMNS[node.op_type](node)])
    news = value.type is None or (value.shape is None and shape is not None)
    kept = node.inputs[0].type if node.op_type == "Imputer" and node.inputs[0] else None
    value.type = value.type or kept or ir.TensorType(ir.DataType.FLOAT)
    value.shape = value.shape or shape
    return news


def add(value: ir.Value, found: onnx.TypeProto.Tensor) -> None:
    """The dtype and the sizes that were found for one value."""
    if value.type is None and found.elem_type:
        value.type = ir.TensorType(ir.DataType(found.elem_type))
    dims = sizes_in(found)
    if dims is None:
        return
    if value.shape is None or len(value.shape) != len(dims):
        value.shape = ir.Shape(dims)
    value.shape = ir.Shape(
        new if isinstance(new, int) or not known(old) else old
        for old, new in zip(value.shape, dims, strict=True)
    )


def sizes_in(found: onnx.TypeProto.Tensor) -> list[int | str | None] | None:
    """The sizes and names of the axes, where anything is known of them."""
    if not found.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in found.shape.dim]  # fmt: skip


def known(dim: int | ir.SymbolicDim | None) -> bool:
    """Whether a dimension has a size or a name."""
    return isinstance(dim, int) or (isinstance(dim, ir.SymbolicDim) and dim.value is not None)
