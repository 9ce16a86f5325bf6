"""The permanent facts of an extended model, as its ``metadata_props`` hold them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from gdu_compile.contracts import (
    Algorithm,
    Bucket,
    DimSource,
    Field,
    LogitsSite,
    Memory,
    MemoryBucket,
    Skipped,
    Slot,
    Weight,
)
from gdu_compile.digits import CODES, UNIT_ROUNDOFF, DigitCode, check_gain
from gdu_compile.errors import InputError
from gdu_compile.logits import KINDS
from gdu_compile.number_formats import FORMATS

OUTPUT_DTYPES = ("float32", "float16", "bfloat16", "float64")
T = TypeVar("T", bound=Any)  # a matrix of numpy or of torch
PREFIX = "gdu."
OPTIMIZATION = {"record": "all, none", "learn": "none"}
"""Levels of onnxruntime at which outputs are compared; all must be bit-equal.  An algorithm gives
the same bits inside and outside a bigger graph only where nothing is fused (DESIGN)."""


@dataclass(frozen=True)
class Extension:
    """The permanent facts of an extended model, as its metadata holds them.

    Attributes:
        version: of gdu-compile that wrote it.
        method: "record" or "learn".
        code: the digit code.
        gain: γ.
        theta_dtype: dtype of θ, "float32" or "bfloat16".
        batch_limit: N of Lemma 1; None for learn, where it has no part.
        start: z0 of Lemma 1, what the recorder answers in column 0.
        logits: the logits site.
        base_logits: name that the base's own logits have inside the extended graph.
        buckets: record: θ and what lies where; () for learn.
        memory: learn: θ and what lies where; None for record.
        algorithm: learn: what computes the weights; None for record.
        initial: weight name → name of the initializer with its initial value.
        source: SHA-256 of the base's header (inputs, outputs, nodes, initializer sizes).
        skipped: float weights that are not recorded.
        inputs: all inputs that the base has, in order, where some have default values; else ().
    """

    version: str
    method: str
    code: DigitCode
    gain: float
    theta_dtype: str
    batch_limit: int | None
    start: float
    logits: LogitsSite
    base_logits: str
    buckets: tuple[Bucket, ...]
    memory: Memory | None
    algorithm: Algorithm | None
    initial: dict[str, str]
    source: str
    skipped: tuple[Skipped, ...]
    inputs: tuple[str, ...] = ()

    def slots(self) -> Iterator[tuple[Bucket, Slot]]:
        """All (bucket, slot) pairs in file order."""
        for bucket in self.buckets:
            for slot in bucket.slots:
                yield bucket, slot

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The switched weights, in the order of the switch's outputs."""
        if self.algorithm is not None:
            return self.algorithm.weights
        return tuple(Weight(slot.weight, slot.shape, slot.dtype) for _, slot in self.slots())

    @property
    def theta_shapes(self) -> dict[str, tuple[int, int]]:
        """θ → its shape: [rows + 1, digits] for record, [slots, columns] for learn."""
        if self.memory is not None:
            columns = sum(self.memory.widths(self.code))
            return {bucket.theta: (bucket.slots, columns) for bucket in self.memory.buckets}
        return {bucket.theta: bucket.theta_shape(self.code) for bucket in self.buckets}

    def calibrators(self, theta: T) -> T:
        """The calibrators of one θ: its row 0 for record, its column 0 for learn."""
        found: T = theta[:, 0] if self.memory is not None else theta[0]
        return found

    def to_metadata(self) -> dict[str, str]:
        """The ``gdu.*`` entries of ``metadata_props``."""
        site = self.logits
        facts: dict[str, object] = {
            "version": self.version,
            "method": self.method,
            "digits": self.code.name,
            "gain": self.gain.hex(),
            "theta_dtype": self.theta_dtype,
            "optimization": OPTIMIZATION[self.method],
            **({} if self.batch_limit is None else {"batch_limit": self.batch_limit}),
            "start": self.start.hex(),
            "logits": {
                "name": site.name, "output": site.output, "axis": site.axis,
                "classes": site.classes, "kind": site.kind, "why": site.why,
                "dims": site.dims, "base": self.base_logits, "dtype": site.dtype,
                "calls": site.calls, "exposed": site.exposed,
            },
            **self.what_lies_where(),
            "initial": self.initial,
            "source": self.source,
            "skipped": [[skipped.name, skipped.reason] for skipped in self.skipped],
            **({"inputs": self.inputs} if self.inputs else {}),
        }  # fmt: skip
        return {
            PREFIX + key: fact if isinstance(fact, str) else json.dumps(fact)
            for key, fact in facts.items()
        }

    def what_lies_where(self) -> dict[str, object]:
        """The entries that only one method has."""
        if self.memory is None or self.algorithm is None:
            slots = {b.theta: [dataclasses.astuple(slot) for slot in b.slots] for b in self.buckets}
            return {"buckets": slots}
        memory, algorithm = self.memory, self.algorithm
        return {
            "memory": {
                "slots": memory.slots, "labels": memory.labels,
                "fields": [dataclasses.astuple(field) for field in memory.fields],
                "buckets": {b.theta: [b.first, b.slots] for b in memory.buckets},
            },
            "algorithm": {
                "name": algorithm.name, "inputs": algorithm.inputs,
                "weights": [dataclasses.astuple(weight) for weight in algorithm.weights],
            },
        }  # fmt: skip

    @classmethod
    def from_metadata(cls, props: dict[str, str], file: str = "the model") -> Extension:
        """Read the facts back.

        Raises:
            InputError: the model is no extended one, or its metadata is damaged.
        """
        if PREFIX + "version" not in props:
            raise InputError(
                f"{file} is not an extended model (it has no gdu.* metadata)",
                ["make one with: gdu-compile MODEL --weights W.npz"],
            )
        try:
            learns = props[PREFIX + "method"] == "learn"
            facts = cls(
                version=props[PREFIX + "version"],
                method=props[PREFIX + "method"],
                code=CODES[props[PREFIX + "digits"]],
                gain=float.fromhex(props[PREFIX + "gain"]),
                theta_dtype=props[PREFIX + "theta_dtype"],
                batch_limit=None if learns else int(props[PREFIX + "batch_limit"]),
                start=float.fromhex(props[PREFIX + "start"]),
                logits=read_site(json.loads(props[PREFIX + "logits"])),
                base_logits=str(json.loads(props[PREFIX + "logits"])["base"]),
                buckets=() if learns else read_buckets(json.loads(props[PREFIX + "buckets"])),
                memory=read_memory(json.loads(props[PREFIX + "memory"])) if learns else None,
                algorithm=(
                    read_algorithm(json.loads(props[PREFIX + "algorithm"])) if learns else None
                ),
                initial={
                    str(weight): str(name)
                    for weight, name in json.loads(props[PREFIX + "initial"]).items()
                },
                source=props[PREFIX + "source"],
                skipped=tuple(Skipped(n, r) for n, r in json.loads(props[PREFIX + "skipped"])),
                inputs=tuple(map(str, json.loads(props.get(PREFIX + "inputs", "[]")))),
            )
            facts.check()
            return facts
        except Exception as error:  # a hostile text can make json and int raise anything
            said = (str(error).splitlines() or [""])[0]
            raise InputError(
                f"the gdu.* metadata of {file} is damaged ({type(error).__name__}: {said[:200]}); "
                "compile it again"
            ) from error

    def check(self) -> None:
        """Raise ValueError or InputError when a fact is impossible by itself."""
        check_gain(self.gain)
        if self.method not in OPTIMIZATION:
            raise ValueError(f"method {self.method!r} is unknown to this version")
        if self.theta_dtype not in UNIT_ROUNDOFF:
            raise ValueError(f"θ of dtype {self.theta_dtype!r} is unknown to this version")
        if any(
            not bucket.slots
            or {slot.dtype for slot in bucket.slots} - {bucket.dtype}
            or bucket.dtype not in FORMATS
            for bucket in self.buckets
        ):
            raise ValueError("a bucket is empty, or its weights are not of one known dtype")
        if (self.batch_limit or 1) < 1 or not math.isfinite(self.start):
            raise ValueError("batch limit or start out of range")
        if any(min(slot.shape, default=1) < 1 or slot.offset < 0 for _, slot in self.slots()):
            raise ValueError("a shape or offset out of range")
        if self.memory is not None and self.algorithm is not None:
            check_memory(self.memory, self.algorithm, self.logits)


