"""What is done with an extended file: train, verify, apply, extract; compile() shares it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from gdu_compile import model_io, specialize
from gdu_compile.bases import ModelLike, Rebuilt
from gdu_compile.confirmation import confirm, run_training, verifier_for
from gdu_compile.contracts import graph_problems, state_of
from gdu_compile.digits import Array
from gdu_compile.errors import ContractError, InputError
from gdu_compile.losses import LossSpec
from gdu_compile.metadata import Extension
from gdu_compile.options import ExtractOptions, TrainOptions, VerifyOptions, WriteOptions
from gdu_compile.passes.check import CheckExtensionPass
from gdu_compile.preparation import describe_data, prepare_data, prepare_training
from gdu_compile.report import Report
from gdu_compile.time_limit import run_limit
from gdu_compile.trained import TrainedLike, load_theta


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
    with run_limit(chosen.run_limit, report.model):
        return train_opened(model, report, chosen)


def train_opened(model: ir.Model, report: Report, chosen: TrainOptions) -> Report:
    """Train, confirm, write."""
    prepared = prepare_training(model, chosen, report)
    # A memory that is full already holds the samples in the order of an earlier training.
    shown = replace(prepared, order=None) if specialize.is_armed(model) else prepared
    verifier = verifier_for(model, Rebuilt(model), shown, report.model)
    theta = run_training(model, prepared, report).theta
    confirm(report, verifier, theta, retrain=prepared)  # may refuse: then nothing is written
    if chosen.output is not None:
        model_io.save(specialize.filled(model, theta), chosen.output, force=chosen.force)
        report.files["trained"] = str(chosen.output)
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
    report.files["trained"] = None if isinstance(trained, Mapping) else str(trained)
    with run_limit(chosen.run_limit, report.model):
        return verify_opened(model, theta, report, chosen)


def verify_opened(
    model: ir.Model, theta: Mapping[str, Array], report: Report, chosen: VerifyOptions
) -> Report:
    """Measure a trained θ."""
    filled = specialize.filled(model, theta)
    site = Extension.from_metadata(model.metadata_props).logits
    loss = None if chosen.loss is None else LossSpec.of(chosen.loss, site)
    loaded = prepare_data(model, chosen, loss)
    describe_data(report, loaded.data, chosen)
    if not specialize.is_armed(filled):
        report.warnings.append("the trained θ is not armed: a calibrator is 0")
    verifier = verifier_for(model, Rebuilt(model), loaded, report.model)
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
        options: see ``options.ExtractOptions``; ``output`` None writes nothing.

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
    chosen = ExtractOptions.of(options)
    check_output(chosen, trained)
    model, report = open_extended("extract", trained)
    with run_limit(chosen.run_limit, report.model):
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


def export_torch(extended: ModelLike, **options: Any) -> list[Path]:
    """Write the extended model as files that need only torch.

    Args:
        extended: an extended ONNX file or model.
        options: ``force``, and ``output``: NAME.py (a module in plain Python, with its tensors in
            NAME.safetensors), NAME.onnx for those two beside it, or NAME.pt2 (torch.export).

    Returns:
        The files that were written.

    Raises:
        InputError: no ``output``, or a file exists and ``force`` is not set.
        UnsupportedError: NAME.py: something has no form in Python source.  NAME.pt2: torch.export
            cannot trace the model, as with the memory of method learn.

    Example:
        >>> import gdu_compile, runpy, tempfile
        >>> compiled = gdu_compile.compile(
        ...     "models/digits_linear.onnx", "models/digits_linear.oracle.npz", confirm=False
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source, _ = gdu_compile.export_torch(compiled.extended, output=f"{folder}/net.py")
        ...     model = runpy.run_path(str(source))["Model"]()
        >>> [(name, list(theta.shape)) for name, theta in model.named_parameters()]
        [('gdu_theta_0', [651, 2])]
    """
    from gdu_compile.emit_torch import check_torch_output, save_torch

    chosen = WriteOptions.of(options)
    if chosen.output is None:
        raise InputError("export_torch: say where to write with output=NAME.py")
    check_torch_output(chosen.output, force=chosen.force, inputs=[extended])
    model, _ = open_extended("export", extended)
    return save_torch(model, chosen.output, force=chosen.force)


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
    if problems := graph_problems(model):
        raise InputError(f"{name}: its graph is broken; was it changed?", problems)
    try:
        CheckExtensionPass()(model)
    except ContractError as error:
        raise InputError(f"{name}: {error.message}; was it changed?", error.problems) from error
    report = Report(command, name)
    describe(report, model)
    report.warnings += state_of(model).notes
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


def trained_name(extended: Path) -> Path:
    """NAME.gdu.onnx → NAME.gdu.trained.onnx."""
    return extended.with_name(extended.name.removesuffix(".onnx") + ".trained.onnx")
