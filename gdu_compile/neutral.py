"""Additions of 0 and multiplications by 1: exporters remove them, and a weight's place with them.

The optimizer of onnxscript, which PyTorch's exporter runs, removes Add and Sub of a single 0, Mul
and Div by a single 1, and a bias of zeros of Gemm, Conv, ConvTranspose and QLinearConv
(onnxscript.rewriter.rules.common, ``_no_op`` and ``_remove_optional_bias``).  Another export of the
network, with other weights, still has them; ``structure.py`` comes upon them.  Put back, they hold
what changes no bit: x + (−0) = x − 0 = x·1 = x/1 = x, also for ±0, infinities and NaN.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from gdu_compile.graph_view import called
from gdu_compile.number_formats import FLOATS
from gdu_compile.places import Use, origin
from gdu_compile.weights import dtype_name

NEUTRAL = {"Add": -0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}
"""Operator → the number with which it gives its other operand."""
OPERANDS = {"Add": (0, 1), "Sub": (1,), "Mul": (0, 1), "Div": (1,)}
"""Operator → the inputs that such a number may be."""
BIASES = {"Gemm": 2, "Conv": 2, "ConvTranspose": 2, "QLinearConv": 8}
"""Operator → the input that is added at the end, and may be left out."""


Uses = tuple[Use | None, Use | None]
Step = tuple[tuple[ir.Value | None, ir.Value | None], Uses]
"""Two values that are to be compared, and which use of each has led there; None: an output."""


@dataclass
class Removed:
    """A weight of one network for which the other has no node, or no input, any more.

    Attributes:
        node: of the network that has it.
        index: which of the node's inputs is the weight.
        weight: the constant.
        value: of the network that lacks it: what goes through the node; None where only an input is
            missing.
        uses: what gets the result there; None is the output of the graph, and ``node`` of another
            ``Removed`` stands for what is put back in its place.
    """

    node: ir.Node
    index: int
    weight: ir.Value
    value: ir.Value | None
    uses: list[Use | None] = field(default_factory=list)

    @property
    def number(self) -> float:
        """What all elements of the weight are, so that it does nothing."""
        if self.value is not None:
            return NEUTRAL[self.node.op_type]
        # Gemm adds β·C; onnxruntime's bias of a QLinearConv is int32, which has no −0.
        return 0.0 if self.node.attributes.get_float("beta", 1.0) < 0 else -0.0

    def sentence(self, lacking: str, having: str) -> str:
        """The difference in words."""
        return (f"{lacking} has no place for {self.weight.name!r}, which is input {self.index} of "
                f"{self.node.op_type} {called(self.node)} in {having}")  # fmt: skip


class Gaps:
    """What either network lacks and might as well have, as the walk through both comes upon it.

    Args:
        constants: of the base, and of the oracle.

    Attributes:
        removed: from the base, and from the oracle.
    """

    def __init__(self, constants: Sequence[Collection[ir.Value]]) -> None:
        self.constants = constants
        self.removed: tuple[list[Removed], list[Removed]] = [], []
        self.known: dict[tuple[ir.Value, ir.Node], Removed] = {}

    def behind(self, pair: tuple[ir.Value, ir.Value], uses: Uses) -> list[Step] | None:
        """Where one network may have lost a node behind its value, what is to be compared then."""
        found = [each for side in (0, 1) if (each := self.lost(side, pair, uses)) is not None]
        if not found:
            return None
        # Exporters remove single numbers: where both might have lost a node, it is the smaller one.
        side, lost = min(found, key=lambda each: elements(each[1].weight))
        value, node = pair[side], lost.node
        known = (value, node) in self.known
        if not known:
            self.note(side, (value, node), lost)
        self.known[value, node].uses.append(uses[side])
        before, at = node.inputs[1 - lost.index], (node, 1 - lost.index)
        return [] if known else [((before, value) if side else (value, before), (at, at))]

    def lost(
        self, side: int, pair: tuple[ir.Value, ir.Value], uses: Uses
    ) -> tuple[int, Removed] | None:
        """What a network may have lost behind its value: what makes the other's."""
        value, node = pair[side], pair[1 - side].producer()
        if node is None or (found := operand(node, self.constants[1 - side])) is None:
            return None
        index, weight = found[0], origin(found[1])
        ends = uses[side] is None and value.producer() is None  # an input that is an output
        if ends or widens(weight, value) or self.has(side, value, node, index, weight):
            return None
        return side, Removed(node, index, weight, value)

    def has(self, side: int, value: ir.Value, node: ir.Node, index: int, weight: ir.Value) -> bool:
        """Whether a value is the result of such a node, with such a constant."""
        own = value.producer()
        if own is None or own.op_type != node.op_type or own.domain:
            return False
        constant = own.inputs[index]
        if constant is None or constant not in self.constants[side]:
            return False
        shape = origin(constant).shape
        return shape is None or weight.shape is None or shape == weight.shape

    def without_bias(
        self, one: ir.Node, other: ir.Node
    ) -> tuple[list[ir.Value | None], list[ir.Value | None]]:
        """The inputs of both nodes, without a bias that one of them lacks, which is noted."""
        nodes, index = (one, other), BIASES.get(one.op_type)
        inputs = list(one.inputs), list(other.inputs)
        biases = [None if index is None else dict(enumerate(each)).get(index) for each in inputs]
        for side, (own, bias) in enumerate((biases, biases[::-1])):
            if index is None or one.domain or own is not None or bias is None:
                continue
            if bias in self.constants[1 - side]:
                inputs[1 - side][index] = None
                node, key = nodes[1 - side], (nodes[side].outputs[0], nodes[side])
                if key not in self.known:
                    found = Removed(node, index, origin(bias), None, [(nodes[side], index)])
                    self.note(side, key, found)
        return inputs

    def note(self, side: int, key: tuple[ir.Value, ir.Node], found: Removed) -> None:
        """Keep what was found; the same place is noted once."""
        self.known[key] = found
        self.removed[side].append(found)


def operand(node: ir.Node, constants: Collection[ir.Value]) -> tuple[int, ir.Value] | None:
    """The constant with which a node might do nothing, and which input it is; None without one.

    Example:
        >>> c, x = ir.val("c", ir.DataType.FLOAT, [3]), ir.val("x")
        >>> held = operand(ir.node("Mul", [x, c]), {c})
        >>> held == (1, c), operand(ir.node("Div", [c, x]), {c})
        (True, None)
    """
    if node.domain or node.op_type not in NEUTRAL:
        return None
    held = [(i, value) for i, value in enumerate(node.inputs) if value in constants]
    if len(held) != 1 or held[0][0] not in OPERANDS[node.op_type]:
        return None
    index, value = held[0]
    return (index, value) if value is not None and is_float(value) else None


def is_float(value: ir.Value) -> bool:
    """Whether a constant is one of floats, as far as is known: sums of shapes are no weights."""
    return value.dtype is None or dtype_name(value) in {kind.name for kind in FLOATS}


def elements(weight: ir.Value) -> float:
    """How many numbers a constant has; infinite where it is not known."""
    dims = [math.inf] if weight.shape is None else list(weight.shape)
    return math.prod(dim if isinstance(dim, int) else math.inf for dim in dims)


def widens(weight: ir.Value, value: ir.Value) -> bool:
    """Whether an operation with the weight gives a value another shape, as far as is known."""
    if weight.shape is None or value.shape is None:
        return False
    ours, theirs = list(value.shape)[::-1], list(weight.shape)[::-1]
    return len(theirs) > len(ours) or any(
        dim != 1 and isinstance(size, int) and dim != size
        for dim, size in zip(theirs, ours, strict=False)
    )
