"""Mutations of ONNX files: by the fields of the message, and by tricks that need a plan."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper, parser

from fuzz import wild

INTEGERS = {FieldDescriptor.CPPTYPE_INT32: 31, FieldDescriptor.CPPTYPE_INT64: 63}
UNSIGNED = {FieldDescriptor.CPPTYPE_UINT32: 32, FieldDescriptor.CPPTYPE_UINT64: 64}


def messages(message: Any) -> Iterator[Message]:
    """The message and all inside it."""
    yield message
    for field, value in message.ListFields():
        if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                yield from messages(inner)


def names_in(model: ModelProto) -> tuple[str, ...]:
    """Every name of a value of the main graph."""
    graph = model.graph
    found = [tensor.name for tensor in graph.initializer]
    found += [name for node in graph.node for name in (*node.input, *node.output)]
    return tuple(sorted(set(found)))


def scalar(rng: random.Random, field: Any, old: Any, known: tuple[str, ...]) -> Any:
    """A wild value for a field that holds no message."""
    kind = field.cpp_type
    if kind in INTEGERS or kind in UNSIGNED:
        bits = {**INTEGERS, **UNSIGNED}[kind]
        low = -(2**bits) if kind in INTEGERS else 0
        return max(low, min(2**bits - 1, wild.integer(rng, int(old))))
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice((0, 1, 2, 5, 7, 8, 9, 10, 11, 16, 99, -1))
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if isinstance(old, bytes):
            return wild.bytes_of(rng, old)
        return wild.text(rng, known).encode("utf-8", "replace").decode()
    return rng.choice(wild.FLOATS)


def change_field(rng: random.Random, model: ModelProto, message: Any) -> None:
    """One field of a message: another value, gone, doubled, shuffled, or taken from elsewhere."""
    fields = [field for field, _ in message.ListFields()]
    field = rng.choice(fields if fields and rng.random() < 0.9 else message.DESCRIPTOR.fields)
    if rng.random() < 0.1:
        message.ClearField(field.name)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        kind = field.message_type.full_name
        same = [m for m in messages(model) if m.DESCRIPTOR.full_name == kind]
        if field.is_repeated:
            change_list(rng, getattr(message, field.name), same)
        elif same:
            getattr(message, field.name).CopyFrom(copy(rng.choice(same)))
    elif field.is_repeated:
        values = list(getattr(message, field.name))
        new = scalar(rng, field, rng.choice(values or [field_zero(field)]), names_in(model))
        at = rng.randrange(len(values) + 1)
        values[at : at + rng.randint(0, 1)] = [new] * rng.choice((0, 1, 1, 1, 2))
        del getattr(message, field.name)[:]
        getattr(message, field.name).extend(values)
    else:
        old = getattr(message, field.name)
        setattr(message, field.name, scalar(rng, field, old, names_in(model)))


def field_zero(field: Any) -> Any:
    """The value of an empty field."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return b"" if field.type == FieldDescriptor.TYPE_BYTES else ""
    return 0


def copy(message: Any) -> Any:
    """A message of its own."""
    new = type(message)()
    new.CopyFrom(message)
    return new


def change_list(rng: random.Random, values: Any, same: list[Any]) -> None:
    """A repeated field: an element less, twice, elsewhere, or one from elsewhere in the file."""
    held = [copy(value) for value in values]
    how = rng.randrange(4)
    if how == 0 and held:
        held.pop(rng.randrange(len(held)))
    elif how == 1 and held:
        held.insert(rng.randrange(len(held)), copy(rng.choice(held)))
    elif how == 2:
        rng.shuffle(held)
    elif same:
        held.insert(rng.randrange(len(held) + 1), copy(rng.choice(same)))
    del values[:]
    values.extend(held)


# --- with a plan ---------------------------------------------------------------


def fields(rng: random.Random, model: ModelProto, folder: Path) -> None:
    """One to four fields anywhere."""
    for _ in range(rng.randint(1, 4)):
        change_field(rng, model, rng.choice(list(messages(model))))


def tensors(rng: random.Random, model: ModelProto, folder: Path) -> None:
    """A field of one tensor: dims, dtype, contents."""
    change_field(rng, model, some(rng, model, TensorProto))


def some(rng: random.Random, model: ModelProto, kind: type[Any]) -> Any:
    """One message of a kind; the model itself when it has none."""
    return rng.choice([m for m in messages(model) if isinstance(m, kind)] or [model])


def nodes(rng: random.Random, model: ModelProto, folder: Path) -> None:
    """A field of one node or attribute."""
    change_field(rng, model, some(rng, model, rng.choice((onnx.NodeProto, onnx.AttributeProto))))


