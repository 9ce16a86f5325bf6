"""CheckExtensionPass: the extended graph is what it claims to be; changes nothing.

After: θ are the only float initializers of ours, start at 0, and have no dot in
their names; every slot's signal is an integer initializer of the right shape;
the switches hang on one condition that depends on nothing but θ.
"""

from __future__ import annotations

import onnx_ir as ir
from gdu_compile.passes._base import GduPass

from gdu_compile.contracts import Bucket, Extension, State
from gdu_compile.digits import DigitCode
from gdu_compile.errors import ContractError
from gdu_compile.graph_view import constant_switches


class CheckExtensionPass(GduPass):
    """Check the finished extension against its own metadata."""

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        facts = Extension.from_metadata(model.metadata_props)
        problems = initial_problems(model, facts)
        for bucket in facts.buckets:
            problems += bucket_problems(model, bucket, facts.code)
        if len(constant_switches(model.graph)) < 2:
            problems.append("the two switches do not hang on θ alone")
        if problems:
            raise ContractError("the extension is not what its metadata says", problems)
        return {}


def bucket_problems(model: ir.Model, bucket: Bucket, code: DigitCode) -> list[str]:
    """What is wrong with a bucket's θ and signals."""
    problems = []
    initializers = model.graph.initializers
    theta = initializers.get(bucket.theta)
    shape = [bucket.rows + 1, code.digits_per_element]
    if theta is None or theta.dtype != ir.DataType.FLOAT or theta.shape != shape:
        problems.append(f"θ {bucket.theta!r} is no float32 initializer of shape {shape}")
    if "." in bucket.theta:
        problems.append(f"θ {bucket.theta!r} has a dot in its name")
    for slot in bucket.slots:
        signal = initializers.get(slot.signal)
        if signal is None or signal.dtype != ir.DataType.UINT16 or signal.shape != [
            slot.elements, code.digits_per_element,
        ]:  # fmt: skip
            problems.append(f"signal {slot.signal!r} of {slot.weight!r} is missing or misshaped")
    return problems


def initial_problems(model: ir.Model, facts: Extension) -> list[str]:
    """Every slot has an initial weight."""
    return [
        f"initial weight of {slot.weight!r} is missing"
        for _, slot in facts.slots()
        if facts.initial.get(slot.weight) not in model.graph.initializers
    ]
