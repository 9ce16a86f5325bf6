"""The operators on sequences, which are Python lists of tensors, and on optional values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gdu_compile.torch_backend.registry import operator


@operator("SequenceConstruct", since=11)
def sequence_construct(*inputs: Tensor) -> list[Tensor]:
    return list(inputs)


@operator("SequenceEmpty", since=11)
def sequence_empty(*, dtype: int = 1) -> list[Tensor]:
    return []


@operator("SequenceAt", since=11)
def sequence_at(input_sequence: list[Tensor], position: Tensor) -> Tensor:
    return input_sequence[int(position)]


@operator("SequenceInsert", since=11)
def sequence_insert(
    input_sequence: list[Tensor], tensor: Tensor, position: Tensor | None = None
) -> list[Tensor]:
    place = len(input_sequence) if position is None else int(position)
    longer = list(input_sequence)
    longer.insert(place, tensor)
    return longer


@operator("SequenceErase", since=11)
def sequence_erase(input_sequence: list[Tensor], position: Tensor | None = None) -> list[Tensor]:
    shorter = list(input_sequence)
    del shorter[-1 if position is None else int(position)]
    return shorter


@operator("SequenceLength", since=11)
def sequence_length(input_sequence: list[Tensor]) -> Tensor:
    return torch.tensor(len(input_sequence), dtype=torch.int64)


@operator("SplitToSequence", since=11)
def split_to_sequence(
    x: Tensor, split: Tensor | None = None, *, axis: int = 0, keepdims: int = 1
) -> list[Tensor]:
    if split is None:
        return list(torch.split(x, 1, axis) if keepdims else torch.unbind(x, axis))
    return list(torch.split(x, split.tolist(), axis))  # a scalar: the length of each


@operator("ConcatFromSequence", since=11)
def concat_from_sequence(input_sequence: list[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    return torch.stack(input_sequence, axis) if new_axis else torch.cat(input_sequence, axis)


@operator("Optional", since=15)
def optional(input: Any = None, *, type: Any = None) -> Any:
    return input


@operator("OptionalHasElement", since=15)
def optional_has_element(input: Any = None) -> Tensor:
    return torch.tensor(input is not None)


@operator("OptionalGetElement", since=15)
def optional_get_element(input: Any) -> Any:
    return input
