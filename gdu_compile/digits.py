"""The digit codes: digits as signals, ratios back to digits, and the bounds, in numpy.

THEORY §2.  A digit q ∈ {0 … M}, M = 2^k − 1, has a signal s(q) that is never 0; the recorder
leaves θ/c = s(q) up to rounding, and the code reads q back off that ratio.  What the emitted graph
computes in ONNX operators (``emit_code.py``) stands here a second time in numpy: tests run both and
compare every bit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from gdu_compile.errors import InputError

Array = npt.NDArray[np.generic]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]

UNIT_ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
"""u of the dtypes in which θ may be kept."""

DEFAULT_GAIN = 2.0**-80
"""γ of the quiet recorder (THEORY Lemma 4)."""


@dataclass(frozen=True)
class DigitCode(ABC):
    """What a digit of ``bits`` bits is trained towards, and how it is read back.

    Attributes:
        name: as written on the command line and in the metadata.
        bits: bits of one digit, k.
    """

    name: str
    bits: int
    linear_is_exact: ClassVar[bool] = False
    """Whether linear optimizers (SGD, momentum, decay, AdamW) leave no error at all."""

    @property
    def top(self) -> int:
        """M, the largest digit."""
        return int(2**self.bits - 1)

    @property
    @abstractmethod
    def calibrator(self) -> int:
        """The digit whose signal is 1."""

    @property
    def centre(self) -> int:
        """What the graph leaves out of a digit until the end."""
        return 0

    @property
    @abstractmethod
    def largest_signal(self) -> float:
        """max |s|."""

    @property
    @abstractmethod
    def sensitivity(self) -> float:
        """The worst digit's error for a relative error δ of θ/c, divided by δ."""

    @abstractmethod
    def signal(self, digits: Integers) -> Float32:
        """s(q), float32, exact; same shape as ``digits``."""

    @abstractmethod
    def quantize(self, ratio: Float32) -> npt.NDArray[np.int32]:
        """The digit that a ratio is read as; NaN gives some digit."""

    @abstractmethod
    def errors(self, ratio: Float32, digits: Integers) -> Float64:
        """The distance of each ratio from its signal; 1 is where the next digit begins."""

    def for_bits(self, bits: int) -> DigitCode:
        """This code for elements of ``bits`` bits, which may be fewer than one digit has."""
        return self

    def ratio(self, theta: Array, gain: float) -> Float32:
        """r of θ [rows + 1, digits], float32, without the calibrator row (``ratio_of``)."""
        return ratio_of(theta[1:], theta[:1], gain)

    def digit_error(self, ratio: Float32, digits: Integers) -> float:
        """The largest of ``errors``; digits come back right while it is below 1."""
        return float(np.max(self.errors(ratio, digits), initial=0.0))

    def digit_error_bound(
        self, scalings: int, unit: float = UNIT_ROUNDOFF["float32"], *, first: float = 4.0,
        each: float = 2.0,
    ) -> float:  # fmt: skip
        """The bound of Lemma 2 on the digit error.

        Args:
            scalings: number of steps after the first that scale θ.
            unit: u of the dtype in which θ is kept.
            first: roundings, in u, that the first step leaves in θ/c; those of plain descent.
            each: what each scaling adds; those of a multiplication (``roundings.py`` has others).
        """
        return self.sensitivity * (first + each * scalings) * unit

    def exact_scalings(
        self, unit: float = UNIT_ROUNDOFF["float32"], *, first: float = 4.0, each: float = 2.0
    ) -> int:
        """How many scaling steps are guaranteed to keep every digit right (Lemma 2); −1 if none.

        Arguments as for ``digit_error_bound``.

        Example:
            >>> {code.name: code.exact_scalings() for code in CODES.values()}
            ... # doctest: +NORMALIZE_WHITESPACE
            {'linear16': 125, 'float16': 2045, 'linear8': 32893, 'pow2': 2907267, 'linear4': 559237,
             'linear2': 2796199, 'linear1': 8388604}
        """
        return max(math.ceil((self.room / (self.sensitivity * unit) - first) / each) - 1, -1)

    @property
    def room(self) -> float:
        """How much of the limit 1 is left to θ's own error; the rest is the reader's rounding."""
        return 1.0

    def adaptive_error_bound(self, gain: float, eps: float, kappa: float = 1.0) -> float:
        """The bound of Lemma 4 on the digit error that an adaptive optimizer adds.

        Its step is m/(√v + ε): linear but for a relative error of |g|/ε, where |g| ≤ γ·|κ|·max |s|.

        Args:
            gain: γ.
            eps: ε of the optimizer.
            kappa: |κ|, at most 1 for cross-entropy.
        """
        if eps <= 0:
            return math.inf
        return self.sensitivity * gain * kappa * self.largest_signal / eps


