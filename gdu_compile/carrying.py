"""What recording can carry, said before training: optimizer × steps × digit code × dtype of θ.

THEORY Lemma 2 (what roundings cost; ``roundings.py`` counts them for each optimizer) and Lemma 4
(an adaptive optimizer is linear while |g| is far below its ε; ``digits.py`` has the bound).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gdu_compile.digits import CODES, UNIT_ROUNDOFF, DigitCode
from gdu_compile.encoding import encoding_of
from gdu_compile.optimizers import OptimizerSpec
from gdu_compile.roundings import echo, recording, scaling

SIGN_ONLY = {"Rprop"}
EPS = {
    "Adam": 1e-8, "AdamW": 1e-8, "NAdam": 1e-8, "RAdam": 1e-8, "Adamax": 1e-8, "RMSprop": 1e-8,
    "Adagrad": 1e-10, "Adadelta": 1e-6,
}  # fmt: skip
"""torch.optim's defaults of ε, of the classes that divide by √v + ε (Adafactor: see ``eps_of``)."""
DECOUPLED = {"AdamW": 1e-2, "Adafactor": 0.0}
"""Adaptive optimizers whose weight_decay multiplies θ and stays out of the gradient; the default.
Others do with ``decoupled_weight_decay=True``."""
NOT_LINEAR = {"Muon": "it orthogonalises its updates, which mixes the digits"}
AVERAGING = {"ASGD"}
"""Optimizers that scale θ by themselves, by their ``lambd``."""


@dataclass(frozen=True)
class Training:
    """What the bounds depend on.

    Attributes:
        optimizer: class and arguments.
        lr: the learning rate η.
        steps: optimizer steps, the recording one included.
        gain: γ.
        theta_dtype: dtype of θ.
    """

    optimizer: OptimizerSpec
    lr: float
    steps: int
    gain: float
    theta_dtype: str = "float32"

    @property
    def unit(self) -> float:
        """u of θ."""
        return UNIT_ROUNDOFF[self.theta_dtype]

    @property
    def decay(self) -> float:
        """The weight_decay λ that is in force."""
        default = DECOUPLED.get(self.optimizer.name, 0.0)
        return self.optimizer.number("weight_decay", default)

    @property
    def decoupled(self) -> bool:
        """Whether decay multiplies θ and stays out of the gradient."""
        asked = self.optimizer.arguments.get("decoupled_weight_decay", False)
        return self.optimizer.name in DECOUPLED or bool(asked)

    @property
    def l2_decay(self) -> bool:
        """Whether decay is part of the gradient that an adaptive optimizer divides."""
        return bool(self.eps is not None and self.lr * self.decay and not self.decoupled)

    @property
    def decayed(self) -> float:
        """The share of θ that decay takes away in a step, momentum's echo included; 1 is all."""
        momentum = self.optimizer.number("momentum", 0.0)
        step = self.lr * self.decay
        return step / (1 - momentum**0.5) ** 2 if step else 0.0

    @property
    def eps(self) -> float | None:
        """ε of an adaptive optimizer; None for the others."""
        name = self.optimizer.name
        if name == "Adafactor":
            # It divides by Max(√v, ε1), ε1 = the machine epsilon: linear, exactly, below that.
            return 2.0**-23
        return self.optimizer.number("eps", EPS[name]) if name in EPS else None

    @property
    def scalings(self) -> int:
        """Steps after the first that scale θ: by momentum, decay or averaging."""
        optimizer = self.optimizer
        scales = (
            optimizer.number("momentum", 0.0) or (self.decay and self.lr)
            or optimizer.name in {*EPS, "Adafactor", *AVERAGING}
        )  # fmt: skip
        return self.steps - 1 if scales else 0

    @property
    def roundings(self) -> tuple[float, float]:
        """By how many u θ/c may be wrong, relative to itself: at first, and more for each step
        that scales θ."""
        shrinks = self.decoupled and self.lr * self.decay > 0
        first = recording(self.optimizer) + (echo(self.optimizer) if self.steps > 1 else 0.0)
        return first, scaling(self.optimizer, shrinks, min(self.decayed, 1.0))

    def guaranteed(self, code: DigitCode) -> int:
        """How many steps that scale θ keep every digit right; −1 if not even recording does.

        Example:
            >>> [Training(OptimizerSpec.parse(text), 1e-3, 9, 2.0**-80).guaranteed(CODES[code])
            ...  for text in ("SGD(momentum=0.9)", "AdamW()") for code in ("linear16", "float16")]
            [116, 2036, 56, 1016]
        """
        first, each = self.roundings
        return code.exact_scalings(self.unit, first=first, each=each)


