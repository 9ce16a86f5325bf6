"""From the oracle's names to the model's: rules, usual prefixes, and suggestions for the rest.

Rules (``--rename``) are the user's word.  A prefix that wrappers of torch modules
add is stripped when that makes a name match which would not otherwise, and nothing
else could be meant.  What only looks alike is suggested, never done.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from gdu_compile.arrays import ArrayHeader
from gdu_compile.constants import constant_values
from gdu_compile.contracts import State
from gdu_compile.errors import InputError
from gdu_compile.graph_view import called
from gdu_compile.places import uses_by_name, uses_of
from gdu_compile.weights import is_usual_weight

if TYPE_CHECKING:
    from gdu_compile.oracle_weights import OracleWeights

Rename = str | Mapping[str, str] | Sequence[str | tuple[str, str]]

PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and trainers put before the names of a module."""

WHOLE = "export both again as they are, torch.onnx.export(..., optimize=False)"
"""The way out where two exports differ in more than their weights."""

NAME_LIMIT = 1000
"""Longer names are not renamed: a regular expression may take very long on them."""


@dataclass(frozen=True)
class Rule:
    """One ``REGEX=REPL``."""

    pattern: re.Pattern[str]
    replacement: str
    text: str


def parse_rules(rename: Rename) -> tuple[list[Rule], list[str]]:
    """The rules, and what is wrong with the others.

    Args:
        rename: {regex: replacement}, or a sequence of ``"REGEX=REPL"`` or pairs.  A text is
            split at its first ``=``; an ``=`` of the regex is written ``\\=`` (``(?\\=…)`` too),
            one of the replacement as it is.

    Example:
        >>> rules, problems = parse_rules(["^a\\\\=(.*)=b=\\\\1", "no rule"])
        >>> rules[0].pattern.pattern, rules[0].replacement
        ('^a=(.*)', 'b=\\\\1')
        >>> problems
        ["--rename 'no rule': holds no '='; write REGEX=REPL"]
    """
    rules: list[Rule] = []
    problems: list[str] = []
    given = [rename] if isinstance(rename, str) else rename
    for entry in list(given.items()) if isinstance(given, Mapping) else given:
        parts = split_rule(entry) if isinstance(entry, str) else entry
        text = entry if isinstance(entry, str) else "=".join(map(str, entry))
        if parts is None:
            problems.append(f"--rename {text!r}: holds no '='; write REGEX=REPL")
            continue
        regex, replacement = parts
        try:
            rules.append(Rule(re.compile(regex), replacement, text))
        except (re.error, OverflowError, RecursionError, TypeError) as error:
            problems.append(f"--rename {text!r}: is no regular expression of Python ({error})")
    return rules, problems


def split_rule(text: str) -> tuple[str, str] | None:
    """(regex, replacement), or None when no ``=`` divides them."""
    parts = re.fullmatch(r"((?:[^\\=]|\\.)*)=(.*)", text, re.DOTALL)
    if parts is None:
        return None
    # In pairs, so that the = behind an escaped backslash is seen as what it is.
    regex = re.sub(r"\\(.)", lambda pair: "=" if pair[1] == "=" else pair[0], parts[1], flags=re.S)
    return regex, parts[2]


def rename_all(names: Iterable[str], rules: Sequence[Rule], source: str) -> dict[str, str]:
    """Name → name after all rules (``re.sub``), in order.

    Raises:
        InputError: a rule that cannot be applied or matches no name, or two names that
            become the same; all at once.
    """
    present = {name: name for name in names}
    problems: list[str] = []
    for rule in rules:
        problems += apply_rule(rule, present)
    origins: dict[str, list[str]] = {}
    for old, new in present.items():
        origins.setdefault(new, []).append(old)
    problems += [
        f"{' and '.join(map(repr, olds[:4]))}{' …' * (len(olds) > 4)} would all become {new!r}; "
        "narrow the rule"
        for new, olds in origins.items()
        if len(olds) > 1
    ]
    if problems:
        raise InputError(f"cannot rename the oracle weights {source}", problems)
    return present


