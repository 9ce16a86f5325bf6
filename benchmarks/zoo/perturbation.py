"""The oracle of the zoo: a second file of the same network, in which every weight is another one.

It is written with protobuf alone, by no code of the compiler, so that the comparison with it is
one with somebody else's file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from gdu_compile.digits import Array
from gdu_compile.weights import STRUCTURE

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE,
          TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2}  # fmt: skip
INTEGERS = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT4,
            TensorProto.UINT4}  # fmt: skip
LARGEST = 1e30
"""Above it a number stands for −∞ in a mask; it and ±∞ keep their values."""
STEP = 1 / 64
"""The largest relative change; 0 becomes a number as small as that."""
PIECE = 1 << 22
"""Numbers that are changed at once: the largest networks of the zoo have weights of 400 MB."""

# operator → the inputs at which integers are weights of a quantized network
QUANTIZED = {
    "DequantizeLinear": {0}, "QLinearConv": {3, 8}, "QLinearMatMul": {0, 3}, "ConvInteger": {1},
    "MatMulInteger": {1}, "MatMulNBits": {1}, "GatherBlockQuantized": {0}, "Gather": {0},
    "QGemm": {3, 6}, "MatMulIntegerToFloat": {1}, "DynamicQuantizeMatMul": {1},
    "QLinearAdd": {0, 3}, "QLinearMul": {0, 3}, "QAttention": {1}, "DynamicQuantizeLSTM": {1, 2},
    "Transpose": {0}, "Reshape": {0},
}  # fmt: skip
# operator → the inputs that are numbers of its definition: x ** 2 is another network than x ** 2.01
DEFINITIONS = {"Pow": {1}, "Dropout": {1}, "Clip": {1, 2}, "CastLike": {1}}
# operator → the attributes in which converters of classical models keep weights
ATTRIBUTES = {
    "LinearClassifier": ("coefficients", "intercepts"),
    "LinearRegressor": ("coefficients", "intercepts"),
    "Scaler": ("offset", "scale"),
    "SVMClassifier": ("coefficients", "prob_a", "prob_b", "rho", "support_vectors"),
    "SVMRegressor": ("coefficients", "rho", "support_vectors"),
    "TreeEnsembleClassifier": ("class_weights",),
    "TreeEnsembleRegressor": ("target_weights",),
}
Use = tuple[str, int]
"""(operator, number of the input)."""


@dataclass
class Perturbation:
    """What was changed.

    Attributes:
        rng: seeded.
        tensors: names of the tensors and attributes that are other ones now.
        elements: how many numbers they hold.
    """

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    tensors: list[str] = field(default_factory=list)
    elements: int = 0

    def moved(self, array: Array, name: str) -> Array:
        """Every element a little elsewhere; integers differ in their last bit, or not at all."""
        changed = np.array(array)
        flat = changed.reshape(-1)
        for start in range(0, flat.size, PIECE):
            piece = flat[start : start + PIECE]
            piece[:] = self.other_numbers(piece).astype(piece.dtype)
        self.tensors.append(name)
        self.elements += array.size
        return changed

    def other_numbers(self, numbers: Array) -> Array:
        """The same for a few numbers, in a wider dtype."""
        kind = numbers.dtype
        if kind.kind in "iu" or kind.name in {"int4", "uint4"}:
            return numbers.astype(np.int64) ^ self.rng.integers(0, 2, numbers.shape)
        exact = numbers.astype(np.float64)
        noise = self.rng.uniform(-STEP, STEP, numbers.shape)
        kept = ~np.isfinite(exact) | (np.abs(exact) > min(LARGEST, half_the_largest(kind)))
        return np.where(kept, exact, np.where(exact == 0, noise, exact * (1 + noise)))


def half_the_largest(kind: np.dtype[np.generic]) -> float:
    """Of a float dtype: a step from there leads to no infinity."""
    finfo: Any = ml_dtypes.finfo
    return float(finfo(kind).max) / 2


def perturb(model: ModelProto) -> Perturbation:
    """Change every weight of a model, in place.

    Weights are initializers of the main graph and of branches, Constant nodes of more than one
    element, what ConstantOfShape makes of a constant shape, and attributes of classical models.
    Shapes, axes, exponents and bounds are not.
    """
    done = Perturbation()
    for graph in graphs(model.graph):
        uses = uses_in(graph.node)
        for output in graph.output:
            uses.setdefault(output.name, []).append(("", 0))
        for tensor in graph.initializer:
            if is_weight(tensor.data_type, uses.get(tensor.name, [])):
                move_tensor(tensor, tensor.name, done)
        perturb_nodes(graph.node, uses, done)
    for function in model.functions:
        perturb_nodes(function.node, uses_in(function.node), done)
    perturb_fills(model, done)
    return done


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and all branches in it."""
    yield graph
    for node in graph.node:
        for branch in branches(node):
            yield from graphs(branch)


