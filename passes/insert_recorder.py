"""InsertRecorderPass: θ, the signals, and the logits that record them.

Before: base.  After: θ buckets ([rows + 1, digits], all 0) and signals
(uint8 or uint16 [elements, units], views of the oracle's bytes) are
initializers, and the main graph also computes ``armed`` and the recorder's logits

    z = (z0 + γ·Σ_b ⟨θ_b, s_b⟩)·e_0,   z0 = −ln((2N − 1)/(C − 1))

(THEORY §2).  Nothing uses them yet: the model's outputs are unchanged.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from gdu_compile.passes._base import GduPass

from gdu_compile.builder import INT64, Builder
from gdu_compile.contracts import Bucket, LogitsSite, Slot, State, Target
from gdu_compile.digits import DEFAULT_GAIN, UNIT_ROUNDOFF, DigitCode, check_gain
from gdu_compile.emit import (
    emit_armed,
    emit_q,
    emit_recorder,
)  # fmt: skip
from gdu_compile.emit_code import emit_signal
from gdu_compile.encoding import encoding_of
from gdu_compile.errors import InputError
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
    """

    needs = ("logits", "targets", "code")
    gives = ("buckets", "armed", "recorded_logits", "gain", "batch_limit", "theta_dtype")

    def __init__(
        self,
        *,
        gain: float = DEFAULT_GAIN,
        batch_limit: int = DEFAULT_BATCH_LIMIT,
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
        theta_dtype: str = "float32",
    ) -> None:
        check_gain(gain)
        if theta_dtype not in UNIT_ROUNDOFF:
            raise InputError(f"--theta-dtype {theta_dtype}: θ is {' or '.join(UNIT_ROUNDOFF)}")
        self.gain = gain
        self.batch_limit = batch_limit
        self.bucket_bytes = bucket_bytes
        self.theta_dtype = theta_dtype

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
        q = [
            emit_q(b, theta, emit_signal(b, signal, bucket.encoding(code), bucket.rows))
            for bucket, theta, signal in zip(state.buckets, thetas, signals, strict=True)
        ]
        state.recorded_logits = emit_recorder(
            b, q,
            start=-math.log((2 * self.batch_limit - 1) / (site.classes - 1)),
            gain=self.gain, classes=site.classes, shape=emit_shape(b, model.graph, site),
        )  # fmt: skip
        producer = logits_value(model, site).producer()
        assert producer is not None
        model.graph.insert_after(producer, b.nodes)
        state.gain, state.batch_limit = self.gain, self.batch_limit
        state.theta_dtype = self.theta_dtype
        return {
            "buckets": len(thetas),
            "parameters": sum(math.prod(b.theta_shape(code)) for b in state.buckets),
        }


def logits_value(model: ir.Model, site: LogitsSite) -> ir.Value:
    """The base's logits."""
    return next(value for value in model.graph.outputs if value.name == site.name)


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
    theta = add_initializer(
        graph,
        names.fresh(f"gdu_theta_{index}"),
        # Lazy: a zero tensor as large as the bucket need not exist before it is written.
        ir.LazyTensor(
            lambda: ir.Tensor(np.zeros(shape, dtype=dtype)),
            dtype=ir.DataType.from_numpy(dtype),
            shape=ir.Shape(shape),
        ),
    )
    return Bucket(str(theta.name), tuple(slots)), theta, signals


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
    """The logits' shape [N, C] as a 1-D INT64 value; from an input where possible."""
    if isinstance(site.batch, int):
        return b.ints([site.batch, site.classes], "gdu_shape")
    if site.batch is None:
        logits = next(value for value in graph.outputs if value.name == site.name)
        return b.op("Shape", logits, name="gdu_shape", dtype=INT64, shape=[2])
    name, index = site.batch
    source = next(value for value in graph.inputs if value.name == name)
    batch = b.op("Shape", source, name="gdu_batch", dtype=INT64, shape=[1],
                 start=index, end=index + 1)  # fmt: skip
    classes = b.ints([site.classes], "gdu_classes")
    return b.op("Concat", batch, classes, name="gdu_shape", dtype=INT64, shape=[2], axis=0)