def apply_rule(rule: Rule, present: dict[str, str]) -> list[str]:
    """Change the values of ``present`` by one rule; what is wrong with it."""
    matched = False
    for old, name in present.items():
        if len(name) > NAME_LIMIT:
            return [
                f"--rename {rule.text!r}: the name {name[:40]!r} … has {len(name)} characters, but "
                f"at most {NAME_LIMIT} are renamed; rename it where it is saved"
            ]
        try:
            present[old], count = rule.pattern.subn(rule.replacement, name)
        except (re.error, IndexError, TypeError) as error:
            return [f"--rename {rule.text!r}: its replacement cannot be used ({error})"]
        matched = matched or count > 0
    if not matched:
        names = ", ".join(list(present.values())[:12])
        return [f"--rename {rule.text!r}: matches none of the oracle's names; they are {names}"
                f"{' …' if len(present) > 12 else ''}"]  # fmt: skip
    return []


@dataclass(frozen=True)
class Fitted:
    """An oracle under the model's names.

    Attributes:
        oracle: the weights.
        untie: whether single uses got values of their own.
        problems: why some names could not be matched by structure.
    """

    oracle: OracleWeights
    untie: bool = False
    problems: tuple[str, ...] = ()


def fitted(oracle: OracleWeights, model: ir.Model, state: State) -> Fitted:
    """The oracle under the model's names: usual prefixes stripped, mere constants left out.

    Another export of the network is matched by structure where its names are not the model's.
    What was done goes into ``state.notes`` and ``state.renamed``.
    """
    known, renamed, present = by_name(oracle, model)
    state.notes += oracle.notes
    changed = bool(state.restored) or state.counterpart is not None
    if (
        changed
        or is_other_export(oracle, model, state, present.values())
        or elsewhere(oracle, model, present, state)
    ):
        found = by_structure(oracle, model, state)
        if isinstance(found, Fitted):
            return found
        if changed:
            raise InputError(f"cannot use the oracle weights {oracle.source}", found)
        if not set(present.values()) <= set(known):
            return Fitted(oracle.with_names(present), problems=found)
        state.notes += [f"{oracle.source}: taken by its names alone, {why}" for why in found]
    counts = Counter(old.removesuffix(new) for old, new in renamed.items())
    state.renamed = {new: old for old, new in renamed.items()}
    state.notes += [
        f"{oracle.source}: the prefix {prefix!r} was stripped from {count} name{'s' * (count > 1)} "
        "that are weights of the model without it"
        for prefix, count in counts.items()
    ]
    return Fitted(oracle.with_names(present))


def by_name(
    oracle: OracleWeights, model: ir.Model
) -> tuple[Mapping[str, ir.Value], dict[str, str], dict[str, str]]:
    """What may be named, the names of which a prefix goes, and all the oracle's → the model's."""
    weights = model.graph.initializers
    names = [name for name in oracle if not is_constant(oracle, name, weights)]
    known = weights if all(name in weights for name in names) else all_known(model)
    renamed = without_prefixes(names, known)
    return known, renamed, {name: renamed.get(name, name) for name in names}


def is_other_export(
    oracle: OracleWeights, model: ir.Model, state: State, names: Collection[str] | None = None
) -> bool:
    """Whether the oracle is a network whose names, by the model's, do not go with all weights."""
    if oracle.graph is None:
        return False
    names = by_name(oracle, model)[2].values() if names is None else names
    return not complete(names, model.graph.initializers, state)


def all_known(model: ir.Model) -> dict[str, ir.Value]:
    """Everything that an oracle may name: initializers, what is computed from them, single uses."""
    computed = constant_values(model)
    single = {name: value for name, (value, _) in uses_by_name(model, computed).items()}
    return {**single, **computed, **model.graph.initializers}


def complete(names: Collection[str], weights: Mapping[str, ir.Value], state: State) -> bool:
    """Whether the names are the model's, and none of its usual weights is without one."""
    given = set(names)
    return given <= set(weights) and all(
        name in given or name in (state.lifted or {}) or not is_usual_weight(value)
        for name, value in weights.items()
    )


def elsewhere(
    oracle: OracleWeights, model: ir.Model, present: Mapping[str, str], state: State
) -> bool:
    """Whether the oracle's graph has a constant where the model has one of another name.

    Names that exporters number may be the same and mean others.  Where the graphs differ there is
    nothing but names, and a note; names that --rename gives count as they are.
    """
    from gdu_compile.onnx_weights import at_opset
    from gdu_compile.structure import match_structure

    if oracle.graph is None or any(oracle[name].name != name for name in present):
        return False
    match = match_structure(model, at_opset(oracle.graph, model))
    if match.differences:
        state.notes.append(f"{oracle.source}: its weights are taken by their names, but its graph "
                           "is not the model's, so its outputs may be others: "
                           f"{'; '.join(match.differences)}")  # fmt: skip
        return False
    return any(
        not (present.get(str(value.name), value.name) == ours.name and value.const_value)
        and not same_tensor(ours.const_value, value.const_value)
        for ours, uses in match.uses.items() for values in uses.values() for value in values
    )  # fmt: skip


