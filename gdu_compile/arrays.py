"""Arrays from files that may be hostile: .npz and .safetensors, headers first, no pickle.

Headers are read at once, contents on demand.  Uncompressed .npz members and
.safetensors tensors are memory-mapped views: nothing is copied.  The checksums
of .npz members are compared when their contents are asked for.
"""

from __future__ import annotations

import ast
import json
import math
import mmap
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import ml_dtypes
import numpy as np

from gdu_compile.digits import Array
from gdu_compile.errors import GduError, InputError
from gdu_compile.files import check_input

# Deflate cannot expand more than this; a larger claim in the directory is a lie.
DEFLATE_LIMIT = 1032
# numpy's own limit on the header of a .npy file: a longer text can exhaust Python's parser.
HEADER_LIMIT = 10_000


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
Reader = Callable[[Path], tuple[Headers, list[str]]]


def from_mapping(arrays: Mapping[str, object]) -> Headers:
    """Headers of arrays that are in memory (numpy, torch, or anything numpy.asarray takes).

    Raises:
        InputError: numpy makes no array of a value.
    """
    headers, problems = {}, []
    for name, value in arrays.items():
        try:
            headers[name] = header_of(name, value)
        except Exception as error:  # whatever the object's own __array__ raises
            problems.append(f"{name!r}: numpy makes no array of it ({reason_of(error)})")
    if problems:
        raise InputError("the given tensors cannot be used", problems)
    return headers


def header_of(name: str, value: object) -> ArrayHeader:
    """The header of one array in memory; raises what numpy raises."""
    torch = sys.modules.get("torch")  # who has a torch tensor has imported it
    if torch is not None and isinstance(value, torch.Tensor):
        from gdu_compile.torch_files import in_memory

        return in_memory(name, value)
    array = np.asarray(value)
    dtype = array.dtype.newbyteorder("=")
    return ArrayHeader(name, array.shape, dtype, partial(array.astype, dtype, copy=False))


def read_arrays(path: Path) -> Headers:
    """The arrays of a .npz or .safetensors file.

    Raises:
        InputError: not there, not readable, not of the format, or an array needs pickle.
    """
    return read_with(READERS, path)


def read_with(readers: Mapping[str, Reader], path: Path) -> Headers:
    """The arrays of a file, by the reader of its kind.

    Raises:
        InputError: of another kind, not there, not readable, or not of the format.
    """
    check_input(path)
    if path.suffix not in readers:
        *others, last = readers
        raise InputError(f"{path}: unknown kind of file; {', '.join(others)} and {last} are read, "
                         "as numpy, safetensors, PyTorch and ONNX write them")  # fmt: skip
    try:
        headers, problems = readers[path.suffix](path)
    except GduError:
        raise
    except Exception as error:
        # zipfile, numpy, safetensors and torch raise a dozen types on damaged input.
        raise InputError(f"{path}: not a {path.suffix} file, or cut short ({reason_of(error)}); "
                         "save or download it again") from error  # fmt: skip
    if problems:
        raise InputError(f"{path}: cannot be used; save it again", problems)
    return headers


def reason_of(error: Exception) -> str:
    """The text of an error that is not ours, on one line, shortened."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return text if len(text) <= 200 else f"{text[:200]} …"


def damaged(path: Path, name: str, error: Exception) -> InputError:
    """The error for contents that cannot be read although their header could."""
    return InputError(
        f"{path}: {name!r} is damaged ({reason_of(error)}); save or download it again"
    )


def npz_headers(path: Path) -> tuple[Headers, list[str]]:
    """The headers of an .npz file, and what is wrong with the others."""
    headers: Headers = {}
    problems: list[str] = []
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            try:
                if name in headers:
                    raise ValueError("is there twice")
                headers[name] = npz_member(path, archive, info, name)
            except ValueError as error:
                problems.append(f"{name!r}: {error}")
            except Exception as error:  # zipfile's and zlib's many
                problems.append(f"{name!r}: cannot be read ({reason_of(error)})")
    return headers, problems


def npz_member(
    path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str
) -> ArrayHeader:
    """The header of one member; ValueError says what is wrong with it."""
    stored = info.compress_type == zipfile.ZIP_STORED
    limit = info.compress_size if stored else max(DEFLATE_LIMIT * info.compress_size, 1 << 16)
    if info.file_size > limit:
        raise ValueError("claims more bytes than its compressed size can hold")
    with archive.open(info) as stream:
        start = stream.read(12 + HEADER_LIMIT)
    shape, fortran, dtype = npy_header(start)
    offset = header_span(start)[1]
    if offset + math.prod(shape) * dtype.itemsize > info.file_size:
        raise ValueError(f"says {dtype} {short(shape)}, but the file is shorter")
    member = NpyMember(path, info, offset, shape, fortran, dtype)
    return ArrayHeader(name, shape, dtype.newbyteorder("="), member.load)


@dataclass(frozen=True)
class NpyMember:
    """Where the bytes of one array of an .npz file lie, and what they mean."""

    path: Path
    info: zipfile.ZipInfo
    offset: int
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[np.generic]

    def load(self) -> Array:
        """The array.

        Raises:
            InputError: its bytes are not those that were saved.
        """
        try:
            array: Array = np.frombuffer(
                self.content(), self.dtype, math.prod(self.shape), self.offset
            ).reshape(self.shape, order="F" if self.fortran else "C")
        except Exception as error:  # zipfile's and zlib's many
            raise damaged(self.path, self.info.filename, error) from error
        return array.astype(self.dtype.newbyteorder("="), copy=False)

    def content(self) -> memoryview | bytes:
        """The member's bytes, a view where possible; the checksum is compared in both cases."""
        if self.info.compress_type != zipfile.ZIP_STORED:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(self.info)
        start = member_start(self.path, self.info)
        view = memoryview(mapped(self.path))[start : start + self.info.file_size]
        if zlib.crc32(view) != self.info.CRC:
            raise ValueError("bad checksum")
        return view


