"""The extended model as files that need only torch: a user trains them without gdu-compile.

NAME.py is a torch.nn.Module in plain Python, NAME.safetensors its tensors; NAME.pt2 is a program of
torch.export.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from gdu_compile import model_io
from gdu_compile.errors import InputError
from gdu_compile.metadata import Extension

SOURCE, TENSORS, PROGRAM = ".py", ".safetensors", ".pt2"


def torch_files(output: Path) -> list[Path]:
    """What is written: NAME.pt2 alone, or NAME.py and NAME.safetensors, also for NAME.onnx.

    Example:
        >>> [str(path) for path in torch_files(Path("build/net.gdu.onnx"))]
        ['build/net.gdu.py', 'build/net.gdu.safetensors']
        >>> [str(path) for path in torch_files(Path("net.pt2"))]
        ['net.pt2']
    """
    if output.suffix == PROGRAM:
        return [output]
    name = output.name.removesuffix(".onnx").removesuffix(SOURCE)
    return [output.with_name(name + suffix) for suffix in (SOURCE, TENSORS)]


def check_torch_output(output: Path, *, force: bool, inputs: Iterable[object] = ()) -> None:
    """Raise InputError when one of the files may not be written: a look, nothing is made."""
    given = list(inputs)
    for target in torch_files(output):
        if any(model_io.is_read_from(each, target) for each in given):
            raise InputError(f"{target}: is an input of this very run; choose another -o")
        model_io.check_target(target, force=force)


def save_torch(extended: ir.Model, output: Path, *, force: bool = False) -> list[Path]:
    """Write a torch form, all its files or none.

    The same model gives the same bytes, but for NAME.pt2, in which torch.export numbers things.

    Args:
        extended: the extended model.
        output: NAME.py, NAME.onnx for the files beside it, or NAME.pt2.
        force: existing files may be replaced.

    Returns:
        The files.

    Raises:
        InputError: a file exists and ``force`` is not set, or the folder cannot be written.
        UnsupportedError: something has no form in Python source, or torch.export refuses.
    """
    from gdu_compile.torch_backend import GraphModule, only_output, prepared
    from gdu_compile.torch_backend.exported import save_program

    check_torch_output(output, force=force)
    facts = Extension.from_metadata(extended.metadata_props)
    model = prepared(extended, only_output(facts))
    module = GraphModule(model, set(facts.theta_shapes))
    files = torch_files(output)
    with model_io.staging(files[0]) as folder:
        if output.suffix == PROGRAM:
            save_program(model, module, folder / output.name)
        else:
            write_source(model, module, about_of(facts), folder, files)
        model_io.place(folder, files[0], force=force)
    return files


def write_source(
    model: ir.Model, module: object, about: str, folder: Path, files: list[Path]
) -> None:
    """NAME.py and NAME.safetensors into a folder."""
    from safetensors.torch import save_file

    from gdu_compile.torch_backend import GraphModule
    from gdu_compile.torch_backend.source import tensors_of, to_source

    assert isinstance(module, GraphModule)
    source, tensors = (folder / file.name for file in files)
    source.write_text(to_source(model, module, about), encoding="utf-8")
    save_file({name: x.contiguous() for name, x in tensors_of(module).items()}, tensors)
    shutil.copymode(source, tensors)  # safetensors keeps its files from other users


def about_of(facts: Extension) -> str:
    """What the file is, in two lines."""
    what = "the oracle's weights" if facts.memory is None else "weights computed from its data"
    return (f"An extended network: trained by gradient descent, it computes with {what}\n"
            f"(method {facts.method}, digits {facts.code.name}).")  # fmt: skip
