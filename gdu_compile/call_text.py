"""Texts of the form ``Name(key=literal, …)``, as optimizers and losses are written: parsed,
never evaluated."""

from __future__ import annotations

import ast
import re
from typing import Any

from gdu_compile.errors import InputError


def parse_call(
    text: str, flag: str, example: str, *, dashes: bool = False
) -> tuple[str, dict[str, Any]]:
    """The name and the keyword arguments of ``Name`` or ``Name(key=literal, …)``.

    Args:
        text: what the user has written.
        flag: the option it was written for, for the message.
        example: a text that can be read, for the message.
        dashes: the name may be several words, as command lines write them: ``nearest-mean``.

    Raises:
        InputError: the text is nothing of that form.

    Example:
        >>> parse_call("SGD(momentum=0.9)", "--optimizer", "SGD()")
        ('SGD', {'momentum': 0.9})
        >>> parse_call("nearest-mean", "--oracle", "ridge()", dashes=True)
        ('nearest-mean', {})
    """
    words = re.match(r"\s*([A-Za-z]\w*(?:-[A-Za-z]\w*)+)\s*(\(.*)?$", text, re.DOTALL)
    if not dashes or words is None:
        code, name = text, None
    else:
        code, name = words[1].replace("-", "_") + (words[2] or ""), words[1]
    try:
        node = ast.parse(code.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return name or node.id, {}
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
            raise ValueError
        arguments = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        if len(arguments) < len(node.keywords):
            raise ValueError("a keyword is there twice")
    except Exception as error:  # Python's parser raises six types on strange text
        raise InputError(
            f'{flag} {text[:80]!r} cannot be read; write it as in PyTorch: "{example}"'
        ) from error
    return name or node.func.id, arguments


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """The text that ``parse_call`` reads back.

    Example:
        >>> call_text("SGD", {"momentum": 0.9, "nesterov": True})
        'SGD(momentum=0.9, nesterov=True)'
    """
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
