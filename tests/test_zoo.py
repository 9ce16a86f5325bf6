"""The zoo: networks that nobody here wrote do what docs/zoo.md says; a wrong result is seen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from zoo_cases import case_of, dies

import gdu_compile
from benchmarks.pages import markers
from benchmarks.zoo import from_onnx, from_quantizer, from_sklearn, from_torch, page
from benchmarks.zoo.case import Case, by_name
from benchmarks.zoo.cases import CASES
from benchmarks.zoo.isolation import Worker
from benchmarks.zoo.perturbation import perturb
from benchmarks.zoo.run import (
    CRASH,
    NO_WEIGHTS,
    NOT_RUN,
    OUTCOMES,
    REFUSED,
    REPRODUCED,
    WRONG,
    Result,
    run,
    same,
)
from gdu_compile.errors import ContractError

WRITTEN = {name: result.outcome for name, result in page.written().items()}
REPRODUCED_AT_LEAST, REFUSED_AT_MOST = 288, 6
"""The first is only ever raised, the second only ever lowered."""

MLP = """<ir_version: 10, opset_import: ["": 18]>
mlp (float[N, 3] x) => (float[N, 2] logits)
    <float[3, 4] W = {1,2,3,4,5,6,7,8,9,10,11,12}, float[4] b = {1,0,3,4},
     float[4, 2] V = {1,2,3,4,5,6,7,8}>
{ y = MatMul (x, W)  a = Add (y, b)  h = Relu (a)  logits = MatMul (h, V) }"""
# what a network is not, or does not have → the network
OTHERS = {
    NO_WEIGHTS: """<ir_version: 10, opset_import: ["": 18]>
        relu (float[2, 3] x) => (float[2, 3] y) { y = Relu (x) }""",
    NOT_RUN: """<ir_version: 10, opset_import: ["": 18, "nobody": 1]>
        own (float[2, 3] x) => (float[2, 3] y) { y = nobody.Own (x) }""",
    REFUSED: """<ir_version: 10, opset_import: ["": 18]>
        dropout (float[2, 3] x) => (float[2, 3] y)
            <float[3] w = {1,2,3}, bool t = {1}, float r = {0.5}>
        { a = Mul (x, w)  y = Dropout (a, r, t) }""",
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=[] if case.quick else pytest.mark.zoo)
     for case in CASES.values()],
)  # fmt: skip
def test_network(case: Case) -> None:
    """Its result is that of the page."""
    result = run(case)
    assert result.outcome == WRITTEN[case.name], result


def test_the_page_lists_every_network() -> None:
    """And nothing else; how many are refused only goes down."""
    assert set(WRITTEN) == set(CASES)
    counts = Counter(WRITTEN.values())
    assert set(counts) <= set(OUTCOMES)
    assert counts[REPRODUCED] >= REPRODUCED_AT_LEAST and counts[REFUSED] <= REFUSED_AT_MOST
    assert counts[WRONG] == counts[CRASH] == 0
    counted = sum(counts[outcome] for outcome in page.COUNTED)
    assert counts[REFUSED] <= counted / 20


def test_the_page_s_sentence_is_that_of_its_rows() -> None:
    """Counted again from the rows."""
    results = [Result(name, CASES[name].source, outcome) for name, outcome in WRITTEN.items()]
    assert page.verdict(results) in page.PAGE.read_text(encoding="utf-8")


def test_the_readme_has_the_page_s_numbers() -> None:
    """As it words them."""
    counts = Counter(WRITTEN.values())
    counted = sum(counts[outcome] for outcome in page.COUNTED)
    trained = sum(case.source.startswith("packages") for case in CASES.values())
    text = " ".join((page.PAGE.parents[1] / "README.md").read_text(encoding="utf-8").split())
    assert f"{counted} networks that others wrote, {trained} of them trained ones" in text
    assert f"{counts[REPRODUCED]} are reproduced, and {counts[REFUSED]} are refused." in text


def test_every_source_has_a_quick_case() -> None:
    """`make test` runs some of each package that the dev extra has."""
    quick = {page.group_of(case.source) for case in CASES.values() if case.quick}
    every = {page.group_of(case.source) for case in CASES.values()}
    assert every - quick == {"transformers", "packages"}
    for source in (from_onnx, from_torch, from_quantizer, from_sklearn):
        assert set(CASES) >= source.QUICK  # none is called otherwise now


# --- controls ------------------------------------------------------------------------


def test_a_network_is_reproduced() -> None:
    """Without a change the control below would be reproduced; all facts are in the result."""
    result = run(case_of(MLP))
    assert (result.outcome, result.reason) == (REPRODUCED, "")
    assert (result.opset, result.ir_version, result.parameters) == (18, 10, 12 + 4 + 8)
    assert result.seconds > 0


@pytest.mark.parametrize("outcome", OTHERS)
def test_other_outcomes(outcome: str) -> None:
    """No weights, not run, refused; each but the first with a reason, without a path."""
    result = run(case_of(OTHERS[outcome]))
    assert result.outcome == outcome, result
    assert bool(result.reason) == (outcome != NO_WEIGHTS) and "gdu-zoo" not in result.reason


def flipped(arrays: dict[str, np.ndarray], bit: int = 0) -> dict[str, np.ndarray]:
    """One bit of one weight is another one: of the first."""
    name = min(arrays)
    bits = arrays[name].copy().view(np.uint32)
    bits.flat[0] ^= 1 << bit
    return {**arrays, name: bits.view(np.float32)}


def weights_in(path: Path) -> dict[str, np.ndarray]:
    """The initializers of a file."""
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_one_wrong_bit_in_the_compiler_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that records another weight and is content with it."""
    compile_, seen = gdu_compile.compile, []

    def wrong(base: Path, oracle: Path, **options: Any) -> Any:
        seen.append(compile_(base, flipped(weights_in(oracle)), **options))
        return seen[-1]

    monkeypatch.setattr(gdu_compile, "compile", wrong)
    result = run(case_of(MLP))
    assert seen[0].report.reproduced
    assert (result.outcome, result.reason) == (
        WRONG,
        "weights of the extracted file that differ: V",
    )


