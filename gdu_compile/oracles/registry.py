"""The oracles by name: the included ones, and those that others register by entry point."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import onnx_ir as ir

from gdu_compile.call_text import parse_call
from gdu_compile.errors import GduError, InputError
from gdu_compile.oracles.exhaustive import exhaustive
from gdu_compile.oracles.nearest_mean import nearest_mean
from gdu_compile.oracles.perceptron import perceptron
from gdu_compile.oracles.problem import Problem
from gdu_compile.oracles.ridge import ridge
from gdu_compile.oracles.traced import adam, build_own, evolution, is_class_name, sgd

logger = logging.getLogger(__name__)

ENTRY_POINTS = "gdu_compile.oracles"
"""The group under which other distributions register theirs."""

Builder = Callable[..., ir.Model]

ORACLES: dict[str, Builder] = {
    "nearest-mean": nearest_mean,
    "ridge": ridge,
    "perceptron": perceptron,
    "exhaustive": exhaustive,
    "sgd": sgd,
    "adam": adam,
    "evolution": evolution,
}
"""The included ones: name → function of a Problem and keyword arguments."""


@dataclass(frozen=True)
class Description:
    """One line of a list of oracles.

    Attributes:
        name: what to write.
        arguments: its arguments with their defaults, as they are written.
        line: what it does.
        source: the literature.
        cost: in n samples, d features, C classes.
    """

    name: str
    arguments: str
    line: str
    source: str
    cost: str


def build(text: str, problem: Problem) -> ir.Model:
    """The algorithm that a text names.

    Args:
        text: ``name`` or ``name(argument=literal, …)``; ``package.module:Class`` for a name is an
            algorithm of one's own, written in PyTorch.
        problem: what it is built for.

    Raises:
        InputError: the text cannot be read, nothing has this name, it cannot be loaded, it does
            not take these arguments, or it fails.
        UnsupportedError: the oracle does not fit the base.

    Example:
        >>> from gdu_compile.oracles import problem_of
        >>> model = build("ridge(penalty=0.1)", problem_of("models/digits_linear.onnx", 1797))
        >>> [value.name for value in model.graph.inputs]
        ['x', 'Y']
        >>> [value.name for value in model.graph.outputs]
        ['fc.weight', 'fc.bias']
    """
    if is_class_name(text):
        return build_own(text, problem, check_arguments)
    name, arguments = parse_call(text, "--oracle", "ridge(penalty=0.1)", dashes=True)
    if name in ORACLES:
        for entry in registered().get(name, []):
            logger.warning("oracle %r of %s is not used: an included one has this name",
                           name, owner(entry))  # fmt: skip
        check_arguments(name, ORACLES[name], arguments)
        return ORACLES[name](problem, **arguments)
    entry = entry_of(name)
    return call_entry(entry, load(entry), problem, arguments)


def registered() -> dict[str, list[EntryPoint]]:
    """The entry points by name; nothing is loaded."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        found.setdefault(entry.name, []).append(entry)
    return found


def owner(entry: EntryPoint) -> str:
    """The distribution that registers it, and what it registers."""
    return f"{entry.dist.name if entry.dist else 'an unknown distribution'} ({entry.value})"


def entry_of(name: str) -> EntryPoint:
    """The only entry point of this name.

    Raises:
        InputError: there is none, or there are several.
    """
    found = registered()
    if name not in found:
        known = sorted({*ORACLES, *found})
        raise InputError(f"no oracle is called {name!r} (--oracle)", [
            f"oracles: {', '.join(known)}",
            "an algorithm of your own is given as a file, as package.module:Class, or registered "
            f"by an entry point of the group {ENTRY_POINTS}",
        ])  # fmt: skip
    first, *others = found[name]
    if others:
        raise InputError(
            f"several distributions register an oracle {name!r}; uninstall all but one",
            [owner(entry) for entry in found[name]],
        )
    return first


