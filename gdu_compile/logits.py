"""Which output is the logits: which value, which axis, how many classes, what kind, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gdu_compile.contracts import DimSource, LogitsSite
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.losses import COLUMN_LOSSES, VALUE_LOSSES, LossSpec
from gdu_compile.shapes import list_shape

ENDINGS = {"Softmax": "probabilities", "LogSoftmax": "log_probabilities", "Sigmoid": "sigmoid"}
"""Operators that may end the graph: the recorder goes in front of them."""

REFUSED = {"HardSigmoid", "Hardmax"}
KINDS = ("logits", *ENDINGS.values(), "values")
VALUES_START = -8.0
"""z0 of ``values`` when no targets are known at compile time: below standard normal ones."""


@dataclass(frozen=True)
class Candidate:
    """An output that the loss may see, and the value that would be switched."""

    output: ir.Value
    value: ir.Value
    axis: int
    kind: str

    @property
    def classes(self) -> int:
        """C."""
        return class_count(self.output, self.axis)


def locate_logits(
    model: ir.Model,
    wanted: str | None = None,
    *,
    class_axis: int | None = None,
    loss: LossSpec | None = None,
    integers: bool | None = None,
) -> LogitsSite:
    """Find the output that the loss sees, and the value in front of its Softmax or Sigmoid.

    Args:
        model: the normalized base.
        wanted: name of the output to take; None to search.
        class_axis: the class axis; None for the last one of up to 3, else 1.
        loss: decides between logits and values where the graph does not.
        integers: whether the targets are whole numbers or booleans; None when not known.

    Raises:
        InputError: no output has the wanted name, or the loss does not go with it.
        UnsupportedError: no output can be logits; the reasons are listed.
    """
    outputs = {str(value.name): value for value in model.graph.outputs}
    if wanted is not None and wanted not in outputs:
        raise InputError(
            f"no output is called {wanted!r} (--logits)", [f"outputs: {', '.join(outputs)}"]
        )
    looked_at = outputs if wanted is None else {wanted: outputs[wanted]}
    found = {
        name: candidate(value, class_axis, loss, integers) for name, value in looked_at.items()
    }
    fitting = [each for each in found.values() if isinstance(each, Candidate)]
    if not fitting:
        raise UnsupportedError(
            "no output of the model can be logits",
            [f"output {name!r} {reason}" for name, reason in found.items()],
        )
    # One number per sample may be anything; several are rather what a classifier says.
    chosen = min(fitting, key=lambda each: each.kind == "values")
    site = LogitsSite(
        name=str(chosen.value.name),
        output=str(chosen.output.name),
        axis=chosen.axis,
        classes=chosen.classes,
        kind=chosen.kind,
        why=reason_for(wanted, chosen, fitting, len(outputs)),
        dims=dim_sources(model.graph, chosen.output),
    )
    if loss is not None:
        loss.check_kind(site)
    return site


def candidate(
    output: ir.Value, class_axis: int | None, loss: LossSpec | None, integers: bool | None
) -> Candidate | str:
    """The output as a candidate, or why it is none."""
    if reason := refusal(output, class_axis):
        return reason
    producer = output.producer()
    assert producer is not None and output.shape is not None
    axis = axis_from_end(output.shape.rank(), class_axis)
    if producer.op_type not in ENDINGS or producer.domain != "":
        kind = plain_kind(class_count(output, axis), loss, integers)
        return Candidate(output, output, axis, kind)
    value = producer.inputs[0]
    if value is None or value.producer() is None or value.graph is not output.graph:
        return f"is {producer.op_type} of a value that no node computes"
    if producer.op_type != "Sigmoid" and (reason := softmax_refusal(producer, output, axis)):
        return reason
    return Candidate(output, value, axis, ENDINGS[producer.op_type])


def refusal(value: ir.Value, class_axis: int | None) -> str | None:
    """Why this output cannot be logits, or None."""
    producer = value.producer()
    if producer is None:
        return "is not computed by a node"
    if not isinstance(value.type, ir.TensorType) or value.dtype != ir.DataType.FLOAT:
        return f"has type {value.type}, and only float32 tensors are supported"
    if value.shape is None:
        return "has no known shape; run onnx.shape_inference on the model first"
    shape, rank = list_shape(value.shape), value.shape.rank()
    if rank == 0:
        return f"has shape {shape}, and has no axis of samples"
    if rank > 5 and class_axis is None:
        return f"has shape {shape}; say which axis holds the classes: --class-axis"
    if class_axis is not None and (not -rank < class_axis < rank or class_axis == 0):
        return f"has shape {shape}, which has no class axis {class_axis} (--class-axis)"
    if rank > 1 and not isinstance(value.shape[axis_from_end(rank, class_axis)], int):
        return f"has shape {shape}, whose class axis has no fixed size"
    if 0 in value.shape:
        return f"has shape {shape}: no elements"
    if producer.op_type in REFUSED:
        return f"comes from {producer.op_type}: export the model without it, so it gives logits"
    return hidden_ending(producer)


def hidden_ending(producer: ir.Node) -> str | None:
    """The complaint about a Softmax or Sigmoid that is followed by a mere change of form."""
    node: ir.Node | None = producer
    while node is not None and node.op_type in {"Cast", "Reshape", "Flatten", "Squeeze",
                                                "Unsqueeze", "Transpose", "Identity"}:  # fmt: skip
        source = node.inputs[0]
        node = None if source is None else source.producer()
    if node is producer or node is None or node.op_type not in {*ENDINGS, *REFUSED}:
        return None
    return (f"comes from {node.op_type} by way of {producer.op_type}: export the model without "
            f"{producer.op_type}, or without both")  # fmt: skip


def softmax_refusal(node: ir.Node, output: ir.Value, axis: int) -> str | None:
    """What is wrong with the axis of a Softmax or LogSoftmax, or None."""
    assert output.shape is not None
    rank = output.shape.rank()
    along = int(node.attributes.get_int("axis", -1)) % rank
    if along != axis % rank:
        shape = list_shape(output.shape)
        return (f"comes from {node.op_type} along axis {along}, but the class axis of {shape} is "
                f"{axis % rank}; --class-axis {along} takes the other")  # fmt: skip
    if class_count(output, axis) < 2:
        return (f"comes from {node.op_type} over {list_shape(output.shape)}, which is 1 whatever "
                "the weights are")  # fmt: skip
    return None


def axis_from_end(rank: int, class_axis: int | None) -> int:
    """The class axis as a negative index: the last of [N, C] and [N, T, V], 1 of [N, C, H, W]."""
    if class_axis is not None:
        return class_axis if class_axis < 0 else class_axis - rank
    return -1 if rank <= 3 else 1 - rank


def class_count(value: ir.Value, axis: int) -> int:
    """C of an output that was not refused; 1 for [N]."""
    assert value.shape is not None
    classes = 1 if value.shape.rank() == 1 else value.shape[axis]
    assert isinstance(classes, int)
    return classes


def plain_kind(classes: int, loss: LossSpec | None, integers: bool | None) -> str:
    """Logits or values: what a float output is that ends in nothing in particular.

    One column is a regression unless the loss, or whole-numbered targets, say otherwise.
    """
    if loss is not None and loss.name in VALUE_LOSSES:
        return "values"
    if classes == 1 and not integers and (loss is None or loss.name not in COLUMN_LOSSES):
        return "values"
    return "logits"


def value_at(graph: ir.Graph, name: str) -> ir.Value:
    """The value of this name that a node of the main graph computes."""
    return next(value for node in graph for value in node.outputs if value.name == name)


def reason_for(
    wanted: str | None, chosen: Candidate, fitting: list[Candidate], outputs: int
) -> str:
    """The sentence for LogitsSite.why."""
    if wanted is not None:
        why = "named by --logits"
    elif len(fitting) == 1:
        why = "the only output" if outputs == 1 else "the only output that is float with classes"
    else:
        names = ", ".join(str(each.output.name) for each in fitting)
        why = f"the first of {len(fitting)} outputs that can be logits: {names}"
    if chosen.value is not chosen.output:
        producer = chosen.output.producer()
        assert producer is not None
        why += f"; recorded in front of its {producer.op_type}"
    return why


def dim_sources(graph: ir.Graph, logits: ir.Value) -> tuple[DimSource, ...]:
    """Where the sizes can be read without running the base (see LogitsSite.dims)."""
    assert logits.shape is not None
    return tuple(dim_source(graph, dim) for dim in logits.shape)


def dim_source(graph: ir.Graph, dim: int | ir.SymbolicDim) -> DimSource:
    """A fixed size, the input dimension of the same name, or None."""
    if isinstance(dim, int):
        return dim
    for value in graph.inputs if dim.value is not None else ():
        for index, other in enumerate(value.shape or ()):
            if isinstance(other, ir.SymbolicDim) and other.value == dim.value:
                return str(value.name), index
    return None


def recorder_start(
    site: LogitsSite, batch_limit: int, *, below: float | None, loss: LossSpec | None
) -> float:
    """z0 of column 0 (THEORY Lemma 1), a float32.

    p_0 = 1/(2N) for a softmax over C classes and for a sigmoid: no mean of N labels.
    For values z0 lies below the targets.

    Args:
        site: the logits.
        batch_limit: N, the largest number of samples, tokens or pixels in a batch.
        below: for values: a number below all targets of column 0; None when not known.
        loss: the loss, when it is known that every column is a question of its own.

    Example:
        >>> site = LogitsSite("z", "z", -1, 1, "sigmoid", "", (None,))
        >>> z0 = recorder_start(site, 2**20, below=None, loss=None)
        >>> round(1 / (1 + math.exp(-z0)) * 2**21, 5)
        1.0
    """
    if site.kind == "values":
        start = VALUES_START if below is None else below
    elif site.kind == "sigmoid" or site.classes == 1 or (loss and loss.name in COLUMN_LOSSES):
        start = -math.log(2 * batch_limit - 1)
    else:
        start = -math.log((2 * batch_limit - 1) / (site.classes - 1))
    return float(np.float32(start))
