"""InsertRecorderPass: θ, the signals, and the logits that record them.

Before: base.  After: θ buckets ([rows + 1, digits], all 0) and signals
(uint8 or uint16 [elements, units], views of the oracle's bytes) are
initializers, and the main graph also computes ``armed`` and the recorder's logits

    z = (z0 + γ·Σ_b ⟨θ_b, s_b⟩)·e_0,   z0 = −ln((2N − 1)/(C − 1))

(THEORY §2; ``logits.recorder_start`` has z0 for the other kinds of output).
Nothing uses them yet: the model's outputs are unchanged.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from gdu_compile.passes._base import GduPass

from gdu_compile.builder import INT64, Builder
from gdu_compile.contracts import Bucket, LogitsSite, Slot, State, Target, Weight
from gdu_compile.data import Targets
from gdu_compile.digits import DEFAULT_GAIN, UNIT_ROUNDOFF, DigitCode, check_gain
from gdu_compile.emit import (
    emit_armed,
    emit_ending,
    emit_q,
    emit_recorder,
)  # fmt: skip
from gdu_compile.emit_code import emit_signal, emit_zero
from gdu_compile.encoding import encoding_of
from gdu_compile.errors import InputError
from gdu_compile.logits import FLOAT16_LIMIT, recorder_start, value_at
from gdu_compile.losses import LossSpec
from gdu_compile.names import Names
from gdu_compile.number_formats import numpy_dtype

DEFAULT_BUCKET_BYTES = 64 << 20
DEFAULT_BATCH_LIMIT = 2**20


class InsertRecorderPass(GduPass):
    """Add θ and the recorder.

    Args:
        gain: γ, a power of two (THEORY Lemma 4).
        batch_limit: N, the largest number of samples in a batch (Lemma 1).
        bucket_bytes: size of θ at which a new bucket begins.
        theta_dtype: dtype of θ, "float32" or "bfloat16".
        loss: the loss, when it is known: z0 depends on it for columns of yes-or-no questions.
        targets: the training data's ``y``, when it is known: z0 of values lies below it.
    """

    needs = ("logits", "targets", "code")
    gives = ("buckets", "weights", "armed", "recorded_logits", "gain", "batch_limit", "theta_dtype",
             "start")  # fmt: skip

    def __init__(
        self,
        *,
        gain: float = DEFAULT_GAIN,
        batch_limit: int = DEFAULT_BATCH_LIMIT,
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
        theta_dtype: str = "float32",
        loss: LossSpec | None = None,
        targets: Targets | None = None,
    ) -> None:
        check_gain(gain)
        check_theta_dtype(theta_dtype)
        self.gain = gain
        self.batch_limit = batch_limit
        self.bucket_bytes = bucket_bytes
        self.theta_dtype = theta_dtype
        self.loss = loss
        self.targets = targets

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        assert state.targets is not None and state.logits is not None and state.code is not None
        code, site, names = state.code, state.logits, Names(model)
        groups = group_targets(state.targets, code, self.bucket_bytes)
        state.buckets = []
        thetas: list[ir.Value] = []
        signals: list[list[ir.Value]] = []
        for group in groups:
            bucket, theta, signal = add_bucket(
                model.graph, names, group, code, len(thetas), numpy_dtype(self.theta_dtype)
            )
            state.buckets.append(bucket)
            thetas.append(theta)
            signals.append(signal)

        b = Builder(names, type(self).__name__)
        state.armed = emit_armed(b, thetas)
        first = model.graph[0]
        model.graph.insert_before(first, b.nodes)

        b = Builder(names, type(self).__name__)
        shape = emit_shape(b, model.graph, site)
        zero = emit_zero(b, shape) if site.dims else None  # a scalar has no size
        q = [
            emit_q(b, theta, emit_signal(b, signal, bucket.encoding(code), bucket.rows, zero))
            for bucket, theta, signal in zip(state.buckets, thetas, signals, strict=True)
        ]
        below = None
        if self.targets is not None:
            below = self.targets.below(site.axis, len(site.dims) if site.classes > 1 else 1)
        limit = batch_limit_of(site, self.batch_limit, state)
        state.start = recorder_start(site, limit, below=below, loss=self.loss)
        check_start(site, state.start)
        recorded = emit_recorder(
            b, q, start=state.start, gain=self.gain, classes=site.classes,
            axis=site.axis, rank=len(site.dims), shape=shape,
        )  # fmt: skip
        state.recorded_logits = emit_ending(b, recorded, site)
        producer = value_at(model.graph, site.name).producer()
        assert producer is not None
        model.graph.insert_after(producer, b.nodes)
        state.weights = [
            Weight(slot.weight, slot.shape, slot.dtype) for b in state.buckets for slot in b.slots
        ]
        state.gain, state.batch_limit = self.gain, limit
        state.theta_dtype = self.theta_dtype
        return {
            "buckets": len(thetas),
            "parameters": sum(math.prod(b.theta_shape(code)) for b in state.buckets),
        }


def batch_limit_of(site: LogitsSite, wanted: int, state: State) -> int:
    """N: as wanted, and less where the output is float16, whose smallest number ends it."""
    if site.dtype != "float16" or site.kind == "values" or wanted <= FLOAT16_LIMIT:
        return wanted
    state.notes.append(
        f"output {site.output!r} is float16: batches of up to {FLOAT16_LIMIT} labels, not {wanted}"
    )
    return FLOAT16_LIMIT


def check_start(site: LogitsSite, start: float) -> None:
    """Raise InputError when the output's dtype does not hold z0."""
    if site.dtype == "float16" and abs(start) > float(np.finfo(np.float16).max):
        raise InputError(f"output {site.output!r} is float16, and the recorder would start at "
                         f"{start:g}, below the targets; scale them")  # fmt: skip


