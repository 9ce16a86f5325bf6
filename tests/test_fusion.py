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
BYTES = """
    g ({dtype}[{shape}] x) => (float[{shape}] s) {{
      half = Constant <value = float {{127.5}}> ()
      real = Cast <to = 1> (x)  s = Sub(real, half) }}"""
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


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int64", "bool", "float16"])
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (5, 4)], ids=str)
def test_one_part(shape: tuple[int, ...], dtype: str) -> None:
    """Cast and Sub: a call of its own with every dtype and shape, and x is as it was."""
    numbers = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, shape)
    model = parse(BYTES.format(dtype=dtype, shape=",".join(map(str, shape))))
    assert calls(model) == [2]
    x = torch.from_numpy(np.asarray(numbers.astype(dtype)))
    got = lower_to_torch(model, ())(x)
    assert got.dtype == torch.float32 and tuple(got.shape) == shape
    assert np.array_equal(got.numpy(), numbers - 127.5)
    assert np.array_equal(x.numpy(), numbers)


def test_whole_numbers_are_not_subtracted_in_place() -> None:
    """uint16 − uint16, which torch has no operator for, goes by the operator table."""
    text = """g (int64[N] x) => (uint16[N] y) {
        two = Constant <value = uint16 {2}> ()  c = Cast <to = 4> (x)  y = Sub(c, two) }"""
    y = lower_to_torch(parse(text), ())(torch.tensor([5, 1]))
    assert y.dtype == torch.uint16 and y.tolist() == [3, 65535]


def test_columns_that_need_a_gradient_get_it() -> None:
    """Columns are copied into place only where nothing of them is on a tape."""
    model = parse(
        "g (float[N,1] a, float[N,1] b) => (float[N,2] y) { y = Concat <axis = 1>(a, b) }"
    )
    a, b = torch.ones(3, 1, requires_grad=True), torch.zeros(3, 1)
    (lower_to_torch(model, ())(a, b) * torch.tensor([2.0, 3.0])).sum().backward()
    assert a.grad is not None and torch.equal(a.grad, torch.full((3, 1), 2.0))
