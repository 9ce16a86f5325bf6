"""The operators of ai.onnx.ml on numbers: what scikit-learn's exporters emit for tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gdu_compile.errors import UnsupportedError
from gdu_compile.torch_backend.registry import operator

ML = "ai.onnx.ml"


def _row(values: Sequence[float], like: Tensor) -> Tensor:
    """An attribute as a tensor beside ``like``."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def _floating(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.to(torch.float32)


@operator("ArrayFeatureExtractor", domain=ML)
def array_feature_extractor(x: Tensor, y: Tensor) -> Tensor:
    picked = x.index_select(-1, y.reshape(-1))
    return picked[None] if x.ndim == 1 else picked


@operator("Binarizer", domain=ML)
def binarizer(x: Tensor, *, threshold: float = 0.0) -> Tensor:
    return (x > threshold).to(x.dtype)


@operator("FeatureVectorizer", domain=ML)
def feature_vectorizer(*inputs: Tensor, inputdimensions: list[int] | None = None) -> Tensor:
    columns = [x.reshape(len(x), -1) for x in inputs]
    widths = inputdimensions or [x.shape[1] for x in columns]
    parts = [x[:, :width] for x, width in zip(columns, widths, strict=True)]
    return torch.cat(parts, 1).to(torch.float32)


@operator("Imputer", domain=ML)
def imputer(
    x: Tensor,
    *,
    imputed_value_floats: list[float] | None = None,
    imputed_value_int64s: list[int] | None = None,
    replaced_value_float: float = 0.0,
    replaced_value_int64: int = 0,
) -> Tensor:
    filling = imputed_value_floats if x.is_floating_point() else imputed_value_int64s
    missing = replaced_value_float if x.is_floating_point() else replaced_value_int64
    unknown = x.isnan() if math.isnan(missing) else x == missing
    return torch.where(unknown, _row(filling or [0], x), x)


@operator("Scaler", domain=ML)
def scaler(x: Tensor, *, offset: list[float], scale: list[float]) -> Tensor:
    x = _floating(x)
    return (x - _row(offset, x)) * _row(scale, x)


@operator("Normalizer", domain=ML)
def normalizer(x: Tensor, *, norm: str = "MAX") -> Tensor:
    x = _floating(x)
    if norm == "MAX":
        size = x.amax(-1, keepdim=True)
    elif norm == "L1":
        size = x.abs().sum(-1, keepdim=True)
    else:
        size = torch.linalg.vector_norm(x, 2, -1, keepdim=True)
    return x / torch.where(size == 0, 1, size)


# --- linear models ----------------------------------------------------------------


@operator("LinearRegressor", domain=ML)
def linear_regressor(
    x: Tensor, *, coefficients: list[float], intercepts: list[float] | None = None,
    post_transform: str = "NONE", targets: int = 1,
) -> Tensor:  # fmt: skip
    x = _floating(x)
    scores = x @ _row(coefficients, x).reshape(targets, -1).T
    return _transformed(scores + _row(intercepts or [0.0], x), post_transform)


@operator("LinearClassifier", domain=ML)
def linear_classifier(
    x: Tensor,
    *,
    classlabels_ints: list[int] | None = None,
    classlabels_strings: list[str] | None = None,
    coefficients: list[float],
    intercepts: list[float] | None = None,
    label_used_: bool = True,
    multi_class: int = 0,
    post_transform: str = "NONE",
) -> tuple[Tensor, Tensor]:
    x = _floating(x)
    labels = _labels(classlabels_ints, classlabels_strings, x, used=label_used_)
    scores = x @ _row(coefficients, x).reshape(-1, x.shape[-1]).T
    scores = scores + _row(intercepts or [0.0], x)
    if scores.shape[1] > 1:
        return labels[scores.argmax(1)], _transformed(scores, post_transform)
    # One score for two classes: its sign decides.
    both = torch.cat([-scores, scores], 1)
    limit = 0.5 if post_transform == "LOGISTIC" else 0.0
    high = (torch.sigmoid(scores) if limit else scores)[:, 0] > limit
    if post_transform == "NONE":
        return labels[high.to(torch.int64)], both
    return labels[high.to(torch.int64)], _transformed(both, post_transform)


