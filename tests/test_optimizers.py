"""Every optimizer of torch.optim: what the bounds promise is reproduced, the rest is warned of."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from conftest import mlp, oracle_for
from test_record import assert_reproduced

import gdu_compile
from benchmarks.matrix import BEYOND, CARRIED
from gdu_compile import carrying
from gdu_compile.digits import CODES, DEFAULT_GAIN
from gdu_compile.optimizers import OptimizerSpec
from gdu_compile.report import Report
from gdu_compile.roundings import recording


def run(optimizer: str, steps: int, digits: str, **options: float | str) -> Report:
    """A small network, recorded and trained on."""
    base = mlp(d=16, h=8)
    chosen: dict[str, float | str] = {"lr": 1e-3, "batch_size": 16, **options}
    return gdu_compile.compile(
        base, oracle_for(base), optimizer=optimizer, steps=steps, digits=digits, **chosen
    ).report


def plan(optimizer: str, steps: int, **changed: float) -> carrying.Training:
    """What the bounds are asked."""
    spec = OptimizerSpec.parse(optimizer)
    return carrying.Training(spec, changed.get("lr", 1e-3), steps, changed.get("gain", 2.0**-80))


@pytest.mark.parametrize("optimizer", CARRIED)
def test_roundings_of_the_recording_step(optimizer: str) -> None:
    """θ/c of every 16-bit digit after one step of torch's own is as near as the count says."""
    code, spec = CODES["linear16"], OptimizerSpec.parse(optimizer)
    worst = max(relative_error(spec, lr, kappa) for lr, kappa in RATES_AND_KAPPAS)
    assert 0 < worst <= recording(spec) * UNIT
    assert worst * code.largest_signal <= carrying.predicted_digit_error(plan(optimizer, 1), code)


def test_the_count_of_plain_descent_is_not_enough_for_adam() -> None:
    """What 4u would promise is exceeded, so the counts do say something."""
    adam = OptimizerSpec.parse("Adam()")
    assert max(relative_error(adam, *each) for each in RATES_AND_KAPPAS) > 4 * UNIT


UNIT = 2.0**-24
RATES_AND_KAPPAS = [(lr, kappa) for lr in (1e-4, 1e-3, 0.3) for kappa in (-0.41, 0.017, -0.9)]


def relative_error(optimizer: OptimizerSpec, lr: float, kappa: float) -> float:
    """The largest |r/s − 1| after one step on the gradient g·s, c's own g; g = γκ, s halved."""
    s = torch.from_numpy(CODES["linear16"].signal(np.arange(65536))).double()
    halves = torch.cat([torch.tensor([0.5], dtype=torch.float64), s / 2]).float()
    theta = torch.nn.Parameter(torch.zeros(65537))
    theta.grad = torch.tensor(DEFAULT_GAIN * kappa, dtype=torch.float32) * halves
    optimizer.build([theta], lr).step()
    scaled = theta.detach() / DEFAULT_GAIN
    ratio = scaled[1:] / (scaled[0] + scaled[0]) * 2
    return float((ratio.double() / s - 1).abs().max())


def worst(report: Report) -> float:
    """The largest digit error."""
    return max(row.digit_error for row in report.weights)


@pytest.mark.parametrize("optimizer", CARRIED)
def test_carried_for_100_steps_after_arming(optimizer: str) -> None:
    """Two parameters a weight, the quiet gain: exact, below the bound; a warning where that ends,
    as with decoupled decay, which rounds twice a step."""
    report = run(optimizer, 101, "linear16")
    assert_reproduced(report)
    allowed = plan(optimizer, 101).guaranteed(CODES["linear16"])
    assert (allowed < 100) == ("decoupled" in optimizer or "AdamW" in optimizer), allowed
    assert ("guaranteed for" in "".join(report.warnings)) == (allowed < 100), report.warnings
    assert len(report.warnings) == (allowed < 100)
    assert worst(report) <= carrying.predicted_digit_error(plan(optimizer, 101), CODES["linear16"])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", CARRIED)
def test_carried_for_3000_steps_by_the_float_like_code(optimizer: str) -> None:
    """More than the bound promises (2045 steps), measured for every optimizer."""
    report = run(optimizer, 3001, "float16")
    assert_reproduced(report)
    assert worst(report) <= carrying.predicted_digit_error(plan(optimizer, 3001), CODES["float16"])


@pytest.mark.parametrize("optimizer", ["ASGD()", "SGD(momentum=0.9, weight_decay=0.0001)"])
def test_the_float_like_code_lives_where_the_linear_one_does_not(optimizer: str) -> None:
    """The same two parameters a weight, 900 steps; auto takes it, and says why."""
    linear = run(optimizer, 901, "linear16")
    assert linear.reproduced is False and worst(linear) > 1
    allowed = {"ASGD()": 125}.get(optimizer, 115)
    assert any(f"guaranteed for {allowed} steps" in warning for warning in linear.warnings)
    auto = run(optimizer, 901, "auto")
    assert auto.digits == "float16" and "901 steps" in str(auto.digits_why)
    assert_reproduced(auto)


