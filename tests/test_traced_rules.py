"""The rules of traced oracles one by one: a function and its derivative as ONNX are PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor

from gdu_compile import runtime
from gdu_compile.builder import Builder
from gdu_compile.errors import UnsupportedError
from gdu_compile.names import Names
from gdu_compile.oracles.traced.build import IR_VERSION, OPSET, remove_unused
from gdu_compile.oracles.traced.emit import Emitter, onnx_dtype
from gdu_compile.oracles.traced.trace import trace

Function = Callable[..., Tensor]


def as_graph(function: Callable[..., list[Tensor]], arguments: list[Tensor]) -> ir.Model:
    """A function of tensors as ONNX."""
    inputs = [ir.Value(name=f"x{i}", type=ir.TensorType(onnx_dtype(x.dtype)),
                       shape=ir.Shape(list(x.shape))) for i, x in enumerate(arguments)]  # fmt: skip
    graph = ir.Graph(inputs, [], nodes=[], name="g", opset_imports={"": OPSET})
    model = ir.Model(graph, ir_version=IR_VERSION)
    b = Builder(Names(model), "test")
    results = Emitter(b, b, "").run(trace(function, arguments, "the function"), inputs)
    graph.outputs.extend(b.op("Identity", x, name="y", dtype=x.dtype, shape=x.shape)
                         for x in results)  # fmt: skip
    graph.extend(b.nodes)
    remove_unused(graph)
    return model


def run(function: Callable[..., list[Tensor]], arguments: list[Tensor]) -> list[Any]:
    """What onnxruntime computes."""
    with runtime.on_disk(as_graph(function, arguments)) as path:
        given = {f"x{i}": x.numpy() for i, x in enumerate(arguments)}
        names = {value.name for value in runtime.session(path, "none").get_inputs()}
        kept = {name: array for name, array in given.items() if name in names}
        return runtime.session(path, "none").run(None, kept)


def with_gradients(function: Function, arguments: list[Tensor]) -> Callable[..., list[Tensor]]:
    """The function and its derivatives by all floats, each element of the result weighed."""
    floats = tuple(i for i, x in enumerate(arguments) if x.is_floating_point())
    result = function(*arguments)
    if not (floats and result.is_floating_point()):
        return lambda *given: [function(*given)]
    weights = torch.linspace(-1, 2, result.numel()).reshape(result.shape)

    def both(*given: Tensor) -> list[Tensor]:
        def total(*inner: Tensor) -> Tensor:
            return (function(*inner) * weights).sum()

        return [function(*given), *torch.func.grad(total, floats)(*given)]

    return both


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, X1, X3 = numbers(2, 3, 7, 6), numbers(2, 4, 9), numbers(2, 4, 5, 4, 6)
ROWS, COLUMNS = torch.tensor([1, 0, 1, 1]), torch.tensor([2, -1, 2, 0])
SQUARE = numbers(5, 4, seed=3)

POOLS: dict[str, dict[str, Any]] = {
    "kernel": {}, "stride": {"stride": (1, 3)}, "padding": {"padding": (1, 1)},
    "padding not counted": {"padding": (1, 0), "count_include_pad": False},
    "ceil_mode": {"ceil_mode": True, "stride": (3, 2)},
    "ceil_mode, last window dropped": {"ceil_mode": True, "padding": 1, "stride": 3},
    "all": {"ceil_mode": True, "padding": (1, 1), "stride": (2, 3), "count_include_pad": False},
    "divisor": {"divisor_override": 5, "padding": 1, "ceil_mode": True},
}  # fmt: skip
CASES: dict[str, tuple[Function, list[Tensor]]] = {
    **{f"avg_pool2d, {name}": (lambda x, a=a: nnf.avg_pool2d(x, (3, 2), **a), [X])
       for name, a in POOLS.items()},
    "avg_pool2d, unbatched": (lambda x: nnf.avg_pool2d(x, 2, padding=1), [X[0]]),
    "avg_pool1d": (lambda x: nnf.avg_pool1d(x, 4, 2, 1, True, False), [X1]),
    "avg_pool3d": (lambda x: nnf.avg_pool3d(x, (2, 3, 2), (2, 1, 3), (1, 1, 0), True, False), [X3]),
    "conv1d": (lambda x, w: nnf.conv1d(x, w, None, 2, 3, 2, 2), [X1, numbers(6, 2, 3)]),
    "conv2d": (lambda x, w, b: nnf.conv2d(x, w, b, (1, 2), (2, 1), (2, 1)),
               [X, numbers(4, 3, 3, 2), numbers(4)]),
    "conv3d": (lambda x, w: nnf.conv3d(x, w, None, (1, 2, 1), 1, (2, 1, 1), 2),
               [X3, numbers(2, 2, 2, 3, 2)]),
    "conv_transpose1d": (lambda x, w, b: nnf.conv_transpose1d(x, w, b, 3, 2, 1, 2, 2),
                         [X1, numbers(4, 3, 4), numbers(6)]),
    "conv_transpose2d": (lambda x, w: nnf.conv_transpose2d(x, w, None, (2, 1), (1, 2), (1, 0)),
                         [X, numbers(3, 4, 3, 3)]),
    "conv_transpose3d": (lambda x, w: nnf.conv_transpose3d(x, w, None, 2, 1, 1, 2),
                         [X3, numbers(4, 3, 2, 3, 2)]),
    "layer_norm": (lambda x, w, b: nnf.layer_norm(x, (7, 6), w, b),
                   [X, numbers(7, 6), numbers(7, 6)]),
    "group_norm": (lambda x, w, b: nnf.group_norm(x, 2, w, b), [X3, numbers(4), numbers(4)]),
    "batch_norm, of the batch": (
        lambda x, w, b: nnf.batch_norm(x, None, None, w, b, True), [X, numbers(3), numbers(3)]),
    "attention": (lambda q, k, v: nnf.scaled_dot_product_attention(q, k, v),
                  [numbers(2, 3, 5, 4, seed=i) for i in range(3)]),
    "attention, causal": (lambda q, k, v: nnf.scaled_dot_product_attention(q, k, v, is_causal=True),
                          [numbers(2, 3, 5, 4, seed=i) for i in range(3)]),
    "attention, masked": (
        lambda q, k, v, m: nnf.scaled_dot_product_attention(q, k, v, attn_mask=m > 0),
        [*(numbers(2, 3, 5, 4, seed=i) for i in range(3)), torch.eye(5) + 0.5]),
    "cross_entropy": (lambda z, y: nnf.cross_entropy(z, y)[None],
                      [SQUARE, torch.tensor([0, 3, 1, 1, 2])]),
    "index, one axis": (lambda x, i: x[:, i], [X, ROWS]),
    "index, two axes": (lambda x, i, j: x[i, j], [SQUARE, ROWS, COLUMNS]),
    "index, two axes behind": (lambda x, i, j: x[:, :, i, j], [X, ROWS, COLUMNS]),
    "index, axes apart": (lambda x, i, j: x[:, i, :, j], [X, ROWS, COLUMNS]),
    "index, broadcast": (lambda x, i, j: x[:, i[:, None], j], [X, ROWS, COLUMNS]),
    "index, three axes": (lambda x, i, j: x[i, j, i + 1], [X, ROWS, COLUMNS]),
    "index by a count": (lambda x, y: x[torch.arange(4), y], [SQUARE, COLUMNS]),
    "index_put": (lambda x, i, s: x.index_put((i,), s), [SQUARE, torch.tensor([3, 0]),
                                                         numbers(2, 4)]),
    "index_put, axes apart": (lambda x, i, s: x.index_put((i, torch.arange(2)), s),
                              [SQUARE, torch.tensor([3, 0]), numbers(2)]),
    "index_put, adding": (lambda x, i, j, s: x.index_put((i, j), s, accumulate=True),
                          [SQUARE, ROWS, COLUMNS, numbers(4)]),
    "put by a mask": (lambda x: x.index_put((x > 0.5,), torch.tensor(2.0)), [X]),
    "put by a mask of rows": (lambda x, i: x.index_put((i > 0,), torch.tensor(2.0)),
                              [SQUARE[:4], ROWS]),
    "masked_fill": (lambda x: x.masked_fill(x > 0.5, 2.0), [X]),
    "remainder": (lambda x: torch.remainder(x, -0.3), [X]),
    "remainder of integers": (lambda x: x % -3, [torch.arange(-9, 9)]),
    "fmod": (lambda x: torch.fmod(x, 0.3), [X]),
    "shift": (lambda x: x >> 2, [torch.arange(-9, 9)]),
    "sort": (lambda x: torch.sort(x, 1, descending=True).values, [SQUARE]),
    "argsort": (lambda x: torch.argsort(x, 0), [SQUARE]),
    "topk": (lambda x: torch.topk(x, 2, 1, largest=False).values, [SQUARE]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_function_and_its_derivatives(name: str) -> None:
    """Both to the last bits of float32; no result is the same everywhere."""
    function, arguments = CASES[name]
    both = with_gradients(function, arguments)
    wanted = both(*arguments)
    found = run(both, arguments)
    assert len(found) == len(wanted) == 1 + sum(
        x.is_floating_point() for x in arguments if wanted[0].is_floating_point()
    )  # fmt: skip
    for got, other in zip(found, wanted, strict=True):
        assert got.shape == tuple(other.shape) and got.dtype == other.numpy().dtype
        assert np.allclose(got, other.numpy(), rtol=2e-5, atol=2e-6), name


def test_another_function_is_seen() -> None:
    """The tolerance above does not hide a divisor that is off by one."""
    (found,) = run(lambda x: [nnf.avg_pool2d(x, 2, divisor_override=5)], [X])
    other = nnf.avg_pool2d(X, 2, divisor_override=4).numpy()
    assert not np.allclose(found, other, rtol=2e-5, atol=2e-6)


def test_what_is_added_to_one_place_is_not_lost() -> None:
    """100 000 gradients of 2 rows: sums of ones are exact, whatever the order."""
    rows = torch.arange(100_000) % 2
    table = torch.zeros(2, 32)

    def added(x: Tensor, i: Tensor) -> list[Tensor]:
        return [x.index_put((i,), torch.ones(len(i), 32), accumulate=True)]

    assert not any(node.op_type == "ScatterND" for node in as_graph(added, [table, rows]).graph)
    for _ in range(3):
        (found,) = run(added, [table, rows])
        assert (found == 50_000).all()


def test_several_values_at_a_mask_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"use torch\.where"):
        run(lambda x: [x.index_put((x > 0,), x.new_ones(20))], [numbers(20).abs()])
