"""Training an extended model with torch: ordinary autograd, ordinary optimizer, θ only."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from gdu_compile.batches import Indices, every_sample, steps_of_a_pass, whole_batches
from gdu_compile.calls import part
from gdu_compile.data import Dataset, fixed_batch
from gdu_compile.digits import Array
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.losses import LossSpec
from gdu_compile.metadata import Extension
from gdu_compile.optimizers import OptimizerSpec
from gdu_compile.torch_backend import GraphModule, lower_to_torch, to_array, to_tensor

logger = logging.getLogger(__name__)
ARMED_BEFORE = "armed before the first step: nothing was recorded by this training"
Progress = Callable[[int, int], None]
SMALLEST_NORMAL = 2.0**-126
"""Of float32; below it θ loses bits."""


@dataclass(frozen=True)
class Training:
    """What a training run has left.

    Attributes:
        theta: bucket name → [rows + 1, digits].
        steps: optimizer steps made.
        armed_at_step: after which step the network was armed, from 1; 0 if it was
            before the first; None if never.
        gradient_after_arming: max |∂L/∂θ| over all backward passes of the armed
            network; None when there was none.
        losses: the loss before each step.
        batch_size: samples a step.
        seconds: wall time.
        warnings: what a reader should know.
    """

    theta: dict[str, Array]
    steps: int
    armed_at_step: int | None
    gradient_after_arming: float | None
    losses: list[float]
    batch_size: int
    seconds: float
    warnings: list[str]


def check_device(device: str) -> None:
    """Raise InputError when torch has no such device."""
    try:
        (torch.zeros(1, device=device) + 1).item()
    except Exception as error:  # a missing backend raises whatever it likes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"--device {device}: torch cannot use it ({reason}); --device cpu always works"
        ) from error


def batch_size_for(model: ir.Model, data: Dataset, wanted: int, limit: int | None) -> int:
    """The number of samples a step.

    Args:
        model: the extended model; a batch that it fixes is taken.
        data: the samples.
        wanted: as asked for; 0 is the full batch.
        limit: N of Lemma 1; it counts samples, tokens or pixels.  None for learn, which has none.

    Raises:
        InputError: N is exceeded.
    """
    if data.calls:
        size = 1
    else:
        size = fixed_batch(model.graph.inputs) or min(wanted or len(data), len(data))
    count = size * data.positions
    if limit is not None and count > limit:
        what = f"{count} labels ({size} samples)" if data.positions > 1 else str(size)
        raise InputError(
            f"a batch of {what} is larger than N = {limit} that the model was compiled for "
            "(THEORY Lemma 1); use a smaller --batch-size or compile with a larger --batch-limit"
        )
    return size


def batches(extended: ir.Model, data: Dataset, size: int, seed: int) -> Iterator[Indices]:
    """The batches of the method: record needs none in particular, learn every sample."""
    facts = Extension.from_metadata(extended.metadata_props)
    if facts.memory is None:
        return whole_batches(len(data), size, seed)
    fixed = fixed_batch(extended.graph.inputs) is not None
    return every_sample(len(data), size, seed, fixed=fixed)


def train(
    extended: ir.Model,
    data: Dataset,
    *,
    loss: LossSpec,
    optimizer: OptimizerSpec,
    lr: float,
    steps: int,
    batch_size: int,
    device: str = "cpu",
    seed: int = 0,
    measure: bool = True,
    progress: Progress | None = None,
) -> Training:
    """Train θ by gradient descent on a loss.

    The gradient is that of ``loss.backward()``; nothing else touches θ.  After the
    last step one more backward pass, without a step, measures the gradient of the
    armed network when no step has.

    Args:
        extended: the extended model; it is left as it is.
        data: samples and labels.
        loss: one that goes with the output kind.
        optimizer: an optimizer of torch.optim.
        lr: the learning rate.
        steps: optimizer steps, 1 or more.
        batch_size: samples a step; see ``batch_size_for``.
        device: a torch device.
        seed: of the order of samples.
        measure: whether the gradient of the armed network is measured when no step has.
        progress: called with (steps done, steps).

    Raises:
        InputError: the labels do not fit the output.
        UnsupportedError: an operator is missing before anything was recorded.
    """
    begin = time.perf_counter()
    facts = Extension.from_metadata(extended.metadata_props)
    module = lower_to_torch(extended, output=facts.logits.output).to(device)
    run = Run(module, facts, data, loss, device, batch_size)
    chosen = optimizer.build(run.module.parameters(), lr)
    order = batches(extended, data, batch_size, seed)
    armed_at = 0 if run.armed() else None
    warnings: list[str] = []
    done = 0
    for indices in order:
        was_armed = run.armed()
        try:
            run.backward(indices, was_armed)
        except UnsupportedError as error:
            if not was_armed:
                raise
            warnings.append(f"training ended after step {done}: {error.message}")
            break
        if done == steps:
            break  # this pass was the measurement after the last step
        chosen.step()
        done += 1
        if armed_at is None and run.armed():
            armed_at = done
        if progress is not None:
            progress(done, steps)
        if done == steps and not (measure and run.armed() and run.gradient is None):
            break
    if armed_at is None:
        warnings.append(run.unarmed_reason(lr))
    elif armed_at == 0:
        warnings.append(ARMED_BEFORE)
    elif (smallest := run.smallest_calibrator()) < SMALLEST_NORMAL:
        warnings.append(
            f"a calibrator is {smallest:.1e}, below the normal floats, so θ is not exact: lr·|κ| "
            "is too small; use a larger --lr or --gain (THEORY Lemma 4)"
        )
    return Training(
        theta=run.theta(), steps=done, armed_at_step=armed_at,
        gradient_after_arming=run.gradient, losses=run.losses[:steps], batch_size=batch_size,
        seconds=time.perf_counter() - begin, warnings=warnings,
    )  # fmt: skip


class Run:
    """One training run: the module, its θ, and what was measured on the way."""

    def __init__(
        self, module: GraphModule, facts: Extension, data: Dataset, loss: LossSpec, device: str,
        batch_size: int,
    ) -> None:  # fmt: skip
        self.module = module
        self.facts = facts
        self.data = data
        self.loss = loss
        self.device = device
        self.losses: list[float] = []
        self.gradient: float | None = None
        self.first_gradient: float | None = None
        self.batch_size = batch_size

    def armed(self) -> bool:
        """All calibrators ≠ 0."""
        return all(
            bool((self.facts.calibrators(theta) != 0).all()) for theta in self.module.parameters()
        )

    def smallest_calibrator(self) -> float:
        """min |c|."""
        return min(
            float(self.facts.calibrators(theta.detach()).abs().min())
            for theta in self.module.parameters()
        )

    def backward(self, indices: Indices, armed: bool) -> None:
        """Forward, loss, backward on one batch; measures the gradient of an armed network."""
        self.module.zero_grad(set_to_none=True)
        batch, site = self.data.take(indices), self.facts.logits
        arrays, labels = batch.inputs, batch.labels
        if site.calls:  # one call, without the axis of calls
            arrays, labels = part(arrays, 0, 1, calls=True), np.asarray(labels[0])
        inputs = {
            name: to_tensor(ir.Tensor(array)).to(self.device) for name, array in arrays.items()
        }
        # float32: the loss of a float16 output would lose what the recorder's gradient is made of.
        output = self.module.run(inputs)[site.output].float()
        loss = self.loss(output, torch.from_numpy(labels).to(self.device), site)
        loss.backward()  # type: ignore[no-untyped-call]
        self.losses.append(loss.item())
        largest = max(largest_gradient(theta, armed) for theta in self.module.parameters())
        if armed:
            self.gradient = max(largest, self.gradient or 0.0)
        elif self.first_gradient is None:
            self.first_gradient = largest

    def theta(self) -> dict[str, Array]:
        """θ as numpy arrays; the gradients, as large again, are let go first."""
        self.module.zero_grad(set_to_none=True)
        return {name: to_array(theta) for name, theta in self.module.named_parameters()}

    def unarmed_reason(self, lr: float) -> str:
        """Why nothing was recorded."""
        if lr == 0:
            return "nothing was recorded: the learning rate is 0"
        if self.facts.memory is not None and (filled := self.filled()):
            return self.unfilled_reason(filled, self.facts.memory.slots)
        if self.first_gradient == 0:
            return f"nothing was recorded: {self.zero_gradient_reason()} (THEORY Lemma 1)"
        if self.first_gradient is not None and not math.isfinite(self.first_gradient):
            return f"nothing was recorded: {self.loss} has no finite gradient at the start"
        return "nothing was recorded: a calibrator is still 0 (lr·|κ| too small? THEORY Lemma 4)"

    def filled(self) -> int:
        """Calibrators ≠ 0."""
        return sum(
            int(self.facts.calibrators(theta.detach()).count_nonzero())
            for theta in self.module.parameters()
        )

    def unfilled_reason(self, filled: int, slots: int) -> str:
        """Why the memory of learn is not full."""
        return (
            f"the memory holds {filled} of {slots} samples, so the network does not answer: one "
            f"pass over the data takes {steps_of_a_pass(slots, self.batch_size)} steps of "
            f"{self.batch_size}; a sample without a gradient (a class of weight 0) leaves its slot "
            "empty"
        )

    def zero_gradient_reason(self) -> str:
        """Why the loss does not move at the start."""
        labels, ignored = self.data.labels, self.data.ignore_index
        if ignored is not None and bool((labels == ignored).all()):
            return f"every label is ignored (ignore_index {ignored}), so the loss has gradient 0"
        what = f"{self.loss} has gradient 0 at the start"
        if self.loss.name == "multi_margin_loss":
            return f"{what}: class 0 is past its margin, and no label of the batch is 0"
        if self.facts.logits.kind == "values":
            return f"{what}: on average column 0 of the targets is z0 = {self.facts.start:g}"
        return f"{what}: the labels of the batch cancel"


def largest_gradient(theta: torch.nn.Parameter, armed: bool) -> float:
    """max |∂L/∂θ|; infinite for NaN, and when an armed θ got no gradient at all: that must not pass
    as 0.  A bucket of the memory that the batch does not touch gets none, and need not."""
    if theta.grad is None:
        return math.inf if armed else 0.0
    low, high = torch.aminmax(theta.grad)  # without a tensor of absolute values
    largest = max(abs(float(low)), abs(float(high)))
    return math.inf if math.isnan(largest) else largest
