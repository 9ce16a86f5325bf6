"""Partial evaluation of an extended model: the decoder alone, the base with given weights.

Once θ is known, If(armed) is decided and decode(θ) is a constant; what is left
is the base.  The decoder is evaluated by onnxruntime from the file itself, not
by our numpy code, so what is folded is what a user's runtime computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from gdu_compile import model_io, runtime
from gdu_compile.algorithm import AlgorithmGraph, flag_loops
from gdu_compile.contracts import Restored, state_of
from gdu_compile.default_inputs import make_inputs
from gdu_compile.digits import Array
from gdu_compile.encoding import Units
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.graph_view import branches, nested
from gdu_compile.metadata import Extension
from gdu_compile.number_formats import numpy_dtype
from gdu_compile.passes.check import theta_problems
from gdu_compile.passes.fill_theta import FillThetaPass
from gdu_compile.passes.normalize import NormalizePass
from gdu_compile.passes.remove_extension import RemoveExtensionPass
from gdu_compile.places import stand
from gdu_compile.restoring import put_back


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


def with_weights(
    base: ir.Model, weights: Mapping[str, Array], restored: Sequence[Restored] = ()
) -> ir.Model:
    """The base as its file has it, holding w*: only constants change, and what was put back.

    What only the raised model has (attributes that become initializers) is put into that.

    Raises:
        UnsupportedError: a weight is found in neither.
    """
    model = base.clone()
    if missing := not_placed(model, weights, restored):
        model = model_io.raise_opset(base.clone())
        missing = not_placed(model, weights, restored)
    if missing:
        raise UnsupportedError(
            f"{', '.join(missing[:4])}: not found in the model as its file has it; export it with "
            f"opset {model_io.OPSET} or above"
        )
    for name, array in weights.items():
        model.graph.initializers[name].const_value = ir.Tensor(array, name=name)
    make_inputs(model, state_of(model).inputs)
    return model


def not_placed(
    model: ir.Model, weights: Mapping[str, Array], restored: Sequence[Restored]
) -> list[str]:
    """Make initializers of the weights, in place; the names of those that are not to be found."""
    NormalizePass()(model)
    put_back(model, restored)
    stand(model, weights, untie=True)
    return sorted(set(weights) - set(model.graph.initializers))


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


def memory_reader(extended: ir.Model) -> ir.Model:
    """The part that reads the memory back: no inputs; one output per field, and the labels."""
    facts = Extension.from_metadata(extended.metadata_props)
    assert facts.algorithm is not None
    return armed_part(extended, [], facts.algorithm.inputs)


def algorithm_in(extended: ir.Model) -> AlgorithmGraph:
    """The algorithm inside an extended model, to be run alone."""
    facts = Extension.from_metadata(extended.metadata_props)
    assert facts.algorithm is not None
    names = [weight.name for weight in facts.weights]
    model = armed_part(extended, facts.algorithm.inputs, names)
    flags = flag_loops(model)
    return AlgorithmGraph(facts.algorithm.name, model, facts.algorithm.inputs, flags)


def armed_part(extended: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """A part of the armed branch of the weights' switch as a model of its own.

    Args:
        extended: an extended model of method learn.
        inputs: values of the branch that become inputs.
        outputs: values of the branch, or names of weights.
    """
    model = extended.clone()
    facts = Extension.from_metadata(model.metadata_props)
    switch = next(
        node for node in model.graph if facts.weights[0].name in {v.name for v in node.outputs}
    )
    branch = switch.attributes["then_branch"].as_graph()
    made = {str(value.name): value for node in branch for value in node.outputs}
    made |= {str(w.name): v for w, v in zip(switch.outputs, branch.outputs, strict=True)}
    given = [ir.Value(name=name, type=made[name].type, shape=made[name].shape) for name in inputs]
    for value in given:
        made[str(value.name)].replace_all_uses_with(value)
        made[str(value.name)].name = f"{value.name}_inside"
    results = [made[name] for name in outputs]
    nodes = needed(branch, results)
    branch.outputs.clear()
    branch.remove(list(branch))
    for name, value in zip(outputs, results, strict=True):
        value.name = name
    thetas = [] if inputs else [model.graph.initializers.pop(name) for name in facts.theta_shapes]
    part = ir.Graph(given, results, nodes=nodes, initializers=thetas, name="part",
                    opset_imports=model.graph.opset_imports)  # fmt: skip
    return ir.Model(part, ir_version=model.ir_version)


def needed(graph: ir.Graph, results: Sequence[ir.Value]) -> list[ir.Node]:
    """The nodes of a graph from which these values are computed, in order."""
    wanted = {value.producer() for value in results}
    for node in reversed(list(graph)):
        if node in wanted:
            used = [value for inner in nested(node) for value in inner.inputs if value is not None]
            used += [value for _, body in branches(node) for value in body.outputs]
            wanted |= {value.producer() for value in used}
    return [node for node in graph if node in wanted]


def decoded_weights(trained: ir.Model, *, level: str = "none") -> dict[str, Array]:
    """The weights as onnxruntime computes them from θ, at the given optimisation level."""
    with runtime.on_disk(decoder(trained)) as path:
        return runtime.run(path, {}, level=level)


def is_armed(trained: ir.Model) -> bool:
    """All calibrators ≠ 0."""
    facts = Extension.from_metadata(trained.metadata_props)
    return all(bool(np.all(facts.calibrators(array) != 0)) for array in theta_in(trained).values())


def theta_in(extended: ir.Model) -> dict[str, Array]:
    """θ as the model holds it.

    Raises:
        InputError: a θ is not there, or not what the metadata says.
    """
    facts = Extension.from_metadata(extended.metadata_props)
    wanted = [(name, list(shape), facts.theta_dtype) for name, shape in facts.theta_shapes.items()]
    if problems := [problem for row in wanted for problem in theta_problems(extended, *row)]:
        raise InputError("the extension is not what its metadata says; was it changed?", problems)
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
