"""One model run in onnxruntime and in torch, and numbers of every kind to run it on."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gdu_compile import runtime
from gdu_compile.digits import Array
from gdu_compile.number_formats import FORMATS, FloatFormat
from gdu_compile.torch_backend import lower_to_torch, to_array
from gdu_compile.torch_backend.module import to_tensor


def run_everywhere(model: ir.Model, x: np.ndarray) -> dict[str, list[Array]]:
    """The model's outputs in onnxruntime (both levels) and in torch."""
    results: dict[str, list[Array]] = {}
    with runtime.on_disk(model) as path:
        for level in ("none", "all"):
            runner = runtime.session(path, level)  # and not runtime.run: x may have no rows
            names = [output.name for output in runner.get_outputs()]
            results[level] = runtime.call(runner, names, {"x": x})
    outputs = lower_to_torch(model, ())(to_tensor(ir.Tensor(x)))
    several = outputs if isinstance(outputs, tuple) else (outputs,)
    results["torch"] = [to_array(output) for output in several]
    return results


def same(a: Array, b: Array) -> bool:
    """Same dtype and bits."""
    return a.dtype == b.dtype and np.array_equal(bits(a), bits(b))


def bits(array: Array) -> np.ndarray:
    """The bits of each element."""
    return np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")


def patterns(dtype: str, size: int, seed: int = 0) -> Array:
    """Elements of every kind: random bits, ±0, ±∞, the smallest and largest; no NaN."""
    kind = FORMATS[dtype]
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 2**64, size, dtype=np.uint64, endpoint=False)
    special = [0, 1, 1 << (kind.bits - 1), (1 << (kind.bits - 1)) - 1, (1 << kind.bits) - 1]
    if isinstance(kind, FloatFormat):
        infinity = ((1 << kind.exponent) - 1) << kind.mantissa
        sign = 1 << (kind.bits - 1)
        special += [infinity, infinity | sign, infinity - 1, 1 << kind.mantissa, sign | 1]
    words[: min(size, len(special))] = np.array(special, dtype=np.uint64)[:size]
    array = words.astype(f"u{kind.bits // 8}").view(kind.dtype)
    if isinstance(kind, FloatFormat):
        with np.errstate(invalid="ignore"):  # ml_dtypes warns of signalling NaNs
            array[np.isnan(array)] = kind.dtype.type(1)
    return array
