"""The examples do what their READMEs say: commands, exit codes, quoted lines, files, claims."""

from __future__ import annotations

import csv
import re
import runpy
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from conftest import ROOT, parse, random_weights
from pages import EXAMPLES, command_of, commands, missing_links, run_commands

from gdu_compile import passes, runtime, specialize

FOLDER = ROOT / "examples"
WRITES = {
    "01_compile_and_confirm": ("mlp.gdu.onnx", "mlp.gdu.trained.onnx", "mlp.plain.onnx",
                               "adamw.onnx"),
    "02_cnn_from_torch": ("cnn.onnx", "cnn.safetensors", "cnn.gdu.py", "cnn.gdu.safetensors",
                          "theta.safetensors"),
    "03_algorithm_instead_of_weights": ("ridge.gdu.onnx", "adam.gdu.trained.onnx", "early.onnx",
                                        "ridge.trained.onnx"),
    "04_own_oracle": ("lion.gdu.onnx", "averaged.gdu.onnx", "means.onnx", "means.gdu.onnx"),
    "05_own_pass": ("folded.onnx",),
    "06_three_nodes": ("three.gdu.onnx",),
    "07_base_and_extension": ("curves.svg", "curves.csv"),
}  # fmt: skip
COMMANDS = {"01": 7, "02": 4, "03": 5, "04": 6, "05": 1, "06": 2, "07": 1}
SECONDS = 60


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.parent.name)
def test_readme(
    page: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands, in order, from the root of a checkout, in a minute of one core."""
    begin = time.process_time()
    run_commands(page, monkeypatch)
    seconds = time.process_time() - begin
    printed = capsys.readouterr().out
    assert not_printed(quoted(page.read_text()), printed) == []
    assert [f for f in WRITES[page.parent.name] if not (here / "build" / f).exists()] == []
    assert seconds < SECONDS
    if page.parent.name == "07_base_and_extension":
        check_curves(here / "build")


def quoted(text: str) -> list[str]:
    """The lines of output in a page, without those that only say that some are left out."""
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.strip(" …")]


def not_printed(lines: list[str], printed: str) -> list[str]:
    """The lines that were not printed; … stands for anything, spaces do not count."""
    found = [" ".join(line.split()) for line in printed.splitlines()]
    return [line for line in lines if not any(pattern_of(line).fullmatch(f) for f in found)]


def pattern_of(line: str) -> re.Pattern[str]:
    """A quoted line as a regular expression."""
    return re.compile(".*".join(re.escape(part) for part in " ".join(line.split()).split("…")))


def test_the_check_of_quoted_lines() -> None:
    """It finds what is there, and misses what is not."""
    page = "a\n```\n x  1.5\n …\n y …%\n```\nb\n```python\nz\n```\n"
    assert quoted(page) == [" x  1.5", " y …%"]
    assert not_printed(quoted(page), "x 1.5 \n y   2.0%\n") == []
    assert not_printed(quoted(page), "x 1.50\n y 2.0% \n") == [" x  1.5"]
    assert not_printed(quoted(page), "x 1.5\n y 2.0\n") == [" y …%"]


def test_the_check_of_exit_codes(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that exits otherwise is found, in the folder that the page is in by then."""
    page = here / "page.md"
    line = "    cd examples\n    gdu-compile nothing.onnx --weights w.npz"
    for end in ("", "  # exits 1"):
        page.write_text(line + end + "\n")
        with pytest.raises(AssertionError, match=r"nothing\.onnx"):
            run_commands(page, monkeypatch)
        monkeypatch.chdir(here)
    page.write_text(line + "  # exits 2\n")
    run_commands(page, monkeypatch)
    assert Path.cwd() == here / "examples"
    assert "no such file" in capsys.readouterr().err


def test_the_commands_are_there() -> None:
    """None of the above passes because nothing was found; no command writes elsewhere."""
    assert {page.parent.name[:2]: len(commands(page)) for page in EXAMPLES} == COMMANDS
    assert all(quoted(page.read_text()) for page in EXAMPLES)
    assert [c.exits for c in commands(EXAMPLES[0])] == [0, 0, 0, 0, 1, 1, 0]
    assert command_of("gdu-compile a --lr 0  # exits 1") == (["gdu-compile", "a", "--lr", "0"], 1)


def test_the_list() -> None:
    """examples/README.md has every folder, and every folder a README."""
    folders = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
    assert folders == sorted(WRITES) == [page.parent.name for page in EXAMPLES]
    listed = re.findall(r"^\| \[(\d\d)\]\((.*?)/README.md\)", (FOLDER / "README.md").read_text(),
                        re.MULTILINE)  # fmt: skip
    assert [name for _, name in listed] == folders
    assert [number for number, _ in listed] == [name[:2] for name in folders]


def test_links(tmp_path: Path) -> None:
    """The check that test_docs.py makes of the links finds one that leads nowhere."""
    page = tmp_path / "page.md"
    page.write_text("[a](page.md) [b](page.md#there) [c](nowhere.md#there) [d](https://x.y)")
    assert missing_links(page) == ["nowhere.md"]


# --- 05: the pass


def example(path: str) -> dict[str, Any]:
    """The names that a script defines."""
    return runpy.run_path(str(FOLDER / path))


def convolutions(outputs: str, nodes: str = "", *, rank: int = 2) -> ir.Model:
    """Conv and BatchNormalization on x [N, 3, 8, …], with random weights."""
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3, *[3] * rank), "b": (4,), "scale": (4,), "shift": (4,), "mean": (4,)}
    weights = random_weights(shapes, rng)
    weights["variance"] = rng.uniform(0.5, 2, 4).astype(np.float32)
    return parse(f"""net (float[N, 3{", 8" * rank}] x) => ({outputs}) {{
        c = Conv(x, w, b)
        z = BatchNormalization <epsilon = 0.001> (c, scale, shift, mean, variance)
        {nodes} }}""", weights)  # fmt: skip


