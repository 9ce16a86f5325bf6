"""Mutations of .npz, .safetensors and .pt files: headers, directories, pickles."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import random
import struct
import zipfile
from pathlib import Path

from fuzz import wild

Member = tuple[str, bytes]


def members_of(path: Path) -> list[Member]:
    """What a zip file holds, in order."""
    with zipfile.ZipFile(path) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def write_members(path: Path, members: list[Member], kind: int = zipfile.ZIP_STORED) -> None:
    """A zip file with these members, names as they are, also twice."""
    import warnings

    with zipfile.ZipFile(path, "w", kind) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in members:
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.compress_type = kind
            archive.writestr(info, content)


# --- zip ---------------------------------------------------------------------


def zip_names(rng: random.Random, path: Path) -> None:
    """A member has another name: absolute, ../, of another member, hostile."""
    members = members_of(path)
    at = rng.randrange(len(members))
    name = rng.choice((wild.text(rng), members[0][0], "../canary.npy", "/tmp/canary.npy",
                       "../../canary", "w/", "w.npy/x.npy", "..\\canary.npy"))  # fmt: skip
    new = (name.encode("utf-8", "replace").decode()[:60_000], members[at][1])
    members[at : at + rng.randint(0, 1)] = [new]
    write_members(path, members)


def zip_directory(rng: random.Random, path: Path) -> None:
    """A number of a local header, the directory or its end: sizes, offsets, flags, methods."""
    content = bytearray(path.read_bytes())
    starts = {b"PK\x01\x02": 46, b"PK\x03\x04": 30, b"PK\x05\x06": 22}
    for _ in range(rng.randint(1, 2)):
        mark = rng.choice(list(starts))
        found = [i for i in range(len(content)) if content[i : i + 4] == mark]
        if not found:
            continue
        at = rng.choice(found) + rng.randrange(4, starts[mark] - 1, 2)
        value = rng.choice((0, 1, 8, 9, 12, 99, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
        packed = struct.pack("<I", value)[: rng.choice((2, 4))]
        content[at : at + len(packed)] = packed
    path.write_bytes(content)


def zip_overlap(rng: random.Random, path: Path) -> None:
    """Two entries of the directory show the same bytes."""
    content = bytearray(path.read_bytes())
    entries = [i for i in range(len(content)) if content[i : i + 4] == b"PK\x01\x02"]
    one, other = rng.choice(entries), rng.choice(entries)
    content[one + 42 : one + 46] = content[other + 42 : other + 46]
    path.write_bytes(content)


def zip_bomb(rng: random.Random, path: Path) -> None:
    """A member of many zeros, packed; its header may claim more, or less."""
    size = rng.choice((10**6, 30 * 10**6, 90 * 10**6))
    shape = rng.choice(((size // 4,), (3, 4), (2**40,), (size // 4, 1)))
    members = members_of(path)
    members[rng.randrange(len(members))] = ("w.npy", npy("<f4", shape) + bytes(size))
    write_members(path, members, zipfile.ZIP_DEFLATED)


def zip_many(rng: random.Random, path: Path) -> None:
    """Thousands of members."""
    name, content = rng.choice(members_of(path))
    write_members(path, [(f"{index}{name}", content) for index in range(3000)])


def zip_links(rng: random.Random, path: Path) -> None:
    """A member says that it is a link, a folder, or encrypted; or has a name that numpy strips."""
    members = members_of(path)
    at = rng.randrange(len(members))
    with zipfile.ZipFile(path, "w") as archive:
        for index, (name, content) in enumerate(members):
            info = zipfile.ZipInfo(name)
            if index == at:
                info.external_attr = rng.choice((0o120777, 0o040777, 0o060666, 0)) << 16
                info.create_system = rng.choice((0, 3, 99))
                info.extra = rng.choice(
                    (
                        b"",
                        struct.pack("<HHQQQ", 1, 24, 2**40, 2**40, 2**40),
                        struct.pack("<HH", 1, 9),
                        b"\x75\x70\x05\x00\x01abcd",
                    )
                )
                content = rng.choice((content, b"../secret.bin", b""))
            archive.writestr(info, content)
        archive.comment = rng.choice((b"", b"c" * 65_535, b"PK\x05\x06" + bytes(18)))


def zip_inside(rng: random.Random, path: Path) -> None:
    """Bytes in front of the archive or behind it: of itself, of another directory, of zeros."""
    content = path.read_bytes()
    more = rng.choice((content, b"PK\x05\x06" + bytes(18), bytes(70_000), b"#!/bin/sh\n"))
    path.write_bytes(rng.choice((more + content, content + more)))


# --- .npy --------------------------------------------------------------------

DESCRS = ("'<f4'", "'>f4'", "'|O'", "'<f2'", "'<f8'", "'<c8'", "'|V2'", "'|S0'", "'<U7'", "'|b1'",
          "[('a', '<f4')]", "'<M8[s]'", "('<f4', (3,))", "'f' * 10", "None", "'<i8'", "'|V0'",
          "'" + "f" * 5000 + "'", "'<f16'", "'<u8'")  # fmt: skip
SHAPES = ("()", "(3, 4)", "(-3, -4)", "(2**62,)", "(4611686018427387904,)", "(12,)", "(4, 3)",
          "(3, 4, 0)", "(0,)", "[3, 4]", "(True, 12)", "(3.0, 4)", "None", "(1,) * 99",
          "(" + "1, " * 70 + ")", "(9" + "0" * 5000 + ",)", "(0, 9223372036854775807)",
          "(" + "(" * 90 + ")" * 90 + ")", "(5,)", "(5, 4)", "(65536, 65536, 65536, 65536)",
          "(1000000000000,)")  # fmt: skip


def npy(descr: str, shape: object) -> bytes:
    """A .npy header."""
    return npy_header(f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}")


def npy_header(text: str, version: bytes = b"\x01\x00") -> bytes:
    """The header with this text."""
    content = text.encode("latin1", "replace") + b"\n"
    size = struct.pack("<H" if version[0] < 2 else "<I", len(content) & 0xFFFF)
    return b"\x93NUMPY" + version + size + content


def npy_text(rng: random.Random, path: Path) -> None:
    """The header of an array: dtype, order, shape, keys, version, length, magic."""
    members = members_of(path)
    at = rng.randrange(len(members))
    name, content = members[at]
    body = content[10 + struct.unpack("<H", content[8:10])[0] :]
    descr, shape = rng.choice(DESCRS), rng.choice(SHAPES)
    if rng.random() < 0.5:
        descr, shape = rng.choice((("'<f4'", shape), (descr, "(3, 4)")))
    order = rng.choice(("False", "True", "False", "2", "None", "'x'"))
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    text = rng.choice((text, text, text, text[:-9], "{" * 5000, "-" * 9000 + "1", "__import__",
                       "[" * 60 + "]" * 60, text.replace("shape", "Shape")))  # fmt: skip
    header = npy_header(text, rng.choice((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09")))
    if rng.random() < 0.1:
        header = wild.bytes_of(rng, header)
    members[at] = (name, header + rng.choice((body, body, body, b"", body[:-3])))
    write_members(path, members)


def npy_values(rng: random.Random, path: Path) -> None:
    """The numbers of an array: NaN, infinities, labels out of range; or another array of them."""
    members = members_of(path)
    at = rng.randrange(len(members))
    name, content = members[at]
    begin = 10 + struct.unpack("<H", content[8:10])[0]
    noise = rng.choice((b"\x00\x00\xc0\x7f", b"\xff" * 8, b"\x00\x00\x80\xff", rng.randbytes(8)))
    where = rng.randrange(begin, len(content) + 1)
    members[at] = (name, (content[:where] + noise + content[where + len(noise) :])[: len(content)])
    if rng.random() < 0.2:
        members[at] = (name, rng.choice(members)[1])
    write_members(path, members, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED,
                                             zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)))  # fmt: skip


# --- .safetensors --------------------------------------------------------------


def safetensors_places(rng: random.Random, path: Path) -> None:
    """Two tensors in one place, holes, more tensors than bytes, and sizes that overflow."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    value, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    names = [name for name in value if name != "__metadata__"]
    one, other = value[rng.choice(names)], value[rng.choice(names)]
    how = rng.randrange(5)
    if how == 0:
        one["data_offsets"] = list(other["data_offsets"])
    elif how == 1:
        one["shape"] = rng.choice(([2**32, 2**32], [2**63, 2], [0, 2**63], [-1, -12], [1] * 500))
    elif how == 2:
        value |= {f"{index}": other for index in range(5000)}
    elif how == 3:
        value["__metadata__"] = {f"k{index}": wild.text(rng) for index in range(999)}
    else:
        body = rng.choice((b"", body + bytes(99), bytes(50) + body))
    header = json.dumps(value).encode("utf-8", "replace")
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)


