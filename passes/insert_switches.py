"""InsertSwitchesPass: the two switches of THEORY §3.

Before: the base computes its logits from its initial weights; the recorder's
logits are computed beside them.  After:

    ŵ      = If(armed) { decode(θ) } else { w }
    logits = If(armed) { z + tie }   else { the recorder's logits }

A switch takes over the name of what it switches: the base's nodes, and the
graph's outputs, stay as they are to the letter; the initial weights and the
base's own logits are renamed.  The recorder sinks into its branch.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
from gdu_compile.passes._base import GduPass
from gdu_compile.passes.inline_algorithm import InlineAlgorithmPass
from gdu_compile.passes.insert_memory import InsertMemoryPass
from gdu_compile.passes.insert_recorder import InsertRecorderPass
from gdu_compile.passes.sink import sink

from gdu_compile.builder import FLOAT, Builder
from gdu_compile.contracts import PASS_KEY, Bucket, LogitsSite, State
from gdu_compile.emit import bucket_sizes, emit_decode, emit_switch
from gdu_compile.logits import value_at
from gdu_compile.names import Names
from gdu_compile.number_formats import numpy_dtype

SINKING = {kind.__name__ for kind in (InsertRecorderPass, InsertMemoryPass, InlineAlgorithmPass)}
"""Passes whose nodes belong into a branch where only that uses them."""


class InsertSwitchesPass(GduPass):
    """Switch weights and logits between recording and armed."""

    needs = ("weights", "armed", "recorded_logits", "logits", "code", "gain")
    gives = ("initial", "base_logits")

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        names = Names(model)
        tie = switch_weights(model.graph, names, state)
        switch_logits(model, names, state, tie)
        sink(model.graph, lambda node: node.metadata_props.get(PASS_KEY) in SINKING)
        return {"switches": 2, "weights": len(state.initial or ())}


def switch_weights(graph: ir.Graph, names: Names, state: State) -> ir.Value:
    """One If for all weights; its last output is the tie."""
    assert state.weights is not None and state.armed is not None
    weights = [graph.initializers[weight.name] for weight in state.weights]
    uses = [list(weight.uses()) for weight in weights]
    b = Builder(names, InsertSwitchesPass.__name__)
    decoded, tie = decoder(b, graph, state) if state.computed is None else computed(b, graph, state)
    then = b.branch([*decoded, tie], "gdu_armed_weights")
    initial = [
        b.op("Identity", w, name="gdu_kept", shape=w.shape or (), dtype=w.dtype or FLOAT)
        for w in weights
    ]
    otherwise = b.branch([*initial, b.float(-0.0, "gdu_no_tie")], "gdu_initial_weights")
    outputs = emit_switch(b, state.armed, then, otherwise, [*weights, tie])
    switched = [as_constant(b, output) for output in outputs[:-1]]
    graph.insert_after(last_of(graph, [state.armed, *(state.computed or ())]), b.nodes)
    state.initial = {}
    for weight, output, users in zip(weights, switched, uses, strict=True):
        name = str(weight.name)
        take_over(graph, weight, output, users, names.fresh(f"gdu_initial_{name}"))
        state.initial[name] = str(weight.name)
    return outputs[-1]


def as_constant(b: Builder, switched: ir.Value) -> ir.Value:
    """The weight in such a form that onnxruntime treats its users as it does beside a constant.

    onnxruntime runs a float16 node in float32 where it stands between nodes that it runs in float32
    (InsertCastTransformer of its CPU provider), and so does not round between them.  If is no such
    node; Mul is, and with all optimisations a Mul by 1 goes when the If has gone.
    """
    half = ir.DataType.FLOAT16
    if switched.dtype != half:
        return switched
    one = b.float(1.0, "gdu_one", half)
    return b.op("Mul", switched, one, name="gdu_switched", dtype=half, shape=switched.shape)


def decoder(b: Builder, graph: ir.Graph, state: State) -> tuple[list[ir.Value], ir.Value]:
    """The armed branch: all weights in bucket order, and −0 tied to all of θ."""
    assert state.buckets is not None and state.code is not None and state.gain is not None
    weights: list[ir.Value] = []
    ties: list[ir.Value] = []
    for bucket in state.buckets:
        theta = graph.initializers[bucket.theta]
        parts, tie = emit_decode(b, theta, bucket.encoding(state.code), state.gain,
                                 bucket_sizes(bucket))  # fmt: skip
        ties.append(tie)
        weights += reshape(b, parts, bucket)
    total = ties[0]
    for tie in ties[1:]:
        total = b.op("Add", total, tie, name="gdu_ties", shape=[])
    return weights, total


def computed(b: Builder, graph: ir.Graph, state: State) -> tuple[list[ir.Value], ir.Value]:
    """The armed branch of learn: what InlineAlgorithmPass has left; its nodes sink in here.

    What the memory holds stays there, whatever the algorithm uses of it, and where: confirmation
    reads it back.
    """
    assert state.computed is not None and state.tie is not None and state.weights is not None
    assert state.algorithm is not None
    for name in state.algorithm.inputs:
        value = value_at(graph, name)
        b.op("Identity", value, name="gdu_read", dtype=value.dtype or FLOAT, shape=value.shape)
    weights = [
        b.op("Identity", value, name="gdu_weight", shape=weight.shape,
             dtype=ir.DataType.from_numpy(numpy_dtype(weight.dtype)))
        for value, weight in zip(state.computed, state.weights, strict=True)
    ]  # fmt: skip
    return weights, b.op("Identity", state.tie, name="gdu_tie_inside", shape=[])


def last_of(graph: ir.Graph, values: Iterable[ir.Value]) -> ir.Node:
    """The last node of the graph that makes one of these values."""
    makers = {value.producer() for value in values}
    return next(node for node in reversed(list(graph)) if node in makers)


def reshape(b: Builder, parts: list[ir.Value], bucket: Bucket) -> list[ir.Value]:
    """Elements [n, 1] → the weights' own shapes."""
    return [
        b.op("Reshape", part, b.ints(slot.shape, "gdu_weight_shape"), name="gdu_weight",
             shape=slot.shape, dtype=part.dtype or FLOAT)
        for part, slot in zip(parts, bucket.slots, strict=True)
    ]  # fmt: skip