IMAGE = "float[N, 4, 6, 6]"
PASS_CASES = [
    ("folds", f"{IMAGE} z", "", 2, 1),
    ("one dimension", "float[N, 4, 6] z", "", 1, 1),
    ("three dimensions", "float[N, 4, 6, 6, 6] z", "", 3, 1),
    ("used after it", f"{IMAGE} r", "r = Relu(z)", 2, 1),
    ("another use of the Conv", f"{IMAGE} r", "r = Add(c, z)", 2, 0),
    ("the Conv is an output", f"{IMAGE} z, {IMAGE} c", "", 2, 0),
    ("a weight with another use", f"{IMAGE} r", "s = Constant <value_ints: ints = [4, 1, 1]> ()"
     "  d = Reshape(shift, s)  r = Add(z, d)", 2, 0),
    ("a weight is an output", f"{IMAGE} z, float[4] b", "", 2, 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "outputs", "nodes", "rank", "folded"), PASS_CASES)
def test_fold_batch_norm(name: str, outputs: str, nodes: str, rank: int, folded: int) -> None:
    """The function stays; what is used elsewhere is left alone."""
    model, before = (convolutions(outputs, nodes, rank=rank) for _ in range(2))
    fold = example("05_own_pass/fold_batch_norm.py")["FoldBatchNormalizationPass"]()
    ir.passes.Sequential(passes.NormalizePass(), fold)(model)
    assert sum(node.op_type == "BatchNormalization" for node in model.graph) == 1 - folded
    x = np.random.default_rng(1).standard_normal((5, 3, *[8] * rank)).astype(np.float32)
    with runtime.on_disk(before) as a, runtime.on_disk(model) as b:
        expected, found = (runtime.run(path, {"x": x}, level="none") for path in (a, b))
    for output, array in expected.items():
        assert np.abs(found[output] - array).max() <= 2e-6 * np.abs(array).max()
        assert np.array_equal(found[output], array) or folded


def test_fold_batch_norm_comes_after_normalize() -> None:
    """In a wrong order onnx_ir says which pass wants what."""
    fold = example("05_own_pass/fold_batch_norm.py")["FoldBatchNormalizationPass"]()
    with pytest.raises(ir.passes.PreconditionError, match="needs lifted"):
        fold(convolutions(f"{IMAGE} z"))


