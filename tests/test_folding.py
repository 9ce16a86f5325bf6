"""What onnxruntime folds at session load, and what it must not spend time on."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from conftest import mlp, oracle_for

import gdu_compile
from gdu_compile import runtime


def left(model: ir.Model, folder: Path) -> set[str]:
    """The operators in the graph as onnxruntime has optimised it."""
    optimized = folder / "optimized.onnx"
    with runtime.on_disk(model) as path:
        runtime.session(path, optimized=optimized)
    return {node.op_type for node in onnx.load(optimized).graph.node}


@pytest.mark.parametrize("batch", ["N", 8], ids=["dynamic batch", "fixed batch"])
def test_the_recorder_is_no_constant(batch: str | int, tmp_path: Path) -> None:
    """It hangs on the batch size, or its branch would be folded even where it is never taken.

    With a fixed batch nothing is unknown at session load, and it is folded: the negative control.
    """
    base = mlp(batch=batch)
    compiled = gdu_compile.compile(base, oracle_for(base), batch_size=8, steps=1)
    recorder = {"Concat", "Cast", "Sub", "ReduceSum"}
    operators = left(compiled.extended, tmp_path)
    assert operators >= recorder if batch == "N" else not operators & recorder
    assert compiled.trained is not None
    assert not left(compiled.trained, tmp_path) & recorder
