"""The digit codes in ONNX operators: units → digits → signals, and ratios → digits (THEORY §2).

The same arithmetic as ``digits.py`` and ``encoding.py``; tests compare every bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from gdu_compile.builder import BOOL, FLOAT, INT32, INT64, Builder, Dims
from gdu_compile.digits import Array, DigitCode, FloatLikeCode, LinearCode, PowerOfTwoCode
from gdu_compile.encoding import Encoding


def emit_zero(b: Builder, shape: ir.Value) -> ir.Value:
    """0·(the first of the logits' sizes), INT64 [1]: known only once there is an input.

    onnxruntime folds constants at session load in both branches of an If, the
    one that is never taken included; with this among its inputs the recorder
    is none (measured: a third of the load time of a 100 MB network).
    """
    batch = b.op("Gather", shape, b.ints([0], "gdu_batch_axis"), name="gdu_batch_size",
                 dtype=INT64, shape=[1], axis=0)  # fmt: skip
    return b.op("Mul", batch, b.ints([0], "gdu_times_0"), name="gdu_0", dtype=INT64, shape=[1])


def emit_signal(
    b: Builder, units: Sequence[ir.Value], encoding: Encoding, rows: int,
    zero: ir.Value | None = None,
) -> ir.Value:  # fmt: skip
    """The signals of a bucket with the calibrator's 1 in row 0: FLOAT [rows + 1, digits], exact.

    The linear code gives s/2, the calibrator's ½ included: that leaves θ/c = s
    as it is, and saves one pass over a tensor as large as θ.

    Args:
        b: the builder.
        units: the signal initializers of the bucket, in order.
        encoding: what they encode.
        rows: their elements together.
        zero: of ``emit_zero``; None leaves the signal a constant.
    """
    shape = [rows + 1, encoding.units_per_element]
    first = b.constant(encoding.calibrator_units(), "gdu_units_1")
    dtype = ir.DataType.from_numpy(encoding.unit_dtype)
    if zero is not None:
        first = b.op("Gather", first, zero, name="gdu_units_row_0", dtype=dtype,
                     shape=[1, encoding.units_per_element], axis=0)  # fmt: skip
    joined = b.op("Concat", first, *units, name="gdu_units", dtype=dtype, shape=shape, axis=0)
    q = emit_cut(b, b.cast(joined, FLOAT, "gdu_unit_values", shape), encoding, rows + 1)
    return emit_code(b, q, encoding.code)


def emit_code(b: Builder, q: ir.Value, code: DigitCode) -> ir.Value:
    """Digits → signals, FLOAT of any shape, exact; the linear code gives s/2.

    ``calibrator_signal`` is what a calibrator's digit gives.
    """
    full = q.shape
    assert full is not None
    if isinstance(code, LinearCode):
        return b.op("Sub", q, b.float(code.top / 2, "gdu_M_2"), name="gdu_s_2", shape=full)
    if isinstance(code, PowerOfTwoCode):
        return look_up(b, code.powers(), q, "gdu_s", full)
    assert isinstance(code, FloatLikeCode)
    upper = b.op("Mul", q, b.float(2.0**-10, "gdu_1_1024"), name="gdu_q_1024", shape=full)
    index = b.op("Floor", upper, name="gdu_s_exponent", shape=full)
    fraction = b.op("Sub", upper, index, name="gdu_s_fraction", shape=full)
    one = b.op("Add", fraction, b.float(1.0, "gdu_one"), name="gdu_s_significand", shape=full)
    power = look_up(b, code.powers() * np.float32(1024), index, "gdu_s_power", full)
    return b.op("Mul", power, one, name="gdu_s", shape=full)


def calibrator_signal(code: DigitCode) -> float:
    """The calibrator's signal in the graph: ½ where ``emit_code`` gives s/2, else 1.

    Example:
        >>> from gdu_compile.digits import CODES
        >>> calibrator_signal(CODES["linear16"]), calibrator_signal(CODES["pow2"])
        (0.5, 1.0)
    """
    return 0.5 if isinstance(code, LinearCode) else 1.0


def emit_cut(b: Builder, units: ir.Value, encoding: Encoding, rows: int | None) -> ir.Value:
    """Units as FLOAT [rows, units] → digits as FLOAT [rows, digits], exact.

    Digit i begins at bit r of unit j.  It is Floor(x/2^r) mod 2^width, where x
    is unit j, with the next unit on top of it where a digit crosses into that.
    """
    if encoding.digits_are_units:
        return units
    shape, last = [rows, encoding.digits], encoding.units_per_element - 1
    starts = [encoding.code.bits * i for i in range(encoding.digits)]
    places = [start // encoding.unit_bits for start in starts]
    shifts = [start % encoding.unit_bits for start in starts]
    x = b.op("Gather", units, b.ints(places, "gdu_places"), name="gdu_unit_of_digit", shape=shape,
             axis=1)  # fmt: skip
    crossing = zip(shifts, encoding.widths, strict=True)
    if any(shift + width > encoding.unit_bits for shift, width in crossing):
        following = b.ints([min(place + 1, last) for place in places], "gdu_next_places")
        top = b.op("Gather", units, following, name="gdu_next_unit", shape=shape, axis=1)
        size = b.float(2.0**encoding.unit_bits, "gdu_unit_size")
        x = b.op("Add", x, b.op("Mul", top, size, name="gdu_next_value", shape=shape),
                 name="gdu_two_units", shape=shape)  # fmt: skip
    lowered = b.op("Mul", x, row(b, [2.0**-shift for shift in shifts], "gdu_shifts"),
                   name="gdu_lowered", shape=shape)  # fmt: skip
    whole = b.op("Floor", lowered, name="gdu_whole", shape=shape)
    sizes = [2.0**width for width in encoding.widths]
    above = b.op("Mul", whole, row(b, [1 / size for size in sizes], "gdu_1_size"),
                 name="gdu_above", shape=shape)  # fmt: skip
    rest = b.op("Mul", b.op("Floor", above, name="gdu_above_whole", shape=shape),
                row(b, sizes, "gdu_size"), name="gdu_rest", shape=shape)  # fmt: skip
    return b.op("Sub", whole, rest, name="gdu_q", shape=shape)


def emit_quantize(b: Builder, theta: ir.Value, c: ir.Value, code: DigitCode) -> ir.Value:
    """The digits next to the ratios θ/c less ``code.centre``, as FLOAT of θ's shape; derivative 0.

    Args:
        b: the builder.
        theta: θ/γ, FLOAT [rows, digits].
        c: c/γ, FLOAT [1, digits] or [rows, 1], nowhere 0: a calibrator for each column or each row.
        code: the digit code.
    """
    assert theta.shape is not None and c.shape is not None
    shape = theta.shape
    if isinstance(code, LinearCode):
        # Halving is exact, and here it costs a row, not a whole tensor.
        double = b.op("Add", c, c, name="gdu_2c", shape=c.shape)
        half = b.op("Div", theta, double, name="gdu_r_2", shape=shape)
        whole = "Floor" if code.bits > 1 else "Ceil"
        below = b.op(whole, half, name="gdu_below", shape=shape)
        return clip(b, below, -code.centre, code.top - code.centre, "gdu_q_hat")
    ratio = b.op("Div", theta, c, name="gdu_r", shape=shape)
    absolute = b.op("Abs", ratio, name="gdu_r_abs", shape=shape)
    # Clipped, so that the logarithm and its derivative are finite for every θ.
    size = clip(b, absolute, 1.0, 2.0 ** math.ceil(math.log2(code.largest_signal)), "gdu_r_size")
    log2 = b.op("Mul", b.op("Log", size, name="gdu_r_log", shape=shape),
                b.float(1 / math.log(2), "gdu_1_ln2"), name="gdu_r_log2", shape=shape)  # fmt: skip
    negative = b.op("Less", ratio, b.float(0.0, "gdu_r_0"), name="gdu_r_negative", dtype=BOOL,
                    shape=shape)  # fmt: skip
    sign = b.op("Mul", b.cast(negative, FLOAT, "gdu_r_sign", shape),
                b.float(2.0 ** (code.bits - 1), "gdu_sign_bit"), name="gdu_q_sign",
                shape=shape)  # fmt: skip
    if isinstance(code, PowerOfTwoCode):
        rest = b.op("Round", log2, name="gdu_e", shape=shape)
    else:
        assert isinstance(code, FloatLikeCode)
        rest = emit_float_digits(b, size, log2, code)
    q = b.op("Add", sign, rest, name="gdu_q_sum_of_parts", shape=shape)
    return clip(b, q, 0.0, code.top, "gdu_q_hat")


def emit_float_digits(b: Builder, size: ir.Value, log2: ir.Value, code: FloatLikeCode) -> ir.Value:
    """1024·e + Round(1024·|r|/2^e) − 1024, e = Floor(log2 |r|); 2^e from a table, never computed.

    Right even where log2 misses a power of two by one (``FloatLikeCode.quantize``).
    """
    shape = size.shape
    assert shape is not None
    e = clip(b, b.op("Floor", log2, name="gdu_log2_floor", shape=shape), 0.0, 31.0, "gdu_e")
    inverse = look_up(b, (1 / code.powers()).astype(np.float32), e, "gdu_1024_2e", shape)
    mantissa = b.op("Round", b.op("Mul", size, inverse, name="gdu_scaled_r", shape=shape),
                    name="gdu_1024_m", shape=shape)  # fmt: skip
    # 1024·(e − 1): one operation for both constants, exact.
    before = b.op("Sub", e, b.float(1.0, "gdu_e_1"), name="gdu_e_minus_1", shape=shape)
    exponent = b.op("Mul", before, b.float(1024.0, "gdu_1024"), name="gdu_1024_e", shape=shape)
    return b.op("Add", exponent, mantissa, name="gdu_e_m", shape=shape)


def clip(b: Builder, value: ir.Value, low: float, high: float, name: str) -> ir.Value:
    """Clip to [low, high]."""
    return b.op("Clip", value, b.float(low, f"{name}_min"), b.float(high, f"{name}_max"),
                name=name, shape=value.shape)  # fmt: skip


def look_up(
    b: Builder, table: Array, index: ir.Value, name: str, shape: Dims, first: int = 0
) -> ir.Value:
    """table[index − first], the index a whole number in float, ``first`` ≤ 0; NaN reads an entry.

    An index below 0 counts from the end, so the part of the table that belongs to it goes there.
    """
    whole = b.cast(index, INT32, f"{name}_index", shape)
    limits = [b.constant(np.array(limit, dtype=np.int32), f"{name}_{what}")
              for limit, what in ((first, "first"), (first + len(table) - 1, "last"))]  # fmt: skip
    inside = b.op("Clip", whole, *limits, name=f"{name}_entry", dtype=INT32, shape=shape)
    entries = b.constant(np.roll(table, first), f"{name}_table")
    return b.op("Gather", entries, inside, name=name, shape=shape, axis=0,
                dtype=ir.DataType.from_numpy(table.dtype))  # fmt: skip


def row(b: Builder, numbers: Sequence[float], name: str) -> ir.Value:
    """A FLOAT constant [1, n]."""
    return b.constant(np.array([numbers], dtype=np.float32), name)
