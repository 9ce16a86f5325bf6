"""Hostile and damaged .npz and .safetensors files: refused by name, before memory is asked for."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gdu_compile.arrays import from_mapping, read_arrays
from gdu_compile.errors import InputError

A = np.arange(6, dtype=np.float32).reshape(2, 3)


def npy(array: np.ndarray[Any, Any] = A) -> bytes:
    """A .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header(text: str, *, version: int = 1, length: int | None = None, tail: bytes = b"") -> bytes:
    """A .npy file with this text as its header; ``length`` is what it claims to have."""
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", size) + text.encode() + tail


def fields(descr: object = "<f4", shape: object = (2, 3), fortran: object = False) -> str:
    """The text of a .npy header."""
    return repr({"descr": descr, "fortran_order": fortran, "shape": shape})


def archive(path: Path, *members: tuple[str, bytes], packed: bool = False) -> Path:
    """An .npz file with these members."""
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", kind) as file:
        warnings.simplefilter("ignore")  # on names that are there twice
        for name, content in members:
            file.writestr(name, content)
    return path


# --- headers ------------------------------------------------------------------

HEADERS = {
    "no numpy": (b"something else", "is not a numpy array"),
    "nothing": (b"", "is not a numpy array"),
    "magic only": (b"\x93NUMPY", "is not a numpy array"),
    "cut": (npy()[:40], "has a damaged header"),
    "absurd shape": (header(fields(shape=(10**9, 10**9))), "1000000000], but the file is"),
    "shape beyond int64": (header(fields(shape=(10**99,))), "but the file is shorter"),
    "shape beyond printing": (header(f"{{'descr': '<f4', 'fortran_order': False, "
                                     f"'shape': (0x{'f' * 9000},)}}"), "digits"),
    "negative shape": (header(fields(shape=(-2, -3))), "has the impossible shape [-2, -3]"),
    "shape of floats": (header(fields(shape=(2.0, 3))), "has the impossible shape [2.0, 3]"),
    "shape of bools": (header(fields(shape=(True,))), "has the impossible shape [True]"),
    "shape no tuple": (header(fields(shape=6)), "has the impossible shape 6"),
    "one byte missing": (npy()[:-1], "says float32 [2, 3], but the file is shorter"),
    "a call": (header("__import__('os').abort()"), "has a damaged header"),
    "a call as descr": (header("{'descr': exit(), 'fortran_order': False, 'shape': ()}"),
                        "has a damaged header"),
    "no dict": (header("[1, 2]"), "has a damaged header"),
    "no shape": (header("{'descr': '<f4', 'fortran_order': False}"), "KeyError: 'shape'"),
    "brackets": (header("(" * 9000), "has a damaged header"),
    "signs": (header("-" * 9000 + "1"), "has a damaged header"),
    "braces": (header("{" * 150 + "}" * 150), "has a damaged header"),
    "long": (header(" " * 20_000), "has a header of 20000 bytes, more than numpy's 10000"),
    "longer than the file": (header(fields(), length=9999), "but the file is shorter"),
    "unknown dtype": (header(fields("<f5")), "has a damaged header"),
    "dtype by code": (header(fields("__import__('os')")), "has a damaged header"),
    "no dtype": (header(fields(None)), "holds None, which is no plain dtype"),
    "records": (npy(np.zeros(3, dtype=[("a", "f4")])), "which is no plain dtype"),
    "records as text": (header(fields("f4,f4", ()), tail=bytes(8)), "which is no plain dtype"),
    "arrays of arrays": (header(fields(("<f4", (3,)), (2,)), tail=bytes(24)), "no plain dtype"),
    "size 0": (header(fields("|S0")), "'|S0', which is no plain dtype"),
    "objects": (npy(np.array([{}], dtype=object)), "which need pickle; save plain arrays"),
    "objects in records": (npy(np.zeros(3, dtype=[("a", "O")])), "which need pickle"),
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True], ids=["stored", "deflated"])
@pytest.mark.parametrize(("content", "says"), HEADERS.values(), ids=HEADERS.keys())
def test_header_refused(content: bytes, says: str, packed: bool, tmp_path: Path) -> None:
    """The file, the member and the reason are named; a good member beside it does not help."""
    path = archive(tmp_path / "a.npz", ("bad.npy", content), ("good.npy", npy()), packed=packed)
    with pytest.raises(InputError) as error:
        read_arrays(path)
    assert str(path) in error.value.message and "save it again" in error.value.message
    (problem,) = error.value.problems
    assert problem.startswith("'bad'") and says in problem
    assert len(problem) < 400


