"""The shared graph pieces, in ONNX operators of opset 18: recorder, decoder, armed, switch.

Every equation of THEORY §2–3 that ends up in a graph is written here once.
The builder gives unique names, sets dtype and shape, and notes on each node
which pass put it there.  Small constants become Constant nodes: the extension
adds no float initializer besides θ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from gdu_compile.contracts import PASS_KEY, Bucket
from gdu_compile.digits import Array, DigitCode, exponent_table, implicit_bit_table
from gdu_compile.names import Names

FLOAT, INT32 = ir.DataType.FLOAT, ir.DataType.INT32
INT64, BOOL = ir.DataType.INT64, ir.DataType.BOOL
Dims = Iterable[int | ir.SymbolicDim | str | None]
Attribute = int | float | list[int] | ir.Graph | ir.TensorProtocol


class Builder:
    """Collects new nodes, for the main graph or for a branch.

    Args:
        names: the model's name generator.
        origin: class name of the pass, written into each node's metadata.
    """

    def __init__(self, names: Names, origin: str) -> None:
        self.names = names
        self.origin = origin
        self.nodes: list[ir.Node] = []

    def op(
        self,
        op_type: str,
        *inputs: ir.Value,
        name: str,
        dtype: ir.DataType = FLOAT,
        shape: Dims | None = None,
        **attributes: Attribute,
    ) -> ir.Value:
        """One node with one output called ``name`` (made unique)."""
        return self.multi_op(op_type, *inputs, outputs=[(name, dtype, shape)], **attributes)[0]

    def multi_op(
        self,
        op_type: str,
        *inputs: ir.Value,
        outputs: Iterable[tuple[str, ir.DataType, Dims | None]],
        **attributes: Attribute,
    ) -> Sequence[ir.Value]:
        """One node with several outputs, each (name, dtype, shape)."""
        values = [
            ir.Value(
                name=self.names.fresh(name),
                type=ir.TensorType(dtype),
                shape=None if shape is None else ir.Shape(shape),
            )
            for name, dtype, shape in outputs
        ]
        node = ir.node(
            op_type,
            list(inputs),
            attributes,
            outputs=values,
            name=self.names.fresh(f"{values[0].name}/{op_type}"),
            metadata_props={PASS_KEY: self.origin},
        )
        self.nodes.append(node)
        return node.outputs

    def constant(self, array: Array, name: str) -> ir.Value:
        """A Constant node that holds ``array``."""
        # The tensor gets the value's own name, so that equal input gives equal bytes.
        tensor = ir.tensor(array, name=name)
        return self.op("Constant", name=name, dtype=tensor.dtype, shape=array.shape, value=tensor)

    def float(self, number: float, name: str) -> ir.Value:
        """A scalar float32 constant."""
        return self.constant(np.array(number, dtype=np.float32), name)

    def ints(self, numbers: Sequence[int], name: str) -> ir.Value:
        """A 1-D int64 constant."""
        return self.constant(np.array(numbers, dtype=np.int64), name)

    def branch(self, outputs: Sequence[ir.Value], name: str) -> ir.Graph:
        """The collected nodes as the body of an If branch; empties the builder."""
        nodes, self.nodes = self.nodes, []
        return ir.Graph([], list(outputs), nodes=nodes, name=self.names.fresh(name))


def emit_armed(b: Builder, thetas: Sequence[ir.Value], digits: int) -> ir.Value:
    """Armed = all calibrators ≠ 0: a scalar BOOL (THEORY §2)."""
    first = b.ints([0], "gdu_row_0")
    rows = [
        b.op("Gather", theta, first, name="gdu_calibrator", shape=[1, digits], axis=0)
        for theta in thetas
    ]  # each 1 x digits
    zero = b.float(0.0, "gdu_zero")
    unset = b.op("Equal", b.op("Concat", *rows, name="gdu_calibrators", axis=0,
                               shape=[len(rows), digits]),
                 zero, name="gdu_unset", dtype=BOOL, shape=[len(rows), digits])  # fmt: skip
    flags = b.op("Cast", unset, name="gdu_unset_flags", dtype=INT32, to=INT32.value,
                 shape=[len(rows), digits])  # fmt: skip
    count = b.op("ReduceSum", flags, name="gdu_unset_count", dtype=INT32, shape=[], keepdims=0)
    none = b.constant(np.array(0, dtype=np.int32), "gdu_none")
    return b.op("Equal", count, none, name="gdu_armed", dtype=BOOL, shape=[])


def emit_digits(b: Builder, signals: Sequence[ir.Value], code: DigitCode, rows: int) -> ir.Value:
    """s/2 = q − M/2 of a bucket, the calibrator's ½ in row 0: FLOAT [rows + 1, digits], exact.

    Half the signal everywhere, the calibrator included, leaves θ/c = s as it is,
    and saves one pass over a tensor as large as θ.
    """
    shape = [rows + 1, code.digits_per_element]
    ones = b.constant(np.full((1, shape[1]), code.calibrator, dtype=np.uint16), "gdu_digit_1")
    digits = b.op("Concat", ones, *signals, name="gdu_digits", dtype=ir.DataType.UINT16,
                  shape=shape, axis=0)  # fmt: skip
    q = b.op("Cast", digits, name="gdu_q", shape=shape, to=FLOAT.value)
    return b.op("Sub", q, b.float(code.top / 2, "gdu_M_2"), name="gdu_s_2", shape=shape)


def emit_q(b: Builder, theta: ir.Value, signal: ir.Value) -> ir.Value:
    """⟨θ_b, s_b/2⟩, a scalar.  Mul and ReduceSum: a MatMul may round the signal."""
    product = b.op("Mul", theta, signal, name="gdu_theta_s", shape=signal.shape)
    return b.op("ReduceSum", product, name="gdu_q_bucket", shape=[], keepdims=0)


def emit_recorder(
    b: Builder, q: Sequence[ir.Value], *, start: float, gain: float, classes: int, shape: ir.Value
) -> ir.Value:
    """z = (z0 + γ·Q)·e_0, expanded to ``shape`` [N, C] (THEORY §2).

    Args:
        b: the builder.
        q: the buckets' scalars; Q is their sum.
        start: z0 of class 0.
        gain: γ, a power of two.
        classes: C.
        shape: 1-D INT64 value with the shape of the logits.
    """
    total = q[0]
    for part in q[1:]:
        total = b.op("Add", total, part, name="gdu_Q", shape=[])
    quiet = b.op("Mul", total, b.float(gain, "gdu_gain"), name="gdu_gain_Q", shape=[])
    z = b.op("Add", quiet, b.float(start, "gdu_z0"), name="gdu_z", shape=[])
    e0 = np.zeros(classes, dtype=np.float32)
    e0[0] = 1
    row = b.op("Mul", b.constant(e0, "gdu_e0"), z, name="gdu_row", shape=[classes])
    return b.op("Expand", row, shape, name="gdu_recorded_logits", shape=[None, classes])


def emit_decode(
    b: Builder, theta: ir.Value, code: DigitCode, gain: float, sizes: Sequence[int]
) -> tuple[list[ir.Value], ir.Value]:
    """θ → weights: r = (θ/γ)/(c/γ), q̂ = Clip(Round((r + M)/2), 0, M), ŵ = bits(q̂).

    θ/γ comes first so that c² in a framework's derivative of the division does
    not underflow.  The divisor is 1 where c = 0: then a runtime that computes
    both branches gets finite numbers (and derivatives) from the unarmed one.

    Returns:
        The weights' elements, one FLOAT [elements, 1] for each of ``sizes``, and
        the tie: a scalar −0 that depends on all of θ with derivative 0 (Lemma 3).
        −0 and not 0, because x + (−0) is x for every x, −0 included.
    """
    rows, columns = 1 + sum(sizes), code.digits_per_element
    full = [rows, columns]
    scaled = b.op("Mul", theta, b.float(1.0 / gain, "gdu_1_gain"), name="gdu_theta_1", shape=full)
    c = b.op("Gather", scaled, b.ints([0], "gdu_first"), name="gdu_c", shape=[1, columns], axis=0)
    unset = b.op("Equal", c, b.float(0.0, "gdu_c_0"), name="gdu_c_unset", dtype=BOOL,
                 shape=[1, columns])  # fmt: skip
    safe = b.op("Where", unset, b.float(1.0, "gdu_c_1"), c, name="gdu_divisor", shape=[1, columns])
    # (r + M)/2 as r/2 + M/2: halving is exact, and here it costs a row instead of a whole tensor.
    double = b.op("Add", safe, safe, name="gdu_2c", shape=[1, columns])
    half = b.op("Div", scaled, double, name="gdu_r_2", shape=full)
    shifted = b.op("Add", half, b.float(code.top / 2, "gdu_M_2"), name="gdu_r_M_2", shape=full)
    rounded = b.op("Round", shifted, name="gdu_rounded", shape=full)
    nearest = b.op("Clip", rounded, b.float(0.0, "gdu_min"), b.float(code.top, "gdu_M"),
                   name="gdu_q_hat", shape=full)  # fmt: skip
    # The calibrator's own digit is positive, so the sum is, and the product is −0, never +0.
    total = b.op("ReduceSum", nearest, name="gdu_q_sum", shape=[], keepdims=0)
    tie = b.op("Mul", total, b.float(-0.0, "gdu_minus_0"), name="gdu_tie", shape=[])
    flat = emit_bits(b, nearest, rows)
    parts = b.multi_op(
        "Split", flat, b.ints([1, *sizes], "gdu_sizes"), axis=0,
        outputs=[("gdu_calibrator_value", FLOAT, [1, 1]),
                 *(("gdu_elements", FLOAT, [size, 1]) for size in sizes)],
    )  # fmt: skip
    return list(parts[1:]), tie


def emit_bits(b: Builder, digits: ir.Value, rows: int) -> ir.Value:
    """bits(): FLOAT [rows, 2] of 16-bit digits (low, high) → FLOAT [rows, 1], exact.

    ŵ = T[⌊hi/128⌋]·([e > 0] + ((hi mod 128)·65536 + lo)·2⁻²³): every product and
    sum is exact, the last one into the subnormals included; ±∞ comes from T.

    The digits are taken apart as floats, with Floor, and then cast to integers:
    there the tape ends, so none runs through the base.  (No integer Div or Mod:
    a framework whose casts keep the tape has no derivative for those.)
    """
    column = [rows, 1]
    low, high = b.multi_op(
        "Split", digits, axis=1, num_outputs=2,
        outputs=[("gdu_low", FLOAT, column), ("gdu_high", FLOAT, column)],
    )  # fmt: skip
    parts = b.op("Mul", high, b.float(2.0**-7, "gdu_1_128"), name="gdu_hi_128", shape=column)
    sign_exponent = b.op("Floor", parts, name="gdu_sign_exponent", shape=column)
    upper = b.op("Sub", parts, sign_exponent, name="gdu_upper", shape=column)
    moved = b.op("Mul", upper, b.float(2.0**23, "gdu_2_23"), name="gdu_upper_bits", shape=column)
    mantissa = b.op("Add", moved, low, name="gdu_mantissa", shape=column)

    def integer(value: ir.Value, name: str) -> ir.Value:
        return b.op("Cast", value, name=name, dtype=INT32, shape=column, to=INT32.value)

    # A θ that is NaN becomes an arbitrary integer; it must not read outside the tables.
    index = b.op("Clip", integer(sign_exponent, "gdu_index"),
                 b.constant(np.array(0, dtype=np.int32), "gdu_first_index"),
                 b.constant(np.array(511, dtype=np.int32), "gdu_last_index"),
                 name="gdu_index_in_table", dtype=INT32, shape=column)  # fmt: skip
    bits = integer(mantissa, "gdu_mantissa_bits")
    exact = b.op("Cast", bits, name="gdu_mantissa_float", shape=column, to=FLOAT.value)
    fraction = b.op("Mul", exact, b.float(2.0**-23, "gdu_ulp"), name="gdu_fraction", shape=column)
    power = b.op("Gather", b.constant(exponent_table(), "gdu_T"), index, name="gdu_power",
                 shape=column, axis=0)  # fmt: skip
    implicit = b.op("Gather", b.constant(implicit_bit_table(), "gdu_H"), index,
                    name="gdu_implicit", shape=column, axis=0)  # fmt: skip
    significand = b.op("Add", implicit, fraction, name="gdu_significand", shape=column)
    return b.op("Mul", power, significand, name="gdu_value", shape=column)


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
