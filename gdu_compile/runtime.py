"""onnxruntime, the reference for inference: sessions at a named optimisation level.

Runs are compared at the same level only; "all" folds the armed extension away,
"none" executes it node by node, and computes with weights as they come: without
graph optimisations and without packing constant weights ahead.
"""

from __future__ import annotations

import ctypes
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from gdu_compile import model_io, time_limit, trial_load
from gdu_compile.calls import part
from gdu_compile.digits import Array
from gdu_compile.errors import InputError, TimeLimitError

LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
BFLOAT16 = "tensor(bfloat16)"
# Its errors come as exceptions; what else it writes goes past us, in colours, to the terminal.
ort.set_default_logger_severity(4)
CHUNK = 1024
"""Samples per call where the batch is dynamic, so that memory does not grow with the data."""

SUSPECTS: set[Path] = set()
"""Temporary files that are not to be loaded here with all optimisations before a trial."""


@contextmanager
def on_disk(model: ir.Model) -> Iterator[Path]:
    """The model as a temporary file."""
    with tempfile.TemporaryDirectory(prefix="gdu-") as folder:
        path = Path(folder) / "model.onnx"
        model_io.write(model, path, limit=min(model_io.TEMPORARY_BYTES, model_io.EXTERNAL_BYTES))
        if trial_load.is_suspect(model):
            SUSPECTS.add(path)
        try:
            yield path
        finally:
            SUSPECTS.discard(path)


def session(
    path: Path, level: str = "all", *, optimized: Path | None = None, called: str | None = None
) -> ort.InferenceSession:
    """A CPU session.

    Args:
        path: the model file.
        level: "all" or "none".
        optimized: where onnxruntime shall write its optimised graph.
        called: what to call the model in a message; None for its path.

    Raises:
        InputError: onnxruntime refuses the model.
        UnsupportedError: onnxruntime ends the process in which it loads the model.
    """
    if level == "all" and path in SUSPECTS:
        trial_load.check(path, called or str(path))
        SUSPECTS.discard(path)
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.log_severity_level = 4
    if level == "none":
        # Packing constant weights ahead is an optimisation too, and it picks another kernel:
        # at batch 1 the last bits differ from those with a computed weight (measured).
        options.add_session_config_entry("session.disable_prepacking", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # onnxruntime's exceptions have no common public base class.
        raise InputError(
            f"{called or path}: onnxruntime cannot load it ({said(error, path)}); "
            "export it with operators and types that onnxruntime has"
        ) from error


def said(error: Exception, path: Path) -> str:
    """What onnxruntime says, without the name of our temporary file."""
    line = model_io.first_line(error)
    for ours in (f"Load model from {path} failed:", "Fatal error: "):
        line = line.replace(ours, "")
    return line


def call(runner: ort.InferenceSession, names: list[str], inputs: Mapping[str, Array]) -> list[Any]:
    """One call; bfloat16, which onnxruntime does not hand to numpy, goes over by its bytes.

    Raises:
        TimeLimitError: it takes longer than the command allows.
    """
    types = {value.name: value.type for value in [*runner.get_inputs(), *runner.get_outputs()]}
    if BFLOAT16 not in types.values():
        return list(time_limit.bounded(lambda options: runner.run(names, inputs, options)))
    given = {
        name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            np.ascontiguousarray(array).view(np.uint16), onnx.TensorProto.BFLOAT16
        )
        if types[name] == BFLOAT16
        else ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        for name, array in inputs.items()
    }
    found = time_limit.bounded(lambda options: runner.run_with_ort_values(names, given, options))
    return [array_of(value) for value in found]


def array_of(value: ort.OrtValue) -> Any:
    """An OrtValue as numpy and ml_dtypes have it."""
    if value.data_type() != BFLOAT16:
        return value.numpy()
    shape = value.shape()
    content = ctypes.string_at(value.data_ptr(), 2 * math.prod(shape))  # a copy
    return np.frombuffer(content, dtype=ml_dtypes.bfloat16).reshape(shape)


def run(
    path: Path,
    inputs: Mapping[str, Array],
    outputs: list[str] | None = None,
    *,
    level: str = "all",
    batch: int | None = None,
    chunk: int = CHUNK,
    called: str | None = None,
    calls: bool = False,
) -> dict[str, Array]:
    """Run a model over all samples, in chunks; outputs are concatenated along axis 0.

    Args:
        path: the model file.
        inputs: input name → array, samples along axis 0.
        outputs: names of the outputs; None for all.
        level: "all" or "none".
        batch: the fixed batch of the model, or None.
        chunk: samples per call where the batch is dynamic.
        called: what to call the model in a message; None for its path.
        calls: whether a sample is a whole call (``calls.py``); then axis 0 is that of the calls.

    Raises:
        InputError: onnxruntime refuses the model, or fails on these inputs.
        TimeLimitError: a call takes longer than the command allows.
    """
    runner = session(path, level, called=called)
    names = outputs or [output.name for output in runner.get_outputs()]
    samples = min((len(array) for array in inputs.values()), default=1)
    step = 1 if calls else batch or chunk
    # A fixed batch takes whole batches only.
    starts = range(0, samples - (samples % batch if batch and not calls else 0), step)
    try:
        parts = [
            [
                in_front(result, calls=calls)
                for result in call(runner, names, part(inputs, start, start + step, calls=calls))
            ]
            for start in starts
        ]
    except TimeLimitError:
        raise
    except Exception as error:  # as above
        raise InputError(
            f"{called or path}: onnxruntime cannot run it ({said(error, path)}); "
            "give --data that fits the model"
        ) from error
    return {name: joined([part[i] for part in parts]) for i, name in enumerate(names)}


def in_front(result: Any, *, calls: bool) -> Array:
    """A result as an array, with the axis of calls in front."""
    array = np.asarray(result) if isinstance(result, np.ndarray | np.generic) else in_words(result)
    return array[None] if calls else array


def in_words(result: Any) -> Array:
    """A map, a sequence of tensors or of maps, or nothing, in words that say every bit.

    Example:
        >>> in_words([{0: 0.5, 1: 0.25}]).tolist()
        ["{0: '0x1.0000000000000p-1', 1: '0x1.0000000000000p-2'}"]
    """
    if not isinstance(result, list):
        return np.array([in_a_word(result)], dtype=object)
    words = np.empty(len(result), dtype=object)
    words[:] = [in_a_word(each) for each in result]
    return words


def in_a_word(result: Any) -> str:
    """One map, tensor, or nothing."""
    if isinstance(result, dict):
        return str({key: float(number).hex() for key, number in result.items()})
    if isinstance(result, np.ndarray) and not result.dtype.hasobject:
        return f"{result.dtype} {list(result.shape)} {np.ascontiguousarray(result).tobytes().hex()}"
    return str(result.tolist() if isinstance(result, np.ndarray) else result)


def joined(parts: list[Array]) -> Array:
    """The results of all calls along axis 0, in memory of their own.

    What onnxruntime returns lies in the arena of its session, and keeps all of that alive
    (measured: 670 MB for an output of 2 MB).
    """
    if len(parts) == 1:
        return np.array(parts[0])
    # atleast_1d: an output need not have a batch axis (a weight, a scalar).
    rows = [np.atleast_1d(part) for part in parts]
    if len({row.shape[1:] for row in rows}) > 1:  # calls whose results are of different shapes
        return np.concatenate([in_words(list(row)) for row in rows])
    return np.concatenate(rows)