def types(rng: random.Random, model: ModelProto, folder: Path) -> None:
    """A field of the type of a value."""
    kinds = (onnx.TypeProto, onnx.TensorShapeProto, onnx.ValueInfoProto, onnx.TypeProto.Tensor)
    change_field(rng, model, some(rng, model, rng.choice(kinds)))


def operators(rng: random.Random, model: ModelProto, folder: Path) -> None:
    """One node has another operator."""
    names = ("Loop", "If", "Scan", "Constant", "Identity", "Dropout", "Cast", "RandomNormal",
             "SequenceAt", "Optional", "StringNormalizer", "Reshape", "Softmax", "Split", "Gather",
             "Expand", "Resize", "Tile", "Einsum", "NonZero", "LSTM", "own")  # fmt: skip
    node = some(rng, model, onnx.NodeProto)
    if isinstance(node, onnx.NodeProto):
        node.op_type = rng.choice(names)


def cycle(rng: random.Random, model: ModelProto, folder: Path) -> None:
    """Two nodes need each other, or one itself."""
    first, second = (rng.choice(model.graph.node) for _ in range(2))
    first.input[0:1] = second.output[:1]
    second.input[0:1] = first.output[:1]


def same_name(rng: random.Random, model: ModelProto, folder: Path) -> None:
    """Two values, tensors, nodes or functions have one name."""
    held = rng.choice((model.graph.initializer, model.graph.node, model.graph.input,
                       model.functions, model.metadata_props))  # fmt: skip
    if held:
        twin = held.add()
        twin.CopyFrom(held[rng.randrange(len(held) - 1)] if len(held) > 1 else twin)
    one, other = (rng.choice(model.graph.node) for _ in range(2))
    if rng.random() < 0.5 and one.output and other.output:
        one.output[0] = other.output[0]


def elsewhere(rng: random.Random, model: ModelProto, folder: Path) -> None:
    """A tensor lies in a file that is none of the model's, or at a wild place in one."""
    tensor = some(rng, model, TensorProto)
    if not isinstance(tensor, TensorProto):
        return
    for content in ("raw_data", "float_data", "int64_data", "int32_data"):
        tensor.ClearField(content)
    link = folder / "link.data"
    if not link.is_symlink():
        link.symlink_to("../secret.bin")
    tensor.data_location = TensorProto.EXTERNAL
    places = ("../secret.bin", str(folder.parent / "secret.bin"), "link.data", "/etc/hostname",
              "/dev/zero", "/proc/self/mem", ".", "", "w.npz", "./x/../../secret.bin", "ext.data",
              "~/secret.bin", "file:///etc/hostname", "..\\secret.bin", "a\x00b", "m.onnx",
              "n" * 5000)  # fmt: skip
    tensor.external_data.add(key="location", value=rng.choice(places))
    for key in ("offset", "length", "basepath"):
        if rng.random() < 0.5:
            value = rng.choice((str(wild.integer(rng)), "0", "48", "x", "1e3", "", "9" * 5000))
            tensor.external_data.add(key=key, value=value)


def overlapping(rng: random.Random, model: ModelProto, folder: Path) -> None:
    """Every tensor in one file: over each other, over its end, or behind a linked folder."""
    whole = rng.random() < 0.5
    (folder / "all.data").write_bytes(bytes(rng.choice((0, 47, 4096, 70_000))))
    if not (folder / "around").is_symlink():
        (folder / "around").symlink_to("..")
    for tensor in [m for m in messages(model) if isinstance(m, TensorProto)]:
        size = len(numpy_helper.to_array(tensor).tobytes()) if not tensor.external_data else 48
        for content in ("raw_data", "float_data", "int64_data", "int32_data", "external_data"):
            tensor.ClearField(content)
        tensor.data_location = TensorProto.EXTERNAL
        place = "all.data" if rng.random() < 0.9 else "around/secret.bin"
        tensor.external_data.add(key="location", value=place)
        tensor.external_data.add(key="offset", value=str(rng.choice((0, 1, 4, 4090, 2**40))))
        length = size if whole else rng.choice((0, size - 1, size, size + 1, 2**62))
        tensor.external_data.add(key="length", value=str(length))