@pytest.mark.parametrize("packed", [False, True], ids=["stored", "deflated"])
@pytest.mark.parametrize(
    "array",
    [
        A,
        np.asfortranarray(A),
        A.astype(">f4"),
        A[:0],
        np.float32(3),
        np.zeros((0, 5), np.int64),
        A > 2,
        A.astype(str),
    ],
    ids=["plain", "fortran", "big-endian", "empty", "scalar", "empty int", "bool", "text"],
)
def test_header_taken(array: np.ndarray[Any, Any], packed: bool, tmp_path: Path) -> None:
    """The control: what numpy writes comes back as numpy reads it."""
    path = tmp_path / "a.npz"
    (np.savez_compressed if packed else np.savez)(path, a=array)
    found = read_arrays(path)["a"]
    loaded = found.load()
    assert (found.shape, found.dtype) == (array.shape, array.dtype.newbyteorder("="))
    assert (loaded.shape, loaded.dtype) == (found.shape, found.dtype)
    assert loaded.tolist() == array.tolist()


# --- archives -----------------------------------------------------------------


def patched(path: Path, change: Callable[[bytearray, int], object]) -> Path:
    """The archive with its central directory changed; the directory begins at the index given."""
    content = bytearray(path.read_bytes())
    change(content, content.index(b"PK\x01\x02"))
    path.write_bytes(content)
    return path


def claims(size: int) -> Callable[[bytearray, int], object]:
    """The directory says that the first member has ``size`` bytes."""
    return lambda content, at: struct.pack_into("<I", content, at + 24, size)


@pytest.mark.parametrize("packed", [False, True], ids=["stored", "deflated"])
def test_zip_bomb(packed: bool, tmp_path: Path) -> None:
    """A member that claims 3.9 GB in a few bytes is refused unread."""
    bomb = header(fields(shape=(10**9 - 99,)))
    path = archive(tmp_path / "a.npz", ("bomb.npy", bomb), packed=packed)
    with pytest.raises(InputError) as error:
        read_arrays(patched(path, claims(0xEEEEEEEE)))
    assert error.value.problems == ("'bomb': claims more bytes than its compressed size can hold",)


@pytest.mark.parametrize("packed", [False, True], ids=["stored", "deflated"])
def test_flipped_byte(packed: bool, tmp_path: Path) -> None:
    """One wrong byte in the contents is found by the checksum when the array is loaded."""
    path = archive(tmp_path / "a.npz", ("a.npy", npy(np.arange(9999.0))), packed=packed)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") - 9] ^= 1
    path.write_bytes(content)
    headers = read_arrays(path)
    with pytest.raises(InputError, match=r"a\.npz: 'a\.npy' is damaged .*download it again"):
        headers["a"].load()


def test_encrypted_and_unknown_compression(tmp_path: Path) -> None:
    """Both members are named in one message."""
    path = archive(tmp_path / "a.npz", ("a.npy", npy()), ("b.npy", npy()))
    content = bytearray(path.read_bytes())
    first = content.index(b"PK\x01\x02")
    second = content.index(b"PK\x01\x02", first + 1)
    content[first + 8] |= 1  # encrypted
    struct.pack_into("<H", content, second + 10, 77)  # no such compression
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_arrays(path)
    a, b = error.value.problems
    assert a.startswith("'a': cannot be read") and "encrypted" in a
    assert b.startswith("'b': cannot be read") and "compression" in b


