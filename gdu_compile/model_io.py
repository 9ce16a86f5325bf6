"""Loading, raising to opset 18, and atomic saving of ONNX models."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from gdu_compile import map_types, reading, streaming, well_formed
from gdu_compile.contracts import graph_problems, state_of
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.files import check_input
from gdu_compile.graph_view import called
from gdu_compile.shapes import fits

OPSET = 18
"""Our nodes are written for this opset and newer ones."""

LENIENT = ("topologically sorted", "No opset import", "No Op registered", "Field 'type'",
           "Field 'shape' of 'type'",
           "Unrecognized type value case", "Field 'name' of 'graph'")  # fmt: skip
"""Complaints of onnx.checker about models that onnxruntime may take all the same."""

# Above this, tensors go to NAME.data: protobuf ends at 2 GB.
EXTERNAL_BYTES = 1 << 30

STRANGERS = "gdu.strangers"

# Above this, tensors of a temporary file do: onnxruntime maps them then, and reads no message.
TEMPORARY_BYTES = 16 << 20


def load(path: str | PathLike[str]) -> ir.Model:
    """Read an ONNX file as it is.

    Raises:
        InputError: not there, not ONNX, cut short, refused by onnx.checker, or its external
            data cannot be used.
    """
    path = Path(path)
    check_input(path)
    try:
        model = reading.read(path)
    except UnsupportedError:
        raise
    except Exception as error:
        # protobuf and onnx_ir raise a dozen types on damaged input.
        raise InputError(
            f"{path}: cannot be read as ONNX ({root_cause(error)}); not an ONNX file, or cut "
            "short, or broken: export it again, or download it again"
        ) from error
    if len(model.graph) == 0:
        raise InputError(f"{path}: holds no ONNX graph (no nodes); export it again")
    well_formed.check(model, path)
    check_declared(model, path)
    check_external(model, path)
    check_standard(model, path)
    well_formed.check_made(model, path)
    return model


def inline(model: ir.Model) -> None:
    """Inline the model-local functions, in place.

    Raises:
        UnsupportedError: they are not written for the model's opset, or take graphs.
    """
    if not model.functions:
        return
    try:
        common.InlinePass()(model)
    except Exception as error:  # onnx_ir's many
        raise UnsupportedError(f"the model-local functions cannot be inlined ({root_cause(error)});"
                               " export the model without them") from error  # fmt: skip


def check_standard(model: ir.Model, path: Path) -> None:
    """Raise InputError when onnx.checker refuses the file (what save() would refuse later).

    What onnxruntime takes all the same (``LENIENT``) is taken, with a note.
    """
    newest = onnx.defs.onnx_opset_version()
    if opset_of(model) > newest:
        raise InputError(f"{path}: has opset {opset_of(model)}, but onnx {onnx.__version__} ends "
                         f"at {newest}; export it with that, or install a newer onnx")  # fmt: skip
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        if any(text in str(error) for text in LENIENT) and runs(path):
            state_of(model).notes.append(
                f"onnx.checker refuses the model and onnxruntime takes it: {lines[0].strip()}"
            )
            if graph_problems(model):  # onnxruntime takes nodes in any order
                well_formed.sort_nodes(model, path)
            return
        raise InputError(
            f"{path}: is no valid ONNX model; export it again, or repair it until "
            "onnx.checker.check_model accepts it", lines[:4],
        ) from error  # fmt: skip


def runs(path: Path) -> bool:
    """Whether onnxruntime loads the file."""
    from gdu_compile import runtime

    try:
        runtime.session(path, "none")
    except InputError:
        return False
    return True


def holds(path: Path, text: bytes, block: int = 1 << 20) -> bool:
    """Whether the bytes are somewhere in the file; it is read block by block."""
    with path.open("rb") as file:
        end = b""
        while read := file.read(block):
            if text in end + read:
                return True
            end = read[-len(text) :]
    return False


def check_declared(model: ir.Model, path: Path) -> None:
    """Raise InputError when an initializer is not of the type that the graph declares for it.

    Where the graph leaves something open, it is the tensor's.
    """
    problems = []
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            tensor, declared = value.const_value, value.shape
            if tensor is None:
                continue
            sizes = list(tensor.shape.numpy())
            dtype = value.dtype or tensor.dtype
            if dtype != tensor.dtype or (declared is not None and not fits(declared, sizes)):
                problems.append(f"{name!r} is declared {value.dtype} {declared}, but holds "
                                f"{tensor.dtype} {sizes}")  # fmt: skip
            value.shape, value.type = ir.Shape(sizes), ir.TensorType(tensor.dtype)
    if problems:
        raise InputError(f"{path}: is no valid ONNX model; export it again", problems)


def root_cause(error: BaseException) -> str:
    """What an error that wraps others began with."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).splitlines() or [""])[0]


