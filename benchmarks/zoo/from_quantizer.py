"""What onnxruntime's own tools make of a network: quantized, half precision, optimised files."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from benchmarks.zoo import from_torch
from benchmarks.zoo.case import Case, Given, Inputs

BASES = ("mlp", "cnn", "text", "tagger of LSTM")
SAMPLES = 8
"""Calls with which the static quantizer finds its ranges."""


class Reader:
    """The calibration data of a static quantizer: the case's inputs, again and again."""

    def __init__(self, inputs: Inputs) -> None:
        self.rest = [inputs] * SAMPLES

    def get_next(self) -> Inputs | None:
        """The next call, None at the end."""
        return self.rest.pop() if self.rest else None


def dynamic(base: Given, path: Path, **options: Any) -> None:
    """Weights in 8 bits, activations quantized while it runs."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(base.path, path, **options)


def static(base: Given, path: Path, *, operators: bool, **options: Any) -> None:
    """Weights and activations in 8 bits: QDQ pairs, or QLinear operators."""
    from onnxruntime.quantization import QuantFormat, quantize_static

    assert base.inputs is not None
    form = QuantFormat.QOperator if operators else QuantFormat.QDQ
    reader: Any = Reader(base.inputs)
    quantize_static(base.path, path, reader, quant_format=form, **options)


def blocks(base: Given, path: Path, *, bits: int, symmetric: bool = True) -> None:
    """MatMulNBits: weights in blocks of 16 with a scale each, two to a byte when 4 bits."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        onnx.load(base.path), bits=bits, block_size=16, is_symmetric=symmetric
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(path))


def half(base: Given, path: Path, *, ends: bool) -> None:
    """float16 inside; inputs and outputs stay float32 when ``ends``."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(base.path), keep_io_types=ends), path)


def optimised(base: Given, path: Path, *, level: str) -> None:
    """The graph as onnxruntime runs it, with operators of its own."""
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    ort.InferenceSession(str(base.path), options, providers=["CPUExecutionProvider"])


Tool = Callable[[Given, Path], None]
TOOLS: dict[str, Tool] = {
    "dynamic": dynamic,
    "dynamic, per channel": partial(dynamic, per_channel=True, reduce_range=True),
    "static QDQ": partial(static, operators=False),
    "static QDQ, per channel": partial(static, operators=False, per_channel=True),
    "static QOperator": partial(static, operators=True),
    "MatMulNBits, 4 bits": partial(blocks, bits=4),
    "MatMulNBits, 8 bits": partial(blocks, bits=8),
    "MatMulNBits, 4 bits, zero points": partial(blocks, bits=4, symmetric=False),
    "half precision inside": partial(half, ends=True),
    "half precision": partial(half, ends=False),
    "optimised, extended": partial(optimised, level="ORT_ENABLE_EXTENDED"),
    "optimised, all": partial(optimised, level="ORT_ENABLE_ALL"),
}
OTHER_BASES = {
    # MatMulNBits replaces a MatMul by a weight; the others have Gemm and Conv.
    "MatMulNBits": ("text", "tagger of LSTM", "tied"),
    # onnxruntime ends the process when it loads the LSTM or the MultiheadAttention in float16.
    "half": ("mlp", "cnn", "text", "unet"),
}
QUICK = {"mlp, dynamic", "cnn, static QDQ", "text, MatMulNBits, 4 bits"}


def cases() -> Iterator[Case]:
    """Every tool on every network that it changes."""
    for name, tool in TOOLS.items():
        for base in OTHER_BASES.get(re.split("[, ]", name)[0], BASES):
            called = f"{base}, {name}"
            yield Case(called, "onnxruntime's tools", partial(given, base, tool),
                       called in QUICK)  # fmt: skip


def given(base: str, tool: Tool, folder: Path) -> Given:
    """A network, exported, and then changed by a tool."""
    plain = from_torch.given(base, "torchscript", folder)
    path = folder / "changed.onnx"
    with quiet():
        tool(plain, path)
    inputs = dict(plain.inputs or {})
    for value in onnx.load(path).graph.input:
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        inputs[value.name] = inputs[value.name].astype(kind)
    return Given(path, inputs)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the tools' advice."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
