"""The exported step against the original one in PyTorch, on the training set, before it is used.

How near two correct steps come depends on the step: Adam divides a gradient by its own size, so
where the gradient is nothing but rounding, any two runs differ by as much as the step itself.  So
the tolerance is measured, tensor by tensor: what the original does when its inputs, and the results
of all its operators, are moved by one rounding error (``roundoff.py``), and a little for sums that
are taken in another order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from gdu_compile import runtime
from gdu_compile.digits import Array
from gdu_compile.errors import InputError
from gdu_compile.oracles.traced.base import Oracle, State
from gdu_compile.oracles.traced.roundoff import Nudging, nudged
from gdu_compile.report import OriginalCheck
from gdu_compile.torch_backend import to_array, to_tensor

STEPS = 3
"""How many steps are compared."""
SUMS = 1e-5
"""Of a tensor's change: sums of float32 in another order (measured: up to 2e-6)."""
ROUNDINGS = 4.0
"""How many times the effect of one rounding error everywhere is allowed (measured: about 1)."""
AMPLIFIED = 8.0
"""The same in the end, of one rounding error in the state before every step."""
TRIALS = 3
"""How often that effect is measured; the largest counts, since a unit's kink is met by chance."""
VAGUE = 0.1
"""A tensor whose tolerance is a larger share of its change shows nothing."""


@dataclass(frozen=True)
class Difference:
    """One tensor of the state after one step, in Euclidean norms.

    Attributes:
        step: from 0.
        key: the tensor's name in the state.
        change: of the original.
        difference: between the exported step and the original.
        allowed: the tolerance.
    """

    step: int
    key: str
    change: float
    difference: float
    allowed: float

    @property
    def wrong(self) -> bool:
        """Whether it is too much; NaN is."""
        return not self.difference <= self.allowed

    @property
    def shows(self) -> bool:
        """Whether a wrong step would be seen in it."""
        return self.change > 0 and self.allowed <= VAGUE * self.change

    def __str__(self) -> str:
        share = self.difference / self.change if self.change else float("inf")
        return (f"step {self.step}, {self.key!r}: differs by {share:.1e} of its change, "
                f"allowed {self.allowed / self.change if self.change else 0:.1e}")  # fmt: skip


