"""Types of 8 bits and fewer: every number of float16, against ml_dtypes and onnx itself."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, numpy_helper

from gdu_compile.errors import UnsupportedError
from gdu_compile.torch_backend.backend import to_numpy
from gdu_compile.torch_backend.module import to_array, to_tensor
from gdu_compile.torch_backend.ops_cast import cast_to
from gdu_compile.torch_backend.registry import lookup

FLOAT8 = {
    TensorProto.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: ml_dtypes.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: ml_dtypes.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: ml_dtypes.float8_e5m2fnuz,
}
WHOLE = {
    TensorProto.INT4: ml_dtypes.int4,
    TensorProto.UINT4: ml_dtypes.uint4,
    TensorProto.INT2: ml_dtypes.int2,
    TensorProto.UINT2: ml_dtypes.uint2,
}
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16)  # every one of them


def same(result: torch.Tensor, wanted: Any) -> None:
    """The same numbers, NaN included, and the same sign of zero."""
    actual, expected = result.float().numpy(), wanted.astype(np.float32)
    np.testing.assert_array_equal(actual, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(actual)[numbers], np.signbit(expected)[numbers])


@pytest.mark.parametrize("code", FLOAT8)
@pytest.mark.parametrize("source", [torch.float16, torch.float32])
def test_float8(code: int, source: torch.dtype) -> None:
    x = torch.from_numpy(HALVES).to(source)
    same(cast_to(x, code, saturate=False), HALVES.astype(FLOAT8[code]))
    with np.errstate(invalid="ignore"):
        same(cast_to(x, code), numpy_helper.saturate_cast(HALVES, FLOAT8[code]))


def test_float4() -> None:
    numbers = HALVES[~np.isnan(HALVES)]  # float4 has no NaN
    result = cast_to(torch.from_numpy(numbers), TensorProto.FLOAT4E2M1)
    same(result, numbers.astype(ml_dtypes.float4_e2m1fn))


@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("mode", ["up", "down", "nearest"])
def test_powers_of_two(mode: str, saturate: bool) -> None:
    wide = np.concatenate([HALVES.astype(np.float32), np.geomspace(1e-44, 3.4e38, 4001)])
    x = wide.astype(np.float32)
    result = cast_to(torch.from_numpy(x), TensorProto.FLOAT8E8M0, saturate, mode)
    wanted = numpy_helper.to_float8e8m0(x, saturate, mode)
    np.testing.assert_array_equal(result.view(torch.uint8).numpy(), wanted.view(np.uint8))


@pytest.mark.parametrize("code", WHOLE)
def test_whole_numbers(code: int) -> None:
    """The low bits remain, of integers and of floats cut to integers."""
    x = np.arange(-300, 300)
    for given in (x.astype(np.int32), x.astype(np.float32) + np.float32(0.5)):
        result = cast_to(torch.from_numpy(given), code)
        cut = np.trunc(given).astype(np.int32)
        np.testing.assert_array_equal(result.numpy(), cut.astype(WHOLE[code]).astype(np.int32))


@pytest.mark.parametrize(
    "dtype", [*FLOAT8.values(), ml_dtypes.float8_e8m0fnu, ml_dtypes.bfloat16], ids=str
)
def test_there_and_back(dtype: Any) -> None:
    """Every bit pattern of the type."""
    width = np.dtype(dtype).itemsize
    bits = np.arange(256**width, dtype=f"u{width}")
    array = to_array(to_tensor(ir_tensor(bits.view(dtype))))
    assert array.dtype == dtype
    np.testing.assert_array_equal(array.view(bits.dtype), bits)


@pytest.mark.parametrize("dtype", [*WHOLE.values(), ml_dtypes.float4_e2m1fn], ids=str)
def test_held_by_value(dtype: Any) -> None:
    array = np.arange(16).astype(np.uint8).astype(dtype)
    held = to_tensor(ir_tensor(array))
    np.testing.assert_array_equal(held.float().numpy(), array.astype(np.float32))
    kind = type("Kind", (), {"numpy": lambda self: np.dtype(dtype)})()
    assert to_numpy(held, kind).dtype == dtype


def ir_tensor(array: Any) -> Any:

    return ir.tensor(array)


def test_bits_of_what_is_held_by_value_are_not_to_be_had() -> None:
    x = torch.zeros(2, dtype=torch.int8)
    with pytest.raises(UnsupportedError, match="BitCast"):
        lookup("BitCast", 26)(x, to=TensorProto.INT4)
    with pytest.raises(UnsupportedError, match="BitCast"):
        lookup("BitCast", 26)(x, to=TensorProto.UINT8, dtypes_=[TensorProto.INT4])