def same_tensor(one: ir.TensorProtocol | None, other: ir.TensorProtocol | None) -> bool:
    """Whether both are there, with the same bits."""
    if one is None or other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one.tobytes() == other.tobytes()


def by_structure(oracle: OracleWeights, model: ir.Model, state: State) -> Fitted | tuple[str, ...]:
    """The oracle under the model's names as both graphs say, or why they do not.

    Raises:
        InputError: one place of the model is several ones of the oracle, with different values.
    """
    from gdu_compile.onnx_weights import at_opset
    from gdu_compile.structural_names import assign

    assert oracle.graph is not None
    other = state.counterpart or at_opset(oracle.graph, model)
    found = assign(model, other, state.lifted or {}, oracle.constants)
    if found.ambiguous:
        raise InputError(f"cannot use the oracle weights {oracle.source}: what the model computes "
                         f"once, it computes several times; {WHOLE}", found.ambiguous)  # fmt: skip
    if found.differences or not found.headers:
        listed = "; ".join(found.differences) or "it has no constants where the model has some"
        return (f"as it is not the model's graph, by which it could be matched: {listed}; an "
                f"exporter may have removed what did nothing: {WHOLE}",)  # fmt: skip
    state.renamed = {name: old for name, old in found.origins.items() if old != name}
    state.notes.append(
        f"{oracle.source}: {len(found.headers)} weights matched by their places in the graph, "
        f"{len(state.renamed)} of them under another name"
    )
    state.notes += [
        f"{oracle.source}: {name!r} has {count} values there: each use has its own"
        for name, count in found.split.items()
    ]
    return Fitted(oracle.of_headers(found.headers), untie=bool(found.split))


def is_constant(oracle: OracleWeights, name: str, weights: Mapping[str, ir.Value]) -> bool:
    """Whether a tensor of an .onnx file is a constant of the network and no oracle weight.

    A constant that the model has too, with the same bits, keeps its value in any case.
    One that it lacks is no weight when it is no float, or has no more than one axis.
    """
    if name not in oracle.constants:
        return False
    header = oracle[name]
    if name not in weights:
        return header.dtype.kind in "iub" or len(header.shape) < 2
    tensor = weights[name].const_value
    if tensor is None or tuple(tensor.shape.numpy()) != header.shape:
        return False
    if tensor.dtype.numpy() != header.dtype:
        return False
    one, other = (np.ascontiguousarray(a).reshape(-1) for a in (header.load(), tensor.numpy()))
    return np.array_equal(one.view(np.uint8), other.view(np.uint8))


def without_prefixes(names: Sequence[str], known: Mapping[str, object]) -> dict[str, str]:
    """Name → known name, for names that are known only without their prefix, and clearly.

    Example:
        >>> names = ["module.w", "_orig_mod.module.b", "module.c", "c"]
        >>> without_prefixes(names, {"w": 0, "b": 0, "c": 0})
        {'module.w': 'w', '_orig_mod.module.b': 'b'}
    """
    taken = set(names)
    origins: dict[str, list[str]] = {}
    for name in names:
        fits = [] if name in known else [short for short in shortened(name) if short in known]
        if len(fits) == 1 and fits[0] not in taken:
            origins.setdefault(fits[0], []).append(name)
    return {olds[0]: new for new, olds in origins.items() if len(olds) == 1}


def shortened(name: str) -> Iterator[str]:
    """The name without its first prefix, without its first two, …"""
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
        yield name


def unknown_names(
    unknown: Mapping[str, ArrayHeader], free: Sequence[ir.Value], known: Mapping[str, object],
    graph: ir.Model | None = None,
) -> list[str]:  # fmt: skip
    """Complaints about oracle names that are no weight, each with what could be meant.

    Args:
        unknown: oracle name → header.
        free: weights of the model that the oracle does not cover.
        known: all weights of the model.
        graph: the oracle, where it is a network.
    """
    found = hints(unknown, free, known)
    return [
        f"{name!r} is no weight of the model{user_in(graph, name)} (--allow-extra ignores it)"
        + (f"; {found[name]}" if name in found else "")
        for name in unknown
    ]


