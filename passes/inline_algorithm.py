"""InlineAlgorithmPass: the algorithm becomes a part of the network.

Before: the memory and the base stand side by side.  After: the main graph also decodes
the training set from θ, and computes the weights from it with the algorithm's own nodes:

    X, Y = decode(θ),   w = A(X, Y)

(THEORY §4).  The algorithm's initializers become Constant nodes; names are made unique.
Nothing uses the result yet: InsertSwitchesPass does, and moves all of this into the armed
branch, so that it never runs while the memory is being filled.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
from gdu_compile.passes._base import GduPass

from gdu_compile.algorithm import AlgorithmGraph
from gdu_compile.builder import Builder
from gdu_compile.contracts import PASS_KEY, State
from gdu_compile.emit_memory import emit_memory
from gdu_compile.names import Names


class InlineAlgorithmPass(GduPass):
    """Decode the memory, and put the algorithm's nodes behind it."""

    needs = ("algorithm", "oracle_graph", "memory", "armed", "code", "gain")
    gives = ("algorithm", "computed", "tie")

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        assert state.memory is not None and state.code is not None and state.gain is not None
        assert state.oracle_graph is not None and state.algorithm is not None
        assert state.armed is not None
        graph, names = model.graph, Names(model)
        b = Builder(names, type(self).__name__)
        thetas = [graph.initializers[bucket.theta] for bucket in state.memory.buckets]
        samples, labels, state.tie = emit_memory(b, thetas, state.memory, state.code, state.gain)
        inputs = [*samples, labels]
        nodes, state.computed = inlined(state.oracle_graph, inputs, names, b.origin)
        last = state.armed.producer()
        assert last is not None
        graph.insert_after(last, [*b.nodes, *nodes])
        for domain, version in state.oracle_graph.model.opset_imports.items():
            model.opset_imports.setdefault(domain, version)
        state.algorithm = dataclasses.replace(
            state.algorithm, inputs=tuple(str(value.name) for value in inputs)
        )
        return {"nodes": len(nodes)}


def inlined(
    oracle: AlgorithmGraph, inputs: list[ir.Value], names: Names, origin: str
) -> tuple[list[ir.Node], list[ir.Value]]:
    """A copy of the algorithm's nodes that reads ``inputs``, and the values of its outputs."""
    graph = oracle.model.clone().graph
    constants_for_initializers(graph)
    for name, value in zip(oracle.inputs, inputs, strict=True):
        given = next(each for each in graph.inputs if each.name == name)
        given.replace_all_uses_with(value, replace_graph_outputs=True)
    rename_all(graph, names)
    outputs = list(graph.outputs)
    graph.outputs.clear()
    nodes = list(graph)
    graph.remove(nodes)
    for node in nodes:
        node.metadata_props[PASS_KEY] = origin
    return nodes, outputs


def constants_for_initializers(graph: ir.Graph) -> None:
    """Initializers, also those of branches and bodies, become Constant nodes where they are."""
    for part in [graph, *graph.subgraphs()]:
        nodes = []
        for name, old in list(part.initializers.items()):
            assert old.const_value is not None
            new = ir.Value(name=name, type=old.type, shape=old.shape)
            nodes.append(ir.node("Constant", [], {"value": old.const_value}, outputs=[new]))
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            part.initializers.pop(name)
        if nodes and len(part):
            part.insert_before(part[0], nodes)
        else:
            part.extend(nodes)


def rename_all(graph: ir.Graph, names: Names) -> None:
    """Every node and value gets a name that the extended model does not have."""
    for part in [graph, *graph.subgraphs()]:
        values = [] if part is graph else list(part.inputs)
        for node in part:
            if node.name:
                node.name = names.fresh(f"gdu_oracle/{node.name}")
            values += [output for output in node.outputs if output.name]
        for value in values:
            fresh = names.fresh(f"gdu_oracle_{value.name}")
            value.name = fresh
            if value.const_value is not None:
                value.const_value.name = fresh
