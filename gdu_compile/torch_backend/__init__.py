"""ONNX → one torch.nn.Module: the side of gdu-compile that trains.

``to_torch`` is the way in.  The operator table is spread over the ``ops_*``
files by family; importing them fills the registry.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes import common

from gdu_compile.contracts import PASS_KEY
from gdu_compile.graph_view import needed_nodes, nested
from gdu_compile.metadata import Extension
from gdu_compile.names import make_unique
from gdu_compile.passes.sink import SinkPass
from gdu_compile.torch_backend import (
    ops_attention,
    ops_cast,
    ops_elementwise,
    ops_image,
    ops_index,
    ops_linear,
    ops_loss,
    ops_microsoft,
    ops_microsoft_quant,
    ops_ml,
    ops_norm,
    ops_pool,
    ops_quant,
    ops_recurrent,
    ops_reduce,
    ops_sequence,
    ops_shape,
    ops_signal,
    ops_svm,
)
from gdu_compile.torch_backend.functions import expand_functions
from gdu_compile.torch_backend.module import GraphModule, to_array, to_tensor

__all__ = [
    "GraphModule",
    "lower_to_torch",
    "only_output",
    "ops_attention",
    "ops_cast",
    "ops_elementwise",
    "ops_image",
    "ops_index",
    "ops_linear",
    "ops_loss",
    "ops_microsoft",
    "ops_microsoft_quant",
    "ops_ml",
    "ops_norm",
    "ops_pool",
    "ops_quant",
    "ops_recurrent",
    "ops_reduce",
    "ops_sequence",
    "ops_shape",
    "ops_signal",
    "ops_svm",
    "prepared",
    "to_array",
    "to_tensor",
]  # fmt: skip


def lower_to_torch(
    model: ir.Model, trainable: Collection[str] | None = None, *, output: str | None = None
) -> GraphModule:
    """Lower a model; the given one is left as it is.

    Args:
        model: an extended model, or any model when ``trainable`` is given.
        trainable: names of the initializers to train; None for the extension's θ.
        output: the only output that is wanted; None for all, or for the loss's where the base
            has labels and maps.  What others alone need is not run.

    Raises:
        InputError: the model is not an extended one and ``trainable`` is None.
    """
    if trainable is None:
        facts = Extension.from_metadata(model.metadata_props)
        trainable = set(facts.theta_shapes)
        output = output or only_output(facts)
    return GraphModule(prepared(model, output), trainable)


def only_output(facts: Extension) -> str | None:
    """The loss's output where the base has labels and maps, of which torch has no such; or None."""
    return facts.logits.output if facts.logits.exposed else None


def remove_unneeded(model: ir.Model) -> None:
    """Remove the base's nodes that no output needs, in place: torch may lack them, or they may be
    random."""
    ours = [value for node in model.graph.all_nodes() if PASS_KEY in node.metadata_props
            for value in node.outputs]  # fmt: skip
    needed = needed_nodes([*model.graph.outputs, *ours])
    for graph in list(model.graphs()):
        for node in reversed([node for node in graph if node not in needed]):
            for inner in nested(node):
                for index in range(len(inner.inputs)):
                    inner.replace_input_with(index, None)
            graph.remove(node)


def prepared(model: ir.Model, output: str | None = None) -> ir.Model:
    """A copy in the form that is lowered: no two values share a name, branches are filled."""
    sunk = model.clone()
    if output is not None and len(sunk.graph.outputs) > 1:
        kept = next(value for value in sunk.graph.outputs if value.name == output)
        sunk.graph.outputs[:] = [kept]
        common.RemoveUnusedNodesPass()(sunk)
    remove_unneeded(sunk)
    expand_functions(sunk)
    make_unique(sunk)
    SinkPass()(sunk)
    return sunk