def user_in(graph: ir.Model | None, name: str) -> str:
    """What a tensor is for in the oracle's network, in words."""
    value = None if graph is None else graph.graph.initializers.get(name)
    for node, index in [] if value is None else uses_of(value):
        return (f": nothing was found there like {node.op_type} {called(node)}, which has it as "
                f"input {index} in the oracle")  # fmt: skip
    return ""


def hints(
    unknown: Mapping[str, ArrayHeader], free: Sequence[ir.Value], known: Mapping[str, object]
) -> dict[str, str]:
    """Oracle name → which uncovered weight could be meant, and what to do then."""
    shapes: dict[tuple[int, ...], list[ir.Value]] = {}
    for value in free:
        if value.const_value is not None:
            shapes.setdefault(tuple(value.const_value.shape.numpy()), []).append(value)
    present = {header.shape for header in unknown.values()}
    by_shape = {shape: fitting(shape, shapes) for shape in present}  # one list for all of a shape
    fits = {name: by_shape[header.shape] for name, header in unknown.items()}
    wanted = Counter(values[0].name for values in fits.values() if len(values) == 1)
    found: dict[str, str] = {}
    for name, values in fits.items():
        shape = f"its shape {list(unknown[name].shape)} fits"
        meant = [rest for rest in shortened(name) if rest in known]
        if len(meant) > 1:
            found[name] = (f"without a prefix it is {' or '.join(map(repr, meant))}: choose with "
                           "--rename")  # fmt: skip
        elif meant:
            found[name] = (f"without its prefix it is {meant[0]!r}, as another name is too: keep "
                           "one of them")  # fmt: skip
        elif len(values) > 1:
            listed = ", ".join(repr(value.name) for value in values[:4])
            found[name] = (f"{shape} {len(values)} uncovered weights: {listed}"
                           f"{' …' * (len(values) > 4)}")  # fmt: skip
        elif values and (rivals := wanted[values[0].name] - 1):
            found[name] = (f"{shape} only {values[0].name!r}, but so does that of {rivals} other "
                           f"unknown name{'s' * (rivals > 1)}")  # fmt: skip
        elif values:
            found[name] = f"{shape} only {suggestion(name, unknown[name].shape, values[0])}"
    return found


def fitting(
    shape: tuple[int, ...], shapes: Mapping[tuple[int, ...], list[ir.Value]]
) -> list[ir.Value]:
    """The weights of this shape, and of its transpose when it is a matrix."""
    values = list(shapes.get(shape, ()))
    if len(shape) == 2 and shape[0] != shape[1]:
        values += shapes.get(shape[::-1], ())
    return values


def suggestion(name: str, shape: tuple[int, ...], value: ir.Value) -> str:
    """How to use an oracle tensor for the only weight that it fits."""
    assert value.const_value is not None
    rename = f"--rename {shlex.quote(exact_rule(name, str(value.name)))}"
    if tuple(value.const_value.shape.numpy()) != shape:
        return f"{value.name!r} when transposed: {rename}, and transpose it before saving"
    if len(shape) != 2 or shape[0] != shape[1]:
        return f"{value.name!r}: {rename}"
    linear = ", as a weight of torch.nn.Linear has to be there" * multiplied_from_right(value)
    return f"{value.name!r}, as it is or transposed (before saving){linear}: {rename}"


def multiplied_from_right(value: ir.Value) -> bool:
    """Whether the weight is the second factor of a MatMul, or of a Gemm without transB."""
    return any(
        usage.idx == 1
        and (
            usage.node.op_type == "MatMul"
            or (usage.node.op_type == "Gemm" and usage.node.attributes.get_int("transB", 0) == 0)
        )
        for usage in value.uses()
    )


def exact_rule(old: str, new: str) -> str:
    """The ``REGEX=REPL`` that renames one name and no other.

    Example:
        >>> exact_rule("fc1.weight", "onnx::MatMul_12")
        '^fc1\\\\.weight$=onnx::MatMul_12'
    """
    regex, replacement = re.escape(old).replace("=", "\\="), new.replace("\\", "\\\\")
    return f"^{regex}$={replacement}"
