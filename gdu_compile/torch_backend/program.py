"""A graph as a list of calls on one environment, which maps value names to tensors.

The subgraphs of If, Loop and Scan run in the environment of the graph around them, whose values
they use: nothing is copied, because no two values of a model share a name (names.make_unique).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gdu_compile.errors import NodeError
from gdu_compile.torch_backend.numbers import TRACED

# value name → a tensor; while torch traces some are Numbers
Environment = dict[str, Any]
Call = Callable[[Environment], tuple[Any, ...]]
REFUSALS = (IndexError, ValueError, ArithmeticError, RuntimeError)
"""What torch raises about the values that it is given: indices, shapes, dtypes, memory.  Anything
else (TypeError, KeyError, AttributeError …) is a fault of ours, and goes through."""


@dataclass(frozen=True)
class Step:
    """One node: what to call, which names it makes, and which nobody needs afterwards.

    ``node`` is what a message calls it.
    """

    node: str
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
        """Execute; the environment is added to.

        Raises:
            NodeError: torch cannot run a node on the values that it gets.
        """
        for step in self.steps:
            try:
                results = step.call(environment)
            except REFUSALS as error:
                if TRACED in environment:
                    raise  # who traces has exceptions of its own, and catches them
                raise refused(step, error) from error
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


def refused(step: Step, error: Exception) -> NodeError:
    """What torch says about a node, in one line."""
    outputs = ", ".join(repr(name) for name in step.outputs if name)
    reason = (str(error).splitlines() or [""])[0]
    return NodeError(
        f"node {step.node}, output {outputs}: torch cannot run it on the values that it gets "
        f"({type(error).__name__}: {reason}); was the file changed? If onnxruntime runs it on "
        "the same values, please report it (-v shows more)"
    )
