"""compile(): the main job, from the base and its oracle weights to the verdict."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from gdu_compile import carrying, emit_torch, model_io, specialize
from gdu_compile.algorithm import AlgorithmLike, is_file_name
from gdu_compile.bases import ModelLike, Source
from gdu_compile.confirmation import confirm, run_training, verifier_for
from gdu_compile.contracts import state_of
from gdu_compile.data import fixed_batch, peek_targets
from gdu_compile.digits import Array, DigitCode, code_named
from gdu_compile.errors import InputError
from gdu_compile.explain import explain
from gdu_compile.losses import LossSpec
from gdu_compile.optimizers import OptimizerSpec
from gdu_compile.options import CompileOptions
from gdu_compile.oracle_weights import OracleWeights, WeightsLike
from gdu_compile.passes import LEARN_PASSES, RECORD_PASSES, learn_passes, record_passes
from gdu_compile.passes._base import GduPass, timed
from gdu_compile.passes.insert_memory import MEMORY_BUCKET_BYTES
from gdu_compile.passes.insert_recorder import DEFAULT_BUCKET_BYTES
from gdu_compile.preparation import (
    Prepared,
    default_steps,
    prepare_data,
    prepare_training,
    wanted_batch,
)
from gdu_compile.report import PassRow, Report
from gdu_compile.time_limit import run_limit
from gdu_compile.training_set import form_of
from gdu_compile.workflows import describe, trained_name

logger = logging.getLogger(__name__)


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


def compile(
    model: ModelLike,
    weights: WeightsLike | None = None,
    *,
    oracle: AlgorithmLike | None = None,
    **options: Any,
) -> Compiled:
    """Extend a base network so that gradient descent reproduces an oracle's weights; confirm it.

    Args:
        model: the base: an ONNX file, or an onnx_ir model (left as it is).
        weights: w* (method record): an .npz, .safetensors, .pt or .onnx file, or a mapping
            name → array.
        oracle: an algorithm instead of weights (method learn): the name of an included or
            registered one, ``"ridge(penalty=0.1)"``, an ONNX file, or an onnx_ir model.
        options: see ``options.CompileOptions``; ``output`` None writes nothing.

    Returns:
        The extended and trained models, and the report; ``report.reproduced`` is the verdict.

    Raises:
        InputError: something given cannot be used; all problems at once.
        UnsupportedError: legal, but not handled by this version.

    Source:
        Welper, Universality of Gradient Descent Neural Network Training,
        arXiv 2007.13664; docs/theory.md (record), docs/learn.md (learn).

    Example:
        >>> import gdu_compile
        >>> compiled = gdu_compile.compile(
        ...     "models/digits_linear.onnx", "models/digits_linear.oracle.npz", steps=1
        ... )
        >>> compiled.report.reproduced, compiled.report.armed_at_step
        (True, 1)
        >>> learnt = gdu_compile.compile(
        ...     "models/digits_linear.onnx", oracle="nearest-mean", data="models/digits.npz"
        ... )
        >>> learnt.report.reproduced, learnt.report.memory.slots
        (True, 1797)
    """
    chosen = CompileOptions.of(options)
    check_outputs((model, weights, oracle, chosen.data, chosen.test_data), chosen,
                  RECORD_PASSES if oracle is None else LEARN_PASSES)  # fmt: skip
    source = Source(model)
    with run_limit(chosen.run_limit, source.name):
        return compile_source(source, weights, oracle, chosen)


def compile_source(
    source: Source, weights: WeightsLike | None, oracle: AlgorithmLike | None,
    chosen: CompileOptions,
) -> Compiled:  # fmt: skip
    """The stages, top to bottom."""
    begin = time.perf_counter()
    extended = source.raised(opset_wanted(oracle))
    report = Report("compile", source.name, why=None)
    passes = plan(extended, weights, oracle, chosen, report)
    rewrite(extended, passes, chosen, report)
    source.restored = state_of(extended).restored
    if chosen.stop_after is None:
        describe(report, extended)
    report.bytes = {"base": source.tensor_bytes, "extended": model_io.tensor_bytes(extended)}
    prepared = prepare(extended, chosen, report)
    report.seconds["compile"] = time.perf_counter() - begin
    if prepared is None:
        write(report, source, extended, None, chosen)
        return Compiled(report, extended)
    verifier = verifier_for(extended, source, prepared, source.name, state_of(extended).alone)
    theta = run_training(extended, prepared, report).theta
    trained = specialize.filled(extended, theta)
    confirm(report, verifier, theta, retrain=prepared)  # may refuse: then nothing is written
    write(report, source, extended, trained, chosen)
    return Compiled(report, extended, trained, theta)


def opset_wanted(oracle: AlgorithmLike | None) -> int:
    """The opset that the base is raised to: our nodes need one, and an algorithm may need more."""
    if oracle is None or (isinstance(oracle, str) and not is_file_name(oracle)):
        return model_io.OPSET
    model = oracle if isinstance(oracle, ir.Model) else model_io.load(oracle)
    return max(model_io.OPSET, model_io.opset_of(model))


def plan(
    model: ir.Model, weights: WeightsLike | None, oracle: AlgorithmLike | None,
    options: CompileOptions, report: Report,
) -> list[GduPass]:  # fmt: skip
    """The passes of the method: record for weights, learn for an oracle.

    Raises:
        InputError: not exactly one of the two is given.
    """
    if (weights is None) == (oracle is None):
        raise InputError("give oracle weights with --weights W, or an algorithm with "
                         "--oracle NAME: one of them; see gdu-compile compile --help")  # fmt: skip
    loss = None if options.loss is None else LossSpec.parse(options.loss)
    targets = peek_targets(options.data)
    if oracle is None:
        assert weights is not None
        code, report.digits_why = choose_digits(options, default_steps_of(options, None))
        return record_passes(
            OracleWeights.load(weights, options.rename), code=code,
            theta_dtype=options.theta_dtype, logits=options.logits,
            class_axis=options.class_axis, loss=loss, targets=targets,
            allow_extra=options.allow_extra, strict=options.strict, cover_all=options.cover_all,
            untie=options.untie,
            gain=options.gain, batch_limit=options.batch_limit,
            bucket_bytes=options.bucket_bytes or DEFAULT_BUCKET_BYTES,
        )  # fmt: skip
    if options.rename or options.cover_all or options.untie:
        raise InputError(
            "--rename, --cover-all and --untie go with --weights: an algorithm's outputs have the "
            "names of the weights, and what it does not compute keeps its value"
        )
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    samples, fields = form_of(inputs, options.data, options.hold_out)
    size = fixed_batch(inputs) or wanted_batch(options, learns=True) or samples
    code, report.digits_why = choose_digits(options, default_steps_of(options, (samples, size)))
    return learn_passes(
        oracle, samples=samples, fields=fields, code=code, theta_dtype=options.theta_dtype,
        logits=options.logits, class_axis=options.class_axis, loss=loss, targets=targets,
        allow_extra=options.allow_extra, strict=options.strict, gain=options.gain,
        bucket_bytes=options.bucket_bytes or MEMORY_BUCKET_BYTES,
        max_iterations=options.max_iterations,
    )  # fmt: skip


def check_outputs(
    inputs: Sequence[object], options: CompileOptions, passes: Sequence[type[GduPass]]
) -> None:
    """Refuse outputs that exist, or that would replace an input, before any work."""
    names = [kind.__name__ for kind in passes]
    if options.stop_after not in {None, *names}:
        raise InputError(f"--stop-after {options.stop_after}: no such pass",
                         [f"passes: {', '.join(names)}"])  # fmt: skip
    if options.dry_run:
        return
    outputs: list[Path] = []
    forms: list[Path] = []
    if options.output is not None and options.emit != "torch":
        outputs.append(options.output)
        if options.confirm and options.stop_after is None:
            outputs.append(trained_name(options.output))
    if options.output is not None and options.emit != "onnx":
        emit_torch.check_torch_output(options.output, force=options.force, inputs=inputs)
        forms = emit_torch.torch_files(options.output)
    if options.dump_dir is not None:
        outputs += [dump_name(options.dump_dir, index, name) for index, name in enumerate(names)]
    for path in outputs:
        model_io.check_output(path, force=options.force, inputs=inputs)
    written = Counter(path.resolve() for path in (*outputs, *forms))
    twice = [path for path, n in written.items() if n > 1]
    if twice:
        raise InputError(f"{twice[0]}: would be written twice; choose another -o or --dump-dir")


def dump_name(folder: Path, index: int, name: str) -> Path:
    """Where the graph after a pass goes."""
    return folder / f"{index:02d}-{name}.onnx"


def default_steps_of(options: CompileOptions, form: tuple[int, int] | None) -> int:
    """The steps that will be made; ``form`` is (samples, batch size) for learn."""
    samples, size = form or (0, 1)
    return options.steps or default_steps(samples, size, learns=form is not None)


def choose_digits(options: CompileOptions, steps: int) -> tuple[DigitCode, str]:
    """The digit code, and why: as named, or the smallest that the bounds allow."""
    if options.digits != "auto":
        return code_named(options.digits), "as asked for"
    optimizer = OptimizerSpec.parse(options.optimizer)
    return carrying.smallest_code(
        carrying.Training(optimizer, options.lr, steps, options.gain, options.theta_dtype)
    )


def rewrite(
    model: ir.Model, passes: Sequence[GduPass], options: CompileOptions, report: Report
) -> None:
    """Run the passes in place, timed; dump, stop and explain as asked."""
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
        report.why = explain(model, options.why)


def prepare(extended: ir.Model, options: CompileOptions, report: Report) -> Prepared | None:
    """Everything that can be refused before training; None when nothing shall be trained."""
    if options.stop_after is not None:
        return None
    if options.dry_run or not options.confirm:
        check_only(extended, options)
        return None
    return prepare_training(extended, options, report)


def check_only(extended: ir.Model, options: CompileOptions) -> None:
    """What can be refused when nothing shall be trained: the data, and what the oracle returns."""
    state = state_of(extended)
    assert state.logits is not None
    if options.data is None and state.alone is None:
        return
    loaded = prepare_data(extended, options, LossSpec.of(options.loss, state.logits))
    if state.alone is not None and not options.dry_run:
        assert loaded.classes is not None and state.memory is not None
        samples = [loaded.data.inputs[field.name] for field in state.memory.fields]
        state.alone.run(samples, loaded.classes, state.weights or ())


def write(
    report: Report, source: Source, extended: ir.Model, trained: ir.Model | None,
    options: CompileOptions,
) -> None:  # fmt: skip
    """Write what was asked for, each file atomically."""
    if options.output is None or options.dry_run:
        return
    if options.emit != "onnx":
        files = emit_torch.save_torch(extended, options.output, force=options.force)
        report.files["torch"] = str(files[0])
    if options.emit == "torch":
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
