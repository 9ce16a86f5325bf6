"""Types of outputs that onnx_ir has no words for: maps, as ZipMap makes them.

They are taken off when a model is read, kept as text in the value's metadata, and put back into
the message when it is written.
"""

from __future__ import annotations

import base64
from pathlib import Path

import onnx
import onnx_ir as ir

KEY = "gdu.map_type"
"""In the metadata of a value: its TypeProto, in base64."""


def take_off(graph: onnx.GraphProto) -> bool:
    """Move the types of all outputs that hold maps into their metadata; whether there were any."""
    inside = [info for info in graph.value_info if holds_map(info.type)]
    for info in inside:
        graph.value_info.remove(info)
    found = [info for info in graph.output if holds_map(info.type)]
    for info in found:
        text = base64.b64encode(info.type.SerializeToString(deterministic=True)).decode()
        info.metadata_props.add(key=KEY, value=text)
        info.ClearField("type")
    return bool(inside or found)


def put_back(graph: onnx.GraphProto) -> None:
    """The types of outputs from their metadata."""
    for info in graph.output:
        for entry in [entry for entry in info.metadata_props if entry.key == KEY]:
            info.type.ParseFromString(base64.b64decode(entry.value))
            info.metadata_props.remove(entry)


def put_back_in(path: Path) -> None:
    """The same for a file that onnx_ir has written; tensors that are kept outside stay there."""
    proto = onnx.load(path, load_external_data=False)
    put_back(proto.graph)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def has_maps(model: ir.Model) -> bool:
    """Whether an output holds maps."""
    return any(KEY in value.metadata_props for value in model.graph.outputs)


def holds_map(proto: onnx.TypeProto) -> bool:
    """Whether a type is a map, or a sequence or an optional of such."""
    kind = proto.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        return holds_map(getattr(proto, kind).elem_type)
    return bool(kind == "map_type")
