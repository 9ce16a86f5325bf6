"""Least squares on one-hot targets with a quadratic penalty, by conjugate gradients in a Loop."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gdu_compile.errors import InputError
from gdu_compile.oracles.compose import begin, compose, head
from gdu_compile.oracles.head import last_layer
from gdu_compile.oracles.problem import Problem

TOLERANCE = 2.0**-80
"""CG ends in a column where ‖residual‖² is below this share of what it was."""

ROUNDS = 4
"""As many times d + 1 iterations at most: in exact arithmetic d would do, in floating point the
directions lose what makes them conjugate.
"""

FLAT = float(np.finfo(np.float32).eps)
"""CG ends in a column whose direction is flatter than this, beside the mean curvature 1: weights
along it would be so large that the network's own float32 sums lose their digits (measured with
nearly dependent features and penalty 0: weights 1e4 times as large).
"""

LARGEST = float(np.finfo(np.float32).max)

BEGIN = """
ridge (float[n, d] phi, int64[n] Y) => (OUTPUTS) {
    axis0 = Constant <value_ints: ints = [0]> ()
"""
CLASSES = "    targets = OneHot(Y, classes, off_on)               # [n, C]\n"
ONE_COLUMN = "    targets = Gather <axis = 0> (off_on, Y)            # [n, 1]\n"

CENTRE = """
    first = Gather <axis = 0> (phi, zero)                  # [d]
    moved = Sub(phi, first)                                # [n, d], 0 where a feature is constant
    shift = ReduceMean <keepdims = 0> (moved, axis0)       # [d]
    centred = Sub(moved, shift)
    mean_t = ReduceMean <keepdims = 0> (targets, axis0)    # [C]
    t = Sub(targets, mean_t)                               # [n, C]
"""
NO_CENTRE = "    centred = Identity(phi)  t = Identity(targets)\n"

SOLVE = """
    high = ReduceMax <keepdims = 0> (centred)
    low = ReduceMin <keepdims = 0> (centred)
    minus_low = Neg(low)
    largest = Max(high, minus_low)
    is_scale = Greater(largest, none)
    scale = Where(is_scale, largest, one)                  # the Gram matrix cannot overflow
    x32 = Div(centred, scale)                              # [n, d], in [−1, 1]

    x = Cast <to = 11> (x32)                               # float64 from here
    t64 = Cast <to = 11> (t)
    none64 = Cast <to = 11> (none)
    one64 = Cast <to = 11> (one)
    d64 = Cast <to = 11> (d_float)
    penalty64 = Cast <to = 11> (penalty)
    tolerance64 = Cast <to = 11> (tolerance)
    flat64 = Cast <to = 11> (flat)
    gram0 = Gemm <transA = 1> (x, x)                       # [d, d]
    columns = Gemm <transA = 1> (x, t64)                   # [d, C]
    unit = EyeLike(gram0)
    diagonal = Mul(gram0, unit)
    trace = ReduceSum <keepdims = 0> (diagonal)
    mean_of_diagonal = Div(trace, d64)
    is_mean = Greater(mean_of_diagonal, none64)
    level = Where(is_mean, mean_of_diagonal, one64)
    gram1 = Div(gram0, level)                              # its diagonal has the mean 1
    ridge = Mul(unit, penalty64)
    gram = Add(gram1, ridge)
    r0 = Div(columns, level)
    v0 = Mul(r0, none64)
    rho0 = ReduceSumSquare <keepdims = 0> (r0, axis0)      # [C]
    enough = Mul(rho0, tolerance64)

    v_end, r_end, p_end, rho_end = Loop <body = conjugate_gradients
      (int64 step, bool more, double[d, C] v, double[d, C] r, double[d, C] p, double[C] rho)
      => (bool again, double[d, C] v2, double[d, C] r2, double[d, C] p2, double[C] rho2) {
        q = MatMul(gram, p)                                # [d, C]
        pq = Mul(p, q)
        curvature = ReduceSum <keepdims = 0> (pq, axis0)   # [C]
        pp = ReduceSumSquare <keepdims = 0> (p, axis0)
        least = Mul(pp, flat64)
        curved = Greater(curvature, least)                 # else the column is done: no 0/0
        open = Greater(rho, enough)
        going = And(curved, open)                          # [C]

        below = Where(going, curvature, one64)
        ratio = Div(rho, below)
        alpha = Where(going, ratio, none64)
        dv = Mul(alpha, p)
        dr = Mul(alpha, q)
        v2 = Add(v, dv)
        r2 = Sub(r, dr)
        left = ReduceSumSquare <keepdims = 0> (r2, axis0)
        rho2 = Where(going, left, none64)                  # a column that is done stays done
        old = Where(going, rho, one64)
        beta = Div(rho2, old)
        dp = Mul(beta, p)
        p2 = Add(r2, dp)

        open2 = Greater(rho2, enough)
        counts = Cast <to = 6> (open2)
        any = ReduceMax <keepdims = 0> (counts)
        again = Cast <to = 9> (any)
    }> (iterations, yes, v0, r0, r0, rho0)

    scale64 = Cast <to = 11> (scale)
    w64 = Div(v_end, scale64)                              # [d, C]
    w = Cast <to = 1> (w64)
    W = Transpose <perm = [1, 0]> (w)
"""
BIAS = """
    origin = Add(first, shift)                             # [d], the mean of the features
    at_mean = MatMul(W, origin)
    b = Sub(mean_t, at_mean)
}"""
NO_BIAS = "}"


def ridge(problem: Problem, *, penalty: float = 0.001, iterations: int | None = None) -> ir.Model:
    """Ridge regression of one-hot targets on the features of the last layer.

    Minimises ‖Φw + b − t‖² + λ‖w‖² for the targets t of each class: 1 for its samples, else 0.  λ
    is ``penalty`` times the mean of the diagonal of ΦᵀΦ (Φ centred), so it means the same whatever
    the scale and the number of samples; the bias is not penalised.  One logit has the targets −1
    and 1, one value 0 and 1.  A layer without a bias is fitted without one.

    Source: Hoerl & Kennard 1970; conjugate gradients: Hestenes & Stiefel 1952
    Cost: n·d² + n·d·C multiplications once, d²·C per iteration (at most 4d + 4)

    Limits: the features are centred in float32; the rest is done in float64, so that two runtimes,
    which sum in different orders, come to the same weights but for the last bits.  The features are
    held in float64, [n, d], and the Gram matrix, [d, d].  With penalty 0 and dependent features the
    solution is the one of least norm, directions below √ε of float32 beside the mean left out.

    Args:
        problem: what the oracle is built for.
        penalty: λ relative to the mean of the Gram matrix' diagonal; 0 or more.
        iterations: the most iterations; None for 4(d + 1).

    Raises:
        InputError: a penalty or a number of iterations out of range.
        UnsupportedError: the base does not end in a linear layer.

    Example:
        >>> import numpy as np
        >>> from gdu_compile.oracles import problem_of, run_alone
        >>> with np.load("models/digits.npz") as data:
        ...     x, y = data["x"], data["y"]
        >>> algorithm = ridge(problem_of("models/digits_linear.onnx", len(y)), penalty=0.01)
        >>> w = run_alone(algorithm, {"x": x}, y)
        >>> logits = x.reshape(-1, 64) @ w["fc.weight"].T + w["fc.bias"]
        >>> bool(np.mean(logits.argmax(axis=1) == y) > 0.94)
        True
    """
    check_arguments(penalty, iterations)
    layer = last_layer(problem)
    one, bias = layer.classes == 1, layer.bias is not None
    low = -1.0 if one and problem.site.kind != "values" else 0.0
    off_on = [[low], [1.0]] if one else [low, 1.0]
    text = [
        begin(BEGIN, bias), ONE_COLUMN if one else CLASSES, CENTRE if bias else NO_CENTRE, SOLVE,
        BIAS if bias else NO_BIAS,
    ]  # fmt: skip
    graph = head(
        "".join(text), classes=layer.classes, off_on=np.array(off_on), zero=0, none=0.0, one=1.0,
        yes=True, d_float=float(layer.d), penalty=float(penalty), tolerance=TOLERANCE,
        flat=FLAT, iterations=ROUNDS * (layer.d + 1) if iterations is None else iterations,
    )  # fmt: skip
    return compose(problem, layer, graph, [layer], "ridge")


def check_arguments(penalty: float, iterations: int | None) -> None:
    """Raise InputError, with all complaints, when an argument makes no sense."""
    problems = []
    if not isinstance(penalty, int | float) or isinstance(penalty, bool):
        problems.append(f"penalty={penalty!r} is no number")
    elif not 0 <= penalty <= LARGEST:
        problems.append(f"penalty={penalty!r} has to be a float32 number, 0 or more")
    whole = isinstance(iterations, int) and not isinstance(iterations, bool)
    if iterations is not None and (not whole or iterations < 1):
        problems.append(f"iterations={iterations!r} has to be a whole number above 0")
    if problems:
        raise InputError("oracle ridge: bad arguments", problems)
