"""Rosenblatt's perceptron, sample by sample, exact where the features are integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gdu_compile.errors import InputError
from gdu_compile.oracles.compose import begin, compose, head
from gdu_compile.oracles.head import last_layer, refuse_values
from gdu_compile.oracles.problem import Problem

BLOCK = 32
"""Samples that are looked at together for the next mistake."""

BEGIN = """
perceptron (float[n, d] phi, int64[n] Y) => (OUTPUTS) {
    n1 = Shape <start = 0, end = 1> (Y)
    n = Squeeze(n1)
    total = Mul(n, epochs)
"""
WITH_BIAS = """
    two = Concat <axis = 0> (n1, ones1)                     # [n, 1] as a shape
    one_column = ConstantOfShape <value = float[1] {1.0}> (two)
    x = Concat <axis = 1> (phi, one_column)                 # [n, D], D = d + 1
"""
WITHOUT_BIAS = "    x = Identity(phi)\n"

LEARN = """
    w0 = ConstantOfShape (shape)                            # [K, D]
    w_end, position_end, streak_end = Loop <body = to_the_next_mistake
      (int64 step, bool more, float[K, D] w, int64 position, int64 streak)
      => (bool again, float[K, D] w2, int64 position2, int64 streak2) {
        at = Add(position, block)                           # [B], counted through all epochs
        i = Mod(at, n)
        xs = Gather <axis = 0> (x, i)                       # [B, D]
        ys = Gather <axis = 0> (Y, i)                       # [B]
        scores = Gemm <transB = 1> (xs, w)                  # [B, K]
        guesses = ArgMax <axis = 1, keepdims = 0> (scores)  # the lowest class of equal ones
        hit = Equal(guesses, ys)
        beyond = GreaterOrEqual(at, total)
        fine = Or(hit, beyond)
        wrong = Not(fine)
        mistakes = Cast <to = 6> (wrong)
        k = ArgMax <axis = 0, keepdims = 1> (mistakes)      # [1], the first one
        is_mistake = Gather <axis = 0> (wrong, k)           # [1]

        xk = Gather <axis = 0> (xs, k)                      # [1, D]
        size = Cast <to = 1> (is_mistake)                   # 1, or 0: no change
        up = Mul(xk, size)
        down = Neg(up)
        y = Gather <axis = 0> (ys, k)
        guess = Gather <axis = 0> (guesses, k)
        changes = Concat <axis = 0> (up, down)              # [2, D]
        rows1 = Concat <axis = 0> (y, guess)
        rows = Unsqueeze(rows1, ones1)                      # [2, 1]
        w2 = ScatterND <reduction = "add"> (w, rows, changes)

        missed = Squeeze(is_mistake)
        k0 = Squeeze(k)
        behind = Add(k0, one)
        walked = Where(missed, behind, length)
        position2 = Add(position, walked)
        longer = Add(streak, length)
        streak2 = Where(missed, zero, longer)
        in_time = Less(position2, total)
        searching = Less(streak2, n)                        # n right in a row: nothing changes
        again = And(in_time, searching)
    }> (total, yes, w0, zero, zero)
    rows_used = Gather <axis = 0> (w_end, chosen)           # [C, D]
"""
SPLIT = "    W, column = Split <axis = 1> (rows_used, parts)  b = Squeeze(column, ones1) }"
NO_SPLIT = "    W = Identity(rows_used) }"


def perceptron(problem: Problem, *, epochs: int = 20) -> ir.Model:
    """Rosenblatt's perceptron on the features of the last layer.

    The samples in their order, again and again: the class of the largest score (the lowest one of
    equal ones) is compared with the label, and on a mistake W[y] += φ, W[ŷ] −= φ, the bias
    likewise by 1.  Ends when n samples in a row were right, after which nothing would change, or
    after ``epochs`` passes.  One logit is the binary perceptron: w += φ or w −= φ.

    Each iteration of the Loop looks at the next 32 samples at once and goes to the first mistake
    among them; the result is that of one after the other.

    Source: Rosenblatt 1958; Duda & Hart 1973 for several classes (Kesler's construction)
    Cost: n·d·C multiplications per pass; an iteration per mistake, and per 32 samples without one

    Limits: exact, whatever the order of summation, while features are multiples of one power of
    two and sums stay below 2²⁴ of it (integers, pixels divided by 16, booleans).  Other features
    are rounded, and a score that is nearly a tie may fall either way on another machine.  Data
    that no linear layer separates run through all epochs.

    Args:
        problem: what the oracle is built for.
        epochs: the most passes over the samples.

    Raises:
        InputError: epochs is no whole number above 0.
        UnsupportedError: the base does not end in a linear layer, or answers with one value.

    Example:
        >>> import numpy as np
        >>> from gdu_compile.oracles import problem_of, run_alone
        >>> with np.load("models/digits.npz") as data:
        ...     x, y = data["x"], data["y"]
        >>> algorithm = perceptron(problem_of("models/digits_linear.onnx", len(y)), epochs=5)
        >>> w = run_alone(algorithm, {"x": x}, y)
        >>> logits = x.reshape(-1, 64) @ w["fc.weight"].T + w["fc.bias"]
        >>> print(f"{np.mean(logits.argmax(axis=1) == y):.1%}")
        90.9%
        >>> bool(np.all(w["fc.weight"] * 16 == np.round(w["fc.weight"] * 16)))  # exact
        True
    """
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        raise InputError(f"oracle perceptron: epochs={epochs!r} has to be a whole number above 0")
    layer = last_layer(problem)
    refuse_values(problem, "perceptron")
    one, bias = layer.classes == 1, layer.bias is not None
    text = [
        begin(BEGIN, bias),
        WITH_BIAS if bias else WITHOUT_BIAS,
        LEARN,
        SPLIT if bias else NO_SPLIT,
    ]
    graph = head(
        "".join(text), epochs=epochs, block=np.arange(BLOCK), length=BLOCK, zero=0, one=1,
        yes=True, ones1=[1], shape=[max(layer.classes, 2), layer.d + bias], parts=[layer.d, 1],
        chosen=[1] if one else np.arange(layer.classes),
    )  # fmt: skip
    return compose(problem, layer, graph, [layer], "perceptron")
