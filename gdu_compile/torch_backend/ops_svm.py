"""The support vector machines of ai.onnx.ml, as onnxruntime computes them (svmclassifier.cc)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from gdu_compile.errors import UnsupportedError
from gdu_compile.torch_backend.ops_ml import ML, _floating, _labels, _row, _transformed
from gdu_compile.torch_backend.registry import operator

LEAST = 1e-7
"""A probability of one class of a pair is at least that, and at most 1 − that."""
ROUNDS = 100
"""Of the iteration that couples the pairs; it stops where no class is off by 0.005 / classes."""


@operator("SVMRegressor", domain=ML)
def svm_regressor(
    x: Tensor,
    *,
    coefficients: list[float],
    kernel_params: list[float] | None = None,
    kernel_type: str = "LINEAR",
    n_supports: int = 0,
    one_class: int = 0,
    post_transform: str = "NONE",
    rho: list[float],
    support_vectors: list[float] | None = None,
) -> Tensor:
    if post_transform != "NONE":
        raise UnsupportedError(
            f"an SVMRegressor with post_transform {post_transform}: onnxruntime leaves it out; "
            "export it with NONE"
        )
    x = _floating(x)
    if n_supports > 0:
        x = _kernel(x, support_vectors or [], n_supports, kernel_type, kernel_params)
    scores = x @ _row(coefficients, x)[:, None] + rho[0]
    return torch.where(scores > 0, 1.0, -1.0).to(x.dtype) if one_class else scores


@operator("SVMClassifier", domain=ML)
def svm_classifier(
    x: Tensor,
    *,
    classlabels_ints: list[int] | None = None,
    classlabels_strings: list[str] | None = None,
    coefficients: list[float],
    kernel_params: list[float] | None = None,
    kernel_type: str = "LINEAR",
    label_used_: bool = True,
    post_transform: str = "NONE",
    prob_a: list[float] | None = None,
    prob_b: list[float] | None = None,
    rho: list[float],
    support_vectors: list[float] | None = None,
    vectors_per_class: list[int] | None = None,
) -> tuple[Tensor, Tensor]:
    x = _floating(x)
    labels = _labels(classlabels_ints, classlabels_strings, x, used=label_used_)
    per_class = vectors_per_class or []
    if not sum(per_class):
        scores = x @ _row(coefficients, x).reshape(len(labels), -1).T + rho[0]
        chosen = _largest(scores, min(coefficients) >= 0)
        return labels[chosen], _transformed(scores, post_transform)
    kernel = _kernel(x, support_vectors or [], sum(per_class), kernel_type, kernel_params)
    scores = _scores_of_pairs(kernel, coefficients, rho, per_class)
    chosen = _votes(scores, len(labels)).argmax(1)
    if prob_a and prob_b:
        first = 1 - torch.sigmoid(scores * _row(prob_a, x) + _row(prob_b, x))
        scores = _coupled(first.clamp(LEAST, 1 - LEAST), len(labels))
    elif len(labels) == 2:
        return labels[chosen], _both(scores, post_transform)
    return labels[chosen], _transformed(scores, post_transform)


def _kernel(
    x: Tensor, support_vectors: list[float], count: int, kind: str, params: list[float] | None
) -> Tensor:
    """[N, support vectors]."""
    gamma, constant, degree = params or (0.0, 0.0, 0.0)
    vectors = _row(support_vectors, x).reshape(count, -1)
    if kind == "RBF":
        return (-gamma * (x[:, None] - vectors).square().sum(-1)).exp()
    products = x @ vectors.T
    if kind == "LINEAR":
        return products
    shifted = gamma * products + constant
    return shifted**degree if kind == "POLY" else shifted.tanh()


def _largest(scores: Tensor, positive: bool) -> Tensor:
    """The class without support vectors; of two classes the second is preferred."""
    top, chosen = scores.max(1)
    if scores.shape[1] != 2:
        return chosen
    return torch.where(top >= 0.5 if positive else top > 0, 1, chosen)


def _scores_of_pairs(
    kernel: Tensor, coefficients: Sequence[float], rho: Sequence[float], per_class: list[int]
) -> Tensor:
    """[N, pairs of classes]: sums in float64 over the support vectors of both."""
    rows = torch.tensor(coefficients, dtype=torch.float64, device=kernel.device)
    rows = rows.reshape(len(per_class) - 1, -1)  # [classes − 1, support vectors]
    weights = rows.new_zeros(len(rho), kernel.shape[1])
    ends = torch.tensor(per_class).cumsum(0).tolist()
    of = [slice(end - count, end) for end, count in zip(ends, per_class, strict=True)]
    for pair, (i, j) in enumerate(combinations(range(len(per_class)), 2)):
        weights[pair, of[i]], weights[pair, of[j]] = rows[j - 1, of[i]], rows[i, of[j]]
    scores = kernel.to(torch.float64) @ weights.T
    return (scores + _row(rho, scores)).to(kernel.dtype)


def _votes(scores: Tensor, classes: int) -> Tensor:
    """How many pairs each class wins, [N, classes]."""
    pairs = torch.combinations(torch.arange(classes, device=scores.device))  # [pairs, 2]
    winner = torch.where(scores > 0, pairs[:, 0], pairs[:, 1])
    return torch.nn.functional.one_hot(winner, classes).sum(1)


def _both(scores: Tensor, post_transform: str) -> Tensor:
    """The two columns of two classes, which onnxruntime does not make by the transform of rows."""
    if post_transform == "PROBIT":
        raise UnsupportedError(
            "an SVMClassifier of two classes with post_transform PROBIT: onnxruntime leaves a "
            "score unset; export it with NONE"
        )
    if post_transform.startswith("SOFTMAX"):
        return torch.cat([1 - scores, scores], 1)
    return _transformed(torch.cat([-scores, scores], 1), post_transform)


def _coupled(first: Tensor, classes: int) -> Tensor:
    """Probabilities of the classes, [N, classes], from those of the first of each pair.

    Algorithm 2 of Wu, Lin, Weng: Probability estimates for multi-class classification by pairwise
    coupling, JMLR 5 (2004), with the stopping rule of libsvm and onnxruntime.
    """
    i, j = torch.combinations(torch.arange(classes, device=first.device)).T
    r = first.new_zeros(len(first), classes, classes)
    r = r.index_put((torch.arange(len(first), device=first.device)[:, None], i, j), first)
    r = r.index_put((torch.arange(len(first), device=first.device)[:, None], j, i), 1 - first)
    q = torch.diag_embed(r.square().sum(1)) - r * r.mT  # [N, classes, classes]
    p = first.new_full((len(first), classes), 1 / classes)
    for _ in range(ROUNDS):
        qp = (q @ p[..., None])[..., 0]
        pqp = (p * qp).sum(1, keepdim=True)
        off = (qp - pqp).abs().amax(1, keepdim=True) >= 0.005 / classes
        if not bool(off.any()):
            break
        p = torch.where(off, _one_round(p, q, qp, pqp), p)
    return p


def _one_round(p: Tensor, q: Tensor, qp: Tensor, pqp: Tensor) -> Tensor:
    """Each class once, one after the other."""
    unit = torch.eye(p.shape[1], dtype=p.dtype, device=p.device)
    for t in range(p.shape[1]):
        own, others = q[:, t, t, None], q[:, t]
        step = (pqp - qp[:, t, None]) / own
        p = (p + step * unit[t]) / (1 + step)
        pqp = (pqp + step * (step * own + 2 * qp[:, t, None])) / (1 + step) / (1 + step)
        qp = (qp + step * others) / (1 + step)
    return p
