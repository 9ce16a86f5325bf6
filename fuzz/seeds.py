"""The good files that mutations start from, and the commands that read them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, numpy_helper, parser

OUT = "out"
"""The output folder, below the present folder: the only place where a command may write."""
W = np.arange(12, dtype=np.float32).reshape(3, 4)
B = np.array([1, -2, 0], dtype=np.float32)
X = np.ones((5, 4), dtype=np.float32)
Y = np.array([0, 1, 2, 0, 1])
COMPANIONS = {"ext.onnx": ("ext.data",)}
"""Files that a command reads without being told so."""


@dataclass(frozen=True)
class Target:
    """A command, the files that it reads, and those of them that are mutated.

    Attributes:
        command: what follows gdu-compile.
        mutated: the files that may be spoiled, one a time.
    """

    command: str
    mutated: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        """The command, split, with a limit for what it runs: a base may have been made endless."""
        words = self.command.split()
        runs = words[0] not in {"inspect", "apply"} and "--run-limit" not in words
        return [*words, *(["--run-limit", "2"] if runs else [])]

    @property
    def share(self) -> int:
        """How often it is chosen: those that train take ten times as long."""
        trains = self.command.startswith(("train", "verify")) or (
            ".onnx --" in self.command and "--no-confirm" not in self.command
            and not self.command.startswith(("apply", "extract", "inspect"))
        )  # fmt: skip
        return 1 if trains else 5

    def reads(self, folder: Path) -> list[str]:
        """The files of ``folder`` that the command needs."""
        named = [word for word in self.arguments if (folder / word).is_file()]
        return named + [more for word in named for more in COMPANIONS.get(word, ())]


def target(command: str, *mutated: str) -> Target:
    """A row."""
    return Target(command, mutated)


TARGETS = [
    target("m.onnx --weights w.npz --no-confirm -o out/o.onnx", "m.onnx", "w.npz"),
    target("m.onnx --weights w.npz --steps 1 -o out/o.onnx", "m.onnx"),
    target("flow.onnx --weights w.npz --no-confirm --cover-all -o out/o.onnx", "flow.onnx"),
    target("flow.onnx --weights w.npz --steps 1 -o out/o.onnx", "flow.onnx"),
    target("net.onnx --weights w.npz --no-confirm --cover-all -o out/o.onnx", "net.onnx"),
    target("old.onnx --weights w.npz --no-confirm -o out/o.onnx", "old.onnx"),
    target("ext.onnx --weights w.npz --no-confirm -o out/o.onnx", "ext.onnx"),
    target("m.onnx --weights w.npz --no-confirm --emit torch -o out/o.onnx", "m.onnx"),
    target("flow.onnx --weights w.npz --no-confirm --emit torch -o out/o.onnx", "flow.onnx"),
    target("inspect flow.onnx", "flow.onnx"),
    target("inspect e.gdu.onnx", "e.gdu.onnx"),
    target("inspect l.gdu.onnx --json", "l.gdu.onnx"),
    target("m.onnx --weights w.npz --data d.npz --no-confirm -o out/o.onnx", "d.npz"),
    target("m.onnx --weights w.npz --data d.npz --steps 1 -o out/o.onnx", "d.npz"),
    target("m.onnx --weights w.npz --data d.safetensors --no-confirm -o out/o.onnx",
           "d.safetensors"),
    target("m.onnx --weights w.safetensors --no-confirm -o out/o.onnx", "w.safetensors"),
    target("m.onnx --weights w.pt --no-confirm -o out/o.onnx", "w.pt"),
    target("m.onnx --weights old.pt --no-confirm -o out/o.onnx", "old.pt"),
    target("m.onnx --weights w.onnx --no-confirm -o out/o.onnx", "w.onnx"),
    target("train e.gdu.onnx --steps 1 -o out/o.onnx", "e.gdu.onnx"),
    target("verify e.gdu.onnx --trained t.safetensors", "e.gdu.onnx", "t.safetensors"),
    target("verify e.gdu.onnx --trained t.onnx", "t.onnx"),
    target("apply e.gdu.onnx --trained t.npz -o out/o.onnx", "e.gdu.onnx", "t.npz"),
    target("extract t.onnx -o out/o.onnx", "t.onnx"),
    target("m.onnx --oracle a.onnx --data d.npz --no-confirm --max-iterations 100 -o out/o.onnx",
           "a.onnx", "m.onnx", "d.npz"),
    target("m.onnx --oracle a.onnx --data d.npz --max-iterations 100 -o out/o.onnx", "a.onnx"),
    target("m.onnx --oracle ridge --data d.npz --no-confirm -o out/o.onnx", "m.onnx", "d.npz"),
    target("extract lt.onnx -o out/o.onnx", "lt.onnx"),
    target("verify l.gdu.onnx --trained lt.onnx --data d.npz", "l.gdu.onnx", "lt.onnx", "d.npz"),
    target("two.onnx --weights other.onnx --no-confirm -o out/o.onnx", "two.onnx", "other.onnx"),
    target("two.onnx --weights other.onnx --untie --steps 1 -o out/o.onnx", "two.onnx",
           "other.onnx"),
    target("tied.onnx --weights untied.npz --untie --no-confirm -o out/o.onnx", "tied.onnx",
           "untied.npz"),
    target("inspect tied.onnx --json", "tied.onnx"),
    target("packed.onnx --weights packed.npz --no-confirm --cover-all -o out/o.onnx",
           "packed.onnx", "packed.npz"),
    target("packed.onnx --weights packed.npz --steps 1 -o out/o.onnx", "packed.onnx"),
    target("ml.onnx --weights ml.npz --no-confirm --cover-all -o out/o.onnx", "ml.onnx", "ml.npz"),
    target("inspect ml.onnx", "ml.onnx"),
    target("half.onnx --weights half.npz --steps 1 -o out/o.onnx", "half.onnx"),
    target("flow.onnx --weights flow.onnx --steps 1 --run-limit 1 -o out/o.onnx", "flow.onnx"),
    target("m.onnx --weights w.npz --dry-run --why w --json", "m.onnx"),
    target("m.onnx --weights w.npz --no-confirm --rename ^b=b -o out/o.onnx",
           "w.npz"),
]  # fmt: skip


def header(opset: int = 18, ir_version: int = 10, more: str = "") -> str:
    """The first line of a model in ONNX's text form."""
    return f'<ir_version: {ir_version}, opset_import: ["": {opset}{more}]>\n'


