"""The command line: every command, its exit code, its JSON; torch stays away until training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import MODELS, mlp, oracle_for, save_npz, save_onnx

from gdu_compile.cli import run
from gdu_compile.report import Report

MLP = [str(MODELS / "digits_mlp.onnx"), "--weights", str(MODELS / "digits_mlp.oracle.npz")]
DATA = ["--data", str(MODELS / "digits.npz")]


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """Arguments for a small network."""
    base = save_onnx(tmp_path / "m.onnx", mlp())
    weights = save_npz(tmp_path / "w.npz", oracle_for(mlp()))
    return [str(base), "--weights", str(weights)]


def call_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and the one JSON object on standard output."""
    code = run([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


KEYS = {
    "schema", "command", "model", "method", "reproduced", "digits", "digits_why", "gain",
    "optimizer", "learning_rate", "batch_size", "steps", "armed_at_step", "loss", "seed", "device",
    "versions",
    "data", "logits", "weights", "forward", "forward_unoptimized", "torch",
    "gradient_after_arming", "negative_controls", "memory", "algorithm", "original", "accuracy",
    "steer", "skipped", "warnings", "why", "files", "bytes", "seconds", "passes",
}  # fmt: skip


def test_the_main_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """compile, with every key of the documented JSON present."""
    output = tmp_path / "m.gdu.onnx"
    code, result = call_json(capsys, *MLP, *DATA, "-o", str(output), "--steps", "2")
    assert code == 0 and result["reproduced"] is True and set(result) == KEYS
    assert result["data"] == {"kind": "file", "path": DATA[1], "samples": 1797}
    assert result["files"] == {
        "extended": str(output), "trained": str(tmp_path / "m.gdu.trained.onnx"), "torch": None,
    }  # fmt: skip
    assert result["bytes"]["extended"] == output.stat().st_size
    assert [p["name"] for p in result["passes"]][:2] == ["NormalizePass", "RestoreNeutralPass"]
    assert result["negative_controls"] == [
        {"name": "untrained", "reproduced": False},
        {"name": "learning rate 0", "reproduced": False},
    ]  # fmt: skip
    assert {w["name"]: w["bit_equal"] for w in result["weights"]} == dict.fromkeys(
        ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "fc3.weight", "fc3.bias"], True
    )


def test_table_and_synthetic_note(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a person sees."""
    assert run([*small, "-o", str(tmp_path / "e.onnx")]) == 0
    shown = capsys.readouterr().out
    for part in ("W1", "head-room", "control fails: untrained", "reproduced by SGD()",
                 "synthetic samples"):  # fmt: skip
        assert part in shown
    assert run([*small, "-o", str(tmp_path / "f.onnx"), "-q"]) == 0
    assert len(capsys.readouterr().out.strip().splitlines()) <= 2


def test_default_names_lie_in_the_current_folder(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NAME.gdu.onnx, NAME.gdu.trained.onnx, NAME.extracted.onnx."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert run(small) == 0
    assert run(["extract", "m.gdu.trained.onnx"]) == 0
    assert sorted(p.name for p in work.iterdir()) == [
        "m.extracted.onnx", "m.gdu.onnx", "m.gdu.trained.onnx",
    ]  # fmt: skip


@pytest.mark.parametrize("rate", ["0.1", "0"])
def test_training_an_armed_file_claims_nothing(
    rate: str, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bits are right, but this run has recorded nothing: said in the table and in the JSON."""
    extended, trained = str(tmp_path / "e.onnx"), str(tmp_path / "e.trained.onnx")
    assert run([*small, "-o", extended]) == 0
    capsys.readouterr()
    said = "armed before the first step: nothing was recorded by this training"
    again = ["train", trained, "-o", str(tmp_path / "again.onnx"), "--lr", rate, "--force"]
    assert run(again) == 0
    shown = capsys.readouterr().out
    assert said in shown and "before the first step" in shown
    assert "reproduced by an earlier training; nothing was recorded by SGD()" in shown
    assert "reproduced by SGD()" not in shown
    code, result = call_json(capsys, *again)
    assert code == 0 and result["armed_at_step"] == 0 and result["warnings"] == [said]
    # The control: a file that is not armed claims its own run.
    assert run(["train", extended, "-o", str(tmp_path / "first.onnx")]) == 0
    shown = capsys.readouterr().out
    assert said not in shown and "reproduced by SGD()" in shown


def test_exit_codes_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """All five, and in the README."""
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    readme = (MODELS.parent / "README.md").read_text()
    for code in ("0 reproduced", "1 not", "2 bad input", "3 internal error", "130 interrupted"):
        assert code in " ".join(shown.split())
        assert f"| {code.split()[0]} | {code.split()[1]}" in readme


def test_not_reproduced_is_exit_1(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what was measured."""
    code, result = call_json(capsys, *small, "-o", str(tmp_path / "e.onnx"), "--lr", "0")
    assert code == 1 and result["reproduced"] is False
    assert result["armed_at_step"] is None and result["weights"][0]["bit_equal"] is False
    assert any("learning rate is 0" in warning for warning in result["warnings"])


def test_no_confirm_and_dry_run_and_stop_after(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """reproduced is null, exit 0; dry-run writes nothing; stop-after writes the graph so far."""
    work = tmp_path / "work"
    output = ["-o", str(work / "e.onnx")]
    code, result = call_json(capsys, *small, *output, "--dry-run")
    assert code == 0 and result["reproduced"] is None and not work.exists()
    assert len(result["passes"]) == 9 and result["bytes"]["extended"] > result["bytes"]["base"]
    code, result = call_json(capsys, *small, *output, "--no-confirm")
    assert code == 0 and result["reproduced"] is None
    assert [p.name for p in work.iterdir()] == ["e.onnx"]
    code, result = call_json(
        capsys, *small, "-o", str(work / "s.onnx"), "--stop-after", "InsertRecorderPass"
    )
    assert code == 0 and [p["name"] for p in result["passes"]][-1] == "InsertRecorderPass"
    assert sorted(p.name for p in work.iterdir()) == ["e.onnx", "s.onnx"]
    # What was written is no extended model, and is not called one.
    assert result["files"]["extended"] is None
    assert result["warnings"] == [
        f"{work / 's.onnx'} is the graph after InsertRecorderPass: no extended model yet"
    ]
    code, result = call_json(
        capsys, *small, "-o", str(work / "l.onnx"), "--stop-after", "CheckExtensionPass"
    )
    assert result["files"]["extended"] == str(work / "l.onnx") and result["warnings"] == []


def test_dump_dir_holds_a_graph_after_each_pass(small: list[str], tmp_path: Path) -> None:
    """Numbered, in order, loadable."""
    import onnx

    dumps = tmp_path / "dumps"
    assert (
        run([*small, "-o", str(tmp_path / "e.onnx"), "--no-confirm", "--dump-dir", str(dumps)]) == 0
    )
    names = sorted(p.name for p in dumps.iterdir())
    assert names[0] == "00-NormalizePass.onnx" and names[-1] == "08-CheckExtensionPass.onnx"
    assert len(names) == 9
    for name in names:
        onnx.checker.check_model(str(dumps / name))


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ("W1", "rows 1 … 30 of gdu_theta_0"),
        ("logits", "it is the logits: the only output"),
        ("a", "no float weight"),
    ],
)
def test_why(small: list[str], capsys: pytest.CaptureFixture[str], tensor: str, said: str) -> None:
    """What happens to one tensor."""
    code, result = call_json(capsys, *small, "--dry-run", "--why", tensor)
    assert code == 0 and any(said in line for line in result["why"]), result["why"]
    if tensor == "W1":
        assert "reaches the logits" in result["why"]
        assert any("used by MatMul" in line for line in result["why"])


def test_train_verify_apply_extract_inspect_passes(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other jobs, one after the other, on the files of the first."""
    extended, trained = str(tmp_path / "e.onnx"), str(tmp_path / "t.onnx")
    assert run([*small, "-o", extended, "--no-confirm"]) == 0
    capsys.readouterr()
    code, result = call_json(capsys, "train", extended, "-o", trained, "--lr", "3")
    assert code == 0 and result["command"] == "train" and set(result) == KEYS
    code, result = call_json(capsys, "verify", extended, "--trained", trained)
    assert code == 0 and result["reproduced"] is True and set(result) == KEYS
    assert run(["verify", extended, "--trained", extended]) == 1  # never trained
    capsys.readouterr()
    code, result = call_json(capsys, "apply", extended, "--trained", trained,
                             "-o", str(tmp_path / "a.onnx"))  # fmt: skip
    assert code == 0 and result["file"] == str(tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == Path(trained).read_bytes()
    plain = str(tmp_path / "p.onnx")
    assert call_json(capsys, "extract", trained, "-o", plain)[0] == 0
    code, result = call_json(capsys, "inspect", trained)
    assert code == 0 and result["extension"]["armed"] is True and len(result["switches"]) == 2
    assert result["extension"]["buckets"][0]["weights"] == ["W1", "b1", "W2", "b2"]
    code, result = call_json(capsys, "inspect", plain)
    assert code == 0 and result["extension"] is None and result["switches"] == []
    code, result = call_json(capsys, "passes")
    assert code == 0 and len(result["passes"]) == 17
    for command in (["inspect", trained], ["inspect", plain], ["passes"]):
        assert run(command) == 0
    assert "armed (trained)" in capsys.readouterr().out


def test_inspect_finds_an_extension_without_metadata(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The means to detect one: switches on constants."""
    import onnx

    extended = tmp_path / "e.onnx"
    assert run([*small, "-o", str(extended), "--no-confirm"]) == 0
    proto = onnx.load(extended)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "hidden.onnx")
    capsys.readouterr()
    code, result = call_json(capsys, "inspect", str(tmp_path / "hidden.onnx"))
    assert code == 0 and result["extension"] is None and len(result["switches"]) == 2


def test_gain_and_other_spellings(small: list[str], tmp_path: Path) -> None:
    """Powers as in Python; the spelled-out form of the main command."""
    optimizer = "SGD(momentum=0.9, nesterov=True)"
    options = ["--gain", "2**-60", "--optimizer", optimizer, "--batch-size", "0"]
    assert run(["compile", *small, "-o", str(tmp_path / "e.onnx"), *options]) == 0


NO_TORCH = """
import sys
from gdu_compile.cli import run
assert run(sys.argv[1:]) == 0
assert "torch" not in sys.modules, "torch was imported"
"""


@pytest.mark.parametrize("job", ["--help", "inspect", "passes", "compile"])
def test_torch_is_imported_for_training_only(job: str, small: list[str], tmp_path: Path) -> None:
    """2–4 s and 220 MB that compiling does not need."""
    arguments = {
        "--help": ["--help"], "inspect": ["inspect", small[0]], "passes": ["passes"],
        "compile": [*small, "-o", str(tmp_path / "e.onnx"), "--no-confirm"],
    }[job]  # fmt: skip
    subprocess.run([sys.executable, "-c", NO_TORCH, *arguments], check=True, capture_output=True)


def test_json_holds_no_nan() -> None:
    """NaN and infinity are null."""
    report = Report("compile", "m", gradient_after_arming=float("inf"))
    assert report.to_json()["gradient_after_arming"] is None
