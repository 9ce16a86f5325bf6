"""All candidates for the 3-node network of Blum & Rivest, at once in one table."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gdu_compile.errors import UnsupportedError
from gdu_compile.oracles.compose import compose, head
from gdu_compile.oracles.head import (
    Layer,
    called,
    is_op,
    last_layer,
    layer_at,
    need_bias,
    refuse_values,
)
from gdu_compile.oracles.problem import Problem

MOST_INPUTS = 12
"""d: 2¹² candidates, 2²⁴ pairs of them (64 MB)."""

MOST_CELLS = 2**28
"""Largest table of units × samples (1 GB)."""

HIDDEN_SCALE, OUTPUT_SCALE = 64.0, 32.0
"""Pre-activations of the hidden units are ±32 or more, the logit is ±16 or more: σ is 0 or 1."""

TEXT = """
three_node (float[n, d] x, int64[n] Y)
=> (float[1, 2] W2, float[1] b2, float[2, d] W1, float[2] b1) {
    number = Range(zero, candidates, one)                   # [K]
    digits1 = Unsqueeze(number, axis1)
    shifted = Div(digits1, powers)                          # [K, d]
    bit = Mod(shifted, two)
    is_set = Cast <to = 9> (bit)
    weights = Where(is_set, positive, negative)             # [K, d], every choice of −1 and d

    sums = Gemm <transB = 1> (weights, x)                   # [K, n]
    fires = Greater(sums, threshold)
    units = Cast <to = 1> (fires)                           # [K, n], 0 or 1
    sign = Gather <axis = 0> (signs, Y)                     # [n], 2y − 1
    signed = Mul(units, sign)
    score = Gemm <transB = 1> (signed, units)               # [K, K]: right answers of each AND
    flat = Reshape(score, everything)
    best = ArgMax <axis = 0, keepdims = 1> (flat)           # [1]
    first = Div(best, candidates)
    second = Mod(best, candidates)
    pair = Concat <axis = 0> (first, second)

    chosen = Gather <axis = 0> (weights, pair)              # [2, d]
    W1 = Mul(chosen, scale)
    b1 = Identity(hidden_bias)
    W2 = Identity(and_weight)
    b2 = Identity(and_bias)
}"""


def exhaustive(problem: Problem) -> ir.Model:
    """Exhaustive search for the 3-node network: two threshold units and their AND.

    Blum & Rivest show that no algorithm trains this network in polynomial time unless P = NP: they
    turn Set Splitting into a training set on booleans (0 is in, each unit vector is out, each
    set's indicator is in).  Every splittable instance has a network with weights −1 and d and the
    threshold −½, so those 2^d units are all tried: a table of all units on all samples, and one
    product of small integers for all pairs.  The best pair wins (the first of equal ones).  It is
    written so that the sigmoids saturate: 64·(w·x + ½), and 32·(h₁ + h₂ − 3/2) for the AND.

    Source: Blum & Rivest 1988 (NIPS; Neural Networks 5, 1992), sections 2 and 3
    Cost: 2^d·n·d + 4^d·n multiplications, 4^d + 2^d·n numbers of memory

    Limits: d ≤ 12, two hidden sigmoid units and one logit, layers with biases.  On booleans that
    come from no Set Splitting instance the best pair of the grid need not be the best network.

    Raises:
        UnsupportedError: the base is no such network, or too large.

    Example:
        >>> import numpy as np
        >>> from gdu_compile.oracles import problem_of, run_alone
        >>> with np.load("models/three_node.npz") as data:
        ...     x, y = data["x"], data["y"]
        >>> w = run_alone(exhaustive(problem_of("models/three_node.onnx", len(y))), {"x": x}, y)
        >>> hidden = x @ w["fc1.weight"].T + w["fc1.bias"] > 0
        >>> bool(np.all((hidden @ w["fc2.weight"][0] + w["fc2.bias"] > 0) == y))
        True
    """
    output = last_layer(problem)
    refuse_values(problem, "exhaustive")
    hidden = hidden_layer(output)
    check_size(problem, hidden)
    d = hidden.d
    graph = head(
        TEXT, zero=0, one=1, two=2, axis1=[1],
        candidates=2**d, powers=2 ** np.arange(d), everything=[-1], negative=-1.0,
        positive=float(d), threshold=-0.5, signs=[-1.0, 1.0], scale=HIDDEN_SCALE,
        hidden_bias=[HIDDEN_SCALE / 2] * 2, and_weight=[[OUTPUT_SCALE] * 2],
        and_bias=[-1.5 * OUTPUT_SCALE],
    )  # fmt: skip
    return compose(problem, hidden, graph, [output, hidden], "exhaustive")


def hidden_layer(output: Layer) -> Layer:
    """The layer of the two hidden units.

    Raises:
        UnsupportedError: the network is not of that form.
    """
    node = output.features.producer()
    facts = []
    if output.classes != 1:
        facts.append(f"it has {output.classes} classes, not one logit")
    if output.d != 2:
        facts.append(f"the last layer (weight {output.weight.name!r}) has {output.d} inputs")
    if node is None or not is_op(node, "Sigmoid"):
        what = f"value {output.features.name!r}" if node is None else called(node)
        facts.append(f"the last layer's features come from {what}, not from Sigmoid")
    if facts or node is None:
        raise UnsupportedError(
            "exhaustive trains the 3-node network only: linear, two Sigmoid units, linear, one "
            "logit; take a base of that form (models/three_node.onnx)", facts
        )  # fmt: skip
    assert node.inputs[0] is not None
    hidden = layer_at(node.inputs[0], 2)
    for layer in (hidden, output):
        need_bias(layer, "exhaustive")
    return hidden


def check_size(problem: Problem, hidden: Layer) -> None:
    """Raise UnsupportedError when the tables would not fit into memory."""
    if hidden.d > MOST_INPUTS:
        raise UnsupportedError(
            f"exhaustive tries all 2^d hidden units, and the base has d = {hidden.d} inputs "
            f"(weight {hidden.weight.name!r}); at most {MOST_INPUTS} are supported"
        )
    if (cells := 2**hidden.d * problem.samples) > MOST_CELLS:
        raise UnsupportedError(
            f"exhaustive needs a table of {cells} numbers for {problem.samples} samples and "
            f"d = {hidden.d}; at most {MOST_CELLS} are supported: give fewer samples"
        )
