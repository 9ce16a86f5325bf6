"""The operator registry: (domain, operator, since_version) → one Python function.

An entry is a function named freely, whose positional parameters are the ONNX
inputs (``None`` for an absent optional input) and whose keyword-only
parameters are the ONNX attributes, spelled as ONNX spells them, with ONNX's
defaults.  It returns a tensor, or a tuple for several outputs.  Of the
versions of an operator, the newest one not above the model's opset is taken.

Entries must be true derivatives-wise: plain torch functions only, no custom
autograd function, no detach, no no_grad.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from gdu_compile.errors import UnsupportedError

Operator = Callable[..., Any]
F = TypeVar("F", bound=Operator)

# domain → operator → since_version → function
TABLE: dict[str, dict[str, dict[int, Operator]]] = {}


def operator(name: str, since: int = 1, *, domain: str = "") -> Callable[[F], F]:
    """Register the decorated function as ``name`` from opset ``since`` on.

    Example:
        >>> from gdu_compile.torch_backend.registry import TABLE, operator
        >>> @operator("Twice", since=18, domain="org.example")
        ... def twice(x):
        ...     return x + x
        >>> sorted(TABLE["org.example"]["Twice"])
        [18]
    """

    def register(function: F) -> F:
        versions = TABLE.setdefault(domain, {}).setdefault(name, {})
        if since in versions:
            raise ValueError(f"{domain or 'ai.onnx'}::{name} since {since} is registered twice")
        versions[since] = function
        return function

    return register


def lookup(name: str, opset: int, *, domain: str = "") -> Operator:
    """The newest implementation of ``name`` not above ``opset``.

    Raises:
        UnsupportedError: no entry fits; the message names operator and opset.
    """
    domain = "" if domain == "ai.onnx" else domain
    versions = TABLE.get(domain, {}).get(name, {})
    fitting = [since for since in versions if since <= opset]
    if not fitting:
        raise UnsupportedError(
            f"operator {domain or 'ai.onnx'}::{name} (opset {opset}) is not in the torch "
            "operator table, so this model cannot be run in torch past this node"
        )
    return versions[max(fitting)]


def has(name: str, opset: int, *, domain: str = "") -> bool:
    """Whether ``lookup`` finds it."""
    domain = "" if domain == "ai.onnx" else domain
    return any(since <= opset for since in TABLE.get(domain, {}).get(name, ()))
