"""LiftAttributesPass: numbers that classical-ML operators hold in attributes become initializers.

Before: LinearClassifier, LinearRegressor, SVMClassifier, SVMRegressor and Scaler hold their weights
as attributes, as converters of classical models write them.  After: Gemm, or Sub and Mul, on
initializers called ``NODE.coefficients``, ``NODE.intercepts`` …; a classifier stays behind with the
identity as its coefficients: its labels, and what it makes of the scores, are its own.  Support
vector machines: svm_nodes.

Each rewritten node is compared with the original in onnxruntime, bit for bit, at both levels; where
a bit differs it stays as it was.  State: ``attributes`` (nodes whose numbers stay attributes, and
why).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import onnx
import onnx_ir as ir
from gdu_compile.passes._base import GduPass

from gdu_compile import model_io, runtime, svm_nodes
from gdu_compile.bits import max_abs_diff, same_bits
from gdu_compile.contracts import State
from gdu_compile.digits import Array
from gdu_compile.errors import GduError, UnsupportedError
from gdu_compile.node_rewriter import ML, Rewriter, floats, label, rows_of_labels

ROWS = (1, 7, 64)
"""Samples that a rewritten node is compared on; a single one takes another kernel."""
MOST_SCORES = 4096
"""Of a classifier; the identity that it is left with has the square of that."""
WEIGHTS = {"coefficients", "intercepts", "offset", "scale", "rho", "prob_a", "prob_b"}
LEAST_OPSET = 11
"""Gemm without a bias."""
TREES = {"TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"}
OTHERS = {"Imputer": "values to put in"}
MACHINES = {"SVMClassifier", "SVMRegressor"}


class LiftAttributesPass(GduPass):
    """Make initializers of the weights that classical-ML operators hold in attributes."""

    gives = ("attributes",)

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        state.attributes = {}
        lifted = 0
        for graph in model.graphs():
            for node in [node for node in graph if node.domain == ML]:
                reason = stays(node)
                if reason is None and node.op_type in LIFTED and not is_lifted(node):
                    reason = difference(node, model)
                    if reason is None:
                        lift(node, model)
                        lifted += 1
                if reason is not None:
                    state.attributes[label(node)] = reason
        return {"nodes": lifted}


def raised(model: ir.Model) -> ir.Model:
    """The model at an opset at which weights can be lifted, where it has operators that hold any
    and can be raised; itself otherwise."""
    if ML not in model.opset_imports or model_io.opset_of(model) >= LEAST_OPSET:
        return model
    try:
        return model_io.raise_opset(model)
    except UnsupportedError:
        return model


def stays(node: ir.Node) -> str | None:
    """Why the numbers of a node are not lifted, whatever they are, or None."""
    if node.op_type in TREES:
        return f"{node.op_type} holds its trees in attributes, and no value that could be switched"
    if node.op_type in OTHERS:
        return f"{node.op_type} holds {OTHERS[node.op_type]} in attributes, which are not rewritten"
    return None


def is_lifted(node: ir.Node) -> bool:
    """Whether it is what is left of a node that was rewritten."""
    if node.op_type in MACHINES:
        return svm_nodes.is_left(node)
    weights, before = floats(node, "coefficients"), node.inputs[0]
    size = round(len(weights) ** 0.5)
    producer = None if before is None else before.producer()
    return (
        node.op_type == "LinearClassifier"
        and producer is not None and producer.op_type == "Gemm"
        and np.array_equal(weights, np.eye(size, dtype=np.float32).reshape(-1))
        and not floats(node, "intercepts").any()
    )  # fmt: skip


def linear_classifier(r: Rewriter) -> None:
    """Scores by Gemm; the classifier gets them with the identity as its coefficients."""
    coefficients, intercepts = floats(r.node, "coefficients"), floats(r.node, "intercepts")
    rows = len(intercepts) or rows_of_labels(r.node)
    x, bias = r.data(), r.weight("intercepts", intercepts) if len(intercepts) else None
    weight = r.weight("coefficients", coefficients.reshape(rows, -1))
    scores = r.linear(x, weight, bias)
    r.finish()
    r.node.replace_input_with(0, scores)
    identity = np.eye(rows, dtype=np.float32).reshape(-1).tolist()
    r.node.attributes["coefficients"] = ir.AttrFloat32s("coefficients", identity)
    r.node.attributes["intercepts"] = ir.AttrFloat32s("intercepts", [0.0] * rows)


def linear_regressor(r: Rewriter) -> None:
    """x·Wᵀ + b."""
    rows = r.node.attributes.get_int("targets", 1)
    intercepts = floats(r.node, "intercepts")
    x, bias = r.data(), r.weight("intercepts", intercepts) if len(intercepts) else None
    weight = r.weight("coefficients", floats(r.node, "coefficients").reshape(rows, -1))
    r.finish(r.linear(x, weight, bias))


def scaler(r: Rewriter) -> None:
    """(x − offset)·scale."""
    x = r.data()
    shifted = r.op("Sub", x, r.weight("offset", floats(r.node, "offset")))
    r.finish(r.op("Mul", shifted, r.weight("scale", floats(r.node, "scale"))))


LIFTED: dict[str, Callable[[Rewriter], None]] = {
    "LinearClassifier": linear_classifier, "LinearRegressor": linear_regressor,
    "SVMClassifier": svm_nodes.classifier, "SVMRegressor": svm_nodes.regressor, "Scaler": scaler,
}  # fmt: skip
"""Operator → how it is rewritten."""


def lift(node: ir.Node, model: ir.Model) -> None:
    """Rewrite one node."""
    LIFTED[node.op_type](Rewriter(node, model))


def difference(node: ir.Node, model: ir.Model) -> str | None:
    """Why a node is not rewritten: its form, or how far its results would differ; None if not."""
    if (reason := other_form(node, model)) is not None:
        return f"{node.op_type} holds its weights in attributes; {reason}"
    opset = model.opset_imports.get("", 1), model.opset_imports.get(ML, 1)
    content = ir.to_proto(node).SerializeToString()
    (x, *_) = node.inputs
    dtype = ir.DataType.FLOAT if x is None or x.dtype is None else x.dtype
    reason = compared(content, opset, dtype.value)
    return None if reason is None else f"{node.op_type} holds its weights in attributes; {reason}"


def other_form(node: ir.Node, model: ir.Model) -> str | None:
    """What in the form of a node is not rewritten, or None."""
    if (version := model_io.opset_of(model)) < LEAST_OPSET:
        return f"they are lifted from opset {LEAST_OPSET} on, not at {version}"
    (x, *_) = node.inputs
    if x is not None and x.shape is not None and x.shape.rank() != 2:
        return f"its input has {x.shape.rank()} axes, and 2 are rewritten"
    after = node.attributes.get_string("post_transform", "NONE")
    if node.op_type.endswith("Regressor") and after != "NONE":
        return f"post_transform {after} is not rewritten"
    return svm_nodes.other_form(node) if node.op_type in MACHINES else None


@lru_cache(maxsize=64)
def compared(content: bytes, opset: tuple[int, int], dtype: int) -> str | None:
    """Run a node and its rewritten form on seeded inputs; how they differ, or None.

    Args:
        content: the node, serialized.
        opset: of the default domain and of ai.onnx.ml.
        dtype: of its input, as ONNX counts them.
    """
    proto = onnx.NodeProto.FromString(content)
    rng = np.random.default_rng(0)
    for other_weights in (False, True):
        if other_weights:
            shuffle(proto, rng)
        try:
            worst = worst_difference(proto, opset, ir.DataType(dtype), rng)
        except (GduError, ValueError) as error:
            return f"they cannot be rewritten ({model_io.first_line(error)})"
        if worst is not None:
            return worst
    return None


def shuffle(node: onnx.NodeProto, rng: np.random.Generator) -> None:
    """Other weights of the same form: an oracle's may be anything."""
    for attribute in node.attribute:
        if attribute.name == "support_vectors":  # as far from each other as the kernel can tell
            attribute.floats[:] = rng.permutation(attribute.floats)
        elif attribute.name in WEIGHTS:
            attribute.floats[:] = rng.standard_normal(len(attribute.floats)).astype(np.float32)


