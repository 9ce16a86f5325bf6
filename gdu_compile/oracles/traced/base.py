"""The base as a function of its weights, and oracles that train it by gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

import onnx_ir as ir
import torch
import torch.nn.functional as nnf
from torch import Tensor

from gdu_compile.contracts import state_of
from gdu_compile.logits import value_at
from gdu_compile.number_formats import FLOATS
from gdu_compile.oracles.problem import Problem
from gdu_compile.torch_backend import lower_to_torch
from gdu_compile.weights import dtype_name, is_usual_weight

State = dict[str, Tensor]
Inputs = Tensor | tuple[Tensor, ...]
STATISTICS = {3, 4}
"""BatchNormalization's inputs that are averages over data."""


class Oracle(Protocol):
    """What an algorithm written in PyTorch has to have.

    Attributes:
        steps: how many steps it takes.
        batch_size: samples a step; None for all of them.
        seed: of the order of the samples, and handed to ``init``.
    """

    steps: int
    batch_size: int | None
    seed: int

    def init(self, seed: int) -> State:
        """The state before the first step: tensors by name, which keep dtype and shape."""
        ...

    def step(self, state: State, X: Inputs, Y: Tensor, i: Tensor) -> State:  # noqa: N803
        """The state after step i, an int64 scalar from 0.

        X [b, …] is the batch, a tuple where the base has several inputs, and Y int64 [b] its
        labels.  Plain functions of tensors, torch.func.grad among them.
        """
        ...

    def weights(self, state: State) -> dict[str, Tensor]:
        """Weight of the base → its value."""
        ...


class Base:
    """A base network as a function of its weights.

    Attributes:
        weights: the initial values of the weights that can be trained: floats, and neither
            constants nor the statistics of BatchNormalization, which keep their values.
        classes: C; 1 for one logit.
        kind: what its output is (LogitsSite.kind).
        samples: the number of training samples.

    Example:
        >>> from gdu_compile.oracles import problem_of
        >>> base = Base(problem_of("models/iris_binary.onnx", 150))
        >>> list(base.weights)
        ['fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias']
        >>> base(base.weights, torch.zeros(5, 4)).shape  # in front of the Sigmoid
        torch.Size([5, 1])
    """

    def __init__(self, problem: Problem) -> None:
        model = problem.base.clone()
        model.graph.outputs[:] = [value_at(model.graph, problem.site.name)]
        names = trained_weights(problem.base)
        self._module = lower_to_torch(model, names)
        self._attributes = {name: self._module.attribute_of[name] for name in names}
        parameters = dict(self._module.named_parameters())
        self.weights = {
            name: parameters[attribute].detach() for name, attribute in self._attributes.items()
        }
        self.classes, self.kind = problem.site.classes, problem.site.kind
        self.samples = problem.samples

    def __call__(self, weights: Mapping[str, Tensor], X: Inputs) -> Tensor:  # noqa: N803
        """The logits, in front of a Softmax or Sigmoid; weights that are not given are initial."""
        held = {self._attributes[name]: weight for name, weight in weights.items()}
        inputs = X if isinstance(X, tuple) else (X,)
        result: Tensor = torch.func.functional_call(self._module, held, inputs)
        return result

    def loss(self, weights: Mapping[str, Tensor], X: Inputs, Y: Tensor) -> Tensor:  # noqa: N803
        """The mean over the batch: cross-entropy for classes, binary cross-entropy for one logit
        or for a Sigmoid, squared error for values; all by one-hot targets."""
        z = self(weights, X).reshape(len(Y), -1)  # b x C
        first = 1 if self.classes == 1 else 0
        targets = (Y[:, None] == torch.arange(first, first + self.classes)).to(z.dtype)  # b x C
        if self.kind == "values":
            return (z - targets).square().sum(1).mean()
        if self.kind == "sigmoid" or self.classes == 1:
            return nnf.binary_cross_entropy_with_logits(z, targets, reduction="none").sum(1).mean()
        return -(targets * torch.log_softmax(z, 1)).sum(1).mean()


def trained_weights(base: ir.Model) -> list[str]:
    """The weights that gradient descent trains."""
    floats = {kind.name for kind in FLOATS}
    lifted = state_of(base).lifted or {}
    return [
        name for name, value in base.graph.initializers.items()
        if is_usual_weight(value) and dtype_name(value) in floats and name not in lifted
        and not is_statistic(value)
    ]  # fmt: skip


