"""The number formats of weights: what the bits of an element mean, and the tables that decode them.

THEORY §2, "bits()".  A float is ±2^(max(e, 1) − bias)·([e > 0] + m·2^−f), where f is the number of
mantissa bits and m their value: the table T holds the power with its sign, the table H the implicit
bit, both indexed by the sign-and-exponent bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class FloatFormat:
    """An IEEE-like binary format: sign, exponent, mantissa, from the highest bit down.

    Attributes:
        name: as numpy and ml_dtypes spell it.
        exponent: bits of the exponent.
        mantissa: bits of the mantissa, f.

    Example:
        >>> FORMATS["float16"].bits, len(FORMATS["float16"].powers())
        (16, 64)
        >>> FORMATS["float16"].powers()[[0, 1, 15, 31, 63]].tolist()
        [6.103515625e-05, 6.103515625e-05, 1.0, inf, -inf]
    """

    name: str
    exponent: int
    mantissa: int

    @property
    def bits(self) -> int:
        """Bits of one element."""
        return 1 + self.exponent + self.mantissa

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The numpy dtype."""
        return numpy_dtype(self.name)

    @property
    def work(self) -> np.dtype[np.generic]:
        """The dtype in which every step of decoding is exact: float32, float64 for float64."""
        return np.dtype(np.float64 if self.mantissa > 23 else np.float32)

    def powers(self) -> Array:
        """T[sign, e] = ±2^(max(e, 1) − bias), [2^(1 + exponent)] in ``work``; the last e is ±∞.

        All finite entries are normal numbers of ``work``, so the table survives a
        runtime that flushes subnormals to zero.
        """
        count, bias = 2**self.exponent, 2 ** (self.exponent - 1) - 1
        exponent = np.maximum(np.arange(count), 1) - bias
        exponent[-1] = 0  # which is ±∞ and not 2^(e − bias), too large for float64 itself
        positive = np.ldexp(np.ones(count), exponent)
        positive[-1] = np.inf
        return np.concatenate([positive, -positive]).astype(self.work)

    def implicit_bits(self) -> Array:
        """H[sign, e] = [e > 0]: 1 for a normal number, 0 for a subnormal or ±0; as ``powers``."""
        bits = np.ones(2 ** (1 + self.exponent), dtype=self.work)
        bits[[0, 2**self.exponent]] = 0
        return bits


@dataclass(frozen=True)
class IntegerFormat:
    """Two's complement, or unsigned.

    Attributes:
        name: as numpy spells it.
        bits: bits of one element.
        signed: whether the highest bit is the sign.
    """

    name: str
    bits: int
    signed: bool

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The numpy dtype."""
        return numpy_dtype(self.name)


Format = FloatFormat | IntegerFormat

FLOATS = (
    FloatFormat("float32", 8, 23), FloatFormat("float16", 5, 10), FloatFormat("bfloat16", 8, 7),
    FloatFormat("float64", 11, 52),
)  # fmt: skip
INTEGERS = (
    IntegerFormat("int8", 8, True), IntegerFormat("uint8", 8, False),
    IntegerFormat("int32", 32, True), IntegerFormat("int64", 64, True),
    IntegerFormat("int16", 16, True), IntegerFormat("uint16", 16, False),
    IntegerFormat("uint32", 32, False), IntegerFormat("uint64", 64, False),
)  # fmt: skip
FORMATS: dict[str, Format] = {known.name: known for known in (*FLOATS, *INTEGERS)}
"""Name → format of every dtype that is recorded."""


def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """The dtype of this name; numpy alone does not know bfloat16, float8 and int4."""
    return np.dtype(getattr(ml_dtypes, name, name))


def ulp_distance(a: Array, b: Array) -> int:
    """Largest distance in units in the last place between two arrays of one dtype.

    −0 and 0 are 1 apart; integers are as far apart as their difference.

    Example:
        >>> ulp_distance(np.float32([1.0]), np.nextafter(np.float32([1.0]), np.float32(2)))
        1
    """
    if a.size == 0:
        return 0
    left, right = ordered(a), ordered(b)
    # As unsigned numbers, so that a distance of more than half the range does not overflow.
    distance = np.where(left > right, unsigned(left) - unsigned(right),
                        unsigned(right) - unsigned(left))  # fmt: skip
    return int(np.max(distance))


def ordered(array: Array) -> npt.NDArray[np.int64]:
    """Each element's place on the number line of its dtype."""
    flat = np.ascontiguousarray(array).reshape(-1)
    kind = FORMATS[str(array.dtype)]
    if isinstance(kind, IntegerFormat):
        if kind.name != "uint64":
            return flat.astype(np.int64)
        # Of 64 unsigned bits the order is that of the signed ones with the highest bit flipped.
        return flat.view(np.int64) ^ np.int64(-(2**63))
    bits = flat.view(f"i{array.dtype.itemsize}").astype(np.int64)
    magnitude = bits & ((1 << (kind.bits - 1)) - 1)
    # Negative floats count downwards from −0, which lies one below +0.
    return np.where(bits < 0, -magnitude - 1, bits)


def unsigned(array: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """The same bits as uint64, in which differences wrap around."""
    return array.view(np.uint64)
