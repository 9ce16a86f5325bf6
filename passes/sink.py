"""SinkPass: what only one branch of an If uses is moved into that branch.

Before: both branches' inputs are computed.  After: a runtime that evaluates
only the taken branch never runs the base while recording, and never the
recorder once armed (THEORY §3).  The model's outputs are unchanged.  It comes last: the passes
that look for the switches in the main graph (CheckExtensionPass, RemoveExtensionPass) refuse.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from gdu_compile.passes._base import GduPass

from gdu_compile.contracts import State
from gdu_compile.graph_view import branches, nested


class SinkPass(GduPass):
    """Move nodes into the If branch that alone uses them, down through nested branches."""

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        return {"moved": sink(model.graph)}


def sink(graph: ir.Graph, may_move: Callable[[ir.Node], bool] = lambda node: True) -> int:
    """Sink the nodes of ``graph`` that ``may_move`` allows; returns how many moved.

    One walk from the end to the start: when a node is looked at, everything
    after it has found its place, so its users show where it belongs.
    """
    homes: dict[ir.Graph, ir.Graph] = {}  # graph of a use → the top-level branch it lies in
    moved = 0
    for node in reversed(list(graph)):
        target = common_home(node, homes)
        if target is not None and may_move(node):
            graph.remove(node)
            prepend(target, node)
            home_of_subgraphs(node, target, homes)
            moved += 1
        else:
            for name, branch in branches(node):
                if node.op_type == "If" and name in {"then_branch", "else_branch"}:
                    homes[branch] = branch
                    for inner in branch:
                        home_of_subgraphs(inner, branch, homes)
    for branch in set(homes.values()):
        moved += sink(branch, may_move)
    return moved


def home_of_subgraphs(node: ir.Node, home: ir.Graph, homes: dict[ir.Graph, ir.Graph]) -> None:
    """All subgraphs under ``node`` lie in the top-level branch ``home``."""
    for inner in nested(node):
        for _, branch in branches(inner):
            homes[branch] = home


def common_home(node: ir.Node, homes: dict[ir.Graph, ir.Graph]) -> ir.Graph | None:
    """The one branch that contains all uses of the node's outputs, or None."""
    found: ir.Graph | None = None
    for output in node.outputs:
        if output.is_graph_output():
            return None
        for user, _ in output.uses():
            home = homes.get(user.graph) if isinstance(user.graph, ir.Graph) else None
            if home is None or (found is not None and home is not found):
                return None
            found = home
    return found


def prepend(graph: ir.Graph, node: ir.Node) -> None:
    """Insert at the front."""
    if len(graph):
        graph.insert_before(graph[0], node)
    else:
        graph.append(node)
