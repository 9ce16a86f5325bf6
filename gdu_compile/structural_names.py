"""An oracle from another .onnx export under the model's names, where the names are not the same.

``structure.py`` says which constants stand at the same places.  From that: one oracle tensor for
each weight; where an exporter had merged what differs in the oracle, one for each use that differs.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir

from gdu_compile.arrays import ArrayHeader, Headers
from gdu_compile.bits import raw
from gdu_compile.constants import evaluated
from gdu_compile.digits import Array
from gdu_compile.places import Use, use_name, uses_of
from gdu_compile.structure import match_structure
from gdu_compile.weights import is_usual_weight

Contents = Callable[[ir.Value], Array]


@dataclass
class Assigned:
    """What stands at the same places.

    Attributes:
        headers: the model's name → the oracle's tensor; ``NAME@NODE.INPUT`` for one use.
        origins: the model's name → the oracle's.
        split: names of the model whose uses have several values in the oracle → how many.
        differences: where the graphs differ; then nothing is assigned.
        ambiguous: places where the oracle has several values, in sentences.
    """

    headers: Headers = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    split: dict[str, int] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)


def assign(
    model: ir.Model, oracle: ir.Model, lifted: Collection[str], constants: Collection[str]
) -> Assigned:
    """The oracle's tensors by the model's names.

    Args:
        model: the normalized base.
        oracle: the other export, normalized.
        lifted: names of the model that were Constant nodes, and may be mere constants.
        constants: names of the oracle that may be.
    """
    match, found = match_structure(model, oracle), Assigned()
    found.differences = [*match.differences, *match.lacking()]
    if found.differences:
        return found
    labels = Counter(node.name for node in model.graph.all_nodes())
    uses = {ours: each for ours, each in match.uses.items() if ours.dtype != ir.DataType.STRING}
    theirs_at, ours_at = reader(oracle), reader(model)
    for ours, each in uses.items():
        named = by_use(ours, each, theirs_at, labels, found)
        # All or none: a use that keeps its value would else get that of the others.
        if all(
            (ours.name in lifted or may_stay(ours, value, constants))
            and key(ours_at(ours)) == key(theirs_at(value))
            for value in named.values()
        ):
            continue
        found.headers |= {name: header(name, value, theirs_at) for name, value in named.items()}
        found.origins |= {name: str(value.name) for name, value in named.items()}
    return found


def by_use(
    ours: ir.Value, uses: Mapping[Use | None, Sequence[ir.Value]], contents: Contents,
    labels: Mapping[str | None, int], found: Assigned,
) -> dict[str, ir.Value]:  # fmt: skip
    """The oracle's values for one constant of the model: by its name, or by its uses."""
    groups: dict[tuple[object, ...], list[tuple[Use | None, ir.Value]]] = {}
    single = len({id(value) for each in uses.values() for value in each}) == 1
    for use in in_order(ours, uses):
        values = uses[use]
        keys = {() if single else key(contents(value)): value for value in values}
        if len(keys) > 1:
            at = "an output" if use is None else use_name(ours, use, labels)
            listed = ", ".join(repr(value.name) for value in values)
            found.ambiguous.append(f"{at!r} stands for several tensors of the oracle: {listed}")
        for content, value in keys.items():
            groups.setdefault(content, []).append((use, value))
    # The oracle's tensor of that name stays under it, else what most uses have; so do uses that no
    # output needs.
    kept = max(groups, key=lambda content: (
        any(value.name == ours.name for _, value in groups[content]), len(groups[content])
    ))  # fmt: skip
    named = {str(ours.name): groups[kept][0][1]}
    for content, members in groups.items():
        if content != kept:
            if any(use is None for use, _ in members):
                found.ambiguous.append(f"{ours.name!r} is an output, and an input of nodes, with "
                                       "different values in the oracle")  # fmt: skip
            named |= {use_name(ours, use, labels): value for use, value in members if use}
    if len(groups) > 1:
        found.split[str(ours.name)] = len(groups)
    return named


def in_order(ours: ir.Value, uses: Collection[Use | None]) -> list[Use | None]:
    """The uses as the graph has them, and not as they were come upon."""
    every: list[Use | None] = [*uses_of(ours), None]
    return sorted(uses, key=lambda use: every.index(use) if use in every else len(every))


def key(array: Array) -> tuple[object, ...]:
    """Equal for equal bits."""
    digest = hashlib.blake2b(raw(array).data, digest_size=32).digest()
    return str(array.dtype), array.shape, digest


def may_stay(ours: ir.Value, theirs: ir.Value, constants: Collection[str]) -> bool:
    """Whether equal bits mean that it is no oracle weight, but an axis, a shape or an exponent."""
    if theirs.name in constants:
        return True
    return any(v.const_value is None and v.dtype is not None and not is_usual_weight(v)
               for v in (ours, theirs))  # fmt: skip


def reader(model: ir.Model) -> Contents:
    """What gives the contents of a constant; one that is computed is evaluated when asked for."""
    arrays: dict[str, Array] = {}

    def contents(value: ir.Value) -> Array:
        if value.const_value is not None:
            array: Array = value.const_value.numpy()
            return array
        if value.name not in arrays:
            arrays.update(evaluated(model, [value]))
        return arrays[str(value.name)]

    return contents


def header(name: str, value: ir.Value, contents: Contents) -> ArrayHeader:
    """A constant of the oracle under a name of the model."""
    if value.const_value is None:
        array = contents(value)
        return ArrayHeader(name, array.shape, array.dtype, lambda: array)
    tensor = value.const_value
    shape, dtype = tuple(tensor.shape.numpy()), np.dtype(tensor.dtype.numpy())
    return ArrayHeader(name, shape, dtype, partial(contents, value))
