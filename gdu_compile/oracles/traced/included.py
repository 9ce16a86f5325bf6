"""The base itself trained by an oracle: sgd, adam and evolution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from gdu_compile.errors import InputError
from gdu_compile.oracles.problem import Problem

SCHEDULES = ("linear", "constant")


def sgd(
    problem: Problem,
    *,
    lr: float = 0.03,
    momentum: float = 0.9,
    schedule: str = "linear",
    steps: int = 500,
    batch_size: int | None = 64,
    seed: int = 0,
) -> ir.Model:
    """Stochastic gradient descent on all weights of the base.

    Starts at the base's initial weights and takes mini-batches in an order that the seed gives, a
    permutation for each pass, computed in the graph: v ← μ·v + g, w ← w − η·v.  The loss is the
    cross-entropy (binary for one logit; squared error for values).

    Source: Robbins & Monro 1951; Polyak 1964 (momentum)
    Cost: forward and backward of a mini-batch in each step, in an ONNX Loop

    Limits: trained are floats that are weights; the running mean and variance of
    BatchNormalization keep their values.  The number of samples is fixed, and so is the order.

    Args:
        problem: what the oracle is built for.
        lr: the learning rate η of the first step.
        momentum: μ, 0 or more and below 1.
        schedule: "linear": η falls to 0 by the last step; "constant": it stays.
        steps: how many steps.
        batch_size: samples a step; None for all of them.
        seed: of the order of the samples.

    Raises:
        InputError: an argument is out of its range; all are named.
        UnsupportedError: torch cannot run the base, or its derivative has no ONNX form.

    Example:
        >>> import numpy as np
        >>> from gdu_compile.oracles import problem_of, run_alone
        >>> with np.load("models/iris.npz") as data:
        ...     x, y = data["x"], data["y"]
        >>> algorithm = sgd(problem_of("models/iris_binary.onnx", len(y)), steps=100)
        >>> list(run_alone(algorithm, {"x": x}, y))
        ['fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias']
    """
    return trained_by(
        problem,
        "sgd",
        lr=lr,
        momentum=momentum,
        schedule=schedule,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
    )


def adam(
    problem: Problem,
    *,
    lr: float = 0.005,
    schedule: str = "linear",
    steps: int = 500,
    batch_size: int | None = 64,
    seed: int = 0,
) -> ir.Model:
    """Adam on all weights of the base.

    As ``sgd``, with Adam's update and its usual constants β = (0.9, 0.999), ε = 1e−8.

    Source: Kingma & Ba, Adam: A Method for Stochastic Optimization, arXiv 1412.6980
    Cost: forward and backward of a mini-batch in each step, in an ONNX Loop

    Limits: as ``sgd``.

    Args:
        problem: what the oracle is built for.
        lr: the learning rate η of the first step.
        schedule: "linear": η falls to 0 by the last step; "constant": it stays.
        steps: how many steps.
        batch_size: samples a step; None for all of them.
        seed: of the order of the samples.

    Raises:
        InputError: an argument is out of its range; all are named.
        UnsupportedError: torch cannot run the base, or its derivative has no ONNX form.

    Example:
        >>> import numpy as np
        >>> from gdu_compile.oracles import problem_of, run_alone
        >>> with np.load("models/digits.npz") as data:
        ...     x, y = data["x"], data["y"]
        >>> algorithm = adam(problem_of("models/digits_linear.onnx", len(y)), steps=100)
        >>> w = run_alone(algorithm, {"x": x}, y)
        >>> logits = x.reshape(-1, 64) @ w["fc.weight"].T + w["fc.bias"]
        >>> bool(np.mean(logits.argmax(axis=1) == y) > 0.85)
        True
    """
    return trained_by(
        problem, "adam", lr=lr, schedule=schedule, steps=steps, batch_size=batch_size, seed=seed
    )


def evolution(
    problem: Problem,
    *,
    lr: float = 0.003,
    sigma: float = 0.02,
    pairs: int = 16,
    momentum: float = 0.9,
    schedule: str = "linear",
    steps: int = 500,
    batch_size: int | None = 256,
    seed: int = 0,
) -> ir.Model:
    """An evolution strategy on all weights of the base: it takes losses only, no derivative.

    In each step ``pairs`` vectors ε of random signs are drawn; f is loss(w + σε) − loss(w − σε) on
    one mini-batch, and g = Σ f·ε/(√pairs·F) takes the place of the gradient, F² a running average
    of f²: v ← μ·v + g, w ← w − η·v.  The signs are bits of hashes of (seed, step, place), which are
    computed in the graph.

    Source: Salimans et al., Evolution Strategies as a Scalable Alternative, arXiv 1703.03864
    Cost: 2·pairs forward runs of a mini-batch in each step, in an ONNX Loop

    Limits: as ``sgd``; the more weights, the more pairs or steps it takes.

    Args:
        problem: what the oracle is built for.
        lr: the learning rate η of the first step.
        sigma: σ, how far the weights are moved.
        pairs: how many ε a step.
        momentum: μ, 0 or more and below 1.
        schedule: "linear": η falls to 0 by the last step; "constant": it stays.
        steps: how many steps.
        batch_size: samples a step; None for all of them.
        seed: of the order of the samples and of ε.

    Raises:
        InputError: an argument is out of its range; all are named.
        UnsupportedError: torch cannot run the base, or the batch of bases has no ONNX form.

    Example:
        >>> import numpy as np
        >>> from gdu_compile.oracles import problem_of, run_alone
        >>> with np.load("models/iris.npz") as data:
        ...     x, y = data["x"], data["y"]
        >>> algorithm = evolution(problem_of("models/iris_binary.onnx", len(y)), steps=100)
        >>> list(run_alone(algorithm, {"x": x}, y))
        ['fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias']
    """
    return trained_by(
        problem,
        "evolution",
        lr=lr,
        sigma=sigma,
        pairs=pairs,
        momentum=momentum,
        schedule=schedule,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
    )


def trained_by(problem: Problem, name: str, **arguments: Any) -> ir.Model:
    """The graph of one of them, its arguments checked."""
    check(name, **arguments)
    from gdu_compile.oracles.traced.base import SGD, Adam, Base, Oracle  # torch takes a second
    from gdu_compile.oracles.traced.build import build_traced
    from gdu_compile.oracles.traced.evolution import Evolution

    kinds: dict[str, Callable[..., Oracle]] = {"sgd": SGD, "adam": Adam, "evolution": Evolution}
    return build_traced(problem, kinds[name](Base(problem), **arguments), name)


def check(name: str, **arguments: Any) -> None:
    """Raise InputError for arguments out of their range; all are named."""
    problems = []
    for key, value in arguments.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        whole = number and isinstance(value, int)
        if key in ("lr", "sigma") and not (number and 0 < value < math.inf):
            problems.append(f"{key}={value!r} has to be a number above 0")
        if key == "momentum" and not (number and 0 <= value < 1):
            problems.append(f"momentum={value!r} has to be a number, 0 or more and below 1")
        if key == "schedule" and value not in SCHEDULES:
            problems.append(f"schedule={value!r} has to be one of {', '.join(SCHEDULES)}")
        if key in ("steps", "pairs") and not (whole and value > 0):
            problems.append(f"{key}={value!r} has to be a whole number above 0")
        if key == "batch_size" and value is not None and not (whole and value > 0):
            problems.append(f"batch_size={value!r} has to be a whole number above 0, or None")
        if key == "seed" and not (whole and value >= 0):
            problems.append(f"seed={value!r} has to be a whole number, 0 or more")
    if problems:
        raise InputError(f"oracle {name}: arguments that cannot be used", problems)