WEIGHTS = "float[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[3] b = {1,2,3}"
SIMPLE = f"""simple (float[N,4] x) => (float[N,3] logits) <{WEIGHTS}>
    {{ logits = Gemm<transB=1>(x, w, b) }}"""
FLOW = f"""flow (float[N,4] x) => (float[N,3] logits) <{WEIGHTS}, float s = {{0.5}}>
    {{ total = ReduceSum<keepdims=0>(x)  nil = Constant<value=float {{0.0}}>()
       go = Greater(total, nil)  yes = Constant<value=bool {{1}}>()
       four = Constant<value=int64 {{4}}>()  xs = own.scale(x, s)
       h = If (go) <then_branch = first () => (float[N,3] y1) {{ y1 = Gemm<transB=1>(xs, w, b) }},
           else_branch = second () => (float[N,3] y2)
               <float[3,4] v = {{1,2,3,4,5,6,7,8,9,10,11,12}}> {{ y2 = Gemm<transB=1>(x, v, b) }}>
       logits = Loop (four, yes, h) <body = again (int64 i, bool on, float[N,3] t) =>
           (bool still, float[N,3] u) {{ u = Add(t, b)  still = Identity(on) }}> }}
    <opset_import: ["": 18], domain: "own"> scale (a, k) => (c) {{ c = Mul(a, k) }}"""
NET = f"""net (float[N,1,4,4] image) => (float[N,3] probs) <{WEIGHTS}, float[4,1,3,3] kernel,
    float[4] one = {{1,1,1,1}}, float[4] zero = {{0,0,0,0}}, int64[2] flat = {{0,-1}}>
    {{ a = Conv<pads=[1,1,1,1]>(image, kernel)  n = BatchNormalization(a, one, zero, zero, one)
       r = Relu(n)  p = GlobalAveragePool(r)  f = Reshape(p, flat)
       m = Gemm<transB=1>(f, w, b)  probs = Softmax<axis=-1>(m) }}"""
OLD = """old (float[N,4] x, float[3,4] w, float[3] b) => (float[N,3] logits)
    { h = Dropout(x)  logits = Gemm<transB=1>(h, w, b) }"""
TWO = """two (float[N,4] x) => (float[N,3] logits)
    <float[4,4] %s = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}, float[4] %s = {1,1,1,1},
     float[3,4] %s = {1,2,3,4,5,6,7,8,9,10,11,12}>
    { h = Gemm<transB=1>(x, %s, %s)  r = Relu(h)  logits = Gemm<transB=1>(r, %s) }"""
TIED = """tied (float[N,4] x) => (float[N,4] logits)
    <float[4,4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}>
    { [one] h = MatMul(x, w)  r = Relu(h)  [two] logits = MatMul(r, w) }"""
PACKED = """packed (float[N,4] x) => (float[N,3] logits)
    <int8[3,4] q = {1,2,3,4,5,6,7,8,9,10,11,12}, float s = {0.5}, int8 z = {0},
     float[3] b = {1,2,3}>
    { d = DequantizeLinear(q, s, z)  logits = Gemm<transB=1>(x, d, b) }"""
ML = """ml (float[N,4] x) => (float[N,3] logits)
    { logits = ai.onnx.ml.LinearRegressor<coefficients=[1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0,9.0,1.0,2.0,
      3.0], intercepts=[1.0,2.0,3.0], targets=3>(x) }"""
