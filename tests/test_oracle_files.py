"""Oracle files of every kind: the same bits; names bridged, never guessed; hostile ones refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import safetensors.torch
import torch
from conftest import every_pattern, mlp, oracle_for, parse, save_npz, save_onnx
from safetensors.numpy import save_file

import gdu_compile
from gdu_compile import cli
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.metadata import Extension
from gdu_compile.oracle_weights import OracleWeights

Arrays = Mapping[str, np.ndarray[Any, Any]]

BASE = mlp()
ORACLE = {  # every exponent, subnormals, ±0, in one MLP
    name: every_pattern(array.size, seed).reshape(array.shape)
    for seed, (name, array) in enumerate(oracle_for(BASE).items())
}


def tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    """The same bits as torch tensors; what is no numpy dtype comes as ml_dtypes'."""
    return {name: tensor(array) for name, array in arrays.items()}


def tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """One of them."""
    if array.dtype.isbuiltin == 1:
        return torch.from_numpy(array.copy())
    bits = torch.from_numpy(array.view(f"u{array.dtype.itemsize}").copy())
    return bits.view(getattr(torch, array.dtype.name))


def bits(array: np.ndarray[Any, Any]) -> tuple[str, tuple[int, ...], bytes]:
    """dtype, shape and bytes: what must agree."""
    return str(array.dtype), array.shape, array.tobytes()


def network(arrays: Arrays, *, external: bool = False) -> Callable[[Path], None]:
    """Writes the MLP with these weights."""

    def write(path: Path) -> None:
        proto = ir.to_proto(BASE)
        for initializer in proto.graph.initializer:
            initializer.CopyFrom(
                onnx.numpy_helper.from_array(arrays[initializer.name], initializer.name)
            )
        onnx.save(proto, path, save_as_external_data=external, location="w.data", size_threshold=0)

    return write


def constants(path: Path) -> None:
    """The MLP with its weights in Constant nodes: the base's export may have done otherwise."""
    proto = ir.to_proto(BASE)
    del proto.graph.initializer[:]
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    for name, array in ORACLE.items():
        value = onnx.numpy_helper.from_array(array)
        proto.graph.node.append(onnx.helper.make_node("Constant", [], [name], value=value))
    proto.graph.node.extend(nodes)
    onnx.save(proto, path)


def old_inputs(path: Path) -> None:
    """The MLP with its weights listed among the inputs too, as before IR version 4."""
    network(ORACLE)(path)
    proto = onnx.load(path)
    for initializer in proto.graph.initializer:
        proto.graph.input.append(
            onnx.helper.make_tensor_value_info(initializer.name, 1, initializer.dims)
        )
    onnx.save(proto, path)


def column_major(path: Path) -> None:
    """Tensors that are not contiguous, as transposing leaves them."""
    torch.save({name: t.t().contiguous().t() for name, t in tensors(ORACLE).items()}, path)


def parameters(path: Path) -> None:
    """Parameters that want gradients, and one storage for two of them."""
    both = torch.cat([t.reshape(-1) for t in tensors(ORACLE).values()])
    sizes = [array.size for array in ORACLE.values()]
    parts = zip(ORACLE.items(), both.split(sizes), strict=True)
    torch.save(
        {name: torch.nn.Parameter(part.view(array.shape)) for (name, array), part in parts}, path
    )


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "npz": ("w.npz", lambda path: np.savez(path, **ORACLE)),
    "npz deflated": ("w.npz", lambda path: np.savez_compressed(path, **ORACLE)),
    "safetensors": ("w.safetensors", lambda path: save_file(dict(ORACLE), path)),
    "pt": ("w.pt", lambda path: torch.save(tensors(ORACLE), path)),
    "pth": ("w.pth", lambda path: torch.save(tensors(ORACLE), path)),
    "pt of torch 1.5": ("w.pt", lambda path: legacy(tensors(ORACLE), path)),
    "pt under state_dict": ("w.pt", lambda path: torch.save(
        {"state_dict": tensors(ORACLE), "epoch": 3, "optimizer": {"state": {}}}, path)),
    "pt under model": ("w.pt", lambda path: torch.save(
        {"model": tensors(ORACLE), "step": torch.tensor(3)}, path)),
    "pt under net": ("w.pt", lambda path: torch.save({"net": tensors(ORACLE), "epoch": 3}, path)),
    "pt not contiguous": ("w.pt", column_major),
    "pt parameters": ("w.pt", parameters),
    "onnx": ("w.onnx", network(ORACLE)),
    "onnx external": ("w.onnx", network(ORACLE, external=True)),
    "onnx Constant nodes": ("w.onnx", constants),
    "onnx old inputs": ("w.onnx", old_inputs),
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder: the base, and an oracle that fits."""
    monkeypatch.chdir(tmp_path)
    save_onnx(tmp_path / "m.onnx", BASE)
    save_npz(tmp_path / "good.npz", ORACLE)
    return tmp_path


@pytest.fixture(scope="module")
def expected() -> str:
    """The extended model that the arrays in memory give."""
    return text_of(gdu_compile.compile(BASE, ORACLE, confirm=False).extended)


def text_of(model: ir.Model) -> str:
    """Everything in a model, for a comparison."""
    return str(ir.to_proto(model).SerializeToString(deterministic=True).hex())


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_gives_the_same(kind: str, here: Path, expected: str) -> None:
    """The same headers, the same bits, and the same extended model, byte for byte."""
    name, writer = WRITERS[kind]
    writer(here / name)
    oracle = OracleWeights.load(here / name)
    assert {key: bits(header.load()) for key, header in oracle.items()} == {
        key: bits(array) for key, array in ORACLE.items()
    }
    assert all((h.dtype, h.shape) == (h.load().dtype, h.load().shape) for h in oracle.values())
    assert text_of(gdu_compile.compile(BASE, here / name, confirm=False).extended) == expected


def test_another_oracle_gives_another_model(here: Path, expected: str) -> None:
    """The control: one bit of one weight is seen in the extended model."""
    other = {name: array.copy() for name, array in ORACLE.items()}
    other["W2"].view(np.uint32)[0, 0] ^= 1
    torch.save(tensors(other), here / "w.pt")
    assert text_of(gdu_compile.compile(BASE, here / "w.pt", confirm=False).extended) != expected


def test_reproduced_from_a_state_dict(here: Path) -> None:
    """The whole job from a .pt, θ by way of a .pt too; a module's own state_dict in memory."""
    torch.save(tensors(oracle_for(BASE)), here / "w.pt")
    compiled = gdu_compile.compile(here / "m.onnx", here / "w.pt", output=here / "e.gdu.onnx")
    assert compiled.report.reproduced and compiled.report.warnings == []
    module = gdu_compile.to_torch(compiled.extended)
    before = {name: value.detach().clone() for name, value in module.state_dict().items()}
    for name, theta in (compiled.theta or {}).items():
        before[name] = torch.from_numpy(np.array(theta))
    torch.save({"state_dict": before, "epoch": 1}, here / "t.pt")
    assert gdu_compile.verify(here / "e.gdu.onnx", here / "t.pt").reproduced
    torch.save(module.state_dict(), here / "untrained.pt")
    assert not gdu_compile.verify(here / "e.gdu.onnx", here / "untrained.pt").reproduced