def safetensors_header(rng: random.Random, path: Path) -> None:
    """The JSON of the header, or its length."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, body = content[8 : 8 + size].decode(), content[8 + size :]
    if rng.random() < 0.5:
        value = json.loads(header)
        entry = value[rng.choice(list(value))]
        key = rng.choice(list(entry))
        entry[key] = rng.choice((entry[key], wild.json_of(rng, entry[key]), rng.choice((
            "F8_E4M3", "BOOL", "I128", [0, 2**63], [2**40], [0, 0], [48, 0], [8, 12], "F32",
        ))))  # fmt: skip
        header = json.dumps(value)
    else:
        header = wild.json_text(rng, header)
    if rng.random() < 0.1:
        header = header[:-1] + ', "w": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    new = header.encode("utf-8", "replace")
    length = rng.choice((len(new), len(new), len(new), 0, 2**63, 2**64 - 1, 10**8, len(new) - 1))
    path.write_bytes(struct.pack("<Q", length) + new + body)


# --- .pt -----------------------------------------------------------------------


class Runs:
    """An object whose pickle would run something."""

    def __init__(self, what: tuple[object, ...]) -> None:
        self.what = what

    def __reduce__(self) -> tuple[object, ...]:
        return self.what


def evil_pickle(rng: random.Random) -> bytes:
    """A pickle that would run a command, or eat memory; or one that is merely deep."""
    import os
    import subprocess

    def of(call: object, *given: object) -> bytes:
        return pickle.dumps(Runs((call, given)), protocol=rng.choice((0, 1, 2, 4)))

    deep = b"\x80\x02" + b"(" * 50_000 + b"." + b"l" * 9
    laughs = b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(60)) + b"."
    return rng.choice((
        lambda: of(os.system, "touch ../canary"), lambda: of(eval, "open('../canary', 'w')"),
        lambda: of(subprocess.Popen, ["touch", "../canary"]), lambda: of(exec, "import canary"),
        lambda: of(bytearray, 2**40), lambda: of(getattr, os, "system"), lambda: deep,
        lambda: laughs, lambda: pickle.dumps({"w": [1, 2]}), lambda: pickle.dumps(list(range(9))),
        lambda: b"cbuiltins\neval\n(S'1'\ntR.", lambda: b"\x80\x02" + b"K\x01" * 100_000 + b".",
    ))()  # fmt: skip


def spoiled_pickle(rng: random.Random, old: bytes) -> bytes:
    """A pickle with a few opcodes changed, or another pickle."""
    if rng.random() < 0.3:
        return evil_pickle(rng)
    try:
        found = list(pickletools.genops(old))
    except Exception:  # what is spoiled already need not parse
        return wild.bytes_of(rng, old)
    new = bytearray(old)
    opcode, argument, at = rng.choice(found)
    assert at is not None
    if isinstance(argument, int) and opcode.name in ("BININT1", "BININT2", "BININT"):
        width = {"BININT1": 1, "BININT2": 2, "BININT": 4}[opcode.name]
        long = b"\x8a\x08" + struct.pack("<q", rng.choice(wild.INTS[:15]))
        short = b"I%d\n" % wild.integer(rng, argument)
        number = rng.choice((short, b"J\xff\xff\xff\x7f", long))
        new[at : at + 1 + width] = number
        return bytes(new)
    return wild.bytes_of(rng, old)


def pt_pickle(rng: random.Random, path: Path) -> None:
    """The pickle inside a .pt: sizes, strides and offsets of tensors, calls, depth."""
    if not zipfile.is_zipfile(path):
        content = path.read_bytes()
        path.write_bytes(rng.choice((spoiled_pickle, legacy))(rng, content))
        return
    members = members_of(path)
    new = [(name, spoiled_pickle(rng, content) if name.endswith("data.pkl") else content)
           for name, content in members]  # fmt: skip
    kinds = (zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,)
    write_members(path, new, rng.choice(kinds))


def legacy(rng: random.Random, old: bytes) -> bytes:
    """One of the five pickles of an old .pt file is another."""
    rest, parts = io.BytesIO(old), []
    for _ in range(5):
        begin = rest.tell()
        try:
            list(pickletools.genops(rest))
        except Exception:  # as above
            return wild.bytes_of(rng, old)
        parts.append(old[begin : rest.tell()])
    at = rng.randrange(5)
    tail = old[rest.tell() :]
    parts[at] = spoiled_pickle(rng, parts[at])
    return b"".join(parts) + wild.bytes_of(rng, tail) * rng.randint(0, 1) + tail


def pt_members(rng: random.Random, path: Path) -> None:
    """Members of a .pt gone, cut, twice, or of TorchScript."""
    if not zipfile.is_zipfile(path):
        wild.raw(rng, path)
        return
    members = members_of(path)
    at = rng.randrange(len(members))
    name, content = members[at]
    members[at : at + 1] = rng.choice((
        [], [(name, content[:-4])], [(name, content)] * 2, [(name, b"")],
        [(name, content), (name.split("/")[0] + "/constants.pkl", b"")],
        [(name.replace("/data/", "/data/../"), content)], [(name, wild.bytes_of(rng, content))],
    ))  # fmt: skip
    write_members(path, members)


ZIP = (zip_names, zip_directory, zip_directory, zip_overlap, zip_many, zip_links, zip_inside)
PLANS: dict[str, tuple[wild.Mutator, ...]] = {
    ".npz": (*ZIP, zip_bomb, npy_text, npy_text, npy_text, npy_text, npy_values, npy_values),
    ".safetensors": (safetensors_header, safetensors_header, safetensors_places),
    ".pt": (zip_directory, pt_pickle, pt_pickle, pt_pickle, pt_pickle, pt_members),
}


def mutate(rng: random.Random, path: Path) -> str:
    """Spoil a file of arrays; returns how, in a word."""
    if rng.random() < 0.2:
        wild.raw(rng, path)
        return "bytes"
    plan = rng.choice((*PLANS[path.suffix], wild.disguised))
    plan(rng, path)
    return plan.__name__
