"""LiftAttributesPass: numbers that classical-ML operators hold in attributes become initializers.

Before: LinearClassifier, LinearRegressor, SVMRegressor with a linear kernel, and Scaler hold their
weights as attributes, as converters of classical models write them.  After: Gemm, or Sub and Mul,
on initializers called ``NODE.coefficients``, ``NODE.intercepts`` …; a classifier stays behind with
the identity as its coefficients: its labels, and what it makes of the scores, are its own.

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

from gdu_compile import model_io, runtime
from gdu_compile.bits import max_abs_diff, same_bits
from gdu_compile.contracts import State
from gdu_compile.digits import Array
from gdu_compile.errors import GduError, UnsupportedError
from gdu_compile.names import Names

ML = "ai.onnx.ml"
ROWS = (1, 7, 64)
"""Samples that a rewritten node is compared on; a single one takes another kernel."""
MOST_SCORES = 4096
"""Of a classifier; the identity that it is left with has the square of that."""
LEAST_OPSET = 11
"""Gemm without a bias."""
TREES = {"TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"}
OTHERS = {"SVMClassifier": "weights of support vectors", "Imputer": "values to put in"}


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


def label(node: ir.Node) -> str:
    """What the weights of a node are called by."""
    return node.name or str(node.outputs[0].name)


def floats(node: ir.Node, name: str) -> Array:
    """An attribute of numbers, float32; empty where it is not there."""
    attribute = node.attributes.get(name)
    return np.array([] if attribute is None else attribute.as_floats(), dtype=np.float32)


def is_lifted(node: ir.Node) -> bool:
    """Whether it is what is left of a classifier."""
    weights, before = floats(node, "coefficients"), node.inputs[0]
    size = round(len(weights) ** 0.5)
    producer = None if before is None else before.producer()
    return (
        node.op_type == "LinearClassifier"
        and producer is not None and producer.op_type == "Gemm"
        and np.array_equal(weights, np.eye(size, dtype=np.float32).reshape(-1))
        and not floats(node, "intercepts").any()
    )  # fmt: skip


class Rewriter:
    """Puts nodes in front of, or in place of, one node."""

    def __init__(self, node: ir.Node, model: ir.Model) -> None:
        self.node, self.model = node, model
        self.names = Names(model)
        self.nodes: list[ir.Node] = []

    def weight(self, what: str, array: Array) -> ir.Value:
        """An initializer that belongs to the node."""
        name = self.names.fresh(f"{label(self.node)}.{what}")
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape),
                         const_value=tensor)  # fmt: skip
        self.model.graph.register_initializer(value)
        return value

    def op(
        self, op_type: str, *inputs: ir.Value, dtype: ir.DataType = ir.DataType.FLOAT,
        **attributes: int,
    ) -> ir.Value:  # fmt: skip
        """A node of the default domain with one output."""
        name = self.names.fresh(f"{label(self.node)}/{op_type}")
        output = ir.Value(name=self.names.fresh(f"{name}_out"), type=ir.TensorType(dtype))
        self.nodes.append(ir.node(op_type, list(inputs), attributes, outputs=[output], name=name))
        return output

    def data(self) -> ir.Value:
        """The node's input as float32, as the operator itself takes it."""
        (x, *_) = self.node.inputs
        assert x is not None
        if x.dtype == ir.DataType.FLOAT:
            return x
        return self.op("Cast", x, to=ir.DataType.FLOAT.value)

    def varying(self, x: ir.Value, weight: ir.Value) -> ir.Value:
        """The weight, as something that depends on x: for a constant one onnxruntime takes another
        kernel at one sample, whose last bits are not the operator's."""
        total = self.op("ReduceSum", x, keepdims=0)
        never = self.op("Less", total, total, dtype=ir.DataType.BOOL)
        return self.op("Where", never, total, weight)

    def linear(self, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        """x·Wᵀ + b: W is [rows of W, columns of x]."""
        inputs = [x, self.varying(x, weight), *([] if bias is None else [bias])]
        return self.op("Gemm", *inputs, transB=1)

    def finish(self, result: ir.Value | None = None) -> None:
        """Insert the nodes before the node; ``result`` takes its place."""
        graph = self.node.graph
        assert isinstance(graph, ir.Graph)
        graph.insert_before(self.node, self.nodes)
        if result is None:
            return
        (output,) = self.node.outputs
        name = str(output.name)
        output.name = self.names.fresh(f"{name}_before")
        result.name, result.shape = name, output.shape
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        graph.remove(self.node, safe=True)


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


def rows_of_labels(node: ir.Node) -> int:
    """How many scores there are, where no intercepts say it."""
    kinds = [node.attributes.get(f"classlabels_{kind}") for kind in ("ints", "strings")]
    return max(len(kind.value) for kind in kinds if kind is not None)


def linear_regressor(r: Rewriter) -> None:
    """x·Wᵀ + b."""
    rows = r.node.attributes.get_int("targets", 1)
    intercepts = floats(r.node, "intercepts")
    x, bias = r.data(), r.weight("intercepts", intercepts) if len(intercepts) else None
    weight = r.weight("coefficients", floats(r.node, "coefficients").reshape(rows, -1))
    r.finish(r.linear(x, weight, bias))


def svm_regressor(r: Rewriter) -> None:
    """x·Wᵀ + ρ, or by way of the products with the support vectors."""
    supports = r.node.attributes.get_int("n_supports", 0)
    x, rho = r.data(), r.weight("rho", floats(r.node, "rho"))
    coefficients = r.weight("coefficients", floats(r.node, "coefficients").reshape(1, -1))
    if supports:
        vectors = r.weight(
            "support_vectors", floats(r.node, "support_vectors").reshape(supports, -1)
        )
        x = r.linear(x, vectors, None)
    r.finish(r.linear(x, coefficients, rho))


def scaler(r: Rewriter) -> None:
    """(x − offset)·scale."""
    x = r.data()
    shifted = r.op("Sub", x, r.weight("offset", floats(r.node, "offset")))
    r.finish(r.op("Mul", shifted, r.weight("scale", floats(r.node, "scale"))))


LIFTED: dict[str, Callable[[Rewriter], None]] = {
    "LinearClassifier": linear_classifier, "LinearRegressor": linear_regressor,
    "SVMRegressor": svm_regressor, "Scaler": scaler,
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
    if node.op_type == "SVMRegressor":
        kernel = node.attributes.get_string("kernel_type", "LINEAR")
        if kernel != "LINEAR" or node.attributes.get_int("one_class", 0) != 0:
            return f"the kernel {kernel} is not rewritten, nor is a single class"
    return None


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
        if attribute.name in {"coefficients", "intercepts", "offset", "scale", "support_vectors"}:
            attribute.floats[:] = rng.standard_normal(len(attribute.floats)).astype(np.float32)


def worst_difference(
    proto: onnx.NodeProto, opset: tuple[int, int], dtype: ir.DataType, rng: np.random.Generator
) -> str | None:
    """How the results of a node and of its rewritten form differ, with the figures, or None."""
    alone = alone_in_a_model(proto, opset, dtype)
    columns = columns_of(alone.graph[0])
    rewritten = alone.clone()
    lift(next(iter(rewritten.graph)), rewritten)
    with runtime.on_disk(alone) as old, runtime.on_disk(rewritten) as new:
        for rows in ROWS:
            x = {str(alone.graph.inputs[0].name): samples(rng, rows, columns, dtype)}
            for level in runtime.LEVELS:
                expected = runtime.run(old, x, level=level)
                got = runtime.run(new, x, list(expected), level=level)
                for name, array in expected.items():
                    if not same_bits(array, got[name]):
                        gap = max_abs_diff(array, got[name])
                        return (f"rewritten, they give output {name!r} that differs by {gap:.2g} "
                                f"({rows} samples, optimisations: {level})")  # fmt: skip
    return None


def samples(rng: np.random.Generator, rows: int, columns: int, dtype: ir.DataType) -> Array:
    """Seeded inputs of a node."""
    return (3 * rng.standard_normal((rows, columns))).astype(dtype.numpy())


def columns_of(node: ir.Node) -> int:
    """The columns of a node's input; ValueError where its attributes do not say so."""
    if node.op_type == "Scaler":
        return max(len(floats(node, "scale")), len(floats(node, "offset")))
    name, rows = "coefficients", len(floats(node, "intercepts"))
    if node.op_type == "SVMRegressor":
        rows = node.attributes.get_int("n_supports", 0)
        name, rows = ("support_vectors", rows) if rows else ("coefficients", 1)
    elif not rows and node.op_type == "LinearClassifier":
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
