"""``gdu-compile inspect``: what a model file is, and whether it carries an extension."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from gdu_compile import model_io, specialize
from gdu_compile.constants import constant_values, described
from gdu_compile.contracts import state_of
from gdu_compile.errors import UnsupportedError
from gdu_compile.graph_view import constant_switches
from gdu_compile.logits import locate_logits
from gdu_compile.metadata import PREFIX, Extension
from gdu_compile.passes.lift_attributes import raised
from gdu_compile.passes.locate_logits import says_all
from gdu_compile.passes.normalize import NormalizePass
from gdu_compile.places import computed_by, uses_by_name
from gdu_compile.shape_inference import infer
from gdu_compile.shapes import list_shape
from gdu_compile.weights import is_usual_weight, no_weight

SCHEMA = 1


def inspect(model: str | PathLike[str]) -> dict[str, Any]:
    """What is in an ONNX file, as a JSON object.

    Keys: ``model``, ``opset``, ``ir_version``, ``bytes``, ``inputs``, ``outputs``,
    ``operators`` (operator → count), ``weights`` (the initializers: name, dtype, shape,
    elements, uses; ``places``: the names of single uses where several share it, see --untie;
    ``why_not``: why it cannot be recorded, or null), ``other_weights`` (what else an oracle
    may name: the same keys, and ``source``, in words), ``attributes`` (nodes whose weights
    stay attributes: name, reason), ``logits`` (which output would be taken, or why none),
    ``switches`` (If nodes on constant conditions: the mark of an
    extension, with or without metadata), ``extension`` (its facts; null for an ordinary model).

    Raises:
        InputError: the file cannot be read.

    Example:
        >>> import gdu_compile
        >>> facts = gdu_compile.inspect("models/digits_mlp.onnx")
        >>> facts["operators"], facts["extension"], facts["switches"]
        ({'Gemm': 3, 'Relu': 2, 'Reshape': 1}, None, [])
    """
    path = Path(model)
    graph = (loaded := model_io.load(path)).graph
    operators = Counter(node.op_type for node in ir.traversal.RecursiveGraphIterator(graph))
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "command": "inspect",
        "model": str(path),
        "opset": model_io.opset_of(loaded),
        "ir_version": loaded.ir_version,
        "bytes": model_io.file_bytes(path, loaded),
        "inputs": [signature(value) for value in graph.inputs],
        "outputs": [signature(value) for value in graph.outputs],
        "operators": dict(sorted(operators.items())),
        "weights": [weight(value) for value in graph.initializers.values()],
        "logits": logits(loaded),
        "switches": [str(node.name) for node in constant_switches(graph)],
        "extension": extension(loaded, path),
    }
    others: list[dict[str, Any]] = []
    attributes: dict[str, str] = {}
    if facts["extension"] is None:
        rows = {row["name"]: row for row in facts["weights"]}
        others, attributes = look_further(raised(loaded), rows)
    listed = [{"name": name, "reason": reason} for name, reason in attributes.items()]
    return {**facts, "other_weights": others, "attributes": listed}


def signature(value: ir.Value) -> dict[str, Any]:
    """Name, dtype and shape of an input or output."""
    shape = None if value.shape is None else list_shape(value.shape)
    return {"name": value.name, "dtype": str(value.dtype), "shape": shape}


def weight(value: ir.Value) -> dict[str, Any]:
    """An initializer in numbers."""
    tensor = value.const_value
    assert tensor is not None
    return {
        "name": value.name,
        "dtype": str(tensor.dtype),
        "shape": list(tensor.shape.numpy()),
        "elements": tensor.size,
        "uses": len(value.uses()),
        "places": [],
        "why_not": no_weight(value),
    }


def look_further(
    model: ir.Model, rows: Mapping[str, dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Weights that are no initializers of the main graph, and nodes whose weights stay attributes.

    Args:
        model: an ordinary model; changed in place.
        rows: name → what is known of its initializers; gets the names of single uses.
    """
    try:
        NormalizePass()(model)
    except Exception:  # a file may be broken in any way; what it has is told all the same
        return [], {}
    computed = constant_values(model)
    for name, (dtype, shape) in described(model, computed.values()).items():
        computed[name].dtype, computed[name].shape = dtype, ir.Shape(shape)
    lifted = state_of(model).lifted or {}
    sources = {
        name: "Constant node" if name in lifted else "initializer of a branch or function"
        for name in model.graph.initializers if name not in rows
    }  # fmt: skip
    found = [
        {**weight(model.graph.initializers[name]), "source": source}
        for name, source in sources.items()
        if is_usual_weight(model.graph.initializers[name])
    ]
    found += [
        {**computed_weight(value), "source": f"computed by {computed_by(value)}"}
        for value in computed.values() if is_usual_weight(value)
    ]  # fmt: skip
    everything = {**rows, **{row["name"]: row for row in found}}
    for place, (value, _) in uses_by_name(model, computed).items():
        if value.name in everything and is_usual_weight(value):
            everything[value.name]["places"].append(place)
    return found, state_of(model).attributes or {}


