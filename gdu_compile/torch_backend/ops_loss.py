"""The losses of ONNX."""

from __future__ import annotations

import torch
from torch import Tensor

from gdu_compile.torch_backend.registry import operator


@operator("NegativeLogLikelihoodLoss", since=12)
def negative_log_likelihood_loss(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    classes = target.to(torch.int64)
    # Written out: torch's own reads a class beyond the last even where it is ignored.
    ignored = None if ignore_index is None else classes == ignore_index
    if ignored is not None:
        classes = torch.where(ignored, 0, classes)
    losses = -x.gather(1, classes.unsqueeze(1)).squeeze(1)
    weights = torch.ones_like(losses) if weight is None else weight[classes]
    if ignored is not None:
        weights = torch.where(ignored, 0, weights)
    if ignored is not None or weight is not None:  # not 0 times infinity
        losses = torch.where(weights == 0, 0, losses) * weights
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / weights.sum()


@operator("SoftmaxCrossEntropyLoss", since=12)
def softmax_cross_entropy_loss(
    scores: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
    num_outputs_: int = 1,
) -> tuple[Tensor, ...]:
    logarithms = torch.log_softmax(scores, 1)
    loss = negative_log_likelihood_loss(
        logarithms, labels, weights, ignore_index=ignore_index, reduction=reduction
    )
    return (loss, logarithms)[:num_outputs_]
