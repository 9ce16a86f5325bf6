"""What all passes share: the state they need and give, the checks around them, a readable repr."""

from __future__ import annotations

import inspect
import time
from typing import ClassVar

import onnx_ir as ir

from gdu_compile.contracts import State, check_graph, state_of


class GduPass(ir.passes.InPlacePass):
    """A pass with a contract: fields of State that it ``needs`` and ``gives``.

    Works in any ``onnx_ir.passes.Sequential``; the graph is checked after it.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    gives: ClassVar[tuple[str, ...]] = ()

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError when an earlier pass is missing."""
        state = state_of(model)
        if missing := [name for name in self.needs if getattr(state, name) is None]:
            raise ir.passes.PreconditionError(
                f"{type(self).__name__} needs {', '.join(missing)}, which no earlier pass has left"
            )

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError when the pass broke the graph or left out what it gives."""
        state = state_of(model)
        if missing := [name for name in self.gives if getattr(state, name) is None]:
            raise ir.passes.PostconditionError(
                f"{type(self).__name__} promised {', '.join(missing)} and left nothing"
            )
        check_graph(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass and note what it did."""
        state = state_of(model)
        counts = self.run(model, state)
        state.counts[type(self).__name__] = counts
        return ir.passes.PassResult(model, modified=any(counts.values()))

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        raise NotImplementedError

    def __repr__(self) -> str:
        options = {
            name: getattr(self, name)
            for name in inspect.signature(type(self)).parameters
            if getattr(self, name, None) is not None
        }
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in options.items())})"


def timed(pass_: ir.passes.PassBase, model: ir.Model) -> tuple[bool, float]:
    """Run a pass; (modified, seconds)."""
    begin = time.perf_counter()
    result = pass_(model)
    return result.modified, time.perf_counter() - begin
