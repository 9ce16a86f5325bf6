"""Random numbers of traced oracles: the graph's are PyTorch's, bit for bit, and look random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from gdu_compile import runtime
from gdu_compile.builder import INT64, Builder
from gdu_compile.names import Names
from gdu_compile.oracles.traced import build, random
from gdu_compile.oracles.traced.emit import SMALL, Emitter
from gdu_compile.oracles.traced.trace import trace

KINDS: dict[str, Callable[..., Tensor]] = {
    "integers": random.integers, "uniform": random.uniform, "signs": random.signs,
    "normal": random.normal,
}  # fmt: skip
SHAPE = [40, 50]


def as_graph(function: Callable[[Tensor], Tensor]) -> ir.Model:
    """A function of a counter as ONNX."""
    step = ir.Value(name="i", type=ir.TensorType(INT64), shape=ir.Shape([]))
    graph = ir.Graph([step], [], nodes=[], name="g", opset_imports={"": build.OPSET})
    model = ir.Model(graph, ir_version=build.IR_VERSION)
    b = Builder(Names(model), "test")
    traced = trace(lambda i: [function(i)], [torch.tensor(0)], "the function")
    graph.outputs.extend(Emitter(b, b, "").run(traced, [step]))
    graph.extend(b.nodes)
    return model


def in_graph(function: Callable[[Tensor], Tensor], counters: list[int]) -> list[Any]:
    """What onnxruntime computes for each counter."""
    with runtime.on_disk(as_graph(function)) as path:
        runner = runtime.session(path, "none")
        return [runner.run(None, {"i": np.array(i)})[0] for i in counters]


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_has_pytorchs_bits(kind: str) -> None:
    """For small and large counters; twice the same; and other counters and seeds give others."""

    def draw(i: Tensor, seed: int = 5) -> Tensor:
        return KINDS[kind](SHAPE, i, 2, seed=seed)

    counters = [0, 1, 499, 2**31 - 2, 2**40]
    found = in_graph(draw, counters)
    wanted = [draw(torch.tensor(i)).numpy() for i in counters]
    assert [x.tobytes() for x in found] == [x.tobytes() for x in wanted]
    assert [x.dtype for x in found] == [x.dtype for x in wanted]
    assert [x.tobytes() for x in in_graph(draw, counters)] == [x.tobytes() for x in found]
    other = in_graph(lambda i: draw(i, seed=6), counters)
    assert len({x.tobytes() for x in (*found, *other)}) == 2 * len(counters)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_random_is_stored(kind: str) -> None:
    """The graph counts and hashes: no constant of it is large, no operator is random."""
    nodes = list(as_graph(lambda i: KINDS[kind](SHAPE, i, seed=0)).graph.all_nodes())
    assert not any("Random" in node.op_type for node in nodes)
    values = [node.attributes["value"].as_tensor() for node in nodes if node.op_type == "Constant"]
    assert len(values) > 5 and max(value.size for value in values) <= SMALL


def faults(rows: Tensor, mean: float, deviation: float) -> list[str]:
    """What is unlike independent numbers [draws, n], by more than six standard errors."""
    x = (rows.double() - mean) / deviation
    draws, n = x.shape
    edge = 6 / n**0.5
    spread = float(x.pow(4).mean() - 1) ** 0.5  # of a square
    found = []
    if (x.mean(1).abs() > edge).any():
        found.append("mean")
    if ((x.square().mean(1) - 1).abs() > edge * max(spread, 0.1)).any():
        found.append("variance")
    if (((x @ x.T) / n)[~torch.eye(draws, dtype=torch.bool)].abs() > edge).any():
        found.append("between draws")
    for lag in (1, 2, 31, 50):
        if ((x[:, lag:] * x[:, :-lag]).mean(1).abs() > 1.1 * edge).any():
            found.append(f"lag {lag}")
    return found


MOMENTS = {"integers": (2**30 - 0.5, 2**31 / 12**0.5), "uniform": (0.5, 12**-0.5),
           "signs": (0.0, 1.0), "normal": (0.0, 1.0)}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_they_look_independent(kind: str) -> None:
    """Mean, variance, and correlations between places, steps and seeds."""
    draws = [KINDS[kind]([10_000], i, seed=seed) for seed in (0, 1) for i in range(10)]
    draws += [KINDS[kind]([10_000], i, 1, seed=0) for i in range(4)]
    assert faults(torch.stack(draws), *MOMENTS[kind]) == []


def test_every_bit_is_fair() -> None:
    words = random.integers([20_000], 3, seed=0)
    ones = torch.stack([(words >> place & 1).float() for place in range(random.BITS)])
    assert faults(ones, 0.5, 0.5) == []
    assert int(words.max()) < 2**31 and int(words.min()) >= 0


def test_what_is_not_independent_is_seen() -> None:
    """The check above can fail."""
    count = torch.arange(10_000)
    assert "lag 1" in faults((count / 10_000)[None], *MOMENTS["uniform"])
    same = random.normal([10_000], 0, seed=0)
    assert faults(torch.stack([same, same]), 0.0, 1.0) == ["between draws"]
    assert "mean" in faults((same + 0.1)[None], 0.0, 1.0)
    assert "variance" in faults((same * 1.1)[None], 0.0, 1.0)
