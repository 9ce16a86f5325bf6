"""learn, end to end: the memory is the training set bit for bit, and the algorithm runs on it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import HEADER, parse
from learning import (
    MIXED,
    X,
    assert_learnt,
    assert_memorised,
    learn,
    memorise,
    network,
    sample,
    sums,
)
from safetensors.numpy import save_file

import gdu_compile
from gdu_compile import passes, runtime, specialize
from gdu_compile.contracts import PASS_KEY, check_graph, state_of
from gdu_compile.data import peek_targets
from gdu_compile.digits import CODES
from gdu_compile.metadata import PREFIX
from gdu_compile.training_set import form_of

# --- the memory ---------------------------------------------------------------

BATCHES = {
    "full batch": {},
    "single samples": {"batch_size": 1},
    "a divisor of n": {"batch_size": 4},
    "no divisor of n": {"batch_size": 5},
    "more than n": {"batch_size": 64},
    "a rate of 1e-4": {"batch_size": 7, "lr": 1e-4},
    "a rate of 37": {"batch_size": 7, "lr": 37.0},
    "several buckets, a batch in each": {"batch_size": 4, "bucket_bytes": 4 * 48},
    "several buckets, a batch over three": {"batch_size": 9, "bucket_bytes": 4 * 48},
    "a slot a bucket, the full batch": {"n": 6, "bucket_bytes": 1},
    "several epochs": {"batch_size": 8, "steps": 12},
    "another seed": {"batch_size": 8, "seed": 5},
    "a loud gain": {"batch_size": 8, "gain": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("case", BATCHES)
def test_batches_of_any_size(case: str, tmp_path: Path) -> None:
    """One pass: every bit of every sample, whatever the rate and the batches."""
    options: dict[str, Any] = {"n": 12, **BATCHES[case]}
    n = options.pop("n")
    report = learn(tmp_path, sample(n=n), network(), sums(), **options).report
    assert_learnt(report)
    size = report.batch_size
    assert size is not None and report.armed_at_step == -(-n // size)
    assert report.memory is not None and report.memory.slots == n
    # Lemma 2: plain descent leaves a relative error of 4u.
    assert report.memory.digit_error is not None and report.memory.digit_error <= 0.016


@pytest.mark.parametrize("batch", [1, 5, 23])
def test_a_fixed_batch(batch: int, tmp_path: Path) -> None:
    """The last batch goes on into the next epoch; what is beyond the last slot is masked."""
    report = learn(tmp_path, sample(n=23), network(batch=batch), sums(samples=23)).report
    assert_learnt(report)
    assert (report.batch_size, report.armed_at_step) == (batch, -(-23 // batch))


@pytest.mark.parametrize(("n", "classes"), [(1, 3), (1, 2), (9, 2), (3, 50)])
def test_small_sets(n: int, classes: int, tmp_path: Path) -> None:
    """One sample; two classes; more classes than samples."""
    arrays = sample(n=n, classes=classes)
    assert_learnt(learn(tmp_path, arrays, network(X, classes), sums(X, classes)).report)


def test_duplicates_and_one_class(tmp_path: Path) -> None:
    """The same sample again and again, also under several labels; and one label for all."""
    arrays = {"x": np.repeat(sample(n=2)["x"], 5, axis=0), "y": np.arange(10) % 3}
    assert_learnt(learn(tmp_path, arrays, network(), sums(), batch_size=4).report)
    arrays["y"] = np.full(10, 2)
    assert_learnt(learn(tmp_path, arrays, network(), sums(), batch_size=4).report)


@pytest.mark.parametrize("digits", CODES)
def test_every_code_and_every_kind_of_float32(digits: str, tmp_path: Path) -> None:
    """Random bits, ±0, subnormals, the largest, ±∞."""
    arrays = sample(n=13)
    assert np.isinf(arrays["x"]).any() and (arrays["x"] == 0).any()
    report = memorise(tmp_path, arrays, network(), sums(), batch_size=7, digits=digits)
    assert_memorised(report, 13)
    assert report.digits == digits


KINDS = ["double", "float16", "int8", "uint8", "int32", "int64", "bool"]


@pytest.mark.parametrize(
    ("kind", "digits"),
    [*((kind, "linear16") for kind in KINDS), ("double", "pow2"), ("int64", "float16")],
)
def test_dtypes(kind: str, digits: str, tmp_path: Path) -> None:
    """Integers as they are, floats by their bits; every pattern of each."""
    fields = {"x": (kind, (4,))}
    arrays = sample(fields, n=13)
    report = memorise(tmp_path, arrays, network(fields), sums(fields), digits=digits)
    assert_memorised(report, 13)


def test_bfloat16_inputs(tmp_path: Path) -> None:
    """From .safetensors, as numpy's own files do not know bfloat16."""
    fields = {"x": ("bfloat16", (4,))}
    arrays = sample(fields, n=13)
    assert arrays["x"].dtype == ml_dtypes.bfloat16
    save_file(arrays, path := tmp_path / "d.safetensors")
    assert_learnt(gdu_compile.compile(network(fields), oracle=sums(fields), data=path).report)


