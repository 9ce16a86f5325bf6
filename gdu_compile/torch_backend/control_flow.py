"""If, Loop and Scan: Python runs their subgraphs on concrete values, with ordinary autograd.

Only what is reached runs: one branch of an If, and no body whose loop makes no iteration.  Where
torch.export or torch.compile trace, values are not concrete: an If becomes torch.cond, a Loop
torch.while_loop, and a short one is unrolled; a Scan always is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch._higher_order_ops import while_loop

from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.graph_view import called
from gdu_compile.time_limit import Deadline
from gdu_compile.torch_backend.numbers import TRACED, Numbers, as_tensor
from gdu_compile.torch_backend.ops_elementwise import torch_dtype
from gdu_compile.torch_backend.program import Call, Environment, Program

MOST_UNROLLED = 64
"""Iterations of a Loop that are written one after the other where torch traces."""

# a subgraph → how it runs
Lower = Callable[[ir.Graph], Program]


def if_call(node: ir.Node, lower: Lower) -> Call:
    """If: only the branch that the condition takes runs."""
    (condition,) = names_of(node.inputs)
    graphs = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    then, otherwise = (lower(graph) for graph in graphs)
    read = names_read(graphs)

    def call(environment: Environment) -> tuple[Tensor, ...]:
        if TRACED in environment:
            return traced_if(environment, condition, then, otherwise, read)
        program = then if bool(environment[condition]) else otherwise
        return program.run_inside(environment)

    return call


def names_read(graphs: Sequence[ir.Graph]) -> list[str]:
    """What is read in subgraphs, of themselves or of the values around them."""
    read: dict[str, None] = {}
    for graph in graphs:
        for part in [graph, *graph.subgraphs()]:
            values = [value for node in part for value in node.inputs]
            read.update(dict.fromkeys(names_of([*values, *part.outputs])))
    return list(read)


def traced_if(
    environment: Environment, condition: str, then: Program, otherwise: Program,
    read: Sequence[str],
) -> tuple[Tensor, ...]:  # fmt: skip
    """torch.cond: both branches become part of what is traced."""
    values = {name: environment[name] for name in read if name in environment}
    values.pop(condition, None)
    names = [name for name, value in values.items() if isinstance(value, Tensor)]
    numbers = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    given = as_tensor(environment[condition])
    flag = given if given.ndim == 0 else given.any()  # no view: that would be given twice

    def branch(program: Program) -> Callable[..., tuple[Tensor, ...]]:
        def run(flag: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
            copies = [fresh_copy(x, flag) if x.requires_grad else x for x in operands]
            outer = dict(zip(names, copies, strict=True))
            inner = {TRACED: True, condition: flag, **numbers, **outer}
            return tuple(fresh_copy(as_tensor(x), flag) for x in program.run_inside(inner))

        return run

    operands = (flag, *(values[name] for name in names))
    result: tuple[Tensor, ...] = torch.cond(flag, branch(then), branch(otherwise), operands)
    return result


def fresh_copy(x: Tensor, flag: Tensor) -> Tensor:
    """The same values in memory of their own, which no optimiser takes away; so is the gradient's.

    A branch of torch.cond may give neither what it was given nor a view of it, and both branches
    have to lay out their results, and their gradients, alike.
    """
    return torch.where(flag, x, x)


def loop_call(node: ir.Node, lower: Lower) -> Call:
    """Loop: while the condition holds, and for at most so many iterations.

    As in onnxruntime the condition that the body returns counts where none was given, too.  It
    takes as long as the command allows a forward call.
    """
    limit, condition, *states = names_of(node.inputs)
    graph = node.attributes["body"].as_graph()
    body, stacks = lower(graph), [Stack(node, value) for value in graph.outputs[1 + len(states) :]]
    traced = TracedLoop(node, body, stacks)

    def call(environment: Environment) -> tuple[Tensor, ...]:
        if TRACED in environment:
            return traced.run(environment)
        device = device_of(environment, [limit, condition, *states])
        goes_on = environment[condition] if condition else torch.tensor(True, device=device)
        values = [environment[name] for name in states]
        rows: list[list[Tensor]] = []
        deadline = Deadline()
        for i in range(int(environment[limit])) if limit else count():
            if not goes_on:
                break
            deadline.check()
            number = torch.scalar_tensor(i, dtype=torch.int64, device=device)
            goes_on, *results = body.run_inside(environment, (number, goes_on, *values))
            values, row = results[: len(states)], results[len(states) :]
            if row:
                rows.append(row)
        return (*values, *stacked(rows, stacks, device))

    return call


class TracedLoop:
    """A Loop while torch traces: unrolled where it is short, else torch's while_loop.

    Attributes:
        node: the Loop.
        body: how its body runs.
        stacks: its scan outputs.
        counted: whether nothing but the trip count ends it.
    """

    def __init__(self, node: ir.Node, body: Program, stacks: Sequence[Stack]) -> None:
        self.node, self.body, self.stacks = node, body, stacks
        self.limit, self.condition, *self.states = names_of(node.inputs)
        graph = node.attributes["body"].as_graph()
        self.read = names_read([graph])
        self.counted = holds(node.inputs[1], None) and holds(graph.outputs[0], graph.inputs[1])

    def run(self, environment: Environment) -> tuple[Tensor, ...]:
        """The Loop's outputs.

        Raises:
            UnsupportedError: neither of the two ways can be taken.
        """
        limit = environment[self.limit] if self.limit else None
        device = device_of(environment, [self.condition, *self.states])
        if self.counted and isinstance(limit, Numbers) and int(limit) <= MOST_UNROLLED:
            return self.unrolled(environment, int(limit), device)
        if self.stacks:
            raise self.refused("collects a scan output, which torch.while_loop cannot")
        values = [environment[name] for name in self.states]
        read = [environment[name] for name in self.read if name in environment]
        if any(isinstance(x, Tensor) and x.requires_grad for x in (*values, *read)):
            raise self.refused("needs a gradient, which torch.while_loop does not have")
        return self.looped(environment, limit, device)

    def refused(self, why: str) -> UnsupportedError:
        """The error for a loop that cannot be traced."""
        return UnsupportedError(
            f"node {called(self.node)}: a Loop whose number of iterations torch.export or "
            f"torch.compile cannot know (or above {MOST_UNROLLED}) {why}; run it eagerly, or use "
            "the form of NAME.py"
        )

    def unrolled(
        self, environment: Environment, steps: int, device: torch.device | None
    ) -> tuple[Tensor, ...]:
        """One copy of the body after the other."""
        values, rows = [environment[name] for name in self.states], []
        goes_on = torch.ones((), dtype=torch.bool, device=device)
        for i in range(steps):
            number: Any = Numbers([i], 0)
            _, *results = self.body.run_inside(environment, (number, goes_on, *values))
            values, row = results[: len(values)], [as_tensor(x) for x in results[len(values) :]]
            if row:
                rows.append(row)
        return (*values, *stacked(rows, self.stacks, device))

    def looped(
        self, environment: Environment, limit: Tensor | None, device: torch.device | None
    ) -> tuple[Tensor, ...]:
        """torch.while_loop over (the number of the iteration, the condition, the states)."""
        most = None if limit is None else as_tensor(limit).reshape(())
        goes_on = (as_tensor(environment[self.condition]).reshape(()) if self.condition
                   else torch.ones((), dtype=torch.bool, device=device))  # fmt: skip

        def more(number: Tensor, goes_on: Tensor, *states: Tensor) -> Tensor:
            return goes_on.clone() if most is None else goes_on & (number < most)

        def step(number: Tensor, goes_on: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
            given = (number, goes_on, *states)
            after, *results = self.body.run_inside(dict(environment), given)
            return (number + 1, *(as_tensor(x).clone() for x in (after.reshape(()), *results)))

        number = torch.zeros((), dtype=torch.int64, device=device)
        states = (as_tensor(environment[name]).clone() for name in self.states)
        given = (number, goes_on.clone(), *states)
        _, _, *results = while_loop(more, step, given)  # type: ignore[no-untyped-call]
        return tuple(results)


def holds(value: ir.Value | None, given: ir.Value | None) -> bool:
    """Whether a condition is absent, true, or what was given."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type == "Identity":
        value = node.inputs[0]
        node = None if value is None else value.producer()
    if node is not None and node.op_type == "Constant" and "value" in node.attributes:
        return bool(node.attributes.get_tensor("value").numpy().all())
    return value is None or value is given


