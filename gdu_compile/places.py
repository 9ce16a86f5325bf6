"""An initializer for everything that an oracle can name: where a weight stands in the graph.

An oracle names an initializer; a value that depends on constants only (``constants.py``); or one
use of either, as ``NAME@NODE.INPUT``, where uses that share a value shall get their own (--untie).
After ``stand`` each of them is an initializer of the main graph under that very name.

Kinds of numbers that onnxruntime cannot switch (it has no If, Reshape or Identity for them) stand
as a wider kind that holds each of them exactly, with a Cast behind: ``CARRIERS``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from gdu_compile.constants import alias, constant_values, evaluated
from gdu_compile.graph_view import called, nested
from gdu_compile.names import Names
from gdu_compile.weights import CARRIERS, dtype_name, structural_use

Use = tuple[ir.Node, int]


@dataclass
class Standing:
    """What ``stand`` has done.

    Attributes:
        how: name → what was done for it, a sentence for --why.
        carried: name → the narrow dtype of which its initializer holds the numbers.
        removed: names of initializers that nothing uses any more.
    """

    how: dict[str, str] = field(default_factory=dict)
    carried: dict[str, str] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)


def stand(model: ir.Model, wanted: Collection[str], *, untie: bool = False) -> Standing:
    """Make an initializer of every wanted name that the model has in another form.

    Args:
        model: after NormalizePass; changed in place.
        wanted: names that an oracle holds; those that the model has not are left alone.
        untie: whether a single use may get a value of its own.

    Raises:
        InputError, UnsupportedError: a value cannot be computed from its constants.
    """
    done, graph = Standing(), model.graph
    missing = [name for name in wanted if name not in graph.initializers]
    computed = constant_values(model) if missing else {}
    folded = {name: computed[name] for name in missing if name in computed}
    split = uses_by_name(model, computed) if untie and len(missing) > len(folded) else {}
    split = {name: split[name] for name in missing if name in split and name not in folded}
    sources = [value for value, _ in split.values() if value.const_value is None]
    values = list({id(value): value for value in [*folded.values(), *sources]}.values())
    arrays = evaluated(model, values)
    tensors = {name: ir.Tensor(array, name=name) for name, array in arrays.items()}
    for name, (value, (node, index)) in split.items():
        tensor = value.const_value or tensors[str(value.name)]
        node.replace_input_with(index, new_initializer(graph, name, tensor))
        done.how[name] = f"a value of its own for input {index} of {node.op_type} {called(node)}"
        remove_unused(graph, value, wanted, done.removed)
    names = Names(model)
    for name, value in folded.items():
        done.how[name] = f"computed from constants by {computed_by(value)}, an initializer now"
        value.name = names.fresh(f"{name}_computed")
        new = new_initializer(graph, name, tensors[name])
        value.replace_all_uses_with(new, replace_graph_outputs=True)
    for value in folded.values():
        remove_unused(graph, value, wanted, done.removed)
    for name in [name for name in graph.initializers if name in wanted]:
        carry(model, name, names, done)
    return done


def computed_by(value: ir.Value) -> str:
    """The operator that computes a value, and its node."""
    node = value.producer()
    assert node is not None
    return f"{node.op_type} {called(node)}"


def new_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register an initializer with the contents of a tensor, which keeps its own name."""
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape,
                     const_value=alias(tensor, name))  # fmt: skip
    graph.register_initializer(value)
    return value


def remove_unused(
    graph: ir.Graph, value: ir.Value, wanted: Collection[str], removed: set[str]
) -> None:
    """Remove what only served to compute a value that nothing uses any more; not what is wanted."""
    if value.uses() or value.is_graph_output():
        return
    node = value.producer()
    if node is None:
        name = str(value.name)
        if graph.initializers.get(name) is value and name not in wanted:
            del graph.initializers[name]
            removed.add(name)
        return
    if node.graph is None or any(v.uses() or v.is_graph_output() for v in node.outputs):
        return
    used = [v for inner in nested(node) for v in inner.inputs if v is not None]
    for inner in nested(node):
        for index in range(len(inner.inputs)):
            inner.replace_input_with(index, None)
    node.graph.remove(node)
    for each in dict.fromkeys(used):
        if each is not value and each not in node.outputs:
            remove_unused(graph, each, wanted, removed)


def carry(model: ir.Model, name: str, names: Names, done: Standing) -> None:
    """Put an initializer of a narrow kind into a wider one, with a Cast behind."""
    graph, narrow = model.graph, model.graph.initializers[name]
    kind = dtype_name(narrow)
    if kind not in CARRIERS or structural_use(narrow) or narrow.is_graph_output():
        return
    tensor, wide = narrow.const_value, CARRIERS[kind]
    assert tensor is not None
    del graph.initializers[name]
    array = tensor.numpy().astype(wide)
    value = new_initializer(graph, name, ir.Tensor(array, name=name))
    # Infinity stays infinity: saturated it would be the largest number.
    exact = {"saturate": 0} if kind.startswith("float8") else {}
    narrow.name = names.fresh(f"{name}_{kind}")
    output = ir.Value(name=names.fresh(f"{name}_{kind}"), type=narrow.type, shape=narrow.shape)
    cast = ir.node("Cast", [value], {"to": tensor.dtype.value, **exact}, outputs=[output],
                   name=names.fresh(f"{name}/Cast"))  # fmt: skip
    narrow.replace_all_uses_with(output)
    graph.insert_before(graph[0], cast)
    done.carried[name] = kind
    done.how.setdefault(name, f"its {kind} numbers stand as {wide}, with a Cast behind")


def uses_by_name(
    model: ir.Model, computed: Mapping[str, ir.Value]
) -> dict[str, tuple[ir.Value, Use]]:
    """``NAME@NODE.INPUT`` → (value, use), for every use of a constant value that has several."""
    labels = Counter(node.name for node in model.graph.all_nodes())
    found: dict[str, tuple[ir.Value, Use]] = {}
    for value in [*model.graph.initializers.values(), *computed.values()]:
        uses = list(uses_of(value))
        if len(uses) > 1:
            for use in uses:
                found.setdefault(use_name(value, use, labels), (value, use))
    return found


def uses_of(value: ir.Value) -> Iterator[Use]:
    """The uses of a value, those of its plain copies (Identity) instead of the copies'."""
    for node, index in value.uses():
        if is_copy(node):
            yield from uses_of(node.outputs[0])
        else:
            yield node, index


def origin(value: ir.Value) -> ir.Value:
    """What a value is a plain copy of."""
    while (node := value.producer()) is not None and node.op_type == "Identity":
        source = node.inputs[0]
        if source is None or not is_copy(node):
            break
        value = source
    return value


def is_copy(node: ir.Node) -> bool:
    """Whether a node only gives its input another name, inside the graph."""
    return (
        node.op_type == "Identity" and node.domain == "" and not node.outputs[0].is_graph_output()
    )


def use_name(value: ir.Value, use: Use, labels: Mapping[str | None, int]) -> str:
    """What a single use is called: the node by its name, where that is its own."""
    node, index = use
    own = bool(node.name) and labels[node.name] == 1
    return f"{value.name}@{node.name if own else node.outputs[0].name}.{index}"
