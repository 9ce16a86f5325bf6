"""Float16 files with which onnxruntime ends its process: refused in one line, others as ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import gdu_compile
from gdu_compile import cli, runtime, time_limit, trial_load
from gdu_compile.errors import TimeLimitError, UnsupportedError

NET = """<ir_version: 8, opset_import: ["": 18]>
    g (%s[N,2,4] x) => (%s[%s,3] logits)
    { t = Transpose<perm=[%s]>(x)  logits = MatMul(t, w) }"""
W = np.arange(12).reshape(4, 3)


def network(folder: Path, kind: str, perm: str = "1,0,2") -> Path:
    """A Transpose and a MatMul with a constant weight, of this dtype."""
    path = folder / f"{kind}.onnx"
    rows = "2,N" if perm == "1,0,2" else "N,2"
    model = onnx.parser.parse_model(NET % (kind, kind, rows, perm))
    array = W.astype(np.float16 if kind == "float16" else np.float32)
    model.graph.initializer.append(numpy_helper.from_array(array, "w"))
    onnx.save(model, path)
    np.savez(folder / "w.npz", w=array + array.dtype.type(1))
    return path


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is loaded on trial."""
    found: list[str] = []
    check = trial_load.check

    def counted(path: Path, called: str) -> None:
        found.append(called)
        check(path, called)

    monkeypatch.setattr(trial_load, "check", counted)
    return found


def test_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """onnxruntime dies of it; we say so, and go on."""
    path, out = network(tmp_path, "float16"), tmp_path / "o.onnx"
    command = [str(path), "--weights", str(tmp_path / "w.npz"), "-o", str(out)]
    assert cli.run(command) == 2
    said = capsys.readouterr().err
    assert f"error: {path}" in said and "onnxruntime crashes (SIGSEGV)" in said
    assert not out.exists() and not runtime.SUSPECTS
    assert cli.run([*command, "--no-confirm"]) == 0  # the way out that it names


def test_reproduced(tmp_path: Path, trials: list[str]) -> None:
    """The same operators in an order that onnxruntime loads: after a trial, reproduced."""
    path = network(tmp_path, "float16", perm="0,1,2")
    compiled = gdu_compile.compile(path, {"w": (W + 1).astype(np.float16)})
    assert compiled.report.reproduced
    assert trials


def test_nothing_is_paid_by_others(tmp_path: Path, trials: list[str]) -> None:
    """No process is begun for a model without that combination."""
    path = network(tmp_path, "float", perm="0,1,2")
    compiled = gdu_compile.compile(path, {"w": (W + 1).astype(np.float32)})
    assert compiled.report.reproduced and not trials


@pytest.mark.parametrize(
    ("nodes", "suspect"),
    [
        ("h = Cast<to=10>(x)  t = Transpose(h)  m = MatMul(t, h)  y = Cast<to=1>(m)", True),
        ("h = Cast<to=10>(x)  t = Transpose(h)  m = Add(t, h)  y = Cast<to=1>(m)", False),
        ("c = Constant<value=float16 {1}>()  t = Transpose(x)  y = MatMul(t, x)", True),
        ("t = Transpose(x)  y = MatMul(t, x)", False),
        ("t = Transpose(x)  y = MatMul(t, x)  i = Cast<to=7>(x)", False),
    ],
)
def test_suspects(nodes: str, suspect: bool) -> None:
    """Float16 may come from an initializer, a Constant or a Cast."""
    head = '<ir_version: 8, opset_import: ["": 18]> g (float[4,4] x) => (float[4,4] y)'
    model = ir.from_proto(onnx.parser.parse_model(f"{head} {{ {nodes} }}"))
    assert trial_load.is_suspect(model) is suspect


def test_present_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that lies beside a file from elsewhere is not imported by the trial."""
    monkeypatch.chdir(tmp_path)
    for name in ("onnxruntime", "numpy", "resource"):
        Path(f"{name}.py").write_text("open('canary', 'w')\n")
    with pytest.raises(UnsupportedError, match=r"m\.onnx: onnxruntime crashes"):
        trial_load.check(network(tmp_path, "float16"), "m.onnx")
    assert not Path("canary").exists()


def test_time_limit(tmp_path: Path) -> None:
    """A trial takes no longer than a call may."""
    with time_limit.run_limit(1e-3, "m.onnx"), pytest.raises(TimeLimitError):
        trial_load.check(network(tmp_path, "float16"), "m.onnx")
