"""Reading a model file: what onnx_ir would lose or refuse is put into words that it has.

Sparse initializers become dense, types of maps go into metadata (``map_types.py``), and a missing
import of an operator set, which onnxruntime takes as it comes, is added.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from gdu_compile import map_types
from gdu_compile.contracts import state_of
from gdu_compile.errors import UnsupportedError

DENSE_BYTES = 1 << 31
"""Sparse tensors up to this size, made dense, are read."""

IMPLIED = {"com.microsoft": 1, "ai.onnx.ml": 3}
"""Operator sets that onnxruntime has without an import, and the version that it then means."""


def read(path: Path) -> ir.Model:
    """The model in a file; what was changed is among its state's notes.

    Raises:
        UnsupportedError: a sparse tensor is too large to be dense.
        Exception: protobuf and onnx_ir raise a dozen types on damaged input.
    """
    proto = onnx.load(path, load_external_data=False)
    notes = [*dense(proto.graph, path), *imports(proto)]
    map_types.take_off(proto.graph)
    proto.graph.name = proto.graph.name or "graph"
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, path.parent)
    if notes:
        state_of(model).notes += notes
    return model


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                if inner.node or inner.initializer or inner.output:
                    yield from graphs(inner)


def dense(whole: onnx.GraphProto, path: Path) -> list[str]:
    """Make all sparse tensors dense; a sentence about them."""
    names = []
    for graph in graphs(whole):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(as_dense(sparse, path))
            names.append(sparse.values.name)
        del graph.sparse_initializer[:]
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
                    tensor = as_dense(attribute.sparse_tensor, path)
                    attribute.ClearField("sparse_tensor")
                    attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
                    attribute.t.CopyFrom(tensor)
                    names.append(node.output[0])
    listed = ", ".join(map(repr, names))
    return [f"sparse in the file, dense in what is written: {listed}"] if names else []


def as_dense(sparse: onnx.SparseTensorProto, path: Path) -> onnx.TensorProto:
    """A sparse tensor as an ordinary one.

    Raises:
        UnsupportedError: it is too large, or kept in another file.
        ValueError: an index is negative.
    """
    if onnx.TensorProto.EXTERNAL in (sparse.values.data_location, sparse.indices.data_location):
        raise UnsupportedError(f"{path}: the sparse tensor {sparse.values.name!r} is in another "
                               "file; save it inside the model")  # fmt: skip
    values = onnx.numpy_helper.to_array(sparse.values)
    indices = onnx.numpy_helper.to_array(sparse.indices)
    if indices.size and indices.min() < 0:
        raise ValueError(f"the sparse tensor {sparse.values.name!r} has a negative index")
    if math.prod(sparse.dims) * values.itemsize > DENSE_BYTES or min(sparse.dims, default=1) < 0:
        raise UnsupportedError(
            f"{path}: the sparse tensor {sparse.values.name!r} of shape {list(sparse.dims)} is too "
            "large to be made dense; export it as an ordinary tensor"
        )
    array = np.zeros(list(sparse.dims), dtype=values.dtype)
    if indices.ndim == 2:
        array[tuple(indices.T)] = values
    else:
        array.reshape(-1)[indices] = values
    return onnx.numpy_helper.from_array(array, sparse.values.name)


def imports(proto: onnx.ModelProto) -> list[str]:
    """Add the imports that onnxruntime does without; a sentence about them."""
    used = {node.domain for graph in graphs(proto.graph) for node in graph.node}
    missing = sorted(used & set(IMPLIED) - {entry.domain for entry in proto.opset_import})
    for domain in missing:
        proto.opset_import.append(onnx.helper.make_opsetid(domain, IMPLIED[domain]))
    return [f"the model imports no operator set {domain}, version {IMPLIED[domain]} is taken"
            for domain in missing]  # fmt: skip
