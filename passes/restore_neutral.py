"""RestoreNeutralPass: additions of 0 and multiplications by 1 that an exporter has removed.

Before: a normalized model; the oracle is another export of the same network, and has a bias or a
factor where this one, whose numbers did nothing there, has no node or no input any more.  After:
they are there, with numbers that do nothing (``neutral.py``); each is a weight, named as in the
oracle.  What the oracle lacks, and the model has, is put back into a copy of the oracle's graph.
Other oracles, and those whose names go with all weights, leave the model as it is.
State: ``restored``, ``counterpart``.

Each network is run before and after, in onnxruntime.  Refuses: another bit without optimisations.
With all of them onnxruntime may fuse the restored nodes: then a warning says what that changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir
from gdu_compile.passes._base import GduPass

from gdu_compile import runtime
from gdu_compile.bits import max_abs_diff, same_bits
from gdu_compile.contracts import Restored, State
from gdu_compile.digits import Array
from gdu_compile.errors import GduError, UnsupportedError
from gdu_compile.name_matching import WHOLE, is_other_export
from gdu_compile.onnx_weights import at_opset
from gdu_compile.oracle_weights import OracleWeights
from gdu_compile.restoring import planned, put_back
from gdu_compile.structure import match_structure
from gdu_compile.synthetic import seeded_inputs

NAMED = 3
"""So many places are listed."""
Answers = dict[str, dict[str, Array]]
"""Optimisation level → output → array."""


class RestoreNeutralPass(GduPass):
    """Put back what an exporter has removed because it did nothing, where the oracle has it.

    Args:
        oracle: the oracle weights w*.
    """

    needs = ("lifted",)

    def __init__(self, oracle: OracleWeights) -> None:
        self.oracle = oracle

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        if self.oracle.graph is None or not is_other_export(self.oracle, model, state):
            return {}
        other = at_opset(self.oracle.graph, model)
        match = match_structure(model, other)
        if match.differences:
            return {}  # BindOraclePass says what differs
        ours = planned(match.removed[0], model, other)
        theirs = planned(match.removed[1], other, model)
        if theirs:
            state.counterpart = other.clone()
            state.notes += restore(state.counterpart, theirs, f"the oracle {self.oracle.source}")
        state.restored = ours
        state.notes += restore(model, ours, "the model")
        return {name: len(plan) for name, plan in (("model", ours), ("oracle", theirs)) if plan}


def restore(model: ir.Model, plan: Sequence[Restored], called: str) -> list[str]:
    """Carry out a plan; what was done, in sentences.

    Raises:
        UnsupportedError: the outputs are no longer the same.
    """
    if not plan:
        return []
    before = answers(model)
    put_back(model, plan)
    return [f"{called}: its exporter has removed what did nothing with its own weights; put back: "
            f"{listed(plan)}", *differences(before, answers(model), plan, called)]  # fmt: skip


def listed(restored: Sequence[Restored]) -> str:
    """The first ones, in a message."""
    more = f" and {len(restored) - NAMED} more" if len(restored) > NAMED else ""
    return ", ".join(map(str, restored[: -NAMED - 1 : -1])) + more


def answers(model: ir.Model) -> Answers | str:
    """The outputs on seeded inputs at both levels, or why there are none."""
    try:
        inputs = seeded_inputs(model)
        with runtime.on_disk(model) as path:
            return {
                level: runtime.run(path, inputs, level=level, calls=True, called="the model")
                for level in runtime.LEVELS
            }
    except GduError as error:
        return error.message


def differences(
    before: Answers | str, after: Answers | str, restored: Sequence[Restored], called: str
) -> list[str]:
    """What the restored nodes change, in sentences.

    Raises:
        UnsupportedError: a bit, without optimisations.
    """
    if isinstance(before, str):
        return [f"{called}: what was put back was not compared on synthetic inputs: {before}"]
    if isinstance(after, str):
        raise other_network(called, f"then {after}", restored)
    gaps = {
        level: max(max_abs_diff(array, after[level][name]) for name, array in outputs.items())
        for level, outputs in before.items()
        if any(not same_bits(array, after[level][name]) for name, array in outputs.items())
    }
    if "none" in gaps:
        gap = gaps["none"]
        change = f" by {gap:.2g}" if math.isfinite(gap) else "' shape"
        raise other_network(called, f"it changes the outputs{change}", restored)
    return [
        f"{called}: with all optimisations onnxruntime fuses what was put back, and the outputs "
        f"change by {gap:.2g}; what is compared and extracted has it, as the other export has"
        for gap in gaps.values()
    ]


def other_network(called: str, why: str, restored: Sequence[Restored]) -> UnsupportedError:
    """The refusal."""
    return UnsupportedError(
        f"{called} is another network: what it lacks was no addition of 0 and no multiplication "
        f"by 1, for put back, {why}; {WHOLE}", [str(each) for each in restored],
    )  # fmt: skip
