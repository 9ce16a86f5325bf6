"""Operators that nobody here knows, and models that onnx.checker refuses and onnxruntime runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper, parser
from test_record import assert_reproduced

import gdu_compile
from gdu_compile import reading, runtime
from gdu_compile.bits import same_bits
from gdu_compile.errors import InputError, UnsupportedError

ORACLE = {"w": np.arange(12, dtype=np.float32).reshape(4, 3) / 7, "b": np.float32([3, 2, 1])}
MICROSOFT = ', "com.microsoft" : 1'
Change = Callable[[onnx.ModelProto], None]


def network(body: str, opset: int = 18, more: str = "", outputs: str = "float[N,3] o",
            inputs: str = "float[N,4] x") -> onnx.ModelProto:  # fmt: skip
    """x [N, 4] with w [4, 3] and b [3], in ONNX's text form."""
    return parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}{more}]> g ({inputs}) => ({outputs}) '
        "<float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[3] b = {1,2,3}>"
        f"{{ h = MatMul(x, w) {body} }}"
    )


def reproduced(proto: onnx.ModelProto, folder: Path, known: bool = True) -> gdu_compile.Report:
    """Compiled, trained again from the file, extracted: bits of w*, the base's operators."""
    path = folder / "m.onnx"
    onnx.save(proto, path)
    report = gdu_compile.compile(path, ORACLE, output=folder / "e.onnx").report
    for each in (report, gdu_compile.train(folder / "e.onnx")):
        if known:
            assert_reproduced(each)
        else:  # torch cannot run the armed network, and measures no gradient
            assert each.reproduced and each.gradient_after_arming is None
    plain = gdu_compile.extract(folder / "e.trained.onnx", output=folder / "plain.onnx")
    for name, array in ORACLE.items():
        assert same_bits(plain.graph.initializers[name].const_value.numpy(), array)
    written = onnx.load(folder / "plain.onnx").graph.node
    ours, theirs = (sorted((n.domain, n.op_type) for n in nodes) for nodes in
                    (written, proto.graph.node))  # fmt: skip
    assert ours == theirs
    return report


# body, outputs, whether torch can run the operator once armed
OPERATORS = {
    "BiasGelu": ("o = com.microsoft.BiasGelu(h, b)", "float[N,3] o", True),
    "QuickGelu": ("i = Add(h, b) o = com.microsoft.QuickGelu(i)", "float[N,3] o", True),
    "ExpandDims": ("i = Add(h, b) k = Constant<value_int=1>() c = Cast<to=6>(k) "
                   "o = com.microsoft.ExpandDims(i, c)", "float[N,1,3] o", False),
    "ExpandDims of other rows": (
        "i = Add(h, b) k = Constant<value_int=1>() c = Cast<to=6>(k) "
        "o = com.microsoft.ExpandDims(i, c)", "float[rows,1,3] o", False),
    "CDist": ('i = Add(h, b) o = com.microsoft.CDist<metric="euclidean">(i, i)', "float[N,N] o",
              False),
}  # fmt: skip


def test_a_function_operator_whose_types_onnx_cannot_follow(tmp_path: Path) -> None:
    """SequenceMap of a sequence of no known type: torch lacks it, and that is all."""
    body = ("i = Add(h, b) s = SequenceConstruct(i, h) "
            "t = SequenceMap(s) <body = m (float[N,3] e) => (float[N,3] f) { f = Mul(e, b) }>"
            "o = ConcatFromSequence<axis=1>(t)")  # fmt: skip
    report = reproduced(network(body, outputs="float[N,6] o"), tmp_path, known=False)
    assert any("SequenceMap (opset 18) is not in the torch" in text for text in report.warnings)


@pytest.mark.parametrize("opset", [15, 18])
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_of_onnxruntime(name: str, opset: int, tmp_path: Path) -> None:
    """They pass through, whether or not torch has them: recording runs no base."""
    body, outputs, known = OPERATORS[name]
    report = reproduced(network(body, opset, MICROSOFT, outputs), tmp_path, known)
    assert (report.torch is not None) is known
    assert any("not in the torch operator table" in text for text in report.warnings) is not known


def test_an_operator_of_ones_own(tmp_path: Path) -> None:
    """onnxruntime has it not, so nothing is confirmed; the extension records and is extracted."""
    path = tmp_path / "m.onnx"
    onnx.save(network("i = Add(h, b) o = my.own.Op<alpha=2>(i)", more=', "my.own" : 1'), path)
    compiled = gdu_compile.compile(path, ORACLE, confirm=False)
    module = gdu_compile.to_torch(compiled.extended)
    import torch

    y = torch.tensor([0, 1, 2, 0])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    torch.nn.functional.cross_entropy(module(torch.ones(4, 4)), y).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    theta = {name: value.detach().numpy() for name, value in module.named_parameters()}
    plain = gdu_compile.extract(gdu_compile.apply(compiled.extended, theta))
    assert same_bits(plain.graph.initializers["w"].const_value.numpy(), ORACLE["w"])
    (own,) = [node for node in plain.graph if node.domain == "my.own"]
    assert own.op_type == "Op" and own.attributes.get_int("alpha") == 2
    with pytest.raises(InputError, match="onnxruntime cannot load it"):
        gdu_compile.compile(path, ORACLE)