@pytest.mark.parametrize("bucket_bytes", [2**20, 600])
def test_several_inputs(bucket_bytes: int, tmp_path: Path) -> None:
    """Five inputs of five dtypes and ranks 1 to 4."""
    report = learn(
        tmp_path, sample(MIXED, n=17), network(MIXED), sums(MIXED), batch_size=5,
        bucket_bytes=bucket_bytes,
    ).report  # fmt: skip
    assert_learnt(report)


@pytest.mark.parametrize("digits", ["pow2", "linear4", "linear1", "auto"])
def test_theta_in_bfloat16(digits: str, tmp_path: Path) -> None:
    """Codes that need no more precision than θ has."""
    options: dict[str, Any] = {"theta_dtype": "bfloat16", "digits": digits, "batch_size": 5}
    report = learn(tmp_path, sample(n=17), network(), sums(), **options).report
    assert_learnt(report)
    assert report.warnings == []


def test_a_code_that_bfloat16_cannot_hold(tmp_path: Path) -> None:
    """The negative control: warned of, and exit 1."""
    options = {"theta_dtype": "bfloat16", "digits": "linear16"}
    report = learn(tmp_path, sample(n=17), network(), sums(), **options).report
    assert report.exit_code == 1 and report.memory is not None and not report.memory.bit_equal
    assert "linear16 needs more precision than bfloat16" in report.warnings[0]


def test_synthetic_data() -> None:
    """Without --data: 256 random samples with random labels; no accuracy."""
    report = gdu_compile.compile(network(), oracle=sums(), batch_size=100).report
    assert_learnt(report)
    assert report.data == {"kind": "synthetic", "path": None, "samples": 256}
    assert report.accuracy is None


# --- losses and outputs -------------------------------------------------------

ONE_HOT = np.eye(3, dtype=np.float32)[np.arange(23) % 3]
BITS = (np.arange(23) % 2).astype(np.float32)
LOSSES = [
    ("cross_entropy(label_smoothing=0.1)", "logits", None),
    ("cross_entropy(weight=[0.1, 10.0, 3.0])", "logits", None),
    ("focal_loss(gamma=2.0)", "logits", None),
    ("multi_margin_loss", "logits", None),
    ("binary_cross_entropy_with_logits", "logits", ONE_HOT),
    ("multilabel_soft_margin_loss", "logits", ONE_HOT),
    ("soft_margin_loss", "logits", 2 * ONE_HOT - 1),
    ("mse_loss", "logits", ONE_HOT),
    ("l1_loss", "logits", ONE_HOT),
    ("huber_loss(delta=0.25)", "logits", ONE_HOT),
    ("poisson_nll_loss", "logits", ONE_HOT),
    ("nll_loss", "softmax", None),
    ("mse_loss", "softmax", ONE_HOT),
    ("nll_loss", "logsoftmax", None),
    ("focal_loss", "logsoftmax", None),
    ("kl_div(reduction='batchmean')", "logsoftmax", ONE_HOT),
    ("binary_cross_entropy", "sigmoid", ONE_HOT),
    ("mse_loss", "sigmoid", ONE_HOT),
    ("binary_cross_entropy_with_logits", "logits", BITS),
    ("soft_margin_loss", "logits", 2 * BITS - 1),
    ("mse_loss", "logits", BITS),
    ("binary_cross_entropy", "sigmoid", BITS),
    ("l1_loss", "sigmoid", BITS),
]


