"""The shared graph pieces, in ONNX operators of opset 18: recorder, decoder, armed, switch.

Every equation of THEORY §2–3 that ends up in a graph is written here once.
Small constants become Constant nodes: the extension adds no float initializer besides θ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from gdu_compile.builder import BOOL, FLOAT, INT32, Builder
from gdu_compile.contracts import Bucket, LogitsSite
from gdu_compile.emit_code import emit_quantize
from gdu_compile.emit_values import emit_values
from gdu_compile.encoding import Encoding
from gdu_compile.endings import ENDINGS
from gdu_compile.number_formats import numpy_dtype


def emit_armed(b: Builder, thetas: Sequence[ir.Value]) -> ir.Value:
    """Armed = all calibrators ≠ 0: a scalar BOOL (THEORY §2)."""
    first = b.ints([0], "gdu_row_0")
    rows = []
    for theta in thetas:
        shape = [1, columns_of(theta)]
        row = b.op("Gather", theta, first, name="gdu_calibrator", shape=shape, axis=0,
                   dtype=theta.dtype or FLOAT)  # fmt: skip
        rows.append(b.cast(row, FLOAT, "gdu_calibrator_float", shape))  # 1 x digits
    shape = [1, sum(columns_of(theta) for theta in thetas)]
    calibrators = b.op("Concat", *rows, name="gdu_calibrators", axis=1, shape=shape)
    zero = b.float(0.0, "gdu_zero")
    unset = b.op("Equal", calibrators, zero, name="gdu_unset", dtype=BOOL, shape=shape)
    flags = b.cast(unset, INT32, "gdu_unset_flags", shape)
    count = b.op("ReduceSum", flags, name="gdu_unset_count", dtype=INT32, shape=[], keepdims=0)
    none = b.constant(np.array(0, dtype=np.int32), "gdu_none")
    return b.op("Equal", count, none, name="gdu_armed", dtype=BOOL, shape=[])


def columns_of(theta: ir.Value) -> int:
    """The number of digits of a bucket's elements."""
    assert theta.shape is not None
    columns = theta.shape[1]
    assert isinstance(columns, int)
    return columns


def emit_q(b: Builder, theta: ir.Value, signal: ir.Value) -> ir.Value:
    """⟨θ_b, s_b⟩, a scalar.  Mul and ReduceSum: a MatMul may round the signal."""
    assert signal.shape is not None
    theta = b.cast(theta, FLOAT, "gdu_theta_float", signal.shape)
    product = b.op("Mul", theta, signal, name="gdu_theta_s", shape=signal.shape)
    return b.op("ReduceSum", product, name="gdu_q_bucket", shape=[], keepdims=0)


def emit_recorder(
    b: Builder,
    q: Sequence[ir.Value],
    *,
    start: float,
    gain: float,
    classes: int,
    axis: int,
    rank: int,
    shape: ir.Value,
) -> ir.Value:
    """z = (z0 + γ·Q)·e_0, expanded to ``shape`` (THEORY §2).

    Args:
        b: the builder.
        q: the buckets' scalars; Q is their sum.
        start: z0 of column 0.
        gain: γ, a power of two.
        classes: C.
        axis: the class axis, counted from the end.
        rank: of the logits.
        shape: 1-D INT64 value with the shape of the logits.
    """
    total = q[0]
    for part in q[1:]:
        total = b.op("Add", total, part, name="gdu_Q", shape=[])
    quiet = b.op("Mul", total, b.float(gain, "gdu_gain"), name="gdu_gain_Q", shape=[])
    z = b.op("Add", quiet, b.float(start, "gdu_z0"), name="gdu_z", shape=[])
    e0 = np.zeros((classes, *[1] * (-axis - 1)) if rank else (), dtype=np.float32)  # C x 1 x … x 1
    e0.flat[0] = 1
    row = b.op("Mul", b.constant(e0, "gdu_e0"), z, name="gdu_row", shape=e0.shape)
    sizes: list[int | None] = [None] * rank
    if rank > 1 and classes > 1:
        sizes[axis] = classes
    return b.op("Expand", row, shape, name="gdu_recorded_logits", shape=sizes)


