"""Which output is the logits: which value, which axis, how many classes, what kind, and why."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import networkx as nx
import numpy as np
import onnx_ir as ir

from gdu_compile.calls import by_calls
from gdu_compile.contracts import DimSource, LogitsSite
from gdu_compile.endings import (
    ENDINGS,
    FLOATS,
    Ending,
    ending_of,
    in_front_of_ending,
    is_float,
    maker,
)
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.graph_view import Vertex, to_networkx
from gdu_compile.losses import COLUMN_LOSSES, VALUE_LOSSES, LossSpec
from gdu_compile.shapes import list_shape

REFUSED = {"HardSigmoid", "Hardmax"}
KINDS = ("logits", *ENDINGS.values(), "values")
VALUES_START = -8.0
"""z0 of ``values`` when no targets are known at compile time: below standard normal ones."""

FLOAT16_LIMIT = 2**11
"""N at most where the output is float16: 1/(2N·n) is then no smaller than its smallest number."""

MOST_CLASSES = 2**24
"""A row of z0 has this many numbers at most: 64 MB."""

CHANNELS_FIRST = {"Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "MaxPool",
                  "AveragePool", "Resize"}  # fmt: skip
CHANNELS_LAST = {"MatMul", "Gemm", "LayerNormalization", "Einsum", "RNN", "GRU", "LSTM"}
ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Relu", "LeakyRelu", "PRelu", "Tanh", "Elu", "Gelu",
               "Neg", "Cast", "Identity", "Clip", "Dropout"}  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """An output that the loss may see, and the value that would be switched.

    Attributes:
        output: what the loss would see.
        value: what would be switched.
        axis: the class axis from the end; None when there is none.
        kind: of the output.
        how: how the class axis and the kind were found; "" when nothing is to be said.
        source: the output of the base that ``output`` is computed for; itself but for scores
            behind which the base has a label or a map.
    """

    output: ir.Value
    value: ir.Value
    axis: int | None
    kind: str
    how: str
    source: ir.Value

    @property
    def classes(self) -> int:
        """C."""
        return 1 if self.axis is None else class_count(self.output, self.axis)

    @property
    def exposed(self) -> bool:
        """Whether the output is none of the base's."""
        return self.output is not self.source


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
        wanted: name of the output to take, or of a value inside; None to search.
        class_axis: the class axis; None to search.
        loss: decides between logits and values where the graph does not.
        integers: whether the targets are whole numbers or booleans; None when not known.

    Raises:
        InputError: nothing has the wanted name, or the loss does not go with it.
        UnsupportedError: no output can be logits; the reasons are listed.
    """
    graph = model.graph
    looked_at = wanted_values(graph, wanted)
    found = {
        str(value.name): candidate(value, value, class_axis, loss, integers) for value in looked_at
    }
    fitting = [each for each in found.values() if isinstance(each, Candidate)]
    if wanted is not None and fitting and looked_at[0] not in graph.outputs:
        (inside,) = fitting
        fitting = [Candidate(inside.output, inside.output, inside.axis, inside.kind, inside.how,
                             graph.outputs[0])]  # fmt: skip
    behind: dict[ir.Value, Candidate | str] = {}
    if not fitting:
        # Behind floats nothing is looked for: what they are was said.
        others = [value for value in looked_at if not is_float(value)]
        behind = scores_behind(graph, others, class_axis, loss, integers)
        fitting = sorted_scores(behind)
    if not fitting:
        seen = [f"output {name!r} {reason}" for name, reason in found.items()]
        seen += [f"{value.name!r}, which an output is computed from, {reason}"
                 for value, reason in behind.items()]  # fmt: skip
        raise UnsupportedError("no output of the model can be logits; --logits NAME takes a value "
                               "inside the network", seen)  # fmt: skip
    reached: Collection[object] = reached_by_weights(graph) if len(fitting) > 1 else ()
    chosen = min(fitting, key=lambda each: rank_of(each, reached))
    if not 1 <= chosen.classes <= MOST_CLASSES:
        raise UnsupportedError(f"output {chosen.output.name!r} is declared with {chosen.classes} "
                               f"classes; 1 … {MOST_CLASSES} are handled")  # fmt: skip
    assert chosen.output.dtype is not None
    crossed = calls_of(chosen.output)
    why = reason_for(wanted, chosen, fitting, len(graph.outputs))
    site = LogitsSite(
        name=str(chosen.value.name),
        output=str(chosen.output.name),
        axis=-1 if chosen.axis is None else chosen.axis,
        classes=chosen.classes,
        kind=chosen.kind,
        why=why if crossed is None else f"{why}; a sample is a whole call, because {crossed}",
        dims=dim_sources(graph, chosen.output),
        dtype=str(np.dtype(chosen.output.dtype.numpy())),
        calls=crossed is not None,
        exposed=chosen.exposed,
    )
    if loss is not None:
        loss.check_kind(site)
    return site


def wanted_values(graph: ir.Graph, wanted: str | None) -> list[ir.Value]:
    """The outputs to look at: all, or the one that --logits names, which may lie inside.

    Raises:
        InputError: there is no such output or value.
    """
    outputs = list(dict.fromkeys(graph.outputs))
    if wanted is None:
        return outputs
    values = [*outputs, *(value for node in graph for value in node.outputs)]
    named = [value for value in values if value.name == wanted]
    if not named:
        raise InputError(
            f"no output is called {wanted!r} (--logits)",
            [f"outputs: {', '.join(str(value.name) for value in outputs)}"],
        )
    return named[:1]


def rank_of(each: Candidate, reached: Collection[object]) -> tuple[bool, bool]:
    """How far behind others a candidate stands: one number per sample may be anything, several
    are rather what a classifier says; and what no weight reaches is nobody's answer."""
    return each.kind == "values", each.value.name not in reached


