"""BindAlgorithmPass: which algorithm computes which weights from which training set.

Before: a normalized model.  After: unchanged; state ``algorithm`` and ``oracle_graph``
(the algorithm, its loops bounded, at the model's opset), ``alone`` (the same, to be run
by itself), ``memory`` (the form of the training set), ``weights`` and ``skipped``.
Refuses, all problems at once: inputs that are not the base's inputs and the labels,
outputs that are no weights of the base, other shapes and dtypes, random operators,
loops without a bound, and with ``strict`` weights that the algorithm does not compute.
"""

from __future__ import annotations

import onnx_ir as ir
from gdu_compile.passes._base import GduPass
from gdu_compile.passes.bind_oracle import known_weights
from gdu_compile.passes.normalize import refuse_random
from onnx_ir.passes import common

from gdu_compile import model_io
from gdu_compile.algorithm import (
    DEFAULT_MAX_ITERATIONS,
    AlgorithmGraph,
    AlgorithmLike,
    bound_loops,
    flag_loops,
    load,
    match_inputs,
    name_of,
)
from gdu_compile.contracts import Algorithm, Field, LogitsSite, Memory, Skipped, State, Weight
from gdu_compile.digits import DEFAULT_CODE, DigitCode
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.number_formats import FORMATS
from gdu_compile.oracles import ORIGINAL, Problem
from gdu_compile.places import stand
from gdu_compile.shapes import fits, list_shape
from gdu_compile.weights import dtype_name, is_usual_weight, no_weight


class BindAlgorithmPass(GduPass):
    """Match an algorithm's inputs and outputs to the base.

    Args:
        oracle: the name of an oracle, an ONNX file, or an onnx_ir model (left as it is).
        samples: n, the number of training samples, which is the number of slots.
        fields: the base's inputs, sample by sample.
        code: the digit code of the memory.
        allow_extra: ignore outputs that are no weights of the model.
        strict: a float weight that the algorithm does not compute is an error.
        max_iterations: bound on the iterations of a Loop.
    """

    needs = ("lifted", "logits")
    gives = ("algorithm", "oracle_graph", "alone", "memory", "weights", "skipped", "code")

    def __init__(
        self,
        oracle: AlgorithmLike,
        *,
        samples: int,
        fields: tuple[Field, ...],
        code: DigitCode = DEFAULT_CODE,
        allow_extra: bool = False,
        strict: bool = False,
        max_iterations: int = DEFAULT_MAX_ITERATIONS,
    ) -> None:
        self.oracle = oracle
        self.samples = samples
        self.fields = fields
        self.code = code
        self.allow_extra = allow_extra
        self.strict = strict
        self.max_iterations = max_iterations

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        assert state.logits is not None
        check_site(state.logits)
        check_fields(self.fields)
        problem = Problem(model, state.logits, self.fields, self.samples)
        algorithm = load(self.oracle, problem)
        name = name_of(self.oracle)
        refuse_random(algorithm, f"the oracle {name}")
        inputs, problems = match_inputs(algorithm, problem)
        standing = stand(model, [str(value.name) for value in algorithm.graph.outputs])
        state.placed = standing.how
        for removed in standing.removed & set(state.lifted or {}):
            del (state.lifted or {})[removed]
        weights, skipped, more = self.match_outputs(model, algorithm, state)
        problems += more + bound_loops(algorithm, self.max_iterations)
        problems += domain_problems(model, algorithm)
        if problems:
            raise InputError(f"cannot use the oracle {name}", problems)
        keep_outputs(algorithm, [weight.name for weight in weights])
        common.RemoveUnusedNodesPass()(algorithm)
        alone = algorithm.clone()
        flags = flag_loops(alone)
        state.alone = AlgorithmGraph(name, alone, inputs, flags, algorithm.meta.get(ORIGINAL))
        raised = raise_to(algorithm, model_io.opset_of(model), name)
        state.oracle_graph = AlgorithmGraph(name, raised, inputs)
        classes = state.logits.classes
        state.memory = Memory(self.samples, classes if classes > 1 else 0, self.fields)
        state.weights, state.skipped, state.code = weights, skipped, self.code
        state.algorithm = Algorithm(name, tuple(weights))
        state.held = frozenset(weight.name for weight in weights)
        return {"weights": len(weights), "slots": self.samples, "nodes": len(list(raised.graph))}

    def match_outputs(
        self, model: ir.Model, algorithm: ir.Model, state: State
    ) -> tuple[list[Weight], list[Skipped], list[str]]:
        """The weights that it computes, those that keep their values, and the complaints."""
        outputs = {str(value.name): value for value in algorithm.graph.outputs}
        weights: list[Weight] = []
        skipped: list[Skipped] = []
        problems: list[str] = []
        for name, value in model.graph.initializers.items():
            if name in outputs:
                weights.append(weight_of(value))
                problems += output_problems(outputs[name], value)
            elif is_usual_weight(value) and name not in (state.lifted or {}):
                skipped.append(Skipped(name, "the oracle does not compute it, keeps its value"))
                if self.strict:
                    problems.append(f"it does not compute {name!r} of the model (--strict)")
        skipped += [Skipped(*each) for each in (state.attributes or {}).items()]
        if self.strict:
            problems += [f"{name!r}: {why} (--strict)"
                         for name, why in (state.attributes or {}).items()]  # fmt: skip
        unknown = [name for name in outputs if name not in model.graph.initializers]
        if unknown and not self.allow_extra:
            problems += [f"its output {name!r} is no weight of the model" for name in unknown]
        if not weights or (unknown and not self.allow_extra):
            problems += [] if weights else ["it computes no weight of the model"]
            problems.append(known_weights(model))
        return weights, skipped, problems


