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
        theta: bucket name → [rows + 1, digits], of the model's dtype of θ.
    """

    def __init__(self, theta: Mapping[str, Array]) -> None:
        self.theta = theta

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        facts = Extension.from_metadata(model.metadata_props)
        problems = []
        for bucket in facts.buckets:
            shape = bucket.theta_shape(facts.code)
            array = self.theta.get(bucket.theta)
            if array is None:
                problems.append(f"θ {bucket.theta!r} is missing")
            elif array.shape != shape or str(array.dtype) != facts.theta_dtype:
                problems.append(f"θ {bucket.theta!r} is {array.dtype} {list(array.shape)}, "
                                f"but must be {facts.theta_dtype} {list(shape)}")  # fmt: skip
        if problems:
            raise InputError("the trained tensors do not fit the extended model", problems)
        for bucket in facts.buckets:
            value = model.graph.initializers[bucket.theta]
            value.const_value = ir.Tensor(self.theta[bucket.theta], name=bucket.theta)
        return {"buckets": len(facts.buckets)}

    def __repr__(self) -> str:
        return f"FillThetaPass({sorted(self.theta)})"
