"""What training and confirmation need, checked before either begins."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from gdu_compile import carrying
from gdu_compile.arrays import read_arrays
from gdu_compile.batches import Indices, first_pass, steps_of_a_pass
from gdu_compile.data import Dataset, fitting_loss, load_data, split
from gdu_compile.losses import LossSpec
from gdu_compile.metadata import Extension
from gdu_compile.optimizers import OptimizerSpec
from gdu_compile.options import DataOptions, TrainOptions
from gdu_compile.report import Report
from gdu_compile.synthetic import synthetic_data
from gdu_compile.training_set import Classes, check_samples, classes_of
from gdu_compile.trial import trial

LARGE_TARGETS = 2.0**8
"""Distance of targets from z0 beyond which γ·κ·s may no longer vanish beside an optimizer's ε."""
RECORD_STEPS, RECORD_BATCH = 3, 64


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """The data, checked.

    Attributes:
        data: what is trained on, and the outputs are compared on.
        test: held-out data for the accuracy; None for ``data``.
        classes: learn: one for each sample; None for record.
        order: learn: in which the samples are presented; None for record, and when it is
            somebody else who trains.
    """

    data: Dataset
    test: Dataset | None
    classes: Classes | None = None
    order: Indices | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared(PreparedData):
    """All that training needs, checked."""

    loss: LossSpec
    optimizer: OptimizerSpec
    batch_size: int
    steps: int
    options: TrainOptions


def prepare_data(extended: ir.Model, options: DataOptions, loss: LossSpec | None) -> PreparedData:
    """The data asked for: a file, or synthetic; ``loss`` None takes any that goes with it.

    Raises:
        InputError: it does not fit the model; for learn, also when it does not fit the memory.
    """
    facts = Extension.from_metadata(extended.metadata_props)
    site, inputs = facts.logits, extended.graph.inputs
    test = None
    if options.data is not None:
        loss = loss or fitting_loss(site, read_arrays(options.data).get("y"))
        data = load_data(options.data, inputs, site, loss)
        if options.test_data is not None:
            test = load_data(options.test_data, inputs, site, loss)
        elif options.hold_out:
            data, test = split(data, options.hold_out, options.seed)
    else:
        loss = loss or fitting_loss(site, None)
        dims, shape = trial(extended, facts)
        data = synthetic_data(inputs, site, options.seed, loss, shape, dims)
    if facts.memory is None:
        return PreparedData(data=data, test=test)
    check_samples(data, facts.memory.slots)
    return PreparedData(data=data, test=test, classes=classes_of(data, site, loss))


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
    loaded = prepare_data(extended, options, loss)
    optimizer = OptimizerSpec.parse(options.optimizer)
    from gdu_compile import training

    training.check_device(options.device)
    loss.check(facts.logits)
    optimizer.check(options.lr)
    data, learns = loaded.data, facts.memory is not None
    wanted = wanted_batch(options, learns)
    if options.batch_size is None and facts.batch_limit and facts.logits.dtype == "float16":
        # Its N is small, and a sample of a dense output has many labels.
        wanted = max(min(wanted, facts.batch_limit // max(data.positions, 1)), 1)
    size = training.batch_size_for(extended, data, wanted, facts.batch_limit)
    steps = options.steps or default_steps(len(data), size, learns)
    describe_data(report, data, options)
    if size not in (wanted, len(data)) and not data.calls:
        report.warnings.append(f"batches of {size}: the model's batch is fixed")
    report.optimizer, report.learning_rate = str(optimizer), options.lr
    plan = carrying.Training(optimizer, options.lr, steps, facts.gain, facts.theta_dtype)
    report.warnings += carrying.warnings_for(plan, facts.code)
    report.loss, report.batch_size = str(loss), size
    report.warnings += target_warnings(facts, data)
    return Prepared(
        data=data, test=loaded.test, classes=loaded.classes,
        order=first_pass(len(data), options.seed) if learns else None, loss=loss,
        optimizer=optimizer, batch_size=size, steps=steps, options=options,
    )  # fmt: skip


def wanted_batch(options: TrainOptions, learns: bool) -> int:
    """The batch size asked for, or the method's own: a full batch for learn."""
    if options.batch_size is not None:
        return options.batch_size
    return 0 if learns else RECORD_BATCH


def default_steps(samples: int, size: int, learns: bool) -> int:
    """Steps when none are asked for: for learn one pass, and one to see that it stays."""
    return steps_of_a_pass(samples, size) + 1 if learns else RECORD_STEPS


def target_warnings(facts: Extension, data: Dataset) -> list[str]:
    """What THEORY's Lemma 1 does not promise for the targets of values, in sentences."""
    site = facts.logits
    if site.kind != "values" or facts.memory is not None:
        return []
    y = data.labels
    column = y.take(0, axis=site.axis) if y.ndim > 1 and site.classes > 1 else y
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