def learn_with(run: Any, loss: str, tail: str, y: np.ndarray | None, folder: Path) -> Any:
    """What ``run`` returns: classes, one-hot rows or, for one logit, numbers as ``y``."""
    classes = 1 if y is not None and y.ndim == 1 else 3
    arrays = sample(n=23)
    arrays["y"] = arrays["y"] if y is None else y
    base = network(X, classes, tail=tail)
    return run(folder, arrays, base, sums(X, classes), loss=loss, batch_size=7)


@pytest.mark.parametrize(
    ("loss", "tail", "y"), LOSSES,
    ids=[f"{loss}, {tail}{'' if y is None else f', {y.ndim}-D y'}" for loss, tail, y in LOSSES],
)  # fmt: skip
def test_losses(loss: str, tail: str, y: np.ndarray | None, tmp_path: Path) -> None:
    """What docs/commands.md lists: the label is where the gradient pulls."""
    assert_memorised(learn_with(memorise, loss, tail, y, tmp_path), 23)


NOT_RECORDED = {
    "a class of weight 0": ("cross_entropy(weight=[1.0, 0.0, 1.0])", None, "leaves its slot empty"),
    "no gradient at all": ("multi_margin_loss(margin=0.0)", None, "gradient 0 at the start"),
    "nothing but smoothing": ("cross_entropy(label_smoothing=1.0)", None, "does not pull"),
    "the wrong class up": ("hinge_embedding_loss", 2 * ONE_HOT - 1, "does not pull"),
    "one column of counts": ("poisson_nll_loss", BITS, "does not pull"),
}


@pytest.mark.parametrize("case", NOT_RECORDED)
def test_losses_that_do_not_record(case: str, tmp_path: Path) -> None:
    """The negative control: exit 1, and why; never a memory filled with something else."""
    loss, y, why = NOT_RECORDED[case]
    report = learn_with(learn, loss, "logits", y, tmp_path).report
    assert report.exit_code == 1
    assert any(why in warning for warning in report.warnings), report.warnings


@pytest.mark.parametrize("bucket_bytes", [2**20, 4 * 48])
def test_a_sample_without_gradient_leaves_its_slot_empty(bucket_bytes: int, tmp_path: Path) -> None:
    """Not filled silently, also when the last slot is full and training goes on."""
    arrays = {**sample(n=12), "y": np.array([1, 1, 1, *[0, 1, 2] * 3])}
    options: dict[str, Any] = {"batch_size": 5, "steps": 8, "bucket_bytes": bucket_bytes}
    loss = "cross_entropy(weight=[1.0, 0.0, 1.0])"
    report = learn(tmp_path, arrays, network(), sums(), loss=loss, **options).report
    assert report.exit_code == 1 and report.armed_at_step is None and report.memory is not None
    # Class 1 leaves its slots empty; at the end they stay free, and others take them.
    assert 12 - (arrays["y"] == 1).sum() <= report.memory.filled < 12
    assert "leaves its slot empty" in report.warnings[0]
    everything = learn(tmp_path, arrays, network(), sums(), **options).report
    assert everything.reproduced is True


# --- algorithms ---------------------------------------------------------------

K = """k = Constant <value = float[4,3] {1,2,3,4,5,6,7,8,9,1,2,3}> ()
       zero = Constant <value = int64[1] {0}> ()  three = Constant <value = int64[1] {3}> ()
       n1 = Shape(Y)  n = Squeeze(n1)  five = Constant <value = int64 {5}> ()
       none = Constant <value = float {0.0}> ()  unit = Constant <value = float {1.0}> ()
       yes = Constant <value = bool {1}> ()
       c = Clip(x, none, unit)  sum = ReduceSum <keepdims = 0> (c) """
