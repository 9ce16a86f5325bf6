"""Function operators: a node that the operator table lacks becomes the body that its schema has.

ONNX defines many operators by a graph of simpler ones; some of these graphs depend on the
attributes and input types of the node.  The functions that a model brings along are inlined too.
"""

from __future__ import annotations

import logging
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from gdu_compile.torch_backend import control_flow, registry

logger = logging.getLogger(__name__)
Schema = Any
"""onnx.defs.OpSchema; its type stub lacks what is used here."""


def expand_functions(model: ir.Model) -> int:
    """Replace, in place, what the table lacks and ONNX defines by other operators.

    Returns:
        How many nodes were replaced; those that have no body stay as they are.
    """
    expanded = 0
    if model.functions:
        common.InlinePass()(model)
    while count := add_bodies(model):
        expanded += count
        common.InlinePass()(model)
    return expanded


def add_bodies(model: ir.Model) -> int:
    """Point each such node to a function of its own, for InlinePass; returns how many."""
    nodes = [node for graph in model.graphs() for node in graph if is_missing(node, model)]
    found = [(node, schema) for node in nodes if (schema := schema_of(node, model)) is not None]
    if any(schema.has_context_dependent_function for _, schema in found):
        common.ShapeInferencePass()(model)
    count = 0
    for node, schema in found:
        body = body_of(node, schema, version(model, ""))
        if body is not None and all(can_run(inner, model) for inner in body.node):
            count += 1
            call(node, body, schema, model, overload=f"gdu_{count}")
    return count


def is_missing(node: ir.Node | onnx.NodeProto, model: ir.Model) -> bool:
    """Whether neither the operator table nor control_flow can run the node."""
    if node.domain == "" and node.op_type in control_flow.CALLS:
        return False
    return not registry.has(node.op_type, version(model, node.domain), domain=node.domain)


def can_run(node: onnx.NodeProto, model: ir.Model) -> bool:
    """Whether a node of a body is in the table, or a function in its turn.

    Otherwise the operator that the model has is the one to be named as missing.
    """
    return not is_missing(node, model) or schema_of(node, model) is not None


def version(model: ir.Model, domain: str) -> int:
    """Opset version of a domain."""
    return int(model.opset_imports.get(domain, 1))


def schema_of(node: ir.Node | onnx.NodeProto, model: ir.Model) -> Schema | None:
    """ONNX's schema of the node, when it defines the operator by a function."""
    try:
        schema: Schema = onnx.defs.get_schema(
            node.op_type, version(model, node.domain), node.domain
        )
    except onnx.defs.SchemaError:
        return None
    return schema if schema.has_function or schema.has_context_dependent_function else None


def body_of(node: ir.Node, schema: Schema, opset: int) -> onnx.FunctionProto | None:
    """The body for this node; None when there is none for its opset or its input types."""
    if schema.has_function:
        fitting = [since for since in schema.function_opset_versions if since <= opset]
        text = schema.get_function_with_opset_version(max(fitting)) if fitting else b""
    else:
        since = schema.context_dependent_function_opset_versions
        fitting = [number for number in since if number <= opset]
        types = [kind for value in node.inputs if (kind := type_of(value)) is not None]
        if not fitting or len(types) < len(node.inputs):
            return None
        proto = ir.to_proto(node).SerializeToString()
        kinds = [kind.SerializeToString() for kind in types]
        try:
            text = schema.get_context_dependent_function_with_opset_version(
                max(fitting), proto, kinds
            )
        except Exception as error:  # the C++ library raises what it likes, of types it can't follow
            logger.info("no body for %s: %s", node.op_type, error)
            return None
    return onnx.FunctionProto.FromString(text) if text else None


def type_of(value: ir.Value | None) -> onnx.TypeProto | None:
    """The type of an input: empty where the input is absent, None where it is not known."""
    if value is None:
        return onnx.TypeProto()
    proto = ir.to_proto(value).type
    return proto if proto.WhichOneof("value") else None


def call(
    node: ir.Node, body: onnx.FunctionProto, schema: Schema, model: ir.Model, *, overload: str
) -> None:
    """Make the node a call of ``body`` as a function of the model."""
    for name, attribute in schema.attributes.items():
        if name not in node.attributes and attribute.default_value.name:
            node.attributes[name] = ir.serde.deserialize_attribute(attribute.default_value)
    for name in [a.name for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]:
        del node.attributes[name]  # the body holds its nodes
    for i, output in enumerate(node.outputs):
        output.name = output.name or f"{overload}_absent_{i}"
    complete_outputs(body, len(node.outputs))
    for inner in body.node:
        inner.name = f"{node.name or node.outputs[0].name}.{inner.op_type}"
    function = ir.serde.deserialize_function(body)
    function.domain, function.name, function.overload = node.domain, node.op_type, overload
    for domain in function.opset_imports:
        function.opset_imports[domain] = model.opset_imports.setdefault(
            domain, function.opset_imports[domain]
        )
    node.overload = overload
    model.functions[function.identifier()] = function


def complete_outputs(body: onnx.FunctionProto, count: int) -> None:
    """Keep ``count`` outputs; for one that the body does not make (the node leaves it out) any."""
    made = {*body.input, *(name for node in body.node for name in node.output)}
    first = next(name for name in body.output if name in made)
    for name in body.output[:count]:
        if name not in made:
            body.node.add(op_type="Identity", input=[first], output=[name])
    del body.output[count:]
