"""The memory of learn in ONNX operators: slots that one step of training fills, and the way back.

THEORY §4.  A slot is a row of θ: c (its calibrator), B (the label's columns), M (the digits of the
sample).  Nothing here knows the data: addresses are read off the memory itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from gdu_compile.builder import BOOL, FLOAT, INT32, INT64, Builder
from gdu_compile.contracts import Field, Memory, MemoryBucket
from gdu_compile.digits import DigitCode
from gdu_compile.emit import emit_tie
from gdu_compile.emit_code import calibrator_signal, emit_quantize
from gdu_compile.emit_inputs import emit_input_signal
from gdu_compile.emit_values import emit_values
from gdu_compile.encoding import encoding_of


def emit_filled(
    b: Builder, thetas: Sequence[ir.Value], memory: Memory
) -> tuple[ir.Value, ir.Value]:
    """(armed, a): whether every slot is filled, BOOL scalar; the first after the filled, INT64 [1].

    a = 1 + max{j : c_j ≠ 0}, and not the number of filled slots: that would overwrite some when a
    sample had no gradient.
    """
    n = memory.slots
    column = [
        b.cast(b.op("Gather", theta, b.ints([0], "gdu_column_0"), name="gdu_calibrators",
                    dtype=theta.dtype or FLOAT, shape=[bucket.slots, 1], axis=1),
               FLOAT, "gdu_calibrators_float", [bucket.slots, 1])
        for theta, bucket in zip(thetas, memory.buckets, strict=True)
    ]  # fmt: skip
    c = column[0]
    if len(column) > 1:
        c = b.op("Concat", *column, name="gdu_all_calibrators", shape=[n, 1], axis=0)
    unset = b.op("Equal", c, b.float(0.0, "gdu_zero"), name="gdu_unset", dtype=BOOL, shape=[n, 1])
    filled = b.op("Not", unset, name="gdu_filled", dtype=BOOL, shape=[n, 1])
    flags = b.cast(filled, INT32, "gdu_filled_flags", [n, 1])
    count = b.op("ReduceSum", flags, name="gdu_filled_count", dtype=INT32, shape=[], keepdims=0)
    whole = b.constant(np.array(n, dtype=np.int32), "gdu_slots")
    armed = b.op("Equal", count, whole, name="gdu_armed", dtype=BOOL, shape=[])
    numbers = b.op("Range", *(scalar(b, i, f"gdu_range_{i}") for i in (1, n + 1, 1)),
                   name="gdu_slot_numbers", dtype=INT64, shape=[n])  # fmt: skip
    rows = b.op("Reshape", numbers, b.ints([n, 1], "gdu_n_1"), name="gdu_slot_column", dtype=INT64,
                shape=[n, 1])  # fmt: skip
    reached = b.op("Mul", b.cast(flags, INT64, "gdu_filled_64", [n, 1]), rows, name="gdu_reached",
                   dtype=INT64, shape=[n, 1])  # fmt: skip
    first = b.op("ReduceMax", reached, b.ints([0], "gdu_axis_0"), name="gdu_first_free",
                 dtype=INT64, shape=[1], keepdims=0)  # fmt: skip
    return armed, first


def emit_samples(
    b: Builder, inputs: Sequence[ir.Value], memory: Memory, code: DigitCode
) -> ir.Value:
    """The signals of a batch, FLOAT [batch, Σ digits], in the order of M's columns."""
    parts = []
    for value, field in zip(inputs, memory.fields, strict=True):
        flat = b.op("Reshape", value, b.ints([-1, field.elements], "gdu_flat"), name="gdu_sample",
                    dtype=value.dtype or FLOAT, shape=[None, field.elements])  # fmt: skip
        if field.dtype == "bool":
            flat = b.cast(flat, ir.DataType.UINT8, "gdu_sample_bytes", [None, field.elements])
        parts.append(emit_input_signal(b, flat, encoding_of(code, field.stored)))
    if len(parts) == 1:
        return parts[0]
    columns = sum(memory.widths(code)[2:])
    return b.op("Concat", *parts, name="gdu_samples", shape=[None, columns], axis=1)


