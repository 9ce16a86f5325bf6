"""compile(): the main job, from the base and its oracle weights to the verdict."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from gdu_compile import carrying, model_io, runtime, specialize
from gdu_compile.contracts import state_of
from gdu_compile.data import fixed_batch, peek_targets, synthetic_inputs
from gdu_compile.digits import Array, DigitCode, code_named
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.explain import explain
from gdu_compile.losses import LossSpec
from gdu_compile.metadata import Extension
from gdu_compile.optimizers import OptimizerSpec
from gdu_compile.options import CompileOptions
from gdu_compile.oracle_weights import OracleWeights, WeightsLike
from gdu_compile.passes import RECORD_PASSES, record_passes
from gdu_compile.passes._base import timed
from gdu_compile.report import PassRow, Report
from gdu_compile.verification import Verifier, same_bits
from gdu_compile.workflows import (
    Prepared,
    confirm,
    dataset,
    describe,
    prepare_training,
    run_training,
    trained_name,
)  # fmt: skip

logger = logging.getLogger(__name__)

ModelLike = str | PathLike[str] | ir.Model


@dataclass
class Compiled:
    """What compile() returns.

    Attributes:
        report: everything that was done and measured.
        extended: the extended model.
        trained: the same graph with θ filled in; None when nothing was trained.
        theta: bucket name → [rows + 1, digits]; None when nothing was trained.
    """

    report: Report
    extended: ir.Model
    trained: ir.Model | None = None
    theta: dict[str, Array] | None = None


def compile(model: ModelLike, weights: WeightsLike, **options: Any) -> Compiled:
    """Extend a base network so that gradient descent reproduces the oracle weights; confirm it.

    Args:
        model: the base: an ONNX file, or an onnx_ir model (left as it is).
        weights: w*: an .npz, .safetensors, .pt or .onnx file, or a mapping name → array.
        options: see ``options.CompileOptions``; ``output`` None writes nothing.

    Returns:
        The extended and trained models, and the report; ``report.reproduced`` is the verdict.

    Raises:
        InputError: something given cannot be used; all problems at once.
        UnsupportedError: legal, but not handled by this version.

    Source:
        Welper, Universality of Gradient Descent Neural Network Training,
        arXiv 2007.13664; docs/theory.md §2 (record).

    Example:
        >>> import gdu_compile
        >>> compiled = gdu_compile.compile(
        ...     "models/digits_linear.onnx", "models/digits_linear.oracle.npz", steps=1
        ... )
        >>> compiled.report.reproduced, compiled.report.armed_at_step
        (True, 1)
    """
    chosen = CompileOptions.of(options)
    check_outputs((model, weights, chosen.data), chosen)
    begin = time.perf_counter()
    source = Source(model)
    extended = source.raised()
    report = Report("compile", source.name, why=None)
    code, report.digits_why = choose_digits(chosen)
    rewrite(extended, OracleWeights.load(weights, chosen.rename), code, chosen, report)
    if chosen.stop_after is None:
        describe(report, extended)
    report.bytes = {"base": source.tensor_bytes, "extended": model_io.tensor_bytes(extended)}
    prepared = prepare(extended, chosen, report)
    report.seconds["compile"] = time.perf_counter() - begin
    if prepared is None:
        write(report, source, extended, None, chosen)
        return Compiled(report, extended)
    with source.bases(specialize.oracle_in(extended)) as (base, initial):
        verifier = Verifier(extended, base, initial, prepared.data, source.name)
        theta = run_training(extended, prepared, report).theta
        trained = specialize.filled(extended, theta)
        write(report, source, extended, trained, chosen)
        confirm(report, verifier, theta, retrain=prepared)
    return Compiled(report, extended, trained, theta)


class Source:
    """The base as it was given: a file, or a model in memory.

    Attributes:
        name: what to call it in messages.
        tensor_bytes: bytes of its initializers, once it was read.
        file_bytes: bytes of its file and external data, once it was read; None in memory.
    """

    def __init__(self, model: ModelLike) -> None:
        self._model = model
        self.name = str(model.graph.name if isinstance(model, ir.Model) else model)
        self.tensor_bytes: int | None = None
        self.file_bytes: int | None = None

    def fresh(self) -> ir.Model:
        """A copy that may be changed; tensors are shared or memory-mapped."""
        if isinstance(self._model, ir.Model):
            model = with_own_tensors(self._model.clone())
        else:
            model = model_io.load(self._model)
            self.file_bytes = model_io.file_bytes(Path(self._model), model)
        self.tensor_bytes = model_io.tensor_bytes(model)
        return model

    @contextmanager
    def bases(self, weights: Mapping[str, Array]) -> Iterator[tuple[Path, Path]]:
        """The base holding these weights, and the base as it was given, as files."""
        with (
            runtime.on_disk(specialize.with_weights(self.fresh(), weights)) as holding,
            runtime.on_disk(self.fresh()) as initial,
        ):
            yield holding, initial

    def raised(self) -> ir.Model:
        """A copy at opset 18 or above, compared with the original in onnxruntime.

        Raises:
            UnsupportedError: the raised model does not give the same bits.
        """
        original = self.fresh()
        before = model_io.opset_of(original)
        if before >= model_io.OPSET:
            return original
        model = model_io.raise_opset(self.fresh())
        inputs = seeded_inputs(model)
        batch = fixed_batch(model.graph.inputs)
        with runtime.on_disk(original) as old, runtime.on_disk(model) as new:
            expected = runtime.run(old, inputs, level="none", batch=batch, called=self.name)
            got = runtime.run(new, inputs, list(expected), level="none", batch=batch)
        if different := [n for n in expected if not same_bits(expected[n], got[n])]:
            raise UnsupportedError(
                f"{self.name}: raising it from opset {before} to {model_io.OPSET} changes the "
                f"output {', '.join(different)}; export it with opset {model_io.OPSET} or above"
            )
        return model


def with_own_tensors(model: ir.Model) -> ir.Model:
    """Tensors of their own names: onnx_ir renames a tensor with its value, and a clone shares its
    tensors with the caller's model.  The contents stay shared."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = alias(value.const_value)
        for node in graph:
            for name, attribute in node.attributes.items():
                if attribute.type == ir.AttributeType.TENSOR:
                    node.attributes[name] = ir.AttrTensor(name, alias(attribute.as_tensor()))
    return model