def contents(rng: random.Random, model: ModelProto, folder: Path) -> None:
    """A tensor of strings, of a narrow kind, with dims that do not go, or held twice."""
    tensor = some(rng, model, TensorProto)
    if not isinstance(tensor, TensorProto):
        return
    how = rng.randrange(4)
    if how == 0:
        count = int(np.prod(tensor.dims)) if len(tensor.dims) else 1
        tensor.data_type = TensorProto.STRING
        for content in ("raw_data", "float_data", "int64_data", "int32_data"):
            tensor.ClearField(content)
        tensor.string_data.extend(
            [b"1.0", b"\xff\xfe", b"nan"] * (max(0, min(count, 999)) // 3 + 1)
        )
    elif how == 1:
        tensor.data_type = rng.choice(list(range(26)))
    elif how == 2:
        tensor.dims[:] = rng.choice(([-3, -4], [-1], [0, 2**62], [2**32, 2**32], [1] * 300, [],
                                     [12, 1, 1], [4, 3], [2**63 - 1]))  # fmt: skip
    else:
        tensor.float_data.extend([1.0] * rng.choice((1, 12, 13)))
        tensor.int64_data.extend([1] * rng.choice((0, 12)))


def inner_functions(rng: random.Random, model: ModelProto, folder: Path) -> None:
    """Functions that are called in branches of functions, with attributes that refer on."""
    depth, closed = rng.choice((1, 2, 5, 60)), rng.random() < 0.5
    for index in range(depth):
        after = f"g{(index + 1) % depth}" if closed or index < depth - 1 else "Neg"
        call = f"in.{after}(a)" if after != "Neg" else "Neg(a)"
        branch = f"{{ c = {call} }}"
        model.functions.append(parser.parse_function(
            f'<opset_import: ["": 18, "in": 1], domain: "in"> g{index} (a) => (b) '
            "{ yes = Constant<value=bool {1}>() "
            f"b = If(yes) <then_branch = t () => (c) {branch}, "
            f"else_branch = e () => (c) {branch}> }}"
        ))  # fmt: skip
    model.opset_import.add(domain="in", version=1)
    insert(rng, model, helper.make_node("g0", ["?"], ["?"], domain="in"))


def endless(rng: random.Random, model: ModelProto, folder: Path) -> None:
    """A Loop that never ends: of no count, of a count that nobody lives to see, or in a Loop."""
    count = rng.choice((2**62, 10**12, None))
    inner = "inner (int64 j, bool g, float s) => (bool h, float v) { h = Identity(g)  v = Neg(s) }"
    step = f"Loop(trips, go, t) <body = {inner}>" if rng.random() < 0.3 else "Neg(t)"
    body = (
        f"body (int64 i, bool go, float t) => (bool on, float u) {{ on = Identity(go) u = {step} }}"
    )
    trips = numpy_helper.from_array(np.array(count or 2**62), "trips")
    model.graph.initializer.append(trips)
    use(model, [
        helper.make_node("Constant", [], ["start"], value_float=0.0),
        helper.make_node("Loop", ["" if count is None else "trips", "", "start"], ["bomb"],
                         body=parser.parse_graph(body)),
    ])  # fmt: skip


def deep_graph(rng: random.Random, model: ModelProto, folder: Path) -> bytes:
    """If inside If, up to 5000 deep; written by hand, as libraries refuse to."""
    inner = GraphProto(name="inner").SerializeToString()
    for _ in range(rng.choice((8, 20, 30, 33, 34, 60, 100, 1000, 5000))):
        attribute = field_bytes(1, b"then_branch") + field_bytes(6, inner) + b"\xa0\x01\x05"
        node = field_bytes(4, b"If") + field_bytes(2, b"y") + field_bytes(5, attribute)
        inner = field_bytes(1, node) + field_bytes(2, b"g")
    before: bytes = model.SerializeToString()
    return before + field_bytes(7, inner)


def field_bytes(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def functions(rng: random.Random, model: ModelProto, folder: Path) -> None:
    """Functions that call themselves, each other, or the next one twice (2ⁿ nodes)."""
    depth = rng.choice((1, 2, 3, 12, 24, 40, 200))
    closed = rng.random() < 0.5
    for index in range(depth):
        after = (index + 1) % depth if closed else index + 1
        calls = f"t = bad.f{after}(a)  b = bad.f{after}(t)"
        body = "b = Neg(a)" if not closed and index == depth - 1 else calls
        model.functions.append(parser.parse_function(
            f'<opset_import: ["": 18, "bad": 1], domain: "bad"> f{index} (a) => (b) {{ {body} }}'
        ))  # fmt: skip
    model.opset_import.add(domain="bad", version=1)
    insert(rng, model, helper.make_node("f0", ["?"], ["?"], domain="bad"))


def insert(rng: random.Random, model: ModelProto, node: onnx.NodeProto) -> None:
    """Put a node between an input and the node that takes it."""
    after = rng.choice(model.graph.node)
    if after.input:
        node.input[0], node.output[0] = after.input[0], "inserted"
        after.input[0] = "inserted"
        model.graph.node.insert(list(model.graph.node).index(after), node)


def bombs(rng: random.Random, model: ModelProto, folder: Path) -> None:
    """A few bytes that ask for gigabytes: ConstantOfShape, Expand, Tile, Range, OneHot, Pad."""
    size = rng.choice((10**6, 10**8, 10**9, 10**10, 2**31, 2**62))
    kind = rng.choice(("ConstantOfShape", "Expand", "Tile", "Loop"))
    if kind == "Loop" and model.graph.name != "algorithm":
        size = 10**4  # a base runs as long as it runs; an algorithm's loops are bounded
    model.graph.initializer.append(numpy_helper.from_array(np.array([size]), "bomb_size"))
    if kind == "Loop":
        loop_bomb(rng, model, size)
        return
    made = [helper.make_node("ConstantOfShape", ["bomb_size"], ["bomb_zeros"])]
    if kind == "Expand":
        made = [helper.make_node("Constant", [], ["bomb_one"], value_float=0.0),
                helper.make_node("Expand", ["bomb_one", "bomb_size"], ["bomb_zeros"])]  # fmt: skip
    if kind == "Tile":
        made = [helper.make_node("Constant", [], ["bomb_one"], value_floats=[0.0]),
                helper.make_node("Tile", ["bomb_one", "bomb_size"], ["bomb_zeros"])]  # fmt: skip
    made.append(helper.make_node("ReduceMax", ["bomb_zeros"], ["bomb"], keepdims=0))
    use(model, made)


def use(model: ModelProto, made: list[onnx.NodeProto]) -> None:
    """Add a value to the first input of the last node; of one of the base in an extended model."""
    given = {value.name for value in model.graph.input}
    extended = any(entry.key.startswith("gdu.") for entry in model.metadata_props)
    takes = [node for node in model.graph.node if extended and given & set(node.input[:1])]
    user = (takes or list(model.graph.node))[-1]
    if user.input:
        made.append(helper.make_node("Add", [user.input[0], "bomb"], ["bomb_sum"]))
        user.input[0] = "bomb_sum"
        at = list(model.graph.node).index(user)
        for index, node in enumerate(made):
            model.graph.node.insert(at + index, node)


def loop_bomb(rng: random.Random, model: ModelProto, size: int) -> None:
    """A Loop that runs for ever, or collects an output of every iteration."""
    collect = rng.random() < 0.5
    body = parser.parse_graph("body (int64 i, bool go, float t) => (bool on, float u"
                              + (", float v" if collect else "") + ")"
                              "{ on = Identity(go)  u = Neg(t)  v = Neg(t) }")  # fmt: skip
    outputs = ["bomb", *(["bomb_all"] if collect else [])]
    trips = "bomb_trips" if size < 10**6 or rng.random() < 0.5 else ""
    use(model, [
        helper.make_node("Constant", [], ["bomb_start"], value_float=0.0),
        helper.make_node("Squeeze", ["bomb_size"], ["bomb_trips"]),
        helper.make_node("Loop", [trips, "", "bomb_start"], outputs, body=body),
    ])  # fmt: skip


def versions(rng: random.Random, model: ModelProto, folder: Path) -> None:
    """IR version and opset imports."""
    if rng.random() < 0.5:
        model.ir_version = max(-(2**63), min(2**63 - 1, wild.integer(rng, model.ir_version)))
    opset = rng.choice(list(model.opset_import) or [model.opset_import.add()])
    how = rng.randrange(4)
    if how == 0:
        opset.version = wild.integer(rng, opset.version) % 2**63
    elif how == 1:
        opset.domain = wild.text(rng).encode("utf-8", "replace").decode()
    elif how == 2:
        model.opset_import.add(domain=opset.domain, version=rng.randint(1, 30))
    else:
        del model.opset_import[:]


def tables(rng: random.Random, model: ModelProto, folder: Path) -> None:
    """Huge string tables, documentation, or thousands of things."""
    many = rng.choice((1000, 20_000))
    how = rng.randrange(5)
    if how == 0:
        strings = TensorProto(name="strings", data_type=TensorProto.STRING, dims=[many])
        strings.string_data.extend([b"s"] * (many if rng.random() < 0.5 else 1))
        model.graph.initializer.append(strings)
    elif how == 1:
        model.doc_string = model.graph.doc_string = "d" * (50 * many)
    elif how == 2:
        for index in range(many):
            model.metadata_props.add(key=f"k{index % 7}", value="v")
    elif how == 3:
        for index in range(many // 10):
            model.graph.initializer.append(numpy_helper.from_array(
                np.zeros(1, "f"), f"i{index}"))  # fmt: skip
    else:
        name = rng.choice(model.graph.node).output[0]
        for index in range(many // 10):
            model.graph.node.append(helper.make_node("Neg", [name], [name := f"chain{index}"]))


def sparse(rng: random.Random, model: ModelProto, folder: Path) -> None:
    """A tensor becomes a sparse initializer, with wild indices and dims; or a segment."""
    tensor = rng.choice(list(model.graph.initializer) or [TensorProto()])
    if rng.random() < 0.3:
        tensor.segment.begin, tensor.segment.end = wild.integer(rng) % 2**62, 3
        return
    made = model.graph.sparse_initializer.add()
    made.values.CopyFrom(helper.make_tensor(tensor.name, 1, [2], [1.0, 2.0]))
    indices = [0, wild.integer(rng) % 2**63 * rng.choice((1, -1))]
    shape = rng.choice(([2], [2], [2, 1], [1, 2], [0]))
    made.indices.CopyFrom(helper.make_tensor("", 7, shape, indices if shape != [0] else []))
    made.dims.extend(tensor.dims if rng.random() < 0.5 else [wild.integer(rng) % 2**63])
    if rng.random() < 0.8 and tensor in model.graph.initializer:
        model.graph.initializer.remove(tensor)


def metadata(rng: random.Random, model: ModelProto, folder: Path) -> None:
    """One entry of metadata_props says something else; an extended model has gdu.* ones."""
    entry = rng.choice(list(model.metadata_props) or [model.metadata_props.add(key="gdu.version")])
    others = tuple(other.key for other in model.metadata_props)
    if rng.random() < 0.1:
        entry.key = wild.text(rng, others).encode("utf-8", "replace").decode()
    else:
        new = wild.json_text(rng, entry.value)
        entry.value = new.encode("utf-8", "replace").decode()


def reserved(rng: random.Random, model: ModelProto, folder: Path) -> None:
    """Metadata of ours, huge, or on a file that is none of ours; nodes that claim to be ours."""
    how = rng.randrange(4)
    if how == 0:
        huge = rng.choice(("[" + "1," * 10**6 + "1]", '"' + "x" * 10**7 + '"', '{"a":' * 400))
        entry = rng.choice(list(model.metadata_props) or [model.metadata_props.add(key="gdu.x")])
        entry.value = huge
    elif how == 1:
        keys = ("version", "method", "digits", "logits", "buckets", "memory", "algorithm", "gain")
        for key in keys:
            model.metadata_props.add(key=f"gdu.{key}", value=json.dumps(wild.wild_json(rng)))
    else:
        for node in [m for m in messages(model) if isinstance(m, onnx.NodeProto)]:
            if rng.random() < 0.5:
                value = rng.choice(("InsertRecorderPass", "InsertSwitchesPass", "", "9" * 30))
                node.metadata_props.add(key=rng.choice(("gdu.pass", "gdu.bound")), value=value)


def renamed(rng: random.Random, model: ModelProto, folder: Path) -> None:
    """A value has another, hostile name wherever it occurs."""
    old = rng.choice(names_in(model) or ("x",))
    new = (wild.text(rng)).encode("utf-8", "replace").decode()
    for message in messages(model):
        if isinstance(message, onnx.NodeProto):
            for held in (message.input, message.output):
                held[:] = [new if name == old else name for name in held]
        elif isinstance(message, onnx.ValueInfoProto | TensorProto) and message.name == old:
            message.name = new
    if rng.random() < 0.2:
        model.graph.name = new


PLANS = (fields, fields, fields, tensors, tensors, nodes, nodes, types, operators, cycle, same_name,
         elsewhere, elsewhere, deep_graph, functions, bombs, versions, tables, sparse, metadata,
         metadata, renamed, renamed, overlapping, contents, contents, inner_functions,
         endless, reserved)  # fmt: skip
EXTENDED = (*PLANS, *[metadata] * 12, *[reserved] * 3)


def mutate(rng: random.Random, path: Path) -> str:
    """Spoil a model; returns how, in a word."""
    if rng.random() < 0.25:
        wild.raw(rng, path)
        return "bytes"
    model = onnx.load(path, load_external_data=False)
    extended = any(entry.key.startswith("gdu.") for entry in model.metadata_props)
    plan = rng.choice(EXTENDED if extended else PLANS)
    content = plan(rng, model, path.parent)
    path.write_bytes(content if isinstance(content, bytes) else model.SerializeToString())
    return plan.__name__