def emit_memory_recorder(
    b: Builder,
    thetas: Sequence[ir.Value],
    memory: Memory,
    code: DigitCode,
    *,
    signal: ir.Value,
    batch: ir.Value,
    first: ir.Value,
    start: float,
    gain: float,
) -> ir.Value:
    """z_i = z0 + γ·(B_j + v·(c_j + ⟨M_j, s(x_i)⟩)), j = a + i; z0 beyond the last slot.

    Args:
        b: the builder.
        thetas: θ, one per bucket.
        memory: what lies where.
        code: the digit code.
        signal: FLOAT [batch, Σ digits].
        batch: b, the samples of this batch: INT64 [1].
        first: a: INT64 [1].
        start: z0, in every column.
        gain: γ.

    Returns:
        FLOAT [batch, C]; [batch, 1] for one logit.
    """
    columns = max(memory.labels, 1)
    parts = [
        emit_window(b, theta, bucket, memory, code, signal, batch, first, touched)
        for theta, bucket, touched in zip(
            thetas, memory.buckets, emit_touched(b, memory, batch, first), strict=True
        )
    ]
    left = emit_between(b, b.op("Sub", b.ints([memory.slots], "gdu_n"), first, name="gdu_free",
                                dtype=INT64, shape=[1]), batch, "gdu_recorded")  # fmt: skip
    beyond = b.op("Sub", batch, left, name="gdu_beyond", dtype=INT64, shape=[1])
    size = b.op("Concat", beyond, b.ints([columns], "gdu_columns"), name="gdu_beyond_shape",
                dtype=INT64, shape=[2], axis=0)  # fmt: skip
    masked = b.op("Expand", b.float(0.0, "gdu_masked_0"), size, name="gdu_masked",
                  shape=[None, columns])  # fmt: skip
    rows = b.op("Concat", *parts, masked, name="gdu_rows", shape=[None, columns], axis=0)
    quiet = b.op("Mul", rows, b.float(gain, "gdu_gain"), name="gdu_gain_rows",
                 shape=[None, columns])  # fmt: skip
    return b.op("Add", quiet, b.float(start, "gdu_z0"), name="gdu_z", shape=[None, columns])


def emit_touched(
    b: Builder, memory: Memory, batch: ir.Value, first: ir.Value
) -> Sequence[ir.Value | None]:
    """Whether a batch uses a slot of each bucket, BOOL [1]; None where there is only one bucket.

    Compared for all of them at once, and the window found in the branch that needs it: what a
    bucket costs that is not touched is paid in every step (measured: 250 µs in torch before).
    """
    if len(memory.buckets) == 1:
        return [None]
    count = len(memory.buckets)
    starts = b.ints([bucket.first for bucket in memory.buckets], "gdu_bucket_starts")
    # The last one has no end: where an earlier slot stayed empty none is left in the end, and the
    # loss still needs some θ.
    later = [bucket.first for bucket in memory.buckets[1:]]
    ends = b.ints([*later, np.iinfo(np.int64).max], "gdu_bucket_ends")
    last = b.op("Add", first, batch, name="gdu_batch_end", dtype=INT64, shape=[1])
    reached = b.op("Greater", last, starts, name="gdu_reaches", dtype=BOOL, shape=[count])
    ahead = b.op("Less", first, ends, name="gdu_not_past", dtype=BOOL, shape=[count])
    both = b.op("And", reached, ahead, name="gdu_touches", dtype=BOOL, shape=[count])
    return b.multi_op("Split", both, b.ints([1] * count, "gdu_one_each"), axis=0,
                      outputs=[("gdu_touched", BOOL, [1])] * count)  # fmt: skip


def emit_window(
    b: Builder, theta: ir.Value, bucket: MemoryBucket, memory: Memory, code: DigitCode,
    signal: ir.Value, batch: ir.Value, first: ir.Value, touched: ir.Value | None,
) -> ir.Value:  # fmt: skip
    """The rows of z that a bucket's slots answer, without γ: FLOAT [slots in the window, C].

    With several buckets an If leaves out those that the batch does not touch: their θ gets no
    gradient at all, so that a step costs what one bucket costs.  A slot shares its tensor, and so
    its history, with its own calibrator: a bucket that is skipped loses nothing.
    """
    inner = Builder(b.names, b.origin)
    offset = inner.op("Sub", first, inner.ints([bucket.first], "gdu_bucket_first"),
                      name="gdu_offset", dtype=INT64, shape=[1])  # fmt: skip
    slots = inner.ints([bucket.slots], "gdu_bucket_slots")
    begin = emit_between(inner, offset, slots, "gdu_begin")
    after = inner.op("Add", offset, batch, name="gdu_after", dtype=INT64, shape=[1])
    end = emit_between(inner, after, slots, "gdu_end")
    rows = emit_rows(inner, theta, memory, code, signal, (begin, end), offset)
    if touched is None:
        b.nodes += inner.nodes
        return rows
    then = inner.branch([rows], "gdu_touched")
    columns = max(memory.labels, 1)
    nothing = inner.constant(np.zeros((0, columns), dtype=np.float32), "gdu_no_rows")
    otherwise = inner.branch([nothing], "gdu_untouched")
    return b.multi_op("If", touched, outputs=[("gdu_bucket_rows", FLOAT, [None, columns])],
                      then_branch=then, else_branch=otherwise)[0]  # fmt: skip


