"""Tensors from .pt and .pth files: a state_dict, read with weights_only, memory-mapped.

Nothing in the file is run: torch.load(weights_only=True) builds tensors and plain
containers and refuses everything else.  This module imports torch, so it is
imported only when such a file is given.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import torch

from gdu_compile.arrays import ArrayHeader, Headers, short
from gdu_compile.digits import Array
from gdu_compile.errors import InputError

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")
"""Where checkpoints keep the network's state_dict, as trainers write them."""

DTYPES = {
    getattr(torch, name): np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
        "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "int64", "int32", "int16",
        "int8", "uint64", "uint32", "uint16", "uint8", "bool", "complex64", "complex128",
    )
}  # fmt: skip
# What numpy lacks goes from torch to numpy as whole numbers of the same bits.
BITS = {1: torch.uint8, 2: torch.uint16}


def torch_headers(path: Path) -> tuple[Headers, list[str], list[str]]:
    """The headers of a .pt file, what is wrong with the others, and what the reader should know.

    Raises:
        InputError: it needs more than weights_only allows, or holds no state_dict.
    """
    state_dict, notes = find_state_dict(load(path), path)
    headers: Headers = {}
    problems: list[str] = []
    ignored: list[str] = []
    for name, value in state_dict.items():
        if not isinstance(value, torch.Tensor) or not isinstance(name, str):
            ignored.append(f"{short(name)} ({type(value).__name__})")
        elif (complaint := unusable(value)) is not None:
            problems.append(f"{name!r} {complaint}")
        else:
            headers[name] = tensor_header(name, value)
    if ignored:
        more = f" and {len(ignored) - 12} more" if len(ignored) > 12 else ""
        notes.append(f"{path}: ignored, as no tensors: {', '.join(ignored[:12])}{more}")
    return headers, problems, notes


def load(path: Path) -> object:
    """What torch.load makes of the file, tensors memory-mapped where its format allows it.

    Raises:
        InputError: it needs more than weights_only allows.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # what torch.load looks at
    if zipped:
        check_members(path)
    else:
        check_legacy(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols and deprecated storages
            # torch maps its zip format only, not what it wrote before version 1.6.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S{1,100})", str(error))
        what = f"holds more than tensors ({found[1]})" if found else "is damaged, or holds more "\
            "than tensors and plain containers"  # fmt: skip
        raise InputError(
            f"{path}: {what}; to unpickle it could run code, so it is not done; where you trust "
            "it, load it and save its state_dict as .safetensors (safetensors.torch.save_file)"
        ) from error


def check_legacy(path: Path) -> None:
    """Raise InputError unless the file begins as torch.save began before version 1.6: two numbers.

    torch quotes what it finds there instead, which may be 2ⁿ long; it would unpack a tar file.
    """
    with path.open("rb") as file:
        try:
            found = [op.name for _ in range(2) for op, _, _ in pickletools.genops(file)]
        except Exception as error:  # whatever the bytes are
            found = [type(error).__name__]
    if set(found) - NUMBERS:
        raise InputError(f"{path}: is no file of torch.save; save module.state_dict() with it")


NUMBERS = {"PROTO", "FRAME", "LONG1", "LONG", "INT", "BININT", "BININT1", "BININT2", "MEMOIZE",
           "STOP"}  # fmt: skip


def check_members(path: Path) -> None:
    """Raise InputError for zip files that torch.save does not write: packed, or TorchScript."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(info.filename.endswith("/constants.pkl") for info in members):
        raise InputError(f"{path}: is a TorchScript archive, which holds code; save its state_dict "
                         "as .safetensors (safetensors.torch.save_file)")  # fmt: skip
    # A packed member may claim any size, and torch allocates what it claims.
    if packed := [info.filename for info in members if info.file_size != info.compress_size]:
        raise InputError(f"{path}: its member {packed[0]!r} is compressed, which torch.save does "
                         "not do; save it again with torch.save")  # fmt: skip


def find_state_dict(loaded: object, path: Path) -> tuple[Mapping[object, object], list[str]]:
    """The state_dict of a checkpoint, at the top or one level down, and a note saying where.

    Raises:
        InputError: there is none, or several.
    """
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path}: holds {a_kind(loaded)}, not a state_dict; save "
                         "module.state_dict()")  # fmt: skip
    nested = [key for key, value in loaded.items() if holds_tensors(value)]
    usual = [key for key in nested if key in STATE_DICT_KEYS]
    if not usual and holds_tensors(loaded):
        return loaded, []
    keys = usual or nested
    if len(keys) == 1:
        return loaded[keys[0]], [f"{path}: the state_dict under the key {keys[0]!r} is taken"]
    if not keys:
        raise InputError(f"{path}: holds no tensors; save module.state_dict()")
    raise InputError(f"{path}: holds {len(keys)} state_dicts, {', '.join(map(short, keys[:12]))}; "
                     "save the one that is meant")  # fmt: skip


def holds_tensors(value: object) -> bool:
    """Whether it maps names to tensors, among other things perhaps."""
    return isinstance(value, Mapping) and any(
        isinstance(name, str) and isinstance(entry, torch.Tensor) for name, entry in value.items()
    )


def a_kind(value: object) -> str:
    """The type of what was found instead, with its article."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def unusable(tensor: torch.Tensor) -> str | None:
    """Why a tensor has no plain array, with the way out, or None."""
    if tensor.is_quantized:
        return "is quantized; save tensor.dequantize(), or its int_repr()"
    if tensor.layout != torch.strided or tensor.is_nested:
        return f"is {str(tensor.layout).removeprefix('torch.')}; save tensor.to_dense()"
    if tensor.device.type != "cpu":
        return f"is on the device {tensor.device.type!r}, without contents; save it with its values"
    if tensor.dtype not in DTYPES:
        return f"is {tensor.dtype}, which is not supported; convert it"
    return None


def tensor_header(name: str, tensor: torch.Tensor) -> ArrayHeader:
    """The header of a tensor that unusable() has nothing against."""
    return ArrayHeader(name, tuple(tensor.shape), DTYPES[tensor.dtype], partial(to_array, tensor))


def in_memory(name: str, tensor: torch.Tensor) -> ArrayHeader:
    """The header of a tensor on any device, parameters too.

    Raises:
        ValueError: it has no plain array; says why.
    """
    here = tensor if tensor.device.type == "meta" else tensor.detach().cpu()
    if (complaint := unusable(here)) is not None:
        raise ValueError(complaint)
    return tensor_header(name, here)


def to_array(tensor: torch.Tensor) -> Array:
    """The same bits as a numpy array, a view where the tensor is contiguous.

    Example:
        >>> array = to_array(torch.tensor([1.0, -0.0], dtype=torch.bfloat16))
        >>> str(array.dtype), array.view("uint16").tolist()
        ('bfloat16', [16256, 32768])
    """
    dtype = DTYPES[tensor.dtype]
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if dtype.isbuiltin != 1:  # ml_dtypes'
        plain = plain.view(BITS[dtype.itemsize])
    array: Array = plain.numpy().view(dtype)
    return array
