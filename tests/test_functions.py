"""Function operators run through their bodies: those of ONNX's schemas and those of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from gdu_compile.errors import UnsupportedError
from gdu_compile.torch_backend import lower_to_torch
from gdu_compile.torch_backend.functions import expand_functions
from gdu_compile.torch_backend.registry import TABLE

X = np.linspace(-1, 2, 12, dtype=np.float32).reshape(3, 4)


def parse(text: str, opset: int = 22, domains: str = "") -> ir.Model:
    header = f'<ir_version: 10, opset_import: ["" : {opset}{domains}]>\n'
    return ir.from_proto(onnx.parser.parse_model(header + text))


def same_as_onnxruntime(model: ir.Model, x: Any) -> None:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    wanted = session.run(None, {model.graph.inputs[0].name: x})
    results = lower_to_torch(model, ())(torch.from_numpy(x))
    results = results if isinstance(results, tuple) else (results,)
    for result, expected in zip(results, wanted, strict=True):
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_body_of_a_schema() -> None:
    """One that is always the same, with the defaults of its attributes."""
    text = """g (int64 n) => (float[M] y) { y = HannWindow (n) }"""
    same_as_onnxruntime(parse(text), np.array(9))


def test_a_body_for_the_types_of_the_node() -> None:
    """In a branch, twice, behind a value whose type the model does not say."""
    text = """g (float[3, 4] x) => (float[2, 6] y) <bool q = {1}> {
        z = Mul (x, x)
        y = If (q) <
          then_branch = t () => (float[2, 6] u) {
            s = Constant <value_ints = [2, 6]> ()  r = Constant <value_ints = [6]> ()
            a = CenterCropPad (z, s)
            b = CenterCropPad <axes = [-1]> (a, r)
            u = Add (a, b) },
          else_branch = e () => (float[2, 6] v) {
            v = Constant <value = float[2, 6] {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}> () }>
        }"""
    same_as_onnxruntime(parse(text, 18), X)


@pytest.mark.parametrize("outputs", [["y"], ["y", "", "v"]], ids=str)
def test_outputs_that_the_node_leaves_out(
    monkeypatch: pytest.MonkeyPatch, outputs: list[str]
) -> None:
    """The body lists them all the same; the operator's own entry is the reference."""
    names = ["x", "k", "v0", "", "past_k", "past_v"]
    node = onnx.helper.make_node("Attention", names, outputs)
    shapes = {"x": 3, "k": 2, "v0": 2, "past_k": 4, "past_v": 4}
    values = [onnx.helper.make_tensor_value_info(n, 1, (1, 2, s, 4)) for n, s in shapes.items()]
    results = [onnx.helper.make_empty_tensor_value_info(name) for name in outputs if name]
    graph = onnx.helper.make_graph([node], "g", values, results)
    opsets = [onnx.helper.make_opsetid("", 24)]
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=11))
    given = [torch.randn(1, 2, size, 4) for size in shapes.values()]
    own = lower_to_torch(model, ())(*given)
    monkeypatch.delitem(TABLE[""], "Attention")
    clone = model.clone()
    assert expand_functions(clone) == 1 and len(clone.graph) > 10
    through = lower_to_torch(model, ())(*given)
    torch.testing.assert_close(through, own)


LOCAL = """g (float[3, 4] x) => (float[3, 4] y, float[3, 4] z) {
      y = mine.twice <alpha = 0.5> (x)
      z = mine.twice <alpha = -2.0> (y) }
    <domain: "mine", opset_import: ["" : 22, "mine" : 1]>
    twice <alpha> (a) => (c) { b = mine.inner <alpha: float = @alpha> (a)  c = Add (b, a) }
    <domain: "mine", opset_import: ["" : 22, "mine" : 1]>
    inner <alpha> (a) => (b) { b = LeakyRelu <alpha: float = @alpha> (a) }"""


def test_functions_of_the_model() -> None:
    """One within another, with an attribute handed down."""
    model = parse(LOCAL, domains=', "mine" : 1')
    same_as_onnxruntime(model, X)
    assert len(model.functions) == 2  # the given model is left as it is


def test_what_cannot_run_is_named_as_the_model_has_it() -> None:
    """Bernoulli is a function of RandomUniformLike, which the table lacks: no use in expanding."""
    text = """g (bool q, float[3, 4] x) => (float[3, 4] y) {
        y = If (q) <then_branch = t () => (float[3, 4] u) { u = Neg (x) },
                    else_branch = e () => (float[3, 4] v) { [noise] v = Bernoulli (x) }> }"""
    module = lower_to_torch(parse(text), ())
    x = torch.from_numpy(X)
    assert torch.equal(module(torch.tensor(True), x), -x)
    with pytest.raises(UnsupportedError, match=r"node 'noise': operator ai\.onnx::Bernoulli"):
        module(torch.tensor(False), x)


def test_errors_inside_a_body_name_the_node() -> None:
    text = """g (float[3, 4] x) => (float[3, 4] y) { [two] y = mine.f (x) }
        <domain: "mine", opset_import: ["" : 22]>
        f (a) => (b) { [one] b = Bernoulli (a) }"""
    with pytest.raises(UnsupportedError, match="node 'one"):
        lower_to_torch(parse(text, domains=', "mine" : 1'), ())(torch.from_numpy(X))


def test_a_network_without_functions_stays_as_it_is() -> None:
    text = """g (float[3, 4] x) => (float[3, 4] y) { a = Relu (x)  y = Softmax (a) }"""
    model = parse(text)
    assert expand_functions(model) == 0
    assert [node.op_type for node in model.graph] == ["Relu", "Softmax"]
