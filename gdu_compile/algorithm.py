"""An algorithm as a graph, (X, Y) ↦ weights: read, its loops bounded, run alone (THEORY §4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from gdu_compile import model_io, oracles, runtime, well_formed
from gdu_compile.builder import BOOL, INT64, Builder
from gdu_compile.contracts import Field, Weight
from gdu_compile.digits import Array
from gdu_compile.errors import InputError
from gdu_compile.graph_view import branches
from gdu_compile.names import Names
from gdu_compile.oracles import Original, Problem
from gdu_compile.shapes import fits

AlgorithmLike = str | PathLike[str] | ir.Model
DEFAULT_MAX_ITERATIONS = 1_000_000
LABELS = ("Y", "y")
"""Names that the labels' input may have."""


def name_of(oracle: AlgorithmLike) -> str:
    """What to call it: its text, or its file's name without the folder."""
    if isinstance(oracle, ir.Model):
        return str(oracle.graph.name or "algorithm")
    return Path(oracle).name if is_file_name(oracle) else str(oracle)


def is_file_name(oracle: str | PathLike[str]) -> bool:
    """Whether an ONNX file is meant, and no included oracle."""
    return isinstance(oracle, PathLike) or oracle.endswith(".onnx")


def load(oracle: AlgorithmLike, problem: Problem) -> ir.Model:
    """The algorithm's graph: from its file, or built for the problem; functions are inlined.

    Raises:
        InputError: the file cannot be read, or no oracle has this name.
        UnsupportedError: the oracle cannot be built for this base.
    """
    if isinstance(oracle, ir.Model):
        model = oracle.clone()
        model.meta.update(oracle.meta)  # clone leaves it out
    elif is_file_name(oracle):
        model = model_io.load(oracle)
    else:
        model = oracles.build(str(oracle), problem)
    well_formed.check_shadows(model, f"the oracle {name_of(oracle)}")
    model_io.inline(model)
    common.RemoveInitializersFromInputsPass()(model)
    return model


@dataclass(frozen=True)
class AlgorithmGraph:
    """An algorithm that can be run alone.

    Attributes:
        name: what to call it in messages.
        model: inputs X (one per field) and Y; outputs: the weights.
        inputs: names of its inputs: one per field, in their order, and the labels.
        unfinished: outputs that are true when a Loop was stopped by its bound: name → bound.
        original: what it was made from, where that is known; compared before it is run.
    """

    name: str
    model: ir.Model
    inputs: tuple[str, ...]
    unfinished: Mapping[str, int] = field(default_factory=dict)
    original: Original | None = None

    def run(
        self, samples: Sequence[Array], labels: Array, weights: Sequence[Weight]
    ) -> dict[str, Array]:
        """The weights it computes, in onnxruntime without optimisations.

        Args:
            samples: one array per field, [n, …].
            labels: int64 [n].
            weights: what it must return.

        Raises:
            InputError: it fails, does not end, returns NaN, another shape or another dtype, or
                is not what it was made from.
        """
        if self.original is not None:
            self.original.check(samples, labels)
        inputs = dict(zip(self.inputs, [*samples, labels], strict=True))
        with runtime.on_disk(self.model) as path:
            found = runtime.run(path, inputs, level="none", batch=len(labels),
                                called=f"the oracle {self.name}, on the training set")  # fmt: skip
        problems = [
            f"Loop {name.removesuffix(UNFINISHED)!r} does not end within {limit} iterations "
            "(--max-iterations)"
            for name, limit in self.unfinished.items()
            if found[name]
        ]
        for weight in weights:
            problems += result_problems(found[weight.name], weight)
        if problems:
            raise InputError(f"cannot use what the oracle {self.name} returns", problems)
        return {weight.name: found[weight.name] for weight in weights}


def result_problems(array: Array, weight: Weight) -> list[str]:
    """What is wrong with one computed weight."""
    if array.shape != weight.shape or str(array.dtype) != weight.dtype:
        return [f"{weight.name!r} is {array.dtype} {list(array.shape)}, but {weight.dtype} "
                f"{list(weight.shape)} in the model"]  # fmt: skip
    if array.dtype.kind not in "iub":
        missing = np.flatnonzero(np.isnan(array.reshape(-1)))
        if missing.size:
            return [f"{weight.name!r} holds NaN (first at flat index {missing[0]})"]
    return []