def test_fold_batch_norm_of_the_oracle() -> None:
    """Two tensors are left of six; the script's comparison would see other weights."""
    script = example("05_own_pass/fold_batch_norm.py")
    base = ir.load(ROOT / script["MODEL"])
    weights, x = dict(np.load(ROOT / script["WEIGHTS"])), np.load(ROOT / script["DATA"])["x"][:50]
    folded = script["fold_weights"](base, weights)
    assert len(weights) == 16 and len(folded) == 8
    original = script["logits_of"](specialize.with_weights(base, weights), x)
    untrained = script["logits_of"](base, x)
    assert np.abs(untrained - original).max() > 0.1 * np.abs(original).max()


# --- 06


def test_blum_rivest() -> None:
    """Gradient descent gets stuck, the oracle does not; and the descent does descend."""
    script = example("06_three_nodes/blum_rivest.py")
    *descents, searched = script["compare"]((("SGD()", 1.0), ("Adam()", 0.1)), 2, 1200)
    assert searched.accuracies == [1.0] and searched.losses[0] < 1e-6
    for row in descents:
        assert max(row.losses) < 0.69  # below the loss of a constant answer
    assert descents[0].accuracies == descents[1].accuracies == [13 / 14, 13 / 14]


def test_blum_rivest_seeds_do_not_meet() -> None:
    """Side by side, a seed ends where it ends alone."""
    script = example("06_three_nodes/blum_rivest.py")
    base = ir.load(ROOT / script["MODEL"])
    data = np.load(ROOT / script["DATA"])
    for optimizer in ("SGD(momentum=0.9)", "Adam()"):
        one, three = (script["descend"](base, data["x"], data["y"], optimizer, 0.1, seeds=seeds,
                                        steps=100) for seeds in (1, 3))  # fmt: skip
        assert three.losses[0] == pytest.approx(one.losses[0], rel=1e-5)
        assert len(set(three.losses)) == 3


# --- 07


def check_curves(build: Path) -> None:
    """The numbers are those of the committed file, and show what the README says."""
    made, kept = (points(folder / "curves.csv") for folder in (build, FOLDER / WITH_CURVES))
    assert list(made) == list(kept)
    for curve, rows in made.items():
        losses, expected = np.array(rows)[:, 0], np.array(kept[curve])[:, 0]
        # What rounds otherwise on another machine grows on the way down, and in the algorithm.
        assert np.allclose(losses, expected, rtol=0.02), curve
        _, network = curve
        if network.endswith("(record)"):
            assert jumps(rows) == [1], curve
        elif network.endswith("(learn)"):
            assert jumps(rows) == [23], curve
            assert rows[0][0] == pytest.approx(np.log(10), abs=1e-6)
        else:
            assert len(jumps(rows)) == len(rows) - 1, curve
            assert rows[-1][0] < rows[0][0], curve
    for network in {network for _, network in made if network != "base"}:
        ends = [rows[-1] for (_, name), rows in made.items() if name == network]
        assert len(ends) == 2 and ends[0] == ends[1], network


WITH_CURVES = "07_base_and_extension"


def points(path: Path) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(optimizer, network) → (loss, accuracy), step by step."""
    curves: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            curve = curves.setdefault((row["optimizer"], row["network"]), [])
            assert int(row["step"]) == len(curve)
            curve.append((float(row["loss"]), float(row["accuracy"])))
    return curves


def jumps(rows: list[tuple[float, float]]) -> list[int]:
    """The steps that change something."""
    return [step for step in range(1, len(rows)) if rows[step] != rows[step - 1]]


def test_the_picture(tmp_path: Path) -> None:
    """The committed picture is that of the committed numbers: drawn again, the same bytes."""
    script, folder = example(f"{WITH_CURVES}/curves.py"), FOLDER / WITH_CURVES
    rows = [
        script["Point"](optimizer, network, step, *values)
        for (optimizer, network), curve in points(folder / "curves.csv").items()
        for step, values in enumerate(curve)
    ]
    script["draw"](rows, tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_bytes() == (folder / "curves.svg").read_bytes()
    worse = [row._replace(loss=row.loss * 1.1) for row in rows]
    script["draw"](worse, tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_bytes() != (tmp_path / "a.svg").read_bytes()
