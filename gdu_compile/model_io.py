"""Loading, raising to opset 18, and atomic saving of ONNX models."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common

from gdu_compile.errors import InputError, UnsupportedError

OPSET = 18
"""Our nodes are written for this opset and newer ones."""

# Above this, tensors go to NAME.data: protobuf ends at 2 GB, and one message is one copy in memory.
EXTERNAL_BYTES = 1 << 30


def load(path: str | PathLike[str]) -> ir.Model:
    """Read an ONNX file as it is.

    Raises:
        InputError: not there, not ONNX, cut short, or its external data cannot be used.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        model = ir.load(path)
    except (DecodeError, ValueError, TypeError, KeyError, OSError, RuntimeError) as error:
        raise InputError(
            f"{path}: cannot be read as ONNX ({type(error).__name__}: {first_line(error)})"
        ) from error
    if len(model.graph) == 0:
        raise InputError(f"{path}: holds no ONNX graph (no nodes)")
    check_external(model, path)
    return model


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).splitlines() or [""])[0]


def check_external(model: ir.Model, path: Path) -> None:
    """Raise InputError when external data leaves the folder, is a link, or is too short."""
    problems = []
    folder = path.resolve().parent
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor):
                continue
            file = folder / tensor.location
            if folder not in Path(os.path.normpath(file)).parents:
                problems.append(f"{name!r} lies outside the model's folder: {tensor.location}")
            elif not file.is_file():
                problems.append(f"{name!r}: {tensor.location} is missing")
            elif file.is_symlink() or file.stat().st_nlink > 1:
                problems.append(f"{name!r}: {tensor.location} is a link; copy the file itself")
            elif (tensor.offset or 0) + tensor.nbytes > file.stat().st_size:
                problems.append(f"{name!r}: {tensor.location} is too short")
    if problems:
        raise InputError(f"{path}: its external data cannot be used", problems)


def opset_of(model: ir.Model) -> int:
    """Version of the default domain."""
    return int(model.graph.opset_imports.get("", 1))


def raise_opset(model: ir.Model) -> ir.Model:
    """The model at opset 18 or above; itself when it is there already.

    Raises:
        UnsupportedError: onnx.version_converter cannot raise it.
    """
    version = opset_of(model)
    if version >= OPSET:
        return model
    # The converter drops model-local functions, so they are inlined first.
    common.InlinePass()(model)
    try:
        proto = onnx.version_converter.convert_version(ir.to_proto(model), OPSET)
    except Exception as error:
        # The C++ converter raises plain RuntimeError and onnx's own types alike.
        raise UnsupportedError(
            f"the model has opset {version}, and onnx.version_converter cannot raise it to "
            f"{OPSET}: {first_line(error)}; export it with opset {OPSET} or above"
        ) from error
    return ir.from_proto(proto)


def tensor_bytes(model: ir.Model) -> int:
    """Bytes of all initializers (never ask a big proto for its size)."""
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def file_bytes(path: Path) -> int:
    """Bytes of a model file and its external data."""
    data = path.with_name(path.name + ".data")
    return path.stat().st_size + (data.stat().st_size if data.is_file() else 0)


def write(model: ir.Model, path: Path) -> None:
    """Write in place (for temporary files); tensors go to PATH.data above EXTERNAL_BYTES."""
    external = f"{path.name}.data" if tensor_bytes(model) > EXTERNAL_BYTES else None
    if external is None:
        internal(model)
    ir.save(model, path, external_data=external)


def internal(model: ir.Model) -> None:
    """External tensors become references to memory-mapped bytes, to be written inline."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)


def save(model: ir.Model, path: str | PathLike[str], *, force: bool = False) -> int:
    """Write, check with onnx.checker, and move into place; returns the bytes written.

    Raises:
        InputError: the file exists and ``force`` is not set, or the folder cannot be written.
    """
    path = Path(path)
    check_output(path, force=force)
    with staging(path) as folder:
        staged = folder / path.name
        write(model, staged)
        onnx.checker.check_model(str(staged))
        size = file_bytes(staged)
        for file in sorted(folder.iterdir(), reverse=True):  # the data before what points to it
            file.replace(path.with_name(file.name))
    return size


def check_output(path: Path, *, force: bool) -> None:
    """Raise InputError when ``path`` may not be written."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    if path.exists() and not force:
        raise InputError(f"{path}: exists; use --force to replace it")


@contextmanager
def staging(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, on the same file system; gone afterwards."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".gdu-", dir=path.parent))
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written ({error.strerror})") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
