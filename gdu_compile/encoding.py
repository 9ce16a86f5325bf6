"""How the elements of a weight become digits: a digit code applied to a number format.

The bits of an element, lowest first, are cut into digits of k bits; the highest digit has what is
left.  In the file they lie as *units*, a view of the weight's own bytes as uint8, or as uint16
where a digit is one; the graph cuts the units into digits (``emit_code.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gdu_compile.digits import Array, DigitCode, Integers
from gdu_compile.number_formats import FORMATS, Format

Units = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Encoding:
    """A digit code on a number format; see ``encoding_of``.

    Attributes:
        code: the digit code, with no more bits a digit than an element has.
        format: the number format.

    Example:
        >>> import numpy as np
        >>> from gdu_compile.digits import CODES
        >>> encoding = encoding_of(CODES["linear16"], "float32")
        >>> weight = np.array([-0.0, 1.0], dtype=np.float32)
        >>> encoding.units(weight).tolist()  # [elements, units], the low half first
        [[0, 32768], [0, 16256]]
        >>> encoding.join(encoding.cut(encoding.units(weight)), (2,)).tolist()
        [-0.0, 1.0]
        >>> encoding_of(CODES["pow2"], "int8").cut(np.uint8([[255]])).tolist()  # 5 and 3 bits
        [[31, 7]]
    """

    code: DigitCode
    format: Format

    @property
    def digits(self) -> int:
        """Digits (= trained parameters) of one element."""
        return -(-self.format.bits // self.code.bits)

    @property
    def widths(self) -> list[int]:
        """Bits of each digit; the highest one may have fewer than k."""
        k = self.code.bits
        return [min(k, self.format.bits - k * i) for i in range(self.digits)]

    @property
    def unit_bits(self) -> int:
        """Bits of a unit: 16 where every digit is one, else 8."""
        return 16 if self.code.bits == 16 and self.format.bits % 16 == 0 else 8

    @property
    def units_per_element(self) -> int:
        """Units of one element."""
        return self.format.bits // self.unit_bits

    @property
    def digits_are_units(self) -> bool:
        """Whether nothing is left to be cut."""
        return self.digits == self.units_per_element

    @property
    def unit_dtype(self) -> np.dtype[np.generic]:
        """uint8 or uint16."""
        return np.dtype(np.uint16 if self.unit_bits == 16 else np.uint8)

    def units(self, weight: Array) -> Units:
        """The units of an array, [elements, units]: a view where possible.

        Raises:
            TypeError: the array is not of this format.
        """
        if str(weight.dtype.newbyteorder("=")) != self.format.name:
            raise TypeError(f"an encoding of {self.format.name} was given {weight.dtype}")
        little = np.ascontiguousarray(weight)
        if weight.dtype.byteorder == ">" or (np.little_endian is False):
            little = little.astype(weight.dtype.newbyteorder("<"))
        flat = little.reshape(-1).view(self.unit_dtype.newbyteorder("<"))
        return flat.reshape(weight.size, self.units_per_element)

    def from_units(self, units: Units, shape: tuple[int, ...]) -> Array:
        """The array of ``shape`` whose units these are: a view where possible."""
        flat = np.ascontiguousarray(units).reshape(-1)
        return np.asarray(flat.view(self.format.dtype).reshape(shape))

    def cut(self, units: Units) -> npt.NDArray[np.uint16]:
        """The digits, uint16 [elements, digits], lowest first."""
        if self.digits_are_units:
            return units.astype(np.uint16, copy=False)
        word = self.from_units(units, (len(units),)).view(f"u{self.format.bits // 8}")
        shifts = np.array([self.code.bits * i for i in range(self.digits)], dtype=np.uint64)
        digits = (word.astype(np.uint64)[:, None] >> shifts) & np.uint64(self.code.top)
        return digits.astype(np.uint16)

    def join(self, digits: Integers, shape: tuple[int, ...]) -> Array:
        """The array of ``shape`` that has these digits [elements, digits]."""
        shifts = np.array([self.code.bits * i for i in range(self.digits)], dtype=np.uint64)
        word = (digits.astype(np.uint64) << shifts).sum(axis=1, dtype=np.uint64)
        words = word.astype(f"u{self.format.bits // 8}")
        return np.asarray(words.view(self.format.dtype).reshape(shape))

    def calibrator_units(self) -> Units:
        """The units of an element all of whose digits are the calibrator's, [1, units]."""
        digits = np.full((1, self.digits), self.code.calibrator, dtype=np.uint16)
        return self.join(digits, (1,)).view(self.unit_dtype).reshape(1, self.units_per_element)


def encoding_of(code: DigitCode, dtype: str) -> Encoding:
    """The encoding of a dtype, named as numpy and ml_dtypes spell it; KeyError for other dtypes."""
    kind = FORMATS[dtype]
    return Encoding(code.for_bits(kind.bits), kind)
