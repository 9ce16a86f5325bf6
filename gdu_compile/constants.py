"""Values that depend on constants only: which they are, what they are like, and what they hold.

``Transpose(W)``, ``DequantizeLinear(W, scale)`` or ``ConstantOfShape(shape)`` are as fixed as an
initializer.  They are computed from the part of the graph that makes them, when they are named.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import onnx
import onnx_ir as ir

from gdu_compile import runtime
from gdu_compile.digits import Array
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.graph_view import branches, nested

EVALUATED_BYTES = 1 << 30
"""The most that a part of a graph may take while it is evaluated."""
KNOWN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
"""Domains whose operators give the same for the same inputs (random ones that an output needs are
refused before)."""
SMALL = 1024
"""Elements of a tensor that may be a shape, and that shape inference is told."""


def constant_values(model: ir.Model) -> dict[str, ir.Value]:
    """Name → value, for all tensors that nodes compute from constants only, in graph order.

    Args:
        model: after NormalizePass: no Constant node is left, and every name is unique.

    Example:
        >>> import onnx_ir as ir
        >>> w = ir.val("w", const_value=ir.tensor([[1.0, 2.0]], name="w"))
        >>> node = ir.node("Transpose", [w], outputs=[ir.val("t")])
        >>> graph = ir.Graph([], node.outputs, nodes=[node], initializers=[w],
        ...                  opset_imports={"": 18})
        >>> list(constant_values(ir.Model(graph, ir_version=8)))
        ['t']
    """
    known = set(model.graph.initializers.values())
    found: dict[str, ir.Value] = {}

    def visit(graph: ir.Graph) -> None:
        for node in graph:
            for _, body in branches(node):
                visit(body)
            used = used_outside(node)
            if used and known.issuperset(used) and node.domain in KNOWN_DOMAINS:
                known.update(node.outputs)
                found.update((str(v.name), v) for v in node.outputs if may_stand(v, model.graph))

    visit(model.graph)
    return found


def used_outside(node: ir.Node) -> list[ir.Value]:
    """What a node and its subgraphs use and do not make themselves."""
    made: set[ir.Value] = set()
    for inner in nested(node):
        made.update(inner.outputs)
        for _, body in branches(inner):
            made.update(body.inputs)
    used = [value for inner in nested(node) for value in inner.inputs if value is not None]
    return [value for value in dict.fromkeys(used) if value not in made or value in node.outputs]


def may_stand(value: ir.Value, graph: ir.Graph) -> bool:
    """Whether a value can be an initializer of ``graph`` instead: a tensor, no branch's result."""
    plain = value.type is None or isinstance(value.type, ir.TensorType)
    return bool(value.name) and plain and (value.graph is graph or not value.is_graph_output())


def described(
    model: ir.Model, values: Iterable[ir.Value]
) -> dict[str, tuple[ir.DataType, tuple[int, ...]]]:
    """Name → (dtype, shape), for those constant values of which shape inference knows both."""
    inferred = inferred_types(model, list(values))
    wanted = {str(value.name) for value in values}
    return {name: facts for name, facts in inferred.items() if name in wanted}


def inferred_types(
    model: ir.Model, values: Sequence[ir.Value]
) -> dict[str, tuple[ir.DataType, tuple[int, ...]]]:
    """Name → (dtype, shape) of all values in the part of the graph that makes ``values``."""
    if not values:
        return {}
    nodes, leaves = part_of(values)
    proto = proto_of(model, nodes, leaves, values)
    for leaf in leaves:  # data of shapes, so that they can be followed
        tensor = leaf.const_value
        if tensor is not None and tensor.size <= SMALL and tensor.dtype.is_integer():
            proto.graph.initializer.append(ir.to_proto(ir.tensor(tensor.numpy(), name=leaf.name)))
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception:  # onnx's C++ raises several types: then nothing is known
        return {}
    found = {}
    for info in inferred.graph.value_info:
        dims = info.type.tensor_type.shape.dim
        if info.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            dtype = ir.DataType(info.type.tensor_type.elem_type)
            found[info.name] = (dtype, tuple(d.dim_value for d in dims))
    return found


