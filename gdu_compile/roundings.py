"""How many roundings an optimizer's steps leave in θ/c, counted in its arithmetic (THEORY Lemma 2).

Counted in units u, relative to θ/c, for a coordinate and its calibrator together; each count is a
bound that takes all roundings to go the same way.
"""

from __future__ import annotations

from typing import Any

from gdu_compile.optimizers import OptimizerSpec

RECORDING = {
    "Adam": 8.0, "AdamW": 8.0, "Adamax": 8.0, "NAdam": 10.0, "RAdam": 12.0, "RMSprop": 6.0,
    "Adagrad": 6.0, "Adadelta": 6.0, "Adafactor": 8.0,
}  # fmt: skip
"""Of the recording step, as torch.optim computes it; 4 for others, 8 with Nesterov's momentum."""
MEANS = {"Adam", "AdamW", "Adamax", "NAdam", "RAdam"}
"""They keep a mean m of the gradients, with betas; m + (1 − β)·(g − m) rounds 1/β times."""


def recording(optimizer: OptimizerSpec) -> float:
    """What the first step leaves.

    Plain descent: the gradient, the step and the calibrator's step round once each, their quotient
    once.  Adam also takes a mean and divides.

    Example:
        >>> [recording(OptimizerSpec.parse(f"{name}()")) for name in ("SGD", "Adam")]
        [4.0, 8.0]
    """
    if optimizer.arguments.get("nesterov"):
        return 8.0
    return RECORDING.get(optimizer.name, 4.0)


def echo(optimizer: OptimizerSpec) -> float:
    """What is added by all steps together in which the first gradient still has an effect.

    With momentum μ the increment of step j carries j more roundings, and is (1 − μ)·μ^j of the
    whole: μ/(1 − μ) for the coordinate, as much for its calibrator.

    Example:
        >>> round(echo(OptimizerSpec.parse("SGD(momentum=0.9)")), 6)
        18.0
    """
    if optimizer.name in MEANS:
        beta = first_beta(optimizer)
        return 2 / (1 - beta) if beta < 1 else 0.0
    momentum = optimizer.number("momentum", 0.0)
    return 2 * momentum / (1 - momentum) if momentum < 1 else 0.0


def scaling(optimizer: OptimizerSpec, shrinks: bool, share: float) -> float:
    """What each further step that scales θ adds.

    A sum rounds once for each of the two.  Decoupled decay multiplies before the mean of gradients
    is added: twice.  L2 decay adds a rounded multiple of θ.

    Args:
        optimizer: class and arguments.
        shrinks: whether decoupled decay is in force.
        share: of θ that decay takes away in a step, momentum's echo included; 0 to 1.
    """
    if shrinks and optimizer.name in MEANS:
        return 4.0
    return 2.0 if shrinks else 2.0 + 4.0 * share


def first_beta(optimizer: OptimizerSpec) -> float:
    """β of the mean of gradients."""
    betas: Any = optimizer.arguments.get("betas", (0.9, 0.999))
    try:
        return float(betas[0])
    except (TypeError, IndexError, ValueError):
        return 0.9  # torch refuses it when the optimizer is built
