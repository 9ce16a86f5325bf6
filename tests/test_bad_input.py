"""Bad input on the command line: exit 2, what is wrong and the way out, nothing left behind."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper, parser
from safetensors.numpy import save_file

import gdu_compile
from gdu_compile import cli

MODELS = Path(__file__).parent.parent / "models"
COMPILE = "m.onnx --weights w.npz --no-confirm -o out.onnx"
CONFIRM = "m.onnx --weights w.npz -o out.onnx"
WITH_DATA = "m.onnx --weights w.npz --data d.npz --no-confirm -o out.onnx"
TRAIN = "train e.gdu.onnx -o out.onnx"
VERIFY = "verify e.gdu.onnx --trained t.safetensors"
LEARN = "m.onnx --oracle a.onnx --data d.npz --no-confirm -o out.onnx"
VERIFY_L = "verify l.gdu.onnx --trained l.gdu.trained.onnx --data d.npz"
APPLY = "apply e.gdu.onnx --trained t.safetensors -o out.onnx"
EXTRACT = "extract e.gdu.trained.onnx -o out.onnx"

W = np.arange(12, dtype=np.float32).reshape(3, 4)
B = np.float32([1, -2, 0])
X = np.ones((5, 4), dtype=np.float32)
Y = np.int64([0, 1, 2, 0, 1])

# --- the good files, which each case starts from ------------------------------


def tiny(
    body: str = "logits = Gemm<transB=1>(x, w, b)",
    *,
    inputs: str = "float[N,4] x",
    outputs: str = "float[N,3] logits",
    more: str = "",
    opset: int = 18,
) -> onnx.ModelProto:
    """x [N, 4] → logits [N, 3], in ONNX's text form."""
    return parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": {opset}]>
        tiny ({inputs}) => ({outputs})
        <float[3,4] w = {{1,2,3,4,5,6,7,8,9,10,11,12}}, float[3] b = {{1,2,3}} {more}>
        {{ {body} }}"""
    )


COMPUTE = "s = ReduceSum<keepdims=0>(x) w = Mul(k, s) b = Mul(r, s)"
COUNTS = """n1 = Shape(Y) n = Squeeze(n1) huge = Constant<value=int64 {9000000000000000000}>()
            hundred = Constant<value=int64 {100}>() most = Mul(huge, n)"""
BODY = "(int64 i, bool go, float t) => (bool on, float u) { u = Add(t, one) on = Identity(go) }"
INNER = "v = Loop (MOST, a) <body = inner (int64 i, bool go, float t) => (bool on, float u)"\
        " { u = Add(t, one) on = Identity(go) }>"  # fmt: skip


def tiny_algorithm(
    body: str = COMPUTE,
    *,
    inputs: str = "float[n,4] x, int64[n] Y",
    outputs: str = "float[3,4] w, float[3] b",
    opset: int = 18,
    domains: str = "",
) -> onnx.ModelProto:
    """(x, Y) → w and b, in ONNX's text form."""
    return parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": {opset}{domains}]>
        tiny_algorithm ({inputs}) => ({outputs}) {{
            k = Constant<value=float[3,4] {{1,2,3,4,5,6,7,8,9,1,2,3}}>()
            r = Constant<value=float[3] {{1,2,3}}>() one = Constant<value=float {{1.0}}>()
            nil = Constant<value=float {{0.0}}>() yes = Constant<value=bool {{1}}>() {body} }}"""
    )


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, its oracle weights, data, and what compile and train make of them."""
    folder = tmp_path_factory.mktemp("good")
    onnx.save(tiny(), folder / "m.onnx")
    np.savez(folder / "w.npz", w=W, b=B)
    np.savez(folder / "d.npz", x=X, y=Y)
    compiled = gdu_compile.compile(
        folder / "m.onnx", folder / "w.npz", data=folder / "d.npz", output=folder / "e.gdu.onnx"
    )
    assert compiled.report.reproduced and compiled.theta is not None
    save_file(compiled.theta, folder / "t.safetensors")
    onnx.save(tiny_algorithm(), folder / "a.onnx")
    learnt = gdu_compile.compile(
        folder / "m.onnx", oracle=folder / "a.onnx", data=folder / "d.npz",
        output=folder / "l.gdu.onnx", bucket_bytes=4 * 40,
    )  # fmt: skip
    assert learnt.report.reproduced
    (folder / "temp").mkdir()
    return folder