def emit_rows(
    b: Builder, theta: ir.Value, memory: Memory, code: DigitCode, signal: ir.Value,
    window: tuple[ir.Value, ir.Value], offset: ir.Value,
) -> ir.Value:  # fmt: skip
    """B_j + v·(c_j + ⟨M_j, s(x_i)⟩) for the slots of a window, v = e_0: FLOAT [slots, C]."""
    begin, end = window
    widths = memory.widths(code)
    digits, labels = sum(widths[2:]), memory.labels
    axis = b.ints([0], "gdu_rows_axis")
    rows = b.op("Slice", theta, begin, end, axis, name="gdu_slots_used", dtype=theta.dtype or FLOAT,
                shape=[None, sum(widths)])  # fmt: skip
    rows = b.cast(rows, FLOAT, "gdu_slots_float", [None, sum(widths)])
    here = [b.op("Sub", limit, offset, name=f"gdu_samples_{what}", dtype=INT64, shape=[1])
            for what, limit in (("begin", begin), ("end", end))]  # fmt: skip
    samples = b.op("Slice", signal, *here, axis, name="gdu_samples_used", shape=[None, digits])
    sizes = [size for size in (1, labels, digits) if size]
    parts = b.multi_op(
        "Split", rows, b.ints(sizes, "gdu_parts"), axis=1,
        outputs=[("gdu_slot_part", FLOAT, [None, size]) for size in sizes],
    )  # fmt: skip
    c, m = parts[0], parts[-1]
    unit = b.op("Mul", c, b.float(calibrator_signal(code), "gdu_s_c"), name="gdu_c_s",
                shape=[None, 1])  # fmt: skip
    product = b.op("Mul", m, samples, name="gdu_M_s", shape=[None, digits])
    inner = b.op("ReduceSum", product, b.ints([1], "gdu_digits_axis"), name="gdu_Q_row",
                 shape=[None, 1], keepdims=1)  # fmt: skip
    total = b.op("Add", unit, inner, name="gdu_c_Q", shape=[None, 1])
    if not labels:
        return total
    e0 = np.zeros((1, labels), dtype=np.float32)
    e0[0, 0] = 1
    column = b.op("Mul", b.constant(e0, "gdu_e0"), total, name="gdu_column", shape=[None, labels])
    return b.op("Add", parts[1], column, name="gdu_slot_rows", shape=[None, labels])


def emit_between(b: Builder, value: ir.Value, most: ir.Value, name: str) -> ir.Value:
    """Clip to 0 … most: INT64 [1]."""
    least = b.op("Max", value, b.ints([0], f"{name}_0"), name=f"{name}_low", dtype=INT64, shape=[1])
    return b.op("Min", least, most, name=name, dtype=INT64, shape=[1])


def emit_memory(
    b: Builder, thetas: Sequence[ir.Value], memory: Memory, code: DigitCode, gain: float
) -> tuple[list[ir.Value], ir.Value, ir.Value]:
    """The training set read back: x_j = bits(M_j/c_j), y_j = ArgMax B_j (or [c_j > 0]).

    Bucket by bucket, so that the temporary tensors are as large as a bucket.

    Returns:
        One value per field, [n, *shape] of its dtype; the labels, INT64 [n]; the tie.
    """
    fields: list[list[ir.Value]] = [[] for _ in memory.fields]
    labels: list[ir.Value] = []
    tie: ir.Value | None = None
    for theta, bucket in zip(thetas, memory.buckets, strict=True):
        theta = b.cast(theta, FLOAT, "gdu_theta_float", theta.shape or ())
        parts, label = emit_bucket(b, theta, bucket, memory, code, gain)
        for found, part in zip(fields, parts, strict=True):
            found.append(part)
        labels.append(label)
        more = emit_tie(b, theta)
        tie = more if tie is None else b.op("Add", tie, more, name="gdu_ties", shape=[])
    assert tie is not None
    samples = [
        emit_field(b, parts, field, memory.slots)
        for parts, field in zip(fields, memory.fields, strict=True)
    ]
    return samples, joined(b, labels, "gdu_memory_labels", [memory.slots]), tie


