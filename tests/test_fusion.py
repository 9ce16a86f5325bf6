"""Nodes that torch runs as one call: the same bits and gradients as one by one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from conftest import parse

from gdu_compile.torch_backend import fusion, lower_to_torch

SIGNAL = """
    g (uint16[1,2] first, uint16[N,2] units, float[M,2] theta) => (float q, float[M,2] {more}) {{
      half = Constant <value = float {{32767.5}}> ()
      joined = Concat <axis = 0> (first, units)  real = Cast <to = 1> (joined)
      s = Sub(real, half)  product = Mul(theta, s)  q = ReduceSum <keepdims = 0> (product)
      {last} }}"""
PLAIN = parse(SIGNAL.format(more="unused", last="unused = Identity(theta)"), {})
USED_TWICE = parse(SIGNAL.format(more="again", last="again = Add(product, real)"), {})
ROWS = 5000


def run(model: ir.Model, *, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Q and ∂Q/∂θ."""
    rng = np.random.default_rng(0)
    units = torch.from_numpy(rng.integers(0, 2**16, (ROWS, 2), dtype=np.uint16))
    first = torch.tensor([[32768, 32768]], dtype=torch.uint16)
    trained = torch.full((ROWS + 1, 2), theta, requires_grad=True)
    q = lower_to_torch(model, ())(first, units, trained)[0]
    (gradient,) = torch.autograd.grad(q, trained)
    return q, gradient


def calls(model: ir.Model) -> list[int]:
    """How many nodes each call of the lowered model covers."""
    nodes = [node for node in model.graph if node.op_type != "Constant"]
    covered = []
    while nodes:
        found = fusion.fused(nodes, lambda node: torch.nn.Identity())
        covered.append(len(found[0]) if found else 1)
        nodes = nodes[covered[-1] :]
    return covered


def test_fused_and_not_fused() -> None:
    """Three and two nodes are one call; not where something else reads what lies between."""
    assert calls(PLAIN) == [3, 2, 1]
    assert calls(USED_TWICE) == [1] * 6


@pytest.mark.parametrize("theta", [0.0, 1e-3])
def test_same_signal_and_gradient(theta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient has the same bits (κ·s), Q the same value up to the order of its sum."""
    q, gradient = run(PLAIN, theta=theta)
    monkeypatch.setattr(fusion, "fused", lambda nodes, call: None)
    plain_q, plain_gradient = run(PLAIN, theta=theta)
    assert torch.equal(gradient, plain_gradient)
    assert float(gradient.abs().max()) > 30000
    assert torch.allclose(q, plain_q, rtol=1e-5, atol=1e-3)


def test_other_types_and_shapes_take_the_long_way() -> None:
    """float64 and a broadcast product: dot has no such thing, Mul and ReduceSum do."""
    dot = fusion.product(torch.mul, torch.sum)
    a = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)
    assert float(dot(a, a)) == 55.0
    assert float(dot(a.float(), torch.ones(2))) == 15.0


def test_parts_that_need_a_gradient_get_it() -> None:
    """Copying into place is no step of autograd: such parts are joined by torch.cat."""
    run_signals = fusion.signals(
        2, 0, torch.float32, lambda *parts: torch.cat(parts), lambda x: x.float(), torch.sub
    )
    parts = [torch.ones(1, 2, requires_grad=True), torch.ones(3, 2)]
    run_signals(*parts, torch.tensor(0.5)).sum().backward()
    assert parts[0].grad is not None and torch.equal(parts[0].grad, torch.ones(1, 2))