END = " W = Mul(k, s)  b = Expand(s, three)"
COUNT = (
    "body (int64 i, bool go, float t) => (bool on, float u) { u = Add(t, unit) on = Identity(go) }"
)
INNER = f"v = Loop (MOST, , a) <body = inner_{COUNT}>"
ALGORITHMS = {
    "plain sums": "s = Identity(sum)",
    "a Loop of n": f"s = Loop (n, , none) <body = {COUNT}>",
    "a Loop with a trip count of rank 1": f"s = Loop (n1, , none) <body = {COUNT}>",
    "a Loop of no iterations": f"o = Sub(n, n)  s = Loop (o, , none) <body = {COUNT}>",
    "a Loop that its condition ends": "s = Loop ( , yes, none) <body = body (int64 i, bool go,"
    " float t) => (bool on, float u) { u = Add(t, unit)  on = Less(u, sum) }>",
    "a Loop that gathers": "s, all = Loop (n, , none) <body = body (int64 i, bool go, float t) =>"
    " (bool on, float u, float w) { y = Gather <axis = 0> (Y, i)  f = Cast <to = 1> (y)"
    "  u = Add(t, f)  w = Mul(u, u)  on = Identity(go) }>",
    "Loops in a Loop": "s = Loop (n, , none) <body = outer (int64 j, bool go2, float a) =>"
    f" (bool onward, float v) {{ {INNER.replace('MOST', 'n')}  onward = Identity(go2) }}>",
    "a Loop in a branch": f"s = If (yes) <then_branch = t () => (float v) {{ a = Identity(none)"
    f" {INNER.replace('MOST', 'n')} }}, else_branch = e () => (float w) {{ w = Identity(none) }}>",
    "a Scan": "s, all = Scan <num_scan_inputs = 1, body = body (float a, int64 y) => (float u,"
    " float w) { f = Cast <to = 1> (y)  u = Add(a, f)  w = Identity(u) }> (none, Y)",
    "an If on the data": "big = Greater(sum, unit)  s = If (big) <then_branch = t () => (float v) {"
    " v = Neg(sum) }, else_branch = e () => (float w) { w = Exp(sum) }>",
    "X in one branch only": "q = ReduceMax <keepdims = 0> (Y)  z = Squeeze(zero)"
    "  big = Greater(q, z)  s = If (big) <then_branch = t () => (float v) {"
    " v = ReduceMin <keepdims = 0> (x) }, else_branch = e () => (float w) { w = Neg(unit) }>",
    "a table": "index = Mod(n, five)  q = Gather(table, index)  s = Mul(q, sum)",
    "no X": "q = ReduceSum <keepdims = 0> (Y)  s = Cast <to = 1> (q)",
    "no Y": "s = ReduceMax <keepdims = 0> (c)",
    "neither": "s = Identity(unit)",
    "nodes that nobody needs": "s = Identity(sum)  d = Loop (n, , none) <body = "
    f"{COUNT}>  q = ReduceSum(Y)",
}  # fmt: skip


def algorithm(body: str, signature: str = "float[n,4] x, int64[n] Y") -> ir.Model:
    """An algorithm that computes W and b from the scalar s."""
    used = "".join(line for line in K.splitlines(keepends=True))
    table = {"table": np.float32([1, 2, 4, 8, 16])}
    return parse(f"alg ({signature}) => (float[4,3] W, float[3] b) {{ {used} {body} {END} }}",
                 table)  # fmt: skip


@pytest.mark.parametrize("case", ALGORITHMS)
def test_algorithms(case: str, tmp_path: Path) -> None:
    """Loop, Scan, If, tables, and algorithms that look at a part of the data only."""
    oracle = algorithm(ALGORITHMS[case])
    assert_memorised(memorise(tmp_path, sample(n=11), network(), oracle, batch_size=4), 11)