def branches(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in the attributes of a node."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def uses_in(nodes: Sequence[NodeProto]) -> dict[str, list[Use]]:
    """Name → its uses in these nodes and in their branches."""
    found: dict[str, list[Use]] = {}
    for node in nodes:
        for index, name in enumerate(node.input):
            found.setdefault(name, []).append((node.op_type, index))
        for branch in branches(node):
            for name, inner in uses_in(branch.node).items():
                found.setdefault(name, []).extend(inner)
            for output in branch.output:
                found.setdefault(output.name, []).append(("", 0))
    return found


def is_weight(dtype: int, uses: Sequence[Use]) -> bool:
    """Whether a constant is a number that a network learns."""
    for table in (STRUCTURE, DEFINITIONS):
        if any(index in table.get(operator, ()) for operator, index in uses):
            return False
    if any(operator.startswith("Reduce") and index == 1 for operator, index in uses):
        return False
    if dtype in INTEGERS:
        return any(index in QUANTIZED.get(operator, ()) for operator, index in uses)
    return dtype in FLOATS and bool(uses)


def move_tensor(tensor: TensorProto, name: str, done: Perturbation) -> None:
    """Other contents for a tensor of at least one element."""
    array = numpy_helper.to_array(tensor)
    if array.size:
        moved = done.moved(array, name)
        changed = numpy_helper.from_array(moved, tensor.name)
        tensor.CopyFrom(changed)


def perturb_nodes(
    nodes: Sequence[NodeProto], uses: dict[str, list[Use]], done: Perturbation
) -> None:
    """Constant nodes that hold more than one number, and attributes of classical models."""
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                many = np.prod(attribute.t.dims) > 1
                if many and is_weight(attribute.t.data_type, uses.get(node.output[0], [])):
                    move_tensor(attribute.t, node.output[0], done)
            elif attribute.name in ATTRIBUTES.get(node.op_type, ()):
                array = np.array(attribute.floats, np.float32)
                attribute.floats[:] = done.moved(array, f"{node.name}.{attribute.name}").tolist()


def perturb_fills(model: ModelProto, done: Perturbation) -> None:
    """ConstantOfShape on a constant shape in the main graph: an initializer of other numbers."""
    graph = model.graph
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer
              if tensor.data_type == TensorProto.INT64}  # fmt: skip
    uses = uses_in(graph.node)
    for node in list(graph.node):
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            continue
        fill = numpy_helper.to_array(node.attribute[0].t) if node.attribute else np.zeros(1, "f4")
        filled = np.full(shapes[node.input[0]], fill.item(), fill.dtype)
        dtype = onnx.helper.np_dtype_to_tensor_dtype(fill.dtype)
        if filled.size > 1 and is_weight(dtype, uses.get(node.output[0], [])):
            moved = done.moved(filled, node.output[0])
            graph.node.remove(node)
            graph.initializer.append(numpy_helper.from_array(moved, node.output[0]))
            inputs_alone(model)


def inputs_alone(model: ModelProto) -> None:
    """Before IR version 4 every initializer had to be an input, too; from there on such an input
    may be overridden, and onnxruntime does not take it for a constant."""
    if model.ir_version < 4:
        model.ir_version = 4
        weights = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in weights]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