def _labels(
    ints: list[int] | None, strings: list[str] | None, like: Tensor, *, used: bool = True
) -> Tensor:
    """The labels of the classes; in place of names that nobody reads, the classes' numbers."""
    if strings and not used:
        return torch.arange(len(strings), device=like.device)
    if strings or not ints:
        raise UnsupportedError(
            "a classifier of ai.onnx.ml with names as labels: torch has no strings; export it "
            "with numbers as labels"
        )
    return torch.tensor(ints, dtype=torch.int64, device=like.device)


def _transformed(scores: Tensor, how: str) -> Tensor:
    """Scores → probabilities."""
    if how == "LOGISTIC":
        return torch.sigmoid(scores)
    if how == "SOFTMAX":
        return torch.softmax(scores, -1)
    if how == "SOFTMAX_ZERO":  # a score near 0 stays there
        top, zero = scores.amax(-1, keepdim=True), scores.abs() <= 1e-7
        total = torch.where(zero, 0, (scores - top).exp()).sum(-1, keepdim=True)
        near = torch.where(zero, scores, 0) * (-top.clamp(min=0)).exp()
        powers = torch.where(zero, near, (scores - top).exp())
        return powers / torch.where(total == 0, 1, total)
    if how == "PROBIT":
        return math.sqrt(2) * _inverse_erf(2 * scores - 1)
    return scores


def _inverse_erf(x: Tensor) -> Tensor:
    """The approximation that onnxruntime and ONNX's reference take (Winitzki, a = 0.147)."""
    logarithm = ((1 - x) * (1 + x)).log()
    half = 2 / (math.pi * 0.147) + logarithm / 2
    return torch.where(x < 0, -1, 1) * ((half.square() - logarithm / 0.147).sqrt() - half).sqrt()


# --- trees ------------------------------------------------------------------------

MODES = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ",
         "BRANCH_MEMBER", "LEAF"]  # fmt: skip
LEAF = MODES.index("LEAF")


