"""A run of the extension's element-wise nodes, executed block by block.

Some 25 operators take the digits off an input.  One after the other on the whole tensor each waits
for memory, and for fresh pages from the system; on a block that stays in the cache they do not,
and nothing else of the input's size is held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from gdu_compile.contracts import PASS_KEY
from gdu_compile.torch_backend.memory import fresh

ELEMENT_WISE = {"Abs", "Add", "BitwiseAnd", "BitwiseXor", "Cast", "Clip", "Floor", "Gather", "Less",
                "Log", "Min", "Mul", "Reciprocal", "Round", "Sub"}  # fmt: skip
SHORTEST = 8
"""Nodes of a run; shorter ones gain nothing."""
BLOCK = 1 << 16
"""Elements of a block and thread."""

Values = dict[ir.Value | None, Any]


def run_of(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """The first nodes that can run in blocks; none when they are too few.

    Only nodes that a pass of ours has put there: a base network is computed as it always was.
    """
    end = 0
    while end < len(nodes) and is_element_wise(nodes[end]):
        end += 1
    return list(nodes[:end]) if end >= SHORTEST else []


def is_element_wise(node: ir.Node) -> bool:
    """Whether an element of the output depends on one element of each input (and on a table)."""
    ours = PASS_KEY in node.metadata_props
    if not ours or node.domain or node.op_type not in ELEMENT_WISE or len(node.outputs) != 1:
        return False
    return node.op_type != "Gather" or looks_up(node)


def looks_up(node: ir.Node) -> bool:
    """Whether a Gather reads entries of a constant by their number."""
    table, axis = node.inputs[0], node.attributes.get_int("axis", 0)
    made = table.producer() if table is not None else None
    return axis == 0 and made is not None and made.op_type == "Constant"


def results_of(chain: Sequence[ir.Node]) -> list[ir.Value]:
    """The outputs of a chain that are used outside it; of a single node all."""
    if len(chain) == 1:
        return list(chain[0].outputs)
    inside = set(chain)
    return [
        value
        for node in chain
        for value in node.outputs
        if value.is_graph_output() or not {user for user, _ in value.uses()} <= inside
    ]


def in_blocks(
    chain: Sequence[ir.Node], call: Callable[[ir.Node], Callable[..., Any]],
    outer: Sequence[ir.Value | None],
) -> Callable[..., tuple[Tensor, ...]]:  # fmt: skip
    """A function of the values ``outer`` that gives ``results_of``."""
    functions, results = [call(node) for node in chain], results_of(chain)
    tables = {node.inputs[0] for node in chain if node.op_type == "Gather"}
    last = {value: i for i, node in enumerate(chain) for value in node.inputs}
    kept = {*outer, *results}

    def whole(values: Values) -> list[Tensor]:
        for i, (node, function) in enumerate(zip(chain, functions, strict=True)):
            inputs = [values[value] for value in node.inputs]
            values[node.outputs[0]] = function(*inputs)
            for value in node.inputs:
                if last[value] == i and value not in kept:
                    values.pop(value, None)
        return [values[value] for value in results]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        values: Values = {None: None, **dict(zip(outer, inputs, strict=True))}
        large = {value: x for value, x in values.items()
                 if x is not None and x.ndim and value not in tables}  # fmt: skip
        if not can_be_cut(list(large.values()), [values[table] for table in tables]):
            return tuple(whole(values))
        shape = next(iter(large.values())).shape
        size = shape.numel()
        flat = {value: x.reshape(-1) for value, x in large.items()}
        joined: list[Tensor] = []
        step = BLOCK * torch.get_num_threads()
        for start in range(0, size, step):
            block = {value: x[start : start + step] for value, x in flat.items()}
            parts = whole({**values, **block})
            if any(part.shape != x.shape for part in parts for x in block.values()):
                return tuple(whole(values))  # a result that does not depend on the large ones
            joined = joined or [fresh((size,), part.dtype, part.device) for part in parts]
            for place, part in zip(joined, parts, strict=True):
                place[start : start + step] = part
        return tuple(x.reshape(shape) for x in joined)

    return run


def can_be_cut(large: Sequence[Tensor], tables: Sequence[Tensor]) -> bool:
    """Tensors of one shape, large, contiguous, on the CPU, without a gradient; tables of 1-D."""
    if not large or torch.compiler.is_compiling() or any(table.ndim != 1 for table in tables):
        return False
    first = large[0]
    return first.numel() > BLOCK * torch.get_num_threads() and all(
        x.shape == first.shape and x.is_contiguous() and x.device.type == "cpu"
        and not x.requires_grad for x in large
    )  # fmt: skip
