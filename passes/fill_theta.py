"""FillThetaPass: trained θ go into the extended model; nothing else changes.

Before: θ initializers hold 0 (or an earlier training's values).  After: they
hold the given arrays.  Refuses: missing θ, wrong shapes and dtypes.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from gdu_compile.passes._base import GduPass

from gdu_compile.contracts import State
from gdu_compile.digits import Array
from gdu_compile.errors import InputError
from gdu_compile.metadata import Extension


class FillThetaPass(GduPass):
    """Write θ.

    Args:
        theta: bucket name → its matrix (``Extension.theta_shapes``), of the model's dtype of θ.
    """

    def __init__(self, theta: Mapping[str, Array]) -> None:
        self.theta = theta

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        facts = Extension.from_metadata(model.metadata_props)
        problems = []
        for name, shape in facts.theta_shapes.items():
            array = self.theta.get(name)
            if array is None:
                problems.append(f"θ {name!r} is missing")
            elif array.shape != shape or str(array.dtype) != facts.theta_dtype:
                problems.append(f"θ {name!r} is {array.dtype} {list(array.shape)}, "
                                f"but must be {facts.theta_dtype} {list(shape)}")  # fmt: skip
        if problems:
            raise InputError("the trained tensors do not fit the extended model", problems)
        for name in facts.theta_shapes:
            model.graph.initializers[name].const_value = ir.Tensor(self.theta[name], name=name)
        return {"buckets": len(facts.theta_shapes)}

    def __repr__(self) -> str:
        return f"FillThetaPass({sorted(self.theta)})"