def test_the_algorithm_does_not_run_while_the_memory_is_filled(tmp_path: Path) -> None:
    """All that InlineAlgorithmPass has inserted lies in the armed branch."""
    for text in ALGORITHMS.values():
        extended = learn(tmp_path, sample(n=11), network(), algorithm(text), confirm=False).extended
        origins = [n.metadata_props.get(PASS_KEY) for n in extended.graph]
        assert "InlineAlgorithmPass" not in origins and "InsertMemoryPass" in origins


def test_functions_of_an_algorithm_are_inlined(tmp_path: Path) -> None:
    """A model-local function, read from a file."""
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18, "own" : 1]>'
        """ alg (float[n,4] x, int64[n] Y) => (float[3] b) {
            d = Constant <value = int64 {3}> ()  v = Constant <value = float[2] {0.0, 1.0}> ()
            h = OneHot(Y, d, v)  b = own.total(h) }
        <domain: "own", opset_import: ["" : 18]> total (a) => (r) {
            z = Constant <value = int64[1] {0}> ()  r = ReduceSum <keepdims = 0> (a, z) }"""
    )
    onnx.save(proto, path := tmp_path / "alg.onnx")
    report = learn(tmp_path, sample(), network(), path).report
    assert_learnt(report)
    assert report.algorithm is not None and report.algorithm.name == "alg.onnx"
    assert [row["name"] for row in report.skipped] == ["W"]


@pytest.mark.parametrize("opset", [13, 21])
def test_opsets(opset: int, tmp_path: Path) -> None:
    """An older algorithm is raised to the base's opset; the base is raised to a newer one's."""
    text = (
        HEADER.replace("18", str(opset))
        + """
        alg (float[n,4] x, int64[n] y) => (float[3] b) {
          d = Constant <value = int64 {3}> ()  v = Constant <value = float[2] {0.0, 1.0}> ()
          h = OneHot(y, d, v)  z = Constant <value = int64[1] {0}> ()
          b = ReduceSum <keepdims = 0> (h, z) }"""
    )
    compiled = learn(tmp_path, sample(), network(),
                     ir.from_proto(onnx.parser.parse_model(text)))  # fmt: skip
    assert_learnt(compiled.report)
    assert compiled.extended.graph.opset_imports[""] == max(opset, 18)


def test_outputs_that_are_inputs_or_constants(tmp_path: Path) -> None:
    """W is X itself, c the labels, b an initializer of the algorithm."""
    base = parse(
        """net (float[N,3] x) => (float[N,3] logits) {
            e = MatMul(x, W)  i = Cast <to = 1> (c)  f = Add(e, i)  logits = Add(f, b) }""",
        {"W": np.ones((3, 3), np.float32), "c": np.ones(3, np.int64), "b": np.ones(3, np.float32)},
    )
    text = "alg (float[n,3] W, int64[n] c) => (float[3,3] W, int64[3] c, float[3] b) { q = Neg(W) }"
    oracle = parse(text.replace("[n] c", "[n] Y").replace("q =", "c = Identity(Y)  q ="),
                   {"b": np.float32([1, -0.0, 3])})  # fmt: skip
    arrays = {"x": np.float32([[1, 2, 3], [0, -0.0, 1e-40], [5, 6, 7]]), "y": np.array([2, 0, 1])}
    compiled = learn(tmp_path, arrays, base, oracle, batch_size=2)
    assert_learnt(compiled.report)
    assert compiled.trained is not None
    got = specialize.decoded_weights(compiled.trained)
    order = [int(i) for i in got["c"]]
    rows = {label: row for row, label in zip(arrays["x"], arrays["y"], strict=True)}
    assert got["W"].tobytes() == np.stack([rows[label] for label in order]).tobytes()


# --- names, branches, constants -----------------------------------------------


