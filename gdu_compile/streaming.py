"""One protobuf file written tensor by tensor: at no time are two of them in memory for it.

A protobuf message is a sequence of fields, each with its length ahead (protobuf.dev, Encoding).
Serialised as one object a model is there three times: as tensors, as messages, as bytes.  Here
the main graph's initializers, which are nearly all of it, are left out of the message and follow
it field by field; what is read back is the same model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from gdu_compile import map_types

BYTES = 2
"""Wire type of a field with its length ahead."""

GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number

SMALL = 1 << 16
"""Tensors up to this size are serialised as messages."""


def write(model: ir.Model, path: Path) -> None:
    """Write the model into one file; less than 2 GB, external tensors become internal."""
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()
               if value.const_value is not None}  # fmt: skip
    proto = without_initializers(model)
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    messages = [message(name, tensor) for name, tensor in tensors.items()]
    sizes = [len(head) + len(start) + length for head, start, length in messages]
    starts = [header(INITIALIZER, size) for size in sizes]
    with path.open("wb") as file:
        file.write(proto.SerializeToString(deterministic=True))
        file.write(header(GRAPH, len(graph) + sum(map(len, starts)) + sum(sizes)))
        file.write(graph)
        for name, before, (head, start, length) in zip(tensors, starts, messages, strict=True):
            file.write(before + head + start)
            if length:
                write_bytes(name, tensors[name], file, length)


def write_bytes(name: str, tensor: ir.TensorProtocol, file: BinaryIO, length: int) -> None:
    """The contents of a tensor, which must be as long as was said ahead of them."""
    begin = file.tell()
    if hasattr(tensor, "tofile"):  # onnx_ir's own tensors: without a copy
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())
    if file.tell() != begin + length:
        raise RuntimeError(f"tensor {name!r} is not of {length} bytes")


def message(name: str, tensor: ir.TensorProtocol) -> tuple[bytes, bytes, int]:
    """A TensorProto as what goes before its bytes, their header, and their number."""
    if tensor.nbytes <= SMALL or tensor.dtype == ir.DataType.STRING:
        return small(name, tensor).SerializeToString(deterministic=True), b"", 0
    head = onnx.TensorProto(name=name, data_type=tensor.dtype.value,
                            dims=tensor.shape.numpy())  # fmt: skip
    return (head.SerializeToString(deterministic=True), header(RAW_DATA, tensor.nbytes),
            tensor.nbytes)  # fmt: skip


def small(name: str, tensor: ir.TensorProtocol) -> onnx.TensorProto:
    """A TensorProto with its bytes, also those of an external tensor.

    ``ir.to_proto`` asks a tensor which of its protocols it fits: 0.2 ms each.
    """
    if tensor.dtype == ir.DataType.STRING:
        proto: onnx.TensorProto = ir.to_proto(tensor)
        proto.name = name
        return proto
    return onnx.TensorProto(name=name, data_type=tensor.dtype.value,
                            dims=tensor.shape.numpy(), raw_data=tensor.tobytes())  # fmt: skip


def header(field: int, length: int) -> bytes:
    """The tag and length of a field."""
    return varint(field << 3 | BYTES) + varint(length)


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the upper bit says that more follow.

    Example:
        >>> varint(300).hex()
        'ac02'
    """
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def without_initializers(model: ir.Model) -> onnx.ModelProto:
    """The message of a model, less the main graph's initializers."""
    with emptied(model.graph):
        proto: onnx.ModelProto = ir.to_proto(model)
    del proto.graph.initializer[:]
    map_types.put_back(proto.graph)
    return proto


@contextmanager
def emptied(graph: ir.Graph) -> Iterator[None]:
    """The initializers of a graph without their contents, for the time being."""
    kept = {value: value.const_value for value in graph.initializers.values()}
    try:
        for value in kept:
            value.const_value = ir.Tensor(np.zeros(0, dtype=np.uint8), name=value.name)
        yield
    finally:
        for value, tensor in kept.items():
            value.const_value = tensor


def check(model: ir.Model) -> None:
    """onnx.checker on the model, its large initializers being looked at as inputs.

    Raises:
        onnx.checker.ValidationError: it is no valid model.
    """
    onnx.checker.check_model(described(model))


def described(model: ir.Model) -> onnx.ModelProto:
    """The message of a model, with its large initializers as inputs."""
    proto = without_initializers(model)
    given = {value.name for value in proto.graph.input}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or name in given:
            continue
        if tensor.nbytes <= SMALL or tensor.dtype == ir.DataType.STRING:
            proto.graph.initializer.append(small(name, tensor))
        else:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(
                name, tensor.dtype.value, list(tensor.shape.numpy())
            ))  # fmt: skip
    return proto