def unnamed(proto: onnx.ModelProto) -> None:
    """A graph without a name."""
    proto.graph.name = ""


def untyped(proto: onnx.ModelProto) -> None:
    """An output without a type."""
    proto.graph.output[0].ClearField("type")


def unshaped(proto: onnx.ModelProto) -> None:
    """An output without a shape."""
    proto.graph.output[0].type.tensor_type.ClearField("shape")


def sparse(proto: onnx.ModelProto, rank: int = 1, dims: tuple[int, int] = (4, 3)) -> None:
    """w with three elements that are not 0, at flat or at full indices."""
    indices = np.int64([0, 5, 7]) if rank == 1 else np.int64([[0, 0], [1, 2], [2, 1]])
    values = numpy_helper.from_array(np.float32([1, 2, 3]), "w")
    kept = [tensor for tensor in proto.graph.initializer if tensor.name != "w"]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(indices, ""), list(dims))
    )


def elsewhere(proto: onnx.ModelProto) -> None:
    """Its values are in a file."""
    sparse(proto)
    values = proto.graph.sparse_initializer[0].values
    values.data_location = onnx.TensorProto.EXTERNAL
    values.external_data.add(key="location", value="../secret")


def negative(proto: onnx.ModelProto) -> None:
    """The first of its indices is −1."""
    sparse(proto)
    indices = numpy_helper.from_array(np.int64([-1, 5, 7]), "")
    proto.graph.sparse_initializer[0].indices.CopyFrom(indices)


def as_is(proto: onnx.ModelProto) -> None:
    """Nothing is changed."""


