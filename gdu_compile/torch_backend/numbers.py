"""Whole numbers that Python knows while a graph is traced: sizes, axes, places.

torch.export and torch.compile cannot look into a tensor.  So where one of them traces, small
constants of integers, and what is computed from shapes, go through the graph as lists of Python's
numbers (or torch's symbols for them), and reach the functions that ask for them with ``tolist``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

MOST = 64
"""Elements of a constant that is known in this way."""
TRACED = ""
"""A key of an environment that is only there while torch traces; no value has this name."""


class Numbers:
    """A tensor of integers without axes, or with one, as a list.

    Attributes:
        values: the numbers.
        ndim: 0 or 1.
        source: the same as a tensor, where there is one.
    """

    def __init__(self, values: Sequence[Any], ndim: int, source: Tensor | None = None) -> None:
        self.values = list(values)
        self.ndim = ndim
        self.source = source

    def of(self, source: Tensor) -> Numbers:
        """The same numbers, with the tensor that holds them."""
        return Numbers(self.values, self.ndim, source)

    @property
    def device(self) -> torch.device | None:
        """Where the tensor is."""
        return None if self.source is None else self.source.device

    def tolist(self) -> Any:
        """As of a tensor."""
        return list(self.values) if self.ndim else self.values[0]

    def reshape(self, *shape: Any) -> Numbers:
        """As one axis, or without any."""
        return Numbers(self.values, 0 if shape in {(), ((),)} else 1)

    def __int__(self) -> int:
        return int(self.values[0])

    def __len__(self) -> int:
        return len(self.values)

    def tensor(self, device: torch.device | None) -> Tensor:
        """As a tensor, made by operators: a constant inside a branch could not be saved."""
        if self.source is not None:
            return self.source
        each = [torch.full((), value, dtype=torch.int64, device=device) for value in self.values]
        if not self.ndim:
            return each[0]
        return torch.stack(each) if each else torch.empty(0, dtype=torch.int64, device=device)


def known(tensor: Tensor) -> Numbers | None:
    """A constant as numbers, if it is a small one of 64-bit integers with at most one axis."""
    if tensor.dtype != torch.int64 or tensor.ndim > 1 or tensor.numel() > MOST:
        return None
    return Numbers(tensor.reshape(-1).tolist(), tensor.ndim)


SYMBOLIC = {FakeTensor, FunctionalTensor, Numbers}
"""Types without concrete values, or that only exist while torch traces."""


def tracing(*values: Any) -> bool:
    """Whether torch traces, so that these values are not concrete."""
    return torch.compiler.is_compiling() or any(type(x) in SYMBOLIC for x in values)


# --- which operators take and give numbers -----------------------------------

# operator → the inputs that its function reads as numbers
READ: dict[str, Sequence[int]] = {
    "ConstantOfShape": (0,), "CumSum": (1,), "Expand": (1,), "OneHot": (1,), "Pad": (1, 3),
    "ReduceL1": (1,), "ReduceL2": (1,), "ReduceLogSum": (1,), "ReduceLogSumExp": (1,),
    "ReduceMax": (1,), "ReduceMean": (1,), "ReduceMin": (1,), "ReduceProd": (1,), "ReduceSum": (1,),
    "ReduceSumSquare": (1,), "Reshape": (1,), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,),
    "Tile": (1,), "TopK": (1,), "Trilu": (1,), "Unsqueeze": (1,),
}  # fmt: skip


def gather(data: Numbers, indices: Numbers, *, axis: int = 0) -> Numbers:
    """Gather."""
    return Numbers([data.values[i] for i in indices.values], indices.ndim)


def concat(*parts: Numbers, axis: int) -> Numbers:
    """Concat."""
    return Numbers([value for part in parts for value in part.values], 1)


def slice_(
    data: Numbers, starts: Numbers, ends: Numbers, axes: Numbers | None = None,
    steps: Numbers | None = None,
) -> Numbers:  # fmt: skip
    """Slice."""
    step = 1 if steps is None else steps.values[0]
    return Numbers(data.values[starts.values[0] : ends.values[0] : step], 1)


def squeeze(data: Numbers, axes: Numbers | None = None) -> Numbers:
    """Squeeze."""
    return Numbers(data.values, 0)


def unsqueeze(data: Numbers, axes: Numbers) -> Numbers | None:
    """Unsqueeze, of a single number."""
    return None if data.ndim else Numbers(data.values, 1)


def identity(data: Numbers) -> Numbers:
    """Identity."""
    return data


def cast(data: Numbers, *, to: int, **_: Any) -> Numbers | None:
    """Cast, to int64."""
    return data if to == 7 else None


def pointwise(function: Callable[[Any, Any], Any]) -> Callable[..., Numbers]:
    """An operator of two numbers, with broadcasting."""

    def run(a: Numbers, b: Numbers) -> Numbers:
        size = max(len(a), len(b)) if len(a) and len(b) else 0
        left, right = (x.values * size if len(x) == 1 else x.values for x in (a, b))
        return Numbers([function(x, y) for x, y in zip(left, right, strict=True)],
                       max(a.ndim, b.ndim))  # fmt: skip

    return run


# operator → its result, as numbers, of numbers; None: it needs tensors
RULES: dict[str, Callable[..., Numbers | None]] = {
    "Add": pointwise(lambda a, b: a + b), "Sub": pointwise(lambda a, b: a - b),
    "Mul": pointwise(lambda a, b: a * b), "Gather": gather, "Concat": concat, "Slice": slice_,
    "Squeeze": squeeze, "Unsqueeze": unsqueeze, "Identity": identity, "Cast": cast,
}  # fmt: skip


def of_shape(data: Tensor, *, start: int = 0, end: int | None = None) -> Numbers:
    """Shape, while tracing."""
    return Numbers(list(data.shape[start:end]), 1)


def in_numbers(
    op_type: str, attributes: dict[str, Any], arguments: Sequence[Any]
) -> Numbers | None:
    """The result of a node as numbers; None where it is not known."""
    if op_type == "Shape" and isinstance(arguments[0], Tensor):
        return of_shape(arguments[0], **attributes)
    rule = RULES.get(op_type)
    if rule is None or not all(x is None or isinstance(x, Numbers) for x in arguments):
        return None
    return rule(*arguments, **attributes)


def as_arguments(op_type: str, arguments: Sequence[Any]) -> list[Any]:
    """What an operator's function is given: tensors, but numbers where it reads them."""
    read = READ.get(op_type, ())
    device = next((x.device for x in arguments if isinstance(x, Tensor)), None)
    return [
        x.tensor(device) if isinstance(x, Numbers) and i not in read else x
        for i, x in enumerate(arguments)
    ]


def as_tensor(x: Any) -> Any:
    """A value that leaves a graph."""
    return x.tensor(None) if isinstance(x, Numbers) else x
