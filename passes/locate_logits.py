"""LocateLogitsPass: which value the recorder shall speak through.

Before: a normalized model.  After: unchanged, but for the shape and type noted at
the value in front of a final Softmax, LogSoftmax or Sigmoid, and for one more output where the
base has labels or maps only: the scores that they are made of; state ``logits``.
Refuses: models in which no output can be logits (``logits.py`` says why), and a
loss that does not go with the output.
"""

from __future__ import annotations

import onnx_ir as ir
from gdu_compile.passes._base import GduPass

from gdu_compile.contracts import State
from gdu_compile.data import Targets
from gdu_compile.endings import SPELLED, form_changes, is_float
from gdu_compile.logits import locate_logits, value_at
from gdu_compile.losses import LossSpec
from gdu_compile.shape_inference import correct_outputs, infer
from gdu_compile.trial import with_rows


class LocateLogitsPass(GduPass):
    """Choose the logits.

    Args:
        logits: name of an output, or of a value inside; None to search.
        class_axis: the class axis; None to search.
        loss: the loss, when it is known.
        targets: the training data's ``y``, when it is known.
    """

    needs = ("lifted",)
    gives = ("logits",)

    def __init__(
        self,
        logits: str | None = None,
        *,
        class_axis: int | None = None,
        loss: LossSpec | None = None,
        targets: Targets | None = None,
    ) -> None:
        self.logits = logits
        self.class_axis = class_axis
        self.loss = loss
        self.targets = targets

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        said = {value: (value.type, value.shape) for node in model.graph for value in node.outputs}
        inside = self.logits not in {None, *(value.name for value in model.graph.outputs)}
        if inside or not all(says_all(value) for value in model.graph.outputs):
            infer(model)
        correct_outputs(model)
        site = locate_logits(
            model, self.logits, class_axis=self.class_axis, loss=self.loss,
            integers=None if self.targets is None else self.targets.integers,
        )  # fmt: skip
        # Exporters need not say the shape of a value that is no output; Softmax keeps it.
        value, output = value_at(model.graph, site.name), value_at(model.graph, site.output)
        value.shape, value.type = output.shape, output.type
        if site.exposed:
            model.graph.outputs.append(output)
        state.logits = with_rows(model, site)
        # onnxruntime fuses more where shapes are said: last bits would not be those of the file.
        for each, (kind, shape) in said.items():
            if each is not value and not each.is_graph_output():
                each.type, each.shape = kind, shape
        return {"exposed": int(site.exposed)}


def says_all(output: ir.Value) -> bool:
    """Whether an output is a float tensor of known shape that needs no look behind."""
    node = output.producer()
    plain = node is not None and node.op_type not in SPELLED and not form_changes(output)[0]
    return output.shape is not None and is_float(output) and plain