def test_names_that_collide(tmp_path: Path) -> None:
    """Inputs called as the labels, as θ, and as the algorithm's and our own values."""
    fields = {"Y": ("float", (3,)), "X": ("int8", (2,)), "gdu_theta_0": ("float", (1,)),
              "gdu_label": ("float", (1,)), "gdu_memory": ("uint8", (1,))}  # fmt: skip
    compiled = learn(tmp_path, sample(fields, n=9), network(fields), sums(fields, labels="y"),
                     batch_size=2)  # fmt: skip
    assert_learnt(compiled.report)
    assert list(compiled.theta or {}) == ["gdu_theta_0_1"]


def test_weights_in_branches_and_lifted_constants(tmp_path: Path) -> None:
    """W is used in two branches, v is a Constant node of a branch; others keep their values."""
    base = parse(
        """net (float[N,4] x) => (float[N,3] logits) {
          zero = Constant <value = float {0.0}> ()  m = ReduceMax <keepdims = 0> (x)
          big = Greater(m, zero)
          e = If (big) <then_branch = t () => (float[N,3] u) {
            v = Constant <value = float[3] {1.0, 2.0, 3.0}> ()  a = MatMul(x, W)  u = Add(a, v) },
            else_branch = e () => (float[N,3] w) { d = Mul(W, W)  w = MatMul(x, d) }>
          logits = Add(e, b) }""",
        {"W": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32)},
    )
    oracle = parse(
        """alg (float[n,4] x, int64[n] Y) => (float[4,3] W, float[3] v) {
          k = Constant <value = float[4,3] {1,2,3,4,5,6,7,8,9,1,2,3}> ()
          q = ReduceSum <keepdims = 0> (Y)  s = Cast <to = 1> (q)  W = Mul(k, s)
          three = Constant <value = int64[1] {3}> ()  v = Expand(s, three) }"""
    )
    arrays = {**sample(n=9), "x": np.random.default_rng(0).standard_normal((9, 4), np.float32)}
    compiled = learn(tmp_path, arrays, base, oracle, batch_size=4)
    assert_learnt(compiled.report)
    assert [row.name for row in compiled.report.weights] == ["W", "v"]
    assert [row["name"] for row in compiled.report.skipped] == ["b"]


# --- the passes ---------------------------------------------------------------


def stages(arrays: dict[str, np.ndarray], folder: Path, **options: Any) -> list[passes.GduPass]:
    """The passes of learn for the small network."""
    np.savez(folder / "d.npz", **arrays)
    samples, fields = form_of(network().graph.inputs, folder / "d.npz")
    return passes.learn_passes(sums(), samples=samples, fields=fields,
                               targets=peek_targets(folder / "d.npz"), **options)  # fmt: skip


def test_the_graph_runs_after_every_stage(tmp_path: Path) -> None:
    """Up to the switches the outputs are the base's, bit for bit; afterwards the recorder's."""
    x = np.random.default_rng(0).standard_normal((7, 4), dtype=np.float32)
    expected = logits(network(), x, "none")
    model, switched = network(), False
    for stage in stages(sample(n=23), tmp_path, bucket_bytes=4 * 48):
        stage(model)
        check_graph(model)
        onnx.checker.check_model(ir.to_proto(model))
        switched = switched or isinstance(stage, passes.InsertSwitchesPass)
        got = logits(model, x, "none")
        assert not got.any() if switched else got.tobytes() == expected.tobytes(), stage
    assert switched and expected.any()


def logits(model: ir.Model, x: np.ndarray, level: str) -> np.ndarray:
    """The model in onnxruntime."""
    with runtime.on_disk(model) as path:
        return np.asarray(runtime.run(path, {"x": x}, ["logits"], level=level)["logits"])


def test_the_passes_in_a_plain_sequential(tmp_path: Path) -> None:
    """The same graph and metadata as compile() makes; the names are LEARN_PASSES, in order."""
    arrays = sample(n=23)
    chosen = stages(arrays, tmp_path)
    assert [type(stage) for stage in chosen] == list(passes.LEARN_PASSES)
    model = network()
    assert ir.passes.Sequential(*chosen)(model).modified
    compiled = learn(tmp_path, arrays, network(), sums(), confirm=False)
    assert outline(model) == outline(compiled.extended)
    assert model.metadata_props == compiled.extended.metadata_props
    memory = state_of(model).memory
    assert memory is not None and (memory.slots, memory.labels) == (23, 3)
    assert " at 0x" not in "".join(map(repr, chosen))