def switch_logits(model: ir.Model, names: Names, state: State, tie: ir.Value) -> None:
    """One If for the logits."""
    assert state.logits is not None and state.armed is not None
    assert state.recorded_logits is not None
    logits, recorded = value_at(model.graph, state.logits.name), state.recorded_logits
    uses = uses_of_switch(logits, state.logits)
    shape = logits.shape
    b = Builder(names, InsertSwitchesPass.__name__)
    # The Add stands outside the branch: onnxruntime removes an Add of 0 only while its result is
    # no graph output, and an Identity of an outer value in a branch lives until then.
    tied = add_tie(b, logits, tie, narrow=logits not in model.graph.outputs)
    outside, b.nodes = b.nodes, []
    dtype = logits.dtype or FLOAT
    armed = b.op("Identity", tied, name="gdu_answer", dtype=dtype, shape=shape)
    then = b.branch([armed], "gdu_armed_logits")
    kept = b.op("Identity", recorded, name="gdu_recorder", dtype=dtype, shape=shape)
    otherwise = b.branch([kept], "gdu_recording_logits")
    (output,) = emit_switch(b, state.armed, then, otherwise, [logits])
    last = recorded.producer()
    assert last is not None
    model.graph.insert_after(last, [*outside, *b.nodes])
    take_over(model.graph, logits, output, uses, names.fresh(f"gdu_base_{logits.name}"))
    state.base_logits = str(logits.name)


def uses_of_switch(logits: ir.Value, site: LogitsSite) -> list[tuple[ir.Node, int]]:
    """The uses of the base's logits that become uses of the switch.

    The recorder may read their shape; that use stays with the base.  So does every use of float16
    logits that the loss does not look through: the switch rounds, and onnxruntime need not
    (as_constant says how).
    """
    if logits.dtype == ir.DataType.FLOAT16 and site.name == site.output:
        return []
    return [
        (use.node, use.idx) for use in logits.uses()
        if use.node.metadata_props.get(PASS_KEY) not in SINKING
    ]  # fmt: skip


def add_tie(b: Builder, logits: ir.Value, tie: ir.Value, *, narrow: bool) -> ir.Value:
    """z + (−0) = z; onnxruntime has no Add of bfloat16, float32 holds them.

    Args:
        b: takes the nodes.
        logits: z.
        tie: −0.
        narrow: a float16 z is added to in float16, as what is no output is treated by onnxruntime
            (as_constant says how); an output is rounded to float16, and so is what Cast reads.
    """
    dtype, shape = logits.dtype or FLOAT, logits.shape
    wide = {ir.DataType.BFLOAT16} if narrow else {ir.DataType.BFLOAT16, ir.DataType.FLOAT16}
    inside = FLOAT if dtype in wide else dtype
    logits = b.cast(logits, inside, "gdu_wide_logits", shape or ())
    tie = b.cast(tie, inside, "gdu_tie_cast", [])
    tied = b.op("Add", logits, tie, name="gdu_tied_logits", dtype=inside, shape=shape)
    return b.cast(tied, dtype, "gdu_narrow_logits", shape or ())


def take_over(
    graph: ir.Graph, old: ir.Value, new: ir.Value, uses: Iterable[tuple[ir.Node, int]], renamed: str
) -> None:
    """Give ``new`` the name, the listed uses and the graph outputs of ``old``."""
    name = str(old.name)
    ir.convenience.rename_values(old, renamed)
    new.name = name
    for node, index in uses:
        node.replace_input_with(index, new)
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new