# --- what it must be like ----------------------------------------------------


def match_inputs(model: ir.Model, problem: Problem) -> tuple[tuple[str, ...], list[str]]:
    """Its inputs, one per field and then the labels, and the complaints about them."""
    named = {str(value.name): value for value in model.graph.inputs}
    fields = {field.name: field for field in problem.fields}
    labels = next((name for name in LABELS if name in named and name not in fields), None)
    others = [name for name in named if name != labels]
    chosen = {name: name for name in fields if name in others}
    if len(fields) == 1 and len(others) == 1:
        chosen = dict(zip(fields, others, strict=True))
    problems = [
        f"it has no input {name!r}, which the base has" for name in fields if name not in chosen
    ]
    problems += [
        f"its input {name!r} is no input of the base ({', '.join(fields)})"
        for name in others if name not in chosen.values()
    ]  # fmt: skip
    if labels is None:
        problems.append("it has no input 'Y' for the labels, INT64 [n]")
    else:
        problems += input_problems(named[labels], Field(labels, (), "int64"), problem.samples)
    for name, source in chosen.items():
        problems += input_problems(named[source], fields[name], problem.samples)
    return (*(chosen.get(name, "") for name in fields), labels or ""), problems


def input_problems(value: ir.Value, field: Field, samples: int) -> list[str]:
    """What is wrong with one input: its dtype, its sizes."""
    wanted = [samples, *field.shape]
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        return [f"its input {value.name!r} is no tensor ({value.type})"]
    dtype = None if value.dtype is None else str(value.dtype.numpy())
    if dtype == field.dtype and (value.shape is None or fits(value.shape, wanted)):
        return []
    return [f"its input {value.name!r} is {dtype} {value.shape}, but the training set has "
            f"{field.dtype} {wanted}"]  # fmt: skip


# --- loops -------------------------------------------------------------------

UNFINISHED = ".gdu_unfinished"
TOO_MANY = ".gdu_more_than_max_iterations"
BOUND_KEY = "gdu.bound"
"""Marks the node that gives a Loop its bound; it stays where the algorithm is inlined."""


def bound_loops(model: ir.Model, limit: int) -> list[str]:
    """Give every Loop at most ``limit`` iterations; returns the complaints.

    In the main graph the bound is the trip count; ``flag_loops`` says what it has stopped.  A Loop
    in a branch or body must have a trip count of its own, and fails where that is larger.
    """
    b = Builder(Names(model), bound_loops.__name__)
    problems = []
    for node, inner, times in loops(model.graph):
        trips = node.inputs[0] if node.inputs else None
        if constant_trips(node) is not None:
            if times > limit:
                problems.append(f"Loop {called(node)!r} is to run {times} times, more than "
                                f"{limit} (--max-iterations)")  # fmt: skip
        elif trips is None and inner:
            problems.append(f"Loop {called(node)!r} lies in a branch or body and has no maximum "
                            "trip count; give it one")  # fmt: skip
        else:
            most = b.constant(np.array(limit, dtype=np.int64), "gdu_limit")
            if trips is not None and inner:
                most = emit_failing(b, trips, most, f"{called(node)}{TOO_MANY}")
            elif trips is not None:
                most = b.op("Min", trips, most, name="gdu_trips", dtype=INT64, shape=trips.shape)
            node.replace_input_with(0, most)
            b.nodes[-1].metadata_props[BOUND_KEY] = str(limit)
            assert isinstance(node.graph, ir.Graph)
            node.graph.insert_before(node, b.nodes)
            b.nodes = []
    return problems


