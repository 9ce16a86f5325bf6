"""What the values of an output are: probabilities, log-probabilities, or neither.

Found by walking back from the output over operators that change its form only, to a Softmax,
LogSoftmax or Sigmoid, also one that is spelled out (Exp, ReduceSum, Div), or to a classifier of
ai.onnx.ml.  The class axis is followed on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

ENDINGS = {"Softmax": "probabilities", "LogSoftmax": "log_probabilities", "Sigmoid": "sigmoid"}
"""Operators that may end the graph: the recorder goes in front of them, or has its own."""

SAME_AXES = {"Cast", "CastLike", "Identity", "Dropout", "Clip"}
RESHAPING = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}
FORM = {*SAME_AXES, *RESHAPING, "Transpose"}
"""Operators behind which probabilities are still probabilities."""

ML = "ai.onnx.ml"
CLASSIFIERS = {"LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier"}
FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}


@dataclass(frozen=True)
class Ending:
    """What an output comes from.

    Attributes:
        kind: "probabilities", "log_probabilities", "sigmoid", "logits" (of a classifier).
        axis: the axis along which they sum to 1, counted from the start; None when it is not
            known, or no single one of the output.
        how: for a sentence: ``Softmax``, ``Softmax spelled out (Exp, ReduceSum, Div)``.
        through: operators behind it, the first behind it first.
    """

    kind: str
    axis: int | None
    how: str
    through: tuple[str, ...] = ()

    def __str__(self) -> str:
        behind = f", behind it {', '.join(self.through)}" if self.through else ""
        return f"{self.how}{behind}"


def ending_of(output: ir.Value) -> Ending | None:
    """The ending that an output comes from, or None."""
    chain, value = form_changes(output)
    found = recognised(value)
    if found is None:
        return None
    axis = found.axis
    for node in chain:
        axis = None if axis is None else axis_behind(node, axis)
    through = tuple(dict.fromkeys(node.op_type for node in chain))
    return Ending(found.kind, axis, found.how, through)


def in_front_of_ending(output: ir.Value) -> ir.Value:
    """What goes into the Softmax, LogSoftmax or Sigmoid that an output comes from; without such a
    node the output itself."""
    _, value = form_changes(output)
    node = maker(value)
    source = None if node is None or node.op_type not in ENDINGS else node.inputs[0]
    return output if source is None else source


def form_changes(value: ir.Value) -> tuple[list[ir.Node], ir.Value]:
    """The nodes that only change the form, in order, and the float value in front of them."""
    chain: list[ir.Node] = []
    while (node := maker(value)) is not None and node.op_type in FORM:
        source = node.inputs[0]
        if source is None or source.dtype not in {None, *FLOATS}:
            break
        chain.append(node)
        value = source
    return chain[::-1], value


def is_float(value: ir.Value) -> bool:
    """Whether a value is a tensor of floats; a sequence of such has their dtype, too."""
    return isinstance(value.type, ir.TensorType) and value.dtype in FLOATS


def maker(value: ir.Value | None) -> ir.Node | None:
    """The node of the default domain that makes a value, or None."""
    node = None if value is None else value.producer()
    return None if node is None or node.domain not in ("", "ai.onnx") else node


def axis_behind(node: ir.Node, axis: int) -> int | None:
    """Where an axis of the input lies in the output of a node that changes the form."""
    source, target = node.inputs[0], node.outputs[0]
    if node.op_type in SAME_AXES:
        return axis
    if node.op_type == "Transpose":
        rank = 0 if source is None or source.shape is None else source.shape.rank()
        perm = list(node.attributes.get_ints("perm", list(range(rank))[::-1]))
        return perm.index(axis) if axis in perm else None
    if source is None or source.shape is None or target.shape is None:
        return None
    before, after = list(source.shape), list(target.shape)
    size = before[axis]
    for j, dim in enumerate(after):
        same = in_all(before[:axis]) == in_all(after[:j])
        if dim == size and (same or in_all(before[axis + 1 :]) == in_all(after[j + 1 :])):
            return j
    return None


def in_all(dims: Sequence[int | ir.SymbolicDim]) -> tuple[int, list[str]]:
    """The number of elements of some axes: a product of sizes and of names."""
    names = sorted(str(dim) for dim in dims if not isinstance(dim, int))
    return math.prod(dim for dim in dims if isinstance(dim, int)), names


def recognised(value: ir.Value) -> Ending | None:
    """The ending whose result is this very value, or None."""
    node = value.producer()
    if node is None:
        return None
    if node.domain == ML:
        return classifier(node, value)
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in ENDINGS:
        return Ending(ENDINGS[node.op_type], softmax_axis(node), node.op_type)
    return SPELLED[node.op_type](node) if node.op_type in SPELLED else None


def softmax_axis(node: ir.Node) -> int | None:
    """The axis of a Softmax or LogSoftmax of opset 13 or above, from the start."""
    shape = node.outputs[0].shape or (None if node.inputs[0] is None else node.inputs[0].shape)
    if node.op_type == "Sigmoid" or shape is None or not shape.rank():
        return None
    return int(node.attributes.get_int("axis", -1)) % shape.rank()


def reduced_axis(node: ir.Node) -> int | None:
    """The one axis that a Reduce… node sums over, from the start; None for several."""
    source = node.inputs[0]
    tensor = None
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        tensor = ir.convenience.get_const_tensor(node.inputs[1])
    axes = list(node.attributes.get_ints("axes", [])) if tensor is None else tensor.numpy().tolist()
    if len(axes) != 1 or source is None or source.shape is None:
        return None
    return int(axes[0]) % source.shape.rank()


def reduction(value: ir.Value | None, op_type: str, of: ir.Value) -> ir.Node | None:
    """The Reduce… node over ``of`` that a value comes from, over changes of form; or None."""
    while (node := maker(value)) is not None and node.op_type in {*RESHAPING, "Expand", "Identity"}:
        value = node.inputs[0]
    if node is None or node.op_type != op_type or node.inputs[0] is not of:
        return None
    return node


def is_number(value: ir.Value | None, number: float) -> bool:
    """Whether a value is a constant of one element, this number."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.size == 1 and bool(tensor.numpy().reshape(-1)[0] == number)


