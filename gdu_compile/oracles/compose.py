"""From a head (features, labels) ↦ weights to an algorithm (X, Y) ↦ weights of a base.

A head is ONNX text: what is read is what runs.  The features in front of it are a copy of the
base's own nodes, with its initial weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx.parser
import onnx_ir as ir

from gdu_compile.builder import INT64, Builder
from gdu_compile.contracts import PASS_KEY
from gdu_compile.digits import Array
from gdu_compile.errors import UnsupportedError
from gdu_compile.graph_view import nested
from gdu_compile.names import Names
from gdu_compile.oracles.head import Layer
from gdu_compile.oracles.problem import Problem

LABELS = "Y"
HEADER = '<ir_version: 10, opset_import: ["" : 18]>\n'

Constant = bool | float | Sequence[float] | Sequence[Sequence[float]] | Array


def head(text: str, **constants: Constant) -> ir.Graph:
    """A head from ONNX text; ``constants`` become Constant nodes in front of it.

    Python's numbers are INT64, FLOAT or BOOL there; arrays keep their dtype.

    Example:
        >>> graph = head("twice (float[n] x) => (float[n] y) { y = Mul(x, two) }",
        ...              two=2.0)
        >>> [node.op_type for node in graph]
        ['Constant', 'Mul']
    """
    proto = onnx.parser.parse_model(HEADER + text)
    for name, constant in reversed(constants.items()):
        tensor = onnx.numpy_helper.from_array(as_array(constant), name)
        node = onnx.helper.make_node("Constant", [], [name], value=tensor)
        proto.graph.node.insert(0, node)
    return ir.from_proto(proto).graph


def as_array(constant: Constant) -> Array:
    """The constant as numpy has it, with ONNX's usual float."""
    array: Array = np.asarray(constant)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def begin(text: str, bias: bool) -> str:
    """The head's first lines with its outputs, ``W`` and perhaps ``b``, for the word OUTPUTS."""
    return text.replace("OUTPUTS", "float[C, d] W, float[C] b" if bias else "float[C, d] W")


def features(problem: Problem, layer: Layer) -> ir.Graph:
    """The base's nodes from the inputs to what enters the layer, with the base's own weights.

    Inputs: one per field, [n, *shape].  Output: φ, [n, d] or [d, n] as the layer takes it.

    Raises:
        UnsupportedError: the base's batch is fixed to another size than the samples.
    """
    base = problem.base.graph
    part = ir.convenience.extract(base, list(base.inputs), [layer.features])
    order = {name: index for index, name in enumerate(base.initializers)}
    held = sorted(part.initializers.values(), key=lambda value: order[str(value.name)])
    part.initializers.clear()  # extract leaves them in no order
    for value in held:
        part.initializers.add(value)
    shapes = {field.name: field.shape for field in problem.fields}
    for value in part.inputs:
        batch, *rest = value.shape or [None]  # a file need not say the shape of an input
        if isinstance(batch, int) and batch != problem.samples:
            raise UnsupportedError(
                f"input {value.name!r} of the base takes batches of {batch} only, and the oracle "
                f"has to read all {problem.samples} samples at once; export the base with a "
                "dynamic batch, or give as many samples"
            )
        value.shape = ir.Shape([batch, *shapes.get(str(value.name), rest)])
    return part


def compose(
    problem: Problem, layer: Layer, graph: ir.Graph, layers: Sequence[Layer], origin: str
) -> ir.Model:
    """The algorithm: features into a head, the head's results as the base's weights.

    Args:
        problem: what the oracle is built for.
        layer: whose features the head gets.
        graph: the head: (φ [n, d], Y [n]) → for every layer its weight [C, d] and, where the
            layer has one, its bias [C], so that outputs = φ · weightᵀ + bias.
        layers: the layers that it computes, in the order of its outputs.
        origin: name of the oracle, for the nodes' metadata.

    Raises:
        UnsupportedError: an input or a weight is called ``Y``, or a fixed batch of another size.
    """
    part = features(problem, layer)
    taken = [str(value.name) for value in (*part.inputs, *problem.base.graph.initializers.values())]
    refuse_labels([*part.inputs, *(value for each in layers for value in (each.weight, each.bias))])
    put_under(part, free_prefix("features", taken))
    put_under(graph, prefix := free_prefix(origin, taken))
    labels = ir.Value(
        name=LABELS, type=ir.TensorType(INT64), shape=ir.Shape(batch_of(part.inputs[0]))
    )
    part.inputs.append(labels)
    phi = part.outputs.pop()
    model = ir.Model(part, ir_version=problem.base.ir_version)
    if layer.transposed:
        builder = Builder(Names(model), origin)
        phi = builder.op("Transpose", phi, name=f"{prefix}phi", perm=[1, 0])
        part.extend(builder.nodes)
    results = iter(join(part, graph, [phi, labels]))
    builder = Builder(Names(model), origin)
    for each in layers:
        part.outputs.append(emit_weight(builder, prefix, each, next(results)))
        if each.bias is not None:
            part.outputs.append(emit_bias(builder, prefix, each, next(results)))
    part.extend(builder.nodes)
    for node in model.graph.all_nodes():
        node.metadata_props.setdefault(PASS_KEY, origin)
    part.name = f"{origin} of {problem.base.graph.name}"
    return model


