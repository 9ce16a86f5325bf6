"""IfConversionPass: both branches of every If are computed, and Where chooses (THEORY §3).

Before: If(armed) { … } else { … }.  After: the nodes of both branches stand in the graph
around it, and each output is Where(armed, then, else): a form for exporters and gradient builders
that know no If.  The outputs are the same bits, and so are the gradients of θ: the decoder divides
by 1 where a calibrator is 0, so nothing is ∞ or NaN in the branch that is not taken.

The base's own derivative is multiplied by 0 while recording.  Where that derivative is not finite
at the initial weights, 0·∞ = NaN reaches the gradients of *those* (never θ's, because the decoder
ends in an integer Cast): freeze them, train θ only.  It comes last, as SinkPass does: the passes
that look for the switches refuse.
"""

from __future__ import annotations

import onnx_ir as ir
from gdu_compile.passes._base import GduPass
from gdu_compile.passes.insert_memory import InsertMemoryPass
from gdu_compile.passes.insert_switches import InsertSwitchesPass

from gdu_compile.builder import BOOL, Builder
from gdu_compile.contracts import PASS_KEY, State
from gdu_compile.errors import UnsupportedError
from gdu_compile.graph_view import branches, called
from gdu_compile.names import Names, make_unique

OURS = {InsertSwitchesPass.__name__, InsertMemoryPass.__name__}
"""Passes whose Ifs are known to be safe."""

TYPE = ir.DataType
WHERE = {TYPE.FLOAT, TYPE.DOUBLE, TYPE.INT32, TYPE.INT64, TYPE.UINT8, TYPE.BOOL, TYPE.STRING}
"""What Where takes in onnxruntime."""
DETOUR = {TYPE.FLOAT16: TYPE.FLOAT, TYPE.BFLOAT16: TYPE.FLOAT, TYPE.INT8: TYPE.INT32,
          TYPE.INT16: TYPE.INT32, TYPE.UINT16: TYPE.INT32, TYPE.UINT32: TYPE.INT64}  # fmt: skip
"""Other types, and one that holds all their values."""

FREEZE = (
    "IfConversionPass: the base runs while recording, and its derivative is multiplied by 0; "
    "train θ only (freeze the base's weights): where that derivative is not finite, their "
    "gradients are NaN"
)


class IfConversionPass(GduPass):
    """Replace every If by both of its branches and Where.

    Args:
        foreign: convert the Ifs of the base and of an algorithm, too: only when none of their
            branches can fail, or has a derivative that is not finite, where it is not taken.
    """

    def __init__(self, *, foreign: bool = False) -> None:
        self.foreign = foreign

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers.

        Raises:
            UnsupportedError: an If cannot be converted; each is named, and nothing is changed.
        """
        problems = [
            f"{called(node)}: {problem}"
            for node in ir.traversal.RecursiveGraphIterator(model.graph)
            if is_if(node)
            for problem in self.problems(node)
        ]
        problems += [
            f"{called(node)}: stands in the function {function.name!r}; inline it with "
            "onnx_ir.passes.common.InlinePass, or begin with NormalizePass"
            for function in model.functions.values()
            for node in ir.traversal.RecursiveGraphIterator(function.graph)
            if is_if(node)
        ]
        if problems:
            raise UnsupportedError("an If cannot be computed in both branches", problems)
        make_unique(model)
        converted = convert(model.graph, Names(model))
        if converted:
            state.notes.append(FREEZE)
        return {"ifs": converted}

    def problems(self, node: ir.Node) -> list[str]:
        """Why an If cannot be converted."""
        ours = node.metadata_props.get(PASS_KEY) in OURS
        if not ours and not self.foreign:
            return ["is not of gdu-compile: a branch that is not taken could fail, or give NaN; "
                    "where that cannot be, use IfConversionPass(foreign=True)"]  # fmt: skip
        if is_window(node):
            return []
        then, otherwise = (graph.outputs for graph in both(node))
        problems = [problem for pair in zip(node.outputs, then, otherwise, strict=True)
                    if (problem := pair_problem(*pair, ours=ours)) is not None]  # fmt: skip
        return problems


def is_if(node: ir.Node) -> bool:
    """Whether it is ONNX's If."""
    return node.op_type == "If" and not node.domain


def both(node: ir.Node) -> tuple[ir.Graph, ir.Graph]:
    """The branches of an If: then, else."""
    then, otherwise = (node.attributes[name] for name in ("then_branch", "else_branch"))
    return then.as_graph(), otherwise.as_graph()