def computed_weight(value: ir.Value) -> dict[str, Any]:
    """A value that depends on constants only, in numbers; null where it is not known."""
    dims = None if value.shape is None else list(value.shape)
    sizes = [size for size in dims or () if isinstance(size, int)]
    return {
        "name": value.name,
        "dtype": str(value.dtype),
        "shape": None if dims is None else [d if isinstance(d, int) else d.value for d in dims],
        "elements": None if dims is None or len(sizes) < len(dims) else math.prod(sizes),
        "uses": len(value.uses()),
        "places": [],
        "why_not": None,
    }


def logits(model: ir.Model) -> dict[str, Any]:
    """Which output would be the logits, or the reasons against each."""
    if not all(says_all(value) for value in model.graph.outputs):
        model = model.clone()
        infer(model)
    try:
        site = locate_logits(model)
    except UnsupportedError as error:
        return {"name": None, "why": "; ".join([error.message, *error.problems])}
    return {"name": site.name, "output": site.output, "kind": site.kind, "axis": site.axis,
            "classes": site.classes, "why": site.why}  # fmt: skip


def extension(model: ir.Model, path: Path) -> dict[str, Any] | None:
    """The facts of an extended model, or None."""
    if PREFIX + "version" not in model.metadata_props:
        return None
    facts = Extension.from_metadata(model.metadata_props, str(path))
    return {
        "version": facts.version,
        "method": facts.method,
        "digits": facts.code.name,
        "gain": facts.gain,
        "theta_dtype": facts.theta_dtype,
        "batch_limit": facts.batch_limit,
        "start": facts.start,
        "logits": asdict(facts.logits),
        "armed": specialize.is_armed(model),
        "buckets": [
            {
                "theta": bucket.theta,
                "shape": list(bucket.theta_shape(facts.code)),
                "dtype": bucket.dtype,
                "weights": [slot.weight for slot in bucket.slots],
            }
            for bucket in facts.buckets
        ],
        "memory": memory(model, facts),
        "algorithm": None if facts.algorithm is None else asdict(facts.algorithm),
        "skipped": [asdict(skipped) for skipped in facts.skipped],
        "source": facts.source,
    }


def memory(model: ir.Model, facts: Extension) -> dict[str, Any] | None:
    """The memory of learn, and how much of it is filled; None for record."""
    if facts.memory is None:
        return None
    filled = sum(
        int(np.count_nonzero(facts.calibrators(array)))
        for array in specialize.theta_in(model).values()
    )
    thetas = [
        {"theta": name, "shape": list(shape)} for name, shape in facts.theta_shapes.items()
    ]  # fmt: skip
    return {
        "slots": facts.memory.slots,
        "filled": filled,
        "labels": facts.memory.labels,
        "fields": [asdict(field) for field in facts.memory.fields],
        "thetas": thetas,
    }
