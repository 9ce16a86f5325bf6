"""Confirmation: has training reproduced the oracle, bit for bit?

The weights are decoded by onnxruntime from the trained file; the outputs of the
trained file are compared with those of the base that holds w*, at the same
optimisation level, with all optimisations and with none.  The same check runs
on controls that must fail it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gdu_compile import runtime, specialize
from gdu_compile.contracts import Bucket, Slot
from gdu_compile.data import Dataset, fixed_batch
from gdu_compile.digits import Array, Float64
from gdu_compile.errors import UnsupportedError
from gdu_compile.metadata import Extension
from gdu_compile.number_formats import ulp_distance
from gdu_compile.report import Control, ForwardCheck, TorchCheck, WeightRow, weight_row

Outputs = dict[str, dict[str, Array]]
"""Optimisation level → output name → array."""

TORCH_TOLERANCE = 1e-5
"""On max |torch − onnxruntime| / max |onnxruntime| of the logits: the two sum in different
orders; 2⁻²⁴ a rounding times a few hundred of them."""


@dataclass(frozen=True)
class Verdict:
    """What the check of one trained model has measured."""

    weights: list[WeightRow]
    forward: ForwardCheck
    forward_unoptimized: ForwardCheck
    outputs: dict[str, Array]

    @property
    def reproduced(self) -> bool:
        """Every bit of every weight, and of every output at both levels."""
        return (
            all(row.bit_equal for row in self.weights)
            and self.forward.bit_equal
            and self.forward_unoptimized.bit_equal
        )


class Verifier:
    """Checks trained models against one base; the base is run when the verifier is made.

    Args:
        extended: the extended model; its signals are w*.
        base: path of the base that holds w*.
        initial: path of the base with its initial weights.
        data: inputs for the comparison of outputs.
        called: what to call the base in messages.

    Raises:
        InputError: onnxruntime cannot run the base on the data.
        UnsupportedError: the logits do not have one row a sample.
    """

    def __init__(
        self, extended: ir.Model, base: Path, initial: Path, data: Dataset, called: str
    ) -> None:
        self.extended = extended
        self.facts = Extension.from_metadata(extended.metadata_props)
        self.initial = initial
        self.data = data
        self.called = f"{called} on {data.path or 'synthetic inputs'}"
        self.batch = fixed_batch(extended.graph.inputs)
        self.trained = extended.clone()
        self.decoder = specialize.decoder(extended)
        self.controls: list[tuple[Mapping[str, Array], bool]] = []
        self.oracle = specialize.oracle_in(extended)
        self.outputs = [str(value.name) for value in extended.graph.outputs]
        self.samples = samples_run(data, self.batch)
        self.expected = self.run(base)
        self.check_rows()

    def check_rows(self) -> None:
        """Raise UnsupportedError unless the logits have one row a sample: one label for each."""
        name = self.facts.logits.output
        rows = len(np.atleast_1d(self.expected["all"][name]))
        if rows != self.samples:
            raise UnsupportedError(
                f"output {name!r} has {rows} rows for {self.samples} samples ({self.called}), so "
                "there is no label for each; samples must lie along axis 0 of every input and of "
                "the logits: export the model so, or name another output with --logits"
            )

    def run(self, path: Path) -> Outputs:
        """All outputs of a model on the data, at every optimisation level."""
        return {
            level: runtime.run(
                path, self.data.inputs, self.outputs, level=level, batch=self.batch,
                called=self.called,
            )
            for level in runtime.LEVELS
        }  # fmt: skip

    def check(self, theta: Mapping[str, Array]) -> Verdict:
        """Measure one trained θ."""
        specialize.fill(self.trained, theta)
        specialize.fill(self.decoder, theta)
        with runtime.on_disk(self.decoder) as path:
            decoded = runtime.run(path, {}, level="none")
        with runtime.on_disk(self.trained) as path:
            got = self.run(path)
        return Verdict(
            [self.weight_row(bucket, slot, theta, decoded[slot.weight])
             for bucket, slot in self.facts.slots()],
            self.forward(got, "all"),
            self.forward(got, "none"),
            got["all"],
        )  # fmt: skip

    def weight_row(
        self, bucket: Bucket, slot: Slot, theta: Mapping[str, Array], decoded: Array
    ) -> WeightRow:
        """Bits, ULPs and digit error of one weight."""
        oracle = self.oracle[slot.weight]
        encoding = bucket.encoding(self.facts.code)
        digits = encoding.cut(specialize.signal_units(self.extended, slot.signal))
        trained = theta[bucket.theta]
        rows = slice(1 + slot.offset, 1 + slot.offset + slot.elements)
        ratio = encoding.code.ratio(np.concatenate([trained[:1], trained[rows]]), self.facts.gain)
        errors = encoding.code.errors(ratio, digits)  # elements x digits
        return weight_row(
            slot.weight, slot.elements, slot.dtype, same_bits(decoded, oracle),
            ulp_distance(decoded, oracle), float(np.max(errors, initial=0.0)),
            worst_index(errors, slot.shape),
        )  # fmt: skip

    def forward(self, outputs: Outputs, level: str) -> ForwardCheck:
        """All outputs against the expected ones."""
        got, expected = outputs[level], self.expected[level]
        return ForwardCheck(
            bit_equal=all(same_bits(got[name], expected[name]) for name in self.outputs),
            max_abs_diff=max(max_abs_diff(got[name], expected[name]) for name in self.outputs),
            samples=self.samples,
            optimization=level,
        )

    def untrained(self) -> Control:
        """The extension as it was before training must not pass."""
        return self.control("untrained", specialize.untrained_theta(self.facts))

    def control(self, name: str, theta: Mapping[str, Array]) -> Control:
        """A θ that must not pass; bits that were checked under another name are not run again."""
        for known, reproduced in self.controls:
            if all(same_bits(known[bucket], theta[bucket]) for bucket in known):
                return Control(name, reproduced)
        reproduced = self.check(theta).reproduced
        self.controls.append((theta, reproduced))
        return Control(name, reproduced)

    def accuracy(self, verdict: Verdict) -> dict[str, float] | None:
        """Share of right answers on the data: the initial base, the base with w*, the trained.

        None where answers are not right or wrong: values, and targets that are no classes.
        """
        name = self.facts.logits.output
        initial = runtime.run(self.initial, self.data.inputs, [name], batch=self.batch)[name]
        outputs = {"base": initial, "oracle": self.expected["all"][name],
                   "trained": verdict.outputs[name]}  # fmt: skip
        shares = {who: self.share_right(output) for who, output in outputs.items()}
        return (
            None if None in shares.values() else {w: s for w, s in shares.items() if s is not None}
        )

    def share_right(self, output: Array) -> float | None:
        """Share of right answers: ArgMax along the class axis, or a threshold."""
        site, labels = self.facts.logits, self.data.labels[: len(output)]
        if labels.dtype == np.int64:
            right = np.argmax(output.astype(np.float32), axis=site.axis) == labels
            right = right[labels != self.data.ignore_index]
        elif site.kind in ("logits", "sigmoid"):
            right = (output.astype(np.float32) > (0.5 if site.kind == "sigmoid" else 0)) == (
                labels.astype(np.float32) > 0.5
            )
        else:
            return None
        return float(np.mean(right)) if right.size else None


def samples_run(data: Dataset, batch: int | None) -> int:
    """How many samples runtime.run takes: a fixed batch takes whole batches only."""
    samples = min((len(array) for array in data.inputs.values()), default=len(data))
    return samples - (samples % batch if batch else 0)


def same_bits(a: Array, b: Array) -> bool:
    """Same dtype, shape and bytes: −0 is not 0, and NaN equals a NaN with the same bits."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.hasobject:  # strings
        return bool(np.array_equal(a, b))
    return bool(np.array_equal(raw(a), raw(b)))