def evaluated(model: ir.Model, values: Sequence[ir.Value]) -> dict[str, Array]:
    """Name → array, computed by onnxruntime from the constants alone.

    Raises:
        UnsupportedError: one of them would take more than ``EVALUATED_BYTES``.
        InputError: onnxruntime cannot compute it.
    """
    if not values:
        return {}
    if (size := size_of(model, values)) > EVALUATED_BYTES:
        if len(values) == 1:
            raise UnsupportedError(
                f"{values[0].name!r}: computing it from constants takes {size} bytes, and at most "
                f"{EVALUATED_BYTES} are taken; name the initializers that it is computed from"
            )
        return {name: array for v in values for name, array in evaluated(model, [v]).items()}
    nodes, leaves = part_of(values)
    part = ir.from_proto(proto_of(model, nodes, leaves, values))
    tensors = {str(leaf.name): tensor_of(leaf) for leaf in leaves}
    for value in list(part.graph.inputs):
        value.const_value = alias(tensors[str(value.name)])
        part.graph.inputs.remove(value)
        part.graph.register_initializer(value)
    names = [str(value.name) for value in values]
    with runtime.on_disk(part) as path:
        called = f"what depends on constants only ({', '.join(map(repr, names[:4]))})"
        return runtime.run(path, {}, names, level="none", called=called)


def size_of(model: ir.Model, values: Sequence[ir.Value]) -> int:
    """Bytes of all tensors in the part of the graph that makes ``values``, as far as known."""
    sizes = inferred_types(model, values).values()
    return sum(math.ceil(dtype.itemsize * math.prod(shape)) for dtype, shape in sizes)


def part_of(values: Iterable[ir.Value]) -> tuple[list[ir.Node], list[ir.Value]]:
    """The nodes that make these values, in order, and the initializers that they begin with."""
    nodes: dict[ir.Node, None] = {}
    leaves: dict[ir.Value, None] = {}
    stack = [(value, False) for value in reversed(list(values))]
    while stack:
        value, ready = stack.pop()
        producer = value.producer()
        if producer is None:
            leaves[value] = None
        elif ready:
            nodes[producer] = None
        elif producer not in nodes:
            stack.append((value, True))
            stack += [(used, False) for used in reversed(used_outside(producer))]
    return list(nodes), list(leaves)


def tensor_of(leaf: ir.Value) -> ir.TensorProtocol:
    """What an initializer holds."""
    if leaf.const_value is None:
        raise InputError(f"{leaf.name!r} is no constant")
    return leaf.const_value


def alias(tensor: ir.TensorProtocol, name: str | None = None) -> ir.LazyTensor:
    """The same contents under a name of its own: onnx_ir renames a tensor with its value."""
    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(lambda: tensor, dtype=tensor.dtype, shape=shape, name=name or tensor.name)


def proto_of(
    model: ir.Model, nodes: Sequence[ir.Node], leaves: Sequence[ir.Value],
    values: Sequence[ir.Value],
) -> onnx.ModelProto:  # fmt: skip
    """A part of a graph as a model: the initializers that it begins with are its inputs."""
    inputs = []
    for leaf in leaves:
        tensor = tensor_of(leaf)
        inputs.append(
            onnx.helper.make_tensor_value_info(
                str(leaf.name), tensor.dtype.value, tensor.shape.numpy()
            )
        )
    # Without a type, as it may not be known: onnxruntime infers it.
    outputs = [onnx.ValueInfoProto(name=str(value.name)) for value in values]
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in nodes], "constants", inputs, outputs
    )
    opsets = [onnx.helper.make_opsetid(*each) for each in model.opset_imports.items()]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)