def scan_call(node: ir.Node, lower: Lower) -> Call:
    """Scan: one iteration for each slice of its inputs."""
    sequences = node.attributes.get_int("num_scan_inputs", 0)
    names, graph = names_of(node.inputs), node.attributes["body"].as_graph()
    states, scanned = names[:-sequences], names[-sequences:]
    axes = of_each(node, "scan_input_axes", sequences)
    backwards = of_each(node, "scan_input_directions", sequences)
    if len(names) != len(graph.inputs):
        return too_old(node)
    body, outputs = lower(graph), graph.outputs[len(states) :]
    to_axes = of_each(node, "scan_output_axes", len(outputs))
    to_front = of_each(node, "scan_output_directions", len(outputs))
    stacks = [Stack(node, *how) for how in zip(outputs, to_axes, to_front, strict=True)]

    def call(environment: Environment) -> tuple[Tensor, ...]:
        slices = [
            as_tensor(environment[name]).unbind(axis)[:: -1 if back else 1]
            for name, axis, back in zip(scanned, axes, backwards, strict=True)
        ]
        if len(lengths := {len(parts) for parts in slices}) > 1:
            raise InputError(
                f"node {called(node)}: the axes that Scan goes over have the lengths "
                f"{sorted(lengths)}; give it inputs where they are equal"
            )
        values = [environment[name] for name in states]
        rows: list[list[Tensor]] = []
        for parts in zip(*slices, strict=True):
            results = list(body.run_inside(environment, (*values, *parts)))
            values, row = results[: len(states)], results[len(states) :]
            if row:
                rows.append([as_tensor(x) for x in row])
        return (*values, *stacked(rows, stacks, device_of(environment, names)))

    return call


