"""The passes: contracts, each stage run against the base, sinking, removal, Sequential."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import MODELS, REAL, mlp, oracle_for, parse, save_onnx
from gdu_compile.passes.sink import sink

from gdu_compile import model_io, passes, runtime, specialize
from gdu_compile.contracts import PASS_KEY, check_graph, state_of
from gdu_compile.errors import ContractError, InputError, UnsupportedError
from gdu_compile.graph_view import nested
from gdu_compile.metadata import PREFIX
from gdu_compile.oracle_weights import OracleWeights


def outputs(model: ir.Model, x: np.ndarray, level: str = "none") -> dict[str, np.ndarray]:
    """The model in onnxruntime."""
    with runtime.on_disk(model) as path:
        return runtime.run(path, {"x": x}, level=level)


def extended_mlp(**sizes: int) -> tuple[ir.Model, ir.Model]:
    """(base, extended) of a small network."""
    base = mlp(**sizes)
    extended = base.clone()
    ir.passes.Sequential(*passes.record_passes(OracleWeights.load(oracle_for(base))))(extended)
    return base, extended


@pytest.mark.parametrize("name", REAL)
def test_the_graph_runs_after_every_stage(name: str) -> None:
    """Up to the switches the outputs are the base's, bit for bit; afterwards the recorder's."""
    x = np.random.default_rng(0).random((7, 1, 8, 8), dtype=np.float32)
    model = model_io.load(MODELS / f"{name}.onnx")
    expected = outputs(model.clone(), x)["logits"]
    oracle = OracleWeights.load(MODELS / f"{name}.oracle.npz")
    switched = False
    for pass_ in passes.record_passes(oracle):
        pass_(model)
        check_graph(model)
        onnx.checker.check_model(ir.to_proto(model))
        switched = switched or isinstance(pass_, passes.InsertSwitchesPass)
        got = outputs(model, x)["logits"]
        if switched:
            assert (got[:, 0] < -5).all() and not got[:, 1:].any()
        else:
            assert np.array_equal(got.view(np.uint32), expected.view(np.uint32)), pass_


def test_base_nodes_stay_to_the_letter() -> None:
    """Same operators, names, attributes, input names, in the same order; only z is renamed."""
    base, extended = extended_mlp()
    ours = [node for node in extended.graph if PASS_KEY not in node.metadata_props]
    renamed = {"logits": "gdu_base_logits"}
    for old, new in zip(base.graph, ours, strict=True):
        assert (new.op_type, new.name, new.attributes) == (old.op_type, old.name, old.attributes)
        assert [v.name for v in new.inputs if v] == [v.name for v in old.inputs if v]
        assert [v.name for v in new.outputs] == [
            renamed.get(str(v.name), v.name) for v in old.outputs
        ]
    assert [v.name for v in extended.graph.outputs] == ["logits"]


def test_every_inserted_node_says_which_pass_put_it_there() -> None:
    """Provenance, in branches too."""
    _, extended = extended_mlp()
    origins = {
        node.metadata_props[PASS_KEY]
        for node in ir.traversal.RecursiveGraphIterator(extended.graph)
        if PASS_KEY in node.metadata_props
    }
    assert origins == {"InsertRecorderPass", "InsertSwitchesPass"}


def test_the_recorder_does_not_need_the_base() -> None:
    """After sinking, the recording branch reads no base value: the base is not run."""
    _, extended = extended_mlp()
    sink(extended.graph)
    (switch,) = [n for n in extended.graph if n.outputs[0].name == "logits"]
    recording = switch.attributes["else_branch"].as_graph()
    names = {v.name for n in ir.traversal.RecursiveGraphIterator(recording) for v in n.inputs if v}
    assert not any(name and name.startswith(("W", "b", "gdu_initial")) for name in names)
    assert not [n for n in extended.graph if n.op_type == "MatMul"]
    assert [n for n in switch.attributes["then_branch"].as_graph() if n.op_type == "MatMul"]


SINK_CASES = {
    "used by one branch": (
        "y = If (c) <then_branch = t () => (float[N] u) { u = Add(a, a) },"
        " else_branch = e () => (float[N] v) { v = Neg(x) }>", 1, 0,
    ),
    "used by both branches": (
        "y = If (c) <then_branch = t () => (float[N] u) { u = Add(a, a) },"
        " else_branch = e () => (float[N] v) { v = Neg(a) }>", 0, 1,
    ),
    "used outside too": (
        "s = If (c) <then_branch = t () => (float[N] u) { u = Add(a, a) },"
        " else_branch = e () => (float[N] v) { v = Neg(x) }>  y = Add(s, a)", 0, 1,
    ),
    "used in a nested branch": (
        "y = If (c) <then_branch = t () => (float[N] u) { u = If (c) <"
        " then_branch = tt () => (float[N] uu) { uu = Add(a, a) },"
        " else_branch = te () => (float[N] uv) { uv = Neg(x) }> },"
        " else_branch = e () => (float[N] v) { v = Neg(x) }>", 1, 0,
    ),
    "used by a Loop": (
        "k = Constant <value = int64 {3}> ()  y = Loop (k, , x) <body ="
        " b (int64 i, bool p, float[N] s) => (bool p, float[N] r) { r = Mul(s, a) }>", 0, 1,
    ),
    "used by one branch of an If in a Loop": (
        "k = Constant <value = int64 {3}> ()  y = Loop (k, , x) <body ="
        " b (int64 i, bool p, float[N] s) => (bool p, float[N] r) { r = If (c) <"
        " then_branch = t () => (float[N] u) { u = Add(s, a) },"
        " else_branch = e () => (float[N] v) { v = Neg(s) }> }>", 0, 1,
    ),
    "used by a Loop in one branch": (
        "y = If (c) <then_branch = t () => (float[N] u) {"
        " k = Constant <value = int64 {3}> ()  u = Loop (k, , x) <body ="
        " b (int64 i, bool p, float[N] s) => (bool p, float[N] r) { r = Mul(s, a) }> },"
        " else_branch = e () => (float[N] v) { v = Neg(x) }>", 1, 0,
    ),
    "used by a Loop that one branch uses": (
        "k = Constant <value = int64 {3}> ()  l = Loop (k, , x) <body ="
        " b (int64 i, bool p, float[N] s) => (bool p, float[N] r) { r = Mul(s, a) }>"
        " y = If (c) <then_branch = t () => (float[N] u) { u = Add(l, x) },"
        " else_branch = e () => (float[N] v) { v = Neg(x) }>", 3, 0,
    ),
    "used by a Scan in one branch": (
        "y = If (c) <then_branch = t () => (float[N] u) {"
        " u = Scan <num_scan_inputs = 1, body ="
        " b (float s) => (float r) { t = ReduceSum <keepdims = 0> (a)  r = Mul(s, t) }> (x) },"
        " else_branch = e () => (float[N] v) { v = Neg(x) }>", 1, 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SINK_CASES)
def test_sink(case: str) -> None:
    """Moves what one branch alone uses, and nothing else; the outputs stay.

    Nothing goes into the body of a Loop, where it would be computed in each iteration.
    """
    text, moved, left = SINK_CASES[case]
    model = parse(f"g (float[N] x, bool c) => (float[N] y) {{ a = Exp(x)  {text} }}")
    before = {flag: run_if(model, flag) for flag in (True, False)}
    result = passes.SinkPass()(model)
    assert result.modified is bool(moved)
    assert len([n for n in model.graph if n.op_type == "Exp"]) == left
    loops = [n for n in ir.traversal.RecursiveGraphIterator(model.graph)
             if n.op_type in {"Loop", "Scan"}]  # fmt: skip
    assert not [n for loop in loops for n in nested(loop) if n.op_type == "Exp"]
    for flag, expected in before.items():
        assert np.array_equal(run_if(model, flag), expected)


def run_if(model: ir.Model, flag: bool) -> np.ndarray:
    """y for a fixed x."""
    x = np.linspace(-1, 1, 5, dtype=np.float32)
    with runtime.on_disk(model) as path:
        session = runtime.session(path, "none")
        return np.asarray(session.run(["y"], {"x": x, "c": np.array(flag)})[0])


def test_sink_never_moves_a_graph_output() -> None:
    """It is needed always."""
    model = parse("""
        g (float[N] x, bool c) => (float[N] y, float[N] a) {
          a = Exp(x)
          y = If (c) <then_branch = t () => (float[N] u) { u = Add(a, a) },
                      else_branch = e () => (float[N] v) { v = Neg(x) }> }""")
    assert sink(model.graph) == 0


def test_a_missing_stage_is_named() -> None:
    """A pass whose precondition is missing says which field no pass has left."""
    model = mlp()
    passes.NormalizePass()(model)
    with pytest.raises(ir.passes.PreconditionError, match="needs logits, targets, code"):
        passes.InsertRecorderPass()(model)


def test_repr_shows_options() -> None:
    """Readable, no addresses."""
    assert repr(passes.LocateLogitsPass("z")) == "LocateLogitsPass(logits='z')"
    assert " at 0x" not in "".join(
        map(repr, passes.record_passes(OracleWeights.load({"W": np.zeros(1, np.float32)})))
    )


def test_check_graph_finds_what_is_broken() -> None:
    """Two values of one name; a use before the value is made."""
    model = parse("g (float[N] x) => (float[N] y) { a = Exp(x)  y = Exp(a) }")
    check_graph(model)
    model.graph[0].outputs[0].name = "x"
    with pytest.raises(ContractError, match="two values are called 'x'"):
        check_graph(model)
    model = parse("g (float[N] x) => (float[N] y) { a = Exp(x)  y = Exp(a) }")
    first = model.graph[0]
    model.graph.remove(first)
    model.graph.append(first)
    with pytest.raises(ContractError, match="before it is made"):
        check_graph(model)


def test_normalize_takes_same_names_in_two_branches_and_any_order() -> None:
    """Legal for onnxruntime; made unique and sorted before we begin."""
    model = parse("""
        g (float[N,3] x, bool c) => (float[N,3] y) {
          y = If (c) <then_branch = t () => (float[N,3] u) { k = Exp(x)  u = Neg(k) },
                      else_branch = e () => (float[N,3] v) { k = Neg(x)  v = Exp(k) }> }""")
    passes.NormalizePass()(model)
    check_graph(model)


def test_constants_are_restored_under_their_names() -> None:
    """What NormalizePass lifted and nobody switched becomes a Constant node again."""
    model = parse(
        """
        g (float[N,2] x) => (float[N,2] logits) {
          [keep] k = Constant <value = float {0.5}> ()
          a = MatMul(x, W)  logits = Mul(a, k) }""",
        {"W": np.eye(2, dtype=np.float32)},
    )
    oracle = OracleWeights.load({"W": np.ones((2, 2), dtype=np.float32)})
    ir.passes.Sequential(*passes.record_passes(oracle))(model)
    kept = [n for n in model.graph if n.op_type == "Constant" and PASS_KEY not in n.metadata_props]
    assert [(n.name, n.outputs[0].name) for n in kept] == [("keep", "k")]
    assert "k" not in model.graph.initializers


@pytest.mark.parametrize("operator", ["RandomNormalLike", "Bernoulli"])
def test_random_models_are_refused_by_name(operator: str) -> None:
    """No function of the input, no bit-equal output."""
    model = parse(f"g (float[N,2] x) => (float[N,2] y) {{ [noise] y = {operator}(x) }}")
    with pytest.raises(UnsupportedError, match="noise"):
        passes.NormalizePass()(model)


@pytest.mark.parametrize("flag", ["initializer", "Constant node"])
def test_dropout_that_is_switched_off_is_no_training_mode(flag: str) -> None:
    """training_mode as an input that is the constant False: an inference model, reproduced."""
    import gdu_compile

    weights = {"W": np.eye(2, dtype=np.float32), "ratio": np.array(0.5, np.float32)}
    off = "[off] off = Constant <value = bool {0}> ()" if flag == "Constant node" else ""
    if not off:
        weights["off"] = np.array(False)
    model = parse(
        f"g (float[N,2] x) => (float[N,2] z) {{ {off} d = Dropout(x, ratio, off) "
        "z = MatMul(d, W) }",
        weights,
    )
    assert gdu_compile.compile(model, {"W": 3 * weights["W"]}).report.reproduced is True
    if not off:
        model.graph.initializers["off"].const_value = ir.tensor(np.array(True))
        with pytest.raises(UnsupportedError, match="Dropout in training mode"):
            passes.NormalizePass()(model)


def test_an_extended_model_is_refused_as_base() -> None:
    """Extending twice makes no sense."""
    _, extended = extended_mlp()
    extended.meta.clear()
    with pytest.raises(InputError, match="extended one already"):
        passes.NormalizePass()(extended)


@pytest.mark.parametrize("name", REAL)
def test_remove_extension_gives_the_base_back(name: str) -> None:
    """Node for node, initializer for initializer, with other weights in them."""
    base = model_io.load(MODELS / f"{name}.onnx")
    extended = model_io.load(MODELS / f"{name}.onnx")
    oracle = OracleWeights.load(MODELS / f"{name}.oracle.npz")
    for pass_ in passes.record_passes(oracle):
        pass_(extended)
    plain = specialize.without_extension(extended, specialize.oracle_in(extended))
    assert onnx.printer.to_text(strip(base)) == onnx.printer.to_text(strip(plain))
    assert sorted(plain.graph.initializers) == sorted(base.graph.initializers)
    for weight in oracle:
        got = plain.graph.initializers[weight].const_value.numpy()
        assert np.array_equal(got.view(np.uint32), oracle[weight].load().view(np.uint32))
    assert not [key for key in plain.metadata_props if key.startswith(PREFIX)]
    # The extended model is left as it was.
    assert [n for n in extended.graph if PASS_KEY in n.metadata_props]


def strip(model: ir.Model) -> onnx.ModelProto:
    """The graph without tensors, for a comparison of structure."""
    proto = ir.to_proto(model)
    del proto.graph.initializer[:], proto.graph.value_info[:]
    return proto


def test_fill_theta_refuses_what_does_not_fit() -> None:
    """All problems at once."""
    _, extended = extended_mlp()
    with pytest.raises(InputError, match=r"float64 \[2, 2\], but must be float32 \[60, 2\]"):
        passes.FillThetaPass({"gdu_theta_0": np.zeros((2, 2))})(extended)
    with pytest.raises(InputError, match="'gdu_theta_0' is missing"):
        passes.FillThetaPass({})(extended)


def test_after_sinking_the_cause_is_named(tmp_path: Path) -> None:
    """What looks for the switches in the main graph says that SinkPass has moved them."""
    import gdu_compile

    _, extended = extended_mlp()
    weights = specialize.oracle_in(extended)
    path = save_onnx(tmp_path / "before.onnx", extended)
    passes.CheckExtensionPass()(extended)
    passes.SinkPass()(extended)
    with pytest.raises(ContractError, match="'W1' is computed in a branch, where SinkPass"):
        passes.CheckExtensionPass()(extended)
    with pytest.raises(ir.passes.PreconditionError, match=r"Remove.*: 'W1' .* SinkPass"):
        passes.RemoveExtensionPass(weights)(extended)
    sunk = save_onnx(tmp_path / "sunk.onnx", extended)
    with pytest.raises(InputError, match=r"sunk\.onnx.*\n.* as it was before SinkPass"):
        gdu_compile.train(sunk, steps=1)
    assert gdu_compile.train(path, steps=1).reproduced is True


def test_record_passes_are_the_stages_in_order() -> None:
    """The names that --stop-after and --dump-dir go by."""
    stages = passes.record_passes(OracleWeights.load({"W": np.zeros(1, np.float32)}))
    assert [type(stage) for stage in stages] == list(passes.RECORD_PASSES)


def test_state_survives_sequential() -> None:
    """What stages hand on lives in the model."""
    _, extended = extended_mlp()
    state = state_of(extended)
    assert state.buckets is not None and state.logits is not None
    assert state.logits.why == "the only output"


def test_older_opset_is_raised_and_compared(tmp_path: Path) -> None:
    """Opset 13 with ReduceMean's old signature goes through the whole job."""
    import gdu_compile

    text = """<ir_version: 7, opset_import: ["" : 13]>
        g (float[N,4] x) => (float[N,3] logits) {
          m = ReduceMean <axes = [1], keepdims = 1> (x)  d = Sub(x, m)  logits = MatMul(d, W) }"""
    proto = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "W"))
    path = save_onnx(tmp_path / "old.onnx", ir.from_proto(proto))
    report = gdu_compile.compile(path, {"W": weight * 3}).report
    assert report.reproduced is True