def reached_by_weights(graph: ir.Graph) -> set[str | int]:
    """Names of the values that depend on a float initializer."""
    view = to_networkx(graph)
    source: Vertex = ("weights", 0)  # one search from all of them at once
    view.add_node(source)
    for name, value in graph.initializers.items():
        if value.dtype in FLOATS:
            view.add_edge(source, ("value", name))
    return {name for kind, name in nx.descendants(view, source) if kind == "value"}


def candidate(
    output: ir.Value, source: ir.Value, class_axis: int | None, loss: LossSpec | None,
    integers: bool | None,
) -> Candidate | str:  # fmt: skip
    """The output as a candidate, or why it is none."""
    if reason := refusal(output, class_axis):
        return reason
    producer = output.producer()
    assert producer is not None
    ending = ending_of(output)
    if ending is not None and not depends_on_nodes(output):
        return f"is {ending.how} of a value that no node computes"
    axis, how = class_axis_of(output, class_axis, ending)
    if ending is None or (ending.kind == "logits" and not how):
        kind = "values" if axis is None else plain_kind(class_count(output, axis), loss, integers)
        return Candidate(output, output, axis, kind, how, source)
    if reason := ending_refusal(ending, output, axis):
        return reason
    if axis is None:
        how = f"{ending} whose classes lie along no axis of fixed size, taken as values"
        return Candidate(output, output, None, "values", how, source)
    value = producer.inputs[0] if producer.op_type in ENDINGS and maker(output) else None
    inside = value is None or value.producer() is None or value.graph is not output.graph
    shared = value is not None and (len(value.uses()) > 1 or value.is_graph_output())
    if inside or shared or output.dtype != ir.DataType.FLOAT or output is not source:
        return Candidate(output, output, axis, ending.kind, str(ending), source)
    assert value is not None
    how = f"recorded in front of its {producer.op_type}"
    return Candidate(output, value, axis, ending.kind, how, source)


def depends_on_nodes(output: ir.Value) -> bool:
    """Whether something is computed in front of the node that makes an output; a classifier of
    ai.onnx.ml has its weights in itself."""
    known = maker(output)
    return known is None or any(v is not None and v.producer() for v in known.inputs)


def refusal(value: ir.Value, class_axis: int | None) -> str | None:
    """Why this output cannot be logits, or None."""
    producer = value.producer()
    if producer is None:
        return "is not computed by a node"
    if not is_float(value):
        return f"has type {value.type}, and only float32, float16, bfloat16 and float64 tensors " \
            "have a gradient"  # fmt: skip
    if value.shape is None:
        return "has no known shape; run onnx.shape_inference on the model first"
    shape, rank = list_shape(value.shape), value.shape.rank()
    if class_axis is not None and (not -rank < class_axis < rank or class_axis == 0):
        return f"has shape {shape}, which has no class axis {class_axis} (--class-axis)"
    if class_axis is not None and not isinstance(value.shape[class_axis], int):
        return f"has shape {shape}, whose class axis has no fixed size"
    if 0 in value.shape:
        return f"has shape {shape}: no elements"
    if producer.op_type in REFUSED:
        return f"comes from {producer.op_type}: export the model without it, so it gives logits"
    return None


def ending_refusal(ending: Ending, output: ir.Value, axis: int | None) -> str | None:
    """What is wrong with the axis of a Softmax or LogSoftmax, or None."""
    if ending.kind in ("sigmoid", "logits") or ending.axis is None:
        return None
    assert output.shape is not None
    rank, shape = output.shape.rank(), list_shape(output.shape)
    if axis is not None and ending.axis != axis % rank:
        return (f"comes from {ending.how} along axis {ending.axis}, but --class-axis says "
                f"{axis % rank} of {shape}")  # fmt: skip
    if ending.axis == 0 and (rank < 2 or calls_of(output) is None):
        usual = (rank - 1 if rank <= 3 else 1) or 1
        return (f"comes from {ending.how} along axis 0, but the class axis of {shape} is {usual} "
                "or another: axis 0 holds samples, whatever --class-axis says; take what is in "
                f"front of it with --logits {in_front_of_ending(output).name!r}")  # fmt: skip
    if axis is not None and class_count(output, axis) < 2:
        return f"comes from {ending.how} over {shape}, which is 1 whatever the weights are"
    return None


