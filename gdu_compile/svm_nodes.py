"""SVMClassifier and SVMRegressor with their numbers as initializers, to the last bit.

What onnxruntime computes of x [N, F] and V support vectors v (core/providers/cpu/ml:
svmclassifier.h, svmclassifier.cc, svmregressor.cc):

1. The kernel K [N, V].  LINEAR, POLY and SIGMOID begin with a Gemm: x·v, (γ·x·v + c)^degree,
   tanh(γ·x·v + c).  RBF: exp(−γ·Σ(x − v)²), summed in the order of the columns.
2. A regressor: a Gemm of K and the coefficients, plus ρ.
3. A classifier has a score for each pair of classes i < j: over the support vectors of i, then of
   j, coefficient times K in float32, summed in this order in float64, plus ρ.
4. Labels by the votes of the scores; probabilities by prob_a and prob_b; post_transform.

Rewritten, a Gemm is a Gemm, and a sum in order is a CumSum.  What no other operator gives to the
last bit stays the operator's own, with numbers that change nothing: an SVMRegressor with the one
support vector 0 or 1 for the exponential, the power and tanh; an SVMClassifier whose support
vectors are unit vectors for step 4.
"""

from __future__ import annotations

from itertools import accumulate, combinations
from typing import Any

import numpy as np
import onnx_ir as ir

from gdu_compile.digits import Array
from gdu_compile.node_rewriter import ML, Rewriter, floats, label, rows_of_labels

MOST_BYTES = 1 << 23
"""For one sample, of the differences to the support vectors, or of the products of all pairs."""
MOST_CLASSES = 64
"""The unit vectors of their 2016 pairs, which a classifier is left with, take 16 MB."""
NOTHING: dict[str, Any] = {"coefficients": [1.0], "rho": [0.0], "n_supports": 1}
"""Of the SVMRegressor that is left of a kernel."""


def regressor(r: Rewriter) -> None:
    """K·aᵀ + ρ, or x·aᵀ + ρ without support vectors."""
    x, supports = r.data(), r.node.attributes.get_int("n_supports", 0)
    features = kernels(r, x, supports) if supports else x
    coefficients = r.weight("coefficients", floats(r.node, "coefficients").reshape(1, -1))
    result = r.linear(features, coefficients, r.weight("rho", floats(r.node, "rho")))
    if r.node.attributes.get_int("one_class", 0):
        kept: dict[str, Any] = {
            **NOTHING,
            "n_supports": 0,
            "one_class": 1,
            "kernel_params": [0.0] * 3,
        }
        result = r.op("SVMRegressor", result, domain=ML, **kept)
    r.finish(result)


def classifier(r: Rewriter) -> None:
    """Scores by other operators; the SVMClassifier gets them as its input.

    Raises:
        ValueError: the attributes do not fit together.
    """
    x, classes, per_class = r.data(), rows_of_labels(r.node), support_counts(r.node)
    labels = None
    if per_class:
        scores = scores_of_pairs(r, x, kernels(r, x, sum(per_class)), per_class)
        set_attributes(r.node, for_pairs(classes))
        if "prob_a" in r.node.attributes:
            labels = labels_alone(r, scores)
            scores = scaled(r, scores)
    else:
        weight = r.weight("coefficients", floats(r.node, "coefficients").reshape(classes, -1))
        scores = r.linear(x, weight, r.weight("rho", floats(r.node, "rho")))
        set_attributes(r.node, for_classes(classes))
    r.finish()
    r.node.replace_input_with(0, scores)
    if labels is not None:
        r.put(labels, r.node.outputs[0])


def kernels(r: Rewriter, x: ir.Value, supports: int) -> ir.Value:
    """K [N, V]."""
    kind = r.node.attributes.get_string("kernel_type", "LINEAR")
    gamma, constant, degree = kernel_params(r.node)
    array = floats(r.node, "support_vectors").reshape(supports, -1)
    vectors, columns = r.weight("support_vectors", array), array.shape[1]
    if kind == "LINEAR":
        return r.linear(x, vectors, None)
    if kind == "RBF":
        each = r.op("Sub", r.reshape(x, -1, 1, columns), vectors)  # [N, V, F]
        rows = r.reshape(each, -1, columns)
        support, params = [0.0] * columns, [gamma, 0.0, 0.0]
    else:
        bias = r.weight("coef0", np.array([constant], np.float32))
        rows = r.reshape(r.linear(x, vectors, bias, alpha=gamma), -1, 1)
        support, params = [1.0], [1.0, 0.0, degree]
    bent = r.op("SVMRegressor", rows, domain=ML, kernel_type=kind, kernel_params=params,
                support_vectors=support, **NOTHING)  # fmt: skip
    return r.reshape(bent, -1, supports)