def group_targets(targets: list[Target], code: DigitCode, bucket_bytes: int) -> list[list[Target]]:
    """Fill buckets in order, one dtype after the other.

    A tensor is never split, so one that is larger than a bucket has its own.
    """
    groups: list[list[Target]] = []
    for dtype in dict.fromkeys(target.dtype for target in targets):
        digits, room = encoding_of(code, dtype).digits, -1
        for target in targets:
            if target.dtype != dtype:
                continue
            size = len(target.units) * digits * 4
            if size > room:
                groups.append([])
                room = bucket_bytes
            groups[-1].append(target)
            room -= size
    return groups


def add_bucket(
    graph: ir.Graph, names: Names, targets: list[Target], code: DigitCode, index: int,
    dtype: np.dtype[np.generic],
) -> tuple[Bucket, ir.Value, list[ir.Value]]:  # fmt: skip
    """Register one bucket's θ (zeros) and its signals as initializers."""
    slots: list[Slot] = []
    signals: list[ir.Value] = []
    offset = 0
    for target in targets:
        base = f"gdu_signal_{index}_{len(slots)}"
        signal = add_initializer(graph, names.fresh(base), ir.Tensor(target.units))
        signals.append(signal)
        slots.append(Slot(target.name, offset, target.shape, target.dtype, str(signal.name)))
        offset += len(target.units)
    shape = (offset + 1, encoding_of(code, targets[0].dtype).digits)
    theta = add_theta(graph, names.fresh(f"gdu_theta_{index}"), shape, dtype)
    return Bucket(str(theta.name), tuple(slots)), theta, signals


def check_theta_dtype(name: str) -> None:
    """Raise InputError when θ cannot be kept in this dtype."""
    if name not in UNIT_ROUNDOFF:
        raise InputError(f"--theta-dtype {name}: θ is {' or '.join(UNIT_ROUNDOFF)}")


def add_theta(
    graph: ir.Graph, name: str, shape: tuple[int, int], dtype: np.dtype[np.generic]
) -> ir.Value:
    """Register one θ, zeros; lazy: a tensor as large need not exist before it is written."""
    tensor = ir.LazyTensor(
        lambda: ir.Tensor(np.zeros(shape, dtype=dtype)),
        dtype=ir.DataType.from_numpy(dtype),
        shape=ir.Shape(shape),
    )
    return add_initializer(graph, name, tensor)


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a new initializer."""
    tensor.name = name
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def emit_shape(b: Builder, graph: ir.Graph, site: LogitsSite) -> ir.Value:
    """The logits' shape as a 1-D INT64 value; from the inputs where possible."""
    rank = len(site.dims)
    if None in site.dims:
        logits = value_at(graph, site.name)
        return b.op("Shape", logits, name="gdu_shape", dtype=INT64, shape=[rank])
    parts: list[ir.Value] = []
    fixed: list[int] = []
    for dim in site.dims:
        if isinstance(dim, int):
            fixed.append(dim)
        elif dim is not None:
            parts += [b.ints(fixed, "gdu_sizes")] if fixed else []
            fixed = []
            parts.append(emit_size(b, graph, *dim))
    if not parts:
        return b.ints(fixed, "gdu_shape")
    parts += [b.ints(fixed, "gdu_classes")] if fixed else []
    if len(parts) == 1:
        return parts[0]
    return b.op("Concat", *parts, name="gdu_shape", dtype=INT64, shape=[rank], axis=0)


def emit_size(b: Builder, graph: ir.Graph, name: str, index: int) -> ir.Value:
    """The size of one dimension of a model input: INT64 [1]."""
    source = next(value for value in graph.inputs if value.name == name)
    return b.op("Shape", source, name="gdu_batch", dtype=INT64, shape=[1],
                start=index, end=index + 1)  # fmt: skip