def raw(array: Array) -> npt.NDArray[np.uint8]:
    """The bytes of an array."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def max_abs_diff(a: Array, b: Array) -> float:
    """max |a − b| in float64; equal infinities and equal NaNs differ by 0; shapes must agree."""
    if a.shape != b.shape or not np.issubdtype(a.dtype, np.number):
        return 0.0 if same_bits(a, b) else math.inf
    if a.size == 0:
        return 0.0
    left, right = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.abs(left - right)
    alike = (left == right) | (np.isnan(left) & np.isnan(right))
    return float(np.max(np.where(alike, 0.0, np.nan_to_num(difference, nan=math.inf))))


def worst_index(errors: Float64, shape: tuple[int, ...]) -> list[int] | None:
    """Index in the weight of the element with the largest of the errors [elements, digits]."""
    if errors.size == 0:
        return None
    element = int(np.argmax(errors)) // errors.shape[1]
    return [int(i) for i in np.unravel_index(element, shape)] if shape else []


def torch_agrees(
    trained: ir.Model, logits: str, data: Dataset, expected: Array, device: str
) -> TorchCheck:
    """Run the trained extension in torch and compare its output with onnxruntime's."""
    import torch

    from gdu_compile.torch_backend import lower_to_torch

    module = lower_to_torch(trained).to(device)
    step = fixed_batch(trained.graph.inputs) or runtime.CHUNK
    parts = []
    with torch.no_grad():
        for start in range(0, len(expected), step):
            inputs = {n: torch.from_numpy(a[start : start + step].copy()).to(device)
                      for n, a in data.inputs.items()}  # fmt: skip
            parts.append(module.run(inputs)[logits].cpu().numpy())
    got = np.concatenate(parts)
    finite = np.isfinite(expected)
    scale = float(np.max(np.abs(expected[finite]), initial=0.0)) or 1.0
    difference = max_abs_diff(got, expected) / scale
    return TorchCheck(difference <= TORCH_TOLERANCE, difference, TORCH_TOLERANCE)