def scores_of_pairs(r: Rewriter, x: ir.Value, kernel: ir.Value, per_class: list[int]) -> ir.Value:
    """[N, pairs] of the input [N, F] and the kernel [N, V]."""
    array = floats(r.node, "coefficients").reshape(len(per_class) - 1, -1)
    coefficients = r.varying(x, r.weight("coefficients", array))
    rho = r.varying(x, r.weight("rho", floats(r.node, "rho")))
    which, of_which, last = terms(per_class)
    pairs, longest = which.shape
    flat = r.reshape(coefficients, -1)
    weights = r.op("Gather", flat, r.weight("rows", of_which.reshape(-1)))
    products = r.op("Mul", r.columns(kernel, which.reshape(-1)), weights)
    double: dict[str, Any] = {"dtype": ir.DataType.DOUBLE, "to": ir.DataType.DOUBLE.value}
    exact = r.reshape(r.op("Cast", products, **double), -1, pairs, longest)
    sums = r.op("CumSum", exact, r.weight("axis", np.array(2)), dtype=ir.DataType.DOUBLE)
    totals = r.columns(r.reshape(sums, -1, pairs * longest), last)
    shifted = r.op("Add", totals, r.op("Cast", rho, **double), dtype=ir.DataType.DOUBLE)
    scores = r.op("Cast", shifted, to=ir.DataType.FLOAT.value)
    scores.shape = None if x.shape is None else ir.Shape([x.shape[0], pairs])
    return scores


def terms(per_class: list[int]) -> tuple[Array, Array, Array]:
    """Of each pair i < j the support vectors of i and of j, in order.

    Returns:
        Their numbers [pairs, most of one pair], filled up with 0; where their coefficients lie in
        [classes − 1, V], read in rows: those of i in row j − 1, those of j in row i; where the last
        one of each pair lies in the first array, read in rows [pairs].

    Example:
        >>> which, coefficients, last = terms([1, 2])
        >>> which.tolist(), coefficients.tolist(), last.tolist()
        ([[0, 1, 2]], [[0, 1, 2]], [2])
    """
    ends = list(accumulate(per_class))
    of = [np.arange(end - count, end) for end, count in zip(ends, per_class, strict=True)]
    pairs = list(combinations(range(len(per_class)), 2))
    longest = max(per_class[i] + per_class[j] for i, j in pairs)
    which = np.zeros((len(pairs), longest), np.int64)
    coefficients, last = which.copy(), []
    for row, (i, j) in enumerate(pairs):
        count = per_class[i] + per_class[j]
        which[row, :count] = np.concatenate([of[i], of[j]])
        coefficients[row, :count] = np.concatenate([of[i] + (j - 1) * ends[-1],
                                                    of[j] + i * ends[-1]])  # fmt: skip
        last.append(row * longest + count - 1)
    return which, coefficients, np.array(last)


def labels_alone(r: Rewriter, scores: ir.Value) -> ir.Value:
    """The labels, which are those without prob_a: by the votes of the scores."""
    plain = {name: each for name, each in r.node.attributes.items() if "prob" not in name}
    before = r.node.outputs[0]
    names = [r.names.fresh(f"{label(r.node)}/{what}") for what in ("labels", "votes")]
    outputs = [ir.Value(name=names[0], type=before.type), ir.Value(name=names[1])]
    called = r.names.fresh(f"{label(r.node)}/SVMClassifier")
    r.nodes.append(ir.node("SVMClassifier", [scores], plain, domain=ML, outputs=outputs,
                           name=called))  # fmt: skip
    return outputs[0]


def scaled(r: Rewriter, scores: ir.Value) -> ir.Value:
    """A·score + B; the classifier is left with A = 1 and B = 0."""
    slope, offset = (r.weight(name, floats(r.node, name)) for name in ("prob_a", "prob_b"))
    result = r.op("Add", r.op("Mul", scores, slope), offset)
    result.shape = scores.shape
    pairs = len(floats(r.node, "prob_a"))
    set_attributes(r.node, {"prob_a": [1.0] * pairs, "prob_b": [0.0] * pairs})
    return result


def for_pairs(classes: int) -> dict[str, Any]:
    """Attributes of an SVMClassifier whose scores of pairs are its input: the unit vectors, each
    among the first class of its pair, and a vector 0, since the last class has to have one."""
    pairs = list(combinations(range(classes), 2))
    coefficients = np.zeros((classes - 1, len(pairs) + 1), np.float32)
    for column, (_, j) in enumerate(pairs):
        coefficients[j - 1, column] = 1
    return {
        "kernel_type": "LINEAR", "kernel_params": [0.0] * 3, "rho": [0.0] * len(pairs),
        "vectors_per_class": [*range(classes - 1, 0, -1), 1],
        "support_vectors": np.eye(len(pairs) + 1, len(pairs)).reshape(-1).tolist(),
        "coefficients": coefficients.reshape(-1).tolist(),
    }  # fmt: skip


def for_classes(classes: int) -> dict[str, Any]:
    """The same of one without support vectors: its scores of classes are its input."""
    return {"coefficients": np.eye(classes).reshape(-1).tolist(), "rho": [0.0]}


