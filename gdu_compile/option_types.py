"""The types of option values: what the API takes for each, and what it is called in a message."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_args

import numpy as np

from gdu_compile.name_matching import Rename

Converter = Callable[[object], object]


def converter(hint: Any) -> tuple[Converter, str]:
    """The function that makes a value one of a field's type, and what that type is called.

    The function raises TypeError, ValueError or OverflowError for what is of another type.

    Args:
        hint: the field's type: bool, int, float, str, Path or Rename, or one of them or None.

    Example:
        >>> import numpy as np
        >>> convert, called = converter(int | None)
        >>> convert(np.int64(3)), called
        (3, 'a whole number')
    """
    if hint == Rename:
        return to_rename, "rules: REGEX=REPL, pairs of texts, or a mapping of texts"
    (kind,) = [part for part in get_args(hint) or (hint,) if part is not type(None)]
    return CONVERTERS[kind]


def to_bool(value: object) -> bool:
    """A truth value of Python or numpy; numbers are none."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError
    return bool(value)


def to_int(value: object) -> int:
    """A whole number of Python or numpy; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError
    return int(value)


def to_float(value: object) -> float:
    """A number of Python or numpy; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError
    return float(value)


def to_str(value: object) -> str:
    """Text."""
    if not isinstance(value, str):
        raise TypeError
    return str(value)


def to_path(value: object) -> Path:
    """A path, from text or anything that is one."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError
    return Path(value)


def to_rename(value: object) -> object:
    """Rules as parse_rules takes them: texts, pairs of texts, or a mapping of texts."""
    if isinstance(value, str):
        return value
    rules: object = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(rules, Sequence):
        raise TypeError
    if not all(is_rule(rule) for rule in rules):
        raise TypeError
    return value


def is_rule(rule: object) -> bool:
    """One REGEX=REPL, or a pair."""
    if isinstance(rule, str) or not isinstance(rule, Sequence):
        return isinstance(rule, str)
    return len(rule) == 2 and all(isinstance(part, str) for part in rule)


CONVERTERS: dict[type, tuple[Converter, str]] = {
    bool: (to_bool, "True or False"),
    int: (to_int, "a whole number"),
    float: (to_float, "a number that a float holds"),
    str: (to_str, "text"),
    Path: (to_path, "a path"),
}
