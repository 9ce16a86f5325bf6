"""Optimizers as PyTorch writes them: ``SGD(momentum=0.9)``, and what recording can carry.

The text is parsed, never evaluated.  ``warnings_for`` compares optimizer, steps
and digit code with the bounds of THEORY Lemmas 2 and 4 before training.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gdu_compile.digits import DigitCode
from gdu_compile.errors import InputError

if TYPE_CHECKING:
    import torch

Scalar = float | int | bool | str | None | tuple[float, ...]

SIGN_ONLY = {"Rprop"}
ADAPTIVE = {"Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta",
            "Adafactor", "SparseAdam"}  # fmt: skip
DECOUPLED = {"AdamW", "Adafactor"}
NOT_CARRIED = {
    "LBFGS": "it needs a closure and several evaluations a step",
    "Muon": "it orthogonalises updates, which destroys the ratio of signal to calibrator",
    "SparseAdam": "it takes sparse gradients only",
}


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer class of torch.optim and its keyword arguments.

    Example:
        >>> spec = OptimizerSpec.parse("SGD(momentum=0.9, nesterov=True)")
        >>> spec.name, spec.arguments
        ('SGD', {'momentum': 0.9, 'nesterov': True})
        >>> str(spec)
        'SGD(momentum=0.9, nesterov=True)'
    """

    name: str
    arguments: dict[str, Scalar]

    @classmethod
    def parse(cls, text: str) -> OptimizerSpec:
        """Read ``Name`` or ``Name(key=literal, …)``.

        Raises:
            InputError: the text is nothing of that form.
        """
        try:
            node = ast.parse(text.strip(), mode="eval").body
            if isinstance(node, ast.Name):
                return cls(node.id, {})
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
                raise ValueError
            arguments = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
            if len(arguments) < len(node.keywords):
                raise ValueError("a keyword is there twice")
        except Exception as error:  # Python's parser raises six types on strange text
            raise InputError(
                f"--optimizer {text[:80]!r} cannot be read; write it as in PyTorch: "
                '"SGD(momentum=0.9, nesterov=True)"'
            ) from error
        if "lr" in arguments:
            raise InputError(f"--optimizer {text!r}: give the learning rate with --lr")
        return cls(node.func.id, arguments)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.arguments.items())})"

    def build(self, parameters: Iterable[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """The torch optimizer.

        Raises:
            InputError: torch.optim has no such class, or it refuses the arguments.
        """
        import torch

        kind = getattr(torch.optim, self.name, None)
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            raise InputError(f"--optimizer: torch.optim has no class {self.name!r}")
        if self.name in NOT_CARRIED:
            raise InputError(f"--optimizer {self.name}: not supported, {NOT_CARRIED[self.name]}")
        try:
            make: Callable[..., torch.optim.Optimizer] = kind
            return make(parameters, lr=lr, **self.arguments)
        except Exception as error:  # whatever the class makes of these arguments
            raise InputError(f"--optimizer {self} with lr {lr}: {error}") from error

    def check(self, lr: float) -> None:
        """Raise InputError when the optimizer cannot be built, or cannot take steps."""
        import torch

        theta = torch.nn.Parameter(torch.zeros(2, 2))
        optimizer = self.build([theta], lr)
        theta.grad = torch.ones_like(theta)
        try:
            optimizer.step()
            optimizer.step()  # momentum looks at some arguments from the second step on
        except Exception as error:  # as above: some arguments are looked at in step() only
            raise InputError(f"--optimizer {self} cannot take a step: {error}") from error

    def number(self, name: str) -> float:
        """A numeric argument; 0 when it is not given."""
        value = self.arguments.get(name)
        return float(value) if isinstance(value, int | float) else 0.0

    def scales_every_step(self, lr: float) -> bool:
        """Whether θ is scaled again in each later step (momentum, decay, averaging)."""
        adaptive_decay = self.name == "AdamW" and "weight_decay" not in self.arguments
        return bool(
            self.number("momentum")
            or (self.number("weight_decay") and lr)
            or adaptive_decay
            or self.name in ADAPTIVE | {"ASGD"}
        )

    def warnings_for(self, code: DigitCode, *, lr: float, steps: int, gain: float) -> list[str]:
        """What THEORY does not promise for this combination, in sentences."""
        found = []
        if self.scales_every_step(lr) and steps - 1 > code.exact_scalings():
            found.append(
                f"{self} scales θ in every step: {code.name} is guaranteed for "
                f"{code.exact_scalings()} steps after recording, not for {steps - 1} (Lemma 2)"
            )
        if self.name in SIGN_ONLY:
            found.append(f"{self.name} sees signs only, which needs 1-bit digits (Lemma 4)")
        if self.name in ADAPTIVE:
            if self.number("weight_decay") and self.name not in DECOUPLED:
                found.append(f"L2 weight_decay inside {self.name} is not carried; "
                             "use decoupled decay, as AdamW does (Lemma 4)")  # fmt: skip
            if "eps" in self.arguments and self.number("eps") < 1e-12 and gain > 2.0**-92:
                found.append("eps below 1e-12 needs --gain 2**-92 (Lemma 4); eps = 0 never works")
            if gain > 2.0**-64:
                found.append(f"{self.name} is linear only for a quiet gain, 2**-80 (Lemma 4)")
        if self.number("weight_decay") and self.name == "SGD":
            decay, momentum = lr * self.number("weight_decay"), self.number("momentum")
            if decay >= (1 - momentum**0.5) ** 2:
                found.append("decay with momentum overshoots zero: lr·weight_decay must stay "
                             "below (1 − √momentum)² (Lemma 2)")  # fmt: skip
        return found