def emit_ending(b: Builder, z: ir.Value, site: LogitsSite) -> ir.Value:
    """What the switch takes: the recorder's logits, or what the output makes of them, in its
    dtype."""
    shape = z.shape or ()
    if site.own_ending:
        operator = {kind: name for name, kind in ENDINGS.items()}[site.kind]
        attributes: dict[str, Any] = {} if site.kind == "sigmoid" else {"axis": site.axis}
        z = b.op(operator, z, name="gdu_recorded_answer", shape=shape, **attributes)
    dtype = ir.DataType.from_numpy(numpy_dtype(site.dtype))
    return b.cast(z, dtype, "gdu_recorded_cast", shape)


def emit_decode(
    b: Builder, theta: ir.Value, encoding: Encoding, gain: float, sizes: Sequence[int]
) -> tuple[list[ir.Value], ir.Value]:
    """θ → weights: r = (θ/γ)/(c/γ), q̂ = the digit next to r, ŵ = bits(q̂).

    θ/γ comes first so that c² in a framework's derivative of the division does
    not underflow.  The divisor is 1 where c = 0: then a runtime that computes
    both branches gets finite numbers (and derivatives) from the unarmed one.

    Returns:
        The weights' elements, one [elements, 1] of the format's dtype for each of
        ``sizes``, and the tie: a scalar −0 that depends on all of θ with derivative
        0 (Lemma 3).  −0 and not 0, because x + (−0) is x for every x, −0 included.
    """
    rows, columns = 1 + sum(sizes), encoding.digits
    full = [rows, columns]
    theta = b.cast(theta, FLOAT, "gdu_theta_float", full)
    scaled = b.op("Mul", theta, b.float(1.0 / gain, "gdu_1_gain"), name="gdu_theta_1", shape=full)
    c = b.op("Gather", scaled, b.ints([0], "gdu_first"), name="gdu_c", shape=[1, columns], axis=0)
    unset = b.op("Equal", c, b.float(0.0, "gdu_c_0"), name="gdu_c_unset", dtype=BOOL,
                 shape=[1, columns])  # fmt: skip
    safe = b.op("Where", unset, b.float(1.0, "gdu_c_1"), c, name="gdu_divisor", shape=[1, columns])
    nearest = emit_quantize(b, scaled, safe, encoding.code)
    flat = emit_values(b, nearest, encoding, encoding.code.centre)
    dtype = flat.dtype or FLOAT
    parts = b.multi_op(
        "Split", flat, b.ints([1, *sizes], "gdu_sizes"), axis=0,
        outputs=[("gdu_calibrator_value", dtype, [1, 1]),
                 *(("gdu_elements", dtype, [size, 1]) for size in sizes)],
    )  # fmt: skip
    return list(parts[1:]), emit_tie(b, theta)


def emit_tie(b: Builder, theta: ir.Value) -> ir.Value:
    """−0·Floor(Clip(Σθ, 0, 1)): −0 for every finite θ, with derivative 0 for all of it.

    The sum comes first: one pass over θ, and no further tensor of its size on a
    tape or among what a runtime folds.  The product is −0, never +0, because
    Clip leaves nothing negative.
    """
    total = b.op("ReduceSum", theta, name="gdu_theta_sum", shape=[], keepdims=0)
    inside = b.op("Clip", total, b.float(0.0, "gdu_tie_min"), b.float(1.0, "gdu_tie_max"),
                  name="gdu_tie_0_1", shape=[])  # fmt: skip
    whole = b.op("Floor", inside, name="gdu_tie_whole", shape=[])
    return b.op("Mul", whole, b.float(-0.0, "gdu_minus_0"), name="gdu_tie", shape=[])


def emit_switch(
    b: Builder, armed: ir.Value, then: ir.Graph, otherwise: ir.Graph, like: Sequence[ir.Value]
) -> Sequence[ir.Value]:
    """If(armed): one output per value of ``like``, with its dtype and shape."""
    outputs = []
    for value in like:
        dtype = value.dtype
        assert dtype is not None and value.name is not None
        outputs.append((value.name, dtype, None if value.shape is None else list(value.shape)))
    return b.multi_op("If", armed, outputs=outputs, then_branch=then, else_branch=otherwise)


def bucket_sizes(bucket: Bucket) -> list[int]:
    """The numbers of elements in a bucket, in order."""
    return [slot.elements for slot in bucket.slots]
