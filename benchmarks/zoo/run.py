"""One case: compiled with an oracle that differs everywhere, trained one step, extracted."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
from onnx.numpy_helper import to_array

import gdu_compile
from benchmarks.zoo.case import Case, Inputs
from benchmarks.zoo.perturbation import FLOATS, perturb
from gdu_compile import runtime
from gdu_compile.bits import same_bits
from gdu_compile.errors import GduError, InputError
from gdu_compile.report import Report

REPRODUCED, REFUSED, WRONG, CRASH = "reproduced", "refused", "wrong", "crash"
NO_WEIGHTS, NOT_RUN = "no weights", "not run"
OUTCOMES = (REPRODUCED, REFUSED, WRONG, CRASH, NO_WEIGHTS, NOT_RUN)
Outputs = dict[str, list[Any]]
"""Optimisation level → outputs in order."""


@dataclass
class Result:
    """What became of a case.

    Attributes:
        name, source: of the case.
        outcome: one of ``OUTCOMES``: *refused* is exit code 2, *wrong* a bit that differs,
            *crash* exit code 3; *not run* says that onnxruntime does not run the network.
        reason: why it is not reproduced, or not wholly checked, in one line.
        opset: of the file.
        ir_version: of the file.
        parameters: numbers that the oracle changes.
        seconds: of all steps.
    """

    name: str
    source: str
    outcome: str = ""
    reason: str = ""
    opset: int | None = None
    ir_version: int | None = None
    parameters: int | None = None
    seconds: float = 0.0


class Finished(Exception):  # noqa: N818 - no error
    """The case ends here: (outcome, reason)."""


def run(case: Case) -> Result:
    """Make a case, and take it from the base to the extracted file."""
    result, begin = Result(case.name, case.source), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="gdu-zoo-") as folder:
        try:
            follow(case, Path(folder), result)
        except Finished as finished:
            result.outcome, result.reason = finished.args
    result.seconds = time.perf_counter() - begin
    return result


def follow(case: Case, folder: Path, result: Result) -> None:
    """All steps of a case.

    Raises:
        Finished: always, at the first step that says what became of it.
    """
    given = case.make(folder)
    model = onnx.load(given.path)
    versions = {each.domain: each.version for each in model.opset_import}
    result.opset, result.ir_version = versions.get("", 0), model.ir_version
    inputs = drawn(model) if given.inputs is None else given.inputs
    before = reference(given.path, inputs)
    if given.oracle is None:
        result.parameters = perturb(model).elements
        if not result.parameters:
            raise Finished(NO_WEIGHTS, "")
        oracle = folder / "oracle.onnx"
        onnx.save(model, oracle)
    else:
        oracle, model = given.oracle, onnx.load(given.oracle)
        result.parameters = numbers_in(model)
    expected = outputs_of(oracle, inputs)
    if same(before, expected):
        raise Finished(WRONG, "the zoo's own control: other weights, same outputs")
    report, plain = compiled(given.path, oracle, folder)
    reason = complaint(report, result.parameters)
    if not reason and given.oracle is None:  # two exports may merge other initializers
        reason = different(plain, model)
    if reason:
        raise Finished(WRONG, reason)
    got = outputs_of(plain, inputs)
    levels = [level for level in expected if not same(got[level], expected[level])]
    if levels == ["all"] and fused_alike(oracle, plain, inputs):
        levels = []
    if levels:
        raise Finished(WRONG, f"the extracted file answers otherwise, optimisations: {levels}")
    raise Finished(REPRODUCED, unmeasured(report))


def numbers_in(model: onnx.ModelProto) -> int:
    """How many floats the initializers hold."""
    return sum(
        math.prod(tensor.dims) for tensor in model.graph.initializer
        if tensor.data_type in FLOATS
    )  # fmt: skip


def reference(path: Path, inputs: Inputs) -> Outputs:
    """What the network answers.

    Raises:
        Finished: onnxruntime does not run it.
    """
    try:
        return outputs_of(path, inputs)
    except InputError as error:
        raise Finished(NOT_RUN, one_line(error, path.parent)) from error


def drawn(model: onnx.ModelProto) -> Inputs:
    """Seeded normal numbers for the inputs of a network with fixed shapes."""
    rng = np.random.default_rng(0)
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: rng.standard_normal(
            [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        ).astype(np.float32)
        for value in model.graph.input
        if value.name not in weights
    }


def outputs_of(path: Path, inputs: Inputs) -> Outputs:
    """The outputs of a file in onnxruntime, in one call at each level.

    Raises:
        InputError: onnxruntime does not run it.
    """
    found: Outputs = {}
    for level in runtime.LEVELS:
        runner = runtime.session(path, level)
        names = [output.name for output in runner.get_outputs()]
        try:
            found[level] = runtime.call(runner, names, inputs)
        except Exception as error:  # onnxruntime's have no common public base class
            raise InputError(f"{path}: {str(error).splitlines()[0]}") from error
    return found


def compiled(base: Path, oracle: Path, folder: Path) -> tuple[Report, Path]:
    """The report of a run as a user makes it, and the extracted file.

    Raises:
        Finished: refused, or crashed.
    """
    extended, plain = folder / "net.gdu.onnx", folder / "plain.onnx"
    try:
        report = gdu_compile.compile(base, oracle, output=extended, steps=1).report
        if report.armed_at_step is not None:
            gdu_compile.extract(folder / "net.gdu.trained.onnx", output=plain)
    except GduError as error:
        crashed = error.exit_code != InputError.exit_code
        raise Finished(CRASH if crashed else REFUSED, one_line(error, folder)) from error
    except Exception as error:  # exit code 3
        raise Finished(CRASH, f"{type(error).__name__}: {first_line(error)}") from error
    return report, plain


def complaint(report: Report, elements: int) -> str:
    """Which check of a report failed, in words; nothing when none did.

    Args:
        report: of the run.
        elements: how many numbers differ from the base.
    """
    bad = [row.name for row in report.weights if not row.bit_equal]
    checks = (report.forward, report.forward_unoptimized)
    levels = [check.optimization for check in checks if check and not check.bit_equal]
    recorded = sum(row.elements for row in report.weights)
    facts = [
        (f"weights that differ: {', '.join(bad[:3])}", bool(bad)),
        (f"outputs that differ, optimisations: {', '.join(levels)}", bool(levels)),
        ("a negative control reproduces", any(c.reproduced for c in report.negative_controls)),
        (f"gradient {report.gradient_after_arming}", report.gradient_after_arming not in (None, 0)),
        (f"armed at step {report.armed_at_step}", report.armed_at_step != 1),
        (f"{recorded} of {elements} numbers recorded", recorded < elements),
        ("reproduced is not true", not report.reproduced),
    ]
    found = "; ".join(text for text, holds in facts if holds)
    return found and "; ".join([found, *report.warnings])


def fused_alike(oracle: Path, plain: Path, inputs: Inputs) -> bool:
    """Whether two files answer alike with all optimisations where onnxruntime's fusions may not
    depend on more than the network: without inferred shapes, and at the same opset."""
    one, other = onnx.load(oracle), onnx.load(plain)
    opset, wanted = (
        next(each.version for each in model.opset_import if not each.domain)
        for model in (one, other)
    )
    if opset != wanted:
        one = onnx.version_converter.convert_version(one, wanted)
    answers = []
    for model, path in ((one, oracle), (other, plain)):
        del model.graph.value_info[:]
        bare = path.with_name(f"bare_{path.name}")
        onnx.save(model, bare)
        answers.append(outputs_of(bare, inputs))
    return same(*answers)


def unmeasured(report: Report) -> str:
    """Why the armed network's gradient is not known: torch has no such operator."""
    return "; ".join(report.warnings) if report.gradient_after_arming is None else ""


def different(plain: Path, oracle: onnx.ModelProto) -> str:
    """Which initializer of the extracted file has other bits than the oracle's of its name."""
    given = {tensor.name: tensor for tensor in oracle.graph.initializer}
    names = [
        tensor.name for tensor in onnx.load(plain).graph.initializer if tensor.name in given
        and not same(to_array(tensor), to_array(given[tensor.name]))
    ]  # fmt: skip
    return f"weights of the extracted file that differ: {', '.join(names[:3])}" if names else ""


def same(one: Any, other: Any) -> bool:
    """The same type and the same bits."""
    if isinstance(one, dict):
        return isinstance(other, dict) and same(list(one), list(other)) and same(
            list(one.values()), list(other.values())
        )  # fmt: skip
    if isinstance(one, list):
        if not isinstance(other, list) or len(one) != len(other):
            return False
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, np.ndarray) and one.dtype.kind not in "OU":
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and same_bits(one, other)
    return bool(np.array_equal(one, other))


def one_line(error: GduError, folder: Path) -> str:
    """The message and the first problem, without the folder of this run."""
    text = "; ".join([error.message, *error.problems[:1]])
    return text.replace(f"{folder}/", "")


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).splitlines() or [""])[0]
