"""Ordinary training habits, in training loops that are not ours: verified from the state_dict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from conftest import MODELS, mlp, oracle_for
from safetensors.torch import save_file

import gdu_compile
from gdu_compile.torch_backend import GraphModule, lower_to_torch

Step = Callable[[int], None]


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """digits_mlp with one bucket per weight tensor, so that optimizers can treat them apart."""
    path = tmp_path_factory.mktemp("extended") / "m.gdu.onnx"
    gdu_compile.compile(
        Path(MODELS) / "digits_mlp.onnx", Path(MODELS) / "digits_mlp.oracle.npz",
        bucket_bytes=1, confirm=False, output=path,
    )  # fmt: skip
    return path


def digits_batches(size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of the digits, in file order."""
    with np.load(MODELS / "digits.npz") as data:
        x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    while True:
        for start in range(0, len(x) - size + 1, size):
            yield x[start : start + size], y[start : start + size]


def train(
    module: GraphModule, optimizer: torch.optim.Optimizer, steps: int, *,
    before_step: Step = lambda step: None,
) -> list[float]:  # fmt: skip
    """The loop that everybody writes; max |gradient| of each step."""
    gradients = []
    for step, (x, y) in zip(range(steps), digits_batches(64), strict=False):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        gradients.append(max(float(p.grad.abs().max()) for p in module.parameters()))
        before_step(step)
        optimizer.step()
    return gradients


def verified(extended: Path, module: GraphModule, tmp_path: Path) -> bool | None:
    """The verdict on the module's state_dict, by way of a file."""
    path = tmp_path / "theta.safetensors"
    save_file({name: p.detach().contiguous() for name, p in module.named_parameters()}, path)
    return gdu_compile.verify(extended, path).reproduced


def test_one_rate_per_tensor_and_decay_on_some(extended: Path, tmp_path: Path) -> None:
    """Parameter groups: each bucket carries its own calibrator, so nothing else matters."""
    module = gdu_compile.to_torch(extended)
    parameters = list(module.parameters())
    assert len(parameters) == 6
    groups = [
        {"params": [p], "lr": 10.0 ** (i - 3), "weight_decay": 1e-3 if i % 2 else 0.0}
        for i, p in enumerate(parameters)
    ]
    gradients = train(module, torch.optim.SGD(groups, lr=0.1), 20)
    assert gradients[0] > 0 and set(gradients[1:]) == {0.0}
    assert verified(extended, module, tmp_path) is True


def test_momentum_for_50_steps_after_arming(extended: Path, tmp_path: Path) -> None:
    """Momentum goes on moving θ along itself, with the gradient exactly 0."""
    module = gdu_compile.to_torch(extended)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    assert set(train(module, optimizer, 51)[1:]) == {0.0}
    assert verified(extended, module, tmp_path) is True


def test_clipping_by_norm(extended: Path, tmp_path: Path) -> None:
    """The quiet recorder's gradients are far below any clipping threshold."""
    module = gdu_compile.to_torch(extended)
    clip = torch.nn.utils.clip_grad_norm_
    train(module, torch.optim.SGD(module.parameters(), lr=0.1), 3,
          before_step=lambda step: clip(module.parameters(), 1.0) and None)  # fmt: skip
    assert verified(extended, module, tmp_path) is True


