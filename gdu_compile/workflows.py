"""What is done with an extended file: train, verify, apply, extract; compile() shares it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from gdu_compile import carrying, model_io, runtime, specialize
from gdu_compile.data import (
    Dataset,
    fixed_batch,
    load_data,
    synthetic_data,
    synthetic_inputs,
)  # fmt: skip
from gdu_compile.digits import Array
from gdu_compile.errors import ContractError, InputError, UnsupportedError
from gdu_compile.losses import LossSpec
from gdu_compile.metadata import Extension
from gdu_compile.optimizers import OptimizerSpec
from gdu_compile.options import DataOptions, TrainOptions, VerifyOptions, WriteOptions
from gdu_compile.passes.check import CheckExtensionPass
from gdu_compile.progress import training_progress
from gdu_compile.report import Report
from gdu_compile.trained import TrainedLike, load_theta
from gdu_compile.verification import Verifier

if TYPE_CHECKING:
    from gdu_compile.training import Training

ModelLike = str | PathLike[str] | ir.Model
LARGE_TARGETS = 2.0**8
"""Distance of targets from z0 beyond which γ·κ·s may no longer vanish beside an optimizer's ε."""


@dataclass(frozen=True)
class Prepared:
    """All that training needs, checked."""

    data: Dataset
    loss: LossSpec
    optimizer: OptimizerSpec
    batch_size: int
    options: TrainOptions


def train(extended: ModelLike, **options: Any) -> Report:
    """Train an extended file by gradient descent and confirm the result.

    Args:
        extended: an extended ONNX file, or model.
        options: see ``options.TrainOptions``; ``output`` None writes nothing.

    Returns:
        The report; the base for the comparison is rebuilt from the file itself.

    Raises:
        InputError: something given cannot be used.

    Example:
        >>> import gdu_compile
        >>> compiled = gdu_compile.compile(
        ...     "models/digits_linear.onnx", "models/digits_linear.oracle.npz", confirm=False
        ... )
        >>> gdu_compile.train(compiled.extended, lr=37.0, steps=2).armed_at_step
        1
    """
    chosen = TrainOptions.of(options)
    check_output(chosen, extended, chosen.data)
    model, report = open_extended("train", extended)
    prepared = prepare_training(model, chosen, report)
    with bases(model) as (base, initial):
        verifier = Verifier(model, base, initial, prepared.data, report.model)
        theta = run_training(model, prepared, report).theta
        if chosen.output is not None:
            model_io.save(specialize.filled(model, theta), chosen.output, force=chosen.force)
            report.files["trained"] = str(chosen.output)
        confirm(report, verifier, theta, retrain=prepared)
    return report


def verify(extended: ModelLike, trained: TrainedLike, **options: Any) -> Report:
    """Check somebody else's training run of an extended file, with nothing but the files.

    Args:
        extended: the extended ONNX file, or model.
        trained: θ: .safetensors, .npz, a trained .onnx, or a mapping name → array.
        options: see ``options.VerifyOptions``.

    Returns:
        The report; ``report.weights`` names the tensor and the coordinate that is worst.

    Raises:
        InputError: something given cannot be used.

    Example:
        >>> import gdu_compile
        >>> compiled = gdu_compile.compile(
        ...     "models/digits_linear.onnx", "models/digits_linear.oracle.npz"
        ... )
        >>> gdu_compile.verify(compiled.extended, compiled.theta).reproduced
        True
    """
    chosen = VerifyOptions.of(options)
    model, report = open_extended("verify", extended)
    theta = load_theta(trained, Extension.from_metadata(model.metadata_props))
    filled = specialize.filled(model, theta)
    data = dataset(model, chosen, None)
    describe_data(report, data, chosen)
    report.files["trained"] = None if isinstance(trained, Mapping) else str(trained)
    if not specialize.is_armed(filled):
        report.warnings.append("the trained θ is not armed: a calibrator is 0")
    with bases(model) as (base, initial):
        verifier = Verifier(model, base, initial, data, report.model)
        confirm(report, verifier, theta, retrain=None)
    return report


