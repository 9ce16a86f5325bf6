"""Writing: what may be replaced, what goes with it, and how many bytes there are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import mlp, oracle_for, save_npz, save_onnx

import gdu_compile
from gdu_compile import model_io
from gdu_compile.cli import run
from gdu_compile.errors import InputError

PRECIOUS = b"precious"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small base as a file; the output's name is e.onnx beside it."""
    return save_onnx(tmp_path / "base.onnx", mlp())


def compiled(base: Path, **options: object) -> gdu_compile.Compiled:
    """Written to e.onnx, not confirmed."""
    options = {"output": base.with_name("e.onnx"), "confirm": False, **options}
    return gdu_compile.compile(base, oracle_for(mlp()), **options)


def content(folder: Path) -> dict[str, bytes]:
    """Name → bytes."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["external", "inline"])
def test_an_existing_data_file_is_not_replaced_without_force(
    limit: int, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before any work, whether or not tensors would go there; with force it goes."""
    monkeypatch.setattr(model_io, "EXTERNAL_BYTES", limit)
    base.with_name("e.onnx.data").write_bytes(PRECIOUS)
    before = content(base.parent)
    with pytest.raises(InputError, match=r"e\.onnx\.data: exists"):
        compiled(base)
    assert content(base.parent) == before
    compiled(base, force=True)
    kept = base.with_name("e.onnx.data").read_bytes() == PRECIOUS
    assert kept is (limit > 0)  # inline: it is nobody's, so it stays


def test_every_staged_file_is_checked_before_any_is_moved(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data file that comes up while the model is written."""
    monkeypatch.setattr(model_io, "EXTERNAL_BYTES", 0)
    write = model_io.write

    def slow_write(model: ir.Model, path: Path) -> None:
        write(model, path)
        base.with_name("e.onnx.data").write_bytes(PRECIOUS)

    monkeypatch.setattr(model_io, "write", slow_write)
    with pytest.raises(InputError, match=r"e\.onnx\.data: exists"):
        model_io.save(mlp(), base.with_name("e.onnx"))
    assert sorted(content(base.parent)) == ["base.onnx", "e.onnx.data"]
    assert base.with_name("e.onnx.data").read_bytes() == PRECIOUS


def test_data_that_is_no_longer_needed_goes(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An inline model over one with external data: the old data goes with the old model."""
    with monkeypatch.context() as external:
        external.setattr(model_io, "EXTERNAL_BYTES", 0)
        compiled(base)
    assert base.with_name("e.onnx.data").exists()
    report = compiled(base, force=True).report
    assert sorted(content(base.parent)) == ["base.onnx", "e.onnx"]
    assert report.bytes["extended"] == base.with_name("e.onnx").stat().st_size


def test_dumps_are_replaced_with_force_only_and_stay_when_a_pass_refuses(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are wanted most when a pass refuses: what was dumped before stays."""
    dumps, bad = base.with_name("dumps"), {**oracle_for(mlp()), "W9": np.zeros(3, np.float32)}
    weights = save_npz(base.with_name("w.npz"), bad)
    arguments = [str(base), "--weights", str(weights), "-o", str(base.with_name("e.onnx")),
                 "--dump-dir", str(dumps)]  # fmt: skip
    assert run(arguments) == 2
    assert "'W9' is no weight" in capsys.readouterr().err
    first = content(dumps)
    assert list(first) == [
        "00-NormalizePass.onnx", "01-RestoreNeutralPass.onnx", "02-LocateLogitsPass.onnx",
    ]  # fmt: skip
    assert not base.with_name("e.onnx").exists()

    (dumps / "00-NormalizePass.onnx").write_bytes(PRECIOUS)
    assert run([*arguments, "--allow-extra", "--no-confirm"]) == 2
    assert "00-NormalizePass.onnx: exists" in capsys.readouterr().err
    assert (dumps / "00-NormalizePass.onnx").read_bytes() == PRECIOUS
    assert run([*arguments, "--allow-extra", "--no-confirm", "--force"]) == 0
    assert len(content(dumps)) == 9
    assert content(dumps)["00-NormalizePass.onnx"] == first["00-NormalizePass.onnx"]


def test_an_input_in_memory_keeps_its_external_data(base: Path) -> None:
    """A model given in memory may have its tensors in a file that the output would replace."""
    ir.save(mlp(), base.with_name("ext.onnx"), external_data="e.onnx", size_threshold_bytes=0)
    model = ir.load(base.with_name("ext.onnx"))
    before = content(base.parent)
    with pytest.raises(InputError, match=r"e\.onnx: is an input of this very run"):
        gdu_compile.compile(model, oracle_for(mlp()), force=True, confirm=False,
                            output=base.with_name("e.onnx"))  # fmt: skip
    assert content(base.parent) == before


def test_bytes_are_those_of_the_files(base: Path) -> None:
    """One measure: the file and those that it points to, each once, whatever they are called."""
    ir.save(mlp(), base, external_data="some.weights.bin", size_threshold_bytes=0)
    base.with_name("base.onnx.data").write_bytes(PRECIOUS)  # nobody points there
    size = base.stat().st_size + base.with_name("some.weights.bin").stat().st_size
    assert gdu_compile.inspect(base)["bytes"] == size
    report = compiled(base).report
    extended = base.with_name("e.onnx")
    assert report.bytes == {"base": size, "extended": extended.stat().st_size}
    assert gdu_compile.train(extended, steps=1).bytes["extended"] == extended.stat().st_size


def test_bytes_in_memory_are_those_of_the_tensors(base: Path) -> None:
    """Nothing is written, or the base has no file: both are sums of tensors."""
    tensors = sum(array.nbytes for array in oracle_for(mlp()).values())
    sizes = [
        compiled(base, output=None).report.bytes,
        compiled(base, dry_run=True).report.bytes,
        gdu_compile.compile(mlp(), oracle_for(mlp()), confirm=False,
                            output=base.with_name("m.onnx")).report.bytes,
    ]  # fmt: skip
    assert [size["base"] for size in sizes] == [tensors] * 3
    assert sizes[0] == sizes[1] == sizes[2]
    assert sizes[0]["extended"] < os.path.getsize(base.with_name("m.onnx"))  # noqa: PTH202


def test_bytes_of_extract_and_apply_count_external_data(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The JSON of --json."""
    monkeypatch.setattr(model_io, "EXTERNAL_BYTES", 0)
    compiled(base, confirm=True, steps=1)
    plain = base.with_name("plain.onnx")
    assert run(["extract", str(base.with_name("e.trained.onnx")), "-o", str(plain), "--json"]) == 0
    size = plain.stat().st_size + base.with_name("plain.onnx.data").stat().st_size
    assert json.loads(capsys.readouterr().out)["bytes"] == size
