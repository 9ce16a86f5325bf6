"""The digits of the network's inputs in ONNX operators: elements → units → signals (THEORY §4).

What ``encoding.py`` reads off the bytes of an array, computed from its numbers: a graph of opset 18
cannot see the bits of a float.  Every step but one is exact, also where a runtime contracts a
product and a sum into one operation: the logarithm is an estimate, and its error is made good.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from gdu_compile.builder import BOOL, FLOAT, Builder
from gdu_compile.emit_code import emit_code, emit_cut, look_up
from gdu_compile.encoding import Encoding
from gdu_compile.number_formats import FloatFormat, IntegerFormat


def emit_input_signal(b: Builder, x: ir.Value, encoding: Encoding) -> ir.Value:
    """The signals of an input, element by element, the lowest digit first.

    Equal to ``encoding.code.signal(encoding.cut(encoding.units(x)))``, of which
    the linear code gives the half, as in ``emit_code``; what a calibrator has
    to be multiplied by is ``calibrator_signal``.

    Args:
        b: the builder.
        x: [rows, elements] in the dtype of the encoding's format, or BOOL for uint8;
            ±0, ±∞ and subnormals included, NaN gives any signals; the number of elements is fixed.
        encoding: how its elements become digits.

    Returns:
        FLOAT [rows, elements·digits], exact.
    """
    assert x.shape is not None
    rows, elements = x.shape[0], x.shape[1]
    assert isinstance(elements, int)
    if encoding.digits == 1:
        return emit_code(b, emit_columns(b, x, encoding)[0], encoding.code)
    width = elements * encoding.digits
    count = rows * elements if isinstance(rows, int) else None
    # Flat: onnxruntime takes 10 times as long where the last axis is short (measured).
    flat = b.op("Reshape", x, b.ints([-1], "gdu_flat"), name="gdu_x_flat", dtype=x.dtype or FLOAT,
                shape=[count])  # fmt: skip
    wide, shape = b.ints([-1, width], "gdu_samples"), [rows, width]
    if encoding.digits_are_units:
        # The code first: what joins the columns is then the only one to pass over all of them.
        columns = [emit_code(b, q, encoding.code) for q in emit_columns(b, flat, encoding)]
        return b.op("Reshape", join(b, columns), wide, name="gdu_x_signal", shape=shape)
    q = emit_cut(b, emit_units(b, flat, encoding), encoding, count)
    q = b.op("Reshape", q, wide, name="gdu_x_q", shape=shape)
    return emit_code(b, q, encoding.code)


def emit_units(b: Builder, x: ir.Value, encoding: Encoding) -> ir.Value:
    """Elements [n] → units, FLOAT [n, units]: ``encoding.units`` of them, exact."""
    return join(b, emit_columns(b, x, encoding))


def join(b: Builder, columns: Sequence[ir.Value]) -> ir.Value:
    """FLOAT [n] each → [n, columns]."""
    n, last = rows_of(columns[0]), b.ints([-1, 1], "gdu_column")
    upright = [b.op("Reshape", column, last, name="gdu_x_column", shape=[n, 1])
               for column in columns]  # fmt: skip
    if len(upright) == 1:
        return upright[0]
    return b.op("Concat", *upright, name="gdu_x_columns", shape=[n, len(upright)], axis=1)


def emit_columns(b: Builder, x: ir.Value, encoding: Encoding) -> list[ir.Value]:
    """The units of all elements, each FLOAT of the shape of x, the lowest first."""
    if isinstance(encoding.format, IntegerFormat):
        return emit_integer_units(b, x, encoding, encoding.format)
    units = emit_float_units(b, x, encoding, encoding.format)
    return [b.cast(unit, FLOAT, "gdu_x_unit_float", x.shape or []) for unit in units]


def emit_integer_units(
    b: Builder, x: ir.Value, encoding: Encoding, kind: IntegerFormat
) -> list[ir.Value]:
    """Each unit is masked out where it stands, and only then moved: few bits, exact in float32.

    The sign is flipped first: the highest unit is then 2^(its bits − 1) more than
    its two's complement, and what was to be taken modulo is only added.
    """
    bits, units = encoding.unit_bits, []
    if kind.signed:
        sign = np.array(-(2 ** (kind.bits - 1)), dtype=kind.dtype)
        x = pointwise(b, "BitwiseXor", x, b.constant(sign, "gdu_sign_bit"), name="gdu_x_flipped")
    for start in range(0, kind.bits, bits):
        unit = x
        if bits < kind.bits:
            mask = np.array((2**bits - 1) << start, dtype=np.uint64).astype(kind.dtype)
            unit = pointwise(b, "BitwiseAnd", x, b.constant(mask, "gdu_mask"), name="gdu_x_masked")
        unit = b.cast(unit, FLOAT, "gdu_x_float", x.shape or [])
        units.append(times(b, unit, 2.0**-start, "gdu_x_unit") if start else unit)
    if kind.signed:
        half = b.float(2.0 ** (bits - 1), "gdu_half_unit")
        units[-1] = pointwise(b, "Add", units[-1], half, name="gdu_x_highest")
    return units


def emit_float_units(
    b: Builder, x: ir.Value, encoding: Encoding, kind: FloatFormat
) -> list[ir.Value]:
    """The bits of |x| are (e − 1 + bias + g)·2^f: e of ``emit_exponent``, g of ``emit_place``.

    The highest 16 bits are sign, exponent and the first bits of g; the rest of g
    falls into units from the top down.  All in ``kind.work``.
    """
    x = b.cast(x, ir.DataType.from_numpy(kind.work), "gdu_x_work", x.shape or [])
    size = pointwise(b, "Abs", x, name="gdu_x_abs")
    e = emit_exponent(b, size, kind)
    first = 2.0 ** (15 - kind.exponent)
    rest = times(b, emit_place(b, size, e, kind), first, "gdu_x_place_bits")
    whole = pointwise(b, "Floor", rest, name="gdu_x_place_first")
    sign = emit_sign(b, x, first * (bias_of(kind) - 1))
    upper = pointwise(b, "Add", times(b, e, first, "gdu_x_e_bits"), whole, name="gdu_x_upper")
    units = [pointwise(b, "Add", upper, sign, name="gdu_x_top")]
    if encoding.unit_bits == 8:
        units = emit_bytes(b, units[0])
    while len(units) < encoding.units_per_element:
        fraction = pointwise(b, "Sub", rest, whole, name="gdu_x_fraction")
        rest = times(b, fraction, 2.0**encoding.unit_bits, "gdu_x_rest")
        whole = pointwise(b, "Floor", rest, name="gdu_x_unit")
        units.append(whole)
    return units[::-1]


def emit_bytes(b: Builder, unit: ir.Value) -> list[ir.Value]:
    """A unit of 16 bits as its high and its low byte."""
    high = pointwise(b, "Floor", times(b, unit, 2.0**-8, "gdu_x_1_256"), name="gdu_x_high")
    low = pointwise(b, "Sub", unit, times(b, high, 2.0**8, "gdu_x_256"), name="gdu_x_low")
    return [high, low]


def emit_exponent(b: Builder, size: ir.Value, kind: FloatFormat) -> ir.Value:
    """Round(log2 |x|), clipped: less 1 it is the exponent of |x|, or one too low.

    So it is for every logarithm that is wrong by less than ½ (of 0 and of a
    flushed subnormal too, which the clip makes the lowest exponent).
    """
    log2 = times(b, pointwise(b, "Log", size, name="gdu_x_log"), 1 / np.log(2), "gdu_x_log2")
    nearest = pointwise(b, "Round", log2, name="gdu_x_log2_round")
    bias, dtype = bias_of(kind), size.dtype or FLOAT
    limits = b.float(2 - bias, "gdu_x_e_min", dtype), b.float(bias, "gdu_x_e_max", dtype)
    return pointwise(b, "Clip", nearest, *limits, name="gdu_x_e")


def emit_place(b: Builder, size: ir.Value, e: ir.Value, kind: FloatFormat) -> ir.Value:
    """g = min(σ − 1, σ/2, 2), σ = |x|/2^(e − 1): the bits of |x| are (e − 1 + bias + g)·2^f.

    σ is in [1, 2), and g = σ − 1, where e − 1 is the exponent; in [2, 4) where
    that is one too low, and there σ/2 has the true place, and 1 more for the
    exponent; below 1 for a subnormal, whose exponent counts as the lowest.  The
    highest e is one too low for the largest numbers on purpose: their g ends
    at 2, which is the exponent of ±∞.
    """
    bias = bias_of(kind)
    table = np.ldexp(np.ones(2 * bias - 1), 1 - np.arange(2 - bias, bias + 1))
    assert size.shape is not None
    power = look_up(b, table.astype(kind.work), e, "gdu_x_power", size.shape, 2 - bias)
    sigma = pointwise(b, "Mul", size, power, name="gdu_x_significand")
    dtype = size.dtype or FLOAT
    above = pointwise(b, "Sub", sigma, b.float(1.0, "gdu_x_1", dtype), name="gdu_x_above_1")
    half = times(b, sigma, 0.5, "gdu_x_half")
    return pointwise(b, "Min", above, half, b.float(2.0, "gdu_x_2", dtype), name="gdu_x_place")


def emit_sign(b: Builder, x: ir.Value, start: float) -> ir.Value:
    """2^15·[sign of x] + start.  x + 1/x has the sign of x for ±0 and ±∞ too, and is never 0."""
    dtype = x.dtype or FLOAT
    inverse = pointwise(b, "Reciprocal", x, name="gdu_x_inverse")
    signed = pointwise(b, "Add", x, inverse, name="gdu_x_not_0")
    negative = b.op("Less", signed, b.float(0.0, "gdu_x_0", dtype), name="gdu_x_negative",
                    dtype=BOOL, shape=x.shape)  # fmt: skip
    # Not Where, which torch does not vectorise: 6 times slower (measured).
    flag = b.op("Cast", negative, name="gdu_x_minus", dtype=dtype, shape=x.shape, to=dtype.value)
    bit = times(b, flag, 2.0**15, "gdu_x_sign_bit")
    return pointwise(b, "Add", bit, b.float(start, "gdu_x_start", dtype), name="gdu_x_sign")


def bias_of(kind: FloatFormat) -> int:
    """What is added to an exponent in its bits."""
    return int(2 ** (kind.exponent - 1) - 1)


def rows_of(value: ir.Value) -> int | None:
    """The number of rows, None where it is dynamic."""
    assert value.shape is not None
    rows = value.shape[0]
    return rows if isinstance(rows, int) else None


def times(b: Builder, value: ir.Value, factor: float, name: str) -> ir.Value:
    """value·factor."""
    return pointwise(b, "Mul", value, b.float(factor, f"{name}_factor", value.dtype or FLOAT),
                     name=name)  # fmt: skip


def pointwise(b: Builder, op_type: str, value: ir.Value, *others: ir.Value, name: str) -> ir.Value:
    """An operator whose result has the dtype and shape of its first input."""
    return b.op(op_type, value, *others, name=name, dtype=value.dtype or FLOAT, shape=value.shape)