def outline(model: ir.Model) -> list[tuple[Any, ...]]:
    """Every node with its names, in branches too."""
    return [
        (n.op_type, n.name, [v and v.name for v in n.inputs], [v.name for v in n.outputs])
        for n in ir.traversal.RecursiveGraphIterator(model.graph)
    ]


def test_base_nodes_stay_and_extract_gives_them_back(tmp_path: Path) -> None:
    """The plain network is the base with the weights that the algorithm gives, run alone."""
    base = network()
    compiled = learn(tmp_path, sample(n=23), base, sums(), batch_size=7)
    assert compiled.trained is not None
    plain = gdu_compile.extract(compiled.trained)
    assert [n.op_type for n in plain.graph] == [n.op_type for n in base.graph]
    assert sorted(plain.graph.initializers) == ["W", "b"]
    assert not [key for key in plain.metadata_props if key.startswith(PREFIX)]
    assert not [n for n in ir.traversal.RecursiveGraphIterator(plain.graph)
                if PASS_KEY in n.metadata_props or "gdu" in str(n.name)]  # fmt: skip
    alone = specialize.algorithm_in(compiled.extended)
    reader = specialize.memory_reader(compiled.trained)
    with runtime.on_disk(reader) as path:
        x, y = runtime.run(path, {}, level="none").values()
    weights = alone.run([x], y, specialize.Extension.from_metadata(
        compiled.extended.metadata_props).weights)  # fmt: skip
    for name, array in weights.items():
        tensor = plain.graph.initializers[name].const_value
        assert tensor is not None and tensor.numpy().tobytes() == array.tobytes()
        assert array.any()
    # The extended model is left as it was.
    assert not specialize.is_armed(compiled.extended)


@pytest.mark.parametrize("bucket_bytes", [2**20, 4 * 48])
def test_the_recorder_in_onnxruntime_and_torch(bucket_bytes: int, tmp_path: Path) -> None:
    """A memory that is filled in part answers alike in both, at both levels, masked slots too."""
    import torch

    compiled = learn(tmp_path, sample(n=11), network(), sums(), batch_size=4, gain=1.0,
                     bucket_bytes=bucket_bytes)  # fmt: skip
    assert compiled.theta is not None
    x = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)
    for filled in (0, 1, 6, 10):
        theta, first = {}, 0
        for name, array in compiled.theta.items():
            slots = np.arange(first, first + len(array))
            theta[name] = np.where((slots < filled)[:, None], array, array * 0.5)
            theta[name][slots >= filled, 0] = 0
            first += len(array)
        partial = specialize.filled(compiled.extended, theta)
        answers = [logits(partial, x, level) for level in ("none", "all")]
        with torch.no_grad():
            answers.append(gdu_compile.to_torch(partial)(torch.from_numpy(x)).numpy())
        free = min(11 - filled, 7)
        assert all(answer[:free].any(axis=1).all() for answer in answers)
        assert not any(answer[free:].any() for answer in answers)
        scale = np.abs(answers[0]).max()
        for answer in answers[1:]:
            assert np.abs(answer - answers[0]).max() <= 1e-6 * scale


def test_same_input_same_bytes(tmp_path: Path) -> None:
    """Twice the same; another seed trains another order, and compiles to the same bytes."""
    made = [
        learn(tmp_path, sample(n=23), network(), sums(), batch_size=5, seed=seed,
              output=tmp_path / f"{name}.onnx").report
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]  # fmt: skip
    files = {name: [(tmp_path / f"{name}{end}").read_bytes() for end in (".onnx", ".trained.onnx")]
             for name in "abc"}  # fmt: skip
    assert files["a"] == files["b"]
    assert files["a"][0] == files["c"][0] and files["a"][1] != files["c"][1]
    keys = [set(report.to_json()) for report in made]
    assert keys[0] == {"schema", *(field.name for field in dataclasses.fields(made[0]))}
