"""What a node of ai.onnx.ml holds in attributes, and a builder that puts nodes in its place."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from gdu_compile.digits import Array
from gdu_compile.names import Names

ML = "ai.onnx.ml"


def label(node: ir.Node) -> str:
    """What the weights of a node are called by."""
    return node.name or str(node.outputs[0].name)


def floats(node: ir.Node, name: str) -> Array:
    """An attribute of numbers, float32; empty where it is not there."""
    attribute = node.attributes.get(name)
    return np.array([] if attribute is None else attribute.as_floats(), dtype=np.float32)


def rows_of_labels(node: ir.Node) -> int:
    """How many scores there are, where no intercepts say it."""
    kinds = [node.attributes.get(f"classlabels_{kind}") for kind in ("ints", "strings")]
    return max((len(kind.value) for kind in kinds if kind is not None), default=0)


class Rewriter:
    """Puts nodes in front of, or in place of, one node."""

    def __init__(self, node: ir.Node, model: ir.Model) -> None:
        self.node, self.model = node, model
        self.names = Names(model)
        self.nodes: list[ir.Node] = []
        self.never: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}

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
        domain: str = "", **attributes: Any,
    ) -> ir.Value:  # fmt: skip
        """A node with one output."""
        name = self.names.fresh(f"{label(self.node)}/{op_type}")
        output = ir.Value(name=self.names.fresh(f"{name}_out"), type=ir.TensorType(dtype))
        node = ir.node(op_type, list(inputs), attributes, domain=domain, outputs=[output],
                       name=name)  # fmt: skip
        self.nodes.append(node)
        return output

    def reshape(self, value: ir.Value, *sizes: int) -> ir.Value:
        """The same numbers in another shape."""
        return self.op(
            "Reshape", value, self.weight("shape", np.array(sizes)), dtype=dtype_of(value)
        )

    def columns(self, value: ir.Value, which: Array) -> ir.Value:
        """Some columns of [N, columns], in this order."""
        chosen = self.weight("columns", which.astype(np.int64))
        return self.op("Gather", value, chosen, dtype=dtype_of(value), axis=1)

    def data(self) -> ir.Value:
        """The node's input as float32, as the operator itself takes it."""
        (x, *_) = self.node.inputs
        assert x is not None
        if x.dtype == ir.DataType.FLOAT:
            return x
        return self.op("Cast", x, to=ir.DataType.FLOAT.value)

    def varying(self, x: ir.Value, weight: ir.Value) -> ir.Value:
        """The weight, as something that depends on x: for a constant one onnxruntime takes another
        kernel at one sample, whose last bits are not the operator's; and what is computed of the
        weight alone would be one more."""
        if x not in self.never:
            total = self.op("ReduceSum", x, keepdims=0)
            self.never[x] = total, self.op("Less", total, total, dtype=ir.DataType.BOOL)
        total, never = self.never[x]
        return self.op("Where", never, total, weight)

    def linear(
        self, x: ir.Value, weight: ir.Value, bias: ir.Value | None, **attributes: Any
    ) -> ir.Value:
        """x·Wᵀ + b: W is [rows of W, columns of x]."""
        inputs = [x, self.varying(x, weight), *([] if bias is None else [bias])]
        return self.op("Gemm", *inputs, transB=1, **attributes)

    def finish(self, result: ir.Value | None = None) -> None:
        """Insert the nodes before the node; ``result`` takes its place."""
        graph = self.node.graph
        assert isinstance(graph, ir.Graph)
        graph.insert_before(self.node, self.nodes)
        if result is None:
            return
        (output,) = self.node.outputs
        self.put(result, output)
        graph.remove(self.node, safe=True)

    def put(self, result: ir.Value, output: ir.Value) -> None:
        """A value takes the name and the uses of an output of the node."""
        name = str(output.name)
        output.name = self.names.fresh(f"{name}_before")
        result.name, result.shape = name, output.shape
        output.replace_all_uses_with(result, replace_graph_outputs=True)


def dtype_of(value: ir.Value) -> ir.DataType:
    """Of a value that has one."""
    assert value.dtype is not None
    return value.dtype