def is_window(node: ir.Node) -> bool:
    """Whether it is the If around a bucket of the memory (emit_memory.emit_window).

    Its branches differ in their number of rows; but the first has none, too, where the second is
    taken, because its window is empty then: so it can always be computed.
    """
    return node.metadata_props.get(PASS_KEY) == InsertMemoryPass.__name__


def pair_problem(
    output: ir.Value, then: ir.Value, otherwise: ir.Value, *, ours: bool
) -> str | None:
    """Why Where cannot choose between two values, or None."""
    for value in (output, then, otherwise):
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            return f"output {output.name!r} is {value.type}, and Where takes tensors only"
    dtype = then.dtype or output.dtype
    if dtype not in WHERE and dtype not in DETOUR:
        return f"output {output.name!r} is {dtype}, which Where does not take"
    a, b = then.shape, otherwise.shape
    if ours and (a is None or b is None):
        return None  # InsertSwitchesPass gives both branches one shape
    if a is None or b is None:
        return (f"output {output.name!r} has a branch of unknown shape, and Where would broadcast; "
                "run onnx.shape_inference on the model")  # fmt: skip
    same = len(a) == len(b) and all(
        x == y or (ours and not (isinstance(x, int) and isinstance(y, int)))
        for x, y in zip(a, b, strict=True)
    )
    if not same or (not ours and None in [size for size in a if not isinstance(size, int)]):
        return (f"output {output.name!r} is {a} in one branch and {b} in the other: Where needs "
                "one shape")  # fmt: skip
    return None


def convert(graph: ir.Graph, names: Names) -> int:
    """Convert the Ifs of a graph and of its subgraphs; returns how many."""
    count = 0
    for node in list(graph):
        count += sum(convert(inner, names) for _, inner in branches(node))
        if is_if(node):
            count += 1
            replace(graph, node, names)
    return count


def replace(graph: ir.Graph, node: ir.Node, names: Names) -> None:
    """Put both branches, and a Where for each output, in the place of an If."""
    chosen = []
    b = Builder(names, IfConversionPass.__name__)
    for branch in both(node):
        outputs = list(branch.outputs)
        branch.outputs.clear()
        for value in list(branch.initializers.values()):
            branch.initializers.pop(str(value.name))
            graph.register_initializer(value)
        moved = list(branch)
        branch.remove(moved)
        graph.insert_before(node, moved)
        chosen.append(outputs)
    condition = node.inputs[0]
    assert condition is not None
    if not is_window(node) and (condition.shape is None or condition.shape.rank()):
        condition = b.op("Reshape", condition, b.ints([], "gdu_scalar"), name="gdu_condition",
                         dtype=BOOL, shape=[])  # fmt: skip
    for output, then, otherwise in zip(node.outputs, *chosen, strict=True):
        if not output.uses() and not output.is_graph_output():
            continue
        new = then if is_window(node) else choose(b, condition, then, otherwise)
        take_place(b, output, new, names)
    graph.insert_before(node, b.nodes)
    graph.remove(node, safe=True)


def choose(b: Builder, condition: ir.Value, then: ir.Value, otherwise: ir.Value) -> ir.Value:
    """Where(condition, then, otherwise), by a type that Where takes."""
    dtype = then.dtype or otherwise.dtype
    assert dtype is not None
    work = DETOUR.get(dtype, dtype)
    sides = [x if work == dtype else b.op("Cast", x, name="gdu_wide", dtype=work, shape=x.shape,
                                          to=work.value) for x in (then, otherwise)]  # fmt: skip
    chosen = b.op("Where", condition, *sides, name="gdu_chosen", dtype=work, shape=then.shape)
    if work == dtype:
        return chosen
    return b.op("Cast", chosen, name="gdu_narrow", dtype=dtype, shape=then.shape, to=dtype.value)


def take_place(b: Builder, old: ir.Value, new: ir.Value, names: Names) -> None:
    """Give ``new`` the uses and the name of an If's output."""
    name = str(old.name)
    if not b.nodes or new not in b.nodes[-1].outputs:  # made elsewhere: it keeps its own name
        new = b.op("Identity", new, name="gdu_same", dtype=new.dtype or TYPE.FLOAT, shape=old.shape)
    new.shape = old.shape if old.shape is not None else new.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    ir.convenience.rename_values(old, names.fresh(f"gdu_if_{name}"))
    new.name = name
