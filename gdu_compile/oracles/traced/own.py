"""A class of somebody's own as an oracle: ``package.module:Class``, with arguments or without."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir

from gdu_compile.call_text import parse_call
from gdu_compile.errors import GduError, InputError
from gdu_compile.oracles.problem import Problem

FORM = re.compile(r"\s*([A-Za-z_]\w*(?:\.\w+)*):([A-Za-z_]\w*)\s*(\(.*\))?\s*$", re.DOTALL)
CheckArguments = Callable[[str, Callable[..., Any], dict[str, Any]], None]


def is_class_name(text: str) -> bool:
    """Whether a text has the form ``package.module:Class`` or ``package.module:Class(…)``.

    Example:
        >>> [is_class_name(text) for text in ("my.oracles:Mine(lr=0.1)", "ridge", "a.onnx")]
        [True, False, False]
    """
    return FORM.match(text) is not None


def build_own(text: str, problem: Problem, check_arguments: CheckArguments) -> ir.Model:
    """The algorithm that a class writes; the class gets a ``Base`` and the arguments.

    Args:
        text: ``package.module:Class`` or ``package.module:Class(argument=literal, …)``; the module
            is looked for in the folder where the command runs, too.
        problem: what it is built for.
        check_arguments: (name, class, arguments) → raises where it does not take them.

    Raises:
        InputError: it cannot be imported, or is no oracle.
        UnsupportedError: its step cannot be traced, or uses what has no ONNX form.
    """
    match = FORM.match(text)
    assert match is not None
    module, name, rest = match[1], match[2], match[3] or ""
    called = f"{module}:{name}"
    _, arguments = parse_call(f"{name}{rest}", "--oracle", "my.module:MyOracle(lr=0.1)")
    found = load_class(module, name)
    check_arguments(called, found, arguments)
    from gdu_compile.oracles.traced.base import Base  # torch takes a second
    from gdu_compile.oracles.traced.build import build_traced

    try:
        return build_traced(problem, found(Base(problem), **arguments), called)
    except GduError:
        raise
    except Exception as error:  # whatever somebody's code raises
        raise InputError(f"oracle {called} failed ({type(error).__name__}: {error})") from error


def load_class(module: str, name: str) -> Any:
    """The class.

    Raises:
        InputError: there is no such module, it cannot be imported, or has no such class.
    """
    try:
        with here():
            loaded = importlib.import_module(module)
    except Exception as error:  # whatever the module does when it is imported
        raise InputError(f"--oracle {module}:{name}: the module {module!r} cannot be imported "
                         f"({type(error).__name__}: {error})") from error  # fmt: skip
    found = getattr(loaded, name, None)
    if not isinstance(found, type):
        what = "has no" if found is None else f"has {type(found).__name__}, no class,"
        raise InputError(f"--oracle {module}:{name}: the module {what} {name!r}")
    return found


@contextmanager
def here() -> Iterator[None]:
    """Modules of the current folder can be imported: a command's own path does not have it."""
    folder = str(Path.cwd())
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