@dataclass(frozen=True)
class LinearCode(DigitCode):
    """The linear code: s = 2q − M, an odd integer.

    Example:
        >>> import numpy as np
        >>> code = CODES["linear16"]
        >>> code.signal(np.array([0, 32767, 32768, 65535])).tolist()
        [-65535.0, -1.0, 1.0, 65535.0]
        >>> code.quantize(np.float32([-65534.2, 0.9])).tolist()
        [0, 32768]
    """

    @property
    def calibrator(self) -> int:
        """The digit whose signal is 1."""
        return int(2 ** (self.bits - 1))

    @property
    def centre(self) -> int:
        """s/2 = q − 2^(k−1) + ½: Floor(s/2) is the digit less this; for k = 1 see ``quantize``."""
        return self.calibrator if self.bits > 1 else 0

    @property
    def largest_signal(self) -> float:
        """M."""
        return float(self.top)

    @property
    def sensitivity(self) -> float:
        """A relative error δ moves r by |s|·δ ≤ M·δ, and the next digit is 1 away."""
        return float(self.top)

    @property
    def room(self) -> float:
        """Reserve for a reader that forms r/2 + M/2, rounded by at most 2M·u of the limit 1."""
        return 1.0 - 2 * self.top * UNIT_ROUNDOFF["float32"]

    def for_bits(self, bits: int) -> DigitCode:
        """A digit has no more bits than an element."""
        return self if bits >= self.bits else LinearCode(f"linear{bits}", bits)

    def signal(self, digits: Integers) -> Float32:
        """s = 2q − M, float32, exact."""
        doubled = digits.astype(np.float32) * np.float32(2)
        return np.asarray(doubled - np.float32(self.top), dtype=np.float32)

    def quantize(self, ratio: Float32) -> npt.NDArray[np.int32]:
        """q̂ = Clip(Floor(r/2) + 2^(k−1), 0, M); NaN gives 0.

        The digit next to r, as Round((r + M)/2) is, without the rounding of a sum.
        For k = 1 it is Ceil(r/2): then θ = 0 is read as bits 0 and not as a NaN.
        """
        lowest, highest = np.float32(-self.centre), np.float32(self.top - self.centre)
        whole = np.floor if self.bits > 1 else np.ceil
        below = np.clip(whole(ratio * np.float32(0.5)), lowest, highest)
        return np.asarray(np.nan_to_num(below, nan=float(lowest)), dtype=np.int32) + self.centre

    def errors(self, ratio: Float32, digits: Integers) -> Float64:
        """|r − s|."""
        return distance(ratio, self.signal(digits))


@dataclass(frozen=True)
class FloatLikeCode(DigitCode):
    """The float-like code: 16 bits read as sign, e (5 bits), m (10 bits); s = ±2^e·(1 + m/1024).

    The gaps between signals grow with them, so a relative error of 2⁻¹² is
    tolerated everywhere, against 2⁻¹⁶ in the linear code of the same size.

    Example:
        >>> import numpy as np
        >>> code = CODES["float16"]
        >>> code.signal(np.array([0, 1, 1024, 32768 + 2 * 1024 + 512])).tolist()
        [1.0, 1.0009765625, 2.0, -6.0]
        >>> code.quantize(np.float32([1.0004, 1.0006, -6.001])).tolist()
        [0, 1, 35328]
    """

    @property
    def calibrator(self) -> int:
        """The digit whose signal is 1: all bits 0."""
        return 0

    @property
    def largest_signal(self) -> float:
        """2^31·(2 − 1/1024)."""
        return 2.0**32 - 2.0**21

    @property
    def sensitivity(self) -> float:
        """|s| ≤ 2^(e + 1), and half a gap is 2^e/2048."""
        return 4096.0

    def powers(self) -> Float32:
        """±2^(e − 10) by the upper 6 bits of a digit, float32 [64]: s = ±2^(e − 10)·(1024 + m)."""
        positive = np.ldexp(np.float32(1), np.arange(32) - 10).astype(np.float32)
        return np.concatenate([positive, -positive])

    def signal(self, digits: Integers) -> Float32:
        """s = ±2^e·(1 + m/1024), float32, exact."""
        q = digits.astype(np.int64)
        return np.asarray(self.powers()[q >> 10] * (1024 + (q & 1023)), dtype=np.float32)

    def quantize(self, ratio: Float32) -> npt.NDArray[np.int32]:
        """32768·[r < 0] + 1024·e + Round(1024·|r|/2^e) − 1024, e = Floor(log2 |r|), all clipped.

        Right even where log2 misses a power of two by one: the mantissa then
        rounds to 0 or 2048, which is the same digit (THEORY §2).
        """
        size = np.nan_to_num(np.abs(ratio), nan=1.0)
        size = np.clip(size, np.float32(1), np.float32(2.0**32))
        e = np.clip(np.floor(np.log2(size)), 0, 31).astype(np.int64)
        mantissa = np.rint(size / self.powers()[e])
        q = 32768 * (ratio < 0) + 1024 * e + mantissa - 1024
        return np.asarray(np.clip(q, 0, self.top), dtype=np.int32)

    def errors(self, ratio: Float32, digits: Integers) -> Float64:
        """|r − s| in half gaps; below a power of two the gap is half as wide."""
        signal = self.signal(digits)
        half_gap = self.powers()[(digits.astype(np.int64) >> 10) & 31] / 2
        below = (np.abs(ratio) < np.abs(signal)) & ((digits.astype(np.int64) & 1023) == 0)
        return np.asarray(distance(ratio, signal) / np.where(below, half_gap / 2, half_gap))