@pytest.mark.parametrize("optimizer", ["SGD(momentum=0.9, weight_decay=0.0001)", "AdamW()"])
def test_powers_of_two_have_no_error_at_all(optimizer: str) -> None:
    """IEEE scaling commutes with them: error 0 after 400 steps; and no flip in bfloat16."""
    report = run(optimizer, 401, "pow2")
    assert_reproduced(report)
    assert worst(report) == 0.0
    coarse = run(optimizer, 40, "pow2", theta_dtype="bfloat16")
    assert_reproduced(coarse)
    assert "guaranteed for" in "".join(coarse.warnings)
    guaranteed = run(optimizer, 16, "pow2", theta_dtype="bfloat16")
    assert_reproduced(guaranteed)
    assert guaranteed.warnings == []


SAID = {
    "signs, 16 bits": "needs --digits linear1", "L2 decay inside Adam": "L2 weight_decay inside",
    "loud gain": "needs --gain 2**-", "small ε": "needs --gain 2**-", "ε = 0": "eps = 0",
    "orthogonalised": "mixes the digits", "decay erases": "overshoots zero",
    "900 steps of decay, linear": "guaranteed for 115 steps",
    "bfloat16 θ, 16 bits": "more precision than bfloat16",
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_not_carried_is_said_before_and_measured_after(case: str) -> None:
    """The negative controls of the bounds: a warning, and an honest exit 1."""
    optimizer, options, digits = BEYOND[case]
    report = run(optimizer, digits=digits, **{"steps": 6, **options})
    assert any(SAID[case] in warning for warning in report.warnings), report.warnings
    assert report.reproduced is False and report.exit_code == 1


@pytest.mark.parametrize("case", [case for case in BEYOND if case not in SAID])
def test_what_helps(case: str) -> None:
    """Another code, or a quieter gain: reproduced, and nothing to warn of."""
    optimizer, options, digits = BEYOND[case]
    report = run(optimizer, digits=digits, **{"steps": 6, **options})
    assert_reproduced(report)
    assert report.warnings == []


def test_signs_carry_one_bit() -> None:
    """Rprop, and auto for it: |θ| = |c| bitwise, so the digit error is 0."""
    report = run("Rprop()", 30, "auto")
    assert report.digits == "linear1"
    assert_reproduced(report)
    assert worst(report) == 0.0


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, arXiv 2302.06675: the sign of an interpolated momentum."""

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p -= group["lr"] * torch.sign(0.9 * m + 0.1 * p.grad)
                m.lerp_(p.grad, 0.01)


class SAM(torch.optim.SGD):
    """Foret et al. 2021, arXiv 2010.01412: the gradient after a step uphill."""

    @torch.no_grad()
    def move(self, sign: int) -> None:
        for p in self.param_groups[0]["params"]:
            if sign > 0:
                self.state[p]["uphill"] = 0.05 * p.grad / p.grad.norm()
            p += sign * self.state[p]["uphill"]


def backward(module: torch.nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    """The gradient at the present θ."""
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(module(x), torch.arange(8) % 4).backward()


def trained_by(kind: type[torch.optim.Optimizer], digits: str) -> bool | None:
    """The verdict on a training loop of somebody else's."""
    base = mlp(d=16, h=8)
    extended = gdu_compile.compile(
        base, oracle_for(base), digits=digits, confirm=False, gain=DEFAULT_GAIN
    ).extended
    module = gdu_compile.to_torch(extended)
    optimizer = kind(module.parameters(), lr=0.01)
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        backward(module, optimizer, x)
        if isinstance(optimizer, SAM):
            optimizer.move(1)
            backward(module, optimizer, x)
            optimizer.move(-1)
        optimizer.step()
    theta = {name: p.detach() for name, p in module.named_parameters()}
    return gdu_compile.verify(extended, theta).reproduced


def test_optimizers_that_are_not_torch_s() -> None:
    """Lion at k = 1, not at k = 16; SAM's second pass is already armed: never."""
    assert trained_by(Lion, "linear1") is True
    assert trained_by(Lion, "linear16") is False
    assert trained_by(SAM, "linear16") is False


def test_auto_takes_the_smallest_that_fits() -> None:
    """In the order of parameters a weight; where nothing fits, it says so."""
    names = {
        ("SGD()", 10**6): "linear16", ("SGD(momentum=0.9)", 117): "linear16",
        ("SGD(momentum=0.9)", 118): "float16", ("SGD(momentum=0.9)", 2037): "float16",
        ("SGD(momentum=0.9)", 2038): "linear8", ("SGD(momentum=0.9)", 50_000): "pow2",
        ("SGD(weight_decay=0.01)", 125): "linear16", ("AdamW()", 57): "linear16",
        ("AdamW()", 58): "float16", ("Rprop()", 3): "linear1",
    }  # fmt: skip
    for (optimizer, steps), name in names.items():
        code, why = carrying.smallest_code(plan(optimizer, steps))
        assert code.name == name and "guaranteed for" in why, optimizer
    assert "no code is guaranteed" in carrying.smallest_code(plan("Muon()", 2))[1]