def apply(extended: ModelLike, trained: TrainedLike, **options: Any) -> ir.Model:
    """Fill trained θ into an extended file: the trained ONNX model.

    Args:
        extended: the extended ONNX file, or model.
        trained: θ, as for ``verify``.
        options: see ``options.WriteOptions``; ``output`` None writes nothing.

    Raises:
        InputError: something given cannot be used.

    Example:
        >>> import gdu_compile
        >>> compiled = gdu_compile.compile(
        ...     "models/digits_linear.onnx", "models/digits_linear.oracle.npz"
        ... )
        >>> trained = gdu_compile.apply(compiled.extended, compiled.theta)
        >>> trained.graph.initializers["gdu_theta_0"].shape
        Shape([651, 2])
    """
    chosen = WriteOptions.of(options)
    check_output(chosen, extended, trained)
    model, _ = open_extended("apply", extended)
    theta = load_theta(trained, Extension.from_metadata(model.metadata_props))
    filled = specialize.filled(model, theta)
    if chosen.output is not None:
        model_io.save(filled, chosen.output, force=chosen.force)
    return filled


def extract(trained: ModelLike, **options: Any) -> ir.Model:
    """Fold the extension away: the plain base network with the reproduced weights.

    Args:
        trained: a trained ONNX file, or model.
        options: see ``options.WriteOptions``; ``output`` None writes nothing.

    Raises:
        InputError: not an extended model, or never trained.

    Example:
        >>> import gdu_compile
        >>> compiled = gdu_compile.compile(
        ...     "models/digits_linear.onnx", "models/digits_linear.oracle.npz"
        ... )
        >>> plain = gdu_compile.extract(compiled.trained)
        >>> sorted(plain.graph.initializers), [node.op_type for node in plain.graph]
        (['fc.bias', 'fc.weight', 'val_5'], ['Reshape', 'Gemm'])
    """
    chosen = WriteOptions.of(options)
    check_output(chosen, trained)
    model, _ = open_extended("extract", trained)
    plain = specialize.extract(model)
    if chosen.output is not None:
        model_io.save(plain, chosen.output, force=chosen.force)
    return plain


def to_torch(extended: ModelLike) -> Any:
    """The extended model as one torch.nn.Module: parameters are θ, the rest are buffers.

    Args:
        extended: an extended ONNX file or model.

    Returns:
        A module; ``forward`` takes the model's inputs in order.

    Example:
        >>> import gdu_compile, torch
        >>> compiled = gdu_compile.compile(
        ...     "models/digits_linear.onnx", "models/digits_linear.oracle.npz", confirm=False
        ... )
        >>> module = gdu_compile.to_torch(compiled.extended)
        >>> [(name, list(theta.shape)) for name, theta in module.named_parameters()]
        [('gdu_theta_0', [651, 2])]
        >>> module(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """
    from gdu_compile.torch_backend import lower_to_torch

    model = extended if isinstance(extended, ir.Model) else model_io.load(extended)
    return lower_to_torch(model)


def check_output(options: TrainOptions | WriteOptions, *inputs: object) -> None:
    """Refuse an output that exists, or that would replace an input, before any work."""
    if options.output is not None:
        model_io.check_output(options.output, force=options.force, inputs=inputs)


def open_extended(command: str, extended: ModelLike) -> tuple[ir.Model, Report]:
    """Load an extended file, check that it is one, and begin its report."""
    if isinstance(extended, ir.Model):
        model, path, size = extended, None, model_io.tensor_bytes(extended)
    else:
        path = Path(extended)
        model = model_io.load(path)
        size = model_io.file_bytes(path, model)
    name = str(path or model.graph.name)
    Extension.from_metadata(model.metadata_props, name)
    try:
        CheckExtensionPass()(model)
    except ContractError as error:
        raise InputError(f"{name}: {error.message}; was it changed?", error.problems) from error
    report = Report(command, name)
    describe(report, model)
    report.files["extended"] = None if path is None else str(path)
    report.bytes["extended"] = size
    return model, report