def made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes a value when it is of this operator."""
    node = maker(value)
    return node if node is not None and node.op_type == op_type else None


def quotient(node: ir.Node) -> Ending | None:
    """Div: e^z / Σ e^z, or 1 / (1 + e^−z)."""
    above, below = node.inputs
    if is_number(above, 1.0):
        return logistic(below)
    if above is not None and made_by(above, "Exp") is not None:
        total = reduction(below, "ReduceSum", above)
        if total is not None:
            how = "Softmax spelled out (Exp, ReduceSum, Div)"
            return Ending("probabilities", reduced_axis(total), how)
    return None


def product(node: ir.Node) -> Ending | None:
    """Mul: e^z · (1 / Σ e^z)."""
    for above, below in (node.inputs, node.inputs[::-1]):
        inverse = made_by(below, "Reciprocal")
        if above is None or inverse is None or made_by(above, "Exp") is None:
            continue
        total = reduction(inverse.inputs[0], "ReduceSum", above)
        if total is not None:
            how = "Softmax spelled out (Exp, ReduceSum, Reciprocal, Mul)"
            return Ending("probabilities", reduced_axis(total), how)
    return None


def logistic(value: ir.Value | None) -> Ending | None:
    """1 + e^−z, of which 1 is a part: a Sigmoid spelled out."""
    node = made_by(value, "Add")
    if node is None:
        return None
    for one, power in (node.inputs, node.inputs[::-1]):
        exp = made_by(power, "Exp")
        if is_number(one, 1.0) and exp is not None and made_by(exp.inputs[0], "Neg") is not None:
            return Ending("sigmoid", None, "Sigmoid spelled out (Neg, Exp, Add, Div)")
    return None


def difference(node: ir.Node) -> Ending | None:
    """Sub: z − ln Σ e^z."""
    z, logarithm = node.inputs
    if z is None:
        return None
    how = "LogSoftmax spelled out (Exp, ReduceSum, Log, Sub)"
    total = reduction(logarithm, "ReduceLogSumExp", z)
    if total is None and (log := behind_forms(logarithm, "Log")) is not None:
        exp = made_by(summed(log.inputs[0]), "Exp")
        if exp is not None and exp.inputs[0] is z:
            total = reduction(log.inputs[0], "ReduceSum", exp.outputs[0])
    return None if total is None else Ending("log_probabilities", reduced_axis(total), how)


def behind_forms(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node of this operator that a value comes from, over changes of form; or None."""
    while (node := maker(value)) is not None and node.op_type in {*RESHAPING, "Identity"}:
        value = node.inputs[0]
    return node if node is not None and node.op_type == op_type else None


