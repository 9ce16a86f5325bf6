"""The negative controls: each is checked, but equal θ only once."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import mlp, oracle_for

import gdu_compile
from gdu_compile import specialize
from gdu_compile.bases import Rebuilt
from gdu_compile.options import TrainOptions
from gdu_compile.preparation import prepare_data
from gdu_compile.verification import Verdict, Verifier


def test_equal_controls_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training at rate 0 leaves the untrained θ; its verdict is the same."""
    checked: list[dict[str, np.ndarray]] = []
    real = Verifier.check

    def check(self: Verifier, theta: dict[str, np.ndarray]) -> Verdict:
        checked.append(dict(theta))
        return real(self, theta)

    monkeypatch.setattr(Verifier, "check", check)
    base = mlp()
    report = gdu_compile.compile(base, oracle_for(base), steps=1).report
    assert [c.name for c in report.negative_controls] == ["untrained", "learning rate 0"]
    assert [c.reproduced for c in report.negative_controls] == [False, False]
    assert len(checked) == 2
    assert checked[0]["gdu_theta_0"].any() and not checked[1]["gdu_theta_0"].any()


def test_another_control_is_checked_on_its_own() -> None:
    """Negative control of the above: the trained θ passes, whatever was checked before it."""
    base = mlp()
    compiled = gdu_compile.compile(base, oracle_for(base), steps=1)
    extended, theta = compiled.extended, compiled.theta
    assert theta is not None
    data = prepare_data(extended, TrainOptions(), None).data
    verifier = Verifier(extended, Rebuilt(extended), data, "base")
    assert not verifier.untrained().reproduced
    assert verifier.control("trained", theta).reproduced
    wrong = {name: array * np.float32(1) for name, array in theta.items()}
    wrong["gdu_theta_0"][1, 0] *= np.float32(1.01)
    assert not verifier.control("one coordinate", wrong).reproduced
    assert verifier.control("again", theta).reproduced
    assert not specialize.is_armed(extended)  # and the extended model is left as it is