def check_memory(memory: Memory, algorithm: Algorithm, site: LogitsSite) -> None:
    """Raise ValueError when a memory or an algorithm is impossible by itself."""
    first = 0
    for bucket in memory.buckets:
        if bucket.first != first or bucket.slots < 1:
            raise ValueError(f"θ {bucket.theta!r} begins at slot {bucket.first}, not {first}")
        first += bucket.slots
    if first != memory.slots or memory.slots < 1:
        raise ValueError(f"{memory.slots} slots, of which {first} are in buckets")
    if memory.labels != (site.classes if site.classes > 1 else 0):
        raise ValueError(f"{memory.labels} label columns for {site.classes} classes")
    if not memory.fields or any(f.stored not in FORMATS or 0 in f.shape for f in memory.fields):
        raise ValueError("a field of unknown dtype, or without elements")
    if not algorithm.weights or len(algorithm.inputs) != len(memory.fields) + 1:
        raise ValueError("an algorithm without weights, or with other inputs than the memory")


def read_site(fields: dict[str, Any]) -> LogitsSite:
    """The logits site from its JSON.

    Raises:
        ValueError: it is impossible by itself.
    """
    site = LogitsSite(
        name=str(fields["name"]), output=str(fields["output"]), axis=int(fields["axis"]),
        classes=int(fields["classes"]), kind=str(fields["kind"]), why=str(fields["why"]),
        dims=tuple(read_dim(dim) for dim in fields["dims"]),
        dtype=str(fields.get("dtype", "float32")), calls=bool(fields.get("calls", False)),
        exposed=bool(fields.get("exposed", False)),
    )  # fmt: skip
    least = 1 if site.kind in ("logits", "sigmoid", "values") else 2
    if site.kind not in KINDS or site.classes < least:
        raise ValueError(f"{site.classes} classes of kind {site.kind!r}")
    if not -max(len(site.dims), 1) <= site.axis < 0 or (len(site.dims) < 2 and site.classes > 1):
        raise ValueError(f"class axis {site.axis} of {len(site.dims)}")
    if site.dtype not in OUTPUT_DTYPES:
        raise ValueError(f"an output of dtype {site.dtype!r}")
    whole = site.kind == "values" and site.classes == 1
    if len(site.dims) > 1 and not whole and site.dims[site.axis] != site.classes:
        raise ValueError(f"{site.classes} classes on an axis of {site.dims[site.axis]}")
    return site