def refuse_labels(values: Sequence[ir.Value | None]) -> None:
    """Raise UnsupportedError when an input or a weight has the name that the labels have."""
    if any(value is not None and value.name == LABELS for value in values):
        raise UnsupportedError(
            f"an input or a weight of the base is called {LABELS!r}, as the labels are; rename it"
        )


def batch_of(value: ir.Value) -> list[int | ir.SymbolicDim]:
    """[n]: the batch axis of a model input."""
    assert value.shape is not None
    return [value.shape[0]]


def free_prefix(wanted: str, taken: Sequence[str]) -> str:
    """``wanted/``, or that behind as many ``_`` as it takes that no taken name begins so."""
    prefix = f"{wanted}/"
    while any(name.startswith(prefix) for name in taken):
        prefix = f"_{prefix}"
    return prefix


def put_under(graph: ir.Graph, prefix: str) -> None:
    """Give everything but the inputs of a graph names that begin with ``prefix``."""
    values = list(graph.initializers.values())
    for outer in graph:
        for node in nested(outer):
            values += [value for value in node.outputs if value.name]
            node.name = prefix + (node.name or f"{node.outputs[0].name}/{node.op_type}")
    for inner in graph.subgraphs():
        if inner is not graph:
            values += [*inner.inputs, *inner.initializers.values()]
    ir.convenience.rename_values(values, [f"{prefix}{value.name}" for value in values])


def join(part: ir.Graph, graph: ir.Graph, inputs: Sequence[ir.Value]) -> list[ir.Value]:
    """Move a graph's nodes to the end of another, fed with these inputs; returns its outputs."""
    results = list(graph.outputs)
    graph.outputs.clear()
    for formal, given in zip(graph.inputs, inputs, strict=True):
        formal.replace_all_uses_with(given)
    nodes = list(graph)
    graph.remove(nodes)
    part.extend(nodes)
    return results


def emit_weight(builder: Builder, prefix: str, layer: Layer, rows: ir.Value) -> ir.Value:
    """[C, d] in the layout, scale, shape and name of the layer's weight."""
    if layer.alpha != 1:
        alpha = builder.float(layer.alpha, f"{prefix}alpha")
        rows = builder.op("Div", rows, alpha, name=f"{prefix}by_alpha")
    if not layer.rows:
        rows = builder.op("Transpose", rows, name=f"{prefix}columns", perm=[1, 0])
    return emit_output(builder, prefix, layer.weight, rows)


def emit_bias(builder: Builder, prefix: str, layer: Layer, bias: ir.Value) -> ir.Value:
    """[C] in the scale, shape and name of the layer's bias."""
    assert layer.bias is not None
    if layer.beta != 1:
        beta = builder.float(layer.beta, f"{prefix}beta")
        bias = builder.op("Div", bias, beta, name=f"{prefix}by_beta")
    return emit_output(builder, prefix, layer.bias, bias)


def emit_output(builder: Builder, prefix: str, weight: ir.Value, value: ir.Value) -> ir.Value:
    """The value in the weight's shape, under the weight's name."""
    assert weight.const_value is not None
    shape = [int(size) for size in weight.const_value.shape.numpy()]
    sizes = builder.ints(shape, f"{prefix}shape")
    return builder.op("Reshape", value, sizes, name=str(weight.name), shape=shape)
