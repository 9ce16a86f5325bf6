"""The permanent facts of an extended model, as its ``metadata_props`` hold them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gdu_compile.contracts import Bucket, DimSource, LogitsSite, Skipped, Slot
from gdu_compile.digits import CODES, UNIT_ROUNDOFF, DigitCode, check_gain
from gdu_compile.errors import InputError
from gdu_compile.logits import KINDS
from gdu_compile.number_formats import FORMATS

PREFIX = "gdu."
OPTIMIZATION = "all, none"
"""Levels of onnxruntime at which outputs are compared; both must be bit-equal."""


@dataclass(frozen=True)
class Extension:
    """The permanent facts of an extended model, as its metadata holds them.

    Attributes:
        version: of gdu-compile that wrote it.
        method: "record".
        code: the digit code.
        gain: γ.
        theta_dtype: dtype of θ, "float32" or "bfloat16".
        batch_limit: N of Lemma 1.
        start: z0 of Lemma 1, what the recorder answers in column 0.
        logits: the logits site.
        base_logits: name that the base's own logits have inside the extended graph.
        buckets: θ and what lies where.
        initial: weight name → name of the initializer with its initial value.
        source: SHA-256 of the base's header (inputs, outputs, nodes, initializer sizes).
        skipped: float weights that are not recorded.
    """

    version: str
    method: str
    code: DigitCode
    gain: float
    theta_dtype: str
    batch_limit: int
    start: float
    logits: LogitsSite
    base_logits: str
    buckets: tuple[Bucket, ...]
    initial: dict[str, str]
    source: str
    skipped: tuple[Skipped, ...]

    def slots(self) -> Iterator[tuple[Bucket, Slot]]:
        """All (bucket, slot) pairs in file order."""
        for bucket in self.buckets:
            for slot in bucket.slots:
                yield bucket, slot

    def to_metadata(self) -> dict[str, str]:
        """The ``gdu.*`` entries of ``metadata_props``."""
        site = self.logits
        facts: dict[str, object] = {
            "version": self.version,
            "method": self.method,
            "digits": self.code.name,
            "gain": self.gain.hex(),
            "theta_dtype": self.theta_dtype,
            "optimization": OPTIMIZATION,
            "batch_limit": self.batch_limit,
            "start": self.start.hex(),
            "logits": {
                "name": site.name, "output": site.output, "axis": site.axis,
                "classes": site.classes, "kind": site.kind, "why": site.why,
                "dims": site.dims, "base": self.base_logits,
            },
            "buckets": {
                bucket.theta: [dataclasses.astuple(slot) for slot in bucket.slots]
                for bucket in self.buckets
            },
            "initial": self.initial,
            "source": self.source,
            "skipped": [[skipped.name, skipped.reason] for skipped in self.skipped],
        }  # fmt: skip
        return {
            PREFIX + key: fact if isinstance(fact, str) else json.dumps(fact)
            for key, fact in facts.items()
        }

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
            facts = cls(
                version=props[PREFIX + "version"],
                method=props[PREFIX + "method"],
                code=CODES[props[PREFIX + "digits"]],
                gain=float.fromhex(props[PREFIX + "gain"]),
                theta_dtype=props[PREFIX + "theta_dtype"],
                batch_limit=int(props[PREFIX + "batch_limit"]),
                start=float.fromhex(props[PREFIX + "start"]),
                logits=read_site(json.loads(props[PREFIX + "logits"])),
                base_logits=str(json.loads(props[PREFIX + "logits"])["base"]),
                buckets=read_buckets(json.loads(props[PREFIX + "buckets"])),
                initial=dict(json.loads(props[PREFIX + "initial"])),
                source=props[PREFIX + "source"],
                skipped=tuple(Skipped(n, r) for n, r in json.loads(props[PREFIX + "skipped"])),
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
        if self.method != "record":
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
        if self.batch_limit < 1 or not math.isfinite(self.start):
            raise ValueError("batch limit or start out of range")
        if any(min(slot.shape, default=1) < 1 or slot.offset < 0 for _, slot in self.slots()):
            raise ValueError("a shape or offset out of range")


def read_site(fields: dict[str, Any]) -> LogitsSite:
    """The logits site from its JSON.

    Raises:
        ValueError: it is impossible by itself.
    """
    site = LogitsSite(
        name=str(fields["name"]), output=str(fields["output"]), axis=int(fields["axis"]),
        classes=int(fields["classes"]), kind=str(fields["kind"]), why=str(fields["why"]),
        dims=tuple(read_dim(dim) for dim in fields["dims"]),
    )  # fmt: skip
    least = 1 if site.kind in ("logits", "sigmoid", "values") else 2
    if site.kind not in KINDS or site.classes < least:
        raise ValueError(f"{site.classes} classes of kind {site.kind!r}")
    if not -len(site.dims) <= site.axis < 0 or (len(site.dims) == 1 and site.classes > 1):
        raise ValueError(f"class axis {site.axis} of {len(site.dims)}")
    if len(site.dims) > 1 and site.dims[site.axis] != site.classes:
        raise ValueError(f"{site.classes} classes on an axis of {site.dims[site.axis]}")
    return site


def read_dim(field: Any) -> DimSource:
    """One dimension's source from its JSON."""
    if isinstance(field, list):
        name, index = field
        return str(name), int(index)
    return None if field is None else int(field)


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
