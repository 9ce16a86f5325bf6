"""θ from elsewhere: a .safetensors, .npz or .pt file, or a trained .onnx, made by anybody."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from gdu_compile import model_io
from gdu_compile.arrays import ArrayHeader, from_mapping
from gdu_compile.digits import Array
from gdu_compile.errors import InputError
from gdu_compile.metadata import Extension
from gdu_compile.oracle_weights import OracleWeights

TrainedLike = str | PathLike[str] | Mapping[str, object]


def load_theta(trained: TrainedLike, facts: Extension) -> dict[str, Array]:
    """The θ of an extended model; tensors that are not θ are ignored.

    Names are matched as they are, or with a prefix that ends in a dot (``module.``,
    ``_orig_mod.``), as wrappers of torch modules write them.

    Args:
        trained: file or mapping.
        facts: the extended model's own metadata.

    Raises:
        InputError: the file cannot be used, or a θ is missing, ambiguous or misshaped.
    """
    headers, source = headers_of(trained)
    problems: list[str] = []
    theta: dict[str, Array] = {}
    for bucket, shape in facts.theta_shapes.items():
        names = [n for n in headers if n == bucket or n.endswith("." + bucket)]
        if len(names) != 1:
            problems.append(f"θ {bucket!r} is there {len(names)} times, not once")
            continue
        header = headers[names[0]]
        if str(header.dtype) != facts.theta_dtype or header.shape != shape:
            problems.append(f"θ {header.name!r} is {header.dtype} {list(header.shape)}, "
                            f"but must be {facts.theta_dtype} {list(shape)}")  # fmt: skip
            continue
        theta[bucket] = header.load()
    if problems:
        present = ", ".join(list(headers)[:12]) or "nothing"
        raise InputError(f"{source}: does not hold the trained θ", [
            *problems, f"it holds {present}; a state_dict of the extended model is expected"
        ])  # fmt: skip
    return theta


def headers_of(trained: TrainedLike) -> tuple[Mapping[str, ArrayHeader], str]:
    """The arrays in a file or mapping, and what to call it in messages."""
    if isinstance(trained, Mapping):
        return from_mapping(trained), "the trained tensors"
    path = Path(trained)
    if path.suffix != ".onnx":
        return OracleWeights.read(path), str(path)
    model = model_io.load(path)
    arrays = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and name.startswith("gdu_theta")
    }
    return from_mapping({name: tensor.numpy() for name, tensor in arrays.items()}), str(path)
