"""learn under training loops of somebody else's: batches, optimizers, schedules, what breaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning import ByHand, X, assert_memorised, by_hand, cut, learn, network, sample, sums

import gdu_compile

optim = torch.optim
SGD = lambda theta: optim.SGD(theta, lr=0.3)  # noqa: E731
MOMENTUM = lambda theta: optim.SGD(theta, lr=0.1, momentum=0.9)  # noqa: E731
ORDER = np.random.default_rng(1).permutation(41)
ONE_BUCKET, THREE_BUCKETS = 2**20, 15 * 48


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> ByHand:
    """41 samples in one bucket."""
    return by_hand(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> ByHand:
    """41 samples in three buckets of 15, 15 and 11 slots."""
    made = by_hand(tmp_path_factory.mktemp("three"), bucket_bytes=THREE_BUCKETS)
    assert len(list(gdu_compile.to_torch(made.extended).parameters())) == 3
    return made


SIZES = {
    "of changing size": [1, 5, 3, 64],
    "one by one": [1],
    "all at once": [41],
    "more than there are slots": [40, 64],
    "over three buckets at once": [7, 30, 4],
    "along the buckets' ends": [15, 15, 11],
}


@pytest.mark.parametrize("case", SIZES)
def test_batches(case: str, one: ByHand, three: ByHand) -> None:
    """One pass of plain descent, whatever the sizes; one bucket or three."""
    for network_ in (one, three):
        batches = cut(ORDER, SIZES[case])
        assert_memorised(network_.verify(network_.train(batches, SGD)), 41)


def test_samples_beyond_the_last_slot_are_masked(one: ByHand, three: ByHand) -> None:
    """The last batch brings more samples than there are slots: the rest has no gradient."""
    batches = [*cut(ORDER[:40], [8]), np.concatenate([ORDER[40:], ORDER[:30]])]
    for network_ in (one, three):
        assert_memorised(network_.verify(network_.train(batches, SGD)), 41)


def test_a_sample_too_few(one: ByHand) -> None:
    """The negative control: slot 40 stays empty, the network does not answer, exit 1."""
    report = one.verify(one.train(cut(ORDER[:40], [8]), SGD))
    assert report.exit_code == 1 and report.memory is not None
    assert (report.memory.filled, report.memory.wrong) == (40, [40])
    assert report.warnings == ["the trained θ is not armed: a calibrator is 0"]


def test_a_sample_twice_and_one_never(one: ByHand) -> None:
    """The negative control of the unknown order: the slot whose sample is not the data's."""
    order = ORDER.copy()
    order[7] = order[20]
    report = one.verify(one.train(cut(order, [8]), SGD))
    assert report.exit_code == 1 and report.memory is not None
    assert report.memory.filled == 41 and report.memory.wrong == [20]


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum": MOMENTUM,
    "Nesterov, decay": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True,
                                           weight_decay=1e-4),
    "Adam": lambda p: optim.Adam(p, lr=1e-3),
    "AdamW": lambda p: optim.AdamW(p, lr=1e-3),
    "RMSprop": lambda p: optim.RMSprop(p, lr=1e-3, momentum=0.9),
    "Adagrad": lambda p: optim.Adagrad(p, lr=1e-2),
    "NAdam": lambda p: optim.NAdam(p),
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_optimizers_over_three_epochs(case: str, one: ByHand, three: ByHand) -> None:
    """THEORY §4: what goes on after the memory is full scales it, and changes no digit.

    With three buckets those that a batch does not touch get no gradient at all.
    """
    batches = [batch for epoch in range(3) for batch in cut(np.roll(ORDER, epoch), [7])]
    for network_ in (one, three):
        report = network_.verify(network_.train(batches, OPTIMIZERS[case]))
        assert_memorised(report, 41)
        assert report.memory is not None and report.memory.digit_error is not None
        assert report.memory.digit_error < 0.2