def test_one_wrong_bit_in_the_extracted_file_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extraction that changes a weight without a name of the oracle's: the outputs say so."""
    extract = gdu_compile.extract

    def wrong(trained: Path, *, output: Path) -> Any:
        extract(trained, output=output)
        text = onnx.load(output)
        for tensor in text.graph.initializer:
            array = flipped({"": numpy_helper.to_array(tensor)}, bit=20)[""]
            tensor.CopyFrom(numpy_helper.from_array(array, f"other_{tensor.name}"))
        for node in text.graph.node:
            node.input[:] = [f"other_{n}" if n in "WbV" else n for n in node.input]
        onnx.save(text, output)

    monkeypatch.setattr(gdu_compile, "extract", wrong)
    result = run(case_of(MLP))
    assert result.outcome == WRONG
    assert result.reason.startswith("the extracted file answers otherwise")


def test_a_weight_that_is_left_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that reports fewer numbers than the oracle changes."""
    compile_ = gdu_compile.compile

    def fewer(*arguments: Any, **options: Any) -> Any:
        compiled = compile_(*arguments, **options)
        del compiled.report.weights[0]
        return compiled

    monkeypatch.setattr(gdu_compile, "compile", fewer)
    result = run(case_of(MLP))
    assert (result.outcome, result.reason) == (WRONG, "12 of 24 numbers recorded")


@pytest.mark.parametrize("error", [KeyError("w"), ContractError("a stage broke its word")])
def test_an_internal_error_is_a_crash(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command ends in with exit code 3."""

    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(gdu_compile, "compile", broken)
    result = run(case_of(MLP))
    assert result.outcome == CRASH and result.reason


def test_a_process_that_dies_is_a_crash() -> None:
    """And the next case has another process."""
    worker = Worker()
    try:
        died = worker.run(Case("dies", "here", dies))
        after = worker.run(case_of(OTHERS[NO_WEIGHTS]))
    finally:
        worker.stop()
    assert (died.outcome, died.reason) == (CRASH, "the process ended with exit code 7")
    assert after.outcome == NO_WEIGHTS


def test_two_cases_of_one_name_are_refused() -> None:
    """The page goes by names."""
    with pytest.raises(ValueError, match="two cases are called own"):
        by_name([case_of(MLP), case_of(MLP)])


# --- the oracle ----------------------------------------------------------------------

EVERYWHERE = """<ir_version: 10, opset_import: ["": 20, "ai.onnx.ml": 1, "own": 1]>
net (float[N, 4] x, bool c) => (float[N, 4] y, float[N, 2] s)
    <float[4] w = {1,0,-3.4e38,1e-30}, float two = {2}, int64[2] shape = {-1,4},
     int64[1] four = {4}, uint8[4] q = {0,255,7,8}, float scale = {0.5}, uint8 zero = {3}>
{
    a = Mul (x, w)  b = Pow (a, two)  d = Reshape (b, shape)
    e = Constant <value = float[4] {1,2,3,4}> ()
    f = Constant <value = float {9}> ()
    g = ConstantOfShape <value = float[1] {0.5}> (four)
    h = DequantizeLinear (q, scale, zero)
    i = Sum (d, e, f, g, h)
    y = If (c) <then_branch = yes () => (float[N, 4] t) <float[4] u = {1,2,3,4}> { t = Add (i, u) },
                else_branch = no () => (float[N, 4] z) { z = own.fun (i) }>
    l, s = ai.onnx.ml.LinearClassifier <coefficients = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
        intercepts = [1.0, 2.0], classlabels_ints = [0, 1]> (x)
}
<opset_import: ["": 20], domain: "own"> fun (p) => (r)
{ k = Constant <value = float[4] {5,6,7,8}> ()  r = Mul (p, k) }"""