@pytest.fixture
def here(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder: a copy of the good files; temporary files go below it too."""
    folder = tmp_path / "here"
    shutil.copytree(good, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "temp"))
    return folder


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, hidden files too: path → content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


# --- ways to spoil them -------------------------------------------------------

Change = Callable[[], object]


def as_is() -> None:
    """Nothing is spoiled: the command line itself is wrong."""


def write(name: str, content: bytes) -> Change:
    """The file holds these bytes."""
    return lambda: Path(name).write_bytes(content)


def cut(name: str, keep: float) -> Change:
    """The file ends early."""
    return lambda: Path(name).write_bytes(
        Path(name).read_bytes()[: int(Path(name).stat().st_size * keep)]
    )


def folder_instead(name: str) -> Change:
    """A folder lies where the file should."""

    def change() -> None:
        Path(name).unlink(missing_ok=True)
        Path(name).mkdir()

    return change


def rename(name: str, new: str) -> Change:
    """The file has another name."""
    return lambda: Path(name).rename(new)


def weights(**arrays: Any) -> Change:
    """w.npz holds these arrays."""
    return lambda: np.savez("w.npz", **arrays)


def data(**arrays: Any) -> Change:
    """d.npz holds these arrays."""
    return lambda: np.savez("d.npz", **arrays)


def model(**text: Any) -> Change:
    """m.onnx is this network."""
    return lambda: onnx.save(tiny(**text), "m.onnx")


def algorithm(body: str = COMPUTE, **text: Any) -> Change:
    """a.onnx is this algorithm."""
    return lambda: onnx.save(tiny_algorithm(body, **text), "a.onnx")


def loop(text: str) -> Change:
    """a.onnx computes w and b from s, which a Loop gives."""
    return algorithm(f"{COUNTS} {text} w = Mul(k, s) b = Mul(r, s)")


def targets(base: str, **arrays: Any) -> Change:
    """m.onnx is a network of this text, a.onnx computes its w, d.npz holds these arrays."""

    def change() -> None:
        signature, _, outputs = base.partition("=>")
        outputs, _, body = outputs.partition(":")
        onnx.save(tiny(f"wt = Transpose<perm=[1,0]>(w) {body}", inputs=signature, outputs=outputs),
                  "m.onnx")  # fmt: skip
        algorithm("w = Identity(k)", inputs=signature.replace("N", "n") + ", int64[n] Y",
                  outputs="float[3,4] w")()  # fmt: skip
        np.savez("d.npz", **arrays)

    return change


def elsewhere() -> None:
    """The algorithm keeps its table in the folder above."""
    proto = tiny_algorithm("w = Mul(k, t) b = Mul(r, t)")
    proto.graph.initializer.append(numpy_helper.from_array(np.float32([2.0]), "t"))
    external_data_helper.set_external_data(proto.graph.initializer[0], "../t.data")
    Path("../t.data").write_bytes(proto.graph.initializer[0].raw_data)
    proto.graph.initializer[0].ClearField("raw_data")
    Path("a.onnx").write_bytes(proto.SerializeToString())


def edit(name: str, change: Callable[[onnx.ModelProto], object]) -> Change:
    """The ONNX file is changed as a program might, unchecked."""

    def apply() -> None:
        proto = onnx.load(name, load_external_data=False)
        change(proto)
        Path(name).write_bytes(proto.SerializeToString())

    return apply


def metadata(key: str, value: str | None, *, file: str = "e.gdu.onnx") -> Change:
    """One gdu.* entry of the extended model says something else, or is gone."""

    def change(proto: onnx.ModelProto) -> None:
        entries = {entry.key: entry for entry in proto.metadata_props}
        if value is None:
            proto.metadata_props.remove(entries[key])
        else:
            entries[key].value = value

    return edit(file, change)


def site(**facts: object) -> Change:
    """The logits entry of the metadata says something else."""

    def change(proto: onnx.ModelProto) -> None:
        entry = next(e for e in proto.metadata_props if e.key == "gdu.logits")
        entry.value = json.dumps({**json.loads(entry.value), **facts})

    return edit("e.gdu.onnx", change)


def initializer(proto: onnx.ModelProto, name: str) -> TensorProto:
    """An initializer by name."""
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def external(location: str, *, keep: int | None = None, length: int | None = None) -> Change:
    """w lies in the file m.data, which the model calls ``location``; ``keep`` cuts it short."""

    def change(proto: onnx.ModelProto) -> None:
        tensor = initializer(proto, "w")
        tensor.raw_data = W.tobytes()
        tensor.ClearField("float_data")
        Path("m.data").write_bytes(W.tobytes()[:keep])
        external_data_helper.set_external_data(tensor, location, offset=0, length=length)
        tensor.ClearField("raw_data")

    return edit("m.onnx", change)


def linked() -> None:
    """The external data is a symbolic link, as in a hub cache."""
    external("link.data")()
    Path("link.data").symlink_to("m.data")


def beside_the_output() -> None:
    """The base keeps w in the file that the output's tensors would go to."""
    external("out.onnx.data")()
    Path("m.data").rename("out.onnx.data")


def random_function(proto: onnx.ModelProto) -> None:
    """x goes through a model-local function that draws at random, in an unnamed node."""
    proto.functions.append(parser.parse_function(
        """<opset_import: ["": 18], domain: "own"> noisy (a) => (b)
           { r = RandomNormalLike(a)  b = Add(a, r) }"""
    ))  # fmt: skip
    proto.opset_import.add(domain="own", version=1)
    proto.graph.node.insert(0, helper.make_node("noisy", ["x"], ["x2"], domain="own"))
    proto.graph.node[1].input[0] = "x2"


def dumped(name: str) -> Change:
    """The file lies where the graph after NormalizePass would be dumped."""

    def change() -> None:
        Path("dumps").mkdir()
        shutil.move(name, "dumps/00-NormalizePass.onnx")

    return change


def moved() -> None:
    """The external data lies in the folder above."""
    external("../m.data")()
    shutil.copy("m.data", "..")


# --- the table ----------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What is wrong, how it comes about, what is run, and what the message must contain."""

    what: str
    change: Change
    command: str
    says: tuple[str, ...]


def case(what: str, change: Change, command: str, *says: str) -> Case:
    """A row."""
    return Case(what, change, command, says)


USAGE = [
    case("no weights named", as_is, "m.onnx", "--weights", "gdu-compile compile --help"),
    case("unknown flag", as_is, f"{COMPILE} --stpes 3", "--stpes", "--steps", "--help"),
    case("unknown flag of train", as_is, f"{TRAIN} --gain 1", "--gain", "gdu-compile train --help"),
    case("no trained named", as_is, "verify e.gdu.onnx", "--trained", "--help"),
    case("no model named", as_is, "extract", "TRAINED", "gdu-compile extract --help"),
    case("an argument too many", as_is, "inspect m.onnx w.npz", "w.npz", "--help"),
    case("a word for a number", as_is, f"{COMPILE} --steps many", "--steps", "many", "--help"),
]

MODEL_FILE = [
    case("missing", as_is, "no.onnx --weights w.npz", "no.onnx", "no such file"),
    case("missing to inspect", as_is, "inspect no.onnx", "no.onnx", "no such file"),
    case("name too long", as_is, f"{'n' * 300}.onnx --weights w.npz", "nnn", "too long", "-o"),
    case("name too long to inspect", as_is, f"inspect {'n' * 300}", "nnn", "no such file"),
    case("a folder", folder_instead("m.onnx"), COMPILE, "m.onnx", "is a folder", "name a file"),
    case("a device", as_is, "/dev/zero --weights w.npz", "/dev/zero", "no regular file", "copy"),
    case("empty", write("m.onnx", b""), COMPILE, "m.onnx", "is empty", "again"),
    case("cut in half", cut("m.onnx", 0.5), COMPILE, "m.onnx", "cut short", "export"),
    case("last byte gone", cut("m.onnx", 0.995), COMPILE, "m.onnx", "cut short", "export"),
    case("text", write("m.onnx", b"no model at all\n" * 9), COMPILE, "m.onnx", "not an ONNX file"),
    case("a zip", lambda: shutil.copy("w.npz", "m.onnx"), COMPILE, "m.onnx", "not an ONNX file"),
    case("bad JSON", rename("w.npz", "m.json"), "m.json --weights w.npz", "m.json", "not an ONNX"),
    case("cut in half, inspect", cut("m.onnx", 0.5), "inspect m.onnx", "m.onnx", "cut short"),
    case("cut in half, train", cut("e.gdu.onnx", 0.5), TRAIN, "e.gdu.onnx", "cut short"),
    case("no nodes", edit("m.onnx", lambda m: m.graph.ClearField("node")), COMPILE, "m.onnx",
         "no nodes", "export it again"),
    case("an undefined input", model(body="logits = Gemm<transB=1>(nothing, w, b)"), COMPILE,
         "m.onnx", "nothing", "export it again"),
    case("an unknown operator", model(body="logits = Gemmm(x, w, b)"), COMPILE,
         "m.onnx", "Gemmm", "export it again"),
    case("nodes in a circle", model(body="h = Add(logits, b) logits = Add(h, b)"), COMPILE,
         "m.onnx", "sorted", "export it again"),
    case("a name used twice", model(body="h = Relu(x) h = Neg(x) logits = Gemm<transB=1>(h, w, b)"),
         COMPILE, "m.onnx", "'h' is redeclared", "export it again"),
    case("a weight declared otherwise", edit("m.onnx", lambda m: m.graph.value_info.add(
         name="w", type=helper.make_tensor_type_proto(1, [4, 3]))), COMPILE, "m.onnx",
         "'w' is declared FLOAT [4,3], but holds FLOAT [3, 4]", "export it again"),
    case("a negative size", edit("m.onnx", lambda m: initializer(m, "w").dims.__setitem__(0, -3)),
         COMPILE, "m.onnx", "w", "export it again"),
    case("no type", edit("m.onnx", lambda m: m.graph.input[0].ClearField("type")), COMPILE,
         "m.onnx", "'type'", "export it again"),
    case("an opset too old", model(opset=5), COMPILE, "opset 5", "raise it to 18", "export it"),
    case("a weight cut short", edit("m.onnx", lambda m: initializer(m, "w").float_data.pop()),
         COMPILE, "m.onnx", "w", "export it again"),
    case("an opset of the future", model(opset=9999), COMPILE, "m.onnx", "9999", "export it"),
    case("random operator", model(body="r = RandomNormal<shape=[3], seed=1.0>() c = Add(b, r) "
         "logits = Gemm<transB=1>(x, w, c)"), COMPILE, "RandomNormal", "evaluation mode"),
    case("Dropout in training mode", model(body="d = Dropout(x, p, t) "
         "logits = Gemm<transB=1>(d, w, b)", more=", float p = {0.5}, bool t = {1}"), COMPILE,
         "Dropout in training mode", "evaluation mode"),
    case("random operator in a function", edit("m.onnx", random_function), COMPILE,
         "RandomNormalLike is random", "evaluation mode"),
    case("Dropout in training mode at times", model(body="s = ReduceSum<keepdims=0>(x) "
         "t = Cast<to=9>(s) d = Dropout(x, p, t) logits = Gemm<transB=1>(d, w, b)",
         more=", float p = {0.5}"), COMPILE, "Dropout in training mode where 't' says so",
         "evaluation mode"),
    case("BatchNormalization in training mode", model(body="n, m, v = BatchNormalization"
         "<training_mode=1>(x, s, s, s, s) logits = Gemm<transB=1>(n, w, b)",
         more=", float[4] s = {1, 1, 1, 1}"), COMPILE, "BatchNormalization in training mode"),
    case("extended already", as_is, "e.gdu.onnx --weights w.npz --no-confirm -o out.onnx",
         "extended one already", "gdu-compile extract"),
]  # fmt: skip

EXTERNAL_DATA = [
    case("missing", external("no.data"), COMPILE, "m.onnx", "'w'", "no.data is missing", "put it"),
    case("too short", external("m.data", keep=40), COMPILE, "m.onnx", "'w'", "m.data is too short",
         "40 bytes, 48 needed", "copy it again"),
    case("a wrong length", external("m.data", length=44), COMPILE, "m.onnx", "'w'", "length 44",
         "save the model again"),
    case("a link", linked, COMPILE, "m.onnx", "'w'", "link.data is a link", "copy the file itself"),
    case("above the folder", moved, COMPILE, "m.onnx", "'w'", "../m.data lies outside", "move it"),
    case("anywhere", external("/etc/hostname"), COMPILE, "m.onnx", "/etc/hostname"),
    case("of an extended model", lambda: (external("no.data")(), shutil.copy("m.onnx", "e.onnx")),
         "train e.onnx -o out.onnx", "e.onnx", "no.data is missing"),
]  # fmt: skip

NAN = np.where(W == 6, np.float32(np.nan), W)
WEIGHTS = [
    case("missing", as_is, "m.onnx --weights no.npz", "no.npz", "no such file"),
    case("a folder", folder_instead("w.npz"), COMPILE, "w.npz", "is a folder"),
    case("empty", write("w.npz", b""), COMPILE, "w.npz", "is empty"),
    case("no arrays", weights(), COMPILE, "w.npz", "holds no arrays"),
    case("text", write("w.npz", b"w = 1"), COMPILE, "w.npz", "not a .npz", "save or download"),
    case("cut short", cut("w.npz", 0.5), COMPILE, "w.npz", "cut short", "save or download it"),
    case("cut-short safetensors", cut("t.safetensors", 0.5),
         "m.onnx --weights t.safetensors", "t.safetensors", "cut short", "again"),
    case("unknown extension", rename("w.npz", "w.pickle"), "m.onnx --weights w.pickle", "w.pickle",
         ".npz and .safetensors"),
    case("no extension", rename("w.npz", "w"), "m.onnx --weights w", "w: unknown kind", ".npz"),
    case("pickled", weights(w=np.array([{}], dtype=object), b=B), COMPILE, "w.npz", "'w'", "pickle",
         "save plain arrays"),
    case("unknown name", weights(w=W, b=B, c=B), COMPILE, "w.npz", "'c' is no weight",
         "--allow-extra", "weights of the model: w, b"),
    case("all unknown but allowed", weights(c=B), f"{COMPILE} --allow-extra", "w.npz",
         "covers no weight", "weights of the model: w, b"),
    case("a name missing, strict", weights(w=W), f"{COMPILE} --strict", "'b'", "--strict"),
    case("wrong shape", weights(w=W.T, b=B), COMPILE, "'w'", "[4, 3]", "[3, 4] in the model"),
    case("wrong rank", weights(w=W, b=B[0]), COMPILE, "'b'", "shape []", "[3] in the model"),
    case("wrong dtype", weights(w=W.astype(np.float64), b=B), COMPILE, "'w' is float64",
         "float32 in the model", "convert it"),
    case("whole numbers", weights(w=W.astype(np.int32), b=B), COMPILE, "'w' is int32", "convert"),
    case("text for numbers", weights(w=W.astype(str), b=B), COMPILE, "'w' is <U", "convert it"),
    case("NaN", weights(w=NAN, b=B), COMPILE, "'w' holds NaN", "first at flat index 6"),
    case("everything at once", weights(w=NAN, b=W, c=B), COMPILE, "'w' holds NaN (first at flat "
         "index 6)", "'b' has shape [3, 4], but [3]", "'c' is no weight", "--allow-extra"),
    case("a weight that is no float", lambda: (model(body="i = Cast<to=1>(k) c = Add(b, i) "
         "logits = Gemm<transB=1>(x, w, c)", more=", int64[3] k = {1,2,3}")(), weights(k=B)()),
         COMPILE, "'k' is float32", "but int64 in the model", "convert it"),
]  # fmt: skip

BAD = "cannot use the data d.npz"
DATA = [
    case("missing", as_is, f"{COMPILE} --data no.npz", "no.npz", "no such file"),
    case("cut short", cut("d.npz", 0.5), WITH_DATA, "d.npz", "cut short", "again"),
    case("no y", data(x=X), WITH_DATA, BAD, "no array 'y'", "integers [n]"),
    case("no x", data(y=Y, images=X), WITH_DATA, BAD, "no array 'x' for the model's input",
         "it holds y, images"),
    case("neither name nor x", lambda: (model(inputs="float[N,4] image",
         body="logits = Gemm<transB=1>(image, w, b)")(), data(y=Y, images=X)()), WITH_DATA, BAD,
         "no array 'image' (or 'x') for the model's input"),
    case("nothing", data(), WITH_DATA, BAD, "no array 'x'", "no array 'y'"),
    case("wrong shape", data(x=X[:, :3], y=Y), WITH_DATA, BAD, "'x' has shape [5, 3]", "[N, 4]"),
    case("wrong rank", data(x=X[0], y=Y), WITH_DATA, BAD, "'x' has shape [4]", "[N, 4]"),
    case("a scalar", data(x=np.float32(1), y=Y), WITH_DATA, BAD, "'x' has shape []", "[N, 4]"),
    case("text", data(x=X.astype(str), y=Y), WITH_DATA, BAD, "'x' is <U", "takes float32"),
    case("strings", model(inputs="float[N,4] x, string[N] s"), CONFIRM, "'s' takes strings"),
    case("a sequence", model(inputs="float[N,4] x, seq(float[N]) s"), CONFIRM, "'s' is no tensor"),
    case("no elements", model(inputs="float[N,0] x"), CONFIRM, "'x' has shape [N, 0]: no elements"),
    case("no inputs", model(body="logits = Identity(k)", inputs="", outputs="float[2,3] logits",
         more=", float[2,3] k = {1,2,3,4,5,6}"), CONFIRM + " --cover-all", "no inputs",
         "--no-confirm"),
    case("two batches, one sample of data", lambda: (model(inputs="float[3,4] x, float[2,4] u",
         outputs="float[3,3] logits")(), data(x=X, u=X, y=Y)()), WITH_DATA, BAD,
         "'x' has shape [5, 4], but input 'x' takes [calls, 3, 4]"),
    case("label too large", data(x=X, y=Y + 1), WITH_DATA, BAD, "1 of 5 labels are outside 0 … 2",
         "y[2] = 3"),
    case("label negative", data(x=X, y=Y - 1), WITH_DATA, BAD, "2 of 5 labels", "y[0] = -1"),
    case("label huge", data(x=X, y=np.uint64([0, 2**64 - 1, 0, 0, 0])), WITH_DATA, BAD,
         "y[1] = 18446744073709551615"),
    case("too few labels", data(x=X, y=Y[:4]), WITH_DATA, BAD, "'x' has 5 samples, but 'y' has 4"),
    case("labels of float", data(x=X, y=Y * 1.0), WITH_DATA, BAD, "'y' is float64 [5]", "integers"),
    case("labels of bool", data(x=X, y=Y > 0), WITH_DATA, BAD, "'y' is bool [5]", "integers [n]"),
    case("one-hot labels", data(x=X, y=np.eye(5, dtype=int)), WITH_DATA, BAD, "[5, 5]", "integers"),
    case("no samples", data(x=X[:0], y=Y[:0]), WITH_DATA, BAD, "'y' is empty", "one label or more"),
    case("everything at once", data(x=X[:, :3], y=Y[:4] + 9), WITH_DATA, BAD, "'x' has shape",
         "but 'y' has 4", "4 of 4 labels are outside 0 … 2"),
    case("fixed batch too large", model(inputs="float[9,4] x", outputs="float[9,3] logits"),
         WITH_DATA, BAD, "5 samples", "fixed to 9"),
    case("two inputs, one given", model(inputs="float[N,4] x, float[N,3] c",
         body="z = Gemm<transB=1>(x, w, b) logits = Add(z, c)"), WITH_DATA, BAD, "no array 'c'"),
    case("to train", data(x=X[:, :3], y=Y), f"{TRAIN} --data d.npz", BAD, "[N, 4]"),
    case("to verify", data(x=X), f"{VERIFY} --data d.npz", BAD, "no array 'y'"),
]  # fmt: skip

GEMM = "z = Gemm<transB=1>(x, w, b)"
LOGITS = [
    case("Softmax and Cast over samples", model(body=f"{GEMM} p = Softmax<axis=0>(z) "
         "logits = Cast<to=1>(p)"), COMPILE, "'logits'", "Softmax along axis 0", "holds samples"),
    case("another class axis than the Softmax's", model(inputs="float[N,2,4] x", body=
         "t = Transpose<perm=[1,0]>(w) z = MatMul(x, t) logits = Softmax<axis=2>(z)",
         outputs="float[N,2,3] logits"), f"{COMPILE} --class-axis 1",
         "Softmax along axis 2, but --class-axis says 1 of [N, 2, 3]"),
    case("HardSigmoid", model(body=f"{GEMM} logits = HardSigmoid(z)"), COMPILE, "HardSigmoid",
         "without it"),
    case("Softmax over samples", model(body=f"{GEMM} logits = Softmax<axis=0>(z)"), COMPILE,
         "'logits'", "Softmax along axis 0", "class axis of [N, 3] is 1", "--class-axis"),
    case("Softmax of one", model(body=f"{GEMM} m = ReduceMax(z, a) logits = Softmax(m)",
         outputs="float[N,1] logits", more=", int64[1] a = {1}"), COMPILE, "Softmax over [N, 1]",
         "1 whatever the weights are"),
    case("Softmax of an input", model(body=f"{GEMM} p = Softmax(x)", outputs="float[N,4] p"),
         COMPILE, "'p'", "Softmax of a value that no node computes"),
    case("a class axis of a scalar", model(body=f"{GEMM} logits = ReduceMax<keepdims=0>(z)",
         outputs="float logits"), f"{COMPILE} --class-axis 1", "'logits' has shape []",
         "no class axis 1"),
    case("no such class axis", as_is, f"{COMPILE} --class-axis 2", "[N, 3]", "no class axis 2"),
    case("samples as class axis", as_is, f"{COMPILE} --class-axis 0", "no class axis 0"),
    case("a dynamic class axis", model(inputs="float[N,T,4] x", body="t = Transpose<perm=[1,0]>(w) "
         "logits = MatMul(x, t)", outputs="float[N,T,3] logits"), f"{COMPILE} --class-axis 1",
         "[N, T, 3]", "no fixed size"),
    case("whole numbers", model(body=f"{GEMM} logits = Shape(x)",
         outputs="int64[2] logits"), COMPILE, "'logits' has type", "only float32"),
    case("dynamic classes", model(inputs="float[N,T,4] x", body="t = Transpose<perm=[1,0]>(w) "
         "z = MatMul(x, t) logits = Relu(z)", outputs="float[N,T,3] logits"),
         f"{COMPILE} --class-axis 1", "[N, T, 3]", "no fixed size"),
    case("an input", model(body=f"{GEMM}", outputs="float[N,4] x"), COMPILE, "'x'", "node"),
    case("all reasons", model(body=f"{GEMM} p = Hardmax(z) c = Shape(x)",
         outputs="float[N,3] p, int64[2] c"), COMPILE, "'p' comes from Hardmax", "'c' has type"),
    case("--logits unknown", as_is, f"{COMPILE} --logits z", "'z' (--logits)", "outputs: logits"),
    case("--logits of Hardmax", model(body=f"{GEMM} logits = Identity(z) p = Hardmax(z)",
         outputs="float[N,3] logits, float[N,3] p"), f"{COMPILE} --logits p", "'p'", "Hardmax"),
]  # fmt: skip

OPTIONS = [
    case("gain 3", as_is, f"{COMPILE} --gain 3", "--gain 3.0", "power of two", "2**-80"),
    case("gain 0", as_is, f"{COMPILE} --gain 0", "--gain 0.0", "power of two", "2**-80"),
    case("gain -2", as_is, f"{COMPILE} --gain=-2", "--gain -2.0", "power of two"),
    case("gain NaN", as_is, f"{COMPILE} --gain nan", "--gain nan", "power of two"),
    case("gain too small", as_is, f"{COMPILE} --gain 2**-121", "outside 2**-120"),
    case("gain of a word", as_is, f"{COMPILE} --gain quiet", "--gain", "quiet", "2**-80"),
    case("gain 0**-1", as_is, f"{COMPILE} --gain 0**-1", "0**-1", "2**-80"),
    case("gain 2**-1.5", as_is, f"{COMPILE} --gain 2**-1.5", "2**-1.5", "2**-80"),
    case("gain 9**99999", as_is, f"{COMPILE} --gain 9**99999", "9**99999", "2**-80"),
    case("no steps", as_is, f"{COMPILE} --steps 0", "--steps 0", "1 or more"),
    case("negative batch", as_is, f"{COMPILE} --batch-size=-1", "--batch-size -1", "0 (full"),
    case("negative rate", as_is, f"{COMPILE} --lr=-0.1", "--lr -0.1", "0 or more"),
    case("rate NaN", as_is, f"{COMPILE} --lr nan", "--lr nan", "finite"),
    case("rate infinite", as_is, f"{TRAIN} --lr inf", "--lr inf", "finite"),
    case("rate beyond float32", as_is, f"{CONFIRM} --lr 1e39", "--lr 1e+39", "finite in float32"),
    case("negative seed", as_is, f"{CONFIRM} --seed=-1", "--seed -1", "0 or more"),
    case("negative seed, verify", as_is, f"{VERIFY} --seed=-1", "--seed -1", "0 or more"),
    case("batch limit 0", as_is, f"{COMPILE} --batch-limit 0", "--batch-limit 0", "2**62"),
    case("batch limit huge", as_is, f"{COMPILE} --batch-limit 1{'0' * 400}", "--batch-limit 1000",
         "2**62"),
    case("bucket bytes 0", as_is, f"{COMPILE} --bucket-bytes 0", "--bucket-bytes 0", "1 or more"),
    case("several at once", as_is, f"{COMPILE} --steps 0 --lr nan --seed=-1 --bucket-bytes 0",
         "--steps 0", "--lr nan", "--seed -1", "--bucket-bytes 0"),
    case("batch beyond N", as_is, f"{CONFIRM} --batch-limit 9", "64", "N = 9", "--batch-size"),
    case("--stop-after unknown", as_is, f"{COMPILE} --stop-after Sink", "--stop-after Sink",
         "NormalizePass", "CheckExtensionPass"),
    case("--why unknown", as_is, f"{COMPILE} --why nothing", "--why nothing", "no tensor"),
    case("no such device", as_is, f"{CONFIRM} --device gpu9", "--device gpu9", "torch"),
    case("no such cuda", as_is, f"{TRAIN} --device cuda:99", "--device cuda:99", "torch"),
    case("no optimizer", as_is, f"{CONFIRM} --optimizer ''", "--optimizer ''", "as in PyTorch"),
    case("optimizer with code", as_is, f"{CONFIRM} --optimizer \"__import__('os').abort()\"",
         "cannot be read", "SGD(momentum=0.9, nesterov=True)"),
    case("optimizer with a call", as_is, f'{CONFIRM} --optimizer "SGD(momentum=exit())"',
         "cannot be read", "as in PyTorch"),
    case("optimizer by position", as_is, f'{CONFIRM} --optimizer "SGD(0.1)"', "cannot be read"),
    case("optimizer with lr", as_is, f'{CONFIRM} --optimizer "SGD(lr=1)"', "with --lr"),
    case("unknown optimizer", as_is, f"{CONFIRM} --optimizer Sgd", "no class 'Sgd'", "torch.optim"),
    case("no optimizer class", as_is, f"{CONFIRM} --optimizer lr_scheduler", "'lr_scheduler'"),
    case("unknown argument", as_is, f'{CONFIRM} --optimizer "SGD(mom=1)"', "SGD(mom=1)", "mom"),
    case("refused argument", as_is, f'{TRAIN} --optimizer "SGD(momentum=-1)"', "SGD(momentum=-1)",
         "Invalid momentum"),
    case("LBFGS", as_is, f"{CONFIRM} --optimizer LBFGS", "LBFGS", "not supported", "closure"),
    case("digits", as_is, f"{COMPILE} --digits linear3", "--digits linear3", "auto, linear16"),
    case("dtype of θ", as_is, f"{COMPILE} --theta-dtype float16", "float32 or bfloat16"),
]  # fmt: skip

OUTPUTS = [
    case("exists", write("out.onnx", b"mine"), COMPILE, "out.onnx", "exists", "--force"),
    case("trained exists", write("out.trained.onnx", b"mine"), CONFIRM, "out.trained.onnx",
         "--force"),
    case("default exists", write("m.gdu.onnx", b"mine"), "m.onnx --weights w.npz", "m.gdu.onnx",
         "--force"),
    case("train: exists", as_is, "train e.gdu.onnx", "e.gdu.trained.onnx", "exists", "--force"),
    case("apply: exists", as_is, "apply e.gdu.onnx --trained t.safetensors", "exists", "--force"),
    case("extract: exists", as_is, "extract e.gdu.trained.onnx -o m.onnx", "m.onnx", "--force"),
    case("the base", as_is, "m.onnx --weights w.npz --force -o m.onnx", "an input of this very run",
         "choose another -o"),
    case("the base as trained", rename("m.onnx", "m.trained.onnx"),
         "m.trained.onnx --weights w.npz --force -o m.onnx", "an input of this very run"),
    case("its data exists", write("out.onnx.data", b"mine"), COMPILE, "out.onnx.data: exists",
         "--force", "another -o"),
    case("the trained one's data exists", write("out.trained.onnx.data", b"mine"), CONFIRM,
         "out.trained.onnx.data: exists", "--force"),
    case("the base's data", external("m.data"), "m.onnx --weights w.npz --force -o m.data",
         "m.data: is an input of this very run"),
    case("the base's data, by its data", beside_the_output, f"{COMPILE} --force",
         "out.onnx.data: is an input of this very run"),
    case("train: its input", as_is, "train e.gdu.onnx -o e.gdu.onnx --force",
         "e.gdu.onnx: is an input of this very run", "choose another -o"),
    case("train: the data", as_is, "train e.gdu.onnx --data d.npz -o ./d.npz --force",
         "d.npz: is an input of this very run"),
    case("apply: its input", as_is, f"{APPLY} --force".replace("out.onnx", "e.gdu.onnx"),
         "e.gdu.onnx: is an input of this very run"),
    case("apply: θ", as_is, f"{APPLY} --force".replace("out.onnx", "t.safetensors"),
         "t.safetensors: is an input of this very run"),
    case("extract: its input", as_is, "extract e.gdu.trained.onnx -o e.gdu.trained.onnx --force",
         "e.gdu.trained.onnx: is an input of this very run"),
    case("dump exists", dumped("e.gdu.onnx"), f"{COMPILE} --dump-dir dumps",
         "dumps/00-NormalizePass.onnx: exists", "--force"),
    case("dump over the base", dumped("m.onnx"), "dumps/00-NormalizePass.onnx --weights w.npz "
         "--force -o out.onnx --dump-dir dumps", "an input of this very run"),
    case("dump over the output", as_is, f"{COMPILE} --dump-dir dumps".replace("out.onnx",
         "dumps/02-LocateLogitsPass.onnx"), "02-LocateLogitsPass.onnx: would be written twice"),
    *(case(f"-o {name!r}, {command.split()[0]}", as_is, f"{command} --force".replace("out.onnx",
         repr(name)), "-o", "names no file") for name in ("", ".", "new/..")
      for command in (CONFIRM, TRAIN, APPLY, EXTRACT)),
    case("a folder", folder_instead("out.onnx"), COMPILE, "out.onnx", "is a folder", "name a file"),
    case("below a file", as_is, f"{CONFIRM}/below.onnx".replace("out.onnx", "w.npz"),
         "w.npz/below.onnx", "w.npz is a file", "choose another -o"),
    case("far below a file", as_is, "train e.gdu.onnx -o w.npz/a/b.onnx", "w.npz is a file"),
    case("extract below a file", as_is, "extract e.gdu.trained.onnx -o w.npz/a.onnx",
         "w.npz is a file"),
    case("name too long", as_is, f"{CONFIRM}{'n' * 300}", "cannot be written", "too long"),
    case("in the kernel's folder", as_is, "extract e.gdu.trained.onnx -o /proc/a.onnx", "/proc",
         "cannot be written"),
    case("dumps below a file", as_is, f"{COMPILE} --dump-dir w.npz", "w.npz", "cannot be written"),
]  # fmt: skip


def without_theta() -> None:
    """t.safetensors holds something else."""
    save_file({"fc.weight": W}, "t.safetensors")


def theta(**arrays: Any) -> Change:
    """t.safetensors holds these arrays."""
    return lambda: save_file(arrays, "t.safetensors")


def drop(name: str) -> Change:
    """An initializer of the extended model is gone."""
    return edit("e.gdu.onnx", lambda m: m.graph.initializer.remove(initializer(m, name)))


def replaced(name: str, array: np.ndarray[Any, Any]) -> Change:
    """An initializer of the extended model is another array."""
    return edit(
        "e.gdu.onnx",
        lambda m: initializer(m, name).CopyFrom(numpy_helper.from_array(array, name)),
    )


PLAIN = ("m.onnx", "is not an extended model", "gdu-compile MODEL --weights")
DAMAGED = ("gdu.* metadata of e.gdu.onnx is damaged",)
CHANGED = ("e.gdu.onnx", "was it changed?")
SIGNAL, THETA = "gdu_signal_0_0", "gdu_theta_0"
EXTENDED = [
    case("train a plain model", as_is, "train m.onnx -o out.onnx", *PLAIN),
    case("verify a plain model", as_is, "verify m.onnx --trained t.safetensors", *PLAIN),
    case("apply to a plain model", as_is, "apply m.onnx --trained t.safetensors", *PLAIN),
    case("extract a plain model", as_is, "extract m.onnx", *PLAIN),
    case("extract untrained", lambda: shutil.copy("e.gdu.onnx", "u.gdu.onnx"), "extract e.gdu.onnx",
         "train it first", "gdu-compile train"),
    case("θ missing", without_theta, VERIFY, "t.safetensors", f"θ '{THETA}'", "it holds fc.weight"),
    case("θ missing, apply", without_theta, APPLY, "t.safetensors", f"θ '{THETA}'", "state_dict"),
    case("θ twice", theta(**{f"a.{THETA}": W, f"b.{THETA}": W}), VERIFY, "2 times, not once"),
    case("θ misshaped", theta(**{THETA: W}), VERIFY, "t.safetensors", f"θ '{THETA}' is float32 "
         "[3, 4]", "must be float32 [16, 2]"),
    case("θ of float64", theta(**{THETA: np.zeros((16, 2))}), APPLY, "t.safetensors", "float64",
         "must be float32 [16, 2]"),
    case("θ from a plain model", as_is, "verify e.gdu.onnx --trained m.onnx", "m.onnx", THETA,
         "holds nothing"),
    case("θ nowhere", as_is, "verify e.gdu.onnx --trained no.safetensors", "no.safetensors: no "),
    case("θ cut short", cut("t.safetensors", 0.7), VERIFY, "t.safetensors", "cut short"),
    case("θ of unknown kind", rename("t.safetensors", "t.bin"), "verify e.gdu.onnx --trained t.bin",
         "t.bin", ".npz and .safetensors"),
    case("metadata entry missing", metadata("gdu.gain", None), VERIFY, *DAMAGED, "gdu.gain"),
    case("metadata no JSON", metadata("gdu.buckets", "{"), TRAIN, *DAMAGED),
    case("metadata of another form", metadata("gdu.buckets", '{"a": [1]}'), APPLY, *DAMAGED),
    case("metadata: no site", metadata("gdu.logits", "3"), VERIFY, *DAMAGED),
    case("metadata: unknown digits", metadata("gdu.digits", "roman"), VERIFY, *DAMAGED, "roman"),
    case("metadata: gain of a word", metadata("gdu.gain", "loud"), VERIFY, *DAMAGED),
    case("metadata: no initial", metadata("gdu.initial", "{}"), VERIFY, *CHANGED, "'w'"),
    case("signal missing", drop(SIGNAL), VERIFY, "e.gdu.onnx", SIGNAL),
    case("signal misshaped", replaced(SIGNAL, np.zeros((3, 2), np.uint16)), VERIFY, "e.gdu.onnx",
         SIGNAL, "[3, 2]"),
    case("signal of int32", replaced(SIGNAL, np.zeros((12, 2), np.int32)), TRAIN, "e.gdu.onnx",
         SIGNAL, "INT32"),
    case("θ of the model missing", drop(THETA), VERIFY, "e.gdu.onnx", THETA),
    case("initial weight misshaped", replaced("gdu_initial_w", W.T), TRAIN, "e.gdu.onnx",
         "gdu_initial_w", "[4, 3]"),
    case("switches gone", edit("e.gdu.onnx", lambda m: (m.graph.ClearField("node"),
         m.graph.node.extend(tiny("logits = Gemm<transB=1>(x, gdu_initial_w, gdu_initial_b)")
                             .graph.node))), VERIFY, *CHANGED, "switches"),
]  # fmt: skip

SLOTS = [["w", 0, [3, 4], "float32", SIGNAL], ["b", 12, [3], "float32", "gdu_signal_0_1"]]


def slots(*first: object) -> Change:
    """The metadata of the weight w says something else."""
    return metadata("gdu.buckets", json.dumps({THETA: [[*first], SLOTS[1]]}))


def rows_of_its_own() -> None:
    """e.onnx: an extended model whose output has a row for some of the samples only."""
    model(body="h = Gemm<transB=1>(x, w, b) i = ArgMax<axis=1,keepdims=0>(h) c = Cast<to=9>(i) "
          "logits = Compress<axis=0>(h, c)", outputs="float[M,3] logits")()  # fmt: skip
    gdu_compile.compile("m.onnx", "w.npz", confirm=False, output="e.onnx")


WHOLE_RUN = [
    case("rows for some samples", rows_of_its_own, CONFIRM, "'logits' has", "rows for 256 samples",
         "m.onnx", "along axis 0"),
    case("rows for some samples, train", rows_of_its_own, "train e.onnx -o out.onnx",
         "'logits' has", "rows for 256 samples", "e.onnx", "along axis 0"),
    case("another batch than the input's", model(body="logits = Gemm<transB=1>(k, w, b)",
         outputs="float[2,3] logits", more=", float[2,4] k = {1,2,3,4,5,6,7,8}"),
         f"{CONFIRM} --data d.npz", "'logits' has 2 rows for 5 samples"),
    case("a dynamic size that does not fit", model(inputs="float[N,F] x, float[N,G] u",
         body="y = Concat<axis=1>(x, u, u) logits = Gemm<transB=1>(y, w, b)"), CONFIRM,
         "m.onnx", "--data"),
    case("data that do not fit", lambda: (model(inputs="float[N,F] x")(),
         data(x=np.ones((5, 5), np.float32), y=Y)()), f"{CONFIRM} --data d.npz", "m.onnx", "d.npz"),
    case("shapes that do not fit", model(body="logits = Gemm(x, w, b)"), CONFIRM, "m.onnx"),
    case("types that do not fit", model(body="z = Gemm<transB=1>(x, w, b) logits = Add(z, k)",
         more=", int64[3] k = {1,2,3}"), CONFIRM, "m.onnx"),
    case("an operator of a foreign domain", edit("m.onnx", lambda m: (
         m.opset_import.add(domain="my.own", version=1),
         setattr(m.graph.node[0], "domain", "my.own"))), CONFIRM, "m.onnx", "my.own"),
    case("over the weights", as_is, f"{COMPILE} --force".replace("out.onnx", "w.npz"), "w.npz",
         "choose another -o"),
    case("device without numbers", as_is, f"{CONFIRM} --device meta", "--device meta"),
    case("device without a module", as_is, f"{CONFIRM} --device hpu", "--device hpu"),
    *(case(f"optimizer {text[:32]}", as_is, f'{CONFIRM} --optimizer "{text}"', "--optimizer")
      for text in (
        "SGD(foreach=True, fused=True)", "Adam(betas=(0.9,))", "Adam(capturable=True)",
        "SGD(differentiable=True)", "ASGD(t0='a')", "SGD(momentum=0.9, dampening='a')",
        "SGD(momentum=0.9, momentum=0.8)", "SGD(momentum=" + "-" * 9999 + "1)")),
]  # fmt: skip

FACTS = [
    *(case(f"{key}: {value[:9]}", metadata(key, value), VERIFY, *DAMAGED) for key, value in (
        ("gdu.buckets", "[]"), ("gdu.buckets", "[" * 99999), ("gdu.gain", "0x1p9999"),
        ("gdu.gain", "0x0p0"), ("gdu.gain", "nan"), ("gdu.method", "magic"))),
    case("classes of a word", site(classes="a"), f"{TRAIN} --data d.npz", *DAMAGED),
    case("no buckets", metadata("gdu.buckets", "{}"), EXTRACT.replace(".trained", ""),
         "e.gdu.onnx"),
    case("other logits", site(name="z"), TRAIN, *CHANGED, "'z'"),
    case("other base logits", site(base="z"), TRAIN, *CHANGED, "'z'"),
    case("other initial weights", metadata("gdu.initial", json.dumps(
         {"w": "gdu_initial_b", "b": "gdu_initial_w"})), TRAIN, *CHANGED, "'w'"),
    case("other offset", slots("w", 5, *SLOTS[0][2:]), VERIFY, *CHANGED, "'w'"),
    case("other shape", slots("w", 0, [4, 3], *SLOTS[0][3:]), VERIFY, *CHANGED, "'w'"),
    case("negative shape", slots("w", 0, [-3, -4], *SLOTS[0][3:]), VERIFY, *DAMAGED),
    case("node metadata gone", edit("e.gdu.onnx", lambda m: [
         node.ClearField("metadata_props") for node in m.graph.node]), VERIFY, *CHANGED),
]  # fmt: skip

ALGORITHM = [
    case("missing", as_is, LEARN.replace("a.onnx", "no.onnx"), "no.onnx", "no such file"),
    case("junk", write("a.onnx", b"junk"), LEARN, "a.onnx", "not an ONNX file"),
    case("cut short", cut("a.onnx", 0.5), LEARN, "a.onnx", "cut short"),
    case("a folder", folder_instead("a.onnx"), LEARN, "a.onnx", "is a folder"),
    case("an unknown oracle", as_is, "m.onnx --oracle rigde --data d.npz", "'rigde'", "ridge"),
    case("an unknown argument", as_is, "m.onnx --oracle 'ridge(alpha=1)' --data d.npz", "'alpha'",
         "ridge(penalty="),
    case("an argument of a wrong type", as_is, "m.onnx --oracle 'ridge(penalty=-1)' --data d.npz",
         "penalty"),
    case("a call that cannot be read", as_is, "m.onnx --oracle 'ridge(' --data d.npz", "ridge(",
         "cannot be read"),
    case("code", as_is, "m.onnx --oracle \"ridge(penalty=exit())\"", "cannot be read"),
    case("weights as well", as_is, f"{LEARN} --weights w.npz", "--weights", "--oracle", "one of"),
    case("neither", as_is, "m.onnx --data d.npz", "--weights", "--oracle", "--help"),
    case("--rename", as_is, f"{LEARN} --rename a=b", "--rename", "--weights"),
    case("--cover-all", as_is, f"{LEARN} --cover-all", "--cover-all", "--weights"),
    case("over the algorithm", as_is, f"{LEARN} --force".replace("out.onnx", "a.onnx"),
         "a.onnx: is an input of this very run"),
    case("no labels", algorithm(inputs="float[n,4] x"), LEARN, "a.onnx", "no input 'Y'",
         "INT64 [n]"),
    case("no x", algorithm("w = Identity(k) b = Identity(r)", inputs="int64[n] Y"), LEARN,
         "a.onnx", "no input 'x'"),
    case("an input too many", algorithm(inputs="float[n,4] x, int64[n] Y, float[2] z"), LEARN,
         "a.onnx", "'z' is no input of the base (x)"),
    case("x of another dtype", algorithm("c = Cast<to=1>(x) s = ReduceSum<keepdims=0>(c) "
         "w = Mul(k, s) b = Mul(r, s)", inputs="double[n,4] x, int64[n] Y"), LEARN, "a.onnx",
         "'x' is float64 [n,4], but the training set has float32 [5, 4]"),
    case("x of another size", algorithm(inputs="float[n,5] x, int64[n] Y"), LEARN, "'x' is float32 "
         "[n,5], but the training set has float32 [5, 4]"),
    case("x of another rank", algorithm(inputs="float[n,4,1] x, int64[n] Y"), LEARN, "[n,4,1]",
         "float32 [5, 4]"),
    case("another n", algorithm(inputs="float[6,4] x, int64[6] Y"), LEARN, "'Y' is int64 [6]",
         "'x' is float32 [6,4]", "int64 [5]"),
    case("labels of float", algorithm(inputs="float[n,4] x, float[n] Y"), LEARN, "'Y' is float32",
         "int64 [5]"),
    case("labels as columns", algorithm(inputs="float[n,4] x, int64[n,1] Y"), LEARN, "[n,1]"),
    case("a sequence in", algorithm("w = Identity(k) b = Identity(r)",
         inputs="seq(float[n,4]) x, int64[n] Y"), LEARN, "'x' is no tensor"),
    case("a sequence out", algorithm("w = SequenceConstruct(k) b = Identity(r)",
         outputs="seq(float[3,4]) w, float[3] b"), LEARN, "'w' is no tensor"),
    case("an unknown output", algorithm(f"{COMPUTE} c = Neg(b)",
         outputs="float[3,4] w, float[3] b, float[3] c"), LEARN, "'c' is no weight of the model",
         "weights of the model: w, b"),
    case("no weight at all", algorithm("c = Identity(r)", outputs="float[3] c"),
         f"{LEARN} --allow-extra", "computes no weight", "weights of the model: w, b"),
    case("a weight missing, strict", algorithm("w = Identity(k)", outputs="float[3,4] w"),
         f"{LEARN} --strict", "does not compute 'b'", "--strict"),
    case("a weight of another shape", algorithm("w = Transpose(k) b = Identity(r)",
         outputs="float[4,3] w, float[3] b"), LEARN, "'w' has shape [4, 3], but [3, 4]"),
    case("a weight of another dtype", algorithm("w = Cast<to=11>(k) b = Identity(r)",
         outputs="double[3,4] w, float[3] b"), LEARN, "'w' is float64, but float32"),
    case("everything at once", algorithm("w = Cast<to=11>(k) c = Identity(r)",
         inputs="float[n,5] x, int64[n] Y, float[2] z", outputs="double[3,4] w, float[3] c"), LEARN,
         "'z' is no input", "'x' is float32 [n,5]", "'w' is float64", "'c' is no weight"),
    case("another shape when it runs", algorithm("w = Transpose(k) b = Identity(r)",
         outputs="float[p,q] w, float[3] b"), LEARN, "a.onnx", "'w' is float32 [4, 3]", "[3, 4]"),
    case("NaN", algorithm("m = Neg(r) b = Log(m) w = Identity(k)"), LEARN, "a.onnx",
         "'b' holds NaN", "flat index 0"),
    case("what does not fit together", algorithm("w = MatMul(k, k) b = Identity(r)"), LEARN,
         "a.onnx", "onnxruntime cannot load it", "MatMul"),
    case("a hundred gigabytes", algorithm("h = Constant<value=int64[1] {100000000000}>() "
         "o = ConstantOfShape(h) s = ReduceSum<keepdims=0>(o) w = Mul(k, s) b = Mul(r, s)"), LEARN,
         "a.onnx", "onnxruntime cannot run it", "memory"),
    case("a random operator", algorithm("[noise] w = RandomNormalLike(k) b = Identity(r)"), LEARN,
         "the oracle a.onnx is not a function", "'noise'", "RandomNormalLike"),
    case("an unknown operator", algorithm("w = Nope(k) b = Identity(r)"), LEARN, "a.onnx", "Nope"),
    case("a foreign domain", algorithm("w = own.Foo(k) b = Identity(r)", domains=', "own": 1'),
         LEARN, "a.onnx", "own:Foo"),
    case("another version of a domain", lambda: (algorithm(domains=', "ai.onnx.ml": 4')(),
         edit("m.onnx", lambda m: m.opset_import.add(domain="ai.onnx.ml", version=3))()), LEARN,
         "a.onnx", "version 4 of the operators of 'ai.onnx.ml', and the model version 3"),
    case("an opset of the future", algorithm(opset=9999), LEARN, "a.onnx", "9999"),
    case("external data elsewhere", elsewhere, LEARN, "a.onnx", "'t'", "../t.data lies outside"),
    case("a Loop without an end", loop(f"s = Loop (, yes, nil) <body = body {BODY}>"),
         f"{LEARN} --max-iterations 50", "a.onnx", "Loop 's' does not end within 50",
         "--max-iterations"),
    case("neither a trip count nor a condition", loop(f"s = Loop (, , nil) <body = body {BODY}>"),
         f"{LEARN} --max-iterations 50", "Loop 's' does not end within 50"),
    case("a trip count that is computed", loop(f"s = Loop (most, , nil) <body = body {BODY}>"),
         f"{LEARN} --max-iterations 50", "Loop 's' does not end within 50"),
    case("a huge trip count", loop(f"s = Loop (huge, , nil) <body = body {BODY}>"), LEARN,
         "Loop 's' is to run 9000000000000000000 times, more than 1000000", "--max-iterations"),
    *(case(f"a Loop in a branch: {what}", loop(
         "s = If (yes) <then_branch = t () => (float v) { a = Identity(nil) "
         f"{INNER.replace('MOST', trips)} }}, else_branch = e () => (float z) {{ z = Neg(nil) }}>"),
         f"{LEARN} --max-iterations 50", "a.onnx", *says) for what, trips, says in (
        ("no trip count", ", yes", ("Loop 'v'", "no maximum trip count")),
        ("huge", "huge,", ("Loop 'v' is to run 9000000000000000000 times",)),
        ("computed", "most,", ("v.gdu_more_than_max_iterations",)))),
    *(case(f"a Loop in a Loop: {what}", loop(
         "s = Loop (hundred, , nil) <body = outer (int64 j, bool go2, float a) => "
         f"(bool on2, float v) {{ {INNER.replace('MOST', trips)} on2 = Identity(go2) }}>"),
         f"{LEARN} --max-iterations 150", "a.onnx", *says) for what, trips, says in (
        ("no trip count", ", yes", ("Loop 'v'", "no maximum trip count")),
        ("a product", "hundred,", ("Loop 'v' is to run 10000 times, more than 150",)),
        ("computed", "most,", ("v.gdu_more_than_max_iterations",)))),
    case("no iterations allowed", as_is, f"{LEARN} --max-iterations 0", "--max-iterations 0"),
]  # fmt: skip

CANNOT = "cannot learn from the data d.npz"
ROWS = np.eye(3, dtype=np.float32)[Y]
MEMORY = [
    case("more samples than slots", data(x=X[[0, 1, 2, 3, 4, 0]], y=Y[[0, 1, 2, 3, 4, 0]]),
         "train l.gdu.onnx --data d.npz -o out.onnx", CANNOT, "6 samples", "5 slots", "--hold-out"),
    case("fewer samples than slots", data(x=X[:4], y=Y[:4]), VERIFY_L, CANNOT, "4 samples",
         "5 slots"),
    case("synthetic ones", as_is, "train l.gdu.onnx -o out.onnx", "256 samples", "5 slots"),
    case("held out once more", as_is, "train l.gdu.onnx --data d.npz --hold-out 0.4 -o out.onnx",
         "3 samples", "5 slots"),
    case("label too large", data(x=X, y=Y + 1), LEARN, BAD, "1 of 5 labels", "y[2] = 3"),
    case("an ignored label", data(x=X, y=np.where(Y == 2, -100, Y)), LEARN, CANNOT,
         "1 of 5 samples are ignored (label -100)", "y[2]", "leave them out"),
    case("NaN", data(x=np.where(np.eye(5, 4), np.float32(np.nan), X), y=Y), LEARN, CANNOT,
         "'x' holds NaN in 4 samples (first: 0)", "leave them out"),
    *(case(f"targets that are no classes: {what}", data(x=X, y=y), f"{LEARN} --loss {loss}", CANNOT,
           f"{count} of 5 samples are not one-hot", first) for what, loss, y, count, first in (
        ("two ones", "mse_loss", np.maximum(ROWS, ROWS[::-1]), 4, "y[0]"),
        ("none", "mse_loss", ROWS * [[1], [1], [0], [1], [1]], 1, "y[2]"),
        ("values", "mse_loss", ROWS * 0.9, 5, "y[0]"),
        ("soft", "binary_cross_entropy_with_logits", ROWS * 0.9 + 0.03, 5, "y[0]"))),
    case("one column of values", targets("float[N,4] x => float[N,1] z: m = MatMul(x, wt) "
         "i0 = Constant<value=int64[1] {0}>() i1 = Constant<value=int64[1] {1}>() "
         "z = Slice(m, i0, i1, i1)", x=X, y=np.float32([0, 1, 0.5, 1, 0])),
         f"{LEARN} --loss mse_loss", CANNOT, "1 of 5 samples are neither 0 nor 1", "y[2]"),
    case("a label for each pixel", targets("float[N,4,2,2] x => float[N,3,2,2] z: "
         "t = Transpose<perm=[0,2,3,1]>(x) m = MatMul(t, wt) z = Transpose<perm=[0,3,1,2]>(m)",
         x=np.ones((5, 4, 2, 2), np.float32), y=np.zeros((5, 2, 2), np.int64)), LEARN, "'z' has 4 "
         "axes", "one label a sample", "--logits"),
    case("a label for each token", targets("float[N,7,4] x => float[N,7,3] z: z = MatMul(x, wt)",
         x=np.ones((5, 7, 4), np.float32), y=np.zeros((5, 7), np.int64)), LEARN,
         "'z' has 3 axes"),
    case("strings", targets("float[N,4] x, string[N] s => float[N,3] z: z = MatMul(x, wt)",
         x=X, y=Y, s=np.array(list("abcde"))), LEARN, "'s' takes strings"),
    case("an input of complex64", targets("float[N,4] x, complex64[N,1] c => float[N,3] z: "
         "z = MatMul(x, wt)", x=X, y=Y, c=np.ones((5, 1), np.complex64)), LEARN,
         "'c' is complex64", "stored are"),
    case("numbers beyond int32", targets("int32[N,4] x => float[N,3] z: c = Cast<to=1>(x) "
         "z = MatMul(c, wt)", x=np.full((5, 4), 2**40), y=Y), LEARN,
         "'x' holds numbers that int32 does not have"),
    case("a scalar input", targets("float[N,4] x, float s => float[N,3] z: y2 = Mul(x, s) "
         "z = MatMul(y2, wt)", x=X, y=Y, s=np.float32(1)), LEARN, "'s' is a scalar"),
    case("samples along axis 1", targets("float[4,N] x => float[N,3] z: "
         "t = Transpose<perm=[1,0]>(x) z = MatMul(t, wt)", x=X.T, y=Y), LEARN,
         "a whole call", "along axis 0 of every input and of the output 'z'"),
    case("everything held out", as_is, f"{LEARN} --hold-out 1", "--hold-out 1.0", "below 1"),
    case("held out of nothing", as_is, "m.onnx --oracle a.onnx --hold-out 0.1", "--hold-out",
         "need --data"),
    case("extract unfilled", as_is, "extract l.gdu.onnx -o out.onnx", "train it first"),
]  # fmt: skip

L = "gdu.* metadata of l.gdu.onnx is damaged"
FIELDS = {"slots": 5, "labels": 3, "fields": [["x", [4], "float32"]],
          "buckets": {"gdu_theta_0": [0, 3], "gdu_theta_1": [3, 2]}}  # fmt: skip
COMPUTED = {"name": "a.onnx", "inputs": ["gdu_memory", "gdu_memory_labels"],
            "weights": [["w", [3, 4], "float32"], ["b", [3], "float32"]]}  # fmt: skip


def learnt(key: str, fact: object) -> Change:
    """One entry of the metadata of l.gdu.onnx says something else."""
    return metadata(key, json.dumps(fact), file="l.gdu.onnx")


LEARNT = [
    *(case(f"memory {change}", learnt("gdu.memory", {**FIELDS, **change}), VERIFY_L, L)
      for change in (
        {"slots": 6}, {"slots": -1}, {"slots": "a"}, {"slots": 2**80}, {"slots": None},
        {"labels": 2}, {"labels": 0}, {"fields": []}, {"fields": [["x", [4]]]},
        {"fields": [["x", [0], "float32"]]}, {"fields": [["x", [4], "string"]]},
        {"fields": [["x", [4], "float32"], ["x", [4], "float32"]]}, {"buckets": {}},
        {"buckets": {"gdu_theta_0": [0, 5, 1]}}, {"buckets": {"gdu_theta_1": [3, 2]}},
        {"buckets": {"gdu_theta_0": [0, 3], "gdu_theta_1": [2, 2]}}, {"buckets": [0, 5]})),
    *(case(f"memory {change}", learnt("gdu.memory", {**FIELDS, **change}), VERIFY_L, "l.gdu.onnx",
           "was it changed?", says) for change, says in (
        ({"fields": [["x", [5], "float32"]]}, "'gdu_theta_0'"),
        ({"fields": [["x", [2**60], "float32"]]}, "'gdu_theta_0'"),
        ({"fields": [["z", [4], "float32"]]}, "no float32 input 'z'"),
        ({"fields": [["x", [4], "int32"]]}, "no int32 input 'x'"),
        ({"buckets": {"gdu_theta_0": [0, 5]}}, "'gdu_theta_0'"),
        ({"buckets": {"gdu_theta_0": [0, 3], "gdu_theta_9": [3, 2]}}, "'gdu_theta_9'"))),
    *(case(f"algorithm {change}", learnt("gdu.algorithm", {**COMPUTED, **change}), VERIFY_L, L)
      for change in (
        {"weights": []}, {"weights": [["w"]]}, {"inputs": []}, {"inputs": ["gdu_memory"]},
        {"weights": 3}, {"inputs": None})),
    *(case(f"algorithm {change}", learnt("gdu.algorithm", {**COMPUTED, **change}), VERIFY_L,
           "l.gdu.onnx", "was it changed?", says) for change, says in (
        ({"inputs": ["x", "gdu_memory_labels"]}, "'x' is not computed in the armed branch"),
        ({"weights": COMPUTED["weights"][:1]}, "the weights' switch has other outputs"),
        ({"weights": [*COMPUTED["weights"], ["c", [3], "float32"]]}, "'c' is not the output"),
        ({"weights": [["w", [4, 3], "float32"], COMPUTED["weights"][1]]}, "'w'"))),
    *(case(f"{key} {fact}", metadata(key, fact, file="l.gdu.onnx"), VERIFY_L, L)
      for key, fact in (
        ("gdu.memory", "{"), ("gdu.memory", "[" * 99999), ("gdu.memory", "null"),
        ("gdu.memory", None), ("gdu.algorithm", "3"), ("gdu.algorithm", None),
        ("gdu.method", "record"))),
    case("initial weights that are no names", learnt("gdu.initial", {"w": [1], "b": {}}), VERIFY_L,
         "l.gdu.onnx", "was it changed?", "initial weight of 'w'"),
]  # fmt: skip

TABLES = {
    "usage": USAGE, "model": MODEL_FILE, "external": EXTERNAL_DATA, "weights": WEIGHTS,
    "data": DATA, "logits": LOGITS, "options": OPTIONS, "outputs": OUTPUTS, "extended": EXTENDED,
    "whole run": WHOLE_RUN, "metadata": FACTS,
    "algorithm": ALGORITHM, "memory": MEMORY, "learnt": LEARNT,
}  # fmt: skip


def rows() -> Iterator[Any]:
    """All cases as parameters with readable names."""
    for table, cases in TABLES.items():
        for row in cases:
            yield pytest.param(row, id=f"{table}: {row.what}")


@pytest.mark.parametrize("row", list(rows()))
def test_refused(row: Case, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, the culprit and the way out, as text and as JSON; no file made or changed."""
    row.change()
    before = snapshot(here.parent)
    arguments = shlex.split(row.command)
    capsys.readouterr()

    assert cli.run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    _, separator, said = err.rpartition("error: ")  # what libraries log may stand before it
    assert separator
    for text in row.says:
        assert text in said
    assert snapshot(here.parent) == before

    assert cli.run([*arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    assert "error: " not in err
    answer = json.loads(out)
    assert set(answer) == {"schema", "error"} and answer["schema"] == 1
    assert set(answer["error"]) == {"kind", "message", "problems"}
    assert answer["error"]["kind"] in {"input", "unsupported"}
    said = "\n".join([answer["error"]["message"], *answer["error"]["problems"]])
    for text in row.says:
        assert text in said
    assert snapshot(here.parent) == before


# --- the good files pass; a run that is broken off or goes wrong ---------------


@pytest.mark.parametrize(
    ("command", "made"),
    [
        (COMPILE, ["out.onnx"]),
        (WITH_DATA, ["out.onnx"]),
        (CONFIRM, ["out.onnx", "out.trained.onnx"]),
        (TRAIN, ["out.onnx"]),
        (f"{VERIFY} --data d.npz", []),
        (APPLY, ["out.onnx"]),
        (EXTRACT, ["out.onnx"]),
        (LEARN, ["out.onnx"]),
        (f"{LEARN} --max-iterations 1".replace("--no-confirm", "--strict"),
         ["out.onnx", "out.trained.onnx"]),
        ("train l.gdu.onnx --data d.npz -o out.onnx", ["out.onnx"]),
        (VERIFY_L, []),
        ("extract l.gdu.trained.onnx -o out.onnx", ["out.onnx"]),
        ("inspect e.gdu.onnx", []),
        ("m.onnx --weights w.npz --no-confirm -o new/folder/out.onnx",
         ["new", "new/folder", "new/folder/out.onnx"]),
    ],
)  # fmt: skip
def test_good_input(command: str, made: list[str], here: Path) -> None:
    """The control: what the table spoils works, and makes these files only."""
    before = snapshot(here)
    assert cli.run(shlex.split(command)) == 0
    after = snapshot(here)
    assert sorted(set(after) - set(before)) == made
    assert {name: after[name] for name in before} == before


def test_fixed_batch_is_taken(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The only batch size that the model allows, whatever the default; said as a warning."""
    model(inputs="float[3,4] x", outputs="float[3,3] logits")()
    assert cli.run(f"{CONFIRM} --data d.npz --json".split()) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["batch_size"] == 3 and answer["reproduced"] is True
    assert answer["data"]["samples"] == 5 and answer["forward"]["samples"] == 3
    assert answer["warnings"] == ["batches of 3: the model's batch is fixed"]


@pytest.mark.parametrize("command", [VERIFY, f"{TRAIN} --lr 1e38"])
def test_diverged(command: str, here: Path) -> None:
    """θ that training has driven to NaN or infinity: not reproduced, exit 1."""
    theta(**{THETA: np.full((16, 2), np.nan, np.float32)})()
    assert cli.run(shlex.split(command)) == 1


def breaks(error: BaseException) -> Callable[..., None]:
    """A function that raises."""

    def raise_it(*_: object, **__: object) -> None:
        raise error

    return raise_it


def test_internal_error(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 3: one line with the place; the traceback with -v; JSON with --json; no file."""
    monkeypatch.setattr("gdu_compile.compiler.rewrite", breaks(RuntimeError("boom\nand more")))
    before, place = snapshot(here.parent), f"test_bad_input.py:{breaks.__code__.co_firstlineno + 4}"

    assert cli.run(COMPILE.split()) == 3
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"error: internal error at {place}: RuntimeError: boom (please report")

    assert cli.run([*COMPILE.split(), "-v"]) == 3
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" in err and "and more" in err

    assert cli.run([*COMPILE.split(), "--json"]) == 3
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert err == "" and set(answer) == {"schema", "error"}
    assert answer["error"]["kind"] == "internal" and answer["error"]["problems"] == []
    assert place in answer["error"]["message"]
    assert snapshot(here.parent) == before


@pytest.mark.parametrize(
    ("where", "command"),
    [
        ("gdu_compile.compiler.rewrite", COMPILE),
        ("gdu_compile.compiler.run_training", CONFIRM),
        ("gdu_compile.model_io.write", "m.onnx --weights w.npz --no-confirm -o new/deep/out.onnx"),
        ("gdu_compile.workflows.run_training", TRAIN),
        ("gdu_compile.specialize.decoded_weights", EXTRACT),
    ],
)
def test_interrupted(
    where: str,
    command: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit 130, a word on standard error, no file and no folder left behind."""
    monkeypatch.setattr(where, breaks(KeyboardInterrupt()))
    before = snapshot(here.parent)
    assert cli.run([*command.split(), "--json"]) == 130
    out, err = capsys.readouterr()
    assert out == "" and err.strip() == "interrupted"
    assert snapshot(here.parent) == before


def test_full_disk(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the system refuses while writing is the user's to mend: exit 2, nothing left."""
    monkeypatch.setattr("gdu_compile.model_io.write", breaks(OSError(28, "No space left")))
    before = snapshot(here.parent)
    assert cli.run(["m.onnx", "--weights", "w.npz", "--no-confirm", "-o", "new/out.onnx"]) == 2
    err = capsys.readouterr().err
    assert "new/out.onnx: cannot be written" in err and "No space left" in err
    assert snapshot(here.parent) == before


# --- in a process of its own --------------------------------------------------


def process(*arguments: str | bytes) -> subprocess.CompletedProcess[str]:
    """The installed command in the present folder."""
    start = [sys.executable, "-c", "from gdu_compile.cli import main; main()"]
    return subprocess.run([*start, *arguments], capture_output=True, text=True, check=False)


def test_process_good(here: Path) -> None:
    """A model of the repository: exit 0."""
    linear = MODELS / "digits_linear.onnx"
    oracle = linear.with_suffix(".oracle.npz")
    done = process(str(linear), "--weights", str(oracle), "--no-confirm", "-o", "out.onnx")
    assert done.returncode == 0 and Path("out.onnx").is_file()


def test_process_bad(here: Path) -> None:
    """Exit 2 with all problems, as text and as JSON."""
    weights(w=NAN, b=W, c=B)()
    before = snapshot(here)
    text = process(*COMPILE.split())
    assert (text.returncode, text.stdout) == (2, "")
    assert text.stderr.startswith("error: cannot use the oracle weights w.npz\n  - 'w' holds NaN")
    answer = process(*COMPILE.split(), "--json")
    assert (answer.returncode, answer.stderr) == (2, "")
    assert len(json.loads(answer.stdout)["error"]["problems"]) == 4
    assert snapshot(here) == before


def test_process_usage(here: Path) -> None:
    """A name that is no UTF-8, and no arguments at all."""
    answer = process("inspect", b"\xff.onnx", "--json")
    assert answer.returncode == 2
    assert "rename it" in json.loads(answer.stdout)["error"]["message"]
    bare = process()
    assert bare.returncode == 2 and bare.stderr.startswith("Usage: gdu-compile")
