"""AnnotatePass: the extended model says in its metadata what it is (DESIGN, Metadata).

Before: everything is known to the state only.  After: ``gdu.*`` entries in
``metadata_props`` hold what verify, apply, extract and inspect need.
"""

from __future__ import annotations

import onnx_ir as ir
from gdu_compile.passes._base import GduPass

from gdu_compile.contracts import State
from gdu_compile.metadata import PREFIX, Extension
from gdu_compile.version import __version__


class AnnotatePass(GduPass):
    """Write the metadata."""

    needs = ("initial", "base_logits", "logits", "source", "code", "gain",
             "theta_dtype", "start", "skipped")  # fmt: skip

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        metadata = extension_of(state).to_metadata()
        model.metadata_props.update(metadata)
        return {"entries": len(metadata)}

    def ensures(self, model: ir.Model) -> None:
        """The facts can be read back as they were written."""
        super().ensures(model)
        if Extension.from_metadata(model.metadata_props).to_metadata() != {
            key: text for key, text in model.metadata_props.items() if key.startswith(PREFIX)
        }:
            raise ir.passes.PostconditionError("the metadata does not read back as written")


def extension_of(state: State) -> Extension:
    """The permanent facts in the state."""
    assert state.code is not None and state.gain is not None and state.logits is not None
    assert state.start is not None and state.base_logits is not None
    return Extension(
        version=__version__,
        method="record" if state.memory is None else "learn",
        code=state.code,
        gain=state.gain,
        theta_dtype=state.theta_dtype or "float32",
        batch_limit=state.batch_limit,
        start=state.start,
        logits=state.logits,
        base_logits=state.base_logits,
        buckets=tuple(state.buckets or ()),
        memory=state.memory,
        algorithm=state.algorithm,
        initial=state.initial or {},
        source=state.source or "",
        inputs=state.inputs,
        skipped=tuple(state.skipped or ()),
    )