@dataclass(frozen=True)
class PowerOfTwoCode(DigitCode):
    """The power-of-two code: sign and e (4 bits), s = ±2^e, 5 bits a digit.

    IEEE scaling commutes with powers of two, so every linear optimizer leaves
    θ/c = s with no error at all, for ever, in every binary format of θ.

    Example:
        >>> import numpy as np
        >>> code = CODES["pow2"]
        >>> code.signal(np.array([0, 3, 15, 16, 19])).tolist()
        [1.0, 8.0, 32768.0, -1.0, -8.0]
        >>> code.quantize(np.float32([1.3, -7.0])).tolist()
        [0, 19]
    """

    linear_is_exact: ClassVar[bool] = True

    @property
    def calibrator(self) -> int:
        """The digit whose signal is 1: all bits 0."""
        return 0

    @property
    def largest_signal(self) -> float:
        """2^15."""
        return 2.0**15

    @property
    def sensitivity(self) -> float:
        """Errors are counted in half powers of two: 2·log2(1 + δ)."""
        return 2 / math.log(2)

    def powers(self) -> Float32:
        """±2^e by digit, float32 [32]."""
        positive = np.ldexp(np.float32(1), np.arange(16)).astype(np.float32)
        return np.concatenate([positive, -positive])

    def signal(self, digits: Integers) -> Float32:
        """s = ±2^e, float32, exact."""
        return self.powers()[digits.astype(np.int64)]

    def quantize(self, ratio: Float32) -> npt.NDArray[np.int32]:
        """16·[r < 0] + Clip(Round(log2 |r|), 0, 15)."""
        size = np.clip(np.nan_to_num(np.abs(ratio), nan=1.0), np.float32(1), np.float32(2.0**15))
        return np.asarray(16 * (ratio < 0) + np.rint(np.log2(size)), dtype=np.int32)

    def errors(self, ratio: Float32, digits: Integers) -> Float64:
        """2·|log2(r/s)|; a wrong sign, 0 and NaN count as ∞."""
        with np.errstate(all="ignore"):
            quotient = ratio.astype(np.float64) / self.signal(digits)
            error = 2 * np.abs(np.log2(np.where(quotient > 0, quotient, 0)))
        return np.asarray(np.nan_to_num(error, nan=math.inf, posinf=math.inf))


def ratio_of(theta: Array, calibrator: Array, gain: float) -> Float32:
    """r = (θ/γ)/(c/γ), float32; where c is 0 (not armed) it is divided by 1, as in the graph.

    Args:
        theta: [rows, columns].
        calibrator: c of each column, [1, columns], or of each row, [rows, 1].
        gain: γ.
    """
    with np.errstate(all="ignore"):
        inverse = np.float32(1.0 / gain)
        c = calibrator.astype(np.float32) * inverse
        safe = np.where(c == 0, np.float32(1), c)
        return np.asarray(theta.astype(np.float32) * inverse / safe, dtype=np.float32)


def distance(ratio: Float32, signal: Float32) -> Float64:
    """|r − s| in float64; NaN counts as ∞."""
    difference = np.abs(ratio.astype(np.float64) - signal)
    return np.asarray(np.nan_to_num(difference, nan=math.inf, posinf=math.inf))


ALL_CODES: tuple[DigitCode, ...] = (
    LinearCode("linear16", 16), FloatLikeCode("float16", 16), LinearCode("linear8", 8),
    PowerOfTwoCode("pow2", 5), LinearCode("linear4", 4), LinearCode("linear2", 2),
    LinearCode("linear1", 1),
)  # fmt: skip
CODES = {code.name: code for code in ALL_CODES}
"""Name → code, the one with the fewest trained parameters per weight first."""

DEFAULT_CODE = CODES["linear16"]
"""What the passes take when nothing is said."""


def code_named(name: str) -> DigitCode:
    """The code of this name.

    Raises:
        InputError: there is none; names those that are.
    """
    if name not in CODES:
        raise InputError(f"--digits {name}: no such digit code; there are {', '.join(CODES)}")
    return CODES[name]


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