def load(entry: EntryPoint) -> Builder:
    """What the entry point stands for.

    Raises:
        InputError: it cannot be imported, or it is no function.
    """
    try:
        builder = entry.load()
    except Exception as error:  # whatever the module does when it is imported
        raise InputError(
            f"oracle {entry.name!r} of {owner(entry)} cannot be loaded "
            f"({type(error).__name__}: {error}); update or uninstall it"
        ) from error
    if not callable(builder):
        raise InputError(f"oracle {entry.name!r} of {owner(entry)} is {type(builder).__name__}, "
                         "not a function of a Problem")  # fmt: skip
    function: Builder = builder
    return function


def call_entry(
    entry: EntryPoint, builder: Builder, problem: Problem, arguments: dict[str, Any]
) -> ir.Model:
    """The algorithm of somebody else's builder.

    Raises:
        InputError: it does not take the arguments, fails, or returns something else.
    """
    check_arguments(entry.name, builder, arguments)
    try:
        model = builder(problem, **arguments)
    except GduError:
        raise
    except Exception as error:  # whatever it raises
        raise InputError(f"oracle {entry.name!r} of {owner(entry)} failed "
                         f"({type(error).__name__}: {error})") from error  # fmt: skip
    if not isinstance(model, ir.Model):
        raise InputError(f"oracle {entry.name!r} of {owner(entry)} returned "
                         f"{type(model).__name__}, not an onnx_ir.Model")  # fmt: skip
    return model


def check_arguments(name: str, builder: Builder, arguments: dict[str, Any]) -> None:
    """Raise InputError when the builder has no such arguments; all are named.

    The builder itself looks at the values.
    """
    known = keywords(builder)
    if known is None:
        return
    unknown = [argument for argument in arguments if argument not in known]
    problems = [f"it has no argument {argument!r}" for argument in unknown]
    problems += [
        f"argument {parameter.name!r} has no default and is not given"
        for parameter in known.values()
        if parameter.default is parameter.empty and parameter.name not in arguments
    ]
    if problems:
        raise InputError(f"oracle {name}: write {name}({signature(builder)})", problems)


def keywords(builder: Builder) -> dict[str, inspect.Parameter] | None:
    """The arguments beside the problem; None when any name will do, or Python cannot tell."""
    try:
        parameters = list(inspect.signature(builder).parameters.values())
    except (TypeError, ValueError):  # some callables in C have no signature
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    takes = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {each.name: each for each in parameters[1:] if each.kind in takes}


def signature(builder: Builder) -> str:
    """The arguments and their defaults: ``penalty=0.01, iterations=None``."""
    known = keywords(builder)
    if known is None:
        return "…"
    return ", ".join(
        name if parameter.default is parameter.empty else f"{name}={parameter.default!r}"
        for name, parameter in known.items()
    )


def describe() -> list[Description]:
    """The oracles that can be named, the included ones first; no entry point is loaded.

    Example:
        >>> ridge = describe()[1]
        >>> ridge.name, ridge.arguments, ridge.source.partition(";")[0]
        ('ridge', 'penalty=0.001, iterations=None', 'Hoerl & Kennard 1970')
    """
    included = [
        Description(
            name, signature(builder), first_line(builder), field(builder, "Source"),
            field(builder, "Cost"),
        )
        for name, builder in ORACLES.items()
    ]  # fmt: skip
    others = [
        Description(
            name, "…", f"registered by {owner(entry)}"
            + (", not used: an included one has this name" if name in ORACLES else ""), "", "",
        )
        for name, entries in sorted(registered().items())
        for entry in entries
    ]  # fmt: skip
    return [*included, *others]


def first_line(builder: Builder) -> str:
    """The first line of the docstring."""
    return (inspect.getdoc(builder) or "").partition("\n")[0]


def field(builder: Builder, name: str) -> str:
    """The line ``name: …`` of the docstring; empty when there is none."""
    match = re.search(rf"^{name}: (.*)$", inspect.getdoc(builder) or "", re.MULTILINE)
    return match[1] if match else ""
