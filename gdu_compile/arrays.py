"""Arrays from files that may be hostile: .npz and .safetensors, headers first, no pickle.

Headers are read at once, contents on demand.  Uncompressed .npz members and
.safetensors tensors are memory-mapped views: nothing is copied.
"""

from __future__ import annotations

import ast
import mmap
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from gdu_compile.digits import Array
from gdu_compile.errors import InputError

# Deflate cannot expand more than this; a larger claim in the directory is a lie.
DEFLATE_LIMIT = 1032


@dataclass(frozen=True)
class ArrayHeader:
    """One array of a file: what it is, and how to get it.

    Attributes:
        name: its key.
        shape: its shape.
        dtype: its dtype.
        load: returns the array, a view of the file where possible.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    load: Callable[[], Array]


Headers = dict[str, ArrayHeader]


def from_mapping(arrays: Mapping[str, object]) -> Headers:
    """Headers of arrays that are in memory (numpy, or anything numpy.asarray takes)."""
    headers = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        headers[name] = ArrayHeader(name, array.shape, array.dtype, partial(np.asarray, array))
    return headers


def read_arrays(path: Path) -> Headers:
    """The arrays of a .npz or .safetensors file.

    Raises:
        InputError: not there, not readable, not of the format, or an array needs pickle.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return safetensors_headers(path)
        return npz_headers(path)
    except InputError:
        raise
    except Exception as error:
        # zipfile, numpy and safetensors raise a dozen types on damaged input.
        raise InputError(f"{path}: cannot be read as {path.suffix or 'a file of arrays'} "
                         f"({type(error).__name__}: {error})") from error  # fmt: skip


def npz_headers(path: Path) -> Headers:
    """The headers of an .npz file."""
    if path.suffix != ".npz":
        raise InputError(f"{path}: unknown kind of file; .npz and .safetensors are read")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not an .npz file (not a zip archive, or cut short)")
    headers, problems = {}, []
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            try:
                headers[name] = npz_member(path, archive, info, name)
            except ValueError as error:
                problems.append(f"{name!r}: {error}")
    if problems:
        raise InputError(f"{path}: cannot be used", problems)
    return headers


def npz_member(
    path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str
) -> ArrayHeader:
    """The header of one member; ValueError says what is wrong with it."""
    if info.file_size > max(DEFLATE_LIMIT * info.compress_size, 1 << 16):
        raise ValueError("claims more bytes than its compressed size can hold")
    with archive.open(info) as stream:
        shape, fortran, dtype = npy_header(stream.read(min(info.file_size, 1 << 16)))
        length = int(np.prod(shape, dtype=object)) * dtype.itemsize
        offset = npy_offset(info, archive)
    if dtype.hasobject:
        raise ValueError("holds Python objects, which need pickle; save plain arrays")
    if offset + length > info.file_size:
        raise ValueError(f"says shape {list(shape)}, but the file is shorter")

    def load() -> Array:
        if info.compress_type == zipfile.ZIP_STORED:
            start = member_start(path, info) + offset
            flat = np.frombuffer(mapped(path), dtype, length // dtype.itemsize, start)
        else:
            with zipfile.ZipFile(path) as archive, archive.open(info) as stream:
                stream.read(offset)
                flat = np.frombuffer(stream.read(length), dtype)
        array: Array = flat.reshape(shape, order="F" if fortran else "C")
        return array.astype(dtype.newbyteorder("="), copy=False)

    return ArrayHeader(name, shape, dtype.newbyteorder("="), load)


def npy_header(start: bytes) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """(shape, fortran order, dtype) from the first bytes of a .npy file (NEP 1)."""
    if start[:6] != b"\x93NUMPY":
        raise ValueError("is not a numpy array")
    begin, end = header_span(start)
    fields = ast.literal_eval(start[begin:end].decode("latin1"))
    shape, dtype = fields["shape"], np.dtype(fields["descr"])
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"has the impossible shape {shape}")
    return tuple(shape), bool(fields["fortran_order"]), dtype


def header_span(start: bytes) -> tuple[int, int]:
    """Where the header text of a .npy file begins and ends."""
    wide = start[6] >= 2
    begin = 12 if wide else 10
    (length,) = struct.unpack("<I" if wide else "<H", start[8:begin])
    return begin, begin + length


def npy_offset(info: zipfile.ZipInfo, archive: zipfile.ZipFile) -> int:
    """Offset of the array's bytes inside the member."""
    with archive.open(info) as stream:
        return header_span(stream.read(12))[1]


def member_start(path: Path, info: zipfile.ZipInfo) -> int:
    """Offset of a stored member's bytes in the archive, behind its local header."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return int(info.header_offset + 30 + name + extra)


def mapped(path: Path) -> mmap.mmap:
    """The file, memory-mapped read-only; it lives as long as a view of it does."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def safetensors_headers(path: Path) -> Headers:
    """The headers of a .safetensors file; ml_dtypes gives numpy its bfloat16."""
    from safetensors import safe_open

    headers = {}
    with safe_open(str(path), framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
            view = file.get_slice(name)
            kind = view.get_dtype()
            if kind not in SAFETENSORS_DTYPES:
                raise InputError(f"{path}: {name!r} is {kind}, which is not supported")
            headers[name] = ArrayHeader(
                name, tuple(view.get_shape()), np.dtype(SAFETENSORS_DTYPES[kind]),
                partial(safetensors_load, path, name),
            )  # fmt: skip
    return headers


def safetensors_load(path: Path, name: str) -> Array:
    """One tensor of a .safetensors file."""
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        array: Array = file.get_tensor(name)
    return array


SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16",
    "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
