"""LocateLogitsPass: which output the recorder shall speak through.

Before: a normalized model.  After: unchanged; state ``logits``.
Refuses: models in which no output can be logits [N, C] (``logits.py`` says why).
"""

from __future__ import annotations

import onnx_ir as ir
from gdu_compile.passes._base import GduPass
from onnx_ir.passes import common

from gdu_compile.contracts import State
from gdu_compile.logits import locate_logits


class LocateLogitsPass(GduPass):
    """Choose the logits.

    Args:
        logits: name of an output; None to search.
    """

    needs = ("lifted",)
    gives = ("logits",)

    def __init__(self, logits: str | None = None) -> None:
        self.logits = logits

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        if any(value.shape is None for value in model.graph.outputs):
            common.ShapeInferencePass()(model)
        state.logits = locate_logits(model, self.logits)
        return {}
