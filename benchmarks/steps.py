"""The recording step: against an ordinary one and a plain copy, and where its time goes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import Candidate, Row, alternate, timed_row
from gdu_compile.metadata import Extension
from gdu_compile.synthetic import synthetic_data
from gdu_compile.torch_backend import GraphModule

Inputs = dict[str, npt.NDArray[Any]]

BATCH = 64
LEARNING_RATE = 1e-3


class Step:
    """One step of SGD on cross-entropy: zero_grad, forward, backward, update."""

    def __init__(
        self, module: GraphModule, logits: str, inputs: Inputs, labels: torch.Tensor
    ) -> None:
        self.module = module
        self.logits = logits
        self.inputs = {name: torch.from_numpy(array) for name, array in inputs.items()}
        self.labels = labels
        self.optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        logits = self.module.run(self.inputs)[self.logits]
        torch.autograd.backward(torch.nn.functional.cross_entropy(logits, self.labels))
        self.optimizer.step()

    @torch.no_grad()
    def forget(self) -> None:
        """θ back to 0: not armed."""
        for theta in self.module.parameters():
            theta.zero_()


def batch_of(extended: ir.Model) -> tuple[Inputs, torch.Tensor]:
    """A seeded batch of ``BATCH`` samples with labels."""
    site = Extension.from_metadata(extended.metadata_props).logits
    data = synthetic_data(extended.graph.inputs, site, seed=0)
    inputs = {name: array[:BATCH] for name, array in data.inputs.items()}
    return inputs, torch.from_numpy(data.labels[:BATCH])


def step_rows(recording: Step, base: Step, facts: Extension, repeats: int) -> Iterator[Row]:
    """(d) One recording step against an ordinary one, and against a plain copy."""
    digits = sum(math.prod(bucket.theta_shape(facts.code)) for bucket in facts.buckets)
    signal, theta = torch.ones(digits, dtype=torch.uint16), torch.zeros(digits)
    with one_torch_thread():
        seconds = alternate(
            {"record": Candidate(recording, recording.forget), "sgd": Candidate(base),
             "copy": Candidate(partial(theta.copy_, signal))}, repeats,
        )  # fmt: skip
    for against, name in ((f"SGD step of the base, batch {BATCH}", "sgd"),
                          ("read signal, write θ once (copy)", "copy")):  # fmt: skip
        yield timed_row("recording step, 1 thread", against, seconds[name], seconds["record"],
                        "ms", 1e3)  # fmt: skip


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """One thread for torch: on a busy machine several wait for each other, up to 100 ms a step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def profiled(step: Step, repeats: int) -> list[dict[str, Any]]:
    """Median milliseconds of a recording step by operator of torch, the largest first."""
    seen: dict[str, list[float]] = defaultdict(list)
    with one_torch_thread():
        for _ in range(repeats):
            step.forget()
            with profile(activities=[ProfilerActivity.CPU]) as measured:
                step()
            for event in measured.key_averages():
                seen[event.key].append(event.self_cpu_time_total / 1e3)
    rows = [{"operator": name, "ms": median(times)} for name, times in seen.items()]
    return sorted(rows, key=lambda row: -float(str(row["ms"])))