def npy_header(start: bytes) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """(shape, fortran order, dtype) from the first bytes of a .npy file (NEP 1).

    Raises:
        ValueError: no such header, or no plain array; says which.
    """
    if start[:6] != b"\x93NUMPY" or len(start) < 12:
        raise ValueError("is not a numpy array")
    begin, end = header_span(start)
    if end - begin > HEADER_LIMIT:
        raise ValueError(f"has a header of {end - begin} bytes, more than numpy's {HEADER_LIMIT}")
    try:
        fields = ast.literal_eval(start[begin:end].decode("latin1"))
        shape, fortran, kind = fields["shape"], fields["fortran_order"], fields["descr"]
        dtype = np.dtype(kind)
    except Exception as error:  # literal_eval alone raises six types
        raise ValueError(f"has a damaged header ({reason_of(error)})") from error
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"has the impossible shape {short(shape)}")
    if dtype.hasobject:
        raise ValueError("holds Python objects, which need pickle; save plain arrays")
    if not isinstance(kind, str) or dtype.names is not None or dtype.itemsize == 0:
        raise ValueError(f"holds {short(kind)}, which is no plain dtype; save plain arrays")
    return shape, bool(fortran), dtype


def short(value: object) -> str:
    """A value from a file as text of bounded length; a shape as people write it."""
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:80]} …"


def header_span(start: bytes) -> tuple[int, int]:
    """Where the header text of a .npy file begins and ends."""
    wide = start[6] >= 2
    begin = 12 if wide else 10
    (length,) = struct.unpack("<I" if wide else "<H", start[8:begin])
    return begin, begin + length


def member_start(path: Path, info: zipfile.ZipInfo) -> int:
    """Offset of a stored member's bytes in the archive, behind its local header."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return int(info.header_offset + 30 + name + extra)


def mapped(path: Path) -> mmap.mmap:
    """The file, memory-mapped read-only; it lives as long as a view of it does.

    Its views share one map: each of their own counts the pages around it again
    (2000 small weights: 218 MB for a file of 0.8 MB).
    """
    with path.open("rb") as file:
        facts = os.fstat(file.fileno())
        key = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
        view = MAPS.get(key)
        if view is None:
            view = MAPS[key] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return view


MAPS: WeakValueDictionary[tuple[int, ...], mmap.mmap] = WeakValueDictionary()
"""Files that are mapped now: (device, inode, size, time of change) → map."""


def safetensors_headers(path: Path) -> tuple[Headers, list[str]]:
    """The headers of a .safetensors file, and what is wrong with the others."""
    from safetensors import safe_open

    headers: Headers = {}
    problems: list[str] = []
    # safe_open proves that the tensors lie inside the file and nowhere twice; where, it keeps.
    with safe_open(str(path), framework="numpy") as file:
        views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        facts = {name: (view.get_dtype(), view.get_shape()) for name, view in views.items()}
    spans = safetensors_spans(path)
    for name, (kind, sizes) in facts.items():
        if kind not in SAFETENSORS_DTYPES:
            problems.append(f"{name!r} is {kind}, which is not supported; convert it")
            continue
        dtype, shape = SAFETENSORS_DTYPES[kind], tuple(sizes)
        tensor = SafeTensor(path, name, *spans[name], shape, dtype)
        headers[name] = ArrayHeader(name, shape, dtype, tensor.load)
    return headers, problems


def safetensors_spans(path: Path) -> dict[str, tuple[int, int]]:
    """Where the bytes of each tensor begin and end in a .safetensors file (8 bytes, JSON, data)."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entries = json.loads(file.read(length))
    return {
        name: (8 + length + entry["data_offsets"][0], 8 + length + entry["data_offsets"][1])
        for name, entry in entries.items()
        if name != "__metadata__"
    }


@dataclass(frozen=True)
class SafeTensor:
    """Where the bytes of one tensor of a .safetensors file lie, and what they mean."""

    path: Path
    name: str
    begin: int
    end: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    def load(self) -> Array:
        """The array, a view of the file.

        Raises:
            InputError: the file is no longer what it was when its headers were read.
        """
        count = math.prod(self.shape)
        try:
            if self.begin + count * self.dtype.itemsize != self.end:
                raise ValueError("its place does not fit its shape")
            if count == 0:
                return np.zeros(self.shape, self.dtype)  # an empty view may begin behind the end
            view: Array = np.frombuffer(mapped(self.path), self.dtype, count, self.begin)
        except Exception as error:  # the system's and numpy's
            raise damaged(self.path, self.name, error) from error
        return view.reshape(self.shape)


# As safetensors spells them; what numpy lacks is ml_dtypes'.
SAFETENSORS_DTYPES = {
    "F64": np.dtype("float64"), "F32": np.dtype("float32"), "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16), "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2), "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz), "C64": np.dtype("complex64"),
    "I64": np.dtype("int64"), "I32": np.dtype("int32"), "I16": np.dtype("int16"),
    "I8": np.dtype("int8"), "U64": np.dtype("uint64"), "U32": np.dtype("uint32"),
    "U16": np.dtype("uint16"), "U8": np.dtype("uint8"), "BOOL": np.dtype("bool"),
}  # fmt: skip
READERS: dict[str, Reader] = {".npz": npz_headers, ".safetensors": safetensors_headers}
