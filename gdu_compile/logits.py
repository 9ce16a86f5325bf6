"""Which output is the logits: which value, which axis, how many classes, and why."""

from __future__ import annotations

import onnx_ir as ir

from gdu_compile.contracts import LogitsSite
from gdu_compile.errors import InputError, UnsupportedError

PROBABILITIES = {"Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid", "Hardmax"}


def locate_logits(model: ir.Model, wanted: str | None = None) -> LogitsSite:
    """Find the output [N, C] that the loss sees.

    Args:
        model: the normalized base.
        wanted: name of the output to take; None to search.

    Raises:
        InputError: no output has the wanted name.
        UnsupportedError: no output can be logits; the reasons are listed.
    """
    outputs = {str(value.name): value for value in model.graph.outputs}
    if wanted is not None and wanted not in outputs:
        raise InputError(
            f"no output is called {wanted!r} (--logits)", [f"outputs: {', '.join(outputs)}"]
        )
    candidates = outputs if wanted is None else {wanted: outputs[wanted]}
    refusals = {name: refusal(value) for name, value in candidates.items()}
    fitting = [name for name, reason in refusals.items() if reason is None]
    if not fitting:
        raise UnsupportedError(
            "no output of the model can be logits [N, C]",
            [f"output {name!r} {reason}" for name, reason in refusals.items()],
        )
    name = fitting[0]
    return LogitsSite(
        name=name,
        axis=-1,
        classes=class_count(candidates[name]),
        kind="logits",
        why=reason_for(wanted, fitting, len(outputs)),
        batch=batch_source(model.graph, candidates[name]),
    )


def class_count(value: ir.Value) -> int:
    """C of an output that was not refused."""
    assert value.shape is not None
    classes = value.shape[1]
    assert isinstance(classes, int)
    return classes


def refusal(value: ir.Value) -> str | None:
    """Why this output cannot be logits, or None."""
    producer = value.producer()
    if producer is None:
        return "is not computed by a node"
    if not isinstance(value.type, ir.TensorType) or value.dtype != ir.DataType.FLOAT:
        return f"has type {value.type}, and only float32 tensors are supported"
    if value.shape is None:
        return "has no known shape; run onnx.shape_inference on the model first"
    if value.shape.rank() != 2:
        return f"has shape {list_shape(value.shape)}, and only [N, C] is supported"
    if not isinstance(value.shape[1], int):
        return f"has shape {list_shape(value.shape)}, whose class axis has no fixed size"
    if value.shape[1] < 2:
        return f"has shape {list_shape(value.shape)}, and cross-entropy needs 2 classes or more"
    if producer.op_type in PROBABILITIES:
        return f"comes from {producer.op_type}: export the model without it, so it gives logits"
    return None


def list_shape(shape: ir.Shape) -> str:
    """A shape as people write it: [N, 10]."""
    dims = [dim if isinstance(dim, int) else (dim.value or "?") for dim in shape]
    return f"[{', '.join(map(str, dims))}]"


def reason_for(wanted: str | None, fitting: list[str], outputs: int) -> str:
    """The sentence for LogitsSite.why."""
    if wanted is not None:
        return "named by --logits"
    if len(fitting) == 1:
        return "the only output" if outputs == 1 else "the only output that is float [N, C]"
    return f"the first of {len(fitting)} outputs that are float [N, C]: {', '.join(fitting)}"


def batch_source(graph: ir.Graph, logits: ir.Value) -> tuple[str, int] | int | None:
    """Where the batch size can be read without running the base (see LogitsSite.batch)."""
    assert logits.shape is not None
    batch = logits.shape[0]
    if isinstance(batch, int):
        return batch
    if batch.value is None:
        return None
    for value in graph.inputs:
        for index, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim) and dim.value == batch.value:
                return str(value.name), index
    return None