def set_attributes(node: ir.Node, attributes: dict[str, Any]) -> None:
    """Change some."""
    for name, value in attributes.items():
        node.attributes[name] = ir.convenience.convert_attribute(name, value)


def is_left(node: ir.Node) -> bool:
    """Whether it is what is left of a machine that was rewritten."""
    before, classes = node.inputs[0], rows_of_labels(node)
    if before is None or before.producer() is None or classes > MOST_CLASSES:
        return False
    if node.op_type == "SVMRegressor":
        kept = NOTHING
    else:
        kept = for_pairs(classes) if support_counts(node) else for_classes(classes)
    return all(
        np.array_equal(floats(node, name), np.array(kept[name], np.float32))
        for name in ("coefficients", "rho", "support_vectors") if name in kept
    )  # fmt: skip


def other_form(node: ir.Node) -> str | None:
    """What in the form of a machine is not rewritten, or None."""
    try:
        columns_of(node)
    except ValueError as error:
        return f"they cannot be rewritten ({error})"
    per_class, classes = support_counts(node), rows_of_labels(node)
    if node.op_type == "SVMRegressor":
        return too_large(node, 0)
    after = node.attributes.get_string("post_transform", "NONE")
    if not per_class and classes == 2:
        return ("without support vectors, the labels of two classes depend in onnxruntime on the "
                "signs of all coefficients")  # fmt: skip
    if after == "PROBIT" and classes == 2 and "prob_a" not in node.attributes:
        return "with post_transform PROBIT onnxruntime leaves one score of two classes unset"
    if node.attributes.get_string("kernel_type", "LINEAR") == "POLY" and kernel_params(node)[2] % 1:
        return ("with a degree that is no whole number a score may be NaN, and rewritten, one such "
                "score makes all of its sample NaN")  # fmt: skip
    return too_large(node, terms(per_class)[0].size if per_class else 0)


def too_large(node: ir.Node, products: int) -> str | None:
    """Why a machine would take too much memory when rewritten, or None."""
    kind = node.attributes.get_string("kernel_type", "LINEAR")
    differences = len(floats(node, "support_vectors")) if kind == "RBF" else 0
    need = max(4 * differences, 24 * products)  # products in float32, then sums in float64
    if need <= MOST_BYTES:
        return None
    return f"rewritten, they take {need} bytes a sample, and at most {MOST_BYTES} are taken"


def support_counts(node: ir.Node) -> list[int]:
    """The support vectors of each class; empty where there are none at all."""
    counts = list(node.attributes.get_ints("vectors_per_class", []))
    return counts if sum(counts) else []


def score_columns(node: ir.Node) -> int:
    """How many scores a machine gives for each sample."""
    classes = rows_of_labels(node)
    if node.op_type == "SVMRegressor":
        return 1
    by_pairs = support_counts(node) and "prob_a" not in node.attributes and classes > 2
    return classes * (classes - 1) // 2 if by_pairs else classes


def kernel_params(node: ir.Node) -> tuple[float, float, float]:
    """γ, the constant and the degree."""
    gamma, constant, degree = floats(node, "kernel_params").tolist() or [0.0] * 3
    return gamma, constant, degree


def columns_of(node: ir.Node) -> int:
    """The columns of a machine's input.

    Raises:
        ValueError: its attributes do not say so, or are none that are rewritten.
    """
    if node.op_type == "SVMRegressor":
        supports = max(node.attributes.get_int("n_supports", 0), 0)
        rows, sizes = supports or 1, {"rho": 1, "coefficients": supports}
    else:
        supports = sum(support_counts(node))
        rows, sizes = supports or rows_of_labels(node), sizes_of_classifier(node)
    if not supports:
        sizes.pop("coefficients", None)
    if len(floats(node, "kernel_params")) not in (0, 3):
        raise ValueError("kernel_params are not three numbers")
    name = "support_vectors" if supports else "coefficients"
    found = len(floats(node, name))
    if not found or found % rows:
        raise ValueError(f"{found} {name} for {rows} rows")
    for each, size in sizes.items():
        if (given := len(floats(node, each))) != size:
            raise ValueError(f"{given} {each}, and {size} are rewritten")
    return found // rows


def sizes_of_classifier(node: ir.Node) -> dict[str, int]:
    """How many numbers the attributes of a classifier must hold.

    Raises:
        ValueError: its classes are none that are rewritten.
    """
    per_class, classes = support_counts(node), rows_of_labels(node)
    if not 2 <= classes <= MOST_CLASSES:
        raise ValueError(f"{classes} classes, and 2 to {MOST_CLASSES} are rewritten")
    if not per_class:
        return {"rho": 1}
    if len(per_class) != classes or min(per_class) < 1:
        raise ValueError(f"vectors_per_class {per_class} for {classes} classes")
    pairs = classes * (classes - 1) // 2
    probabilities = {name: pairs for name in ("prob_a", "prob_b") if name in node.attributes}
    return {"coefficients": (classes - 1) * sum(per_class), "rho": pairs, **probabilities}
