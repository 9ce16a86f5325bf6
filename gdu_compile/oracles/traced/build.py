"""An algorithm written in PyTorch as one ONNX model: its step in a Loop over the batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from gdu_compile.builder import BOOL, INT64, Builder
from gdu_compile.contracts import Field
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.names import Names
from gdu_compile.oracles.compose import LABELS, free_prefix, refuse_labels
from gdu_compile.oracles.problem import ORIGINAL, Problem
from gdu_compile.oracles.traced import rules_elementwise as rules_elementwise  # fill the table
from gdu_compile.oracles.traced import rules_linear as rules_linear
from gdu_compile.oracles.traced import rules_shape as rules_shape
from gdu_compile.oracles.traced.base import Oracle, State
from gdu_compile.oracles.traced.compare import Traced
from gdu_compile.oracles.traced.emit import Emitter, constant, onnx_dtype
from gdu_compile.oracles.traced.order import order_of
from gdu_compile.oracles.traced.random import PRIME
from gdu_compile.oracles.traced.trace import Decompositions, trace
from gdu_compile.torch_backend import to_array, to_tensor

Form = dict[str, tuple[torch.dtype, tuple[int, ...]]]
OPSET, IR_VERSION = 18, 10


def build_traced(
    problem: Problem, oracle: Oracle, called: str, table: Decompositions | None = None
) -> ir.Model:
    """The algorithm's graph, (X, Y) ↦ weights, for as many samples as the problem has.

    It carries the original (under ``ORIGINAL`` in its ``meta``), with which it is compared on
    the training set before it is used.

    Args:
        problem: what it is built for.
        oracle: the algorithm.
        called: what to call it in messages, and the graph.
        table: what operators are replaced by while the step is traced; None for ours.

    Raises:
        InputError: it is not what ``Oracle`` says.
        UnsupportedError: it cannot be traced, or uses what has no rule.
    """
    return Build(problem, oracle, called, table).model()


class Build:
    """One model in the making.

    Attributes:
        batch: samples a step.
        state: the state before the first step.
        step: the trace of a step.
        weights: names of the weights.
        finish: the trace of ``weights``.
    """

    def __init__(
        self, problem: Problem, oracle: Oracle, called: str, table: Decompositions | None
    ) -> None:
        check_protocol(oracle, called)
        self.problem, self.oracle, self.called = problem, oracle, called
        self.batch = min(oracle.batch_size or problem.samples, problem.samples)
        check_batch(problem, self.batch)
        self.state = checked_state(oracle.init(oracle.seed), f"{called}: init", None)
        keys = list(self.state)
        self.taken = [field.name for field in problem.fields]
        self.taken += [str(name) for name in problem.base.graph.initializers]
        self.prefix = free_prefix("traced", [*self.taken, LABELS])
        samples = [example(field, self.batch) for field in problem.fields]
        labels = torch.zeros(self.batch, dtype=torch.int64)
        form = form_of(self.state)

        def step(*given: Tensor) -> list[Tensor]:
            *tensors, y, i = given
            state = dict(zip(keys, tensors, strict=False))
            after = oracle.step(state, inputs_of(tensors[len(keys) :]), y, i)
            checked_state(after, f"{called}: step", form)
            return [after[key] for key in keys]

        given = [*self.state.values(), *samples, labels, torch.tensor(0)]
        step(*given)  # what fails here is no matter of tracing
        self.step = trace(step, given, f"the step of {called}", table)
        found = oracle.weights(self.state)
        self.weights = checked_state(found, f"{called}: weights", None)
        check_weights(problem, self.weights, called)

        def finish(*tensors: Tensor) -> list[Tensor]:
            weights = oracle.weights(dict(zip(keys, tensors, strict=True)))
            return [weights[name] for name in self.weights]

        self.finish = trace(finish, list(self.state.values()), f"weights of {called}", table)

    def model(self) -> ir.Model:
        """The algorithm."""
        fields, labels = self.inputs(self.problem.samples)
        graph = ir.Graph([*fields, labels], [], nodes=[], name=self.called,
                         opset_imports={"": OPSET})  # fmt: skip
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="gdu-compile")
        b = Builder(Names(model), self.called)
        b.names = Prefixed(b.names, self.prefix)
        states = [constant(b, to_array(x), f"state_{name_part(key)}")
                  for key, x in self.state.items()]  # fmt: skip
        last = self.loop(b, states, fields, labels)
        results = Emitter(b, b, "").run(self.finish, last)
        graph.extend(b.nodes)
        for (name, weight), value in zip(self.weights.items(), results, strict=True):
            output = ir.Value(name=name, type=ir.TensorType(onnx_dtype(weight.dtype)),
                              shape=ir.Shape(list(weight.shape)))  # fmt: skip
            graph.append(ir.node("Identity", [value], outputs=[output],
                                 name=f"{self.prefix}output_{name}"))  # fmt: skip
            graph.outputs.append(output)
        remove_unused(graph)
        model.meta[ORIGINAL] = Traced(
            self.called, self.oracle, self.step_model(), list(self.state),
            self.order(self.seed).numpy() if self.in_batches else None,
        )  # fmt: skip
        return model

    def inputs(self, samples: int) -> tuple[list[ir.Value], ir.Value]:
        """Inputs of a graph: one for each field, and the labels."""
        fields = [
            ir.Value(name=field.name, shape=ir.Shape([samples, *field.shape]),
                     type=ir.TensorType(ir.DataType.from_numpy(dtype_of(field))))
            for field in self.problem.fields
        ]  # fmt: skip
        labels = ir.Value(name=LABELS, type=ir.TensorType(INT64), shape=ir.Shape([samples]))
        refuse_labels([*fields])
        return fields, labels

    @property
    def in_batches(self) -> bool:
        """Whether a step takes some of the samples only."""
        return self.batch < self.problem.samples

    @property
    def seed(self) -> Tensor:
        """The seed, of which hashes take the rest."""
        return torch.tensor(self.oracle.seed % PRIME)

    def order(self, seed: Tensor) -> Tensor:
        """Which samples each step takes."""
        return order_of(self.problem.samples, self.oracle.steps, self.batch, seed)

    def emitted_order(self, b: Builder) -> ir.Value:
        """The same as nodes; the seed goes in as a tensor, or the result would be a constant."""
        traced = trace(lambda seed: [self.order(seed)], [self.seed], f"the order of {self.called}")
        seed = b.constant(to_array(self.seed), "seed")
        return Emitter(b, b, "order_").run(traced, [seed])[0]

    def loop(
        self, b: Builder, states: Sequence[ir.Value], fields: Sequence[ir.Value], labels: ir.Value
    ) -> list[ir.Value]:
        """The Loop over the steps; returns the last state."""
        order = self.emitted_order(b) if self.in_batches else None
        trips = b.constant(np.array(self.oracle.steps, dtype=np.int64), "steps")
        goes_on = b.constant(np.array(True), "yes")
        inner = Builder(b.names, self.called)
        number = fresh(b, "i", INT64, [])
        flag = fresh(b, "goes_on", BOOL, [])
        carried = [fresh(b, f"before_{name_part(key)}", onnx_dtype(x.dtype), x.shape)
                   for key, x in self.state.items()]  # fmt: skip
        batch, y = self.batches(inner, order, number, fields, labels)
        after = Emitter(inner, b, "").run(self.step, [*carried, *batch, y, number])
        again = inner.op("Identity", flag, name="again", dtype=BOOL, shape=[])
        after = own_values(inner, after, [number, flag, *carried])
        body = ir.Graph([number, flag, *carried], [again, *after], nodes=inner.nodes,
                        name=b.names.fresh("step"))  # fmt: skip
        return list(b.multi_op(
            "Loop", trips, goes_on, *states, body=body,
            outputs=[(f"after_{name_part(key)}", onnx_dtype(x.dtype), list(x.shape))
                     for key, x in self.state.items()],
        ))  # fmt: skip

    def batches(
        self, inner: Builder, order: ir.Value | None, number: ir.Value,
        fields: Sequence[ir.Value], labels: ir.Value,
    ) -> tuple[list[ir.Value], ir.Value]:  # fmt: skip
        """The samples and labels of a step; without an order all of them."""
        if order is None:
            return list(fields), labels
        chosen = inner.op("Gather", order, number, name="chosen", dtype=INT64, shape=[self.batch],
                          axis=0)  # fmt: skip
        parts = []
        for value in (*fields, labels):
            assert value.shape is not None and value.dtype is not None
            parts.append(inner.op("Gather", value, chosen, name=f"batch_{value.name}",
                                  dtype=value.dtype, shape=[self.batch, *value.shape[1:]],
                                  axis=0))  # fmt: skip
        return parts[:-1], parts[-1]

    def step_model(self) -> ir.Model:
        """One step by itself: state, X, Y, i → state; inputs and outputs in this order."""
        fields, labels = self.inputs(self.batch)
        number = ir.Value(name=f"{self.prefix}i", type=ir.TensorType(INT64), shape=ir.Shape([]))
        states = [
            ir.Value(name=f"{self.prefix}before_{j}", type=ir.TensorType(onnx_dtype(x.dtype)),
                     shape=ir.Shape(list(x.shape)))
            for j, x in enumerate(self.state.values())
        ]  # fmt: skip
        graph = ir.Graph([*states, *fields, labels, number], [], nodes=[], name=self.called,
                         opset_imports={"": OPSET})  # fmt: skip
        model = ir.Model(graph, ir_version=IR_VERSION)
        b = Builder(Names(model), self.called)
        b.names = Prefixed(b.names, self.prefix)
        after = Emitter(b, b, "").run(self.step, [*states, *fields, labels, number])
        graph.outputs[:] = own_values(b, after, list(graph.inputs))
        graph.extend(b.nodes)
        remove_unused(graph)
        return model


class Prefixed(Names):
    """Fresh names that begin with a prefix."""

    def __init__(self, names: Names, prefix: str) -> None:
        self._names, self._prefix = names, prefix

    def fresh(self, wanted: str) -> str:
        """A name that no other value has."""
        return self._names.fresh(wanted if wanted.startswith(self._prefix)
                                 else f"{self._prefix}{wanted}")  # fmt: skip


def fresh(b: Builder, name: str, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
    """An input of a body."""
    return ir.Value(name=b.names.fresh(name), type=ir.TensorType(dtype),
                    shape=ir.Shape([int(size) for size in shape]))  # fmt: skip


def own_values(
    b: Builder, values: Sequence[ir.Value], foreign: Sequence[ir.Value]
) -> list[ir.Value]:
    """Outputs of a graph: each a value of its own nodes, and none twice."""
    made = {output for node in b.nodes for output in node.outputs} - set(foreign)
    found: list[ir.Value] = []
    for value in values:
        if value not in made or value in found:
            assert value.dtype is not None
            value = b.op("Identity", value, name="kept", dtype=value.dtype, shape=value.shape)
        found.append(value)
    return found


def remove_unused(graph: ir.Graph) -> None:
    """Take out nodes that nobody reads, in bodies first."""
    for part in [*graph.subgraphs()][::-1]:
        for node in reversed(list(part)):
            if not any(value.uses() or value.is_graph_output() for value in node.outputs):
                part.remove(node, safe=True)


def name_part(key: str) -> str:
    """A key of the state in names of values."""
    return key.replace(" ", "_")


def inputs_of(samples: Sequence[Tensor]) -> Any:
    """What a step gets as X: one tensor, or a tuple of several."""
    return samples[0] if len(samples) == 1 else tuple(samples)


def dtype_of(field: Field) -> np.dtype[Any]:
    """A field's dtype."""
    return np.dtype(field.dtype)


