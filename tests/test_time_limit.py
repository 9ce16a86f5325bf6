"""--run-limit: what does not end is ended, in onnxruntime and in torch, and says so in one line."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import gdu_compile
from gdu_compile import cli, runtime, time_limit
from gdu_compile.errors import InputError, TimeLimitError
from gdu_compile.torch_backend import lower_to_torch

ENDLESS = """<ir_version: 8, opset_import: ["": 18]>
    endless (float[N,4] x) => (float[N,3] logits)
    <float[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}>
    { yes = Constant<value=bool {1}>()  h = Gemm<transB=1>(x, w)
      logits = Loop (, yes, h) <body = again (int64 i, bool on, float[N,3] t) =>
          (bool still, float[N,3] u) { u = Neg(t)  still = Identity(on) }> }"""
W = np.ones((3, 4), dtype=np.float32)
X = {"x": np.ones((2, 4), dtype=np.float32)}


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A base whose Loop never ends, which no checker can see."""
    path = tmp_path / "endless.onnx"
    onnx.save(onnx.parser.parse_model(ENDLESS), path)
    np.savez(tmp_path / "w.npz", w=W)
    return path


def test_compile(endless: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Confirmation ends with the file, the limit and the option; nothing is written."""
    out = endless.with_name("o.onnx")
    command = [str(endless), "--weights", str(endless.with_name("w.npz")), "-o", str(out)]
    begin = time.monotonic()
    assert cli.run([*command, "--run-limit", "0.3"]) == 2
    assert time.monotonic() - begin < 30
    said = capsys.readouterr().err
    assert f"error: {endless}: one forward call of it takes longer than 0.3 s (--run-limit)" in said
    assert not out.exists()
    # it is not run: then it is compiled, and training finds out
    assert cli.run([*command, "--no-confirm"]) == 0
    assert cli.run(["train", str(out), "--run-limit", "0.3", "-o", f"{out}.t.onnx"]) == 2
    assert f"error: {out}: one forward call" in capsys.readouterr().err


def test_a_note_is_no_way_around(endless: Path) -> None:
    """Where a model that cannot be run is taken with a note, one that does not end is not."""
    model = onnx.load(endless)
    model.opset_import[0].version = 17  # raised, and compared before and after
    onnx.save(model, endless)
    with pytest.raises(TimeLimitError, match="--run-limit"):
        gdu_compile.compile(endless, {"w": W}, run_limit=0.3, confirm=False)


def test_torch(endless: Path) -> None:
    """The same Loop in torch, inside of the limit; outside of a command there is none."""
    module = lower_to_torch(ir.load(endless), ())
    with (
        time_limit.run_limit(0.3, "endless.onnx"),
        pytest.raises(TimeLimitError, match=r"endless.onnx: .* longer than 0.3 s"),
    ):
        module(torch.ones(2, 4))
    assert time_limit.Deadline().at == float("inf")


def test_the_next_call_is_not_ended(endless: Path, tmp_path: Path) -> None:
    """A session whose call was ended runs on, and calls below the limit are as they were."""
    plain = tmp_path / "plain.onnx"
    onnx.save(onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[N,4] x) => (float[N,4] y) { y = Neg(x) }'
    ), plain)  # fmt: skip
    with time_limit.run_limit(0.2, "m.onnx"):
        for _ in range(2):
            with pytest.raises(TimeLimitError):
                runtime.run(endless, X)
        assert runtime.run(plain, X)["y"].tolist() == (-X["x"]).tolist()
        session = runtime.session(plain)
        end = time.monotonic() + 0.5  # many calls that take longer together
        while time.monotonic() < end:
            runtime.call(session, ["y"], X)
        with pytest.raises(InputError, match="cannot run it"):  # another error stays what it is
            runtime.run(plain, {"x": np.ones((2, 5), dtype=np.float32)})
    assert not time_limit.WATCH.running


def test_after_a_fork(endless: Path) -> None:
    """A thread does not survive a fork: the child has one of its own."""
    import multiprocessing

    def limited() -> None:
        with time_limit.run_limit(0.2, "m.onnx"), pytest.raises(TimeLimitError):
            runtime.run(endless, X)

    limited()
    child = multiprocessing.get_context("fork").Process(target=limited)
    child.start()
    child.join(30)
    assert child.exitcode == 0


@pytest.mark.parametrize("limit", ["0", "-1", "nan"])
def test_option(endless: Path, limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit is above 0."""
    assert cli.run(["extract", str(endless), "--run-limit", limit]) == 2
    assert "must be above 0, or inf" in capsys.readouterr().err
