"""Inputs with default values: from IR version 4 on, initializers that are inputs, too.

The extended model computes the weights among them, and has them all as constants.  The base that
it is compared with has them as its file has, and what ``extract`` writes has them again.
onnxruntime packs and fuses constants ahead, and not such inputs: with all optimisations the last
bits of the two forms may differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common

DEFAULTS_SINCE = 4
"""Before this IR version every initializer had to be an input, and was a constant all the same."""


def with_defaults(model: ir.Model) -> list[str]:
    """The names of the inputs that have default values, in order."""
    if model.ir_version < DEFAULTS_SINCE:
        return []
    inputs, weights = model.graph.inputs, model.graph.initializers
    return [str(value.name) for value in inputs if value.name in weights]


def make_constants(model: ir.Model) -> ir.Model:
    """Take all initializers out of the inputs, in place; returns the model."""
    common.RemoveInitializersFromInputsPass()(model)
    return model


def make_inputs(model: ir.Model, names: Sequence[str]) -> None:
    """Make inputs of the initializers among ``names`` again, in place.

    Args:
        model: the model.
        names: of all inputs that it had, in their order; () changes nothing.
    """
    graph = model.graph
    known = {**graph.initializers, **{str(value.name): value for value in graph.inputs}}
    inputs = [known[name] for name in dict.fromkeys([*names, *(v.name or "" for v in graph.inputs)])
              if name in known]  # fmt: skip
    graph.inputs.clear()
    graph.inputs.extend(inputs)


def note(names: Sequence[str]) -> str:
    """What becomes of inputs with default values, for a warning."""
    listed = ", ".join(map(repr, names[:4])) + " …" * (len(names) > 4)
    return (f"inputs with default values ({listed}) are constants in the extended model, and can "
            "be given again in what extract writes")  # fmt: skip
