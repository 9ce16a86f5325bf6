"""RemoveExtensionPass: the extension is folded away, the base stays, with given weights.

Before: an extended model.  After: the base network with its own node, weight
and output names; the weights are initializers with the given values; inputs with
default values are inputs again; no node, initializer or metadata of the extension
is left.  This is what ``armed`` means once θ is known: If(armed) takes its first
branch, and decode(θ) is a constant.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir
from gdu_compile.passes._base import GduPass
from gdu_compile.passes.check import sunk

from gdu_compile.contracts import PASS_KEY, State, Weight
from gdu_compile.default_inputs import make_inputs
from gdu_compile.digits import Array
from gdu_compile.errors import ContractError
from gdu_compile.graph_view import nested
from gdu_compile.metadata import PREFIX, Extension


class RemoveExtensionPass(GduPass):
    """Remove what the record passes have inserted.

    Args:
        weights: weight name → array; the weights that the base shall hold.
    """

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.weights = weights

    def requires(self, model: ir.Model) -> None:
        """The switches are in the main graph."""
        super().requires(model)
        facts = Extension.from_metadata(model.metadata_props)
        names = [facts.base_logits, *(weight.name for weight in facts.weights)]
        if (moved := sunk(model.graph, names)) is not None:
            raise ir.passes.PreconditionError(f"RemoveExtensionPass: {moved}")

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        graph, facts = model.graph, Extension.from_metadata(model.metadata_props)
        made = {str(v.name): v for node in graph for v in node.outputs}
        switches = {weight.name: made[weight.name] for weight in facts.weights}
        logits, base = made[facts.logits.name], made[facts.base_logits]

        replace(graph, logits, base)
        if facts.logits.exposed:
            graph.outputs.remove(base)
        values = {weight.name: self.value(weight) for weight in facts.weights}
        for name, switch in switches.items():
            replace(graph, switch, values[name])
        leaving = [facts.initial[weight.name] for weight in facts.weights]
        leaving += [slot.signal for _, slot in facts.slots()]
        leaving += facts.theta_shapes
        removed = remove_ours(graph, {graph.initializers.pop(name) for name in leaving})
        base.name = facts.logits.name
        for value in values.values():
            graph.register_initializer(value)
        make_inputs(model, facts.inputs)
        for key in [key for key in model.metadata_props if key.startswith(PREFIX)]:
            del model.metadata_props[key]
        return {"nodes": removed}

    def ensures(self, model: ir.Model) -> None:
        """Nothing of the extension is left."""
        super().ensures(model)
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            if PASS_KEY in node.metadata_props:
                raise ir.passes.PostconditionError(f"node {node.name!r} is left")

    def value(self, weight: Weight) -> ir.Value:
        """The weight as an initializer."""
        array = self.weights[weight.name]
        if array.shape != weight.shape or str(array.dtype) != weight.dtype:
            raise ContractError(f"weight {weight.name!r} is {array.dtype} {list(array.shape)}")
        tensor = ir.Tensor(array, name=weight.name)
        return ir.Value(
            name=weight.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(weight.shape),
            const_value=tensor,
        )

    def __repr__(self) -> str:
        return f"RemoveExtensionPass({len(self.weights)} weights)"


def replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Every use of ``old``, and every output, becomes ``new``."""
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def remove_ours(graph: ir.Graph, leaving: Collection[ir.Value]) -> int:
    """Remove the nodes of the main graph that our passes have put there.

    What stays forgets that they used it.  What leaves with them need not, and a node with
    thousands of signals would take the square of their number: its inputs change one by one.
    """
    ours = [node for node in graph if PASS_KEY in node.metadata_props]
    for node in ours:
        for inner in nested(node):
            for index, used in enumerate(inner.inputs):
                if used is None or used in leaving:
                    continue
                producer = used.producer()
                if producer is None or PASS_KEY not in producer.metadata_props:
                    inner.replace_input_with(index, None)
    graph.remove(ours)
    return len(ours)
