"""If, Loop and Scan: Python runs their subgraphs on concrete values, with ordinary autograd.

Only what is reached runs: one branch of an If, and no body whose loop makes no iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count

import onnx_ir as ir
import torch
from torch import Tensor

from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.graph_view import called
from gdu_compile.torch_backend.numbers import as_tensor, tracing
from gdu_compile.torch_backend.ops_elementwise import torch_dtype
from gdu_compile.torch_backend.program import Call, Environment, Program

# a subgraph → how it runs
Lower = Callable[[ir.Graph], Program]


def if_call(node: ir.Node, lower: Lower) -> Call:
    """If: only the branch that the condition takes runs."""
    (condition,) = names_of(node.inputs)
    graphs = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    then, otherwise = (lower(graph) for graph in graphs)
    read = names_read(graphs)

    def call(environment: Environment) -> tuple[Tensor, ...]:
        if tracing(environment[condition]):
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
            inner = {condition: flag, **numbers, **dict(zip(names, copies, strict=True))}
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

    As in onnxruntime the condition that the body returns counts where none was given, too.
    """
    limit, condition, *states = names_of(node.inputs)
    graph = node.attributes["body"].as_graph()
    body, stacks = lower(graph), [Stack(node, value) for value in graph.outputs[1 + len(states) :]]

    def call(environment: Environment) -> tuple[Tensor, ...]:
        device = device_of(environment, [limit, condition, *states])
        goes_on = environment[condition] if condition else torch.tensor(True, device=device)
        values = [environment[name] for name in states]
        rows: list[list[Tensor]] = []
        for i in range(int(environment[limit])) if limit else count():
            if not goes_on:
                break
            number = torch.scalar_tensor(i, dtype=torch.int64, device=device)
            goes_on, *results = body.run_inside(environment, (number, goes_on, *values))
            values, row = results[: len(states)], results[len(states) :]
            if row:
                rows.append(row)
        return (*values, *stacked(rows, stacks, device))

    return call


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
            environment[name].unbind(axis)[:: -1 if back else 1]
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
                rows.append(row)
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