HALF = """half (float[N,2,4] x) => (float[N,2,3] logits) <float[4,3] w = {1,2,3,4,5,6,7,8,9,1,2,3}>
    { h = Cast<to=10>(x)  v = Cast<to=10>(w)  t = Transpose<perm=[0,1,2]>(h)
      m = MatMul(t, v)  logits = Cast<to=1>(m) }"""
ALGORITHM = """algorithm (float[n,4] x, int64[n] Y) => (float[3,4] w, float[3] b)
    <float[3,4] k = {1,2,3,4,5,6,7,8,9,1,2,3}, float[3] r = {1,2,3}, float one = {1.0},
     bool yes = {1}> { n1 = Shape(Y)  n = Squeeze(n1)  s = ReduceSum<keepdims=0>(x)
       v = Loop (n, yes, s) <body = step (int64 i, bool go, float t) => (bool on, float u)
           { u = Add(t, one)  on = Identity(go) }>
       w = Mul(k, v)  b = Mul(r, v) }"""


def build(folder: Path) -> None:
    """Write every good file."""
    import gdu_compile

    arrays = {"w": W, "b": B}
    kernel = numpy_helper.from_array(np.linspace(-1, 1, 36, dtype=np.float32), "kernel")
    kernel.dims[:] = [4, 1, 3, 3]
    save(folder / "m.onnx", header() + SIMPLE)
    save(folder / "w.onnx", header() + SIMPLE)
    save(folder / "flow.onnx", header(more=', "own": 1') + FLOW)
    save(folder / "net.onnx", header() + NET.replace(" float[4,1,3,3] kernel,", ""), kernel)
    old = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    save(folder / "old.onnx", header(9, 3) + OLD, *old)
    save(folder / "a.onnx", header() + ALGORITHM)
    save(folder / "two.onnx", header() + TWO % (*"wbv", *"wbv"))
    save(folder / "other.onnx", header() + TWO % (*"kcl", *"kcl"))
    save(folder / "tied.onnx", header() + TIED)
    save(folder / "packed.onnx", header() + PACKED)
    save(folder / "ml.onnx", header(more=', "ai.onnx.ml": 3') + ML)
    save(folder / "half.onnx", header() + HALF)
    square = np.arange(16, dtype=np.float32).reshape(4, 4)
    untied: dict[str, Any] = {"w@one.1": square, "w@two.1": square + 1}
    np.savez(folder / "untied.npz", **untied)
    np.savez(folder / "packed.npz", q=W.astype(np.int8), d=W)
    attributes: dict[str, Any] = {"logits.coefficients": W, "logits.intercepts": B}
    np.savez(folder / "ml.npz", **attributes)
    np.savez(folder / "half.npz", w=W.T)
    external(folder)
    write_arrays(folder, arrays)
    np.savez(folder / "d.npz", x=X, y=Y)
    compiled = gdu_compile.compile(folder / "m.onnx", arrays, data=folder / "d.npz",
                                   output=folder / "e.gdu.onnx")  # fmt: skip
    learnt = gdu_compile.compile(folder / "m.onnx", oracle=folder / "a.onnx", bucket_bytes=4 * 40,
                                 data=folder / "d.npz", output=folder / "l.gdu.onnx")  # fmt: skip
    assert compiled.report.reproduced and learnt.report.reproduced and compiled.theta is not None
    shutil.move(folder / "e.gdu.trained.onnx", folder / "t.onnx")
    shutil.move(folder / "l.gdu.trained.onnx", folder / "lt.onnx")
    write_trained(folder, compiled.theta)


def save(path: Path, text: str, *more: TensorProto) -> None:
    """A model from ONNX's text form, with further initializers."""
    model = parser.parse_model(text)
    model.graph.initializer.extend(more)
    model.metadata_props.add(key="author", value="nobody")
    onnx.save(model, path)


def external(folder: Path) -> None:
    """ext.onnx: m.onnx with w in ext.data."""
    model = onnx.load(folder / "m.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    tensor.CopyFrom(numpy_helper.from_array(W, "w"))
    (folder / "ext.data").write_bytes(b"\0" * 64 + tensor.raw_data)
    external_data_helper.set_external_data(tensor, "ext.data", offset=64, length=48)
    tensor.ClearField("raw_data")
    (folder / "ext.onnx").write_bytes(model.SerializeToString())


def write_arrays(folder: Path, arrays: dict[str, Any]) -> None:
    """Oracle weights and data in every format."""
    import torch
    from safetensors.numpy import save_file

    np.savez(folder / "w.npz", **arrays)
    save_file(arrays, folder / "w.safetensors")
    save_file({"x": X, "y": Y}, folder / "d.safetensors")
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save(tensors, folder / "w.pt")
    torch.save(tensors, folder / "old.pt", _use_new_zipfile_serialization=False)


def write_trained(folder: Path, theta: dict[str, Any]) -> None:
    """θ in two formats."""
    from safetensors.numpy import save_file

    np.savez(folder / "t.npz", **theta)
    save_file(theta, folder / "t.safetensors")
