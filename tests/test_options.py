"""The API's keywords: every type is checked, all complaints at once, and numpy's types do."""

from __future__ import annotations

import dataclasses
from pathlib import Path, PurePosixPath
from typing import Any, get_type_hints

import ml_dtypes
import numpy as np
import pytest
from conftest import mlp, oracle_for

import gdu_compile
from gdu_compile.errors import InputError
from gdu_compile.option_types import converter
from gdu_compile.options import CompileOptions, Options, TrainOptions, VerifyOptions, WriteOptions

CLASSES: list[type[Options]] = [TrainOptions, CompileOptions, VerifyOptions, WriteOptions]


@pytest.mark.parametrize("given", [
    {"steps": 2.5}, {"steps": "3"}, {"steps": True}, {"steps": np.float32(3)}, {"seed": None},
    {"lr": "0.1"}, {"lr": False}, {"lr": 10**400}, {"lr": 1j}, {"lr": np.ones(1)},
    {"data": 5}, {"output": b"e.onnx"}, {"optimizer": 3}, {"optimizer": None}, {"digits": 16},
    {"force": 1}, {"confirm": "yes"}, {"strict": None}, {"gain": "2**-80"}, {"device": 0},
    {"rename": 3}, {"rename": [3]}, {"rename": [("a", 1)]}, {"rename": None}, {"why": 1},
    {"stop_after": 1}, {"dump_dir": 1}, {"seed": np.bool_(True)},
], ids=str)  # fmt: skip
def test_wrong_types_are_refused(given: dict[str, Any]) -> None:
    """InputError, which names the option and the type; steps=2.5 once never ended."""
    (name,) = given
    with pytest.raises(InputError) as caught:
        gdu_compile.compile(mlp(), oracle_for(mlp()), **given)
    (problem,) = caught.value.problems
    assert problem.startswith("--" + name.replace("_", "-"))
    assert type(given[name]).__name__ in problem


@pytest.mark.parametrize(("given", "held"), [
    ({"steps": np.int64(2)}, 2), ({"steps": np.uint8(2)}, 2), ({"lr": 1}, 1.0),
    ({"lr": np.float32(0.5)}, 0.5), ({"lr": np.int32(3)}, 3.0), ({"lr": np.longdouble(2)}, 2.0),
    ({"output": "e.onnx"}, Path("e.onnx")), ({"data": PurePosixPath("d.npz")}, Path("d.npz")),
    ({"force": np.bool_(True)}, True), ({"optimizer": np.str_("Adam()")}, "Adam()"),
    ({"rename": ["a=b", ("c", "d")]}, ["a=b", ("c", "d")]), ({"rename": {"a": "b"}}, {"a": "b"}),
    ({"rename": "a=b"}, "a=b"), ({"logits": None}, None), ({"output": None}, None),
    ({"steps": None}, None),
], ids=str)  # fmt: skip
def test_what_is_meant_is_taken(given: dict[str, Any], held: object) -> None:
    """Whole numbers for rates, numpy's scalars, anything that is a path; held as Python's own."""
    (name,) = given
    value = getattr(CompileOptions.of(given), name)
    assert value == held and type(value) is type(held)


def test_all_complaints_at_once() -> None:
    """Types and ranges in one error."""
    with pytest.raises(InputError) as caught:
        TrainOptions.of({"steps": 2.5, "lr": "0.1", "batch_size": -1, "output": ""})
    assert len(caught.value.problems) == 4
    with pytest.raises(InputError, match="--batch-size -1"):
        TrainOptions(batch_size=-1, optimizer=None)  # type: ignore[arg-type]


def test_every_field_has_a_type_that_is_checked() -> None:
    """A field of a new type cannot slip in unchecked; the default passes its own check."""
    for kind in CLASSES:
        for field in dataclasses.fields(kind):
            convert, called = converter(get_type_hints(kind)[field.name])
            assert called
            if field.default is not None:
                assert convert(field.default) == field.default
    with pytest.raises(KeyError):
        converter(complex)


@pytest.mark.parametrize("order", [">", "<"])
def test_byte_order_in_memory_does_not_matter(order: str) -> None:
    """Big-endian arrays as oracle weights and as θ are taken for what they mean."""
    oracle = oracle_for(mlp())
    foreign = {name: array.astype(f"{order}f4") for name, array in oracle.items()}
    compiled = gdu_compile.compile(mlp(), foreign, steps=1)
    assert compiled.report.reproduced is True and compiled.theta is not None
    got = compiled.trained
    plain = gdu_compile.extract(got) if got is not None else None
    assert plain is not None
    for name, array in oracle.items():
        assert np.array_equal(plain.graph.initializers[name].const_value.numpy(), array)
    theta = {name: array.astype(f"{order}f4") for name, array in compiled.theta.items()}
    assert gdu_compile.verify(compiled.extended, theta).reproduced is True
    wrong = {name: array.view(array.dtype.newbyteorder()) for name, array in theta.items()}
    with np.errstate(all="ignore"):
        assert gdu_compile.verify(compiled.extended, wrong).reproduced is False


def test_bfloat16_keeps_its_name() -> None:
    """Dtypes that numpy does not know go through as they are."""
    from gdu_compile.arrays import from_mapping

    header = from_mapping({"w": np.ones(3, ml_dtypes.bfloat16)})["w"]
    assert header.dtype == ml_dtypes.bfloat16 and header.load().dtype == ml_dtypes.bfloat16
