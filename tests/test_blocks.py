"""Element-wise nodes run block by block: the same bits as one by one, and only where they fit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from conftest import parse
from everywhere import same

from gdu_compile.contracts import PASS_KEY
from gdu_compile.torch_backend import blocks, lower_to_torch, to_array

CHAIN = """
    g (float[N,M] x, float[{second}] y) => (float[N,M] a, float[N,M] b{more}) {{
      one = Constant <value = float {{1.5}}> ()
      table = Constant <value = float[3] {{5.0, 7.0, 9.0}}> ()
      top = Constant <value = float {{2.0}}> ()  low = Constant <value = float {{0.0}}> ()
      c = Abs(x)  d = Mul(c, one)  e = Floor(d)  f = Clip(e, low, top)
      g = Cast <to = 6> (f)  h = Gather(table, g)  i = Sub(d, e)  a = Add(h, y)
      {middle} b = Mul(i, h) }}"""
SIZE = blocks.BLOCK * torch.get_num_threads()


def model(*, second: str = "N,M", more: str = "", middle: str = "", ours: bool = True) -> ir.Model:
    """CHAIN; ``ours`` marks its nodes as put there by a pass."""
    made = parse(CHAIN.format(second=second, more=more, middle=middle), {})
    for node in made.graph:
        if ours:
            node.metadata_props[PASS_KEY] = "test"
    return made


def inputs(rows: int, columns: int, second: tuple[int, ...] | None = None) -> list[torch.Tensor]:
    """x and y."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, columns)).astype(np.float32) * 2
    y = rng.standard_normal((rows, columns) if second is None else second).astype(np.float32)
    return [torch.from_numpy(x), torch.from_numpy(y)]


def cut(monkeypatch: pytest.MonkeyPatch, made: ir.Model, given: list[torch.Tensor]) -> bool:
    """Whether the model runs in blocks on these; its results are those of node by node."""
    found: list[bool] = []
    ask = blocks.can_be_cut
    monkeypatch.setattr(blocks, "can_be_cut", lambda *a: found.append(ask(*a)) or found[-1])
    results = lower_to_torch(made, ())(*given)
    monkeypatch.setattr(blocks, "run_of", lambda nodes: [])
    plain = lower_to_torch(made, ())(*given)
    monkeypatch.undo()
    for one, other in zip(results, plain, strict=True):
        assert one.shape == other.shape and same(to_array(one), to_array(other))
    return any(found)


@pytest.mark.parametrize(
    ("rows", "columns"), [(SIZE + 1, 1), (3, SIZE), (SIZE // 7, 15), (1, 2 * SIZE)]
)
def test_large_tensors_are_cut(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that blocks divide and do not; two results."""
    assert cut(monkeypatch, model(), inputs(rows, columns))


def test_what_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones, a broadcast, strides, a gradient, nodes that are not ours."""
    x, y = inputs(2, SIZE)
    assert not cut(monkeypatch, model(), inputs(4, 5))
    assert not cut(monkeypatch, model(), inputs(0, 5))
    assert not cut(monkeypatch, model(second="M"), inputs(2, SIZE, (SIZE,)))
    assert not cut(monkeypatch, model(second=""), [x.T, torch.tensor(1.0)])
    assert not cut(monkeypatch, model(), [x, y.clone().requires_grad_()])
    assert not cut(monkeypatch, model(ours=False), [x, y])
    assert cut(monkeypatch, model(), [x, y])


def test_a_gradient_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on a tape runs node by node, inside the same call."""
    x, y = inputs(2, SIZE)
    y.requires_grad_()
    lower_to_torch(model(), ())(x, y)[0].sum().backward()
    assert y.grad is not None and torch.equal(y.grad, torch.ones(2, SIZE))


def test_a_result_that_is_not_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scalar that comes out of the run is no part of a block."""
    middle = model(more=", float s", middle="s = Add(one, one)", second="")
    x, _ = inputs(2, SIZE)
    cut(monkeypatch, middle, [x, torch.tensor(2.0)])


def test_a_gather_of_rows_is_no_table() -> None:
    """Only a constant that is read by its first axis is; a run ends before anything else."""
    text = "g (float[N,M] x, int64[K] i) => (float[N,K] y) {{ y = Gather <axis = {}> (x, i) }}"
    for axis in (0, 1):
        (node,) = parse(text.format(axis)).graph
        node.metadata_props[PASS_KEY] = "test"
        assert not blocks.is_element_wise(node)
    (table,) = [node for node in model().graph if node.op_type == "Gather"]
    assert blocks.is_element_wise(table)


def test_short_runs_are_left_alone() -> None:
    """From 8 nodes on."""
    nodes = [node for node in model().graph if node.op_type != "Constant"]
    assert len(blocks.run_of(nodes)) == 9
    assert blocks.run_of(nodes[2:]) == []
