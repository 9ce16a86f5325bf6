"""ONNX's own conformance suite, run through onnx.backend.base on the torch side."""

from __future__ import annotations

import re
import unittest
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test import BackendTest
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.runner import Runner

from gdu_compile.errors import UnsupportedError
from gdu_compile.torch_backend import backend
from gdu_compile.torch_backend.registry import TABLE

PASSING = 1824
"""How many of the cases pass; only ever raised."""

LINES = Path(__file__).with_name("onnx_backend_excludes.txt").read_text().splitlines()
# pattern → reason
EXCLUDES = {line.rpartition("|")[0].strip(): line.rpartition("|")[2].strip() for line in LINES
            if not line.startswith("#")}  # fmt: skip

# cases whose expected values are written down with four digits
ROUNDED = {
    "test_averagepool_2d_ceil_last_window_starts_on_pad", "test_gridsample_bicubic",
    "test_roialign_aligned_false", "test_roialign_aligned_true",
}  # fmt: skip


def all_cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflows that the cases provoke on purpose
        return list(collect_testcases(None))


CASES = all_cases()


def excluded(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in EXCLUDES)


def plain(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def tolerance(case: Any) -> tuple[float, float]:
    """The cases' default (1e-3) is loose; what a case asks for itself is granted."""
    if case.name in ROUNDED:
        return float(case.rtol), max(1e-6, case.atol)
    outputs = [plain(x) for _, given in case.data_sets for x in given]
    if any(getattr(x, "dtype", None) == np.float16 for x in outputs):
        return 2**-9, max(1e-6, case.atol)  # two units in the last place
    return (1e-5 if case.rtol == 1e-3 else max(1e-5, case.rtol)), max(1e-6, case.atol)


def run(case: Any) -> None:
    """What BackendTest does with a case, with our tolerance."""
    prepared = backend.prepare(case.model)
    rtol, atol = tolerance(case)
    for inputs, outputs in case.data_sets:
        results = prepared.run([plain(x) for x in inputs])
        for result, wanted in zip(results, outputs, strict=True):
            # Sequences entry by entry: the runner asks a scalar tensor in one for its length.
            is_list = isinstance(wanted, list)
            assert isinstance(result, list) == is_list
            pair = (wanted, result) if is_list else ([plain(wanted)], [result])
            Runner.assert_similar_outputs(*pair, rtol=rtol, atol=atol)


INCLUDED = [case for case in CASES if not excluded(case.name)]
EXCLUDED = [case for case in CASES if excluded(case.name)]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in INCLUDED])
def test_case(case: Any) -> None:
    run(case)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in EXCLUDED])
def test_an_excluded_case_fails_and_is_refused(case: Any) -> None:
    """No stale entry, and no wrong result."""
    with pytest.raises(UnsupportedError):
        run(case)


def test_how_many_cases_pass() -> None:
    assert len(CASES) >= 1884
    assert len(INCLUDED) >= PASSING


# --- through BackendTest itself ------------------------------------------------------

# the kinds of models that are in the onnx package, data included
KINDS = ["OnnxBackendSimpleModelTest", "OnnxBackendPyTorchConvertedModelTest",
         "OnnxBackendPyTorchOperatorModelTest"]  # fmt: skip


def outcome(kind: str) -> tuple[set[str], dict[str, str]]:
    """Names of all tests of a kind, and of those that fail with their tracebacks."""
    tests = BackendTest(backend, __name__).exclude("_cuda$").test_cases[kind]
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(tests)
    names = {test.id().rpartition(".")[2] for test in suite if test.id().endswith("_cpu")}
    names = {name.removesuffix("_cpu") for name in names}
    result = unittest.TestResult()
    suite.run(result)
    failed = [*result.failures, *result.errors]
    return names, {test.id().rpartition(".")[2].removesuffix("_cpu"): text for test, text in failed}


@pytest.mark.parametrize("kind", KINDS)
def test_other_models_of_the_suite(kind: str) -> None:
    """Small networks that PyTorch exported long ago, raised from opset 6 and 9."""
    names, failed = outcome(kind)
    assert set(failed) == {name for name in names if excluded(name)}
    assert all("UnsupportedError" in text for text in failed.values())


def test_each_exclude_has_its_case() -> None:
    names = {case.name for case in CASES}.union(*(outcome(kind)[0] for kind in KINDS))
    assert [p for p in EXCLUDES if not any(re.fullmatch(p, name) for name in names)] == []


def test_a_wrong_result_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is no empty one."""
    case = next(case for case in CASES if case.name == "test_relu")
    monkeypatch.setitem(TABLE[""]["Relu"], 14, lambda x: x.relu() * (1 + 1e-4))
    with pytest.raises(AssertionError):
        run(case)