def read_dim(field: Any) -> DimSource:
    """One dimension's source from its JSON."""
    if isinstance(field, list):
        name, index = field
        return str(name), int(index)
    return None if field is None else int(field)


def read_memory(fields: dict[str, Any]) -> Memory:
    """The memory from its JSON."""
    return Memory(
        slots=int(fields["slots"]), labels=int(fields["labels"]),
        fields=tuple(
            Field(str(name), tuple(map(int, shape)), str(dtype))
            for name, shape, dtype in fields["fields"]
        ),
        buckets=tuple(
            MemoryBucket(str(theta), int(first), int(slots))
            for theta, (first, slots) in fields["buckets"].items()
        ),
    )  # fmt: skip


def read_algorithm(fields: dict[str, Any]) -> Algorithm:
    """The algorithm from its JSON."""
    return Algorithm(
        name=str(fields["name"]),
        weights=tuple(
            Weight(str(name), tuple(map(int, shape)), str(dtype))
            for name, shape, dtype in fields["weights"]
        ),
        inputs=tuple(map(str, fields["inputs"])),
    )


def read_buckets(fields: dict[str, Any]) -> tuple[Bucket, ...]:
    """The buckets from their JSON: θ → [weight, offset, shape, dtype, signal]."""
    return tuple(
        Bucket(
            theta,
            tuple(
                Slot(str(weight), int(offset), tuple(map(int, shape)), str(dtype), str(signal))
                for weight, offset, shape, dtype, signal in slots
            ),
        )
        for theta, slots in fields.items()
    )
