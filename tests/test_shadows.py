"""Initializers of branches and bodies that have the name of a value outside."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from gdu_compile.passes import NormalizePass
from onnx import numpy_helper

import gdu_compile
from gdu_compile import runtime
from gdu_compile.errors import InputError

IF = ("z = If (q) <then_branch = t () => (float[N,4] u) { %s }, "
      "else_branch = e () => (float[N,4] v) { %s }>")  # fmt: skip
INNER = ("u = If (q) <then_branch = tt () => (float[N,4] uu) { %s }, "
         "else_branch = ee () => (float[N,4] vv) { %s }>")  # fmt: skip
LOOP = ("z = Loop (three, q, x) <body = b (int64 i, bool c, float[N,4] s) => "
        "(bool again, float[N,4] o) { again = Identity(c) %s }>")  # fmt: skip
IN_LOOP = ("o = If (q) <then_branch = t () => (float[N,4] u) { %s }, "
           "else_branch = e () => (float[N,4] v) { %s }>")  # fmt: skip


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all inside."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def with_own(text: str, owner: str) -> onnx.ModelProto:
    """The model with an initializer ``w`` outside, and another in the graph ``owner``."""
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18]> '
        f"g (float[N,4] x, bool q, int64 three) => (float[N,4] z) {{ {text} }}"
    )
    for graph in graphs(model.graph):
        if graph.name in ("g", owner):
            array = np.float32([1, 2, 3, 4]) * (1 if graph.name == "g" else -10)
            graph.initializer.append(numpy_helper.from_array(array, "w"))
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        (IF % ("u = Add(x, w)", "v = Mul(x, w)"), "t"),
        (IF % ("u = Add(x, w)", "k = Neg(w) v = Mul(x, k)"), "t"),
        (IF % (INNER % ("uu = Add(x, w)", "vv = Neg(x)"), "v = Mul(x, w)"), "t"),
        (IF % (INNER % ("uu = Add(x, w)", "vv = Mul(x, w)"), "v = Neg(x)"), "tt"),
        (LOOP % (IN_LOOP % ("u = Add(s, w)", "v = Mul(s, w)")), "t"),
    ],
)
def test_names_with_two_meanings_are_refused(text: str, owner: str) -> None:
    """onnxruntime takes the outer value for the branch's own one, where another branch uses it."""
    model = with_own(text, owner)
    own = [graph.initializer[0] for graph in graphs(model.graph) if graph.name == owner]
    feeds = {"x": np.ones((2, 4), np.float32), "q": np.array(True), "three": np.array(3)}
    before = answer(ir.from_proto(model), feeds)
    own[0].CopyFrom(numpy_helper.from_array(np.float32([9, 9, 9, 9]), "w"))
    assert before.tobytes() == answer(ir.from_proto(model), feeds).tobytes()
    message = f"'w': an initializer of graph '{owner}' of node of "
    with pytest.raises(InputError, match="names in the model have two meanings; rename") as caught:
        gdu_compile.compile(ir.from_proto(model), {"w": np.float32([4, 3, 2, 1])})
    assert any(message in problem for problem in caught.value.problems)


def answer(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The output in onnxruntime."""
    with runtime.on_disk(model) as path:
        return np.asarray(runtime.session(path, "none").run(None, feeds)[0])


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize(
    ("text", "owner"),
    [
        (IF % ("u = Add(x, w)", "v = Neg(x)"), "t"),
        ("a = Mul(x, w) " + IF % ("u = Add(x, w)", "v = Neg(a)"), "t"),
        (IF % (INNER % ("uu = Add(x, w)", "vv = Mul(x, w)"), "v = Neg(x)"), "t"),
        ("a = Mul(x, w) " + LOOP.replace("q, x", "q, a") % "o = Add(s, w)", "b"),
    ],
)
def test_an_outer_name_again_inside(text: str, owner: str, flag: bool) -> None:
    """Where the node does not use the outer value, there is one meaning: onnxruntime's."""
    base = ir.from_proto(with_own(text, owner))
    NormalizePass()(normal := base.clone())
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    feeds = {"x": x, "q": np.array(flag), "three": np.array(3)}
    assert answer(normal, feeds).tobytes() == answer(base, feeds).tobytes()
