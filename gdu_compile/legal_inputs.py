"""Which whole numbers an input of a network may hold: rows of an embedding, lengths, sizes.

Synthetic data must be legal for the network: what its operators do with an input is followed
forwards through the graph, to the tables that are looked up in and the lengths that are counted;
both may depend on the sizes of other inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from gdu_compile.digits import Array

USUAL = (0, 2)
"""0 and 1: masks and flags; also rows of any table that has two."""

FORWARDS = {"Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice",
            "Expand", "Tile", "Concat", "Split", "Neg"}  # fmt: skip
"""Operators whose results hold the same numbers, or count from the end with them."""

TABLES = {("Gather", 1): 0, ("GatherElements", 1): 0, ("GatherND", 1): 0,
          ("ScatterElements", 1): 0, ("ScatterND", 1): 0,
          ("EmbedLayerNormalization", 0): 2, ("EmbedLayerNormalization", 1): 4,
          ("RotaryEmbedding", 1): 2, ("RotaryEmbedding", 3): 1}  # fmt: skip
"""(operator, input) that are rows of a table: which input is the table."""

SIZES = {("Expand", 1), ("ConstantOfShape", 0), ("Tile", 1), ("TopK", 1), ("Loop", 0), ("Range", 1),
         ("Resize", 3), ("Slice", 2)}  # fmt: skip
"""(operator, input) that are sizes, counts or ends: 1."""

STARTS = {("Slice", 1), ("Range", 0), ("TensorScatter", 2)}
"""(operator, input) that are where something begins: 0."""

LENGTHS = {("RNN", 4): (0, 0), ("GRU", 4): (0, 0), ("LSTM", 4): (0, 0), ("Attention", 6): (1, -2)}
"""(operator, input) that are lengths of sequences: the input that holds them, and its axis."""

CACHED = "GroupQueryAttention"
LAST, TOTAL = 5, 6
"""Its inputs seqlens_k, the last position of each sequence, and total_sequence_length."""

Size = Callable[[int | ir.SymbolicDim], int]


def limits(value: ir.Value, size: Size) -> tuple[int, int]:
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
    found: list[tuple[int, int]] = []
    waiting, seen = [(value, False)], {value}
    while waiting:
        current, summed = waiting.pop()
        for node, index in current.uses():
            bounds = bounds_for(node, index, size, summed=summed)
            if bounds is not None:
                found += [bounds] if whole(current) else []
            elif carries(node, index, summed=summed):
                outs = [out for out in node.outputs if out not in seen and whole(out)]
                waiting += [(out, summed or node.op_type == "ReduceSum") for out in outs]
                seen.update(node.outputs)
    low = max((low for low, _ in found), default=USUAL[0])
    return low, max(low + 1, min((high for _, high in found), default=USUAL[1]))


def bounds_for(
    node: ir.Node, index: int, size: Size, *, summed: bool
) -> tuple[int, int] | None:  # fmt: skip
    """What a node allows in one of its inputs; None where it does not say.

    Args:
        node: what uses the input.
        index: which of its inputs.
        size: what a dimension will be.
        summed: whether a sum of the model's input is used so: of a mask, which counts.
    """
    use = node.op_type, index
    if use == (CACHED, LAST) and summed:
        return 1, 2  # a sequence of all its tokens
    if summed:
        return None
    if use in ((CACHED, LAST), (CACHED, TOTAL)):
        total = total_length(node, size) - (index == LAST)
        return total, total + 1
    if use in TABLES:
        return 0, rows_of(node.inputs[TABLES[use]], node, size)
    if use in LENGTHS:
        source, axis = LENGTHS[use]
        held = node.inputs[source]
        return 1, 1 + (size(held.shape[axis]) if held is not None and held.shape else 1)
    if use in SIZES:
        return 1, 2
    return (0, 1) if use in STARTS else None


def carries(node: ir.Node, index: int, *, summed: bool) -> bool:
    """Whether a node hands on the numbers of one of its inputs, or sums them."""
    if index and node.op_type != "Concat":
        return False
    return node.op_type in {*FORWARDS, "ReduceSum"} or (summed and node.op_type in {"Add", "Sub"})


def whole(value: ir.Value) -> bool:
    """Whether a value holds whole numbers, as far as is known."""
    return value.dtype in {None, ir.DataType.INT64, ir.DataType.INT32}


def rows_of(table: ir.Value | None, node: ir.Node, size: Size) -> int:
    """The number of rows that may be looked up."""
    if table is None or table.shape is None or not table.shape.rank():
        return USUAL[1]
    sizes = [size(dim) for dim in table.shape]
    if node.op_type in {"GatherND", "ScatterND"}:
        return min(sizes)
    return sizes[node.attributes.get_int("axis", 0)]


def total_length(node: ir.Node, size: Size) -> int:
    """Past and new tokens of a GroupQueryAttention; the new ones alone where there are several in
    several sequences, which it takes at the start only (onnxruntime's ContribOperators.md)."""
    query, past = node.inputs[0], node.inputs[3]
    while query is not None and query.shape is None and (maker := query.producer()) is not None:
        inputs = maker.inputs[1:] if maker.op_type == "Gather" else maker.inputs
        query = next((v for v in inputs if v is not None and not v.is_initializer()), None)
    if query is None or query.shape is None or query.shape.rank() < 2:
        return USUAL[1]
    batch, new = (size(dim) for dim in query.shape[:2])
    if (batch > 1 and new > 1) or past is None or past.shape is None:
        return new
    return size(past.shape[2]) + new


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


@dataclass(frozen=True)
class Sizes:
    """What size dynamic dimensions get.

    Attributes:
        other: of a dimension, and of a name in a sum.
        known: of these names.

    Example:
        >>> sizes = Sizes(8, {"past": 3})
        >>> sizes.of(ir.SymbolicDim("past + sequence")), sizes.of(5)
        (11, 5)
    """

    other: int
    known: Mapping[str, int] = field(default_factory=dict)

    def of(self, dim: int | ir.SymbolicDim) -> int:
        """The size of a dimension; of a sum of names, as exporters write it, the sum."""
        if isinstance(dim, int):
            return dim
        terms = [term.strip() for term in (dim.value or "").split("+")]
        return sum(
            int(t) if t.isdecimal() and len(t) < 19 else self.known.get(t, self.other)
            for t in terms
        )


def own_lengths(inputs: Sequence[ir.Value]) -> list[str]:
    """Names of lengths that a mask alone has: torch.export has no name for a sum, and a mask may be
    as long as the past and the new tokens together."""
    names = {
        value: {dim.value for dim in list(value.shape or ())[1:]
                if isinstance(dim, ir.SymbolicDim) and dim.value}
        for value in inputs
    }  # fmt: skip
    counts = Counter(name for own in names.values() for name in own)
    return sorted(
        name for value, own in names.items() for name in own
        if counts[name] == 1 and (value.dtype == ir.DataType.BOOL or whole(value))
        and limits(value, Sizes(USUAL[1] + 1).of)[1] == USUAL[1]
    )  # fmt: skip