class Forest:
    """Trees as one table of nodes, the leaves among them; a leaf is followed by itself.

    Args:
        feature, split, mode, missing: what each node compares, with what, how, and whether NaN
            takes the branch of true.
        following: the next node when it is false, and when it is true, [2, nodes].
        roots: the first node of each tree.
        sets: of each node the members it compares with, filled up with NaN.
    """

    def __init__(
        self, feature: Tensor, split: Tensor, mode: Tensor, missing: Tensor, following: Tensor,
        roots: Tensor, sets: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.feature, self.split, self.mode, self.missing = feature, split, mode, missing
        self.following, self.roots, self.sets = following, roots, sets

    def leaves(self, x: Tensor) -> Tensor:
        """The leaf of each sample in each tree, [N, trees]."""
        place = self.roots.expand(len(x), -1)
        while bool((self.mode[place] != LEAF).any()):
            value, split = x.gather(1, self.feature[place]), self.split[place]
            kinds = [value <= split, value < split, value >= split, value > split, value == split,
                     value != split, torch.zeros_like(value, dtype=torch.bool)]  # fmt: skip
            if self.sets is not None:
                kinds[-1] = (value[..., None] == self.sets[place]).any(-1)
            chosen = torch.stack([*kinds, kinds[-1]]).gather(0, self.mode[place][None])[0]
            true = torch.where(value.isnan() & self.missing[place], True, chosen)
            place = torch.where(true, self.following[1][place], self.following[0][place])
        return place


def _aggregate(
    place: Tensor, leaf: Tensor, target: Tensor, weight: Tensor, nodes: int, targets: int, how: str
) -> Tensor:
    """The weights of the leaves of each sample, over the trees, [N, targets].

    Args:
        place: [N, trees].
        leaf, target, weight: the entries, each [entries].
        nodes, targets: how many there are.
        how: SUM, AVERAGE, MIN or MAX.
    """
    empty = {"MIN": math.inf, "MAX": -math.inf}.get(how, 0.0)
    table = weight.new_full((nodes * targets,), empty)
    table = table.index_put((leaf * targets + target,), weight, accumulate=empty == 0)
    given = table.reshape(nodes, targets)[place]  # [N, trees, targets]
    if how in ("MIN", "MAX"):
        best = given.amin(1) if how == "MIN" else given.amax(1)
        return torch.where(best.isinf(), 0, best)
    total = given.sum(1)
    return total / place.shape[1] if how == "AVERAGE" else total


@operator("TreeEnsemble", domain=ML)
def tree_ensemble(
    x: Tensor,
    *,
    aggregate_function: int = 1,
    leaf_targetids: list[int],
    leaf_weights: Tensor,
    membership_values: Tensor | None = None,
    n_targets: int,
    nodes_falseleafs: list[int],
    nodes_falsenodeids: list[int],
    nodes_featureids: list[int],
    nodes_hitrates: Tensor | None = None,
    nodes_missing_value_tracks_true: list[int] | None = None,
    nodes_modes: Tensor,
    nodes_splits: Tensor,
    nodes_trueleafs: list[int],
    nodes_truenodeids: list[int],
    post_transform: int = 0,
    tree_roots: list[int],
) -> Tensor:
    inner, leaves, device = len(nodes_featureids), len(leaf_targetids), x.device

    def whole(values: Sequence[int], filling: int = 0) -> Tensor:
        return torch.tensor([*values, *[filling] * leaves], dtype=torch.int64, device=device)

    own = torch.arange(inner, inner + leaves, device=device)
    following = [
        torch.cat([(whole(ids) + inner * whole(is_leaf))[:inner], own])
        for ids, is_leaf in (
            (nodes_falsenodeids, nodes_falseleafs), (nodes_truenodeids, nodes_trueleafs),
        )
    ]  # fmt: skip
    mode = whole(nodes_modes.tolist(), LEAF)
    forest = Forest(
        whole(nodes_featureids), torch.cat([nodes_splits, x.new_zeros(leaves)]).to(x.device), mode,
        whole(nodes_missing_value_tracks_true or [0] * inner).bool(), torch.stack(following),
        torch.tensor(tree_roots, device=device), _member_sets(membership_values, mode, x),
    )  # fmt: skip
    how = ("AVERAGE", "SUM", "MIN", "MAX")[aggregate_function]
    scores = _aggregate(
        forest.leaves(x), own, whole(leaf_targetids)[:leaves], leaf_weights.to(x.device),
        inner + leaves, n_targets, how,
    )  # fmt: skip
    names = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
    return _transformed(scores, names[post_transform])


def _member_sets(values: Tensor | None, mode: Tensor, like: Tensor) -> Tensor | None:
    """The members of each node; in the attribute NaN ends those of a node."""
    if values is None:
        return None
    groups: list[list[float]] = [[]]
    for value in values.tolist():
        if math.isnan(value):
            groups.append([])
        else:
            groups[-1].append(value)
    left, widest = iter(groups), max(map(len, groups))
    rows = [next(left) if kind == MODES.index("BRANCH_MEMBER") else [] for kind in mode.tolist()]
    padded = [[*row, *[math.nan] * (widest - len(row))] for row in rows]
    return torch.tensor(padded, dtype=like.dtype, device=like.device)


def _old_forest(
    x: Tensor, tree_ids: list[int], node_ids: list[int], features: list[int], modes: list[str],
    values: list[float], missing: list[int] | None, true_ids: list[int], false_ids: list[int],
) -> tuple[Forest, dict[tuple[int, int], int]]:  # fmt: skip
    """The trees of the older operators, and (tree, node) → place in the table."""
    places = {key: i for i, key in enumerate(zip(tree_ids, node_ids, strict=True))}
    codes = [MODES.index(mode) for mode in modes]
    following = [
        [i if code == LEAF else places[tree, node]
         for i, (tree, node, code) in enumerate(zip(tree_ids, ids, codes, strict=True))]
        for ids in (false_ids, true_ids)
    ]  # fmt: skip
    roots = [i for i, tree in enumerate(tree_ids) if tree not in tree_ids[:i]]

    def whole(values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=x.device)

    tracks = whole(missing or [0] * len(codes)).bool()
    forest = Forest(whole(features), _row(values, x), whole(codes), tracks,
                    whole(following), whole(roots))  # fmt: skip
    return forest, places


@operator("TreeEnsembleRegressor", domain=ML)
def tree_ensemble_regressor(
    x: Tensor,
    *,
    aggregate_function: str = "SUM",
    base_values: list[float] | None = None,
    base_values_as_tensor: Tensor | None = None,
    n_targets: int = 1,
    nodes_falsenodeids: list[int],
    nodes_featureids: list[int],
    nodes_hitrates: list[float] | None = None,
    nodes_hitrates_as_tensor: Tensor | None = None,
    nodes_missing_value_tracks_true: list[int] | None = None,
    nodes_modes: list[str],
    nodes_nodeids: list[int],
    nodes_treeids: list[int],
    nodes_truenodeids: list[int],
    nodes_values: list[float] | None = None,
    nodes_values_as_tensor: Tensor | None = None,
    post_transform: str = "NONE",
    target_ids: list[int],
    target_nodeids: list[int],
    target_treeids: list[int],
    target_weights: list[float] | None = None,
    target_weights_as_tensor: Tensor | None = None,
) -> Tensor:
    x = _floating(x)
    forest, places = _old_forest(
        x, nodes_treeids, nodes_nodeids, nodes_featureids, nodes_modes,
        _listed(nodes_values, nodes_values_as_tensor), nodes_missing_value_tracks_true,
        nodes_truenodeids, nodes_falsenodeids,
    )  # fmt: skip
    leaf = [places[key] for key in zip(target_treeids, target_nodeids, strict=True)]
    weight = _row(_listed(target_weights, target_weights_as_tensor), x)
    scores = _aggregate(
        forest.leaves(x), torch.tensor(leaf, device=x.device),
        torch.tensor(target_ids, device=x.device), weight, len(places), n_targets,
        aggregate_function,
    )  # fmt: skip
    base = _listed(base_values, base_values_as_tensor) or [0.0]
    return _transformed(scores + _row(base, x), post_transform).to(torch.float32)


def _listed(values: list[float] | None, tensor: Tensor | None) -> list[float]:
    """An attribute that is either a list or a tensor."""
    return list(values or []) if tensor is None else tensor.tolist()


@operator("TreeEnsembleClassifier", domain=ML)
def tree_ensemble_classifier(
    x: Tensor,
    *,
    base_values: list[float] | None = None,
    base_values_as_tensor: Tensor | None = None,
    class_ids: list[int],
    class_nodeids: list[int],
    class_treeids: list[int],
    class_weights: list[float] | None = None,
    class_weights_as_tensor: Tensor | None = None,
    classlabels_int64s: list[int] | None = None,
    classlabels_strings: list[str] | None = None,
    label_used_: bool = True,
    nodes_falsenodeids: list[int],
    nodes_featureids: list[int],
    nodes_hitrates: list[float] | None = None,
    nodes_hitrates_as_tensor: Tensor | None = None,
    nodes_missing_value_tracks_true: list[int] | None = None,
    nodes_modes: list[str],
    nodes_nodeids: list[int],
    nodes_treeids: list[int],
    nodes_truenodeids: list[int],
    nodes_values: list[float] | None = None,
    nodes_values_as_tensor: Tensor | None = None,
    post_transform: str = "NONE",
) -> tuple[Tensor, Tensor]:
    x = _floating(x)
    labels = _labels(classlabels_int64s, classlabels_strings, x, used=label_used_)
    forest, places = _old_forest(
        x, nodes_treeids, nodes_nodeids, nodes_featureids, nodes_modes,
        _listed(nodes_values, nodes_values_as_tensor), nodes_missing_value_tracks_true,
        nodes_truenodeids, nodes_falsenodeids,
    )  # fmt: skip
    leaf = [places[key] for key in zip(class_treeids, class_nodeids, strict=True)]
    weights = _listed(class_weights, class_weights_as_tensor)
    base = _listed(base_values, base_values_as_tensor)
    one = len(labels) == 2 and len(set(class_ids)) == 1  # one score for two classes
    if one and (any(class_ids) or len(base) > 1):
        raise UnsupportedError(
            "a TreeEnsembleClassifier with one score for two classes, but class_ids other than 0 "
            "or two base_values: runtimes do not agree on it"
        )
    scores = _aggregate(
        forest.leaves(x), torch.tensor(leaf, device=x.device),
        torch.tensor(class_ids, device=x.device), _row(weights, x), len(places),
        1 if one else len(labels), "SUM",
    )  # fmt: skip
    scores = scores + _row(base or [0.0], x)
    if not one:
        return labels[scores.argmax(1)], _transformed(scores, post_transform).to(torch.float32)
    positive = min(weights) >= 0  # then the score is a probability
    high = (scores[:, 0] > (0.5 if positive else 0)).to(torch.int64)
    opposite = 1 - scores if positive and post_transform != "LOGISTIC" else -scores
    both = torch.cat([opposite, scores], 1)
    if post_transform != "SOFTMAX":  # onnxruntime leaves the two as they are
        both = _transformed(both, post_transform)
    return labels[high], both.to(torch.float32)
