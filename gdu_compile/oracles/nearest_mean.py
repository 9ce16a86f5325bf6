"""Nearest class mean: the oldest classifier that learns, one pass over the data."""

from __future__ import annotations

import onnx_ir as ir

from gdu_compile.oracles.compose import compose, head
from gdu_compile.oracles.head import last_layer, need_bias, refuse_values
from gdu_compile.oracles.problem import Problem

ABSENT = -(2.0**100)
"""The bias of a class without a sample: finite, and below every logit (see Limits)."""

TEXT = """
nearest_mean (float[n, d] phi, int64[n] Y) => (float[C, d] W, float[C] b) {
    axis0 = Constant <value_ints: ints = [0]> ()
    axis1 = Constant <value_ints: ints = [1]> ()

    first = Gather <axis = 0> (phi, zero)                    # [d]
    moved = Sub(phi, first)                                  # [n, d], 0 where a feature is constant
    mean = ReduceMean <keepdims = 0> (moved, axis0)          # [d]
    centred = Sub(moved, mean)                               # [n, d]
    origin = Add(first, mean)                                # [d], m

    y = OneHot(Y, classes, off_on)                           # [n, K]
    count = ReduceSum <keepdims = 0> (y, axis0)              # [K]
    present = Greater(count, none)
    divisor = Max(count, one)
    total = Gemm <transA = 1> (y, centred)                   # [K, d]
    divisors = Unsqueeze(divisor, axis1)
    delta = Div(total, divisors)                             # [K, d], δ; 0 for an absent class

    middle = Mul(delta, half)
    point = Add(origin, middle)                              # [K, d], half-way from m to μ
    terms = Mul(delta, point)
    dot = ReduceSum <keepdims = 0> (terms, axis1)
    minus = Neg(dot)
    bias = Where(present, minus, absent)                     # [K]
"""
CLASSES = "    W = Identity(delta)  b = Identity(bias) }"
ONE_LOGIT = "    W = MatMul(difference, delta)  b = MatMul(difference, bias) }"


def nearest_mean(problem: Problem) -> ir.Model:
    """Nearest class mean on the features of the last layer.

    z_c = −½‖φ − μ_c‖² up to a term that all classes share.  Written around the mean m of all
    samples, δ_c = μ_c − m: weight δ_c, bias −⟨δ_c, m + ½δ_c⟩.  That answers like μ_c and −½‖μ_c‖²,
    and stays exact to float32 where features are large beside their spread.  One logit is the
    difference of the two.

    Source: Fix & Hodges 1951; Tibshirani et al. 2002 (scikit-learn's NearestCentroid)
    Cost: one pass, n·d·C multiplications

    Limits: the layer needs a bias.  A class without a sample gets weight 0 and bias −2¹⁰⁰, so that
    it never wins while ‖δ_c‖ < 1e15.

    Raises:
        UnsupportedError: the base does not end in a layer with a bias, or answers with one value.

    Example:
        >>> import numpy as np
        >>> from gdu_compile.oracles import problem_of, run_alone
        >>> with np.load("models/digits.npz") as data:
        ...     x, y = data["x"], data["y"]
        >>> algorithm = nearest_mean(problem_of("models/digits_linear.onnx", len(y)))
        >>> w = run_alone(algorithm, {"x": x}, y)
        >>> logits = x.reshape(-1, 64) @ w["fc.weight"].T + w["fc.bias"]
        >>> print(f"{np.mean(logits.argmax(axis=1) == y):.0%}")
        90%
    """
    layer = last_layer(problem)
    need_bias(layer, "nearest-mean")
    refuse_values(problem, "nearest-mean")
    graph = head(
        TEXT + (ONE_LOGIT if layer.classes == 1 else CLASSES),
        classes=max(layer.classes, 2), off_on=[0.0, 1.0], zero=0, none=0.0, one=1.0, half=0.5,
        absent=ABSENT, difference=[[-1.0, 1.0]],
    )  # fmt: skip
    return compose(problem, layer, graph, [layer], "nearest-mean")