def check_external(model: ir.Model, path: Path) -> None:
    """Raise InputError when external data leaves the folder, is a link, or is too short."""
    complaints = ((t.name, external_problem(t)) for t in external_tensors(model))
    if problems := [f"{name!r}: {reason}" for name, reason in complaints if reason is not None]:
        raise InputError(f"{path}: its external data cannot be used", problems)


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Initializers and Constant nodes that are kept outside the model file."""
    for graph in well_formed.all_graphs(model):
        yield from (t for _, t in well_formed.tensors_in(graph) if isinstance(t, ir.ExternalTensor))


def external_files(model: ir.Model) -> set[Path]:
    """The files beside the model's own in which it keeps tensors."""
    return {Path(tensor.path).resolve() for tensor in external_tensors(model)}


def keeps_tensors_in(path: Path, data: Path) -> bool:
    """Whether the model file points to ``data``; a file that does not name it is not parsed."""
    try:
        if not holds(path, data.name.encode()):
            return False
        return data.resolve() in external_files(reading.read(path))
    except Exception:  # what cannot be read as a model points nowhere
        return False


def external_problem(tensor: ir.ExternalTensor) -> str | None:
    """Why a tensor's external data cannot be used, with the way out, or None."""
    folder, file = Path(tensor.base_dir).resolve(), Path(tensor.path)
    if folder not in Path(os.path.normpath(folder / tensor.location)).parents:
        return f"{tensor.location} lies outside the model's folder; move it there and save again"
    if not os.path.isfile(file):  # noqa: PTH113 (Path raises where a name is too long)
        return f"{tensor.location} is missing; put it beside the model"
    if file.is_symlink() or file.stat().st_nlink > 1 or folder not in file.resolve().parents:
        return f"{tensor.location} is a link; copy the file itself"
    first, length = tensor.offset or 0, tensor.length
    if first < 0 or length not in (None, tensor.nbytes):
        return (f"its place in {tensor.location} (offset {first}, length {length}) does not fit "
                f"its {tensor.nbytes} bytes; save the model again")  # fmt: skip
    if (size := file.stat().st_size) < first + tensor.nbytes:
        return (f"{tensor.location} is too short ({size} bytes, {first + tensor.nbytes} needed); "
                "copy it again")  # fmt: skip
    return None


def opset_of(model: ir.Model) -> int:
    """Version of the default domain."""
    return int(model.graph.opset_imports.get("", 1))


def raise_opset(model: ir.Model, least: int = OPSET) -> ir.Model:
    """The model at opset ``least`` or above; itself when it is there already.

    Raises:
        UnsupportedError: onnx.version_converter cannot raise it.
    """
    version = opset_of(model)
    if version >= least:
        return model
    # The converter drops model-local functions, so they are inlined first.
    inline(model)
    check_raisable(model, version)
    strangers = hide_strangers(model, version)
    try:
        whole = ir.to_proto(model)
        map_types.put_back(whole.graph)
        proto = onnx.version_converter.convert_version(whole, least)
        keep_said(proto.graph, whole.graph)
        map_types.take_off(proto.graph)
        bring_back(proto, strangers)
    except Exception as error:
        # The C++ converter raises plain RuntimeError and onnx's own types alike.
        raise UnsupportedError(
            f"the model has opset {version}, and onnx.version_converter cannot raise it to "
            f"{least}: {first_line(error)}; export it with opset {least} or above"
        ) from error
    raised = ir.from_proto(proto)
    state_of(raised).notes += state_of(model).notes
    return raised


def keep_said(graph: onnx.GraphProto, before: onnx.GraphProto) -> None:
    """Take out the shapes that the converter infers: onnxruntime fuses more where shapes are said,
    and its last bits are to be those of the file."""
    said = {info.name for info in before.value_info}
    kept = [info for info in graph.value_info if info.name in said]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def hide_strangers(model: ir.Model, version: int) -> bool:
    """Move nodes that the operator set does not have into a domain that the converter passes over:
    onnxruntime had LayerNormalization before opset 17, and has others still."""
    found = [
        node for graph in model.graphs() for node in graph
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type, version)
    ]  # fmt: skip
    for node in found:
        node.domain = STRANGERS
    if found:
        model.graph.opset_imports[STRANGERS] = 1
    return bool(found)


def bring_back(proto: onnx.ModelProto, strangers: bool) -> None:
    """Undo ``hide_strangers``."""
    if not strangers:
        return
    for graph in reading.graphs(proto.graph):
        for node in graph.node:
            node.domain = "" if node.domain == STRANGERS else node.domain
    kept = [entry for entry in proto.opset_import if entry.domain != STRANGERS]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def check_raisable(model: ir.Model, version: int) -> None:
    """Raise UnsupportedError for what onnx.version_converter would turn into something else."""
    problems = []
    for node in (node for graph in model.graphs() for node in graph):
        if node.op_type == "Scan" and version < 9:
            problems.append(f"node {called(node)}: Scan had a batch axis before opset 9")
        slope = node.inputs[1] if node.op_type == "PRelu" else None
        if slope is not None and version < 7 and (slope.shape is None or slope.shape != (1,)):
            problems.append(f"node {called(node)}: PRelu had a slope per channel before opset 7")
    if problems:
        raise UnsupportedError(
            f"the model has opset {version}, and onnx.version_converter cannot raise it; export "
            "it again with a newer exporter", problems
        )  # fmt: skip


