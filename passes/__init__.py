"""The passes, one per file; each is an onnx_ir InPlacePass and works in any Sequential.

>>> import numpy as np, onnx_ir as ir
>>> from gdu_compile import model_io, passes
>>> from gdu_compile.oracle_weights import OracleWeights
>>> model = model_io.load("models/digits_linear.onnx")
>>> pipeline = ir.passes.Sequential(
...     *passes.record_passes(OracleWeights.load("models/digits_linear.oracle.npz"))
... )
>>> pipeline(model).modified
True
>>> [name for name in model.graph.initializers if name.startswith("gdu_theta")]
['gdu_theta_0']
"""

from __future__ import annotations

from gdu_compile.passes._base import GduPass
from gdu_compile.passes.annotate import AnnotatePass
from gdu_compile.passes.bind_algorithm import BindAlgorithmPass
from gdu_compile.passes.bind_oracle import BindOraclePass
from gdu_compile.passes.check import CheckExtensionPass
from gdu_compile.passes.fill_theta import FillThetaPass
from gdu_compile.passes.if_conversion import IfConversionPass
from gdu_compile.passes.inline_algorithm import InlineAlgorithmPass
from gdu_compile.passes.insert_memory import MEMORY_BUCKET_BYTES, InsertMemoryPass
from gdu_compile.passes.insert_recorder import (
    DEFAULT_BATCH_LIMIT,
    DEFAULT_BUCKET_BYTES,
    InsertRecorderPass,
)
from gdu_compile.passes.insert_switches import InsertSwitchesPass
from gdu_compile.passes.lift_attributes import LiftAttributesPass
from gdu_compile.passes.locate_logits import LocateLogitsPass
from gdu_compile.passes.normalize import NormalizePass
from gdu_compile.passes.remove_extension import RemoveExtensionPass
from gdu_compile.passes.restore_constants import RestoreConstantsPass
from gdu_compile.passes.restore_neutral import RestoreNeutralPass
from gdu_compile.passes.sink import SinkPass

from gdu_compile.algorithm import DEFAULT_MAX_ITERATIONS, AlgorithmLike
from gdu_compile.contracts import Field
from gdu_compile.data import Targets
from gdu_compile.losses import LossSpec
from gdu_compile.oracle_weights import OracleWeights

from gdu_compile.digits import DEFAULT_CODE, DEFAULT_GAIN, DigitCode  # isort: skip

__all__ = [
    "ALL_PASSES", "LEARN_PASSES", "RECORD_PASSES", "AnnotatePass", "BindAlgorithmPass",
    "BindOraclePass", "CheckExtensionPass", "FillThetaPass", "GduPass", "IfConversionPass",
    "InlineAlgorithmPass", "InsertMemoryPass", "InsertRecorderPass", "InsertSwitchesPass",
    "LiftAttributesPass", "LocateLogitsPass", "NormalizePass", "RemoveExtensionPass",
    "RestoreConstantsPass", "RestoreNeutralPass", "SinkPass", "learn_passes", "record_passes",
]  # fmt: skip

RECORD_PASSES: tuple[type[GduPass], ...] = (
    NormalizePass, RestoreNeutralPass, LocateLogitsPass, BindOraclePass, InsertRecorderPass,
    InsertSwitchesPass, AnnotatePass, RestoreConstantsPass, CheckExtensionPass,
)  # fmt: skip
"""The stages of record, in order; ``record_passes`` makes them."""

LEARN_PASSES: tuple[type[GduPass], ...] = (
    NormalizePass, LocateLogitsPass, BindAlgorithmPass, InsertMemoryPass, InlineAlgorithmPass,
    InsertSwitchesPass, AnnotatePass, RestoreConstantsPass, CheckExtensionPass,
)  # fmt: skip
"""The stages of learn, in order; ``learn_passes`` makes them."""

ALL_PASSES: tuple[type[GduPass], ...] = (
    *RECORD_PASSES, LiftAttributesPass, BindAlgorithmPass, InsertMemoryPass, InlineAlgorithmPass,
    SinkPass, IfConversionPass, FillThetaPass, RemoveExtensionPass,
)  # fmt: skip