@dataclass(frozen=True)
class Traced:
    """The algorithm in PyTorch beside its export: an ``oracles.Original``.

    Attributes:
        called: what to call it in messages.
        oracle: the algorithm.
        step_model: one step exported: state, X, Y, i → state, in this order.
        keys: names of the state's tensors, in that order.
        order: which samples each step takes; None for all of them, in their order.
    """

    called: str
    oracle: Oracle
    step_model: ir.Model
    keys: list[str]
    order: npt.NDArray[np.int64] | None

    def check(self, samples: Sequence[Array], labels: Array) -> list[Difference]:
        """Compare the first steps; each begins with the original's state.

        Args:
            samples: one array per field, [n, …].
            labels: int64 [n].

        Raises:
            InputError: they differ by more than the tolerance, or nothing can be said.
        """
        state, found = self.oracle.init(self.oracle.seed), []
        with runtime.on_disk(self.step_model) as path:
            runner = runtime.session(path, "none", called=f"the step of {self.called}")
            names = [value.name for value in runner.get_inputs()]
            for i in range(min(STEPS, self.oracle.steps)):
                batch = self.batch(i, samples, labels)
                given = [*(to_array(state[key]) for key in self.keys), *batch, np.array(i)]
                got = runtime.call(runner, [value.name for value in runner.get_outputs()],
                                   dict(zip(names, given, strict=True)))  # fmt: skip
                after = self.step(state, batch, i)
                found += self.differences(state, after, got, batch, i)
                state = after
        problems = [str(each) for each in found if each.wrong]
        if problems:
            raise InputError(f"the step of {self.called} as ONNX does not compute what PyTorch "
                             "computes, so it is not used", problems)  # fmt: skip
        if not any(each.shows for each in found):
            raise InputError(
                f"the step of {self.called} cannot be compared with PyTorch: no tensor changes by "
                "more than rounding errors; give a larger learning rate, or data that fit",
                [str(each) for each in found[: len(self.keys)]],
            )
        return found

    def compare(
        self, samples: Sequence[Array], labels: Array, weights: Mapping[str, Array]
    ) -> tuple[OriginalCheck, dict[str, Array]]:
        """Run all steps in PyTorch, and compare the weights with those of the graph.

        Training amplifies rounding errors, so this tolerance is measured too: how far the weights
        come when the state is moved by one rounding error before every step.
        """
        found = self.check(samples, labels)
        own = self.run(samples, labels)
        moved = [self.run(samples, labels, torch.Generator().manual_seed(seed))
                 for seed in range(TRIALS)]  # fmt: skip
        pairs = {
            name: (distance(weights[name], array),
                   SUMS + AMPLIFIED * max(distance(other[name], array) for other in moved))
            for name, array in own.items()
        }  # fmt: skip
        vague = [name for name, (_, tolerance) in pairs.items() if not tolerance <= VAGUE]
        telling = [pairs[name] for name in pairs if name not in vague]
        difference, tolerance = max(telling or pairs.values(), key=lambda pair: pair[0] / pair[1])
        check = OriginalCheck(
            agrees=bool(telling) and difference <= tolerance, steps=self.oracle.steps,
            step_difference=max(each.difference / each.change for each in found if each.shows),
            max_relative_diff=difference, tolerance=tolerance, vague=vague,
        )  # fmt: skip
        return check, own

    def run(
        self, samples: Sequence[Array], labels: Array, generator: torch.Generator | None = None
    ) -> dict[str, Array]:
        """All steps in PyTorch, with a generator each from a state that is ``nudged``: the
        weights."""
        state = self.oracle.init(self.oracle.seed)
        for i in range(self.oracle.steps):
            if generator is not None:
                state = {key: nudged(x, generator) for key, x in state.items()}
            state = self.step(state, self.batch(i, samples, labels), i)
        return {name: to_array(weight) for name, weight in self.oracle.weights(state).items()}

    def batch(self, i: int, samples: Sequence[Array], labels: Array) -> list[Array]:
        """The inputs and labels of step i."""
        if self.order is None:
            return [*samples, labels]
        return [array[self.order[i]] for array in (*samples, labels)]

    def step(self, state: State, batch: Sequence[Array], i: int) -> State:
        """One step of the original."""
        *inputs, y = [tensor_of(array) for array in batch]
        given = inputs[0] if len(inputs) == 1 else tuple(inputs)
        after = self.oracle.step(state, given, y, torch.tensor(i))
        return {key: x.detach() for key, x in after.items()}

    def differences(
        self, before: State, after: State, got: Sequence[Array], batch: Sequence[Array], i: int
    ) -> list[Difference]:
        """Every tensor of the state after step i."""
        change = {key: after[key].double() - before[key].double() for key in self.keys}
        effect = dict.fromkeys(self.keys, 0.0)
        generator = torch.Generator().manual_seed(i)
        for _ in range(TRIALS):
            moved = {key: nudged(x, generator) for key, x in before.items()}
            shifted = [to_array(nudged(tensor_of(array), generator)) for array in batch]
            with Nudging(generator):
                there = self.step(moved, shifted, i)
            for key in self.keys:
                other = there[key].double() - moved[key].double()
                effect[key] = max(effect[key], norm(other - change[key]))
        found = []
        for key, array in zip(self.keys, got, strict=True):
            x, size = after[key], norm(change[key])
            allowed = 0.0
            if x.is_floating_point():
                rounding = torch.finfo(x.dtype).eps * norm(x.double())
                allowed = SUMS * size + ROUNDINGS * effect[key] + rounding
            away = norm(tensor_of(array).double() - x.double())
            found.append(Difference(i, key, size, away, allowed))
        return found


def tensor_of(array: Array) -> Tensor:
    """A numpy array as a tensor of its own."""
    return to_tensor(ir.tensor(np.array(array)))


def distance(array: Array, other: Array) -> float:
    """The difference of two tensors, relative to the second, in Euclidean norms."""
    a, b = tensor_of(array).double(), tensor_of(other).double()
    return norm(a - b) / (norm(b) or 1.0)


def norm(x: Tensor) -> float:
    """The Euclidean norm."""
    return float(torch.linalg.vector_norm(x.double()))
