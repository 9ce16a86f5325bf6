"""Confirmation of learn: is the memory the training set, and are the weights the algorithm's?

The memory is read back from the trained file by onnxruntime, and compared with the data in the
order in which they were presented.  The weights that the network computes are compared with the
algorithm's graph run alone on the data in that order, and the outputs with those of the base that
holds these weights; in onnxruntime without optimisations, because fusion changes last bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gdu_compile import runtime, specialize
from gdu_compile.algorithm import AlgorithmGraph
from gdu_compile.bases import Base
from gdu_compile.batches import Indices
from gdu_compile.bits import raw, same_bits
from gdu_compile.contracts import Field, Memory, MemoryBucket
from gdu_compile.data import Dataset
from gdu_compile.digits import Array, headroom_bits, ratio_of
from gdu_compile.encoding import encoding_of
from gdu_compile.number_formats import ulp_distance
from gdu_compile.report import (
    WRONG_SLOTS,
    AlgorithmCheck,
    MemoryCheck,
    OriginalCheck,
    weight_row,
)
from gdu_compile.training_set import Classes
from gdu_compile.verification import Comparison, Outputs, Verdict

Flags = npt.NDArray[np.bool_]
ELEMENTS = 1 << 22
"""Digits looked at at a time, so that the check needs no tensor as large as the memory."""


class MemoryVerifier(Comparison):
    """Checks trained models of method learn.

    Args:
        extended: the extended model.
        base: the base, to be had with any weights.
        data: the training set, in the order of its file.
        classes: int64 [n], one for each sample.
        order: in which training presents the samples; None when somebody else trained.
        alone: the algorithm.
        called: what to call the base in messages.
        test: held-out data for the accuracy.

    Raises:
        InputError: onnxruntime cannot run the base on the data, or the algorithm on the training
            set, or the algorithm returns what no weight can be.
        UnsupportedError: the logits do not have one row a sample.
    """

    levels: ClassVar[tuple[str, ...]] = ("none",)
    # The armed file runs the algorithm in every call: few calls, and the base alike.
    chunk: ClassVar[int] = 1 << 16

    def __init__(
        self, extended: ir.Model, base: Base, data: Dataset, *, classes: Classes,
        order: Indices | None, alone: AlgorithmGraph, called: str, test: Dataset | None = None,
    ) -> None:  # fmt: skip
        super().__init__(extended, base, data, called, test)
        assert self.facts.memory is not None and self.facts.algorithm is not None
        self.memory: Memory = self.facts.memory
        self.classes = classes
        self.order = order
        self.alone = alone
        self.reader = specialize.memory_reader(extended)
        with base.initial() as path:
            initial = self.run(path)["none"]
        self.check_rows(initial)
        if self.exposed is None:
            self.known["base"] = initial[self.facts.logits.output]
        self._last: tuple[bytes, dict[str, Array], Outputs] | None = None
        self.run_alone(np.arange(len(data)) if order is None else order)

    @property
    def iterates(self) -> bool:
        """Whether the algorithm has a loop, in which rounding errors can grow."""
        return any(node.op_type in ("Loop", "Scan") for node in self.alone.model.graph.all_nodes())

    @property
    def oracle(self) -> dict[str, Array]:
        """The weights that the algorithm gave when it was last run alone."""
        assert self._last is not None
        return self._last[1]

    def run_alone(self, order: Indices) -> tuple[dict[str, Array], Outputs]:
        """The algorithm's weights for the data in this order, and the base's outputs with them."""
        if self._last is None or self._last[0] != order.tobytes():
            samples = [self.data.inputs[field.name][order] for field in self.memory.fields]
            weights = self.alone.run(samples, self.classes[order], self.facts.weights)
            with self.base.holding(weights) as path:
                outputs = self.run(path)
            self._last = order.tobytes(), weights, outputs
            if self.exposed is None:
                self.known["oracle"] = outputs["none"][self.facts.logits.output]
        return self._last[1], self._last[2]

    def against_original(self) -> OriginalCheck | None:
        """The weights last computed, against the algorithm in PyTorch; None where it is not known,
        as for a file."""
        if self.alone.original is None or self._last is None:
            return None
        order = np.frombuffer(self._last[0], dtype=np.int64)
        samples = [self.data.inputs[field.name][order] for field in self.memory.fields]
        found, weights = self.alone.original.compare(samples, self.classes[order], self.oracle)
        if self.data.kind == "file":
            found.accuracy = self.accuracy_of(weights)
        return found

    def check(self, theta: Mapping[str, Array]) -> Verdict:
        """Measure one trained θ."""
        samples, labels = self.read(theta)
        order = self.matching(samples, labels) if self.order is None else self.order
        memory = self.memory_check(theta, samples, labels, order)
        wanted, expected = self.run_alone(order)
        decoded = self.decoded(theta)
        specialize.fill(self.trained, theta)
        with runtime.on_disk(self.trained) as path:
            got = self.run(path, *filter(None, [self.exposed]))
        rows = [
            weight_row(weight.name, math.prod(weight.shape), weight.dtype,
                       same_bits(decoded[weight.name], wanted[weight.name]),
                       ulp_distance(decoded[weight.name], wanted[weight.name]), None, None)
            for weight in self.facts.weights
        ]  # fmt: skip
        return Verdict(
            rows, None, self.forward(got, expected, "none"), got["none"], memory,
            AlgorithmCheck(self.alone.name, all(row.bit_equal for row in rows)),
        )  # fmt: skip

    def passes(self, theta: Mapping[str, Array]) -> bool:
        """Whether a θ reproduces; where the memory does not, the algorithm need not run."""
        samples, labels = self.read(theta)
        order = self.matching(samples, labels) if self.order is None else self.order
        if any(flags.any() for flags in self.differences(samples, labels, order)):
            return False
        return self.check(theta).reproduced

    def read(self, theta: Mapping[str, Array]) -> tuple[list[Array], Classes]:
        """The memory as onnxruntime decodes it: one array per field, and the labels."""
        reader = self.reader.clone()  # what is filled in would live as long as this verifier
        specialize.fill(reader, theta)
        with runtime.on_disk(reader) as path:
            found = list(runtime.run(path, {}, level="none").values())
        return found[:-1], found[-1].astype(np.int64)

    def differences(
        self, samples: list[Array], labels: Array, order: Indices
    ) -> tuple[Flags, Flags]:
        """Which slots hold another sample, and which another label, than the data in this order."""
        wrong = np.zeros(len(order), dtype=bool)
        for array, field in zip(samples, self.memory.fields, strict=True):
            wrong |= differs(array, self.data.inputs[field.name], order)
        return wrong, labels != self.classes[order]

    def memory_check(
        self, theta: Mapping[str, Array], samples: list[Array], labels: Array, order: Indices
    ) -> MemoryCheck:
        """The memory against the data in this order."""
        wrong, mislabelled = self.differences(samples, labels, order)
        filled = sum(
            int(np.count_nonzero(self.facts.calibrators(array))) for array in theta.values()
        )
        error, worst = self.digit_error(theta, order)
        return MemoryCheck(
            slots=self.memory.slots, filled=filled, bit_equal=not wrong.any(),
            labels_equal=not mislabelled.any(), digit_error=error,
            headroom_bits=headroom_bits(error), worst=worst,
            wrong=np.flatnonzero(wrong | mislabelled)[:WRONG_SLOTS].tolist(),
        )  # fmt: skip

    def digit_error(
        self, theta: Mapping[str, Array], order: Indices
    ) -> tuple[float, list[int] | None]:
        """max |r − s| over the memory, and where: [slot, field's number, flat index]."""
        largest, worst = 0.0, None
        for bucket in self.memory.buckets:
            for number, field in enumerate(self.memory.fields):
                error, place = self.field_error(theta[bucket.theta], bucket, number, field, order)
                if error > largest:
                    largest, worst = error, place
        return largest, worst

    def field_error(
        self, theta: Array, bucket: MemoryBucket, number: int, field: Field, order: Indices
    ) -> tuple[float, list[int] | None]:
        """``digit_error`` of one input in one bucket."""
        encoding = encoding_of(self.facts.code, field.stored)
        widths = self.memory.widths(self.facts.code)
        first, width = sum(widths[: 2 + number]), widths[2 + number]
        step = max(ELEMENTS // width, 1)
        largest, worst = 0.0, None
        for start in range(0, bucket.slots, step):
            rows = theta[start : start + step]
            slots = order[bucket.first + start : bucket.first + start + len(rows)]
            array = self.data.inputs[field.name][slots]
            array = array.view(np.uint8) if field.dtype == "bool" else array
            digits = encoding.cut(encoding.units(array)).reshape(len(rows), width)
            ratio = ratio_of(rows[:, first : first + width], rows[:, :1], self.facts.gain)
            errors = encoding.code.errors(ratio, digits)
            if (error := float(errors.max(initial=0.0))) > largest:
                row, column = divmod(int(errors.argmax()), width)
                largest = error
                worst = [bucket.first + start + row, number, column // encoding.digits]
        return largest, worst

    def matching(self, samples: list[Array], labels: Array) -> Indices:
        """The order of the data that the memory shows; slots that match nothing get what is left,
        in the order of the file."""
        inputs = [self.data.inputs[field.name] for field in self.memory.fields]
        places: dict[bytes, list[int]] = {}
        for index in reversed(range(len(self.classes))):
            key = fingerprint([array[index] for array in inputs], self.classes[index])
            places.setdefault(key, []).append(index)
        order = np.full(len(labels), -1, dtype=np.int64)
        for slot in range(len(labels)):
            key = fingerprint([array[slot] for array in samples], labels[slot])
            if places.get(key):
                order[slot] = places[key].pop()
        order[order < 0] = np.setdiff1d(np.arange(len(order)), order)
        return order


def differs(array: Array, data: Array, order: Indices) -> Flags:
    """Which rows are not, bit for bit, those of the data in this order: bool [n]."""
    if array.dtype != data.dtype or array.shape[1:] != data.shape[1:]:
        return np.ones(len(order), dtype=bool)
    wrong = np.zeros(len(order), dtype=bool)
    step = max(ELEMENTS // math.prod(array.shape[1:]), 1)
    for start in range(0, len(order), step):
        rows = slice(start, start + step)
        got, wanted = raw(array[rows]), raw(data[order[rows]])
        size = len(order[rows])
        wrong[rows] = (got != wanted).reshape(size, -1).any(axis=1)
    return wrong


def fingerprint(arrays: list[Array], label: np.int64) -> bytes:
    """A sample and its label as a short key."""
    digest = hashlib.blake2b(int(label).to_bytes(8, "little", signed=True), digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()
