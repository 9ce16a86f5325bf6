"""bits() in ONNX operators: digits → the elements of a weight, in every number format (THEORY §2).

Every digit leaves the float tape by an integer Cast, so that no derivative runs through the base.
A float's digits are taken apart as floats, with Floor, before that: a framework whose casts keep
the tape has no derivative for integer Div and Mod.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from gdu_compile.builder import BOOL, FLOAT, INT16, INT32, INT64, UINT16, Builder
from gdu_compile.emit_code import look_up
from gdu_compile.encoding import Encoding
from gdu_compile.number_formats import FloatFormat, IntegerFormat

MANY_ROWS = 1 << 18
"""From here on the two tables of 65 536 entries (512 KB) are small beside θ."""


def emit_values(b: Builder, digits: ir.Value, encoding: Encoding, centre: int = 0) -> ir.Value:
    """Digits less ``centre``, FLOAT [rows, digits] → [rows, 1] in the format's dtype, exact."""
    rows = rows_of(digits)
    if encoding.format.name == "float32" and encoding.code.bits == 16 and rows >= MANY_ROWS:
        assert isinstance(encoding.format, FloatFormat)
        return emit_halves(b, digits, encoding.format, centre)
    if centre:
        digits = b.op("Add", digits, b.float(centre, "gdu_centre"), name="gdu_q",
                      shape=[rows, encoding.digits])  # fmt: skip
    if isinstance(encoding.format, IntegerFormat):
        return emit_integer(b, digits, encoding, encoding.format)
    return emit_float(b, digits, encoding, encoding.format)


def emit_float(b: Builder, digits: ir.Value, encoding: Encoding, kind: FloatFormat) -> ir.Value:
    """ŵ = T[sign, e]·([e > 0] + m·2^−f): every product and sum is exact; ±∞ comes from T.

    m and the index [sign, e] are sums of digits; the digit that lies across
    their border is taken apart.
    """
    work, border, rows = ir.DataType.from_numpy(kind.work), kind.mantissa, rows_of(digits)
    k, n, column = encoding.code.bits, encoding.digits, [rows, 1]
    across = border // k  # the digit that holds the border
    q = b.cast(digits, work, "gdu_q_work", [rows, n])
    low, middle, high = split_columns(b, q, [across, 1, n - across - 1])
    assert middle is not None
    lower, upper = take_apart(b, middle, border - k * across, column)
    m = add(b, [weighted(b, low, [2.0 ** (k * i) for i in range(across)]),
                weighted(b, lower, [2.0 ** (k * across)])], "gdu_mantissa", column)  # fmt: skip
    index = add(b, [upper, weighted(b, high, [2.0 ** (k * i - border)
                                              for i in range(across + 1, n)])],
                "gdu_sign_exponent", column)  # fmt: skip
    whole = b.cast(m, INT32 if kind.mantissa < 31 else INT64, "gdu_mantissa_bits", column)
    exact = b.cast(whole, work, "gdu_mantissa_float", column)
    fraction = b.op("Mul", exact, b.float(2.0**-border, "gdu_ulp", work), name="gdu_fraction",
                    dtype=work, shape=column)  # fmt: skip
    power = look_up(b, kind.powers(), index, "gdu_power", column)
    implicit = look_up(b, kind.implicit_bits(), index, "gdu_implicit", column)
    significand = b.op("Add", implicit, fraction, name="gdu_significand", dtype=work, shape=column)
    value = b.op("Mul", power, significand, name="gdu_value", dtype=work, shape=column)
    return b.cast(value, ir.DataType.from_numpy(kind.dtype), "gdu_value_cast", column)


def emit_halves(b: Builder, digits: ir.Value, kind: FloatFormat, centre: int) -> ir.Value:
    """float32 from two digits of 16 bits: ŵ = P[hi]·(H[hi] + lo·2^−23), as exact as ``emit_float``.

    P is ``powers`` and H the implicit bit and the upper bits of the mantissa, both by the whole
    upper digit: fewer and smaller tensors than taking that digit apart.  An index below 0 counts
    from the end of a table, and a 16-bit integer is always inside it.
    """
    rows = rows_of(digits)
    column = [rows, 1]
    word = b.cast(digits, INT16 if centre else UINT16, "gdu_halves", [rows, 2])
    low, high = split_columns(b, word, [1, 1])
    assert low is not None and high is not None
    upper, top = np.arange(65536), kind.mantissa - 16
    powers, implicit = kind.powers()[upper >> top], kind.implicit_bits()[upper >> top]
    # Whole, because lo has lost its centre too: the sum below is the significand, without rounding.
    start = implicit + (upper % 2**top * 65536 + centre) * np.float32(2.0**-kind.mantissa)
    index = b.cast(high, INT32, "gdu_upper_index", column)
    power, begin = (
        b.op("Gather", b.constant(np.roll(table, -centre).astype(np.float32), f"{name}_table"),
             index, name=name, shape=column, axis=0)
        for name, table in (("gdu_power", powers), ("gdu_begin", start))
    )  # fmt: skip
    whole = b.cast(low, FLOAT, "gdu_lower_float", column)
    ulp = b.float(2.0**-kind.mantissa, "gdu_ulp")
    lower = b.op("Mul", whole, ulp, name="gdu_lower", shape=column)
    significand = b.op("Add", begin, lower, name="gdu_significand", shape=column)
    return b.op("Mul", power, significand, name="gdu_value", shape=column)