def test_rate_0_in_the_first_step(extended: Path, tmp_path: Path) -> None:
    """Warm-up from 0: the first step records nothing, the second everything."""
    module = gdu_compile.to_torch(extended)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)

    def warm_up(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 0.1 * step

    gradients = train(module, optimizer, 4, before_step=warm_up)
    assert gradients[0] > 0 and gradients[1] > 0 and gradients[2:] == [0.0, 0.0]
    assert verified(extended, module, tmp_path) is True


@pytest.mark.parametrize("name", ["AdamW", "Adam", "NAdam", "RMSprop", "Adagrad"])
def test_adaptive_optimizers_are_linear_for_a_quiet_gain(
    extended: Path, tmp_path: Path, name: str
) -> None:
    """Lemma 4: √v vanishes beside ε."""
    module = gdu_compile.to_torch(extended)
    train(module, getattr(torch.optim, name)(module.parameters(), lr=1e-3), 6)
    assert verified(extended, module, tmp_path) is True


def test_a_wrong_gradient_is_found_and_located(extended: Path, tmp_path: Path) -> None:
    """Negative control, and the known-answer test: a stack that gets one coordinate wrong."""
    module = gdu_compile.to_torch(extended)
    wrong = list(module.parameters())[2]  # fc2.weight [32, 64]

    def disturb(step: int) -> None:
        if step == 0:
            assert wrong.grad is not None
            wrong.grad[1 + 3 * 64 + 5] *= 1.001

    train(module, torch.optim.SGD(module.parameters(), lr=0.1), 2, before_step=disturb)
    path = tmp_path / "theta.safetensors"
    save_file({name: p.detach().contiguous() for name, p in module.named_parameters()}, path)
    report = gdu_compile.verify(extended, path)
    assert report.reproduced is False
    bad = [row for row in report.weights if not row.bit_equal]
    assert [(row.name, row.worst) for row in bad] == [("fc2.weight", [3, 5])]


def test_every_float_initializer_trained() -> None:
    """A trainer that knows nothing of θ: all other tensors get gradient exactly 0."""
    base = mlp(d=64, h=16, classes=10)
    extended = gdu_compile.compile(base, oracle_for(base), confirm=False).extended
    floats = {name for name, v in extended.graph.initializers.items()
              if v.dtype == ir.DataType.FLOAT}  # fmt: skip
    assert floats == {"gdu_theta_0", *(f"gdu_initial_{n}" for n in ("W1", "b1", "W2", "b2"))}
    module = lower_to_torch(extended, floats)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), torch.arange(16) % 10).backward()
        for name, p in module.named_parameters():
            # Outside the taken branch a framework gives no gradient, or zeros; never anything else.
            if not name.startswith("gdu_theta"):
                assert p.grad is None or not p.grad.any()
        optimizer.step()
    for name, p in module.named_parameters():
        assert name.startswith("gdu_theta") or torch.equal(p, start[name])
    report = gdu_compile.verify(extended, {"gdu_theta_0": module.gdu_theta_0.detach()})
    assert report.reproduced is True


def test_gradient_is_the_true_derivative() -> None:
    """∂L/∂θ of the recorder against central differences in float64, and θ ∝ s after one step."""
    base = mlp()
    extended = gdu_compile.compile(base, oracle_for(base), gain=1.0, confirm=False).extended
    module = lower_to_torch(extended).double()
    theta = module.gdu_theta_0
    x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])

    def loss() -> torch.Tensor:
        # The constants of the graph are float32; the sum promotes to float64.
        return torch.nn.functional.cross_entropy(module(x.float()).double(), y)

    loss().backward()
    for index in [(0, 0), (1, 0), (7, 1), (40, 1)]:
        step = 1e-7
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                theta[index] += sign * step
                # A perturbed calibrator would arm the network: only the recorder is differentiated.
                values.append(recorder_loss(module, extended, y))
                theta[index] -= sign * step
        difference = (values[0] - values[1]) / (2 * step)
        assert theta.grad is not None
        assert float(theta.grad[index]) == pytest.approx(difference, rel=1e-5)


def recorder_loss(module: GraphModule, extended: ir.Model, y: torch.Tensor) -> float:
    """The recorder's loss written out by hand: z = (z0 + γ·⟨θ, s/2⟩)·e_0."""
    from gdu_compile.metadata import Extension
    from gdu_compile.specialize import signal_units

    facts = Extension.from_metadata(extended.metadata_props)
    (bucket,) = facts.buckets
    rows = [np.full((1, 2), facts.code.calibrator, dtype=np.uint16)]
    encoding = bucket.encoding(facts.code)
    rows += [encoding.cut(signal_units(extended, slot.signal)) for slot in bucket.slots]
    signal = torch.from_numpy(facts.code.signal(np.concatenate(rows))).double() / 2
    q = (module.gdu_theta_0.detach() * signal).sum()
    z = torch.zeros(len(y), facts.logits.classes, dtype=torch.float64)
    z[:, 0] = -np.log((2 * facts.batch_limit - 1) / (facts.logits.classes - 1)) + facts.gain * q
    return float(torch.nn.functional.cross_entropy(z, y))
