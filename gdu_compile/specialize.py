"""Partial evaluation of an extended model: the decoder alone, the base with given weights.

Once θ is known, If(armed) is decided and decode(θ) is a constant; what is left
is the base.  The decoder is evaluated by onnxruntime from the file itself, not
by our numpy code, so what is folded is what a user's runtime computes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from gdu_compile import runtime
from gdu_compile.digits import Array
from gdu_compile.encoding import Units
from gdu_compile.errors import InputError
from gdu_compile.metadata import Extension
from gdu_compile.number_formats import numpy_dtype
from gdu_compile.passes.fill_theta import FillThetaPass
from gdu_compile.passes.normalize import NormalizePass
from gdu_compile.passes.remove_extension import RemoveExtensionPass


def filled(extended: ir.Model, theta: Mapping[str, Array]) -> ir.Model:
    """A copy of the extended model with trained θ; tensors are shared, not copied."""
    model = extended.clone()
    FillThetaPass(theta)(model)
    return model


def fill(part: ir.Model, theta: Mapping[str, Array]) -> None:
    """θ into a copy of an extended model, or into the ``decoder`` of one, in place."""
    for name, array in theta.items():
        part.graph.initializers[name].const_value = ir.Tensor(array, name=name)


def untrained_theta(facts: Extension) -> dict[str, Array]:
    """θ as compile() writes it: zeros."""
    dtype = numpy_dtype(facts.theta_dtype)
    return {name: np.zeros(shape, dtype=dtype) for name, shape in facts.theta_shapes.items()}


def without_extension(extended: ir.Model, weights: Mapping[str, Array]) -> ir.Model:
    """The base network, with the given weights in the recorded places."""
    model = extended.clone()
    RemoveExtensionPass(weights)(model)
    return model


def with_weights(base: ir.Model, weights: Mapping[str, Array]) -> ir.Model:
    """The base as its file has it, holding w*: only constants change."""
    model = base.clone()
    NormalizePass()(model)
    for name, array in weights.items():
        model.graph.initializers[name].const_value = ir.Tensor(array, name=name)
    return model


def signal_units(extended: ir.Model, name: str) -> Units:
    """The units [elements, units] in a signal initializer."""
    tensor = extended.graph.initializers[name].const_value
    if tensor is None:
        raise InputError(f"signal {name!r} has no value")
    units: Units = tensor.numpy()
    return units


def oracle_in(extended: ir.Model) -> dict[str, Array]:
    """w*, read off the signals of an extended model."""
    facts = Extension.from_metadata(extended.metadata_props)
    return {
        slot.weight: bucket.encoding(facts.code).from_units(
            signal_units(extended, slot.signal), slot.shape
        )
        for bucket, slot in facts.slots()
    }


def decoder(trained: ir.Model) -> ir.Model:
    """The part of the model that computes the weights: no inputs, one output per weight."""
    facts = Extension.from_metadata(trained.metadata_props)
    graph = ir.convenience.extract(
        trained.graph, inputs=[], outputs=[weight.name for weight in facts.weights]
    )
    return ir.Model(graph, ir_version=trained.ir_version)


def decoded_weights(trained: ir.Model, *, level: str = "none") -> dict[str, Array]:
    """The weights as onnxruntime computes them from θ, at the given optimisation level."""
    with runtime.on_disk(decoder(trained)) as path:
        return runtime.run(path, {}, level=level)


def is_armed(trained: ir.Model) -> bool:
    """All calibrators ≠ 0."""
    facts = Extension.from_metadata(trained.metadata_props)
    return all(bool(np.all(facts.calibrators(array) != 0)) for array in theta_in(trained).values())


def theta_in(extended: ir.Model) -> dict[str, Array]:
    """θ as the model holds it."""
    facts = Extension.from_metadata(extended.metadata_props)
    tensors = {name: extended.graph.initializers[name].const_value for name in facts.theta_shapes}
    return {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}


def extract(trained: ir.Model) -> ir.Model:
    """The plain base network with the weights that training has written into θ.

    Raises:
        InputError: not an extended model, or never trained.
    """
    Extension.from_metadata(trained.metadata_props)
    if not is_armed(trained):
        raise InputError(
            "the model has not recorded anything yet (a calibrator is 0): train it first, "
            "with gdu-compile train, or fill in θ with gdu-compile apply"
        )
    return without_extension(trained, decoded_weights(trained))