def emit_integer(b: Builder, digits: ir.Value, encoding: Encoding, kind: IntegerFormat) -> ir.Value:
    """Σ q_i·2^(ki), the highest digit read as two's complement.

    64 bits are summed in two halves: onnxruntime's ReduceSum of INT64 adds in
    double precision (measured: the last bits were wrong beyond 2^53).
    """
    rows, n, k = rows_of(digits), encoding.digits, encoding.code.bits
    work = INT32 if kind.bits < 32 else INT64
    q = b.cast(b.cast(digits, INT32, "gdu_q_int", [rows, n]), work, "gdu_q_work", [rows, n])
    half = 32 // k if kind.bits > 32 else 0
    low, middle, top = split_columns(b, q, [half, n - half - 1, 1])
    assert top is not None
    upper = add(b, [weighted(b, middle, [2.0 ** (k * i) for i in range(n - half - 1)]),
                    emit_top(b, top, encoding, kind, 2.0 ** (k * (n - half - 1)))],
                "gdu_upper", [rows, 1])  # fmt: skip
    value = add(b, [weighted(b, low, [2.0 ** (k * i) for i in range(half)]),
                    weighted(b, upper, [2.0 ** (k * half)])], "gdu_integer", [rows, 1])  # fmt: skip
    return b.cast(value, ir.DataType.from_numpy(kind.dtype), "gdu_value_cast", [rows, 1])


def emit_top(
    b: Builder, top: ir.Value, encoding: Encoding, kind: IntegerFormat, weight: float
) -> ir.Value:
    """The highest digit times its weight; its own highest bit is the sign, if there is one."""
    shape, dtype, size = [rows_of(top), 1], top.dtype, 2 ** encoding.widths[-1]
    assert dtype is not None
    if kind.signed:
        border = b.constant(np.array(size // 2, dtype=dtype.numpy()), "gdu_half")
        whole = b.constant(np.array(size, dtype=dtype.numpy()), "gdu_whole")
        negative = b.op("GreaterOrEqual", top, border, name="gdu_negative", dtype=BOOL,
                        shape=shape)  # fmt: skip
        below = b.op("Sub", top, whole, name="gdu_below_0", dtype=dtype, shape=shape)
        top = b.op("Where", negative, below, top, name="gdu_signed", dtype=dtype, shape=shape)
    value = weighted(b, top, [weight])
    assert value is not None
    return value


def rows_of(value: ir.Value) -> int:
    """The fixed number of rows."""
    assert value.shape is not None
    rows = value.shape[0]
    assert isinstance(rows, int)
    return rows


def split_columns(b: Builder, q: ir.Value, sizes: Sequence[int]) -> list[ir.Value | None]:
    """The columns of q [rows, n] in parts of these sizes; None for an empty part."""
    present = [size for size in sizes if size]
    if len(present) == 1:
        return [q if size else None for size in sizes]
    rows, dtype = rows_of(q), q.dtype
    assert dtype is not None
    parts = iter(
        b.multi_op("Split", q, b.ints(present, "gdu_columns"), axis=1,
                   outputs=[("gdu_part", dtype, [rows, size]) for size in present])
    )  # fmt: skip
    return [next(parts) if size else None for size in sizes]


def take_apart(
    b: Builder, q: ir.Value, bits: int, column: list[int]
) -> tuple[ir.Value | None, ir.Value]:
    """(the lowest ``bits`` bits of a digit, None for 0 bits; what is above them)."""
    if not bits:
        return None, q
    dtype = q.dtype
    assert dtype is not None
    parts = b.op("Mul", q, b.float(2.0**-bits, "gdu_1_border", dtype), name="gdu_parts",
                 dtype=dtype, shape=column)  # fmt: skip
    upper = b.op("Floor", parts, name="gdu_upper", dtype=dtype, shape=column)
    # A fraction: weighted() multiplies it by a power of two more.
    fraction = b.op("Sub", parts, upper, name="gdu_lower_part", dtype=dtype, shape=column)
    lower = b.op("Mul", fraction, b.float(2.0**bits, "gdu_border", dtype), name="gdu_lower",
                 dtype=dtype, shape=column)  # fmt: skip
    return lower, upper


def weighted(b: Builder, q: ir.Value | None, weights: Sequence[float]) -> ir.Value | None:
    """Σ_i q_i·weights_i, [rows, 1]; exact, because it stays within the integers of its dtype."""
    if q is None or list(weights) == [1.0]:
        return q
    dtype, rows = q.dtype, rows_of(q)
    assert dtype is not None
    row = b.constant(np.array([weights], dtype=dtype.numpy()), "gdu_weights")
    terms = b.op("Mul", q, row, name="gdu_terms", dtype=dtype, shape=[rows, len(weights)])
    if len(weights) == 1:
        return terms
    return b.op("ReduceSum", terms, b.ints([1], "gdu_axis_1"), name="gdu_sum_of_terms", dtype=dtype,
                shape=[rows, 1], keepdims=1)  # fmt: skip


def add(b: Builder, parts: Sequence[ir.Value | None], name: str, column: list[int]) -> ir.Value:
    """The sum of those parts that are there."""
    first, *others = [part for part in parts if part is not None]
    for other in others:
        dtype = first.dtype
        assert dtype is not None
        first = b.op("Add", first, other, name=name, dtype=dtype, shape=column)
    return first