def tensors(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """All constants of the model above by name."""
    branch = next(n for n in model.graph.node if n.op_type == "If").attribute[0].g
    nodes = [*model.graph.node, *model.functions[0].node]
    found = {t.name: numpy_helper.to_array(t)
             for graph in (model.graph, branch) for t in graph.initializer}  # fmt: skip
    found |= {n.output[0]: numpy_helper.to_array(n.attribute[0].t)
              for n in nodes if n.op_type == "Constant"}  # fmt: skip
    ml = next(n for n in nodes if n.op_type == "LinearClassifier")
    return found | {a.name: np.array(a.floats) for a in ml.attribute if a.floats}


def test_every_weight_is_another_one() -> None:
    """Wherever it is; what is no weight keeps its value, and so does the −∞ of a mask."""
    model = onnx.parser.parse_model(EVERYWHERE)
    before = tensors(model)
    done = perturb(model)
    after = tensors(model)
    weights = {"w", "e", "q", "scale", "u", "k", "coefficients", "intercepts"}
    assert {n for n in before if not np.array_equal(before[n], after[n])} == weights
    assert after["g"].shape == (4,) and len(set(after["g"])) == 4
    assert done.elements == sum(before[n].size for n in weights) + 4
    assert after["w"][2] == before["w"][2] and np.all(
        after["w"][[0, 1, 3]] != before["w"][[0, 1, 3]]
    )
    assert np.all(np.abs(after["q"].astype(int) - before["q"]) <= 1)
    onnx.checker.check_model(model)


@pytest.mark.parametrize(
    "dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE]
)
def test_no_step_leads_to_infinity(dtype: int) -> None:
    """The largest numbers and ±∞ keep their values; the result is the same each time."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    largest = float(ml_dtypes.finfo(kind).max)
    numbers = np.array([1, 0, -2, largest, np.inf, -np.inf]).astype(kind)
    found = [moved(numbers, dtype) for _ in range(2)]
    assert found[0].tobytes() == found[1].tobytes() and found[0].dtype == kind
    assert np.array_equal(np.isinf(found[0].astype(float)), np.isinf(numbers.astype(float)))
    assert np.all(found[0][:3] != numbers[:3])


def moved(numbers: np.ndarray, dtype: int) -> np.ndarray:
    """Numbers after perturb."""
    model = onnx.parser.parse_model(MLP)
    tensor = numpy_helper.from_array(numbers, "W")
    assert tensor.data_type == dtype
    model.graph.initializer[0].CopyFrom(tensor)
    perturb(model)
    return numpy_helper.to_array(model.graph.initializer[0])


# --- comparing -----------------------------------------------------------------------

ZERO, MINUS = np.zeros(2, np.float32), -np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (ZERO, ZERO.copy(), True),
        (ZERO, MINUS, False),
        (ZERO, ZERO.astype(np.float64), False),
        (np.array([np.nan]), np.array([np.nan]), True),
        ([ZERO, MINUS], [ZERO, MINUS], True),
        ([ZERO, MINUS], [ZERO, ZERO], False),
        ([ZERO], [ZERO, ZERO], False),
        ({"all": [{0: 0.5}]}, {"all": [{0: 0.5}]}, True),
        ({"all": [{0: 0.5}]}, {"all": [{0: 0.25}]}, False),
        ({0: 0.5}, {1: 0.5}, False),
        (np.array(["a"]), np.array(["b"]), False),
        (np.array(["a"]), np.array(["a"]), True),
    ],
)
def test_what_is_the_same(one: Any, other: Any, equal: bool) -> None:
    """Bits of arrays; sequences and maps by what is in them."""
    assert same(one, other) == equal and same(other, one) == equal


# --- the page ------------------------------------------------------------------------


def test_a_page_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of Markdown in a reason do not move the columns."""
    results = [
        Result("a, b", "onnx, light", REPRODUCED, "", 18, 10, 1234567),
        Result("c", "torch.nn, dynamo", REFUSED, "x | y `z`\nand *more* " + 300 * "w", 9, 3, 1),
        Result("d", "torch.nn, dynamo", WRONG, "a bit", 9, 3, 1),
        Result("e", "onnx, light", NOT_RUN, "no | such operator", 6, 3),
        Result("f", "onnx, light", NO_WEIGHTS),
    ]
    path = tmp_path / "page.md"
    names = ("summary", "networks", "others")
    path.write_text("".join("{}\n{}\n".format(*markers(page.SCRIPT, name)) for name in names))
    monkeypatch.setattr(page, "PAGE", path)
    from benchmarks.pages import write_tables

    write_tables(path, page.SCRIPT, page.tables(results))
    found = page.written()
    assert {n: (r.source, r.outcome, r.opset, r.ir_version, r.parameters)
            for n, r in found.items() if r.outcome != NOT_RUN} == {
        r.name: (r.source, r.outcome, r.opset, r.ir_version, r.parameters)
        for r in results if r.outcome != NOT_RUN
    }  # fmt: skip
    assert found["c"].reason.startswith("x | y `z` and *more* www")
    assert page.tables(list(found.values())) == page.tables(results)
    text = path.read_text()
    assert "| 1 234 567 | reproduced |" in text and 230 * "w" not in text
    assert "Of 3 networks" in text and "1 are reproduced and 1 are refused (33.3%" in text
    assert "| *all* | 1 | 1 | 1 | 0 | 1 | 1 |" in text
