"""The result of compile, train and verify: one dataclass, one JSON object (DESIGN, JSON)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from gdu_compile.digits import headroom_bits

SCHEMA = 1
WRONG_SLOTS = 8
"""How many of the slots that differ are named."""


@dataclass
class WeightRow:
    """One recorded weight.

    Attributes:
        name: as in the base.
        elements: number of elements.
        dtype: as numpy spells it.
        bit_equal: decoded weight and oracle have the same bits.
        max_ulp: largest distance in units in the last place.
        digit_error: max |r − s|, limit 1; None where the weight is computed (learn).
        headroom_bits: −log2 of it; None when it is 0 or infinite.
        worst: index of the element with the largest digit error, None when there is none.
    """

    name: str
    elements: int
    dtype: str
    bit_equal: bool
    max_ulp: int
    digit_error: float | None
    headroom_bits: float | None
    worst: list[int] | None


@dataclass
class ForwardCheck:
    """Outputs of the trained extension against the base with w*, both in onnxruntime."""

    bit_equal: bool
    max_abs_diff: float
    samples: int
    optimization: str


@dataclass
class MemoryCheck:
    """The training set as it is read back from the trained file.

    Attributes:
        slots: n.
        filled: slots whose calibrator is not 0.
        bit_equal: every sample has the bits of the data set's.
        labels_equal: every label is the data set's.
        digit_error: max |r − s|, limit 1; None when it is not known what s is.
        headroom_bits: −log2 of it; None when it is 0 or infinite.
        worst: [slot, input's number, flat index of the element] with the largest digit error.
        wrong: the first slots that differ, up to WRONG_SLOTS.
        permuted_order: trained in another order, the memory is in that order; None: not tried.
        changed_slots_only: one label and one input value changed, only their slots differ; None:
            not tried.
    """

    slots: int
    filled: int
    bit_equal: bool
    labels_equal: bool
    digit_error: float | None
    headroom_bits: float | None
    worst: list[int] | None
    wrong: list[int]
    permuted_order: bool | None = None
    changed_slots_only: bool | None = None


@dataclass
class AlgorithmCheck:
    """The weights that the network computes against the algorithm run alone, in onnxruntime
    without optimisations, on the data in the order of presentation."""

    name: str
    bit_equal_to_oracle_run: bool


@dataclass
class OriginalCheck:
    """An algorithm written in PyTorch: the network's own computation against PyTorch's.

    Attributes:
        agrees: after all steps every weight that is not vague is within its tolerance.
        steps: how many the algorithm takes.
        step_difference: the largest difference of one exported step, of the change it makes.
        max_relative_diff: of the weight that is nearest to its tolerance, after all steps.
        tolerance: of that weight, measured: what rounding errors alone do to PyTorch's own run.
        vague: weights on which they do so much that nothing can be compared: over a tenth.
        accuracy: share of right answers of the base with PyTorch's weights, on the data on which
            the other accuracies are measured; None where there is none.
    """

    agrees: bool
    steps: int
    step_difference: float
    max_relative_diff: float
    tolerance: float
    vague: list[str]
    accuracy: float | None = None


@dataclass
class TorchCheck:
    """Logits of the trained extension in torch against onnxruntime.

    Attributes:
        agrees: within the tolerance.
        max_relative_diff: of the largest logit.
        tolerance: for it, by what the network rounds to (``rounding.py``).
        rounds: that in words.
        own_run_diff: where an algorithm's rounding errors grow: with the weights that torch
            computes itself; the others are then with the weights that onnxruntime computed.
    """

    agrees: bool
    max_relative_diff: float
    tolerance: float
    rounds: str
    own_run_diff: float | None = None


@dataclass
class Control:
    """A run that must not reproduce."""

    name: str
    reproduced: bool


@dataclass
class PassRow:
    """One pass: time and what it did."""

    name: str
    seconds: float
    modified: bool
    counts: dict[str, int]


@dataclass
class Report:
    """Everything that was done and measured; ``to_json`` gives the object of ``--json``.

    ``reproduced`` is None when nothing was confirmed (--no-confirm, --dry-run).
    """

    command: str
    model: str
    method: str = "record"
    reproduced: bool | None = None
    digits: str | None = None
    digits_why: str | None = None
    gain: float | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    steps: int | None = None
    armed_at_step: int | None = None
    loss: str | None = None
    seed: int | None = None
    device: str | None = None
    versions: dict[str, str] = field(default_factory=lambda: versions())
    data: dict[str, Any] | None = None
    logits: dict[str, Any] | None = None
    weights: list[WeightRow] = field(default_factory=list)
    forward: ForwardCheck | None = None
    forward_unoptimized: ForwardCheck | None = None
    torch: TorchCheck | None = None
    gradient_after_arming: float | None = None
    negative_controls: list[Control] = field(default_factory=list)
    memory: MemoryCheck | None = None
    algorithm: AlgorithmCheck | None = None
    original: OriginalCheck | None = None
    accuracy: dict[str, Any] | None = None
    steer: None = None
    skipped: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    why: list[str] | None = None
    files: dict[str, str | None] = field(
        default_factory=lambda: {"extended": None, "trained": None, "torch": None}
    )
    bytes: dict[str, int | None] = field(default_factory=lambda: {"base": None, "extended": None})
    seconds: dict[str, float | None] = field(
        default_factory=lambda: {"compile": None, "train": None, "verify": None}
    )
    passes: list[PassRow] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 reproduced or not asked; 1 not reproduced."""
        return 1 if self.reproduced is False else 0

    def to_json(self) -> dict[str, Any]:
        """The JSON object: every key present, NaN and infinity null."""
        fields = {"schema": SCHEMA, **dataclasses.asdict(self)}
        clean: dict[str, Any] = finite(fields)
        return clean


def finite(value: Any) -> Any:
    """The value with NaN and ±infinity replaced by None, recursively.

    Example:
        >>> finite({"a": [1.0, float("nan")]})
        {'a': [1.0, None]}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def versions() -> dict[str, str]:
    """Versions of what took part; torch is asked without importing it."""
    return {
        "gdu_compile": version("gdu-compile"),
        "torch": version("torch"),
        "onnxruntime": version("onnxruntime"),
    }


def weight_row(
    name: str, elements: int, dtype: str, bit_equal: bool, max_ulp: int,
    digit_error: float | None, worst: list[int] | None,
) -> WeightRow:  # fmt: skip
    """A row with its head-room filled in."""
    room = None if digit_error is None else headroom_bits(digit_error)
    return WeightRow(name, elements, dtype, bit_equal, max_ulp, digit_error, room, worst)
