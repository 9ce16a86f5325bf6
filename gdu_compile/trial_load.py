"""A load in a process of its own, for models with which onnxruntime has been seen to end ours.

onnxruntime 1.31 follows a null pointer in its NchwcTransformer, a part of the optimisation level
"all", where a MatMul with a constant weight comes after a Transpose, in float16 (as its own tool
makes it of a recurrent network or of attention that PyTorch has exported).  No exception comes
out of that.  All other models are loaded at once, and pay nothing but a look at their operators.
"""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir

from gdu_compile import time_limit
from gdu_compile.errors import UnsupportedError
from gdu_compile.well_formed import all_graphs

PRODUCTS = {"MatMul", "FusedMatMul"}
"""Operators of which it takes one, beside a Transpose and a float16 constant."""
LOADS = """
import sys
import onnxruntime
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError, OSError):
    pass
onnxruntime.set_default_logger_severity(4)
try:
    onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
except Exception:
    pass
"""
"""What the process does: an exception is for the load here to explain."""


def is_suspect(model: ir.Model) -> bool:
    """Whether a model has what onnxruntime has been seen to end the process with."""
    operators = {node.op_type for graph in all_graphs(model) for node in graph}
    deadly = "Transpose" in operators and not operators.isdisjoint(PRODUCTS)
    return deadly and any(is_half(graph) for graph in all_graphs(model))


def is_half(graph: ir.Graph) -> bool:
    """Whether a graph has a float16 constant, or a Cast that makes one."""
    return any(v.dtype == ir.DataType.FLOAT16 for v in graph.initializers.values()) or any(
        attribute.as_tensor().dtype == ir.DataType.FLOAT16
        if attribute.type == ir.AttributeType.TENSOR
        else attribute.name == "to" and attribute.value == ir.DataType.FLOAT16.value
        for node in graph for attribute in node.attributes.values()
    )  # fmt: skip


def check(path: Path, called: str) -> None:
    """Load a model file with all optimisations in a process of its own.

    ``-P``: what lies in the present folder, maybe beside a file from elsewhere, is not imported.

    Raises:
        UnsupportedError: that process has ended by a signal.
        TimeLimitError: it takes longer than the command allows.
    """
    if not sys.executable:
        return  # embedded in a program that is no interpreter
    limit = time_limit.PRESENT.get()
    try:
        code = subprocess.run(
            [sys.executable, "-P", "-c", LOADS, str(path)], check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            timeout=None if limit.seconds == math.inf else limit.seconds,
        ).returncode  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise limit.error() from error
    if code < 0 or code > 255:  # Windows has its exceptions there
        name = signal.Signals(-code).name if code < 0 else f"{code:#x}"
        raise UnsupportedError(
            f"{called}: onnxruntime crashes ({name}) when it loads it with all optimisations, as "
            "it does with some float16 models that have a MatMul after a Transpose; export it in "
            "float32 and convert what you extract, or compile with --no-confirm"
        )