def describe(report: Report, extended: ir.Model) -> None:
    """The permanent facts of the extension into the report."""
    facts = Extension.from_metadata(extended.metadata_props)
    report.method, report.digits, report.gain = facts.method, facts.code.name, facts.gain
    site = facts.logits
    report.logits = {"name": site.name, "axis": site.axis, "kind": site.kind, "why": site.why}
    report.skipped = [asdict(skipped) for skipped in facts.skipped]


def dataset(extended: ir.Model, options: DataOptions, loss: LossSpec | None) -> Dataset:
    """The data asked for: a file, or synthetic; ``loss`` None takes any that goes with it."""
    site = Extension.from_metadata(extended.metadata_props).logits
    if options.data is not None:
        return load_data(options.data, extended.graph.inputs, site, loss)
    shape = run_shape(extended) if None in site.dims[1:] else None
    return synthetic_data(extended.graph.inputs, site, options.seed, loss, shape)


def run_shape(extended: ir.Model) -> list[int]:
    """The logits' shape on synthetic inputs, found by running the model."""
    output = Extension.from_metadata(extended.metadata_props).logits.output
    inputs = synthetic_inputs(extended.graph.inputs, np.random.default_rng(0))
    batch = fixed_batch(extended.graph.inputs)
    with runtime.on_disk(extended) as path:
        return list(runtime.run(path, inputs, [output], batch=batch)[output].shape)


def describe_data(report: Report, data: Dataset, options: DataOptions) -> None:
    """The data into the report."""
    report.data = {"kind": data.kind, "path": data.path, "samples": len(data)}
    report.seed, report.device = options.seed, options.device
    report.warnings += data.notes


def prepare_training(extended: ir.Model, options: TrainOptions, report: Report) -> Prepared:
    """Check data, device, optimizer and batch size; warn where theory does not promise success.

    Raises:
        InputError: one of them cannot be used.
    """
    facts = Extension.from_metadata(extended.metadata_props)
    loss = LossSpec.of(options.loss, facts.logits)
    data = dataset(extended, options, loss)
    optimizer = OptimizerSpec.parse(options.optimizer)
    from gdu_compile import training

    training.check_device(options.device)
    loss.check(facts.logits)
    optimizer.check(options.lr)
    size = training.batch_size_for(extended, data, options.batch_size, facts.batch_limit)
    describe_data(report, data, options)
    if size not in (options.batch_size, len(data)):
        report.warnings.append(f"batches of {size}: the model's batch is fixed")
    report.optimizer, report.learning_rate = str(optimizer), options.lr
    plan = carrying.Training(optimizer, options.lr, options.steps, facts.gain, facts.theta_dtype)
    report.warnings += carrying.warnings_for(plan, facts.code)
    report.loss, report.batch_size = str(loss), size
    report.warnings += target_warnings(facts, data)
    return Prepared(data, loss, optimizer, size, options)


def target_warnings(facts: Extension, data: Dataset) -> list[str]:
    """What THEORY's Lemma 1 does not promise for the targets of values, in sentences."""
    site = facts.logits
    if site.kind != "values":
        return []
    y = data.labels
    column = y.take(0, axis=site.axis) if y.ndim > 1 else y
    low, high = float(column.min()), float(column.max())
    found = []
    if low <= facts.start:
        found.append(
            f"targets reach down to {low:g}, and the recorder starts at z0 = {facts.start:g}: a "
            "batch whose mean is z0 records nothing; compile with this --data (Lemma 1)"
        )
    if high - facts.start > LARGE_TARGETS:
        found.append(
            f"targets lie up to {high - facts.start:g} above z0: with gradients as large adaptive "
            "optimizers may not be linear; use a smaller --gain, or scale the targets (Lemma 4)"
        )
    return found


