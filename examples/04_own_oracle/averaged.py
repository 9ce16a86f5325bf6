"""An oracle of one's own in PyTorch: SGD whose result is the average of all its weights.

    cd examples/04_own_oracle
    gdu-compile ../../models/iris_binary.onnx --oracle "averaged:Averaged(lr=0.1)" \
        --data ../../models/iris.npz

Polyak & Juditsky 1992: the average of the weights along the way is nearer to the minimum than the
last ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gdu_compile.oracles.traced.base import Base, Inputs, State


class Averaged:
    """Stochastic gradient descent, averaged."""

    def __init__(self, base: Base, *, lr: float = 0.1, steps: int = 300) -> None:
        self.base, self.lr = base, lr
        self.steps, self.batch_size, self.seed = steps, 32, 0

    def init(self, seed: int) -> State:
        """The initial weights, and the same as their average."""
        initial = self.base.weights
        return initial | {f"average of {name}": weight for name, weight in initial.items()}

    def step(self, state: State, X: Inputs, Y: Tensor, i: Tensor) -> State:  # noqa: N803
        """One step of SGD, and of the average: a ← a + (w − a)/(i + 2)."""
        weights = {name: state[name] for name in self.base.weights}
        gradients = torch.func.grad(self.base.loss)(weights, X, Y)
        after = {name: weight - self.lr * gradients[name] for name, weight in weights.items()}
        for name in weights:
            average = state[f"average of {name}"]
            after[f"average of {name}"] = average + (after[name] - average) / (i + 2)
        return after

    def weights(self, state: State) -> dict[str, Tensor]:
        """The average."""
        return {name: state[f"average of {name}"] for name in self.base.weights}
