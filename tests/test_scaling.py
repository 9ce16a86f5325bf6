"""Work that grows with the network, not with its square: counted, not timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import onnx_ir as ir
import pytest
from conftest import parse

from gdu_compile import graph_view, name_matching
from gdu_compile.arrays import from_mapping
from gdu_compile.names import Names


class CountingSet(set[Any]):
    """A set that counts how often it is asked."""

    asked = 0

    def __contains__(self, item: object) -> bool:
        self.asked += 1
        return super().__contains__(item)


def plain_fresh(taken: set[str], wanted: str) -> str:
    """The rule: the smallest number that is free."""
    name, count = wanted, 0
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    taken.add(name)
    return name


def test_fresh_names_are_the_smallest_free_ones() -> None:
    """As before the last number was remembered, also where numbered names are asked for."""
    rng = np.random.default_rng(0)
    names = Names(parse("g (float[N] a) => (float[N] a_2) { a_2 = Neg(a) }"))
    taken = {"g", "a", "a_2"}
    for number in rng.integers(0, 12, 2000):
        wanted = "a" + "_1" * int(number % 3) + f"_{number}" * int(number > 6)
        assert names.fresh(wanted) == plain_fresh(taken, wanted)


def test_fresh_names_ask_about_each_name_once() -> None:
    """4000 names that want to be the same: not 4000² questions."""
    names = Names(parse("g (float[N] x) => (float[N] y) { y = Neg(x) }"))
    names._taken = counting = CountingSet(names._taken)
    for _ in range(4000):
        names.fresh("gdu_kept")
    assert counting.asked <= 2 * 4000
    assert len(counting) > 4000


def counted(monkeypatch: pytest.MonkeyPatch, place: object, name: str) -> list[object]:
    """Every call of a function leaves an entry."""
    calls: list[object] = []
    real: Callable[..., Any] = getattr(place, name)

    def count(*arguments: Any) -> Any:
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(place, name, count)
    return calls


def switches(count: int) -> ir.Model:
    """A chain of Ifs on x, and two on constants, the first of which hangs on another."""
    chain = "".join(
        f"""s{i} = ReduceSum <keepdims = 0> (h{i})  c{i} = Cast <to = 9> (s{i})
            h{i + 1} = If (c{i}) <then_branch = t{i} () => (float[N] u{i}) {{ u{i} = Neg(h{i}) }},
                                  else_branch = e{i} () => (float[N] v{i}) {{ v{i} = Exp(h{i}) }}>
        """
        for i in range(count)
    )
    return parse(f"""g (float[N] x) => (float[N] y) {{
        h0 = Identity(x)  {chain}
        k = Constant <value = bool {{1}}> ()
        [first] a = If (k) <then_branch = ta () => (bool ua) {{ ua = Not(k) }},
                            else_branch = ea () => (bool va) {{ va = Identity(k) }}>
        [second] y = If (a) <then_branch = ty () => (float[N] uy) {{ uy = Neg(h{count}) }},
                             else_branch = ey () => (float[N] vy) {{ vy = Exp(h{count}) }}> }}""")


@pytest.mark.parametrize("count", [1, 40])
def test_constant_switches_search_the_graph_once(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many Ifs there are; the answer is what a search from each of them gives."""
    graph = switches(count).graph
    view = graph_view.to_networkx(graph)
    expected = [
        node.name
        for node in graph
        if node.op_type == "If" and ("value", "x") not in nx.ancestors(
            view, ("value", node.inputs[0].name))
    ]  # fmt: skip
    down = counted(monkeypatch, nx, "descendants")
    up = counted(monkeypatch, nx, "ancestors")
    assert [node.name for node in graph_view.constant_switches(graph)] == expected
    assert expected == ["first", "second"]
    assert len(down) + len(up) == 1


def test_constant_switches_without_inputs() -> None:
    """Nothing varies."""
    model = parse("g () => (float[1] y) { k = Constant <value = bool {1}> () "
                  "y = If (k) <then_branch = t () => (float[1] u) { u = Constant <value = float[1] "
                  "{1}> () }, else_branch = e () => (float[1] v) { v = Constant <value = float[1] "
                  "{2}> () }> }")  # fmt: skip
    assert len(graph_view.constant_switches(model.graph)) == 1


def test_hints_look_at_each_shape_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many unknown names of one shape share the list of weights that they fit."""
    free = [ir.val(f"w{i}", const_value=ir.tensor(np.ones((2, 3), np.float32))) for i in range(50)]
    unknown = from_mapping({f"u{i}": np.ones((2, 3), np.float32) for i in range(50)})
    calls = counted(monkeypatch, name_matching, "fitting")
    said = name_matching.unknown_names(unknown, free, {})
    assert len(said) == 50 and "fits 50 uncovered weights: 'w0', 'w1'" in said[0]
    assert len(calls) == 1