# --- dtypes -------------------------------------------------------------------

KINDS = {
    **{str(np.dtype(kind)): np.dtype(kind) for kind in (
        ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2,
        ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2fnuz, ml_dtypes.float8_e8m0fnu,
        "f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?", "c8",
    )},
}  # fmt: skip


def patterns(dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Random bits (bool: 0 and 1)."""
    rng = np.random.default_rng(dtype.itemsize)
    raw = rng.integers(0, 2 if dtype.kind == "b" else 256, (*shape, dtype.itemsize), dtype=np.uint8)
    return raw.reshape(-1).view(dtype).reshape(shape)


def write_onnx(arrays: Arrays, path: Path) -> None:
    """Initializers that a network gives out."""
    outputs = [ir.val(f"{name}_out") for name in arrays]
    inputs = [
        ir.val(name, const_value=ir.Tensor(array, name=name)) for name, array in arrays.items()
    ]
    for value, output in zip(inputs, outputs, strict=True):
        value.dtype = output.dtype = value.const_value.dtype
        value.shape = output.shape = ir.Shape(value.const_value.shape)
    nodes = [
        ir.node("Identity", [a], outputs=[b], name=str(b.name))
        for a, b in zip(inputs, outputs, strict=True)
    ]
    graph = ir.Graph(
        [], outputs, nodes=nodes, initializers=inputs, opset_imports={"": 25}, name="g"
    )
    ir.save(ir.Model(graph, ir_version=12), path)


DTYPE_WRITERS: dict[str, Callable[[Arrays, Path], object]] = {
    ".safetensors": lambda arrays, path: safetensors.torch.save_file(tensors(arrays), path),
    ".pt": lambda arrays, path: torch.save(tensors(arrays), path),
    ".onnx": write_onnx,
}


@pytest.mark.parametrize("suffix", DTYPE_WRITERS)
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes(kind: str, suffix: str, tmp_path: Path) -> None:
    """Every dtype keeps its bits, NaN patterns too; also scalars and empty tensors."""
    shapes: tuple[tuple[int, ...], ...] = ((3, 5), (), (0, 4), (257,))
    arrays = {f"a{index}": patterns(KINDS[kind], shape) for index, shape in enumerate(shapes)}
    path = tmp_path / f"w{suffix}"
    DTYPE_WRITERS[suffix](arrays, path)
    oracle = OracleWeights.load(path)
    assert set(oracle) == set(arrays)
    for name, array in arrays.items():
        assert (oracle[name].dtype, oracle[name].shape) == (array.dtype, array.shape)
        assert bits(oracle[name].load()) == bits(array)


def test_bfloat16_in_npz(tmp_path: Path) -> None:
    """numpy calls it two raw bytes; the bits are there, to be viewed as what the model says."""
    array = patterns(np.dtype(ml_dtypes.bfloat16), (3, 5))
    np.savez(tmp_path / "w.npz", a=array)
    header = OracleWeights.load(tmp_path / "w.npz")["a"]
    assert header.dtype == np.dtype("V2") and header.shape == (3, 5)
    assert bits(header.load().view(ml_dtypes.bfloat16)) == bits(array)


@pytest.mark.parametrize("suffix", [".npz", *DTYPE_WRITERS])
def test_bfloat16_is_recorded(suffix: str, tmp_path: Path) -> None:
    """From every kind of file; raw bytes are taken for bfloat16 only."""
    text = """b (float[N, 4] x) => (float[N, 3] y) { w = Cast<to = 1>(W) y = MatMul(x, w) }"""
    base = parse(text, {"W": np.ones((4, 3), ml_dtypes.bfloat16)})
    oracle = {"W": np.arange(-6, 6).reshape(4, 3).astype(ml_dtypes.bfloat16) / 7}
    path = tmp_path / f"w{suffix}"
    {".npz": lambda arrays, path: np.savez(path, **arrays), **DTYPE_WRITERS}[suffix](oracle, path)
    compiled = gdu_compile.compile(base, path)
    assert compiled.report.reproduced
    in_memory = gdu_compile.compile(base, oracle, confirm=False).extended
    assert text_of(compiled.extended) == text_of(in_memory)
    half = parse(text, {"W": np.ones((4, 3), np.float16)})
    with pytest.raises(InputError, match="float16 in the model: convert it"):
        gdu_compile.compile(half, path, confirm=False)


@pytest.mark.parametrize("shape", [(3, 4), ()])
def test_torch_tensors_in_memory(shape: tuple[int, ...]) -> None:
    """Parameters and bfloat16, which numpy.asarray refuses, with their bits."""
    array = patterns(np.dtype(ml_dtypes.bfloat16), shape)
    parameter = torch.nn.Parameter(torch.ones(shape))
    oracle = OracleWeights.load({"a": tensor(array), "p": parameter})
    assert bits(oracle["a"].load()) == bits(array)
    assert bits(oracle["p"].load()) == bits(np.ones(shape, np.float32))
    with pytest.raises(InputError, match=r"'s': .*is sparse_coo; save tensor\.to_dense"):
        OracleWeights.load({"s": torch.eye(3).to_sparse()})


def test_safetensors_is_mapped(tmp_path: Path) -> None:
    """The array is a view of the file, and cannot be written."""
    save_file({"a": ORACLE["W1"]}, tmp_path / "w.safetensors")
    array = OracleWeights.load(tmp_path / "w.safetensors")["a"].load()
    assert not array.flags.owndata and not array.flags.writeable


# --- another .onnx: what is a weight and what a constant -----------------------

WITH_CONSTANTS = """net (float[N, 4] x) => (float[N, 3] logits) {
    two = Constant<value = float {2.0}>()
    shape = Constant<value = int64[2] {-1, 4}>()
    r = Reshape(x, shape)
    p = Pow(r, two)
    flag = Constant<value = bool {1}>()
    h = If (flag) <
        then_branch = t () => (float[N, 3] a) { a = MatMul(p, W) },
        else_branch = e () => (float[N, 3] b) { b = MatMul(p, W) }
    >
    logits = Add(h, c) }"""
W = np.arange(12, dtype=np.float32).reshape(4, 3)
C = np.float32([1, 2, 3])


def net(w: np.ndarray[Any, Any], text: str = WITH_CONSTANTS) -> ir.Model:
    """A network with an exponent, a shape and a condition among its constants."""
    return parse(text, {"W": w, "c": C})


def recorded(extended: ir.Model) -> list[str]:
    """The weights that are recorded."""
    facts = Extension.from_metadata(extended.metadata_props)
    return sorted(slot.weight for bucket in facts.buckets for slot in bucket.slots)


def test_constants_are_no_weights(tmp_path: Path) -> None:
    """Exponent, shape and condition stay constants; only the two weights are recorded."""
    save_onnx(tmp_path / "w.onnx", net(W + 1))
    compiled = gdu_compile.compile(net(W), tmp_path / "w.onnx", confirm=False)
    assert "shape" in OracleWeights.load(tmp_path / "w.onnx").constants
    assert recorded(compiled.extended) == ["W", "c"]


def test_a_constant_that_differs_is_recorded(tmp_path: Path) -> None:
    """The control: another exponent is another oracle weight."""
    save_onnx(tmp_path / "w.onnx", net(W, WITH_CONSTANTS.replace("2.0", "3.0")))
    compiled = gdu_compile.compile(net(W), tmp_path / "w.onnx", confirm=False)
    assert recorded(compiled.extended) == ["W", "c", "two"]


def test_whole_numbers_that_are_weights(tmp_path: Path) -> None:
    """8-bit weights are recorded even where they equal the base's, as floats are."""
    text = """q (float[N, 4] x) => (float[N, 3] y) {
        w = DequantizeLinear(W, scale) h = MatMul(x, w) y = Reshape(h, shape) }"""
    eight = {"W": W.astype(np.int8), "scale": np.float32(0.5), "shape": np.int64([-1, 3])}
    save_onnx(tmp_path / "w.onnx", parse(text, eight))
    compiled = gdu_compile.compile(
        tmp_path / "w.onnx", tmp_path / "w.onnx", confirm=False, strict=True
    )
    assert recorded(compiled.extended) == ["W", "scale"]


def test_branch_initializers(tmp_path: Path) -> None:
    """An initializer of a branch has the name that it has in the base."""
    text = """net (bool flag, float[N, 4] x) => (float[N, 3] logits) {
        logits = If (flag) <
            then_branch = t () => (float[N, 3] a) <float[4, 3] W = {%s}> { a = MatMul(x, W) },
            else_branch = e () => (float[N, 3] b) <float[4, 3] W = {%s}> { b = MatMul(x, W) }
        > }"""
    two = [",".join(map(str, range(start, start + 12))) for start in (0, 12)]
    save_onnx(tmp_path / "w.onnx", parse(text % tuple(two)))
    oracle = OracleWeights.load(tmp_path / "w.onnx")
    values = sorted(header.load().reshape(-1)[0] for header in oracle.values())
    assert values == [0, 12] and "W" in oracle


FUNCTION = """<ir_version: 8, opset_import: ["": 13, "my": 1]>
    m (float[N, 4] x) => (float[N, 3] y)
    <float[4, 3] W = {%s, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> {
        h = my.Scale(x)
        mean = ReduceMean<axes = [1]>(h)
        q = MatMul(h, W)
        y = Add(q, mean) }
    <opset_import: ["": 13], domain: "my">
    Scale (x) => (y) { c = Constant<value = float[4] {%s, 2, 3, 4}>() y = Mul(x, c) }"""


def test_functions_and_old_opsets(tmp_path: Path) -> None:
    """A weight in a function's Constant node has the name that it has in the raised base."""
    for name, values in {"m": (1, 1), "w": (5, 6)}.items():
        onnx.save(onnx.parser.parse_model(FUNCTION % values), tmp_path / f"{name}.onnx")
    compiled = gdu_compile.compile(tmp_path / "m.onnx", tmp_path / "w.onnx", strict=True)
    assert compiled.report.reproduced and compiled.report.skipped == []
    assert [row.elements for row in compiled.report.weights] == [12, 4]
    same = gdu_compile.compile(tmp_path / "m.onnx", tmp_path / "m.onnx", confirm=False)
    assert recorded(same.extended) == ["W"]


def test_no_base_network(tmp_path: Path) -> None:
    """What is refused as a base is refused as an oracle, with the file's name."""
    extended = gdu_compile.compile(BASE, ORACLE, confirm=False).extended
    save_onnx(tmp_path / "e.onnx", extended)
    with pytest.raises(InputError, match=r"e\.onnx: the model is an extended one already"):
        OracleWeights.load(tmp_path / "e.onnx")
    text = "r (float[N, 4] x) => (float[N, 4] y) { n = RandomNormalLike(x) y = Add(x, n) }"
    save_onnx(tmp_path / "r.onnx", parse(text))
    with pytest.raises(UnsupportedError, match=r"r\.onnx: .*not a function of its input"):
        OracleWeights.load(tmp_path / "r.onnx")


# --- --rename -------------------------------------------------------------------

RENAMES: dict[str, tuple[Any, list[str]]] = {
    "one": (["^fc=layer"], ["layer1.w", "layer2.w"]),
    "groups": ([r"^fc(\d)\.(.*)$=\2.\1"], ["w.1", "w.2"]),
    "in order": (["fc=a", "a1=b"], ["b.w", "a2.w"]),
    "to nothing": ([r"^fc="], ["1.w", "2.w"]),
    "= in the replacement": (["^fc=a=b"], ["a=b1.w", "a=b2.w"]),
    "look-ahead": ([r"fc(?\=1)=a"], ["a1.w", "fc2.w"]),
    "escaped backslash": ([r"fc|\\=a"], ["a1.w", "a2.w"]),
    "mapping": ({"^fc": "a", "(?=2)": "x"}, ["a1.w", "ax2.w"]),
    "pairs": ([("^fc", "a"), "1=3"], ["a3.w", "a2.w"]),
    "a single text": ("^fc=a", ["a1.w", "a2.w"]),
    "none": ((), ["fc1.w", "fc2.w"]),
}


@pytest.mark.parametrize("case", RENAMES)
def test_rename(case: str) -> None:
    """re.sub, in order, from every form of rules."""
    rules, names = RENAMES[case]
    oracle = OracleWeights.load({"fc1.w": C, "fc2.w": W}, rename=rules)
    assert list(oracle) == names
    assert [header.load().shape for header in oracle.values()] == [C.shape, W.shape]


BAD_RENAMES = {
    "no =": (["abc"], "--rename 'abc': holds no '='; write REGEX=REPL"),
    "escaped = only": ([r"a\=b"], "holds no '='"),
    "bad regex": (["(=a"], "is no regular expression of Python"),
    "bad repeat": (["a{99999999999}=b"], "is no regular expression of Python"),
    "bad group": ([r"fc=\1"], "its replacement cannot be used"),
    "bad escape": ([r"fc=\q"], "its replacement cannot be used"),
    "no match": (["layer=fc"], "matches none of the oracle's names; they are fc1.w, fc2.w"),
    "no match after another": (["fc=a", "fc=b"], "matches none of the oracle's names; they are a1"),
    "collision": ([r"\d=", "fc=a"], "'fc1.w' and 'fc2.w' would all become 'a.w'; narrow the rule"),
    "grows": (["fc=" + "a" * 999, "^=b"], "characters, but at most 1000 are renamed"),
}


@pytest.mark.parametrize("case", BAD_RENAMES)
def test_bad_rename(case: str) -> None:
    """Each is a clear error."""
    rules, says = BAD_RENAMES[case]
    with pytest.raises(InputError) as error:
        OracleWeights.load({"fc1.w": C, "fc2.w": W}, rename=rules)
    assert any(says in problem for problem in error.value.problems), str(error.value)


def test_all_bad_rules_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside another bad option."""
    command = "m.onnx --weights good.npz --rename abc --rename (=b --steps 0"
    assert cli.run(command.split()) == 2
    said = capsys.readouterr().err
    assert "'abc'" in said and "'(=b'" in said and "--steps 0" in said


def test_rename_on_the_command_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Given twice, in order; without it: refused."""
    save_npz(here / "w.npz", {f"net.{name.lower()}": array for name, array in ORACLE.items()})
    command = ["m.onnx", "--weights", "w.npz", "--no-confirm"]
    assert cli.run(command) == 2
    rules = ["--rename", r"^net\.=", "--rename", r"w(\d)=W\1"]
    assert cli.run([*command, *rules]) == 0
    assert (here / "m.gdu.onnx").is_file()


# --- prefixes -------------------------------------------------------------------


def prefixed(**prefixes: str) -> dict[str, np.ndarray[Any, Any]]:
    """The oracle with prefixes: weight → prefix, * for the others."""
    return {prefixes.get(n, prefixes.get("rest", "")) + n: array for n, array in ORACLE.items()}


STRIPPED = {
    "module.": (prefixed(rest="module."), ["the prefix 'module.' was stripped from 4 names"]),
    "_orig_mod.": (prefixed(rest="_orig_mod."), ["the prefix '_orig_mod.' was stripped from 4 "]),
    "model.": (prefixed(rest="model."), ["the prefix 'model.' was stripped from 4 names"]),
    "nested": (prefixed(rest="_orig_mod.module."), ["the prefix '_orig_mod.module.' was stripped"]),
    "some": (prefixed(W1="module.", b1="model."), ["'module.' was stripped from 1 name ",
                                                  "'model.' was stripped from 1 name "]),
    "none": (prefixed(), []),
}  # fmt: skip


@pytest.mark.parametrize("case", STRIPPED)
def test_prefix(case: str, expected: str) -> None:
    """Stripped, with a note; the extended model is the same."""
    arrays, notes = STRIPPED[case]
    compiled = gdu_compile.compile(BASE, arrays, confirm=False)
    assert text_of(compiled.extended) == expected
    warnings = compiled.report.warnings
    assert len(warnings) == len(notes)
    for warning, note in zip(warnings, notes, strict=True):
        assert warning.startswith("given in memory: ") and note in warning


KEPT = {
    "both": ({**ORACLE, "module.W1": ORACLE["W1"]}, "'module.W1' is no weight",
             "without its prefix it is 'W1', as another name is too: keep one of them"),
    "two prefixes": ({**prefixed(W1="module."), "model.W1": ORACLE["W1"]}, "'model.W1' is no ",
                     "without its prefix it is 'W1', as another name is too"),
    "another prefix": (prefixed(rest="net."), "'net.W1' is no weight", "--rename"),
    "in the middle": (prefixed(W1="net.module."), "'net.module.W1' is no weight", "--rename"),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_prefix_kept(case: str) -> None:
    """Never when something else could be meant."""
    arrays, *says = KEPT[case]
    with pytest.raises(InputError) as error:
        gdu_compile.compile(BASE, arrays, confirm=False)
    (problem,) = [p for p in error.value.problems if p.startswith(says[0])]
    assert says[1] in problem


def test_prefix_of_the_model_itself() -> None:
    """A name that matches as it is keeps its prefix, also when the rest would match too."""
    text = "m (float[N, 4] x) => (float[N, 3] y) { h = MatMul(x, module.W) y = Add(h, W) }"
    base = parse(text.replace("module.W", "module_W"), {"module_W": W, "W": C})
    ir.convenience.rename_values(base.graph.initializers["module_W"], "module.W")
    compiled = gdu_compile.compile(base, {"module.W": W + 1, "W": C + 1}, confirm=False)
    assert compiled.report.warnings == []
    with pytest.raises(InputError, match=r"it is 'module\.W' or 'W': choose with --rename"):
        gdu_compile.compile(base, {"module.module.W": W + 1}, confirm=False)


def test_why_and_strict_see_the_model_name() -> None:
    """--why NAME says under which name the oracle holds it; --strict misses nothing."""
    arrays = prefixed(rest="module.")
    compiled = gdu_compile.compile(BASE, arrays, confirm=False, why="W1", strict=True)
    assert (compiled.report.why or [])[0] == "the oracle weights hold it as 'module.W1'"


# --- suggestions ------------------------------------------------------------------


def unknown(oracle: Arrays, base: ir.Model = BASE, *, name: str) -> str:
    """The complaint about a name that the model does not have."""
    with pytest.raises(InputError) as error:
        gdu_compile.compile(base, oracle, confirm=False)
    (problem,) = [p for p in error.value.problems if p.startswith(f"{name!r} is no weight")]
    return problem


def without(*names: str) -> dict[str, np.ndarray[Any, Any]]:
    """The oracle less these weights."""
    return {name: array for name, array in ORACLE.items() if name not in names}


SQUARE = {"onnx::MatMul_12": np.eye(4, dtype=np.float32), "b": np.zeros(4, np.float32)}


def square(operator: str) -> ir.Model:
    """One square weight, under an exporter's name."""
    text = f"m (float[N, 4] x) => (float[N, 4] y) {{ h = {operator} y = Add(h, b) }}"
    base = parse(text, {"w": SQUARE["onnx::MatMul_12"], "b": SQUARE["b"]})
    ir.convenience.rename_values(base.graph.initializers["w"], "onnx::MatMul_12")
    return base


def test_suggests_the_only_fit() -> None:
    """As it is, with the rule; the rule works."""
    oracle = {**without("W1"), "fc1.weight": ORACLE["W1"]}
    problem = unknown(oracle, name="fc1.weight")
    assert "its shape [6, 5] fits only 'W1': --rename '^fc1\\.weight$=W1'" in problem
    rule = shlex.split(problem.split("--rename ")[1])[0]
    compiled = gdu_compile.compile(BASE, oracle, confirm=False, rename=[rule])
    assert recorded(compiled.extended) == sorted(ORACLE)


def test_suggests_the_only_fit_transposed() -> None:
    """With the rule, and what to do before saving."""
    oracle = {**without("W1"), "fc1.weight": ORACLE["W1"].T}
    problem = unknown(oracle, name="fc1.weight")
    assert "[5, 6] fits only 'W1' when transposed: --rename '^fc1\\.weight$=W1', and " in problem
    assert problem.endswith("transpose it before saving")


@pytest.mark.parametrize(
    ("operator", "linear"),
    [("MatMul(x, w)", True), ("Gemm(x, w)", True), ("Gemm<transB=1>(x, w)", False)],
)
def test_suggests_a_square(operator: str, linear: bool) -> None:
    """The shape does not tell whether it is transposed; the operator may."""
    problem = unknown({"fc=1": SQUARE["b"][:, None] + SQUARE["onnx::MatMul_12"]}, square(operator),
                      name="fc=1")  # fmt: skip
    assert "[4, 4] fits only 'onnx::MatMul_12', as it is or transposed (before saving)" in problem
    assert ("torch.nn.Linear" in problem) == linear
    rule = shlex.split(problem.split("--rename ")[1])[0]
    assert rule == r"^fc\=1$=onnx::MatMul_12"


def test_several_fit() -> None:
    """Both are named, none is suggested."""
    base = mlp(d=5, h=4, classes=5)
    oracle = {"b1": np.zeros(4, np.float32), "b2": np.zeros(5, np.float32),
              "fc.weight": np.zeros((4, 5), np.float32)}  # fmt: skip
    problem = unknown(oracle, base, name="fc.weight")
    assert "its shape [4, 5] fits 2 uncovered weights: 'W2', 'W1'" in problem
    assert "--rename" not in problem


def test_two_want_the_same() -> None:
    """One weight is free and two names fit it: neither is suggested."""
    oracle = {**without("W1"), "u": ORACLE["W1"], "v": ORACLE["W1"]}
    problem = unknown(oracle, name="u")
    assert "fits only 'W1', but so does that of 1 other unknown name" in problem
    assert "--rename" not in problem


@pytest.mark.parametrize("shape", [(7,), (6, 5, 1), ()])
def test_nothing_fits(shape: tuple[int, ...]) -> None:
    """No suggestion; nor for a weight that the oracle covers."""
    problem = unknown({**without("W1"), "u": np.zeros(shape, np.float32)}, name="u")
    assert problem == "'u' is no weight of the model (--allow-extra ignores it)"
    problem = unknown({**ORACLE, "u": ORACLE["W1"]}, name="u")
    assert problem == "'u' is no weight of the model (--allow-extra ignores it)"


# --- what a .pt may hold beside tensors -------------------------------------------


def test_notes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The key that was taken and what was ignored are warnings of the report."""
    inner = {**tensors(ORACLE), "version": 3, "tags": ["a"], 7: torch.ones(2)}
    torch.save({"state_dict": inner, "epoch": 3}, here / "w.pt")
    assert cli.run(["m.onnx", "--weights", "w.pt", "--dry-run", "--json"]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert warnings[0] == "w.pt: the state_dict under the key 'state_dict' is taken"
    assert warnings[1] == (
        "w.pt: ignored, as no tensors: 'version' (int), 'tags' (list), 7 (Tensor)"
    )


def test_torch_is_imported_for_pt_only(here: Path) -> None:
    """.npz, .safetensors and .onnx do without its seconds and megabytes."""
    network(ORACLE)(here / "w.onnx")
    save_file(dict(ORACLE), here / "w.safetensors")
    torch.save(tensors(ORACLE), here / "w.pt")
    code = (
        "import sys; from gdu_compile.oracle_weights import OracleWeights\n"
        "for name in ('good.npz', 'w.onnx', 'w.safetensors'): OracleWeights.load(name)\n"
        "assert 'torch' not in sys.modules\n"
        "OracleWeights.load('w.pt'); assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- hostile and damaged files ------------------------------------------------------


class Hostile:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch owned",)


def pickled(value: object, path: Path) -> None:
    """A bare pickle."""
    path.write_bytes(pickle.dumps(value, protocol=2))


def legacy(value: object, path: Path) -> None:
    """As torch wrote before version 1.6."""
    torch.save(value, path, _use_new_zipfile_serialization=False)


def repacked(
    path: Path, *, old: bytes = b"", new: bytes = b"", packed: bool = False, zeros: int = 0
) -> None:
    """A .pt whose pickle is changed, or that is packed, with ``zeros`` appended to its pickle."""
    torch.save({"w": torch.ones(2, 3)}, path)
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members:
            if name.endswith("data.pkl"):
                assert old in content
                content = content.replace(old, new) + bytes(zeros)
            archive.writestr(name, content)


def old(path: Path) -> None:
    """A good file as torch wrote it before version 1.6."""
    legacy(tensors(ORACLE), path)


def huge_storage(path: Path) -> None:
    """An old file whose storage claims 2**60 elements."""
    legacy({"w": torch.ones(2, 3)}, path)
    content = path.read_bytes()
    size = b"K\x06N"  # numel 6, no view
    assert content.count(size) == 1
    path.write_bytes(content.replace(size, b"\x8a\x08" + (2**60).to_bytes(8, "little") + b"N"))


def cut(writer: Callable[[Path], object], keep: float) -> Callable[[Path], None]:
    """The file ends early."""

    def write(path: Path) -> None:
        writer(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])

    return write


def good(path: Path) -> None:
    """A file of the kind that the name says, which is read."""
    if path.suffix == ".pt":
        torch.save(tensors(ORACLE), path)
    elif path.suffix == ".onnx":
        network(ORACLE)(path)
    else:
        safetensors.torch.save_file(tensors(ORACLE), path)


def saved(value: object) -> Callable[[Path], None]:
    """torch.save of it."""
    return lambda path: torch.save(value, path)


def script(path: Path) -> None:
    """A TorchScript archive."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 3), torch.ones(1, 2)), buffer)  # type: ignore[no-untyped-call]
    path.write_bytes(buffer.getvalue())


SIZES = b"K\x02K\x03\x86"
SAVE_IT = ("safetensors.torch.save_file",)
TOO_MUCH = ("could run code, so it is not done", *SAVE_IT)
DAMAGED = ("cut short", "again")
REFUSED: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {
    "code": ("w.pt", saved({"W1": torch.ones(2), "e": Hostile()}), ("posix.system", *TOO_MUCH)),
    "code, old": ("w.pt", lambda p: legacy({"e": Hostile()}, p), ("posix.system", *TOO_MUCH)),
    "code, bare": ("w.pt", lambda p: pickled(Hostile(), p), ("w.pt",)),
    "code as a key": ("w.pt", saved({Hostile(): torch.ones(2)}), TOO_MUCH),
    "a module": ("w.pt", saved(torch.nn.Linear(2, 3)), ("linear.Linear", *TOO_MUCH)),
    "TorchScript": ("w.pt", script, ("is a TorchScript archive", *SAVE_IT)),
    "a tensor": ("w.pt", saved(torch.ones(3)), ("holds a Tensor, not a state_dict", "save module")),
    "a list": ("w.pt", saved([torch.ones(3)]), ("holds a list, not a state_dict",)),
    "no tensors": ("w.pt", saved({"epoch": 3}), ("holds no tensors", "save module.state_dict()")),
    "nothing": ("w.pt", saved({}), ("holds no tensors",)),
    "two state_dicts": ("w.pt", saved({"a": {"w": torch.ones(2)}, "b": {"w": torch.ones(2)}}),
                        ("2 state_dicts, 'a', 'b'", "the one that is meant")),
    "two usual ones": ("w.pt", saved({"model": {"w": torch.ones(2)},
                                     "state_dict": {"w": torch.ones(2)}}), ("2 state_dicts",)),
    "tensors without contents": ("w.pt", saved({
        "s": torch.eye(3).to_sparse(), "m": torch.ones(3, device="meta"), "W1": torch.ones(6, 5)}),
        ("'s' is sparse_coo", "to_dense()", "'m' is on the device 'meta'", "with its values")),
    "deep": ("w.pt", lambda p: p.write_bytes(b"\x80\x02" + b"(" * 99999 + b"l" * 99999 + b"."),
             ("w.pt",)),
    "huge sizes": ("w.pt", lambda p: repacked(p, old=SIZES, new=b"J\xff\xff\xff\x7f" * 2 + b"\x86"),
                   ("w.pt", *DAMAGED)),
    "negative sizes": ("w.pt", lambda p: repacked(p, old=SIZES, new=b"J\xff\xff\xff\xffK\x03\x86"),
                       ("w.pt", *DAMAGED)),
    "huge storage": ("w.pt", huge_storage, ("w.pt", *DAMAGED)),
    "packed": ("w.pt", lambda p: repacked(p, packed=True, zeros=1 << 20),
               ("is compressed", "save it again with torch.save")),
    "wrong magic": ("w.pt", lambda p: p.write_bytes(b"no checkpoint at all" * 9), ("w.pt",)),
    "a zip of text": ("w.pt", lambda p: p.write_bytes(b"PK\x03\x04" + b"text" * 99), DAMAGED),
    "an npz called pt": ("w.pt", lambda p: np.savez(p.open("wb"), **ORACLE), ("w.pt", *DAMAGED)),
    "a pt called onnx": ("w.onnx", lambda p: torch.save(tensors(ORACLE), p), ("not an ONNX file",)),
    "a pt called npz": ("w.npz", lambda p: torch.save(tensors(ORACLE), p), ("w.npz",)),
    "a pt called safetensors": ("w.safetensors", lambda p: torch.save(tensors(ORACLE), p), DAMAGED),
    "empty": ("w.pt", lambda p: p.write_bytes(b""), ("is empty",)),
    "missing": ("w.pt", lambda p: None, ("no such file",)),
    "missing onnx": ("w.onnx", lambda p: None, ("no such file",)),
    "unknown kind": ("w.ckpt", good, ("unknown kind of file", ".onnx, .pt, .pth, .npz and .saf")),
    "external data gone": ("w.onnx", lambda p: (network(ORACLE, external=True)(p),
                           (p.parent / "w.data").unlink()), ("w.data is missing", "put it")),
    "external data cut": ("w.onnx", lambda p: (network(ORACLE, external=True)(p),
                          (p.parent / "w.data").write_bytes(b"123")), ("too short", "copy it")),
    "huge safetensors": ("w.safetensors", lambda p: p.write_bytes(
        (2**62).to_bytes(8, "little") + b"{}"), DAMAGED),
    "offsets of bfloat16": ("w.safetensors", lambda p: p.write_bytes(
        (text := json.dumps({"W1": {"dtype": "BF16", "shape": [2**40], "data_offsets": [0, 2**41]}})
         .encode()) and len(text).to_bytes(8, "little") + text), DAMAGED),
    **{f"{name} cut to {keep}": (name, cut(good, keep), ("w.", "again"))
       for name in ("w.pt", "w.onnx", "w.safetensors") for keep in (0.01, 0.3, 0.7, 0.99)},
    **{f"old .pt cut to {keep}": ("w.pt", cut(old, keep), ("w.pt",))
       for keep in (0.01, 0.3, 0.7, 0.99)},
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, the file and the way out named in short, no traceback, nothing run or written."""
    name, writer, says = REFUSED[case]
    writer(here / name)
    before = sorted(here.rglob("*"))
    assert cli.run(["m.onnx", "--weights", name, "-o", "out.onnx"]) == 2
    out, err = capsys.readouterr()
    _, separator, said = err.rpartition("error: ")
    assert out == "" and separator and "Traceback" not in err and len(said) < 2000
    for text in (name, *says):
        assert text in said
    assert sorted(here.rglob("*")) == before and not (here / "owned").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.onnx", "w.safetensors"])
def test_control_of_refused(name: str, here: Path) -> None:
    """What is cut above is read when it is whole; the hostile object does run in pickle itself."""
    good(here / name)
    assert cli.run(["m.onnx", "--weights", name, "--no-confirm"]) == 0
    pickle.loads(pickle.dumps(Hostile()))
    assert (here / "owned").exists()


def test_quantized_is_named() -> None:
    """A quantized tensor has no plain array."""
    from gdu_compile.torch_files import unusable

    class Quantized(torch.Tensor):
        """Says that it is one; torch itself no longer makes them without a warning."""

        is_quantized = True

    assert unusable(torch.ones(2)) is None
    assert "int_repr" in str(unusable(torch.ones(2).as_subclass(Quantized)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: pickled(Hostile(), p), "t.pt"),
        (lambda p: torch.save({"gdu_theta_0": Hostile()}, p), "posix.system"),
        (lambda p: torch.save({"other": torch.ones(2)}, p), "'gdu_theta_0' is there 0 times"),
        (lambda p: torch.save({"gdu_theta_0": torch.ones(2)}, p), "must be float32 [60, 2]"),
        (lambda p: cut(good, 0.5)(p), "cut short"),
    ],
    ids=["bare pickle", "code", "missing", "misshaped", "cut"],
)
def test_theta_refused(
    change: Callable[[Path], object], says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """θ from a .pt is read by the same rules."""
    gdu_compile.compile(BASE, ORACLE, confirm=False, output=here / "e.gdu.onnx")
    change(here / "t.pt")
    before = sorted(here.rglob("*"))
    for command in ("verify e.gdu.onnx", "apply e.gdu.onnx -o o.onnx"):
        assert cli.run([*command.split(), "--trained", "t.pt"]) == 2
        assert says in capsys.readouterr().err
    assert sorted(here.rglob("*")) == before