def emit_bucket(
    b: Builder, theta: ir.Value, bucket: MemoryBucket, memory: Memory, code: DigitCode, gain: float
) -> tuple[list[ir.Value], ir.Value]:
    """One bucket's elements, [slots·elements, 1] per field, and labels, INT64 [slots]."""
    slots, widths = bucket.slots, memory.widths(code)
    sizes = [size for size in widths if size]
    parts = list(b.multi_op(
        "Split", theta, b.ints(sizes, "gdu_widths"), axis=1,
        outputs=[("gdu_part", FLOAT, [slots, size]) for size in sizes],
    ))  # fmt: skip
    c = parts.pop(0)
    label = emit_label(b, parts.pop(0) if memory.labels else None, c, slots)
    inverse = b.float(1.0 / gain, "gdu_1_gain")
    scaled = b.op("Mul", c, inverse, name="gdu_c", shape=[slots, 1])
    unset = b.op("Equal", scaled, b.float(0.0, "gdu_c_0"), name="gdu_c_unset", dtype=BOOL,
                 shape=[slots, 1])  # fmt: skip
    safe = b.op("Where", unset, b.float(1.0, "gdu_c_1"), scaled, name="gdu_divisor",
                shape=[slots, 1])  # fmt: skip
    values = []
    for part, field in zip(parts, memory.fields, strict=True):
        encoding = encoding_of(code, field.stored)
        width, rows = field.elements * encoding.digits, slots * field.elements
        m = b.op("Mul", part, inverse, name="gdu_M_1", shape=[slots, width])
        nearest = emit_quantize(b, m, safe, encoding.code)
        digits = b.op("Reshape", nearest, b.ints([rows, encoding.digits], "gdu_element_rows"),
                      name="gdu_digits", shape=[rows, encoding.digits])  # fmt: skip
        values.append(emit_values(b, digits, encoding, encoding.code.centre))
    return values, label


def emit_label(b: Builder, labels: ir.Value | None, c: ir.Value, slots: int) -> ir.Value:
    """ArgMax B, where −∂L/∂z is largest; one logit: c > 0, as κ < 0 where y = 1.  INT64 [slots]."""
    if labels is not None:
        return b.op("ArgMax", labels, name="gdu_label", dtype=INT64, shape=[slots], axis=1,
                    keepdims=0)  # fmt: skip
    flat = b.op("Reshape", c, b.ints([slots], "gdu_slots_1"), name="gdu_c_flat", shape=[slots])
    positive = b.op("Greater", flat, b.float(0.0, "gdu_label_0"), name="gdu_label_1", dtype=BOOL,
                    shape=[slots])  # fmt: skip
    return b.cast(positive, INT64, "gdu_label", [slots])


def emit_field(b: Builder, parts: Sequence[ir.Value], field: Field, slots: int) -> ir.Value:
    """The samples of one input, [n, *shape] of its dtype."""
    flat = joined(b, parts, "gdu_memory_elements", [slots * field.elements, 1])
    shape = [slots, *field.shape]
    dtype = flat.dtype
    assert dtype is not None
    value = b.op("Reshape", flat, b.ints(shape, "gdu_memory_shape"), name="gdu_memory", dtype=dtype,
                 shape=shape)  # fmt: skip
    return b.cast(value, BOOL, "gdu_memory_bool", shape) if field.dtype == "bool" else value


def joined(b: Builder, parts: Sequence[ir.Value], name: str, shape: list[int]) -> ir.Value:
    """The parts of all buckets as one value."""
    if len(parts) == 1:
        return parts[0]
    dtype = parts[0].dtype
    assert dtype is not None
    return b.op("Concat", *parts, name=name, dtype=dtype, shape=shape, axis=0)


def scalar(b: Builder, number: int, name: str) -> ir.Value:
    """An INT64 scalar constant."""
    return b.constant(np.array(number, dtype=np.int64), name)