def record_passes(
    oracle: OracleWeights,
    *,
    code: DigitCode = DEFAULT_CODE,
    theta_dtype: str = "float32",
    logits: str | None = None,
    allow_extra: bool = False,
    strict: bool = False,
    cover_all: bool = False,
    gain: float = DEFAULT_GAIN,
    batch_limit: int = DEFAULT_BATCH_LIMIT,
    bucket_bytes: int = DEFAULT_BUCKET_BYTES,
    class_axis: int | None = None,
    loss: LossSpec | None = None,
    targets: Targets | None = None,
    untie: bool = False,
) -> list[GduPass]:
    """The stages of record, in order (DESIGN, Stages of record).

    Args:
        oracle: the oracle weights w*.
        code: the digit code.
        theta_dtype: dtype of θ, "float32" or "bfloat16".
        logits: name of the output to record through; None to search.
        allow_extra: ignore oracle names that the model does not have.
        strict: refuse when a float weight is not covered.
        cover_all: record such weights at their present value.
        gain: γ.
        batch_limit: N of Lemma 1.
        bucket_bytes: size of θ at which a new bucket begins.
        class_axis: the class axis of the output; None for the usual one.
        loss: the loss, when it is known; it may decide between logits and values.
        targets: the training data's ``y``, when it is known.
        untie: oracle tensors may be for one use of a shared value, ``NAME@NODE.INPUT``.
    """
    return [
        NormalizePass(),
        RestoreNeutralPass(oracle),
        LocateLogitsPass(logits, class_axis=class_axis, loss=loss, targets=targets),
        BindOraclePass(
            oracle,
            code=code,
            allow_extra=allow_extra,
            strict=strict,
            cover_all=cover_all,
            untie=untie,
        ),
        InsertRecorderPass(
            gain=gain,
            batch_limit=batch_limit,
            bucket_bytes=bucket_bytes,
            theta_dtype=theta_dtype,
            loss=loss,
            targets=targets,
        ),
        InsertSwitchesPass(),
        AnnotatePass(),
        RestoreConstantsPass(),
        CheckExtensionPass(),
    ]


def learn_passes(
    oracle: AlgorithmLike,
    *,
    samples: int,
    fields: tuple[Field, ...],
    code: DigitCode = DEFAULT_CODE,
    theta_dtype: str = "float32",
    logits: str | None = None,
    allow_extra: bool = False,
    strict: bool = False,
    gain: float = DEFAULT_GAIN,
    bucket_bytes: int = MEMORY_BUCKET_BYTES,
    class_axis: int | None = None,
    loss: LossSpec | None = None,
    targets: Targets | None = None,
    max_iterations: int = DEFAULT_MAX_ITERATIONS,
) -> list[GduPass]:
    """The stages of learn, in order (THEORY §4).

    Args:
        oracle: the name of an oracle, an ONNX file, or an onnx_ir model.
        samples: n, the number of training samples: the slots of the memory.
        fields: the model's inputs, sample by sample (``training_set.form_of``).
        code: the digit code.
        theta_dtype: dtype of θ, "float32" or "bfloat16".
        logits: name of the output to record through; None to search.
        allow_extra: ignore outputs of the algorithm that the model does not have.
        strict: refuse when a float weight is not computed.
        gain: γ.
        bucket_bytes: size of θ at which a new bucket begins.
        class_axis: the class axis of the output; None for the usual one.
        loss: the loss, when it is known; it may decide between logits and values.
        targets: the training data's ``y``, when it is known.
        max_iterations: bound on the iterations of each Loop of the algorithm.
    """
    return [
        NormalizePass(),
        LocateLogitsPass(logits, class_axis=class_axis, loss=loss, targets=targets),
        BindAlgorithmPass(
            oracle,
            samples=samples,
            fields=fields,
            code=code,
            allow_extra=allow_extra,
            strict=strict,
            max_iterations=max_iterations,
        ),
        InsertMemoryPass(gain=gain, bucket_bytes=bucket_bytes, theta_dtype=theta_dtype),
        InlineAlgorithmPass(),
        InsertSwitchesPass(),
        AnnotatePass(),
        RestoreConstantsPass(),
        CheckExtensionPass(),
    ]
