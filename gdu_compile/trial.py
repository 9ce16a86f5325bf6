"""A run on a few synthetic samples: sizes that nothing but a run can tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir

from gdu_compile import runtime, time_limit
from gdu_compile.contracts import PASS_KEY, LogitsSite
from gdu_compile.data import fixed_batch
from gdu_compile.digits import Array
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.legal_inputs import Sizes, own_lengths
from gdu_compile.metadata import Extension
from gdu_compile.synthetic import OTHER_DIMS, SYNTHETIC_SIZES, synthetic_inputs

SAMPLES = 5


def trial(extended: ir.Model, facts: Extension) -> tuple[Sizes, list[int] | None]:
    """The sizes of dynamic dimensions with which the base runs, and the logits' shape then.

    None for the shape where no run was needed: nothing but the batch is dynamic.

    Raises:
        InputError: the logits' shape can only be known by a run, and none succeeds.
    """
    site = facts.logits
    skip = 0 if site.calls else 1
    dims = [dim for value in extended.graph.inputs for dim in list(value.shape or ())[skip:]]
    if None not in site.dims[skip:] and all(isinstance(dim, int) for dim in dims):
        return SYNTHETIC_SIZES, None
    with with_base_logits(extended, facts) as (path, names):
        try:
            return first_run(extended, site, path, names)
        except InputError:
            if None in site.dims[skip:]:
                raise
    return SYNTHETIC_SIZES, None  # the check of the base says why it does not run


def first_run(
    model: ir.Model, site: LogitsSite, path: Path, names: list[str]
) -> tuple[Sizes, list[int]]:
    """The first sizes of dynamic dimensions with which the model runs, and the logits' shape.

    Sizes with which an answer says nothing (a mean over no elements) are taken if there are no
    better ones.

    Args:
        model: the model.
        site: the logits.
        path: its file.
        names: the outputs to compute.

    Raises:
        InputError: there is none; why it does not run with the first one.
        UnsupportedError: there are no synthetic data for the inputs.
    """
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    called = time_limit.PRESENT.get().name
    problem: InputError | None = None
    second: tuple[Sizes, list[int]] | None = None
    for dims in candidates(model, inputs):
        arrays = synthetic_inputs(inputs, np.random.default_rng(0), calls=site.calls, dims=dims,
                                  samples=SAMPLES)  # fmt: skip
        try:
            found = runtime.run(path, arrays, names, batch=fixed_batch(inputs),
                                calls=site.calls, called=called)  # fmt: skip
        except InputError as error:
            problem = problem or error
            continue
        if any(found[name].dtype.hasobject for name in names):
            problem = problem or InputError(
                f"the output {site.output!r} has another shape in each call, and labels have one; "
                "name another output with --logits"
            )
            continue
        result = dims, list(found[site.output].shape)
        if says_something(found[names[-1]]):
            return result
        second = second or result
    if second is None:
        assert problem is not None
        raise problem
    return second


def candidates(model: ir.Model, inputs: Sequence[ir.Value]) -> list[Sizes]:
    """Sizes to try, the usual ones first; last with masks that are twice as long as what they may
    be a mask of."""
    usual = list(dict.fromkeys([SYNTHETIC_SIZES.other, *OTHER_DIMS, *baked_sizes(model)]))
    found = [Sizes(dim) for dim in usual]
    if names := own_lengths(inputs):
        found += [Sizes(dim, dict.fromkeys(names, 2 * dim)) for dim in usual]
    return found


def says_something(logits: Array) -> bool:
    """Whether they are finite numbers, and not all the same."""
    return bool(np.isfinite(logits).all() and logits.size and (logits != logits.flat[0]).any())


@contextmanager
def with_base_logits(extended: ir.Model, facts: Extension) -> Iterator[tuple[Path, list[str]]]:
    """The extended model as a file, and two of its outputs: the loss's, and the base's logits,
    without which onnxruntime would leave out the base; those only where they are in the main
    graph."""
    outputs, names = extended.graph.outputs, [facts.logits.output]
    made = {value.name: value for node in extended.graph for value in node.outputs}
    before = list(outputs)
    if (base := made.get(facts.base_logits)) is not None and base not in before:
        outputs.append(base)
        names.append(facts.base_logits)
    with runtime.on_disk(extended) as path:
        outputs[:] = before
        yield path, names


def baked_sizes(model: ir.Model, most: int = 6) -> list[int]:
    """Sizes that an exporter has left in the shapes of Reshape, though it calls them dynamic."""
    found: dict[int, None] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        shape = node.inputs[1] if node.op_type == "Reshape" and len(node.inputs) > 1 else None
        tensor = None if shape is None else ir.convenience.get_const_tensor(shape)
        if tensor is not None and PASS_KEY not in node.metadata_props:
            found |= dict.fromkeys(size for size in tensor.numpy().reshape(-1).tolist() if size > 1)
    return list(found)[:most]


def with_rows(model: ir.Model, site: LogitsSite) -> LogitsSite:
    """The logits with what a run says of an axis 0 that no name ties to the inputs.

    As many rows as samples: the size is read off an input, and the base need not run to record.
    A multiple of them (tokens of all samples in one axis), or others than the input's fixed ones:
    a sample is a whole call.
    """
    if site.calls or not site.dims or site.dims[0] is not None:
        return site
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    try:
        with runtime.on_disk(model) as path:
            _, (rows, *_) = first_run(model, site, path, [site.output])
    except (InputError, UnsupportedError):
        return site  # the base says it when it runs
    fixed = fixed_batch(inputs)
    samples = fixed or SAMPLES
    if rows == samples:
        return dataclasses.replace(site, dims=((str(inputs[0].name), 0), *site.dims[1:]))
    if rows and (fixed or rows % samples == 0):
        why = (f"{site.why}; a sample is a whole call, because the output {site.output!r} has "
               f"{rows} rows for {samples} samples")  # fmt: skip
        return dataclasses.replace(site, calls=True, why=why)
    return site
