"""Models that are broken in ways onnx.checker lets through, or built to take for ever: refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import networkx as nx
import onnx_ir as ir
from onnx_ir.passes import common

from gdu_compile.errors import InputError
from gdu_compile.graph_view import branches, called, nested


def check(model: ir.Model, path: Path) -> None:
    """Raise InputError for text that is no UTF-8, tensors of another size, functions without end.

    To be called before anything else looks at the model.
    """
    check_text(model, path)
    check_types(model, path)
    check_tensors(model, path)
    check_bodies(model, path)
    check_functions(model, path)


def check_text(model: ir.Model, path: Path) -> None:
    """Raise InputError for texts that are no UTF-8: protobuf hands them out as bytes."""
    if any(isinstance(text, bytes) for text in texts(model)):
        raise InputError(f"{path}: holds text that is no UTF-8, which ONNX requires; export it "
                         "again, or download it again")  # fmt: skip


def texts(model: ir.Model) -> Iterator[object]:
    """Every name and every description in a model."""
    parts: list[object] = [model, *all_graphs(model), *model.functions.values()]
    for graph in all_graphs(model):
        parts += [*graph.inputs, *graph.initializers.values(), *graph]
        parts += [tensor for _, tensor in tensors_in(graph)]
        for node in graph:
            parts += [*node.outputs, *node.attributes.values()]
    for part in parts:
        yield from (getattr(part, name, None) for name in TEXTS)
        for props in (getattr(part, "metadata_props", {}), getattr(part, "opset_imports", {})):
            yield from (*props.keys(), *props.values())
        for dim in getattr(part, "shape", None) or ():
            yield getattr(dim, "value", None)


TEXTS = ("name", "doc_string", "op_type", "domain", "overload", "producer_name",
         "producer_version", "ref_attr_name", "location")  # fmt: skip


def check_types(model: ir.Model, path: Path) -> None:
    """Raise InputError for inputs of dtype UNDEFINED; negative sizes are taken as unknown ones."""
    problems = [
        f"input {value.name!r} is declared without a dtype" for value in model.graph.inputs
        if isinstance(value.type, ir.TensorType) and value.dtype == ir.DataType.UNDEFINED
    ]  # fmt: skip
    if problems:
        raise InputError(f"{path}: is no valid ONNX model; export it again", problems)
    for graph in all_graphs(model):
        made = [value for node in graph for value in node.outputs]
        for value in [*graph.inputs, *made]:
            sizes = list(value.shape or ())
            if any(isinstance(size, int) and size < 0 for size in sizes):
                known = [None if isinstance(size, int) and size < 0 else size for size in sizes]
                value.shape = ir.Shape(known)


def check_bodies(model: ir.Model, path: Path) -> None:
    """Raise InputError where a branch or body has other numbers of values than its node."""
    problems = []
    for node in (node for graph in all_graphs(model) for node in graph if not node.domain):
        for _, body in branches(node) if node.op_type in ("If", "Loop") else ():
            given, made = (0, 0) if node.op_type == "If" else (len(node.inputs), 1)
            if len(body.inputs) != given or len(body.outputs) - made < len(node.outputs):
                problems.append(f"node {called(node)}: {node.op_type} has {len(node.inputs)} "
                                f"inputs and {len(node.outputs)} outputs, its graph {body.name!r} "
                                f"{len(body.inputs)} and {len(body.outputs)}")  # fmt: skip
    if problems:
        raise InputError(f"{path}: is no valid ONNX model; export it again", problems)


def check_shadows(model: ir.Model, where: str = "the model") -> None:
    """Raise InputError where an initializer of a branch or body takes the name of another value
    that the same node uses from outside.

    ONNX forbids it of what nodes make ("MUST be distinct from the names from the outer scopes that
    are visible in the nested subgraph"), and onnx.checker lets it through for initializers.  Which
    of the two is meant is not said: onnxruntime hands what the node uses from outside to all its
    graphs, where it replaces the initializer (measured).
    """
    problems = []
    for node in (node for graph in all_graphs(model) for node in graph):
        inside = [body for inner in nested(node) for _, body in branches(inner)]
        own = {name: body for body in inside for name in body.initializers}
        if own:
            outer = {str(value.name) for value in captured(inside)}
            problems += [f"{name!r}: an initializer of graph {own[name].name!r} of node "
                         f"{called(node)}, and a value outside that the node uses, too"
                         for name in own if name in outer]  # fmt: skip
    if problems:
        raise InputError(f"names in {where} have two meanings; rename the initializers, and export "
                         "it again", list(dict.fromkeys(problems)))  # fmt: skip


def captured(graphs: Sequence[ir.Graph]) -> Iterator[ir.Value]:
    """The values that some graphs use and that belong to none of them."""
    owners = {id(graph) for graph in graphs}
    for graph in graphs:
        used = [value for node in graph for value in node.inputs if value is not None]
        for value in [*used, *graph.outputs]:
            if id(value.graph) not in owners:
                yield value


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph, the branches and bodies, and those of model-local functions."""
    yield from model.graphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.subgraphs()


def tensors_in(graph: ir.Graph) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """The constants of one graph: initializers, and tensors in attributes, with their names."""
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            yield repr(name), value.const_value
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.TENSOR:
                yield f"{attribute.name!r} of node {called(node)}", attribute.value
            elif attribute.type == ir.AttributeType.TENSORS:
                yield from ((f"{attribute.name!r} of node {called(node)}", t) for t in
                            attribute.value)  # fmt: skip


def check_tensors(model: ir.Model, path: Path) -> None:
    """Raise InputError when a tensor in the file does not hold what its dtype and shape say."""
    problems = []
    for graph in all_graphs(model):
        for name, tensor in tensors_in(graph):
            try:
                size = tensor.nbytes
                if not isinstance(tensor, ir.ExternalTensor) and tensor.numpy().size != tensor.size:
                    raise ValueError(f"{size} bytes were expected")
            except Exception as error:  # onnx_ir's and numpy's many
                problems.append(
                    f"{name} does not hold what it declares ({str(error).partition(chr(10))[0]})"
                )
    if problems:
        raise InputError(f"{path}: is no valid ONNX model; export it again", problems)


MOST_NODES = 200_000
"""Nodes that inlining may make: where each function calls the next one twice, n make 2ⁿ."""
MOST_TRIES = 10**8
"""Names that the inliner may try: n nodes of one name take it n² (measured: 4000, 10 s)."""


def check_functions(model: ir.Model, path: Path) -> None:
    """Raise InputError when functions call themselves, or inlining them would not end in time."""
    if not model.functions:
        return
    calls = nx.MultiDiGraph()
    calls.add_nodes_from(model.functions)
    for name, function in model.functions.items():
        called_there = (node.op_identifier() for node in function.all_nodes())
        calls.add_edges_from((name, other) for other in called_there if other in model.functions)
    if not nx.is_directed_acyclic_graph(calls):
        raise InputError(f"{path}: a model-local function calls itself; export it again")
    # What the main graph does not call is inlined in itself.
    times = Counter(dict.fromkeys(model.functions, 1))
    times.update(node.op_identifier() for graph in model.graphs() for node in graph)
    names: Counter[tuple[str, str | None]] = Counter()
    for name in nx.topological_sort(calls):
        for _, other in calls.out_edges(name):
            times[other] += times[name]
        for node in model.functions[name].all_nodes():
            names["node", node.name or ""] += times[name]
            names.update({("value", v.name): times[name] for v in node.outputs})
    nodes = sum(count for (kind, _), count in names.items() if kind == "node")
    if nodes > MOST_NODES or sum(count**2 for count in names.values()) > MOST_TRIES:
        raise InputError(f"{path}: its model-local functions make {nodes} nodes when they are "
                         "inlined, too many or too many of one name; export it without "
                         "functions")  # fmt: skip


def sort_nodes(model: ir.Model, called: str | Path = "the model") -> None:
    """Bring the nodes into an order in which each follows what it uses, in place.

    Raises:
        InputError: there is none.
    """
    try:
        common.TopologicalSortPass()(model)
    except ValueError as error:
        raise InputError(f"{called}: its nodes need each other ({error}); export it again") from (
            error
        )


def check_made(model: ir.Model, path: Path) -> None:
    """Raise InputError when a node uses what nothing makes: onnx_ir leaves sparse ones out."""
    problems = [
        f"node {called(node)} uses {used.name!r}, which is no input, no dense initializer, and "
        "made by no node"
        for graph in model.graphs() for node in graph for used in node.inputs
        if used is not None and used.producer() is None
        and not used.is_graph_input() and not used.is_initializer()
    ]  # fmt: skip
    if problems:
        raise InputError(f"{path}: cannot be used; store sparse initializers as dense ones, and "
                         "export it again", problems)  # fmt: skip