def example(field: Field, batch: int) -> Tensor:
    """A batch of zeros."""
    return to_tensor(ir.tensor(np.zeros([batch, *field.shape], dtype=dtype_of(field))))


# --- what it must be like ----------------------------------------------------


def check_protocol(oracle: Any, called: str) -> None:
    """Raise InputError unless it has what ``Oracle`` names; all that lacks is said."""
    problems = [
        f"it has no method {name!r}" for name in ("init", "step", "weights")
        if not callable(getattr(oracle, name, None))
    ]  # fmt: skip
    for name, least in (("steps", 1), ("batch_size", 1), ("seed", 0)):
        value = getattr(oracle, name, ...)
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
        if value is ...:
            problems.append(f"it has no attribute {name!r}")
        elif not whole and not (name == "batch_size" and value is None):
            problems.append(f"{name}={value!r} has to be a whole number, {least} or more")
    if problems:
        raise InputError(f"{called} is no oracle (docs/oracles.md)", problems)


def check_batch(problem: Problem, batch: int) -> None:
    """Raise UnsupportedError when the base takes batches of another size only."""
    problems = []
    for value in problem.base.graph.inputs:
        size = value.shape[0] if value.shape is not None and value.shape.rank() else None
        if isinstance(size, int) and size != batch:
            problems.append(f"input {value.name!r} takes batches of {size}")
    if problems:
        raise UnsupportedError(
            f"the base cannot be trained with batches of {batch}; choose another batch_size, or "
            "export the base with a dynamic batch", problems,
        )  # fmt: skip