def check_site(site: LogitsSite) -> None:
    """Raise UnsupportedError unless a sample has one label."""
    if site.calls:
        raise UnsupportedError(
            f"a sample of the model is a whole call, because samples do not lie along axis 0 of "
            f"every input and of the output {site.output!r}: the memory of learn needs that"
        )
    if len(site.dims) > 2:
        raise UnsupportedError(
            f"output {site.output!r} has {len(site.dims)} axes: the memory of learn holds one "
            "label a sample, [N, C] or [N, 1]; name another output with --logits"
        )


def check_fields(fields: tuple[Field, ...]) -> None:
    """Raise UnsupportedError when an input cannot be stored as digits."""
    problems = [
        f"input {field.name!r} is {field.dtype}; stored are bool, {', '.join(FORMATS)}"
        for field in fields if field.stored not in FORMATS
    ]  # fmt: skip
    problems += [f"input {field.name!r} has no elements" for field in fields if 0 in field.shape]
    if problems:
        raise UnsupportedError("the memory of learn cannot hold the model's inputs", problems)


def weight_of(value: ir.Value) -> Weight:
    """An initializer as a weight."""
    assert value.const_value is not None
    return Weight(str(value.name), tuple(value.const_value.shape.numpy()), dtype_name(value))


def output_problems(output: ir.Value, value: ir.Value) -> list[str]:
    """What is wrong with one output, as far as its declaration says."""
    name, weight = str(value.name), weight_of(value)
    reason = no_weight(value)
    if reason is not None:
        return [f"its output {name!r} {reason}"]
    if output.type is not None and not isinstance(output.type, ir.TensorType):
        return [f"its output {name!r} is no tensor ({output.type})"]
    if output.dtype is not None and dtype_name(output) != weight.dtype:
        return [f"its output {name!r} is {dtype_name(output)}, but {weight.dtype} in the model"]
    if output.shape is None or fits(output.shape, weight.shape):
        return []
    return [f"its output {name!r} has shape {list_shape(output.shape)}, but "
            f"{list(weight.shape)} in the model"]  # fmt: skip


def domain_problems(model: ir.Model, algorithm: ir.Model) -> list[str]:
    """Domains of which the two need different versions; the default one is raised instead."""
    return [
        f"it needs version {version} of the operators of {domain!r}, and the model version {own}"
        for domain, version in algorithm.opset_imports.items()
        if domain and (own := model.opset_imports.get(domain, version)) != version
    ]


def keep_outputs(algorithm: ir.Model, names: list[str]) -> None:
    """The outputs are the weights, in this order."""
    outputs = {str(value.name): value for value in algorithm.graph.outputs}
    algorithm.graph.outputs[:] = [outputs[name] for name in names]


def raise_to(algorithm: ir.Model, opset: int, name: str) -> ir.Model:
    """A copy at the model's opset.

    Raises:
        UnsupportedError: it is newer, or cannot be raised.
    """
    own = model_io.opset_of(algorithm)
    if own > opset:
        raise UnsupportedError(
            f"the oracle {name} has opset {own}, and the model {opset}: raise the model, or "
            f"export the algorithm with opset {opset}"
        )
    return model_io.raise_opset(algorithm.clone(), opset)
