"""An evolution strategy: momentum with a gradient that is estimated from losses alone."""

from __future__ import annotations

import torch
from torch import Tensor

from gdu_compile.oracles.traced.base import SGD, Base, Inputs, State
from gdu_compile.oracles.traced.random import signs

SQUARE = "squared differences"
"""F² in the state."""
BETA = 0.99
"""How slowly the size of the differences is averaged."""
LEAST = 1e-30
"""In place of a size of 0."""


class Evolution(SGD):
    """Antithetic pairs of weights w ± σε around the present ones, ε of random signs.

    With f = loss(w + σε) − loss(w − σε) of each pair, the estimate is Σ f·ε/(√pairs·F), F² the
    average of f² over the pairs and past steps: its elements have a variance of about 1, and less
    where the losses become flat.  Signs, and not normal numbers, because they are exact, and were
    more accurate here at equal cost.

    Args:
        base, lr, momentum, schedule, steps, batch_size: as for ``SGD``.
        sigma: σ.
        pairs: how many pairs a step.
        seed: of the order of the samples, and of ε.
    """

    def __init__(
        self, base: Base, *, lr: float, sigma: float, pairs: int, momentum: float, schedule: str,
        steps: int, batch_size: int | None, seed: int,
    ) -> None:  # fmt: skip
        super().__init__(base, lr=lr, momentum=momentum, schedule=schedule, steps=steps,
                         batch_size=batch_size, seed=seed)  # fmt: skip
        self.sigma, self.pairs = sigma, pairs

    def init(self, seed: int) -> State:
        """F², too."""
        return super().init(seed) | {SQUARE: torch.zeros(())}

    def step(self, state: State, X: Inputs, Y: Tensor, i: Tensor) -> State:  # noqa: N803
        """One step along the estimate."""
        weights = self.weights(state)
        elements = sum(weight.numel() for weight in weights.values())
        noise = signs([self.pairs, elements], i, seed=self.seed)  # pairs x d
        change = self.differences(weights, noise, X, Y)
        square = BETA * state[SQUARE] + (1 - BETA) * change.square().mean()
        correction = 1 - torch.tensor(BETA, dtype=torch.float64) ** (i + 1)
        size = torch.sqrt(self.pairs * square / correction.to(square.dtype))
        estimate = change @ noise / size.clamp(min=LEAST)
        return self.updated(state, shaped(estimate, weights), i) | {SQUARE: square}

    def differences(self, weights: State, noise: Tensor, X: Inputs, Y: Tensor) -> Tensor:  # noqa: N803
        """loss(w + σε) − loss(w − σε) for every ε; all networks run as one batch of networks."""

        def loss(away: Tensor) -> Tensor:
            parts = shaped(away, weights)
            return self.base.loss({name: w + parts[name] for name, w in weights.items()}, X, Y)

        losses = torch.func.vmap(loss)(torch.cat([self.sigma * noise, -self.sigma * noise]))
        up, down = torch.split(losses, self.pairs)
        return (up - down).to(noise.dtype)


def shaped(vector: Tensor, weights: State) -> State:
    """The parts of a vector as tensors like the weights."""
    parts = torch.split(vector, [weight.numel() for weight in weights.values()])
    return {name: part.reshape(weight.shape).to(weight.dtype)
            for (name, weight), part in zip(weights.items(), parts, strict=True)}  # fmt: skip
