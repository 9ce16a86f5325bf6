"""``--why NAME``: what happens to one tensor, and why, in sentences."""

from __future__ import annotations

import onnx_ir as ir

from gdu_compile.contracts import PASS_KEY, Slot, State, state_of
from gdu_compile.errors import InputError
from gdu_compile.graph_view import reaching


def explain(model: ir.Model, name: str) -> list[str]:
    """Sentences about the tensor ``name``, after the passes have run.

    Raises:
        InputError: neither the model nor the oracle has that name.
    """
    state = state_of(model)
    values = {str(v.name): v for v in all_values(model)}
    held = name in (state.held or ()) or name in state.renamed
    if name not in values and not held:
        raise InputError(f"--why {name}: no tensor of that name in the model or the oracle")
    called = f" as {state.renamed[name]!r}" if name in state.renamed else ""
    if state.counterpart is not None and not held:
        held = name in state.counterpart.graph.initializers
        called = ", put back, as their exporter had removed it" if held else ""
    if state.algorithm is None:
        lines = [f"the oracle weights {'hold' if held else 'do not hold'} it{called}"]
    else:
        does = "computes" if held else "does not compute"
        lines = [f"the oracle {state.algorithm.name} {does} it"]
    if name not in values:
        return [*lines, "the model has no such tensor (ignored: --allow-extra)"]
    lines += place(state, name)
    value = values[name]
    users = [
        node for node in dict.fromkeys(usage.node for usage in value.uses())
        if PASS_KEY not in node.metadata_props
    ]  # fmt: skip
    if users:
        lines.append("used by " + ", ".join(f"{n.op_type} {n.name!r}" for n in users))
    else:
        lines.append("used by no node of the base")
    if state.base_logits is not None and value.graph is model.graph:
        base = values[state.base_logits]
        reached = name in reaching(model.graph, base) or value is base
        lines.append(f"{'reaches' if reached else 'does not reach'} the logits")
    return lines


def place(state: State, name: str) -> list[str]:
    """What the record passes have done with it."""
    for bucket in state.buckets or ():
        for slot in bucket.slots:
            if slot.weight == name:
                return [recorded(slot, bucket.theta), *lifted(state, name)]
    for weight in state.algorithm.weights if state.algorithm is not None else ():
        if weight.name == name:
            return [f"computed: the algorithm's output, {weight.dtype} {list(weight.shape)}",
                    *lifted(state, name)]  # fmt: skip
    for skipped in state.skipped or ():
        if skipped.name == name:
            return [f"not recorded: {skipped.reason}"]
    if state.logits is not None and state.logits.name == name:
        return [f"it is the logits: {state.logits.why}; the switch answers with the recorder "
                "while recording, and with the base once armed"]  # fmt: skip
    return ["not recorded: it is no float weight"]


def recorded(slot: Slot, theta: str) -> str:
    """Where a recorded weight lies."""
    first, last = slot.offset + 1, slot.offset + slot.elements
    return (f"recorded: its {slot.elements} elements {list(slot.shape)} are rows {first} … {last} "
            f"of {theta} (row 0 is the calibrator); its signal is {slot.signal}")  # fmt: skip


def lifted(state: State, name: str) -> list[str]:
    """Whether it was a Constant node, or no initializer at all."""
    if name in state.placed:
        return [f"in the model it was {state.placed[name]}"]
    if name in (state.lifted or {}):
        return ["it was a Constant node, and is an initializer now"]
    return []


def all_values(model: ir.Model) -> list[ir.Value]:
    """Inputs, initializers and node outputs, in all graphs."""
    found: list[ir.Value] = []
    for graph in model.graphs():
        found += [*graph.inputs, *graph.initializers.values()]
        found += [output for node in graph for output in node.outputs]
    return found
