"""An oracle of one's own in PyTorch: Lion, with a warm-up of the learning rate.

    cd examples/04_own_oracle
    gdu-compile ../../models/digits_mlp.onnx --oracle "lion:Lion(lr=0.002)" \
        --data ../../models/digits.npz --hold-out 0.2

Chen et al. 2023, arXiv 2302.06675: every weight moves by the sign of a mixture of its gradient and
of the mean of the gradients before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gdu_compile.oracles.traced.base import Base, Inputs, State


class Lion:
    """Lion; the rate grows to ``lr`` in the first ``warm_up`` steps."""

    def __init__(self, base: Base, *, lr: float = 0.002, decay: float = 0.01, warm_up: int = 20,
                 steps: int = 300) -> None:  # fmt: skip
        self.base, self.lr, self.decay, self.warm_up = base, lr, decay, warm_up
        self.steps, self.batch_size, self.seed = steps, 64, 0

    def init(self, seed: int) -> State:
        """The initial weights, and a mean gradient of 0 for each."""
        initial = self.base.weights
        return initial | {f"mean of {name}": 0 * weight for name, weight in initial.items()}

    def step(self, state: State, X: Inputs, Y: Tensor, i: Tensor) -> State:  # noqa: N803
        """w ← w − η·(sign(0.9·m + 0.1·g) + λ·w), m ← 0.99·m + 0.01·g."""
        weights = {name: state[name] for name in self.base.weights}
        gradients = torch.func.grad(self.base.loss)(weights, X, Y)
        rate = self.lr * torch.clamp((i + 1) / self.warm_up, max=1)
        after = {}
        for name, weight in weights.items():
            mean, gradient = state[f"mean of {name}"], gradients[name]
            direction = torch.sign(0.9 * mean + 0.1 * gradient)
            after[name] = weight - rate * (direction + self.decay * weight)
            after[f"mean of {name}"] = 0.99 * mean + 0.01 * gradient
        return after

    def weights(self, state: State) -> dict[str, Tensor]:
        """The last weights."""
        return {name: state[name] for name in self.base.weights}