def test_a_schedule(one: ByHand) -> None:
    """Every slot has its own calibrator, so every step may have its own rate."""
    batches = cut(ORDER, [7])
    theta = one.train(batches, SGD, rates=lambda step: 10.0 ** (1 - step))
    assert_memorised(one.verify(theta), 41)


WARM_UP = lambda step: 0.0 if step < 2 else 0.1  # noqa: E731


@pytest.mark.parametrize("buckets", ["one", "three"])
def test_warm_up_from_rate_0(buckets: str, request: pytest.FixtureRequest) -> None:
    """A step with rate 0 leaves its slots free: the pass that follows fills them all."""
    network_: ByHand = request.getfixturevalue(buckets)
    first = cut(ORDER[::-1], [7])[:2]
    theta = network_.train([*first, *cut(ORDER, [7])], SGD, rates=WARM_UP)
    assert_memorised(network_.verify(theta), 41)


@pytest.mark.parametrize("case", ["momentum", "Adam"])
def test_warm_up_with_a_memory_of_its_own(case: str, one: ByHand) -> None:
    """Momentum of a step with rate 0 goes into the next samples of its slots: detected."""
    first = cut(ORDER[::-1], [7])[:2]
    batches = [*first, *cut(ORDER, [7])]
    report = one.verify(one.train(batches, OPTIMIZERS[case], rates=WARM_UP))
    assert report.exit_code == 1 and report.memory is not None
    assert report.memory.filled == 41 and set(range(7)) <= set(report.memory.wrong)
    assert report.memory.digit_error is not None and report.memory.digit_error > 1
    # The control: the same samples again, and the momentum is theirs.
    again = [batches[2], batches[2], *batches[2:]]
    assert_memorised(one.verify(one.train(again, OPTIMIZERS[case], rates=WARM_UP)), 41)


@pytest.mark.parametrize("buckets", ["one", "three"])
def test_gradient_accumulation_writes_the_same_slots(
    buckets: str, request: pytest.FixtureRequest
) -> None:
    """Two forward passes a step, as with two workers: both write slots 0 … 6.  Detected."""
    network_: ByHand = request.getfixturevalue(buckets)
    batches = [batch for epoch in range(3) for batch in cut(np.roll(ORDER, epoch), [7])]
    report = network_.verify(network_.train(batches, SGD, accumulate=2))
    assert report.exit_code == 1 and report.memory is not None
    assert report.memory.filled == 41 and report.memory.wrong == list(range(8))
    assert report.memory.digit_error is not None and report.memory.digit_error > 1