def worst_difference(
    proto: onnx.NodeProto, opset: tuple[int, int], dtype: ir.DataType, rng: np.random.Generator
) -> str | None:
    """How the results of a node and of its rewritten form differ, with the figures, or None."""
    alone = alone_in_a_model(proto, opset, dtype)
    columns, centres = columns_of(alone.graph[0]), floats(alone.graph[0], "support_vectors")
    rewritten = alone.clone()
    lift(next(iter(rewritten.graph)), rewritten)
    with runtime.on_disk(alone) as old, runtime.on_disk(rewritten) as new:
        for rows in ROWS:
            array = samples(rng, rows, columns, centres)
            x = {str(alone.graph.inputs[0].name): array.astype(dtype.numpy())}
            for level in runtime.LEVELS:
                expected = runtime.run(old, x, level=level)
                got = runtime.run(new, x, list(expected), level=level)
                for name, array in expected.items():
                    if not same_bits(array, got[name]):
                        gap = max_abs_diff(array, got[name])
                        return (f"rewritten, they give output {name!r} that differs by {gap:.2g} "
                                f"({rows} samples, optimisations: {level})")  # fmt: skip
    return None


def samples(rng: np.random.Generator, rows: int, columns: int, centres: Array) -> Array:
    """Seeded inputs of a node; near its support vectors where it has any: far from all of them a
    kernel is 0."""
    noise: Array = rng.standard_normal((rows, columns))
    if not centres.size:
        return 3 * noise
    vectors = centres.reshape(-1, columns)
    near: Array = vectors[rng.integers(0, len(vectors), rows)] + vectors.std() * noise / 2
    return near


def columns_of(node: ir.Node) -> int:
    """The columns of a node's input; ValueError where its attributes do not say so."""
    if node.op_type == "Scaler":
        return max(len(floats(node, "scale")), len(floats(node, "offset")))
    if node.op_type in MACHINES:
        return svm_nodes.columns_of(node)
    name, rows = "coefficients", len(floats(node, "intercepts"))
    if not rows and node.op_type == "LinearClassifier":
        rows = rows_of_labels(node)
    elif not rows:
        rows = node.attributes.get_int("targets", 1)
    size = len(floats(node, name))
    if node.op_type == "LinearClassifier" and rows > MOST_SCORES:
        raise ValueError(f"{rows} scores, and at most {MOST_SCORES} are rewritten")
    if rows < 1 or size % rows:
        raise ValueError(f"{size} {name} for {rows} rows")
    return size // rows


def alone_in_a_model(proto: onnx.NodeProto, opset: Sequence[int], dtype: ir.DataType) -> ir.Model:
    """A model of one node."""
    x = onnx.helper.make_tensor_value_info(proto.input[0], dtype.value, ["N", "F"])
    outputs = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
    graph = onnx.helper.make_graph([proto], "alone", [x], outputs)
    opsets = [onnx.helper.make_opsetid(domain, version)
              for domain, version in zip(("", ML), opset, strict=True)]  # fmt: skip
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))
