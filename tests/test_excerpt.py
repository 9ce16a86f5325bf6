"""Functions copied out of the package: they run alone, whatever their names collide with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gdu_compile.errors import UnsupportedError
from gdu_compile.torch_backend import ops_elementwise, ops_recurrent, registry
from gdu_compile.torch_backend.excerpt import Excerpt, renamed
from gdu_compile.torch_backend.ops_unsigned import modular


def run(excerpt: Excerpt, expressions: list[str]) -> list[Any]:
    """The values of expressions in a file of that excerpt alone."""
    lines = [excerpt.import_lines(), excerpt.text(), f"results = [{', '.join(expressions)}]"]
    names: dict[str, Any] = {"__name__": "alone"}
    exec("\n".join(lines), names)
    results: list[Any] = names["results"]
    return results


def table() -> list[Any]:
    """Every function of the operator table."""
    return [
        pytest.param(function, id=f"{domain}{name}{since}")
        for domain, operators in registry.TABLE.items()
        for name, versions in operators.items()
        for since, function in versions.items()
    ]


@pytest.mark.parametrize("function", table())
def test_every_function_has_source(function: Callable[..., Any]) -> None:
    """And nothing of the package is imported by it."""
    excerpt = Excerpt(set())
    (copy,) = run(excerpt, [excerpt.expression(function)])
    assert callable(copy)
    assert "gdu_compile" not in excerpt.import_lines()


def test_a_function_and_an_import_of_one_name() -> None:
    """The operator Cast is called cast, and so is what modular imports from typing."""
    for first in (True, False):
        excerpt = Excerpt(set())
        functions = [registry.lookup("Cast", 18), modular(torch.add)]
        expressions = [excerpt.expression(each) for each in functions[:: 1 if first else -1]]
        cast, add = run(excerpt, expressions)[:: 1 if first else -1]
        x = torch.tensor([65535, 3], dtype=torch.uint16)
        assert add(x, x).tolist() == [65534, 6]
        assert cast(x, to=1).dtype == torch.float32


def test_taken_names() -> None:
    """What the file calls otherwise keeps its name."""
    excerpt = Excerpt({"gather", "_from_start", "Tensor"})
    expression = excerpt.expression(registry.lookup("Gather", 18))
    assert expression == "gather_2"
    (gather,) = run(excerpt, [expression])
    assert gather(torch.tensor([5, 6]), torch.tensor(-1)).item() == 6


def test_a_lambda_of_a_table() -> None:
    """By its place in the table."""
    excerpt = Excerpt(set())
    function = ops_recurrent.ACTIVATIONS["affine"].function
    (copy,) = run(excerpt, [excerpt.expression(function)])
    assert copy(3.0, 2.0, 1.0) == 7.0


def hidden(a: int, b: int) -> Callable[[int], int]:
    """A factory that does not hand all that it was given on."""
    return lambda x: x + a


@pytest.mark.parametrize("function", [lambda x: x, hidden(1, 2), len])
def test_no_source(function: Callable[..., Any]) -> None:
    """Refused, and not written wrongly."""
    with pytest.raises(UnsupportedError, match="has no source that can be copied"):
        Excerpt(set()).expression(function)


def test_no_source_in_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A factory whose arguments cannot be seen in what it made."""
    code = "def maker(a, b):\n    return lambda x: x + a\nmade = maker(1, 2)"
    names = {"__name__": ops_elementwise.__name__}
    exec(code, names)
    monkeypatch.setattr(ops_elementwise, "maker", names["maker"], raising=False)
    with pytest.raises(UnsupportedError, match="has no source that can be copied"):
        Excerpt(set()).expression(names["made"])


def test_renamed() -> None:
    """Names of the module only: no attributes, no keywords of a call."""
    text = "a = f(x.a, a=a)  # a"
    assert renamed(text, {"a": "b", "f": "g", "x": "x"}) == "b = g(x.a, a=b)  # a"