def test_a_lost_gradient_leaves_the_slot_empty(one: ByHand) -> None:
    """A class of weight 0 is not filled in silently; the samples after it keep their slots."""

    def weighted(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weight = torch.tensor([1.0, 0.0, 1.0])
        return torch.nn.functional.cross_entropy(logits, labels, weight=weight)

    lost = one.arrays["y"][ORDER] == 1
    assert lost[:-1].any() and not lost[:-1].all()
    order = np.concatenate([ORDER[lost], ORDER[~lost]])
    report = one.verify(one.train([order], SGD, loss=weighted))
    assert report.exit_code == 1 and report.memory is not None
    assert report.memory.filled == 41 - lost.sum()
    assert report.memory.wrong == list(range(lost.sum()))[:8]


def test_one_changed_value_of_theta(three: ByHand) -> None:
    """Of M, of B and of c: exit 1, and the slot's number."""
    theta = three.train(cut(ORDER, [8]), SGD)
    assert_memorised(three.verify(theta), 41)
    for column, factor in ((0, 1.5), (0, 0.0), (11, -1.0)):
        wrong = {name: value.clone() for name, value in theta.items()}
        wrong["gdu_theta_1"][3, column] *= factor
        report = three.verify(wrong)
        assert report.exit_code == 1 and report.memory is not None
        assert report.memory.wrong == [18] and not report.memory.bit_equal
        assert report.memory.worst is not None and report.memory.worst[0] == 18
    wrong = {name: value.clone() for name, value in theta.items()}
    wrong["gdu_theta_2"][3, 1:4] *= -1  # the labels' columns
    report = three.verify(wrong)
    assert report.exit_code == 1 and report.memory is not None
    assert report.memory.wrong == [33]
    assert report.memory.bit_equal and not report.memory.labels_equal


def test_one_changed_label_or_value_of_the_data(one: ByHand, tmp_path: Path) -> None:
    """The other way round: θ is right for other data."""
    theta = one.train(cut(ORDER, [8]), SGD)
    place = int(np.flatnonzero(ORDER == 12)[0])
    for name in ("x", "y"):
        arrays = {key: array.copy() for key, array in one.arrays.items()}
        if name == "x":
            arrays["x"][12].view(np.uint32)[2] ^= 1
        else:
            arrays["y"][12] = (arrays["y"][12] + 1) % 3
        np.savez(tmp_path / "d.npz", **arrays)
        report = gdu_compile.verify(one.extended, theta, data=tmp_path / "d.npz")
        assert report.exit_code == 1 and report.memory is not None
        assert report.memory.wrong == [place]
        assert report.memory.bit_equal is (name == "y")
        assert report.memory.labels_equal is (name == "x")


OWN = {
    "momentum": "SGD(momentum=0.9, nesterov=True, weight_decay=0.0001)",
    "AdamW": "AdamW()",
    "Adagrad": "Adagrad()",
}


@pytest.mark.parametrize("case", OWN)
def test_optimizers_of_our_own_training(case: str, tmp_path: Path) -> None:
    """Three epochs in batches that do not divide n, with nothing to warn of."""
    report = learn(
        tmp_path, sample(n=17), network(), sums(), optimizer=OWN[case], lr=1e-3, batch_size=5,
        steps=12,
    ).report  # fmt: skip
    assert report.reproduced is True and report.warnings == []
    assert (report.armed_at_step, report.steps) == (4, 12)
    assert report.gradient_after_arming == 0.0


def test_more_steps_than_the_code_is_guaranteed_for(tmp_path: Path) -> None:
    """The negative control: warned of before, wrong digits after; auto takes another code."""
    options: dict[str, Any] = {"lr": 0.001, "steps": 600, "batch_size": 5,
                               "optimizer": "SGD(momentum=0.9, weight_decay=0.0001)"}  # fmt: skip
    arrays = sample(n=5)
    linear = learn(tmp_path, arrays, network(), sums(), digits="linear16", **options).report
    assert any("Lemma 2" in warning for warning in linear.warnings)
    assert linear.exit_code == 1 and linear.memory is not None
    assert linear.memory.digit_error is not None and linear.memory.digit_error > 1
    auto = learn(tmp_path, arrays, network(), sums(), confirm=False, **options).report
    assert auto.digits == "float16"


def test_one_logit_by_hand(tmp_path: Path) -> None:
    """No columns of labels: the sign of c is the label."""
    arrays = {**sample(n=9), "y": np.arange(9) % 2}
    np.savez(path := tmp_path / "d.npz", **arrays)
    options: dict[str, Any] = {"data": path, "loss": "binary_cross_entropy_with_logits"}
    extended = gdu_compile.compile(
        network(X, 1), oracle=sums(X, 1), confirm=False, **options
    ).extended
    module = gdu_compile.to_torch(extended)
    optimizer = SGD(module.parameters())
    for indices in cut(np.arange(9)[::-1].copy(), [2, 4, 1]):
        optimizer.zero_grad()
        z = module(torch.from_numpy(arrays["x"][indices]))[:, 0]
        y = torch.from_numpy(arrays["y"][indices]).float()
        torch.nn.functional.binary_cross_entropy_with_logits(z, y).backward()
        optimizer.step()
    theta = {name: value.detach() for name, value in module.named_parameters()}
    assert_memorised(gdu_compile.verify(extended, theta, data=path), 9)
    theta["gdu_theta_0"][4] *= -1
    report = gdu_compile.verify(extended, theta, data=path)
    assert report.exit_code == 1 and report.memory is not None and report.memory.wrong == [4]
