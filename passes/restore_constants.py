"""RestoreConstantsPass: constants that were nodes become nodes again.

Before: NormalizePass had lifted every Constant node to an initializer.  After:
those that were not switched are Constant nodes with their old names, so that a
trainer that trains every float initializer finds only weights and θ.
"""

from __future__ import annotations

import onnx_ir as ir
from gdu_compile.passes._base import GduPass

from gdu_compile.contracts import State
from gdu_compile.names import Names


class RestoreConstantsPass(GduPass):
    """Undo NormalizePass's lifting for everything that is not switched."""

    needs = ("lifted", "initial")

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        graph, switched, names = model.graph, state.initial or {}, Names(model)
        nodes = []
        for name, node_name in (state.lifted or {}).items():
            if name in switched:
                continue
            old = graph.initializers.pop(name)
            assert old.const_value is not None
            new = ir.Value(name=name, type=old.type, shape=old.shape)
            nodes.append(ir.node("Constant", [], {"value": old.const_value}, outputs=[new],
                                 name=names.fresh(node_name) if node_name else None))  # fmt: skip
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        if nodes:
            graph.insert_before(graph[0], nodes)
        return {"constants": len(nodes)}