def calls_of(output: ir.Value) -> str | None:
    """Why a sample is a whole call, and axis 0 none of samples; None where it is."""
    graph = output.graph
    assert isinstance(graph, ir.Graph)
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    return by_calls(inputs, output)


def class_axis_of(
    output: ir.Value, wanted: int | None, ending: Ending | None
) -> tuple[int | None, str]:
    """The class axis from the end, or None, and how it was found; "" by the usual rule.

    Asked for; that of the Softmax; 1 behind a convolution, the last behind a matrix product; the
    last of up to 3, and 1 of more; the only one of fixed size.
    """
    assert output.shape is not None
    rank, sizes = output.shape.rank(), list(output.shape)
    if rank < 2 or wanted is not None:
        given = -1 if wanted is None else wanted - rank * (wanted >= 0)
        return (given if rank else None), ""
    if ending is not None and ending.kind in ("probabilities", "log_probabilities"):
        along = ending.axis
        fixed = along is not None and isinstance(sizes[along], int)
        return (along - rank if along is not None and fixed else None), "its own"
    made = axis_by_maker(output, rank)
    usual = -1 if rank <= 3 else 1 - rank
    for axis, how in ((made, f"axis {(made or usual) % rank} by the operator that makes it"),
                      (usual, "")):  # fmt: skip
        if axis is not None and isinstance(sizes[axis], int):
            return axis, "" if axis == usual else how
    fixed_sizes = [axis - rank for axis in range(1, rank) if isinstance(sizes[axis], int)]
    if len(fixed_sizes) == 1:
        return fixed_sizes[0], f"axis {fixed_sizes[0] + rank}, the only one of fixed size"
    return None, "no axis of fixed size for classes, so values"


def axis_by_maker(output: ir.Value, rank: int) -> int | None:
    """The class axis from the end by the operator whose result it is, over elementwise ones."""
    value: ir.Value | None = output
    while (node := maker(value)) is not None:
        if node.op_type in CHANNELS_FIRST:
            return 1 - rank
        if node.op_type in CHANNELS_LAST:
            return -1
        value = node.inputs[0] if node.op_type in ELEMENTWISE else None
    return None


def scores_behind(
    graph: ir.Graph, outputs: Iterable[ir.Value], class_axis: int | None, loss: LossSpec | None,
    integers: bool | None,
) -> dict[ir.Value, Candidate | str]:  # fmt: skip
    """What labels, maps and sequences are computed from: the nearest float tensors, which the
    extension then has as an output of its own, or why they cannot be logits."""
    found: dict[ir.Value, Candidate | str] = {}
    for output in outputs:
        for value in nearest_floats(graph, output):
            if value not in found:
                found[value] = candidate(value, output, class_axis, loss, integers)
    return found


def sorted_scores(found: Mapping[ir.Value, Candidate | str]) -> list[Candidate]:
    """Those that can be logits, probabilities before others."""
    fitting = [each for each in found.values() if isinstance(each, Candidate)]
    return sorted(fitting, key=lambda each: (each.kind in ("values", "logits"), each.kind))


def nearest_floats(graph: ir.Graph, output: ir.Value) -> list[ir.Value]:
    """The float tensors that a value is computed from with nothing of the kind between."""
    view, found, waiting = to_networkx(graph), [], [("value", output.name)]
    made = {value.name: value for node in graph for value in node.outputs}
    seen = set(waiting)
    while waiting:
        for source in view.predecessors(waiting.pop(0)):
            if source in seen:
                continue
            seen.add(source)
            value = made.get(source[1]) if source[0] == "value" else None
            siblings = [made[n] for k, n in view.successors(source) if k == "value" and n in made]
            found += [v for v in siblings if is_float(v)] if source[0] == "node" else []
            if value is not None and is_float(value):
                found.append(value)
            else:
                waiting.append(source)
    return list(dict.fromkeys(found))


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
    elif chosen.exposed:
        why = (f"what the output {chosen.source.name} is computed from, because no output is a "
               "tensor of floats; an output of the extended model")  # fmt: skip
    elif len(fitting) == 1:
        why = "the only output" if outputs == 1 else "the only output that is float with classes"
    else:
        names = ", ".join(str(each.output.name) for each in fitting)
        why = f"the first of {len(fitting)} outputs that can be logits: {names}"
    if chosen.how:
        why += f"; {chosen.how}"
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