def run_training(
    extended: ir.Model, prepared: Prepared, report: Report | None, *, lr: float | None = None
) -> Training:
    """Train; what was measured goes into the report.  ``lr`` overrides the options' rate."""
    from gdu_compile import training

    options = prepared.options
    with training_progress(options.steps, quiet=report is None) as progress:
        result = training.train(
            extended, prepared.data, loss=prepared.loss,
            optimizer=prepared.optimizer if lr != 0 else prepared.optimizer.at_rest(),
            lr=options.lr if lr is None else lr, steps=options.steps,
            batch_size=prepared.batch_size, device=options.device, seed=options.seed,
            progress=progress,
        )  # fmt: skip
    if report is not None:
        report.steps, report.armed_at_step = result.steps, result.armed_at_step
        report.gradient_after_arming = result.gradient_after_arming
        report.seconds["train"] = result.seconds
        report.warnings += result.warnings
    return result


def confirm(
    report: Report, verifier: Verifier, theta: Mapping[str, Array], *, retrain: Prepared | None
) -> None:
    """Run the verdict and its negative controls; fill the report.

    Args:
        report: to be filled.
        verifier: of the extended model and its base.
        theta: the trained θ.
        retrain: to run the control with learning rate 0; None when nothing was trained here.
    """
    begin = time.perf_counter()
    verdict = verifier.check(theta)
    report.weights = verdict.weights
    report.forward, report.forward_unoptimized = verdict.forward, verdict.forward_unoptimized
    report.negative_controls = [verifier.untrained()]
    if retrain is not None:
        fresh = specialize.filled(verifier.extended, specialize.untrained_theta(verifier.facts))
        still = run_training(fresh, retrain, None, lr=0.0).theta
        report.negative_controls.append(verifier.control("learning rate 0", still))
    if verifier.data.kind == "file":
        report.accuracy = verifier.accuracy(verdict)
    if not all(np.isfinite(array).all() for array in theta.values()):
        report.warnings.append("θ holds NaN or infinity: training has diverged")
    compare_with_torch(report, verifier, theta, verdict.outputs)
    report.reproduced = (
        verdict.reproduced
        and report.gradient_after_arming in (None, 0.0)
        and not any(control.reproduced for control in report.negative_controls)
    )
    report.seconds["verify"] = time.perf_counter() - begin


def compare_with_torch(
    report: Report, verifier: Verifier, theta: Mapping[str, Array], outputs: Mapping[str, Array]
) -> None:
    """Run the trained extension in torch too; to disagree is a warning, the verdict is on bits."""
    from gdu_compile.verification import torch_agrees

    logits, device = verifier.facts.logits.output, report.device or "cpu"
    specialize.fill(verifier.trained, theta)
    try:
        report.torch = torch_agrees(
            verifier.trained, logits, verifier.data, outputs[logits], device
        )
    except UnsupportedError as error:
        report.warnings.append(f"not compared with torch: {error.message}")
        return
    if not report.torch.agrees:
        report.warnings.append(
            f"torch's logits differ from onnxruntime's by {report.torch.max_relative_diff:.1e} "
            f"of the largest (tolerance {report.torch.tolerance:.0e})"
        )


@contextmanager
def bases(extended: ir.Model) -> Iterator[tuple[Path, Path]]:
    """The base with w*, and with its initial weights, as files, rebuilt from an extended model."""
    facts = Extension.from_metadata(extended.metadata_props)
    initial: dict[str, Array] = {}
    for name, kept in facts.initial.items():
        value = extended.graph.initializers[kept].const_value
        assert value is not None
        initial[name] = value.numpy()
    oracle = specialize.oracle_in(extended)
    with (
        runtime.on_disk(specialize.without_extension(extended, oracle)) as with_oracle,
        runtime.on_disk(specialize.without_extension(extended, initial)) as as_it_was,
    ):
        yield with_oracle, as_it_was


def trained_name(extended: Path) -> Path:
    """NAME.gdu.onnx → NAME.gdu.trained.onnx."""
    return extended.with_name(extended.name.removesuffix(".onnx") + ".trained.onnx")