def is_statistic(value: ir.Value) -> bool:
    """Whether it is a running mean or variance."""
    return any(
        node.op_type == "BatchNormalization" and index in STATISTICS for node, index in value.uses()
    )


class GradientDescent:
    """Mini-batch gradient descent on all weights of the base; a subclass has the update.

    Args:
        base: the base network.
        lr: the learning rate of the first step.
        schedule: "linear", down to 0 after the last step, or "constant".
        steps: how many steps.
        batch_size: samples a step; None for all of them.
        seed: of the order of the samples.
    """

    memories: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors that are kept for each weight, 0 at the start."""

    def __init__(
        self, base: Base, *, lr: float, schedule: str, steps: int, batch_size: int | None,
        seed: int,
    ) -> None:  # fmt: skip
        self.base, self.lr, self.schedule, self.steps = base, lr, schedule, steps
        self.batch_size, self.seed = batch_size, seed

    def rate(self, i: Tensor) -> Tensor:
        """The learning rate of step i, float64."""
        if self.schedule == "constant":
            return torch.tensor(self.lr, dtype=torch.float64)
        return self.lr * (self.steps - i).to(torch.float64) / self.steps

    def init(self, seed: int) -> State:
        """The initial weights, and memories of 0."""
        state = dict(self.base.weights)
        for memory in self.memories:
            state |= {f"{memory} {n}": torch.zeros_like(w) for n, w in self.base.weights.items()}
        return state

    def step(self, state: State, X: Inputs, Y: Tensor, i: Tensor) -> State:  # noqa: N803
        """One step along the derivative of the loss."""
        weights = self.weights(state)
        return self.updated(state, torch.func.grad(self.base.loss)(weights, X, Y), i)

    def updated(self, state: State, gradients: State, i: Tensor) -> State:
        """All weights and their memories after step i."""
        after: State = {}
        for name, weight in self.weights(state).items():
            keys = [f"{memory} {name}" for memory in self.memories]
            memories = [state[key] for key in keys]
            after |= zip([name, *keys], self.update(i, weight, gradients[name], *memories),
                         strict=True)  # fmt: skip
        return after

    def update(
        self, i: Tensor, weight: Tensor, gradient: Tensor, *memories: Tensor
    ) -> tuple[Tensor, ...]:
        """The weight and its memories after step i."""
        raise NotImplementedError

    def weights(self, state: State) -> dict[str, Tensor]:
        """The weights."""
        return {name: state[name] for name in self.base.weights}


class SGD(GradientDescent):
    """Stochastic gradient descent with momentum, as torch.optim.SGD has it."""

    memories = ("momentum",)

    def __init__(
        self, base: Base, *, lr: float, momentum: float, schedule: str, steps: int,
        batch_size: int | None, seed: int,
    ) -> None:  # fmt: skip
        super().__init__(base, lr=lr, schedule=schedule, steps=steps, batch_size=batch_size,
                         seed=seed)  # fmt: skip
        self.momentum = momentum

    def update(
        self, i: Tensor, weight: Tensor, gradient: Tensor, *memories: Tensor
    ) -> tuple[Tensor, ...]:
        """v ← μ·v + g, w ← w − η·v."""
        velocity = self.momentum * memories[0] + gradient
        return weight - self.rate(i).to(weight.dtype) * velocity, velocity


class Adam(GradientDescent):
    """Adam with its usual constants, as torch.optim.Adam has it."""

    memories = ("mean", "square")
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8

    def update(
        self, i: Tensor, weight: Tensor, gradient: Tensor, *memories: Tensor
    ) -> tuple[Tensor, ...]:
        """w ← w − η·m̂/(√v̂ + ε); η and the corrections of m and v are taken in float64."""
        mean = self.beta1 * memories[0] + (1 - self.beta1) * gradient
        square = self.beta2 * memories[1] + (1 - self.beta2) * gradient * gradient
        t = (i + 1).to(torch.float64)
        first, second = (1 - torch.tensor(beta, dtype=torch.float64) ** t
                         for beta in (self.beta1, self.beta2))  # fmt: skip
        root = torch.sqrt(square / second.to(weight.dtype)) + self.epsilon
        rate = (self.rate(i) / first).to(weight.dtype)
        return weight - rate * mean / root, mean, square