def too_old(node: ir.Node) -> Call:
    """A Scan that raises when it is reached."""

    def call(environment: Environment) -> tuple[Tensor, ...]:
        raise UnsupportedError(
            f"node {called(node)}: it has other inputs than its body, as Scan had in opset 8; "
            "export the model with opset 9 or above"
        )

    return call


@dataclass(frozen=True)
class Stack:
    """How one output of a body becomes a scan output: all its values along a new axis.

    Attributes:
        node: the Loop or Scan.
        value: the output of its body.
        axis: the new axis.
        to_front: whether each value is put in front of those before it.
    """

    node: ir.Node
    value: ir.Value
    axis: int = 0
    to_front: int = 0

    def empty(self, device: torch.device | None) -> Tensor:
        """The scan output of no iteration; as in onnxruntime a size that is not known is 0.

        Raises:
            UnsupportedError: the model does not say of which dtype it is.
        """
        if self.value.dtype is None:
            raise UnsupportedError(
                f"node {called(self.node)}: no iteration was made, and its body's output "
                f"{self.value.name!r} has no dtype; run onnx.shape_inference on the model"
            )
        sizes = [size if isinstance(size, int) else 0 for size in self.value.shape or ()]
        sizes.insert(self.axis % (len(sizes) + 1), 0)
        return torch.empty(sizes, dtype=torch_dtype(int(self.value.dtype)), device=device)


def stacked(
    rows: Sequence[Sequence[Tensor]], stacks: Sequence[Stack], device: torch.device | None
) -> list[Tensor]:
    """The scan outputs, out of what each iteration gave."""
    if not rows:
        return [stack.empty(device) for stack in stacks]
    return [
        torch.stack(column[:: -1 if stack.to_front else 1], stack.axis)
        for stack, column in zip(stacks, zip(*rows, strict=True), strict=True)
    ]


CALLS: dict[str, Callable[[ir.Node, Lower], Call]] = {
    "If": if_call,
    "Loop": loop_call,
    "Scan": scan_call,
}


def names_of(values: Iterable[ir.Value | None]) -> list[str]:
    """Their names; empty for an optional input that is absent."""
    return ["" if value is None else str(value.name) for value in values]


def of_each(node: ir.Node, name: str, size: int) -> Sequence[int]:
    """An attribute with one number for each input or output; 0s when it is absent."""
    return node.attributes.get_ints(name, [0] * size)


def device_of(environment: Environment, names: Iterable[str]) -> torch.device | None:
    """Where the first tensor of these values is; None for torch's default when there is none."""
    values = (environment[name] for name in names if name)
    return next((value.device for value in values if isinstance(value, Tensor)), None)