@pytest.mark.parametrize("names", [("a.npy", "a.npy"), ("a", "a.npy")])
def test_twice(names: tuple[str, str], tmp_path: Path) -> None:
    """Which of two arrays of one name is meant, nobody knows."""
    path = archive(tmp_path / "a.npz", *((name, npy()) for name in names))
    with pytest.raises(InputError, match="'a': is there twice"):
        read_arrays(path)


@pytest.mark.parametrize("keep", [1, 30, 100, 200, -30, -1])
def test_cut_npz(keep: int, tmp_path: Path) -> None:
    """A file that ends early is no archive, wherever it ends."""
    path = tmp_path / "a.npz"
    np.savez(path, a=A, b=A)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"a\.npz: not a \.npz file, or cut short"):
        read_arrays(path)


# --- .safetensors -------------------------------------------------------------


def safetensors(
    path: Path, header: object, content: bytes = b"", length: int | None = None
) -> Path:
    """A .safetensors file with this header; ``length`` is what it claims the header to be."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + content)
    return path


def entry(kind: str = "F32", shape: object = (2, 3), end: int = 24) -> dict[str, object]:
    """The header's entry of a tensor."""
    return {"dtype": kind, "shape": shape, "data_offsets": [0, end]}


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({"a": entry()}, 2**62),
        ({"a": entry()}, 0),
        (b"{", None),
        (b"\xff" * 20, None),
        (b"[" * 9999, None),
        ({"a": 3}, None),
        ({"a": entry(kind="F31")}, None),
        ({"a": entry(shape=[2**62, 2**62])}, None),
        ({"a": entry(shape=[-2, -3])}, None),
        ({"a": entry(end=2**62)}, None),
        ({"a": entry(shape=[3, 3])}, None),
    ],
    ids=["long", "no header", "cut", "no text", "nested", "number", "dtype", "overflow", "negative",
         "beyond the end", "other size"],
)  # fmt: skip
def test_safetensors_refused(header: object, length: int | None, tmp_path: Path) -> None:
    """The file is named; the control with the same bytes and a right header is read."""
    path = safetensors(tmp_path / "a.safetensors", header, A.tobytes(), length)
    with pytest.raises(InputError, match=r"a\.safetensors: not a \.safetensors file, or cut short"):
        read_arrays(path)
    safetensors(path, {"a": entry()}, A.tobytes())
    assert read_arrays(path)["a"].load().tolist() == A.tolist()


def test_safetensors_dtypes(tmp_path: Path) -> None:
    """All tensors of a kind that no array has (less than a byte an element) are named at once."""
    bits = {"a": entry("F4", [4], 2), "b": {**entry("F6_E2M3", [4]), "data_offsets": [2, 5]}}
    path = safetensors(tmp_path / "a.safetensors", bits, bytes(5))
    with pytest.raises(InputError) as error:
        read_arrays(path)
    assert error.value.problems == (
        "'a' is F4, which is not supported; convert it",
        "'b' is F6_E2M3, which is not supported; convert it",
    )


def test_safetensors_changed_meanwhile(tmp_path: Path) -> None:
    """A file cut between header and contents is bad input, not an error of ours."""
    path = tmp_path / "a.safetensors"
    save_file({"a": A}, path)
    header = read_arrays(path)["a"]
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match=r"a\.safetensors: 'a' is damaged"):
        header.load()


# --- from memory --------------------------------------------------------------


def test_mapping() -> None:
    """What numpy cannot take is named; the control is taken."""
    with pytest.raises(InputError) as error:
        from_mapping({"good": A, "ragged": [[1, 2], [3]], "worse": [[1], [2, 3]]})
    assert [problem.split(":")[0] for problem in error.value.problems] == ["'ragged'", "'worse'"]
    assert from_mapping({"good": A.tolist()})["good"].shape == (2, 3)
