"""Names in a model: fresh ones, and one value for each."""

from __future__ import annotations

import keyword
import re

import onnx_ir as ir


class Names:
    """Fresh names in a model: for values, nodes, branches; collisions get a number.

    Example:
        >>> import onnx_ir as ir
        >>> graph = ir.Graph([ir.val("gdu_theta_0")], [], nodes=[], opset_imports={"": 18})
        >>> Names(ir.Model(graph, ir_version=10)).fresh("gdu_theta_0")
        'gdu_theta_0_1'
    """

    def __init__(self, model: ir.Model) -> None:
        self._last: dict[str, int] = {}  # wanted → the last number given; names are never released
        self._taken: set[str | None] = {model.graph.name}
        for graph in model.graphs():
            self._taken.update(value.name for value in graph.inputs)
            self._taken.update(graph.initializers)
            for node in graph:
                self._taken.add(node.name)
                self._taken.update(value.name for value in node.outputs)

    def fresh(self, wanted: str) -> str:
        """``wanted``, or ``wanted_1``, ``wanted_2`` … when it is taken."""
        count = self._last.get(wanted, 0)
        name = f"{wanted}_{count}" if count else wanted
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._last[wanted] = count
        self._taken.add(name)
        return name


def make_unique(model: ir.Model) -> int:
    """Rename values so that no two in the whole model share a name; returns how many.

    ONNX allows the same name in two branches of an If.  A pass that moves nodes
    between graphs, and a runtime with one table of values, need them apart.
    The main graph keeps its names.
    """
    names, seen, renamed = Names(model), set[str | None](), 0
    for graph in model.graphs():
        values = [*graph.inputs, *graph.initializers.values()]
        values += [output for node in graph for output in node.outputs if output.name]
        for value in dict.fromkeys(values):
            if value.name in seen:
                ir.convenience.rename_values(value, names.fresh(str(value.name)))
                renamed += 1
            seen.add(value.name)
    return renamed


def identifier(name: str) -> str:
    """A name of ONNX as one of Python, in ASCII.

    Python takes some different letters for the same, and changes names that begin with __.

    Example:
        >>> identifier("fc.weight"), identifier("//layer/0"), identifier("0"), identifier("if")
        ('fc_weight', '_layer_0', '_0', 'if_')
    """
    text = re.sub(r"[^0-9A-Za-z_]", "_", name)
    if text.startswith("__") or not text or text[0].isdigit():
        text = "_" + text.lstrip("_")
    return f"{text}_" if keyword.iskeyword(text) else text
