"""A graph as a list of calls on one environment, which maps value names to tensors.

The subgraphs of If, Loop and Scan run in the environment of the graph around them, whose values
they use: nothing is copied, because no two values of a model share a name (names.make_unique).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# value name → a tensor; while torch traces some are Numbers
Environment = dict[str, Any]
Call = Callable[[Environment], tuple[Any, ...]]


@dataclass(frozen=True)
class Step:
    """One node: what to call, on which names, and which names nobody needs afterwards."""

    call: Call
    outputs: tuple[str, ...]
    drop: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """A graph in execution order.

    Attributes:
        steps: the nodes.
        inputs: names of the graph's inputs.
        outputs: names of its outputs.
        kept: the inputs, and the outputs that a node of this graph makes: what is left of a run.
    """

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kept: tuple[str, ...]

    def run(self, environment: Environment) -> Environment:
        """Execute; the environment is added to."""
        for step in self.steps:
            results = step.call(environment)
            for name, result in zip(step.outputs, results, strict=False):
                if name:
                    environment[name] = result
            for name in step.drop:
                environment.pop(name, None)
        return environment

    def run_inside(
        self, environment: Environment, inputs: Sequence[torch.Tensor] = ()
    ) -> tuple[torch.Tensor, ...]:
        """Execute as a subgraph; the environment of the graph around it is left as it was."""
        environment.update(zip(self.inputs, inputs, strict=True))
        self.run(environment)
        results = tuple([environment[name] for name in self.outputs])
        for name in self.kept:
            environment.pop(name, None)
        return results
