"""Places of weights that an exporter has removed, put back: planned by names, then done.

The plan goes by the names of the normalized base, so that it can be carried out on any copy of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from gdu_compile.contracts import Restored
from gdu_compile.names import Names
from gdu_compile.neutral import Removed
from gdu_compile.places import new_initializer
from gdu_compile.structural_names import Contents, reader


def planned(removed: Sequence[Removed], model: ir.Model, oracle: ir.Model) -> list[Restored]:
    """Names for all that is put back; what comes last in the graph comes first.

    Args:
        removed: what ``structure.py`` has found.
        model: the normalized base.
        oracle: the other export, normalized.
    """
    order = {node: index for index, node in enumerate(oracle.graph.all_nodes())}
    removed = sorted(removed, key=lambda each: -order[each.node])
    names, contents = Names(model), reader(oracle)
    nodes: dict[tuple[ir.Node, ir.Value | None], str] = {
        (each.node, each.value): names.fresh(each.node.name or each.node.op_type)
        for each in removed if each.value is not None
    }  # fmt: skip
    results = {key: names.fresh(f"{name}_out") for key, name in nodes.items()}
    weights: dict[tuple[ir.Value, str], str] = {}
    found = []
    for each in removed:
        tied = each.weight, str(each.number)  # what the oracle has once, for several nodes
        if tied not in weights:
            weights[tied] = names.fresh(str(each.weight.name))
        shape, dtype = form(each.weight, contents)
        found.append(Restored(
            weight=weights[tied], shape=shape, dtype=dtype, number=each.number,
            op_type=each.node.op_type, index=each.index,
            node=nodes.get((each.node, each.value), ""),
            value="" if each.value is None else str(each.value.name),
            result=results.get((each.node, each.value), ""),
            uses=tuple((results.get((node, each.value)) or makes(node), index)
                       for node, index in filter(None, each.uses)),
            output=None in each.uses,
        ))  # fmt: skip
    return found


def makes(node: ir.Node) -> str:
    """What a node is called by: its first output that has a name."""
    return next((str(value.name) for value in node.outputs if value.name), "")


def form(weight: ir.Value, contents: Contents) -> tuple[tuple[int, ...], ir.DataType]:
    """The shape and dtype of a constant of the oracle, which may be a computed one."""
    if (tensor := weight.const_value) is not None:
        return tuple(tensor.shape.numpy()), tensor.dtype
    array = contents(weight)
    return array.shape, ir.DataType.from_numpy(array.dtype)


def put_back(model: ir.Model, restored: Sequence[Restored]) -> None:
    """Carry out a plan, in place; where a name is not in the model, it stays as it is."""
    nodes = {makes(node): node for node in model.graph.all_nodes()}
    values = {str(v.name): v for node in nodes.values() for v in node.outputs}
    values |= {str(v.name): v for graph in model.graphs() for v in graph.inputs}
    meant = {name for each in restored for name, _ in each.uses} - {r.result for r in restored}
    if not meant <= set(nodes) or not {each.value for each in restored} <= {"", *values}:
        return
    weights = model.graph.initializers
    for each in restored:
        if each.weight not in weights:
            array = np.full(each.shape, each.number, each.dtype.numpy())
            new_initializer(model.graph, each.weight, ir.Tensor(array, name=each.weight))
        if each.value:
            nodes[each.result] = new_node(each, values[each.value], weights[each.weight])
    for each in restored:
        result = nodes[each.result].outputs[0] if each.value else weights[each.weight]
        for name, index in each.uses:
            node = nodes[name]
            node.resize_inputs(max(len(node.inputs), index + 1))
            node.replace_input_with(index, result)
    for each in restored:
        if each.output:
            take_over(values[each.value], nodes[each.result].outputs[0])


def new_node(each: Restored, value: ir.Value, weight: ir.Value) -> ir.Node:
    """The node, right behind what goes through it."""
    inputs = [weight, value] if each.index == 0 else [value, weight]
    output = ir.Value(name=each.result, type=value.type, shape=value.shape)
    node = ir.node(each.op_type, inputs, outputs=[output], name=each.node)
    graph, producer = value.graph, value.producer()
    assert isinstance(graph, ir.Graph)
    if producer is not None:
        graph.insert_after(producer, node)
    else:
        graph.insert_before(graph[0], node)
    return node


def take_over(value: ir.Value, result: ir.Value) -> None:
    """Make ``result`` the output of the graph that ``value`` is, under its name."""
    graph = value.graph
    assert graph is not None
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = result
    value.name, result.name = result.name, value.name
