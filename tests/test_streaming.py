"""One file, written tensor by tensor: the same model as onnx_ir writes, in bounded memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import MODELS, REAL, parse

from gdu_compile import model_io, streaming

BIG = streaming.SMALL // 4 + 7


def with_tensors(tensors: dict[str, ir.TensorProtocol]) -> ir.Model:
    """A model that holds these as initializers that nothing uses."""
    model = parse("g (float[N] x) => (float[N] y) { y = Neg(x) }")
    for name, tensor in tensors.items():
        tensor.name = name
        model.graph.register_initializer(
            ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape,
                     const_value=tensor)
        )  # fmt: skip
    return model


def same_messages(path: Path, model: ir.Model) -> None:
    """What is in the file is what onnx_ir would have written; onnx.checker takes it."""
    onnx.checker.check_model(str(path))
    assert onnx.load(path) == ir.to_proto(model)


@pytest.mark.parametrize("name", REAL)
def test_real_models(name: str, tmp_path: Path) -> None:
    """Read back equal, field by field."""
    model = ir.load(MODELS / f"{name}.onnx")
    streaming.write(model, tmp_path / "m.onnx")
    same_messages(tmp_path / "m.onnx", ir.load(MODELS / f"{name}.onnx"))


def test_every_kind_of_tensor(tmp_path: Path) -> None:
    """Large and small, of every width, not contiguous, empty, scalar, strings, lazy."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, 255, (BIG, 8), dtype=np.uint8)
    arrays = {
        "float32": words.view(np.float32), "double": words.view(np.float64),
        "bfloat16": words.view(np.uint16).view(ml_dtypes.bfloat16), "bool": words > 100,
        "transposed": words.view(np.float32).T, "strided": words.view(np.int32)[::2],
        "int4": (words % 8).astype(ml_dtypes.int4), "scalar": np.float32(3), "small": words[:3],
        "empty": np.zeros((0, 4), dtype=np.float32),
    }  # fmt: skip
    tensors: dict[str, ir.TensorProtocol] = {k: ir.tensor(a) for k, a in arrays.items()}
    tensors["strings"] = ir.StringTensor(np.array([b"a", b"bc"]), shape=ir.Shape([2]))
    tensors["lazy"] = ir.LazyTensor(lambda: ir.tensor(np.ones(BIG, np.float32)),
                                    dtype=ir.DataType.FLOAT, shape=ir.Shape([BIG]))  # fmt: skip
    model = with_tensors(tensors)
    streaming.write(model, tmp_path / "m.onnx")
    same_messages(tmp_path / "m.onnx", model)
    streaming.check(model)
    assert list(model.graph.initializers) == list(tensors)  # and it is left as it was
    assert all(model.graph.initializers[k].const_value is t for k, t in tensors.items())


def test_an_initializer_is_called_as_its_value(tmp_path: Path) -> None:
    """What a tensor in memory is called makes no difference."""
    model = with_tensors({"a": ir.tensor(np.ones(3)), "b": ir.tensor(np.ones(BIG))})
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value.name = "other"
    streaming.write(model, tmp_path / "m.onnx")
    assert [t.name for t in onnx.load(tmp_path / "m.onnx").graph.initializer] == ["a", "b"]


def test_external_tensors_come_inside(tmp_path: Path) -> None:
    """A model beside its data becomes one file."""
    array = np.arange(BIG, dtype=np.float32)
    ir.save(with_tensors({"w": ir.tensor(array)}), tmp_path / "a.onnx", external_data="a.data")
    model = model_io.load(tmp_path / "a.onnx")
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)
    assert model_io.write(model, tmp_path / "b.onnx") is False
    (tmp_path / "a.data").unlink()
    (read,) = onnx.load(tmp_path / "b.onnx").graph.initializer
    assert np.array_equal(onnx.numpy_helper.to_array(read), array)


def test_a_tensor_of_another_size_than_it_says_is_an_error(tmp_path: Path) -> None:
    """The lengths stand ahead of the contents: they must agree."""
    wrong = ir.LazyTensor(lambda: ir.tensor(np.ones(BIG + 1, np.float32)),
                          dtype=ir.DataType.FLOAT, shape=ir.Shape([BIG]))  # fmt: skip
    with pytest.raises(RuntimeError, match="tensor 'w' is not of"):
        streaming.write(with_tensors({"w": wrong}), tmp_path / "m.onnx")


def test_the_check_refuses_what_onnx_refuses() -> None:
    """A node reads a value that nothing makes."""
    model = with_tensors({"w": ir.tensor(np.ones(BIG, np.float32))})
    model.graph[0].replace_input_with(0, ir.val("nowhere", ir.DataType.FLOAT, [3]))
    with pytest.raises(onnx.checker.ValidationError, match="nowhere"):
        streaming.check(model)


def test_memory_is_that_of_the_largest_tensor(tmp_path: Path) -> None:
    """Eight tensors of 4 MB cost one of them; onnx_ir's save, the negative control, all."""
    size = 1 << 20
    lazy = {f"w{i}": ir.LazyTensor(lambda: ir.tensor(np.ones(size, np.float32)),
                                   dtype=ir.DataType.FLOAT, shape=ir.Shape([size]))
            for i in range(8)}  # fmt: skip
    model = with_tensors(dict(lazy))
    peaks = []
    for save in (streaming.write, ir.save):
        tracemalloc.start()
        save(model, tmp_path / "m.onnx")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 3 * 4 * size < peaks[1]
