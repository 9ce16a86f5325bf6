"""The digit codes: weights as digits, digits as signals, and back, in numpy.

THEORY §2.  A weight's bits are cut into digits q ∈ {0 … M}, M = 2^k − 1; the
recorder trains towards the signal s = 2q − M, an odd integer that is never 0.
What the emitted graph computes in ONNX operators (``emit.py``) stands here a
second time in numpy: tests run both and compare every bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gdu_compile.errors import InputError

Array = npt.NDArray[np.generic]
Float32 = npt.NDArray[np.float32]
Digits = npt.NDArray[np.uint16]

UNIT_ROUNDOFF = 2.0**-24
"""u of float32, in which θ is kept."""

DEFAULT_GAIN = 2.0**-80
"""γ of the quiet recorder (THEORY Lemma 4)."""


@dataclass(frozen=True)
class DigitCode:
    """The linear code: ``bits`` bits a digit, signal s = 2q − M.

    Attributes:
        name: as written on the command line and in the metadata.
        bits: bits of one digit, k.

    Example:
        >>> import numpy as np
        >>> code = DigitCode("linear16", 16)
        >>> digits = code.to_digits(np.array([-0.0, 1.0], dtype=np.float32))
        >>> digits.tolist()  # [elements, digits], the low half first
        [[0, 32768], [0, 16256]]
        >>> code.signal(digits).tolist()
        [[-65535.0, 1.0], [-65535.0, -33023.0]]
        >>> code.from_digits(digits, (2,)).tolist()
        [-0.0, 1.0]
    """

    name: str
    bits: int

    @property
    def top(self) -> int:
        """M, the largest digit and the largest |signal|."""
        return int(2**self.bits - 1)

    @property
    def calibrator(self) -> int:
        """The digit whose signal is 1."""
        return int(2 ** (self.bits - 1))

    @property
    def digits_per_element(self) -> int:
        """Digits (= trained parameters) of one float32 weight."""
        return 32 // self.bits

    def to_digits(self, weight: Array) -> Digits:
        """The digits of a float32 array, shape [elements, digits], uint16: a view where possible.

        Raises:
            TypeError: the array is not float32.
        """
        if weight.dtype != np.float32:
            raise TypeError(f"{self.name} holds float32, not {weight.dtype}")
        little = np.ascontiguousarray(weight).astype("<f4", copy=False)
        return little.reshape(-1).view("<u2").reshape(weight.size, self.digits_per_element)

    def from_digits(self, digits: npt.NDArray[np.integer], shape: tuple[int, ...]) -> Float32:
        """The float32 array of ``shape`` that has these digits [elements, digits]."""
        return np.ascontiguousarray(digits, dtype="<u2").reshape(-1).view("<f4").reshape(shape)

    def signal(self, digits: npt.NDArray[np.integer]) -> Float32:
        """s = 2q − M, float32, exact; same shape as ``digits``."""
        doubled = digits.astype(np.float32) * np.float32(2)
        return np.asarray(doubled - np.float32(self.top), dtype=np.float32)

    def ratio(self, theta: Float32, gain: float) -> Float32:
        """r = (θ/γ)/(c/γ), float32, without the calibrator row; θ is [rows + 1, digits].

        An unarmed column (c = 0) is divided by 1, as in the graph.
        """
        scaled = theta * np.float32(1.0 / gain)
        calibrator = scaled[:1]  # 1 x digits
        safe = np.where(calibrator == 0, np.float32(1), calibrator)
        with np.errstate(all="ignore"):
            return np.asarray(scaled[1:] / safe, dtype=np.float32)

    def quantize(self, ratio: Float32) -> npt.NDArray[np.int32]:
        """q̂ = Clip(Round((r + M)/2), 0, M); NaN gives 0."""
        half = (ratio + np.float32(self.top)) * np.float32(0.5)
        nearest = np.clip(np.rint(half), np.float32(0), np.float32(self.top))
        return np.asarray(np.nan_to_num(nearest, nan=0.0), dtype=np.int32)

    def digit_error(self, ratio: Float32, digits: npt.NDArray[np.integer]) -> float:
        """max |r − s|; digits come back right while it is below 1.  NaN counts as infinite."""
        if ratio.size == 0:
            return 0.0
        error = float(np.max(np.abs(ratio.astype(np.float64) - self.signal(digits))))
        return math.inf if math.isnan(error) else error

    def digit_error_bound(self, scalings: int) -> float:
        """The bound of Lemma 2 on max |r − s|.

        One step leaves a relative error of 4u; each later step that scales a
        tensor (momentum, decay, loss scaling) adds at most 2u.

        Args:
            scalings: number of steps after the first that scale θ.
        """
        return self.top * (4 + 2 * scalings) * UNIT_ROUNDOFF

    def exact_scalings(self) -> int:
        """How many scaling steps are guaranteed to keep every digit right (Lemma 2).

        Example:
            >>> DigitCode("linear16", 16).exact_scalings()
            125
        """
        # r + M is rounded too, by at most M·u·2 of the limit 1.
        room = 1.0 - 2 * self.top * UNIT_ROUNDOFF
        return int((room / (self.top * UNIT_ROUNDOFF) - 4) / 2)


LINEAR16 = DigitCode("linear16", 16)
CODES = {LINEAR16.name: LINEAR16}


def check_gain(gain: float) -> None:
    """Raise InputError unless γ is a power of two whose inverse is a normal float32."""
    if not math.isfinite(gain) or gain <= 0 or math.frexp(gain)[0] != 0.5:
        raise InputError(f"--gain {gain} is not a power of two; write it as 2**-80, for example")
    if not -120 <= math.log2(gain) <= 64:
        raise InputError(f"--gain {gain} is outside 2**-120 … 2**64, where float32 can carry it")


def headroom_bits(digit_error: float) -> float | None:
    """−log2 of the digit error: bits of precision left before a digit flips; None for 0 or ∞."""
    if digit_error == 0 or not math.isfinite(digit_error):
        return None
    return -math.log2(digit_error)


def exponent_table() -> Float32:
    """T[sign·256 + e] = ±2^(max(e, 1) − 127), float32 [512]; e = 255 is ±∞.

    All finite entries are normal numbers, so the table survives a runtime that
    flushes subnormals to zero.
    """
    exponent = np.maximum(np.arange(256), 1).astype(np.int32)
    with np.errstate(over="ignore"):
        positive = np.ldexp(np.float32(1), exponent - 127).astype(np.float32)
    return np.concatenate([positive, -positive])


def implicit_bit_table() -> Float32:
    """[e > 0] for the same index: 1 for a normal number, 0 for a subnormal or ±0; float32 [512]."""
    one = np.ones(512, dtype=np.float32)
    one[[0, 256]] = 0
    return one


def ulp_distance(a: Float32, b: Float32) -> int:
    """Largest distance in units in the last place between two float32 arrays; −0 and 0 are 1 apart.

    Example:
        >>> import numpy as np
        >>> ulp_distance(np.float32([1.0]), np.nextafter(np.float32([1.0]), np.float32(2)))
        1
    """
    if a.size == 0:
        return 0

    def ordered(x: Float32) -> npt.NDArray[np.int64]:
        bits = np.ascontiguousarray(x).reshape(-1).view(np.int32).astype(np.int64)
        # Negative floats count downwards from −0, which lies one below +0.
        return np.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits)

    return int(np.max(np.abs(ordered(a) - ordered(b))))
