"""CheckExtensionPass: the extended graph is what it claims to be; changes nothing.

After: θ are the only float initializers of ours, start at 0, and have no dot in
their names; every slot's signal is an integer initializer of the right shape;
the switches hang on one condition that depends on nothing but θ.  For learn: the
memory's fields are the model's inputs, and the armed branch makes what the algorithm reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir
from gdu_compile.passes._base import GduPass

from gdu_compile.contracts import PASS_KEY, Bucket, LogitsSite, Memory, Slot, State, Weight
from gdu_compile.errors import ContractError
from gdu_compile.graph_view import called, constant_switches, nested
from gdu_compile.metadata import Extension
from gdu_compile.weights import dtype_name


class CheckExtensionPass(GduPass):
    """Check the finished extension against its own metadata."""

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        facts = Extension.from_metadata(model.metadata_props)
        problems = switch_problems(model, facts) + site_problems(model.graph, facts.logits)
        problems += stranger_problems(model.graph, facts) + mark_problems(model.graph, facts)
        for name, shape in facts.theta_shapes.items():
            problems += theta_problems(model, name, list(shape), facts.theta_dtype)
        for weight in facts.weights:
            problems += initial_problems(model, facts, weight)
        for bucket in facts.buckets:
            problems += bucket_problems(bucket)
        for bucket, slot in facts.slots():
            problems += slot_problems(model, facts, bucket, slot)
        if facts.memory is not None and not problems:
            problems += memory_problems(model, facts, facts.memory)
        if problems:
            raise ContractError("the extension is not what its metadata says", problems)
        return {}


def switch_problems(model: ir.Model, facts: Extension) -> list[str]:
    """The switches are there, are ours, and hang on θ alone."""
    problems = []
    made = makers(model.graph)
    switched = [weight.name for weight in facts.weights]
    if (moved := sunk(model.graph, [facts.base_logits, *switched])) is not None:
        return [moved]
    if not switched:
        problems.append("no weight is recorded")
    behind = {name: switch_output(made, name) for name in [facts.logits.name, *switched]}
    problems += [
        f"{name!r} is not the output of a switch of ours"
        for name, output in behind.items() if output is None
    ]  # fmt: skip
    if not problems and {v.name for v in made[behind[switched[0]]].outputs[:-1]} != {
        behind[name] for name in switched
    }:
        problems.append("the weights' switch has other outputs")
    if facts.base_logits not in made:
        problems.append(f"the base's logits {facts.base_logits!r} are not computed")
    if len(set(switched)) < len(switched) or len(set(facts.initial.values())) < len(switched):
        problems.append("a weight or its initial value is there twice")
    if len(constant_switches(model.graph)) < 2:
        problems.append("the two switches do not hang on θ alone")
    return problems


def makers(graph: ir.Graph) -> dict[str | None, ir.Node]:
    """Name → the node of the main graph that makes it."""
    return {output.name: node for node in graph for output in node.outputs}


def switch_output(made: Mapping[str | None, ir.Node], name: str) -> str | None:
    """Which output of a switch of ours this is, a float16 one through its Mul; None if of none."""
    node = made.get(name)
    if node is not None and [node.op_type, PASS_KEY in node.metadata_props] == ["Mul", True]:
        name = str(node.inputs[0].name) if node.inputs[0] is not None else ""
        node = made.get(name)
    return name if is_switch(node) else None


def is_switch(node: ir.Node | None) -> bool:
    """An If of ours."""
    return node is not None and node.op_type == "If" and PASS_KEY in node.metadata_props


def stranger_problems(graph: ir.Graph, facts: Extension) -> list[str]:
    """Nodes of the base use of the extension nothing but its switches."""
    switched = {facts.logits.name, *(weight.name for weight in facts.weights)}
    ours = set(facts.theta_shapes) | {slot.signal for _, slot in facts.slots()}
    ours |= {
        str(value.name) for node in graph if PASS_KEY in node.metadata_props
        for value in node.outputs if value.name not in switched
    }  # fmt: skip
    return [
        f"node {called(inner)} of the base uses {used.name!r} of the extension"
        for node in graph if PASS_KEY not in node.metadata_props
        for inner in nested(node) for used in inner.inputs
        if used is not None and used.name in ours
    ]  # fmt: skip


def mark_problems(graph: ir.Graph, facts: Extension) -> list[str]:
    """What is marked as ours is taken away later: no node of the base may be."""
    problems = [
        f"node {called(inner)} inside of {called(node)} claims to be the extension's"
        for node in graph if PASS_KEY not in node.metadata_props
        for inner in nested(node) if PASS_KEY in inner.metadata_props
    ]  # fmt: skip
    switched = {facts.logits.name, *(weight.name for weight in facts.weights)}
    left = {facts.base_logits, *(str(value.name) for value in graph.outputs)} - switched
    return problems + [
        f"node {called(node)} of the base claims to be the extension's"
        for node in graph if PASS_KEY in node.metadata_props
        and not left.isdisjoint(str(value.name) for value in node.outputs)
    ]  # fmt: skip


def site_problems(graph: ir.Graph, site: LogitsSite) -> list[str]:
    """The loss sees an output of the site's form, whose sizes come from inputs that exist."""
    problems = []
    output = next((value for value in graph.outputs if value.name == site.output), None)
    if output is None:
        problems.append(f"the model has no output {site.output!r}, which the loss sees")
    elif output.shape is not None and output.shape.rank() != len(site.dims):
        problems.append(f"output {site.output!r} has not {len(site.dims)} axes")
    elif output.shape is not None and len(site.dims) > 1 and (
        site.classes > 1 and output.shape[site.axis] != site.classes
    ):  # fmt: skip
        problems.append(f"output {site.output!r} is no […, {site.classes}] on axis {site.axis}")
    inputs = {value.name: value for value in graph.inputs}
    for dim in site.dims:
        if not isinstance(dim, tuple):
            continue
        name, index = dim
        if name not in inputs:
            problems.append(f"the model has no input {name!r}, which a size is read from")
        elif not 0 <= index < len(inputs[name].shape or ()):
            problems.append(f"input {name!r} has no dimension {index}")
    return problems