def tensor_bytes(model: ir.Model) -> int:
    """Bytes of all initializers (never ask a big proto for its size)."""
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def data_of(path: Path) -> Path:
    """Where the tensors of a model file go when it gets too large."""
    return path.with_name(f"{path.name}.data")


def file_bytes(path: Path, model: ir.Model | None = None) -> int:
    """Bytes of a model file and of the files that it keeps tensors in, each once.

    Args:
        path: the model file.
        model: its content, when it is loaded already.
    """
    files = external_files(reading.read(path) if model is None else model)
    return sum(file.stat().st_size for file in (path, *files))


def write(model: ir.Model, path: Path, *, limit: int | None = None) -> bool:
    """Write in place (for temporary files); returns whether tensors went to PATH.data.

    Args:
        model: the model.
        path: the file.
        limit: bytes of tensors above which they go there; None for EXTERNAL_BYTES.
    """
    if tensor_bytes(model) > (EXTERNAL_BYTES if limit is None else limit):
        ir.save(model, path, external_data=data_of(path).name)
        if map_types.has_maps(model):
            map_types.put_back_in(path)
        return True
    internal(model)
    streaming.write(model, path)
    return False


def internal(model: ir.Model) -> None:
    """External tensors of branches and of nodes become mapped bytes, to be written inline."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if graph is not model.graph and isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
        for node in graph:
            for name, attribute in node.attributes.items():
                if attribute.type == ir.AttributeType.TENSOR and isinstance(
                    attribute.value, ir.ExternalTensor
                ):
                    node.attributes[name] = ir.AttrTensor(name, ir.Tensor(attribute.value.numpy()))


def save(model: ir.Model, path: str | PathLike[str], *, force: bool = False) -> int:
    """Write, check with onnx.checker, and move into place; returns the bytes written.

    Raises:
        InputError: a file exists and ``force`` is not set, or the folder cannot be written.
    """
    path = Path(path)
    check_output(path, force=force)
    with staging(path) as folder:
        staged = folder / path.name
        inside = not write(model, staged)
        try:
            # By its path the checker would load the whole file.
            streaming.check(model) if inside else onnx.checker.check_model(str(staged))
        except onnx.checker.ValidationError as error:
            if not any(text in str(error) for text in LENIENT) or not runs(staged):
                raise
        return place(folder, path, force=force)


def place(folder: Path, path: Path, *, force: bool) -> int:
    """Move the staged model to ``path``, and its data beside it; returns their bytes.

    The data of the model that is replaced goes with it.

    Raises:
        InputError: one of the files exists and ``force`` is not set; then none is moved.
    """
    files = sorted(folder.iterdir(), reverse=True)  # the data before what points to it
    targets = [path.with_name(file.name) for file in files]
    for target in targets:
        check_target(target, force=force)
    size = sum(file.stat().st_size for file in files)
    old = data_of(path)
    stale = old not in targets and keeps_tensors_in(path, old)
    for file, target in zip(files, targets, strict=True):
        file.replace(target)
    if stale:
        old.unlink()
    return size


def check_output(path: Path, *, force: bool, inputs: Iterable[object] = ()) -> None:
    """Raise InputError when a model may not be written: a look, nothing is made.

    Args:
        path: the model file; tensors may go to PATH.data.
        force: existing files may be replaced.
        inputs: what the run was given; its files are not replaced in any case.
    """
    data = data_of(path)
    for given in inputs:
        for target in (path, data):
            if is_read_from(given, target):
                raise InputError(f"{target}: is an input of this very run; choose another -o")
    check_target(path, force=force)
    if not force and os.path.lexists(data):
        raise InputError(f"{data}: exists, and tensors may have to go there; use --force to "
                         "replace it, or choose another -o")  # fmt: skip


def is_read_from(given: object, target: Path) -> bool:
    """Whether something that was given is, or keeps tensors in, the file ``target``."""
    if isinstance(given, ir.Model):
        return target.resolve() in external_files(given)
    if not isinstance(given, str | PathLike) or not os.path.lexists(target):
        return False
    path = Path(given)
    return path.resolve() == target.resolve() or (
        path.suffix == ".onnx" and keeps_tensors_in(path, target)
    )


def check_target(path: Path, *, force: bool) -> None:
    """Raise InputError when one file may not be written."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name a file")
        if path.exists() and not force:
            raise InputError(f"{path}: exists; use --force to replace it")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another -o") from (
            error
        )
    if not folder.is_dir():
        raise InputError(f"{path}: cannot be written, {folder} is a file; choose another -o")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path}: cannot be written, {folder} is read-only; choose another -o")


@contextmanager
def staging(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, on the same file system; gone afterwards.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    made = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".gdu-", dir=path.parent) as folder:
            yield Path(folder)
    except BaseException as error:
        for parent in made:  # the innermost first; one that holds something stays
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise InputError(f"{path}: cannot be written ({error})") from error
        raise
