"""An onnx_ir graph as a networkx graph: what reaches what, and where the branches are.

Nodes are ``("node", index)`` and ``("value", name)``; what a branch uses from
outside counts as an input of the node that owns the branch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import networkx as nx
import onnx_ir as ir

Vertex = tuple[str, str | int]


def branches(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """The node's own subgraphs as (attribute name, graph)."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.name, attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                yield attribute.name, graph


def nested(node: ir.Node) -> Iterator[ir.Node]:
    """The node and all nodes inside its subgraphs."""
    yield node
    for _, graph in branches(node):
        for inner in graph:
            yield from nested(inner)


def called(node: ir.Node) -> str:
    """The node in a message: its name, or the name of what it makes when it has none."""
    if node.name or not node.outputs:
        return repr(node.name or node.op_type)
    return f"of {node.outputs[0].name!r}"


def needed_nodes(values: Iterable[ir.Value]) -> set[ir.Node]:
    """The nodes that these values are computed from, in branches and bodies, too.

    Example:
        >>> import onnx_ir as ir
        >>> x = ir.val("x")
        >>> used = ir.node("Relu", [x], outputs=[ir.val("y")])
        >>> unused = ir.node("Exp", [x], outputs=[ir.val("z")])
        >>> needed_nodes(used.outputs) == {used}
        True
    """
    found: set[ir.Node] = set()
    stack = list(values)
    while stack:
        node = stack.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            stack += [value for value in node.inputs if value is not None]
            stack += [value for _, body in branches(node) for value in body.outputs]
    return found


def to_networkx(graph: ir.Graph) -> nx.DiGraph:
    """The data flow of the main graph as a directed graph.

    Example:
        >>> import onnx_ir as ir
        >>> x = ir.val("x")
        >>> relu = ir.node("Relu", [x], outputs=[ir.val("y")])
        >>> view = to_networkx(ir.Graph([x], relu.outputs, nodes=[relu], opset_imports={"": 18}))
        >>> sorted(nx.ancestors(view, ("value", "y")), key=str)
        [('node', 0), ('value', 'x')]
    """
    view: nx.DiGraph = nx.DiGraph()
    for value in [*graph.inputs, *graph.initializers.values()]:
        view.add_node(("value", value.name))
    for index, node in enumerate(graph):
        here: Vertex = ("node", index)
        view.add_node(here, op_type=node.op_type, name=node.name)
        for inner in nested(node):
            for used in inner.inputs:
                if used is not None and used.graph is graph:
                    view.add_edge(("value", used.name), here)
        for output in node.outputs:
            view.add_edge(here, ("value", output.name))
    return view


def reaching(graph: ir.Graph, value: ir.Value) -> set[str]:
    """Names of all values of the main graph from which ``value`` is computed."""
    view = to_networkx(graph)
    ancestors = nx.ancestors(view, ("value", value.name))
    return {str(name) for kind, name in ancestors if kind == "value"}


def constant_switches(graph: ir.Graph) -> list[ir.Node]:
    """The If nodes whose condition depends on initializers and constants only.

    No ordinary exporter writes those; an extension by gdu-compile needs them,
    with or without its metadata.
    """
    view = to_networkx(graph)
    source: Vertex = ("inputs", 0)  # one search from all inputs at once
    view.add_edges_from((source, ("value", value.name)) for value in graph.inputs)
    varying = nx.descendants(view, source) if source in view else set()
    return [
        node
        for node in graph
        if node.op_type == "If"
        and node.inputs[0] is not None
        and ("value", node.inputs[0].name) not in varying
    ]
