"""Collects new nodes for a graph: unique names, dtypes, shapes, and which pass put them there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from gdu_compile.contracts import PASS_KEY
from gdu_compile.digits import Array
from gdu_compile.names import Names

FLOAT, INT32 = ir.DataType.FLOAT, ir.DataType.INT32
INT64, BOOL = ir.DataType.INT64, ir.DataType.BOOL
INT16, UINT16 = ir.DataType.INT16, ir.DataType.UINT16
Dims = Iterable[int | ir.SymbolicDim | str | None]
Attribute = int | float | str | list[int] | ir.Graph | ir.TensorProtocol


class Builder:
    """Collects new nodes, for the main graph or for a branch.

    Args:
        names: the model's name generator.
        origin: class name of the pass, written into each node's metadata.
    """

    def __init__(self, names: Names, origin: str) -> None:
        self.names = names
        self.origin = origin
        self.nodes: list[ir.Node] = []

    def op(
        self,
        op_type: str,
        *inputs: ir.Value,
        name: str,
        dtype: ir.DataType = FLOAT,
        shape: Dims | None = None,
        **attributes: Attribute,
    ) -> ir.Value:
        """One node with one output called ``name`` (made unique)."""
        return self.multi_op(op_type, *inputs, outputs=[(name, dtype, shape)], **attributes)[0]

    def multi_op(
        self,
        op_type: str,
        *inputs: ir.Value,
        outputs: Iterable[tuple[str, ir.DataType, Dims | None]],
        **attributes: Attribute,
    ) -> Sequence[ir.Value]:
        """One node with several outputs, each (name, dtype, shape)."""
        values = [
            ir.Value(
                name=self.names.fresh(name),
                type=ir.TensorType(dtype),
                shape=None if shape is None else ir.Shape(shape),
            )
            for name, dtype, shape in outputs
        ]
        node = ir.node(
            op_type,
            list(inputs),
            attributes,
            outputs=values,
            name=self.names.fresh(f"{values[0].name}/{op_type}"),
            metadata_props={PASS_KEY: self.origin},
        )
        self.nodes.append(node)
        return node.outputs

    def constant(self, array: Array, name: str) -> ir.Value:
        """A Constant node that holds ``array``."""
        # The tensor gets the value's own name, so that equal input gives equal bytes.
        tensor = ir.tensor(array, name=name)
        return self.op("Constant", name=name, dtype=tensor.dtype, shape=array.shape, value=tensor)

    def float(self, number: float, name: str, dtype: ir.DataType = FLOAT) -> ir.Value:
        """A scalar constant, float32 unless said."""
        return self.constant(np.array(number, dtype=dtype.numpy()), name)

    def cast(self, value: ir.Value, dtype: ir.DataType, name: str, shape: Dims) -> ir.Value:
        """The value in another dtype; itself when it is of that dtype already."""
        if value.dtype == dtype:
            return value
        return self.op("Cast", value, name=name, dtype=dtype, shape=shape, to=dtype.value)

    def ints(self, numbers: Sequence[int], name: str) -> ir.Value:
        """A 1-D int64 constant."""
        return self.constant(np.array(numbers, dtype=np.int64), name)

    def branch(self, outputs: Sequence[ir.Value], name: str) -> ir.Graph:
        """The collected nodes as the body of an If branch; empties the builder."""
        nodes, self.nodes = self.nodes, []
        return ir.Graph([], list(outputs), nodes=nodes, name=self.names.fresh(name))