def sunk(graph: ir.Graph, names: Iterable[str]) -> str | None:
    """What SinkPass or IfConversionPass has done to the switches, in a sentence, or None."""
    wanted = set(names)
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if node.metadata_props.get(PASS_KEY) == "IfConversionPass":
            return "IfConversionPass has replaced the switches: take the model as it was before it"
        for output in node.outputs:
            if output.name in wanted and node.graph is not graph:
                return (f"{output.name!r} is computed in a branch, where SinkPass moves it: take "
                        "the model as it was before SinkPass")  # fmt: skip
    return None


def theta_problems(model: ir.Model, name: str, shape: list[int], dtype: str) -> list[str]:
    """What is wrong with one θ."""
    problems = []
    theta = model.graph.initializers.get(name)
    if theta is None or dtype_name(theta) != dtype or theta.shape != shape:
        problems.append(f"θ {name!r} is no {dtype} initializer of shape {shape}")
    if "." in name:
        problems.append(f"θ {name!r} has a dot in its name")
    return problems


def initial_problems(model: ir.Model, facts: Extension, weight: Weight) -> list[str]:
    """What is wrong with one weight's initial value."""
    initial = model.graph.initializers.get(facts.initial.get(weight.name, ""))
    fits = initial is not None and dtype_name(initial) == weight.dtype
    if initial is None or not fits or initial.shape != list(weight.shape):
        return [f"initial weight of {weight.name!r} is no {weight.dtype} {list(weight.shape)}"]
    return []


def memory_problems(model: ir.Model, facts: Extension, memory: Memory) -> list[str]:
    """What is wrong with the memory's fields, and with the values that the algorithm reads."""
    problems = []
    inputs = {str(value.name): value for value in model.graph.inputs}
    for field in memory.fields:
        value = inputs.get(field.name)
        if value is None or dtype_name(value) != field.dtype:
            problems.append(f"the model has no {field.dtype} input {field.name!r}")
    made = makers(model.graph)
    switch = made[switch_output(made, facts.weights[0].name)]
    branch = switch.attributes["then_branch"].as_graph()
    inside = {value.name for node in branch for value in node.outputs}
    assert facts.algorithm is not None
    problems += [
        f"the algorithm's input {name!r} is not computed in the armed branch"
        for name in facts.algorithm.inputs if name not in inside
    ]  # fmt: skip
    return problems


def bucket_problems(bucket: Bucket) -> list[str]:
    """What is wrong with the places in a bucket."""
    problems = []
    offset = 0
    for slot in bucket.slots:
        if slot.offset != offset:
            problems.append(f"{slot.weight!r} begins at row {slot.offset}, not {offset}")
        offset += slot.elements
    return problems


def slot_problems(model: ir.Model, facts: Extension, bucket: Bucket, slot: Slot) -> list[str]:
    """What is wrong with one weight's signal."""
    problems = []
    initializers = model.graph.initializers
    signal = initializers.get(slot.signal)
    encoding = bucket.encoding(facts.code)
    shape, dtype = [slot.elements, encoding.units_per_element], str(encoding.unit_dtype)
    if signal is None or dtype_name(signal) != dtype or signal.shape != shape:
        problems.append(f"signal {slot.signal!r} of {slot.weight!r} is no {dtype} {shape}")
    return problems
