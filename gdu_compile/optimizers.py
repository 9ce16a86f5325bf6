"""Optimizers as PyTorch writes them: ``SGD(momentum=0.9)``; parsed, never evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gdu_compile.call_text import call_text, parse_call
from gdu_compile.errors import InputError

if TYPE_CHECKING:
    import torch

Scalar = float | int | bool | str | None | tuple[float, ...]

NO_PLAIN_STEP = {
    "LBFGS": "it needs a closure and several evaluations a step",
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
        name, arguments = parse_call(text, "--optimizer", "SGD(momentum=0.9, nesterov=True)")
        if "lr" in arguments:
            raise InputError(f"--optimizer {text!r}: give the learning rate with --lr")
        return cls(name, arguments)

    def __str__(self) -> str:
        return call_text(self.name, self.arguments)

    def build(self, parameters: Iterable[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """The torch optimizer.

        Raises:
            InputError: torch.optim has no such class, or it refuses the arguments.
        """
        import torch

        kind = getattr(torch.optim, self.name, None)
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            raise InputError(f"--optimizer: torch.optim has no class {self.name!r}")
        if self.name in NO_PLAIN_STEP:
            raise InputError(f"--optimizer {self.name}: not supported, {NO_PLAIN_STEP[self.name]}")
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

    def at_rest(self) -> OptimizerSpec:
        """The same optimizer, which leaves everything as it is at learning rate 0.

        Rprop takes no heed of the rate: its steps have sizes of their own.
        """
        if self.name != "Rprop":
            return self
        return OptimizerSpec(self.name, {**self.arguments, "step_sizes": (0.0, 0.0)})

    def number(self, name: str, default: float) -> float:
        """A numeric argument, or what it is when it is not given."""
        value = self.arguments.get(name, default)
        return float(value) if isinstance(value, int | float) else default