def predicted_digit_error(training: Training, code: DigitCode) -> float:
    """The bound on the digit error; below ``code.room`` every digit is guaranteed, ∞: nothing is.

    Where the arithmetic of θ is the same for every element, 1-bit digits and
    powers of two have no error at all.  torch's bfloat16 kernels on the CPU are
    not of that kind: they round the last elements of a tensor, which do not fill
    a vector, otherwise than the rest (measured).

    Example:
        >>> from gdu_compile.optimizers import OptimizerSpec
        >>> momentum = OptimizerSpec.parse("SGD(momentum=0.9)")
        >>> for steps in (3, 300):
        ...     training = Training(momentum, 0.1, steps, gain=2.0**-80)
        ...     print(f"{predicted_digit_error(training, CODES['linear16']):.3f}")
        0.102
        2.422
    """
    if training.optimizer.name in NOT_LINEAR or lost_to_decay(training):
        return math.inf
    if training.eps is not None and training.eps <= 0:
        return math.inf  # g² underflows, and 0/0 is NaN
    if training.optimizer.name in SIGN_ONLY:
        return 0.0 if code.largest_signal == 1 else math.inf
    adaptive = 0.0
    if training.eps is not None:
        adaptive = code.adaptive_error_bound(training.gain, training.eps)
    if training.theta_dtype == "float32" and code.largest_signal == 1:
        return 0.0  # |θ| = |c| under every odd elementwise optimizer (Lemma 2)
    if (
        training.theta_dtype == "float32" and code.linear_is_exact
        and adaptive / code.sensitivity < training.unit / 2
    ):  # fmt: skip
        return 0.0  # then √v + ε is ε itself
    first, each = training.roundings
    bound = code.digit_error_bound(training.scalings, training.unit, first=first, each=each)
    return bound + adaptive


def lost_to_decay(training: Training) -> bool:
    """Whether decay erases the signal, overshoots zero, or is no decay (Lemmas 2 and 4)."""
    return training.l2_decay or training.decayed >= 1


def smallest_code(training: Training) -> tuple[DigitCode, str]:
    """The code with the fewest parameters per weight that is guaranteed, and why.

    Example:
        >>> from gdu_compile.optimizers import OptimizerSpec
        >>> adamw = OptimizerSpec.parse("AdamW()")
        >>> [smallest_code(Training(adamw, 1e-3, steps, 2.0**-80))[0].name for steps in (9, 999)]
        ['linear16', 'float16']
    """
    errors = {name: predicted_digit_error(training, code) for name, code in CODES.items()}
    fitting = [name for name, error in errors.items() if error < CODES[name].room]
    name = fitting[0] if fitting else min(errors, key=lambda name: errors[name])
    what = f"{training.optimizer}, {training.steps} steps, {training.theta_dtype} θ"
    parameters = encoding_of(CODES[name], "float32").digits
    if not fitting:
        return CODES[name], f"no code is guaranteed for {what}"
    return CODES[name], (
        f"the smallest that is guaranteed for {what}: {parameters} parameters a float32 weight, "
        f"predicted digit error {errors[name]:.2g} of 1"
    )


def warnings_for(training: Training, code: DigitCode) -> list[str]:
    """What THEORY does not promise for this combination, in sentences."""
    optimizer, found = training.optimizer, []
    allowed = training.guaranteed(code)
    one_bit = code.largest_signal == 1
    if optimizer.name in NOT_LINEAR:
        found.append(f"{optimizer.name} is not carried: {NOT_LINEAR[optimizer.name]} (Lemma 4)")
    if optimizer.name in SIGN_ONLY and not one_bit:
        found.append(f"{optimizer.name} sees signs only, which needs --digits linear1 (Lemma 4)")
    elif allowed < 0 and predicted_digit_error(training, code) > 0:
        found.append(f"{code.name} needs more precision than {training.theta_dtype} θ has "
                     "(Lemma 2); --digits auto takes a code that does not")  # fmt: skip
    elif training.scalings > allowed and predicted_digit_error(training, code) > 0:
        found.append(
            f"{optimizer} scales θ in every step: {code.name} with {training.theta_dtype} θ is "
            f"guaranteed for {allowed} steps after recording, not for {training.scalings} "
            "(Lemma 2); --digits auto takes a code that is"
        )
    if training.eps is not None and not one_bit:
        found += adaptive_warnings(training, code, training.eps)
    if not training.l2_decay:
        found += decay_warnings(training)
    return found


def adaptive_warnings(training: Training, code: DigitCode, eps: float) -> list[str]:
    """Where an adaptive optimizer is not linear (Lemma 4)."""
    name, found = training.optimizer.name, []
    if training.l2_decay:
        found.append(f"L2 weight_decay inside {name} is not carried; "
                     "use decoupled decay, as AdamW does (Lemma 4)")  # fmt: skip
    if eps <= 0:
        found.append(f"{name} with eps = 0 sees signs only: not carried (Lemma 4)")
    elif (error := code.adaptive_error_bound(training.gain, eps)) >= 1:
        exponent = math.floor(math.log2(training.gain / error))
        found.append(
            f"{name} is linear only for gradients far below its eps = {eps:g}: with {code.name} "
            f"that needs --gain 2**{exponent - 4} or less (Lemma 4)"
        )
    return found


def decay_warnings(training: Training) -> list[str]:
    """Where decay loses the signal."""
    step = training.lr * training.decay
    if step and lost_to_decay(training):
        return ["decay with momentum overshoots zero: lr·weight_decay must stay "
                "below (1 − √momentum)² (Lemma 2)"]  # fmt: skip
    if training.steps * step > 29:
        return [f"decay takes the calibrators out of the normal floats after about {29 / step:.0f} "
                f"steps, and {training.steps} are to be made (Lemma 4)"]  # fmt: skip
    return []