def form_of(state: State) -> Form:
    """Dtype and shape of every tensor."""
    return {key: (x.dtype, tuple(x.shape)) for key, x in state.items()}


def checked_state(state: Any, called: str, wanted: Form | None) -> State:
    """A mapping of names to tensors, of the form that is wanted.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(x, Tensor) for key, x in state.items()
    ):
        raise InputError(f"{called} returns {type(state).__name__}, not a dict of names to tensors")
    if not state:
        raise InputError(f"{called} returns an empty dict")
    if wanted is None:
        return {key: x.detach() for key, x in state.items()}
    found = form_of(state)
    problems = [f"{key!r} is missing" for key in wanted if key not in found]
    problems += [f"{key!r} was not there before" for key in found if key not in wanted]
    problems += [
        f"{key!r} is {found[key][0]} {list(found[key][1])}, but was {dtype} {list(shape)}"
        for key, (dtype, shape) in wanted.items() if key in found and found[key] != (dtype, shape)
    ]  # fmt: skip
    if problems:
        raise InputError(f"{called} has to return a state of the form that it was given", problems)
    return state


def check_weights(problem: Problem, weights: State, called: str) -> None:
    """Raise InputError unless they are weights of the base; dtypes and shapes are checked later."""
    known = problem.base.graph.initializers
    problems = [f"{name!r} is no weight of the base" for name in weights if name not in known]
    if problems:
        raise InputError(f"{called}: weights returns what the base does not have",
                         [*problems, f"the base has {', '.join(map(str, known))}"])  # fmt: skip
