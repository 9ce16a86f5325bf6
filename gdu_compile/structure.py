"""Two exports of one network, matched by structure: which constant stands at which place.

Both graphs are walked from their outputs to what they are computed from, node beside node.  Where
one has a constant, the other has one too: they are the same weight, whatever their names are.  So
also a constant that one exporter has merged from several is told apart by its uses.  Where an
exporter has removed from one of them what did nothing (``neutral.py``), the walk goes on, and notes
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from gdu_compile.constants import constant_values
from gdu_compile.graph_view import branches, called
from gdu_compile.neutral import Gaps, Removed, Step, Uses
from gdu_compile.places import Use, origin

DIFFERENCES = 4
"""So many are listed."""


@dataclass
class Match:
    """What a walk through two graphs has found.

    Attributes:
        uses: the base's constant → its use → the oracle's constants that stand there.
        differences: where the graphs are not the same, in sentences.
        removed: what the base lacks, and might as well have; and what the oracle does.
    """

    uses: dict[ir.Value, dict[Use | None, list[ir.Value]]] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    removed: tuple[list[Removed], list[Removed]] = field(default_factory=lambda: ([], []))

    def lacking(self) -> list[str]:
        """What was removed, in sentences."""
        names = "the model", "the oracle"
        return [each.sentence(*who) for side, who in zip(self.removed, (names, names[::-1]),
                strict=True) for each in side]  # fmt: skip


def match_structure(base: ir.Model, oracle: ir.Model) -> Match:
    """Walk both graphs from the outputs, operator beside operator, input beside input.

    Args:
        base: after NormalizePass.
        oracle: after NormalizePass, too.

    Example:
        >>> import onnx_ir as ir
        >>> def net(name):
        ...     w = ir.val(name, const_value=ir.tensor([1.0], name=name))
        ...     x, y = ir.val("x"), ir.val("y")
        ...     node = ir.node("Mul", [x, w], outputs=[y])
        ...     return ir.Model(ir.Graph([x], [y], nodes=[node], initializers=[w],
        ...                              opset_imports={"": 18}), ir_version=8)
        >>> match = match_structure(net("w"), net("onnx::Mul_7"))
        >>> [(v.name, [o.name for o in each]) for v, uses in match.uses.items()
        ...  for each in uses.values()], match.differences
        ([('w', ['onnx::Mul_7'])], [])
    """
    return Walk(base, oracle).run()


class Walk:
    """The walk of ``match_structure``."""

    def __init__(self, base: ir.Model, oracle: ir.Model) -> None:
        self.graphs = base.graph, oracle.graph
        self.constant = tuple(
            {*model.graph.initializers.values(), *constant_values(model).values()}
            for model in (base, oracle)
        )
        self.gaps = Gaps(self.constant)
        self.match = Match(removed=self.gaps.removed)
        self.seen: set[tuple[ir.Value, ir.Value]] = set()
        self.stack: list[Step] = []

    def run(self) -> Match:
        """Walk until nothing is left, or too much differs."""
        ours, theirs = self.graphs
        self.beside(ours.outputs, theirs.outputs, "the graphs have", "outputs")
        while self.stack and len(self.match.differences) < DIFFERENCES:
            self.visit(*self.stack.pop())
        return self.match

    def beside(
        self, ours: Sequence[ir.Value | None], theirs: Sequence[ir.Value | None], who: str,
        what: str, nodes: tuple[ir.Node, ir.Node] | None = None,
    ) -> None:  # fmt: skip
        """Values of the same positions are to be compared."""
        ours, theirs = trimmed(ours), trimmed(theirs)
        if len(ours) != len(theirs):
            self.differ(f"{who} {len(ours)} {what}, and {len(theirs)} in the oracle's")
        steps: list[Step] = [
            (pair, (None, None) if nodes is None else ((nodes[0], index), (nodes[1], index)))
            for index, pair in enumerate(zip(ours, theirs, strict=False))
        ]
        self.stack += reversed(steps)

    def visit(self, pair: tuple[ir.Value | None, ir.Value | None], uses: Uses) -> None:
        """Compare what makes two values."""
        (ours, theirs), use = pair, uses[0]
        if ours is None or theirs is None:
            if ours is not theirs:
                node, index = use or (None, 0)
                where = "an output" if node is None else f"input {index} of node {called(node)}"
                self.differ(f"{where} is left out in one of them")
            return
        ours, theirs = origin(ours), origin(theirs)
        one, other = ours.producer(), theirs.producer()
        both = ours in self.constant[0] and theirs in self.constant[1]
        if both and (one is None or other is None or unlike(ours, theirs, one, other)):
            self.match.uses.setdefault(ours, {}).setdefault(use, []).append(theirs)
            return
        if (further := self.gaps.behind((ours, theirs), uses)) is not None:
            self.stack += further
            return
        if (ours, theirs) in self.seen:
            return
        self.seen.add((ours, theirs))
        if one is None or other is None:
            if one is not other or place_among_inputs(ours) != place_among_inputs(theirs):
                self.differ(f"{described(ours)} stands where the oracle has {described(theirs)}")
            return
        self.nodes(ours, theirs, one, other)

    def nodes(self, ours: ir.Value, theirs: ir.Value, one: ir.Node, other: ir.Node) -> None:
        """Compare two nodes, and what they use and contain."""
        if (sentence := unlike(ours, theirs, one, other)) is not None:
            self.differ(sentence)
            return
        inputs = self.gaps.without_bias(one, other)
        self.beside(*inputs, f"node {called(one)} has", "inputs", (one, other))
        bodies = dict(branches(other))
        for name, body in branches(one):
            if name in bodies:
                self.beside(body.outputs, bodies[name].outputs, f"{name} of node {called(one)} has",
                            "outputs")  # fmt: skip

    def differ(self, sentence: str) -> None:
        """Note a difference."""
        if sentence not in self.match.differences:
            self.match.differences.append(sentence)


def trimmed(values: Sequence[ir.Value | None]) -> list[ir.Value | None]:
    """Without the inputs left out at the end."""
    found = list(values)
    while found and found[-1] is None:
        found.pop()
    return found


def place_among_inputs(value: ir.Value) -> int | None:
    """The position among the inputs of its graph."""
    graph = value.graph
    if graph is None:
        return None
    return next((i for i, each in enumerate(graph.inputs) if each is value), None)


def described(value: ir.Value) -> str:
    """A value in a message."""
    node = value.producer()
    if node is not None:
        return f"the result of {node.op_type} {called(node)}"
    return f"the {'input' if value.const_value is None else 'constant'} {value.name!r}"


def unlike(ours: ir.Value, theirs: ir.Value, one: ir.Node, other: ir.Node) -> str | None:
    """How two nodes, or which of their results are meant, differ, in a sentence; None if not."""
    domains = {node.domain.removeprefix("ai.onnx") or "" for node in (one, other)}
    places = one.outputs.index(ours), other.outputs.index(theirs)
    if one.op_type != other.op_type or len(domains) > 1 or places[0] != places[1]:
        return (f"node {called(one)} is {one.op_type}, where the oracle has {other.op_type} "
                f"{called(other)}")  # fmt: skip
    if (name := other_attribute(one, other)) is not None:
        return f"node {called(one)}: {one.op_type} has another {name!r} in the oracle"
    return None


def other_attribute(one: ir.Node, other: ir.Node) -> str | None:
    """An attribute that both nodes have with different values, or None; bodies are walked."""
    skipped = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
    for name, attribute in one.attributes.items():
        second = other.attributes.get(name)
        if second is None or attribute.type in skipped:
            continue
        if attribute.type == ir.AttributeType.TENSOR and second.type == attribute.type:
            if attribute.as_tensor().tobytes() != second.as_tensor().tobytes():
                return name
        elif attribute.type != second.type or attribute.value != second.value:
            return name
    return None