def summed(value: ir.Value | None) -> ir.Value | None:
    """What a ReduceSum sums, over changes of form; or None."""
    node = behind_forms(value, "ReduceSum")
    return None if node is None else node.inputs[0]


def exponential(node: ir.Node) -> Ending | None:
    """Exp of log-probabilities."""
    return mapped(node, "log_probabilities", "probabilities")


def logarithm(node: ir.Node) -> Ending | None:
    """Log of probabilities."""
    return mapped(node, "probabilities", "log_probabilities")


def mapped(node: ir.Node, source: str, kind: str) -> Ending | None:
    """A node that makes one kind of another, elementwise."""
    value = node.inputs[0]
    inner = None if value is None else ending_of(value)
    if inner is None or inner.kind != source:
        return None
    return Ending(kind, inner.axis, f"{node.op_type} of {inner}")


def two_columns(node: ir.Node) -> Ending | None:
    """Concat of 1 − p and p, as converters write a yes-or-no classifier."""
    if len(node.inputs) != 2 or node.outputs[0].shape is None:
        return None
    rest, p = node.inputs
    sub = made_by(rest, "Sub")
    if sub is None or p is None or sub.inputs[1] is not p or not is_number(sub.inputs[0], 1.0):
        return None
    axis = node.attributes.get_int("axis", -1) % node.outputs[0].shape.rank()
    return Ending("probabilities", axis, "Concat of 1 − p and p")


SPELLED: dict[str, Callable[[ir.Node], Ending | None]] = {
    "Div": quotient, "Mul": product, "Sub": difference, "Exp": exponential, "Log": logarithm,
    "Concat": two_columns, "Reciprocal": lambda node: logistic(node.inputs[0]),
}  # fmt: skip
"""Operators that may be the last of an ending that is spelled out."""


def classifier(node: ir.Node, value: ir.Value) -> Ending | None:
    """The scores of a classifier of ai.onnx.ml, or its Normalizer."""
    if node.op_type == "Normalizer":
        sums = node.attributes.get_string("norm", "MAX") == "L1"
        return Ending("probabilities", 1, "Normalizer") if sums else None
    if node.op_type not in CLASSIFIERS or value is not node.outputs[1]:
        return None
    transform = node.attributes.get_string("post_transform", "NONE")
    binary = value.shape is not None and value.shape.rank() == 2 and value.shape[1] == 2
    how = f"{node.op_type} ({transform})"
    coupled = "prob_a" in node.attributes
    trees = node.op_type == "TreeEnsembleClassifier" or coupled
    if transform == "SOFTMAX" and binary and "support_vectors" in node.attributes and not coupled:
        return Ending("logits", 1, f"{how}: onnxruntime gives 1 − score and score")
    if transform == "SOFTMAX" or (transform == "LOGISTIC" and binary and not coupled):
        return Ending("probabilities", 1, how)
    if transform == "LOGISTIC":
        return Ending("sigmoid", None, how)
    return Ending("probabilities" if trees else "logits", 1, how)
