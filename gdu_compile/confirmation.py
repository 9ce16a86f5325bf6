"""Training an extended model and confirming the result, with the negative controls."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from gdu_compile import specialize
from gdu_compile.algorithm import AlgorithmGraph
from gdu_compile.bases import Base
from gdu_compile.batches import first_pass, steps_of_a_pass
from gdu_compile.default_inputs import make_constants
from gdu_compile.digits import Array
from gdu_compile.errors import UnsupportedError
from gdu_compile.memory_verification import MemoryVerifier
from gdu_compile.metadata import Extension
from gdu_compile.preparation import Prepared, PreparedData
from gdu_compile.progress import training_progress
from gdu_compile.report import Control, MemoryCheck, Report
from gdu_compile.training_set import with_changes
from gdu_compile.verification import Verifier, torch_agrees

if TYPE_CHECKING:
    from gdu_compile.training import Training

AnyVerifier = Verifier | MemoryVerifier


def verifier_for(
    extended: ir.Model, base: Base, prepared: PreparedData, called: str,
    alone: AlgorithmGraph | None = None,
) -> AnyVerifier:  # fmt: skip
    """What checks a trained θ of this model.

    Args:
        extended: the extended model.
        base: the base to compare with.
        prepared: the data.
        called: what to call the base in messages.
        alone: learn: the algorithm; None takes the one inside the extended model.
    """
    facts = Extension.from_metadata(extended.metadata_props)
    if facts.memory is None:
        return Verifier(extended, base, prepared.data, called, prepared.test)
    assert prepared.classes is not None
    return MemoryVerifier(
        extended, base, prepared.data, classes=prepared.classes, order=prepared.order,
        alone=alone or specialize.algorithm_in(extended), called=called, test=prepared.test,
    )  # fmt: skip


def run_training(
    extended: ir.Model, prepared: Prepared, report: Report | None, *, lr: float | None = None
) -> Training:
    """Train; what was measured goes into the report: None for a control, at rate ``lr``."""
    from gdu_compile import training

    options = prepared.options
    with training_progress(prepared.steps, quiet=report is None) as progress:
        result = training.train(
            extended, prepared.data, loss=prepared.loss,
            optimizer=prepared.optimizer if lr != 0 else prepared.optimizer.at_rest(),
            lr=options.lr if lr is None else lr, steps=prepared.steps,
            batch_size=prepared.batch_size, device=options.device, seed=options.seed,
            measure=report is not None, progress=progress,
        )  # fmt: skip
    if report is not None:
        report.steps, report.armed_at_step = result.steps, result.armed_at_step
        report.gradient_after_arming = result.gradient_after_arming
        report.seconds["train"] = result.seconds
        report.warnings += result.warnings
    return result


def confirm(
    report: Report, verifier: AnyVerifier, theta: Mapping[str, Array], *, retrain: Prepared | None
) -> None:
    """Run the verdict and its negative controls; fill the report.

    Args:
        report: to be filled.
        verifier: of the extended model and its base.
        theta: the trained θ.
        retrain: to run the controls that train; None when nothing was trained here.
    """
    begin = time.perf_counter()
    verdict = verifier.check(theta)
    report.weights, report.memory = verdict.weights, verdict.memory
    report.forward, report.forward_unoptimized = verdict.forward, verdict.forward_unoptimized
    report.algorithm = verdict.algorithm
    report.negative_controls = [verifier.untrained()]
    if retrain is not None:
        report.negative_controls.append(
            verifier.control("learning rate 0", retrained(verifier, retrain, lr=0.0))
        )
        if isinstance(verifier, MemoryVerifier):
            assert report.memory is not None
            report.memory.permuted_order = follows_the_order(verifier, retrain)
            changed_data(report, verifier, retrain)
        if (memory := report.memory) and memory.bit_equal and not memory.labels_equal:
            report.warnings.append(f"the samples are there, with other labels: {report.loss} does "
                                   "not pull a sample's own class up the most")  # fmt: skip
    specialize.fill(verifier.trained, theta)
    if verifier.data.kind == "file":
        report.accuracy = verifier.accuracy(verifier.oracle, verdict.outputs)
    if not all(np.isfinite(array).all() for array in theta.values()):
        report.warnings.append("θ holds NaN or infinity: training has diverged")
    report.warnings += verifier.gaps(verdict.outputs)
    compare_with_torch(report, verifier, verdict.outputs)
    compare_with_original(report, verifier)
    report.reproduced = (
        verdict.reproduced
        and report.gradient_after_arming in (None, 0.0)
        and not any(control.reproduced for control in report.negative_controls)
        and controls_hold(report.memory)
    )
    report.seconds["verify"] = time.perf_counter() - begin


def retrained(
    verifier: AnyVerifier, prepared: Prepared, lr: float | None = None
) -> Mapping[str, Array]:
    """θ of another training run, from an empty extension."""
    fresh = specialize.filled(verifier.extended, specialize.untrained_theta(verifier.facts))
    return run_training(fresh, prepared, None, lr=lr).theta


def one_pass(prepared: Prepared) -> Prepared:
    """The same training, with the steps that fill the memory and no more."""
    steps = steps_of_a_pass(len(prepared.data), prepared.batch_size)
    return dataclasses.replace(prepared, steps=steps)


def follows_the_order(verifier: MemoryVerifier, prepared: Prepared) -> bool:
    """Whether another order of the samples gives the memory in that order."""
    other = dataclasses.replace(prepared.options, seed=prepared.options.seed + 1)
    theta = retrained(verifier, dataclasses.replace(one_pass(prepared), options=other))
    order = first_pass(len(prepared.data), other.seed)
    return not any(flags.any() for flags in verifier.differences(*verifier.read(theta), order))


def changed_data(report: Report, verifier: MemoryVerifier, prepared: Prepared) -> None:
    """Other data, by one label and one value: the memory must follow, in these slots only."""
    assert report.memory is not None and prepared.order is not None
    label_of, value_of = int(prepared.order[0]), int(prepared.order[-1])
    changed = with_changes(prepared.data, label_of, value_of)
    theta = retrained(verifier, dataclasses.replace(one_pass(prepared), data=changed))
    wrong, mislabelled = verifier.differences(*verifier.read(theta), prepared.order)
    places = np.flatnonzero(mislabelled).tolist(), np.flatnonzero(wrong).tolist()
    report.memory.changed_slots_only = places == ([0], [len(prepared.data) - 1])
    name, differ = "one label and one value changed", bool(mislabelled.any() or wrong.any())
    report.negative_controls.append(
        Control(name, False) if differ else verifier.control(name, theta)
    )


def controls_hold(memory: MemoryCheck | None) -> bool:
    """Whether nothing that was tried with other data went otherwise than it must."""
    return memory is None or False not in (memory.permuted_order, memory.changed_slots_only)


def compare_with_torch(report: Report, verifier: AnyVerifier, outputs: Mapping[str, Array]) -> None:
    """Run the trained extension in torch too; to disagree is a warning, the verdict is on bits."""
    logits, device = verifier.facts.logits.output, report.device or "cpu"
    try:
        report.torch = torch_agrees(
            verifier.trained, logits, verifier.data, outputs[logits], device, verifier.chunk
        )
    except UnsupportedError as error:
        report.warnings.append(f"not compared with torch: {error.message}")
        return
    if not report.torch.agrees and isinstance(verifier, MemoryVerifier) and verifier.iterates:
        report.torch = dataclasses.replace(
            torch_agrees(
                make_constants(specialize.without_extension(verifier.trained, verifier.oracle)),
                logits,
                verifier.data, outputs[logits], device, verifier.chunk,
            ),
            own_run_diff=report.torch.max_relative_diff,
        )  # fmt: skip
    if not report.torch.agrees:
        report.warnings.append(
            f"torch's logits differ from onnxruntime's by {report.torch.max_relative_diff:.1e} "
            f"of the largest; {report.torch.tolerance:.1e} is expected where both are right, more "
            f"where the network magnifies it ({report.torch.rounds})"
        )


def compare_with_original(report: Report, verifier: AnyVerifier) -> None:
    """Run an algorithm written in PyTorch there too; to differ in the end is a warning: each of
    its steps was compared already."""
    if not isinstance(verifier, MemoryVerifier):
        return
    report.original = found = verifier.against_original()
    if found is None:
        return
    if not found.agrees:
        report.warnings.append(
            f"after {found.steps} steps PyTorch's own weights differ from the network's by "
            f"{found.max_relative_diff:.1e} (tolerance {found.tolerance:.1e})"
        )
    if found.accuracy is not None and report.accuracy is not None:
        own = report.accuracy["oracle"]
        if found.accuracy != own:
            report.warnings.append(f"PyTorch's own run of the algorithm has accuracy "
                                   f"{found.accuracy:.2%}, the network's {own:.2%}")  # fmt: skip
