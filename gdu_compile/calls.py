"""Where samples lie: along axis 0 of all inputs and of the output, or each in a call of its own.

A network whose inputs have no common axis 0 (a scalar, an initial state [1, N, H] beside a
sequence [T, N, I], batches of different sizes), or whose output has none, is run once for each
sample: the sample is the whole call, and data has one axis more, in front.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from gdu_compile.digits import Array


def by_calls(inputs: Sequence[ir.Value], output: ir.Value) -> str | None:
    """Why a whole call must be taken as one sample; None when samples lie along axis 0.

    Example:
        >>> x, h = ir.val("x", ir.DataType.FLOAT, [5, 2, 3]), ir.val("h", shape=[1, 2, 4])
        >>> by_calls([x, h], ir.val("y", ir.DataType.FLOAT, [5, 2, 4]))
        "the inputs 'x' and 'h' have 5 and 1 rows"
        >>> by_calls([x], ir.val("y", ir.DataType.FLOAT, [5, 2, 4])) is None
        True
    """
    shaped = [value for value in inputs if value.shape is not None]
    for value in shaped:
        if value.shape is not None and not value.shape.rank():
            return f"the input {value.name!r} is a scalar"
    if output.shape is not None and not output.shape.rank():
        return f"the output {output.name!r} is a scalar"
    fixed = [(value, size) for value in shaped if isinstance(size := first(value), int)]
    for value, size in fixed:
        if size != fixed[0][1]:
            return (f"the inputs {fixed[0][0].name!r} and {value.name!r} have {fixed[0][1]} and "
                    f"{size} rows")  # fmt: skip
    if fixed and isinstance(rows := first(output), int) and rows != fixed[0][1]:
        return (f"the input {fixed[0][0].name!r} has {fixed[0][1]} rows and the output "
                f"{output.name!r} {rows}")  # fmt: skip
    mixed = {*shaped} if 0 < len(fixed) < len(shaped) else set()
    if not fixed and isinstance(first(output), int):
        mixed.add(output)
    return crosswise(shaped, output, mixed)


def first(value: ir.Value) -> int | str | None:
    """The size of axis 0, or its name."""
    if value.shape is None or not value.shape.rank():
        return None
    dim = value.shape[0]
    return dim if isinstance(dim, int) else dim.value


def crosswise(
    inputs: Sequence[ir.Value], output: ir.Value, mixed: Collection[ir.Value]
) -> str | None:
    """Whether a name stands on axis 0 here and on another axis there.

    Args:
        inputs: with shapes.
        output: what the loss sees.
        mixed: values that share no axis 0 with others, some of which are fixed and some not.
    """
    names = [first(value) for value in [*inputs, output] if isinstance(first(value), str)]
    shared: dict[str, ir.Value] = {}
    for value in [*inputs, output]:
        for axis, dim in list(enumerate(value.shape or ()))[1:]:
            name = None if isinstance(dim, int) else dim.value
            if name is None:
                continue
            if name in names:
                return f"{name!r} is axis 0 in one place and axis {axis} of {value.name!r}"
            if shared.setdefault(name, value) is not value and value in mixed:
                return (f"{shared[name].name!r} and {value.name!r} share {name!r}, and "
                        "not axis 0")  # fmt: skip
    return None


def part(inputs: Mapping[str, Array], start: int, stop: int, *, calls: bool) -> dict[str, Array]:
    """The samples ``start`` … ``stop`` − 1; of calls one, without the axis in front."""
    if calls:
        return {name: np.asarray(array[start]) for name, array in inputs.items()}
    return {name: array[start:stop] for name, array in inputs.items()}