ADD = "o = Add(h, b)"
OUT_OF_ORDER = parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 18]> g (float[N,4] x) => (float[N,3] o) '
    "<float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[3] b = {1,2,3}>"
    "{ o = Add(h, b) h = MatMul(x, w) }"
)
# model, change, what the warning says
TAKEN: dict[str, tuple[onnx.ModelProto, Change, str]] = {
    "nodes out of order": (OUT_OF_ORDER, as_is, "topologically sorted"),
    "no import of com.microsoft": (network("i = Add(h, b) o = com.microsoft.Gelu(i)"), as_is,
                                   "imports no operator set com.microsoft"),
    "LayerNormalization before 17": (network("i = LayerNormalization(h, b, b) o = Relu(i)", 16),
                                     as_is, "No Op registered for LayerNormalization"),
    "a graph without a name": (network(ADD), unnamed, "Field 'name' of 'graph'"),
    "an output without a type": (network(ADD), untyped, "Field 'type'"),
    "an output without a shape": (network(ADD), unshaped, "Field 'shape' of 'type'"),
    "an output of onnxruntime's own operator without a type": (
        network("i = Add(h, b) o = com.microsoft.QuickGelu(i)", more=MICROSOFT), untyped,
        "Field 'type'"),
    "a sparse initializer": (network(ADD), sparse, "dense in what is written: 'w'"),
    "a sparse initializer by rows": (network(ADD), lambda proto: sparse(proto, 2), "'w'"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_taken_with_a_warning(name: str, tmp_path: Path) -> None:
    """What onnxruntime runs is compiled; what is odd about it is said."""
    proto, change, said = TAKEN[name]
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    change(proto)
    report = reproduced(proto, tmp_path)
    assert any(said in warning for warning in report.warnings)


def test_sparse_tensors_are_read_as_they_are(tmp_path: Path) -> None:
    """Both forms of indices, as an initializer and in a Constant node."""
    wanted = np.zeros((4, 3), np.float32)
    wanted[[0, 1, 2], [0, 2, 1]] = [1, 2, 3]
    for rank in (1, 2):
        proto = network(ADD)
        sparse(proto, rank)
        (tensor,) = proto.graph.sparse_initializer
        node = helper.make_node("Constant", [], ["k"], sparse_value=tensor)
        proto.graph.node.append(node)
        onnx.save(proto, tmp_path / "m.onnx")
        model = reading.read(tmp_path / "m.onnx")
        assert same_bits(model.graph.initializers["w"].const_value.numpy(), wanted)
        constant = next(node for node in model.graph if node.op_type == "Constant")
        assert same_bits(constant.attributes["value"].as_tensor().numpy(), wanted)


NO_DROPS = "r = Constant<value_float=0.0>() t = Constant<value=bool {1}>() "
HARMLESS = {
    "Dropout with ratio 0": NO_DROPS + "i = Add(h, b) d, m = Dropout<seed=3>(i, r, t) "
                            "k = Cast<to=1>(m) o = Mul(d, k)",
    "Dropout with ratio 0, at times in training mode":
        "r = Constant<value_float=0.0>() n = ReduceSum<keepdims=0>(h) t = Cast<to=9>(n) "
        "i = Add(h, b) o = Dropout(i, r, t)",
    "Dropout in training mode that nothing needs":
        "t = Constant<value=bool {1}>() d = Dropout(h, , t) e = Exp(d) o = Add(h, b)",
    "random numbers that nothing needs":
        "r = RandomNormal<shape=[3]>() s = Exp(r) o = Add(h, b)",
    "random numbers of a network's values that nothing needs":
        "s = Sigmoid(h) r = Bernoulli(s) u = Mul(r, h) o = Add(h, b)",
    "random numbers of a weight that nothing needs": "r = RandomNormalLike(w) o = Add(h, b)",
    "random numbers in a branch that nothing needs":
        "s = ReduceSum<keepdims=0>(b) c = Cast<to=9>(s) o = If (c) "
        "<then_branch = t () => (float[N,3] u) { r = RandomNormalLike(h) e = Exp(r) "
        "u = Add(h, b) }, else_branch = e () => (float[N,3] v) { v = Neg(h) }>",
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_random_operators_that_change_nothing(name: str, tmp_path: Path) -> None:
    """They stay in the network; torch does without those that no output needs."""
    reproduced(network(HARMLESS[name]), tmp_path)


def test_dropout_with_ratio_0_is_the_identity() -> None:
    """In training mode, in onnxruntime, the mask all true, for every kind of number."""
    x = np.float32([[0.0, -0.0, 1e-40, np.inf, -np.inf, np.nan, 3e38, -1.5]])
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[N,8] x) => (float[N,8] d, bool[N,8] m) '
        f"{{ {NO_DROPS} d, m = Dropout(x, r, t) }}"
    )
    with runtime.on_disk(ir.from_proto(proto)) as path:
        for level in runtime.LEVELS:
            found = runtime.run(path, {"x": x}, level=level)
            assert same_bits(found["d"], x) and found["m"].all()


REFUSED: dict[str, tuple[onnx.ModelProto, Change, str]] = {
    "a circle": (network("i = Add(o, b) o = Add(i, h)"), as_is, "sorted"),
    "an unknown operator": (network("o = Gelu(h)"), as_is, "No Op registered for Gelu"),
    "no import at all": (network(ADD), lambda proto: proto.ClearField("opset_import"),
                         "must specify opset_import"),
    "a sparse tensor too large": (network(ADD), lambda proto: sparse(proto, 1, (1 << 40, 1 << 40)),
                                  "too large to be made dense"),
    "a sparse tensor in another file": (network(ADD), elsewhere, "save it inside the model"),
    "a sparse tensor with a negative index": (network(ADD), negative, "a negative index"),
    "strings": (network(ADD, inputs="float[N,4] x, string[N] s"), as_is, "'s' takes strings"),
    "a sequence": (network(ADD, inputs="float[N,4] x, seq(float[N]) s"), as_is, "is no tensor"),
    "an optional": (network(ADD, inputs="float[N,4] x, optional(float[N]) s"), as_is,
                    "is no tensor"),
    "random": (network("r = RandomNormalLike(h) o = Add(r, b)"), as_is, "is random"),
    "random in a branch": (network(HARMLESS["random numbers in a branch that nothing needs"]
                                   .replace("Neg(h)", "RandomUniformLike(h)")),
                           as_is, "RandomUniformLike is random"),
    "Dropout of the usual ratio": (
        network("t = Constant<value=bool {1}>() i = Add(h, b) o = Dropout(i, , t)"), as_is,
        "Dropout in training mode"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, tmp_path: Path) -> None:
    """What neither accepts, and what has no bits to reproduce."""
    proto, change, said = REFUSED[name]
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    change(proto)
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises((InputError, UnsupportedError)) as error:
        gdu_compile.compile(tmp_path / "m.onnx", ORACLE)
    assert said in "\n".join([error.value.message, *error.value.problems])


@pytest.mark.parametrize(("body", "outputs"), [
    ("i = Add(h, b) t = Optional(i) o = OptionalGetElement(t)", "float[N,3] o"),
    ("i = Add(h, b) o = Optional(i)", "optional(float[N,3]) o"),
    ("i = Add(h, b) s = SequenceConstruct(i, h) q = Constant<value_int=1>() o = SequenceAt(s, q)",
     "float[N,3] o"),
    ("i = Add(h, b) o = SplitToSequence<axis=1>(i)", "seq(float[N,1]) o"),
])  # fmt: skip
def test_sequences_and_optionals(body: str, outputs: str, tmp_path: Path) -> None:
    """Inside, and as outputs."""
    reproduced(network(body, outputs=outputs), tmp_path)
