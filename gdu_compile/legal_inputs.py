"""Which whole numbers an input of a network may hold: rows of an embedding, lengths, sizes.

Synthetic data must be legal for the network: what its operators do with an input is followed
forwards through the graph, to the tables that are looked up in and the lengths that are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from gdu_compile.digits import Array

USUAL = (0, 2)
"""0 and 1: masks and flags; also rows of any table that has two."""

FORWARDS = {"Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice",
            "Expand", "Tile", "Concat", "Split"}  # fmt: skip
"""Operators whose results hold the same numbers."""

SIZES = {("Expand", 1), ("ConstantOfShape", 0), ("Tile", 1), ("TopK", 1), ("Loop", 0)}
"""(operator, input) that are sizes or counts: 1."""

RECURRENT = {"RNN", "GRU", "LSTM"}
LENGTHS = 4
"""The input of a recurrent operator that holds the lengths of its sequences."""


def limits(value: ir.Value, size: Callable[[int | ir.SymbolicDim], int]) -> tuple[int, int]:
    """The smallest whole number that an input may hold, and the first that is too large.

    Args:
        value: the input of a model.
        size: what a dimension will be.

    Example:
        >>> ids, table = ir.val("ids"), ir.val("table", ir.DataType.FLOAT, [30, 8])
        >>> node = ir.node("Gather", [table, ids])
        >>> limits(ids, int), limits(ir.val("mask"), int)
        ((0, 30), (0, 2))
    """
    low, highs = 0, []
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        for node, index in current.uses():
            if (table := table_of(node, index)) is not None:
                highs.append(rows_of(table, node, size))
            elif node.op_type in RECURRENT and index == LENGTHS:
                steps = node.inputs[0]
                low = 1
                highs.append(1 + (size(steps.shape[0]) if steps is not None and steps.shape else 1))
            elif (node.op_type, index) in SIZES and whole(current):
                low = 1
                highs.append(2)
            elif node.op_type in FORWARDS and (index == 0 or node.op_type == "Concat"):
                waiting += [out for out in node.outputs if out not in seen and whole(out)]
                seen.update(node.outputs)
    return low, max(low + 1, min(highs)) if highs else max(USUAL[1], low + 1)


def whole(value: ir.Value) -> bool:
    """Whether a value holds whole numbers, as far as is known."""
    return value.dtype in {None, ir.DataType.INT64, ir.DataType.INT32}


def table_of(node: ir.Node, index: int) -> ir.Value | None:
    """The table that an input of a node is an index into, or None."""
    if node.op_type in {"Gather", "GatherElements", "GatherND"} and index == 1:
        return node.inputs[0]
    if node.op_type == "EmbedLayerNormalization" and index in (0, 1):
        return node.inputs[2 + 2 * index]
    return None


def rows_of(
    table: ir.Value, node: ir.Node, size: Callable[[int | ir.SymbolicDim], int]
) -> int:  # fmt: skip
    """The number of rows that may be looked up."""
    if table.shape is None or not table.shape.rank():
        return USUAL[1]
    sizes = [size(dim) for dim in table.shape]
    if node.op_type == "GatherND":
        return min(sizes)
    return sizes[node.attributes.get_int("axis", 0)]


def whole_numbers(
    shape: tuple[int, ...], dtype: np.dtype[np.generic], bounds: tuple[int, int],
    rng: np.random.Generator,
) -> Array:  # fmt: skip
    """Uniform whole numbers, or booleans, within the bounds."""
    low, high = bounds if dtype.kind in "iu" else USUAL
    if dtype.kind in "iu":
        high = min(high, int(np.iinfo(str(dtype)).max) + 1)
    numbers: Array = rng.integers(low, high, shape).astype(dtype)
    return numbers


def size_named(dim: int | ir.SymbolicDim, known: Mapping[str, int], other: int) -> int:
    """The size of a dimension; of a sum of names, as exporters write it, the sum.

    Example:
        >>> size_named(ir.SymbolicDim("past + sequence"), {"past": 3}, 8), size_named(5, {}, 8)
        (11, 5)
    """
    if isinstance(dim, int):
        return dim
    terms = [term.strip() for term in (dim.value or "").split("+")]
    return sum(int(t) if t.isdecimal() and len(t) < 19 else known.get(t, other) for t in terms)
