"""NormalizePass: every weight becomes an initializer of the main graph.

Before: weights may hide in Constant nodes, branches, model-local functions,
attributes of classical-ML operators or old-style graph inputs.  After: functions are
inlined, all constants are initializers of the main graph, those in attributes too
(LiftAttributesPass), and initializers are no graph inputs.
State: ``lifted`` (which initializers were Constant nodes, so that
RestoreConstantsPass can put them back), ``source`` (hash of the base's header) and ``inputs``
(where some have default values).
Refuses: models that are extended already, wholly or in part; random and training-mode operators;
names that have two meanings.
"""

from __future__ import annotations

import hashlib

import onnx_ir as ir
from gdu_compile.passes._base import GduPass
from gdu_compile.passes.lift_attributes import LiftAttributesPass
from onnx_ir.passes import common

from gdu_compile.contracts import PASS_KEY, State, graph_problems
from gdu_compile.default_inputs import make_constants, note, with_defaults
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.graph_view import called as name_of
from gdu_compile.graph_view import needed_nodes
from gdu_compile.metadata import PREFIX
from gdu_compile.model_io import inline
from gdu_compile.names import Names, make_unique
from gdu_compile.well_formed import check_shadows, sort_nodes

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
          "Multinomial", "Bernoulli"}  # fmt: skip
IR_VERSION = 8
"""Of opset 18."""


class NormalizePass(GduPass):
    """Inline functions, lift constants, and take initializers out of the inputs."""

    gives = ("lifted", "source", "attributes")

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        if PREFIX + "version" in model.metadata_props:
            raise InputError("the model is an extended one already; use its base, "
                             "or fold the extension away with: gdu-compile extract")  # fmt: skip
        state.source = header_hash(model)
        functions = len(model.functions)
        check_shadows(model)
        inline(model)
        refuse_marks(model)
        refuse_random(model)
        make_unique(model)
        if graph_problems(model):
            # onnxruntime takes the nodes in any order.
            sort_nodes(model)
        attributes = LiftAttributesPass().run(model, state)["nodes"]
        free_constants(model)
        common.LiftSubgraphInitializersToMainGraphPass()(model)
        constants = {
            str(node.outputs[0].name): node.name or ""
            for node in ir.traversal.RecursiveGraphIterator(model.graph)
            if node.op_type == "Constant" and node.domain == ""
        }
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.LiftSubgraphInitializersToMainGraphPass()(model)
        if defaults := with_defaults(model):
            state.inputs = tuple(str(value.name) for value in model.graph.inputs)
            state.notes.append(note(defaults))
        make_constants(model)
        model.ir_version = max(model.ir_version, IR_VERSION)
        state.lifted = {
            name: node for name, node in constants.items() if name in model.graph.initializers
        }
        lifted = {"attributes": attributes} if attributes else {}
        return {"functions": functions, "constants": len(state.lifted), **lifted}


def free_constants(model: ir.Model) -> None:
    """Identity between a constant and the output of a branch or body that it is.

    Only a value that its own graph makes may be a branch's output, so the constant could not move
    to the main graph.  A bool stays: it is the condition of a Loop.
    """
    names = Names(model)
    for graph in model.graphs():
        if graph is model.graph:
            continue
        for index, value in enumerate(graph.outputs):
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is None or tensor.dtype == ir.DataType.BOOL or value.is_graph_input():
                continue
            output = ir.Value(name=names.fresh(f"{value.name}_output"),
                              type=ir.TensorType(tensor.dtype), shape=value.shape)  # fmt: skip
            graph.append(ir.node("Identity", [value], outputs=[output]))
            graph.outputs[index] = output


def refuse_marks(model: ir.Model) -> None:
    """Raise InputError for nodes that say that a pass of ours has made them: what is marked so is
    taken for the extension later."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if PASS_KEY in node.metadata_props:
            raise InputError(
                f"node {name_of(node)} is marked ({PASS_KEY}) as one that gdu-compile has made, so "
                "the model is part of an extended one; compile the base that it was made from"
            )


def refuse_random(model: ir.Model, called: str = "the model") -> None:
    """Raise UnsupportedError for operators whose output is not a function of their input.

    Those that no output of the model needs may stay: they change nothing.
    """
    problems, needed = [], needed_nodes(model.graph.outputs)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node not in needed:
            continue
        if (mode := training_mode(node)) is not None:
            problems.append(f"node {name_of(node)}: {node.op_type} {mode}")
        elif node.op_type in RANDOM:
            problems.append(f"node {name_of(node)}: {node.op_type} is random")
    if problems:
        raise UnsupportedError(
            f"{called} is not a function of its input, so nothing can be reproduced bit for bit; "
            "export it in evaluation mode",
            problems,
        )


def training_mode(node: ir.Node) -> str | None:
    """Why a node may run in training mode, in words; None when it does not."""
    if node.op_type == "BatchNormalization" and node.attributes.get_int("training_mode", 0) == 1:
        return "in training mode"
    flag = node.inputs[2] if node.op_type == "Dropout" and len(node.inputs) > 2 else None
    rate = None if flag is None else node.inputs[1]
    ratio = None if rate is None else ir.convenience.get_const_tensor(rate)
    if flag is None or (ratio is not None and not ratio.numpy().any()):
        return None  # with ratio 0 it is the identity in either mode
    tensor = ir.convenience.get_const_tensor(flag)
    if tensor is None:
        return f"in training mode where {flag.name!r} says so, which is no constant"
    return "in training mode" if tensor.numpy().any() else None


def header_hash(model: ir.Model) -> str:
    """SHA-256 over names, operators, shapes and sizes; the tensors' contents are not read."""
    digest = hashlib.sha256()

    def add(*fields: object) -> None:
        digest.update(repr(fields).encode() + b"\n")

    for graph in model.graphs():
        for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]:
            add("value", value.name, str(value.dtype), str(value.shape))
        for node in graph:
            add("node", node.domain, node.op_type, [v.name if v else "" for v in node.inputs],
                [v.name for v in node.outputs])  # fmt: skip
    return digest.hexdigest()
