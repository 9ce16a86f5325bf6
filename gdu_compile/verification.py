"""Confirmation: has training reproduced the oracle, bit for bit?

The weights are decoded by onnxruntime from the trained file; the outputs of the
trained file are compared with those of the base that holds w*, at the same
optimisation level, with all optimisations and with none.  The same check runs
on controls that must fail it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from gdu_compile import runtime, specialize
from gdu_compile.bases import Base
from gdu_compile.bits import max_abs_diff, raw, same_bits
from gdu_compile.calls import part
from gdu_compile.contracts import Bucket, LogitsSite, Slot
from gdu_compile.data import Dataset, fixed_batch
from gdu_compile.digits import Array, Float64
from gdu_compile.errors import UnsupportedError
from gdu_compile.metadata import Extension
from gdu_compile.number_formats import ulp_distance
from gdu_compile.report import (
    AlgorithmCheck,
    Control,
    ForwardCheck,
    MemoryCheck,
    TorchCheck,
    WeightRow,
    weight_row,
)
from gdu_compile.rounding import path_to

Outputs = dict[str, dict[str, Array]]
"""Optimisation level → output name → array."""


@dataclass(frozen=True)
class Verdict:
    """What the check of one trained model has measured; None where the method has no such thing."""

    weights: list[WeightRow]
    forward: ForwardCheck | None
    forward_unoptimized: ForwardCheck
    outputs: dict[str, Array]
    memory: MemoryCheck | None = None
    algorithm: AlgorithmCheck | None = None

    @property
    def reproduced(self) -> bool:
        """Every bit: of the weights, of the outputs at all levels, of the memory."""
        return (
            all(row.bit_equal for row in self.weights)
            and (self.forward is None or self.forward.bit_equal)
            and self.forward_unoptimized.bit_equal
            and (self.memory is None or (self.memory.bit_equal and self.memory.labels_equal))
        )


class Comparison:
    """Runs models on one set of data, and compares their outputs with those of the base.

    Args:
        extended: the extended model.
        base: the base, to be had with any weights.
        data: inputs for the comparison of outputs.
        called: what to call the base in messages.
        test: held-out data for the accuracy; None takes ``data``.
    """

    levels: ClassVar[tuple[str, ...]] = tuple(runtime.LEVELS)
    chunk: ClassVar[int] = runtime.CHUNK

    def __init__(
        self, extended: ir.Model, base: Base, data: Dataset, called: str,
        test: Dataset | None = None,
    ) -> None:  # fmt: skip
        self.extended = extended
        self.facts = Extension.from_metadata(extended.metadata_props)
        self.base = base
        self.data = data
        self.test = test
        self.called = f"{called} on {data.path or 'synthetic inputs'}"
        self.batch = None if data.calls else fixed_batch(extended.graph.inputs)
        self.trained = extended.clone()
        self.decoder = specialize.decoder(extended)
        names = [str(value.name) for value in extended.graph.outputs]
        self.exposed = self.facts.logits.output if self.facts.logits.exposed else None
        self.outputs = [name for name in names if name != self.exposed]  # those of the base
        self.samples = samples_run(data, self.batch)
        self.controls: dict[bytes, bool] = {}
        self.known: dict[str, Array] = {}  # who → logits on ``data``, for the accuracy

    def check(self, theta: Mapping[str, Array]) -> Verdict:
        """Measure one trained θ."""
        raise NotImplementedError

    def gaps(self, outputs: Mapping[str, Array]) -> list[str]:
        """What a trained model's outputs are not compared with, and how far they are from it."""
        return []

    def check_rows(self, outputs: Mapping[str, Array]) -> None:
        """Raise UnsupportedError unless the logits have one row a sample: one label for each."""
        name = self.facts.logits.output
        if name == self.exposed:
            return
        rows = len(np.atleast_1d(outputs[name]))
        if rows != self.samples:
            raise UnsupportedError(
                f"output {name!r} has {rows} rows for {self.samples} samples ({self.called}), so "
                "there is no label for each; samples must lie along axis 0 of every input and of "
                "the logits: export the model so, or name another output with --logits"
            )

    def run(self, path: Path, *more: str) -> Outputs:
        """The base's outputs, and ``more``, of a model on the data, at the method's levels."""
        names = [*self.outputs, *more]
        return {level: self.run_on(path, self.data, names, level) for level in self.levels}

    def run_on(self, path: Path, data: Dataset, names: list[str], level: str) -> dict[str, Array]:
        """Outputs of a model on some data."""
        return runtime.run(
            path, data.inputs, names, level=level, batch=self.batch, chunk=self.chunk,
            called=self.called, calls=data.calls,
        )  # fmt: skip

    def decoded(self, theta: Mapping[str, Array]) -> dict[str, Array]:
        """The weights as onnxruntime computes them from θ, without optimisations."""
        specialize.fill(self.decoder, theta)
        with runtime.on_disk(self.decoder) as path:
            return runtime.run(path, {}, level="none")

    def forward(self, outputs: Outputs, expected: Outputs, level: str) -> ForwardCheck:
        """All outputs against the expected ones."""
        got, wanted = outputs[level], expected[level]
        return ForwardCheck(
            bit_equal=all(same_bits(got[name], wanted[name]) for name in self.outputs),
            max_abs_diff=max(max_abs_diff(got[name], wanted[name]) for name in self.outputs),
            samples=self.samples,
            optimization=level,
        )

    def untrained(self) -> Control:
        """The extension as it was before training must not pass."""
        return self.control("untrained", specialize.untrained_theta(self.facts))

    def control(self, name: str, theta: Mapping[str, Array]) -> Control:
        """A θ that must not pass; bits that were checked under another name are not run again."""
        key = digest(theta)
        if key not in self.controls:
            self.controls[key] = self.passes(theta)
        return Control(name, self.controls[key])

    def passes(self, theta: Mapping[str, Array]) -> bool:
        """Whether a θ reproduces."""
        return self.check(theta).reproduced

    def accuracy_of(self, weights: Mapping[str, Array]) -> float | None:
        """Share of right answers of the base with these weights."""
        data, name = self.data if self.test is None else self.test, self.facts.logits.output
        if name == self.exposed:
            return None
        with self.base.holding(weights) as path:
            output = self.run_on(path, data, [name], self.levels[0])[name]
        return share_right(output, data, self.facts.logits)

    def accuracy(
        self, oracle: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> dict[str, Any] | None:
        """Share of right answers: the initial base, the base with w*, the trained as last filled.

        None where answers are not right or wrong: values, targets that are no classes, and scores
        that the base does not put out.

        Args:
            oracle: w*.
            outputs: of the trained extension on ``data``; it need not run again without held-out
                data, nor those whose logits are ``known``.
        """
        if self.exposed is not None:
            return None
        data = self.data if self.test is None else self.test
        name, level, found = self.facts.logits.output, self.levels[0], {}
        known = {**self.known, "trained": outputs[name]} if self.test is None else {}
        for who, model in (
            ("base", self.base.initial()), ("oracle", self.base.holding(oracle)),
            ("trained", runtime.on_disk(self.trained)),
        ):  # fmt: skip
            if who not in known:
                with model as path:
                    known[who] = self.run_on(path, data, [name], level)[name]
            found[who] = share_right(known[who], data, self.facts.logits)
        if None in found.values():
            return None
        held_out = self.test is not None
        return {**found, "samples": samples_run(data, self.batch), "held_out": held_out}


class Verifier(Comparison):
    """Checks trained models of method record; the base is run when the verifier is made.

    Where the base has inputs with default values (``default_inputs.py``), onnxruntime treats them
    with all optimisations otherwise than the constants of the trained model.  Then the trained
    model is compared with the base that has constants, and what is extracted with the base.

    Raises:
        InputError: onnxruntime cannot run the base on the data.
        UnsupportedError: the logits do not have one row a sample.
    """

    levels = ("all", "none")

    def __init__(
        self, extended: ir.Model, base: Base, data: Dataset, called: str,
        test: Dataset | None = None,
    ) -> None:  # fmt: skip
        super().__init__(extended, base, data, called, test)
        self.oracle = specialize.oracle_in(extended)
        with base.holding(self.oracle) as path:
            self.expected = self.run(path)
        self.plain = self.expected["all"]  # of the base as its file has it
        self.check_rows(self.plain)
        if self.exposed is None:
            self.known["oracle"] = self.plain[self.facts.logits.output]
        if self.facts.inputs:
            with base.holding(self.oracle, constants=True) as path:
                self.expected["all"] = self.run_on(path, data, self.outputs, "all")

    def check(self, theta: Mapping[str, Array]) -> Verdict:
        """Measure one trained θ."""
        specialize.fill(self.trained, theta)
        decoded = self.decoded(theta)
        with runtime.on_disk(self.trained) as path:
            got = self.run(path, *filter(None, [self.exposed]))
        optimized = self.forward(got, self.expected, "all")
        return Verdict(
            [self.weight_row(bucket, slot, theta, decoded[slot.weight])
             for bucket, slot in self.facts.slots()],
            self.with_extracted(optimized, decoded) if self.facts.inputs else optimized,
            self.forward(got, self.expected, "none"),
            got["all"],
        )  # fmt: skip

    def with_extracted(self, check: ForwardCheck, decoded: Mapping[str, Array]) -> ForwardCheck:
        """The check, or that of what is extracted against the base, whichever is worse."""
        with runtime.on_disk(specialize.without_extension(self.trained, decoded)) as path:
            got = self.run_on(path, self.data, self.outputs, "all")
        extracted = self.forward({"all": got}, {"all": self.plain}, "all")
        return max(check, extracted, key=lambda each: (not each.bit_equal, each.max_abs_diff))

    def gaps(self, outputs: Mapping[str, Array]) -> list[str]:
        """How far the trained model is from a base whose weights are inputs."""
        check = self.forward({"all": dict(outputs)}, {"all": self.plain}, "all")
        if check.bit_equal or not self.facts.inputs:
            return []
        return ["with all optimisations onnxruntime treats constants otherwise than inputs with "
                "default values: the extended model's outputs differ from the base's by "
                f"{check.max_abs_diff:.2g}, and are compared with those of the base with "
                "constants; what extract writes has the inputs, and is compared with the base"
                ]  # fmt: skip

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


def digest(theta: Mapping[str, Array]) -> bytes:
    """The bits of all buckets in short, so that no control need be kept."""
    found = hashlib.blake2b(digest_size=32)
    for name in sorted(theta):
        array = theta[name]
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(raw(array).data)
    return found.digest()


def share_right(output: Array, data: Dataset, site: LogitsSite) -> float | None:
    """Share of right answers: ArgMax along the class axis, or a threshold."""
    labels = data.labels[: len(output)]
    if labels.dtype == np.int64:
        right = np.argmax(output.astype(np.float32), axis=site.axis) == labels
        right = right[labels != data.ignore_index]
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


def worst_index(errors: Float64, shape: tuple[int, ...]) -> list[int] | None:
    """Index in the weight of the element with the largest of the errors [elements, digits]."""
    if errors.size == 0:
        return None
    element = int(np.argmax(errors)) // errors.shape[1]
    return [int(i) for i in np.unravel_index(element, shape)] if shape else []


def torch_agrees(
    trained: ir.Model, logits: str, data: Dataset, expected: Array, device: str, chunk: int
) -> TorchCheck:
    """Run a model in torch and compare its output with onnxruntime's.

    Args:
        trained: the extended model with trained θ, or the base.
        logits: the name of its output.
        data: inputs for both.
        expected: onnxruntime's output.
        device: a torch device.
        chunk: samples a call, where the batch is dynamic.
    """
    import torch

    from gdu_compile.torch_backend import lower_to_torch, to_array, to_tensor

    module = lower_to_torch(trained, (), output=logits).to(device)
    step = 1 if data.calls else fixed_batch(trained.graph.inputs) or chunk
    parts = []
    with torch.no_grad():
        for start in range(0, len(expected), step):
            arrays = part(data.inputs, start, start + step, calls=data.calls)
            inputs = {n: to_tensor(ir.Tensor(a.copy())).to(device) for n, a in arrays.items()}
            got = to_array(module.run(inputs)[logits])
            parts.append(got[None] if data.calls else got)
    got, expected = (array.astype(np.float64) for array in (np.concatenate(parts), expected))
    finite = np.isfinite(expected)
    scale = float(np.max(np.abs(expected[finite]), initial=0.0)) or 1.0
    difference = max_abs_diff(got, expected) / scale
    path = path_to(trained, logits)
    return TorchCheck(difference <= path.expected, difference, path.expected, str(path))
