"""A few nodes run as one torch call that passes over memory fewer times.

The values are the same bits (a sum may be taken in another order) and the derivatives those of
torch's own functions.  What a tensor as large as θ costs is mostly its allocation: the system
hands out fresh pages, slower than they are then filled.

- Concat, Cast, Sub of a constant: the parts are cast into their places, the rest happens there.
- Cast, Sub of a constant: the same with one part.
- Many element-wise ones: ``blocks.py``.
- Mul, ReduceSum over everything: ``torch.dot``, without the tensor of products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from gdu_compile.torch_backend import blocks
from gdu_compile.torch_backend.memory import fresh
from gdu_compile.torch_backend.ops_elementwise import torch_dtype

# torch.dot takes 32-bit counts.
MOST_TERMS = 2**31 - 1


def fused(
    nodes: Sequence[ir.Node], call: Callable[[ir.Node], Callable[..., Any]]
) -> tuple[list[ir.Node], Callable[..., Any]] | None:
    """How the first node and those after it can run as one.

    Args:
        nodes: what is left of a graph, in order.
        call: a node → the function that runs it alone, on its inputs.

    Returns:
        The nodes that are covered, and a function of the inputs of ``outer_inputs``
        that gives ``blocks.results_of``; None when nothing fits.
    """
    run = blocks.run_of(nodes)
    if run:
        return run, blocks.in_blocks(run, call, outer_inputs(run))
    chain = [nodes[0], *followers(nodes)]
    kinds = [node.op_type for node in chain]
    if kinds[:3] == ["Concat", "Cast", "Sub"] and is_first_input(chain[1], chain[2]):
        first, second, last = chain[:3]
        return chain[:3], signals(len(first.inputs), axis_of(first), cast_to(second),
                                  call(first), call(second), call(last))  # fmt: skip
    if kinds[:2] == ["Cast", "Sub"] and is_first_input(*chain[:2]):
        first, last = chain[:2]
        return chain[:2], signals(1, 0, cast_to(first), lambda part: part, call(first), call(last))
    if kinds[:2] == ["Mul", "ReduceSum"] and sums_everything(chain[1]):
        return chain[:2], product(call(chain[0]), call(chain[1]))
    return None


def followers(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """The next nodes, while each is the only user of the one before it."""
    found: list[ir.Node] = []
    for last, following in pairwise(nodes[:3]):
        if last.domain or following.domain or len(last.outputs) != 1:
            break
        output = last.outputs[0]
        users = {user for user, _ in output.uses()}
        if users != {following} or output.is_graph_output():
            break
        found.append(following)
    return found


def outer_inputs(chain: Sequence[ir.Node]) -> list[ir.Value | None]:
    """The inputs of a chain that come from outside it, node by node."""
    made = {output for node in chain for output in node.outputs}
    return [value for node in chain for value in node.inputs if value not in made]


def is_first_input(before: ir.Node, after: ir.Node) -> bool:
    """Whether ``after`` takes its first input, and only that, from ``before``."""
    return [value is before.outputs[0] for value in after.inputs] == [True, False]


def axis_of(node: ir.Node) -> int:
    """The axis of a Concat."""
    return node.attributes.get_int("axis", 0)


def cast_to(node: ir.Node) -> torch.dtype:
    """The dtype that a Cast gives."""
    return torch_dtype(node.attributes.get_int("to", 1))


def sums_everything(node: ir.Node) -> bool:
    """ReduceSum to a scalar."""
    return len(node.inputs) == 1 and node.attributes.get_int("keepdims", 1) == 0


def signals(
    parts: int, axis: int, dtype: torch.dtype, concat: Callable[..., Tensor],
    cast: Callable[..., Tensor], subtract: Callable[..., Tensor],
) -> Callable[..., Tensor]:  # fmt: skip
    """Cast(Concat(parts)) − number."""

    def run(*inputs: Tensor) -> Tensor:
        tensors, number = inputs[:parts], inputs[parts]
        plain = not any(tensor.requires_grad for tensor in inputs)
        whole = not any(tensor.is_floating_point() for tensor in tensors)
        simple = axis == 0 and not number.ndim and tensors[0].ndim and dtype.is_floating_point
        if not (plain and whole and simple) or number.dtype != dtype:
            return subtract(cast(concat(*tensors)), number)
        rows = sum(len(tensor) for tensor in tensors)
        result = fresh((rows, *tensors[0].shape[1:]), dtype, number.device)
        places = torch.split(result, [len(tensor) for tensor in tensors])
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor)
        return result.sub_(number)

    return run


def product(multiply: Callable[..., Tensor], total: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """ReduceSum(a·b) over all axes."""

    def run(a: Tensor, b: Tensor) -> Tensor:
        if a.shape != b.shape or a.dtype != torch.float32 or b.dtype != torch.float32:
            return total(multiply(a, b))
        if math.prod(a.shape) > MOST_TERMS:
            return total(multiply(a, b))
        return torch.dot(a.reshape(-1), b.reshape(-1))

    return run
