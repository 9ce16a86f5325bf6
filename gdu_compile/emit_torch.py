"""The extended model as files that need only torch: a user trains them without gdu-compile.

NAME.py is a torch.nn.Module in plain Python, NAME.safetensors its tensors.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from gdu_compile import model_io
from gdu_compile.errors import InputError
from gdu_compile.metadata import Extension

SUFFIXES = (".py", ".safetensors")


def torch_name(output: Path) -> Path:
    """NAME.onnx, or NAME.py itself → NAME.py.

    Example:
        >>> torch_name(Path("build/net.gdu.onnx")), torch_name(Path("net.py"))
        (PosixPath('build/net.gdu.py'), PosixPath('net.py'))
    """
    name = output.name.removesuffix(".onnx").removesuffix(".py")
    return output.with_name(name + SUFFIXES[0])


def torch_files(output: Path) -> list[Path]:
    """All files that belong to a torch form."""
    return [torch_name(output).with_suffix(suffix) for suffix in SUFFIXES]


def check_torch_output(output: Path, *, force: bool, inputs: Iterable[object] = ()) -> None:
    """Raise InputError when one of the files may not be written: a look, nothing is made."""
    given = list(inputs)
    for target in torch_files(output):
        if any(model_io.is_read_from(each, target) for each in given):
            raise InputError(f"{target}: is an input of this very run; choose another -o")
        model_io.check_target(target, force=force)


def save_torch(extended: ir.Model, output: Path, *, force: bool = False) -> list[Path]:
    """Write the torch form, all its files or none; the same model gives the same bytes.

    Args:
        extended: the extended model.
        output: NAME.onnx or NAME.py.
        force: existing files may be replaced.

    Returns:
        The files.

    Raises:
        InputError: a file exists and ``force`` is not set, or the folder cannot be written.
        UnsupportedError: something has no form in Python source.
    """
    from safetensors.torch import save_file

    from gdu_compile.torch_backend import GraphModule, prepared
    from gdu_compile.torch_backend.source import tensors_of, to_source

    check_torch_output(output, force=force)
    facts = Extension.from_metadata(extended.metadata_props)
    model = prepared(extended)
    module = GraphModule(model, set(facts.theta_shapes))
    text = to_source(model, module, about_of(facts))
    source = torch_name(output)
    with model_io.staging(source) as folder:
        (folder / source.name).write_text(text, encoding="utf-8")
        tensors = {name: x.contiguous() for name, x in tensors_of(module).items()}
        save_file(tensors, folder / source.with_suffix(".safetensors").name)
        shutil.copymode(folder / source.name, folder / source.with_suffix(".safetensors").name)
        model_io.place(folder, source, force=force)
    return torch_files(output)


def about_of(facts: Extension) -> str:
    """One line: what the file is."""
    what = "the oracle's weights" if facts.memory is None else "weights computed from its data"
    return (f"An extended network: trained by gradient descent, it computes with {what}\n"
            f"(method {facts.method}, digits {facts.code.name}).")  # fmt: skip