def emit_failing(b: Builder, trips: ir.Value, most: ir.Value, name: str) -> ir.Value:
    """The trip count; where it is too large, a node of this name fails: index 1 of one element."""
    over = b.op("Greater", trips, most, name="gdu_over", dtype=BOOL, shape=trips.shape)
    index = b.op("Cast", over, name="gdu_index", dtype=INT64, shape=trips.shape,
                 to=INT64.value)  # fmt: skip
    none = b.op("Gather", b.ints([0], "gdu_none"), index, name=name, dtype=INT64,
                shape=trips.shape)  # fmt: skip
    return b.op("Add", trips, none, name="gdu_trips", dtype=INT64, shape=trips.shape)


def constant_trips(node: ir.Node) -> int | None:
    """A Loop's maximum trip count, where it is a constant."""
    trips = node.inputs[0] if node.inputs else None
    constant = None if trips is None else ir.convenience.get_const_tensor(trips)
    return None if constant is None else int(constant.numpy().reshape(-1)[0])


def loops(graph: ir.Graph, inner: bool = False, times: int = 1) -> Iterator[
    tuple[ir.Node, bool, int]
]:  # fmt: skip
    """Every Loop, whether it lies in a branch or body, and how often its body runs by the constant
    trip counts, its own and those around it."""
    for node in list(graph):
        here = times
        if node.op_type == "Loop" and node.domain == "":
            trips = constant_trips(node)
            here *= 1 if trips is None else max(trips, 0)
            yield node, inner, here
        for _, body in branches(node):
            yield from loops(body, True, here)


def called(node: ir.Node) -> str:
    """A node's name; where it has none, that of its first output."""
    return str(node.name or next((v.name for v in node.outputs if v.name), "without a name"))


def flag_loops(model: ir.Model) -> dict[str, int]:
    """Outputs that say whether a Loop of the main graph was stopped by its bound: name → bound.

    The body's condition becomes a scan output too: the bound has stopped the Loop when as many
    conditions were true, and the trip count that was asked for is larger.
    """
    names, flags = Names(model), dict[str, int]()
    for node in [node for node in model.graph if node.op_type == "Loop" and node.domain == ""]:
        trips = node.inputs[0]
        wanted = None if trips is None else trips.producer()
        limit = bound_of(wanted)
        if wanted is None or limit is None:
            continue
        body = node.attributes["body"].as_graph()
        b = Builder(names, flag_loops.__name__)
        going = b.op("Identity", body.outputs[0], name="gdu_going", dtype=BOOL, shape=[])
        body.extend(b.nodes)
        body.outputs.append(going)
        node.resize_outputs(len(node.outputs) + 1)
        every = node.outputs[-1]
        every.name, every.type = names.fresh("gdu_all_going"), ir.TensorType(BOOL)
        every.shape = ir.Shape([None])
        b.nodes = []
        flag = emit_unfinished(b, every, wanted, limit, f"{called(node)}{UNFINISHED}")
        model.graph.insert_after(node, b.nodes)
        model.graph.outputs.append(flag)
        flags[str(flag.name)] = limit
    return flags


def bound_of(node: ir.Node | None) -> int | None:
    """The bound that a node gives to a Loop, or None."""
    mark = "" if node is None else node.metadata_props.get(BOUND_KEY, "")
    return int(mark) if mark.isdecimal() and len(mark) < 20 else None


def emit_unfinished(b: Builder, going: ir.Value, trips: ir.Node, limit: int, name: str) -> ir.Value:
    """Whether ``limit`` conditions were true and more iterations were asked for: BOOL [1]."""
    flags = b.cast(going, INT64, "gdu_going_64", [None])
    count = b.op("ReduceSum", flags, name="gdu_going_count", dtype=INT64, shape=[1], keepdims=1)
    most = b.ints([limit], "gdu_most")
    bounded = trips.op_type == "Min"
    reached = b.op("Equal", count, most, name="gdu_bound" if bounded else name, dtype=BOOL,
                   shape=[1])  # fmt: skip
    if not bounded:
        return reached
    asked = trips.inputs[0]
    assert asked is not None
    more = b.op("Greater", asked, most, name="gdu_more", dtype=BOOL, shape=[1])
    return b.op("And", reached, more, name=name, dtype=BOOL, shape=[1])