def alias(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """The same contents under a name of its own."""
    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(lambda: tensor, dtype=tensor.dtype, shape=shape, name=tensor.name)


def seeded_inputs(model: ir.Model) -> dict[str, Array]:
    """Seeded inputs for a comparison of two models."""
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    return synthetic_inputs(inputs, np.random.default_rng(0))


def check_outputs(inputs: Sequence[object], options: CompileOptions) -> None:
    """Refuse outputs that exist, or that would replace an input, before any work."""
    names = [kind.__name__ for kind in RECORD_PASSES]
    if options.stop_after not in {None, *names}:
        raise InputError(f"--stop-after {options.stop_after}: no such pass",
                         [f"passes: {', '.join(names)}"])  # fmt: skip
    if options.dry_run:
        return
    outputs = [] if options.output is None else [options.output]
    if options.output is not None and options.confirm and options.stop_after is None:
        outputs.append(trained_name(options.output))
    if options.dump_dir is not None:
        outputs += [dump_name(options.dump_dir, index, name) for index, name in enumerate(names)]
    for path in outputs:
        model_io.check_output(path, force=options.force, inputs=inputs)
    twice = [path for path, n in Counter(path.resolve() for path in outputs).items() if n > 1]
    if twice:
        raise InputError(f"{twice[0]}: would be written twice; choose another -o or --dump-dir")


def dump_name(folder: Path, index: int, name: str) -> Path:
    """Where the graph after a pass goes."""
    return folder / f"{index:02d}-{name}.onnx"


def choose_digits(options: CompileOptions) -> tuple[DigitCode, str]:
    """The digit code, and why: as named, or the smallest that the bounds allow."""
    if options.digits != "auto":
        return code_named(options.digits), "as asked for"
    optimizer = OptimizerSpec.parse(options.optimizer)
    return carrying.smallest_code(
        carrying.Training(optimizer, options.lr, options.steps, options.gain, options.theta_dtype)
    )


def rewrite(
    model: ir.Model, oracle: OracleWeights, code: DigitCode, options: CompileOptions,
    report: Report,
) -> None:  # fmt: skip
    """Run the record passes in place, timed; dump, stop and explain as asked."""
    passes = record_passes(
        oracle, code=code, theta_dtype=options.theta_dtype, logits=options.logits,
        class_axis=options.class_axis,
        loss=None if options.loss is None else LossSpec.parse(options.loss),
        targets=peek_targets(options.data), allow_extra=options.allow_extra,
        strict=options.strict, cover_all=options.cover_all, gain=options.gain,
        batch_limit=options.batch_limit, bucket_bytes=options.bucket_bytes,
    )  # fmt: skip
    for index, pass_ in enumerate(passes):
        name = type(pass_).__name__
        modified, seconds = timed(pass_, model)
        logger.info("%s: %.3f s", pass_, seconds)
        report.passes.append(PassRow(name, seconds, modified, state_of(model).counts[name]))
        if options.dump_dir is not None and not options.dry_run:
            path = dump_name(options.dump_dir, index, name)
            with model_io.staging(path) as folder:
                model_io.write(model, folder / path.name)
                model_io.place(folder, path, force=options.force)
        if name == options.stop_after:
            break
    report.warnings += state_of(model).notes
    if options.why is not None:
        report.why = explain(model, options.why, oracle)


def prepare(extended: ir.Model, options: CompileOptions, report: Report) -> Prepared | None:
    """Everything that can be refused before training; None when nothing shall be trained."""
    if options.stop_after is not None:
        return None
    if options.dry_run or not options.confirm:
        if options.data is not None:
            site = Extension.from_metadata(extended.metadata_props).logits
            dataset(extended, options, LossSpec.of(options.loss, site))
        return None
    return prepare_training(extended, options, report)


def write(
    report: Report, source: Source, extended: ir.Model, trained: ir.Model | None,
    options: CompileOptions,
) -> None:  # fmt: skip
    """Write what was asked for, each file atomically."""
    if options.output is None or options.dry_run:
        return
    size = model_io.save(extended, options.output, force=options.force)
    if source.file_bytes is not None:
        report.bytes = {"base": source.file_bytes, "extended": size}
    if options.stop_after in {None, RECORD_PASSES[-1].__name__}:
        report.files["extended"] = str(options.output)
    else:
        report.warnings.append(f"{options.output} is the graph after {options.stop_after}: "
                               "no extended model yet")  # fmt: skip
    if trained is not None:
        path = trained_name(options.output)
        model_io.save(trained, path, force=options.force)
        report.files["trained"] = str(path)
