"""learn on the command line: the files it writes, what is done with them, what it says."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import MODELS, parse, save_npz, save_onnx
from learning import by_hand, network, sample, sums
from safetensors.torch import save_file
from torch.optim import SGD

import gdu_compile
from gdu_compile import passes, runtime, specialize
from gdu_compile.cli import run
from gdu_compile.contracts import PASS_KEY, Field
from gdu_compile.errors import InputError
from gdu_compile.metadata import PREFIX
from gdu_compile.report import Report
from gdu_compile.training_set import form_of

COMPILE = "m.onnx --oracle a.onnx --data d.npz"
STAGES = [kind.__name__ for kind in passes.LEARN_PASSES]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an algorithm, data, and what compile makes of them."""
    folder = tmp_path_factory.mktemp("made")
    save_onnx(folder / "m.onnx", network())
    save_onnx(folder / "a.onnx", sums())
    np.savez(folder / "d.npz", **sample(n=17))
    np.savez(folder / "other.npz", **sample(n=17, seed=5))
    np.savez(folder / "fewer.npz", **sample(n=16))
    compiled = gdu_compile.compile(
        folder / "m.onnx", oracle=folder / "a.onnx", data=folder / "d.npz",
        output=folder / "e.onnx", batch_size=5,
    )  # fmt: skip
    assert compiled.report.reproduced
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder: a copy of these files."""
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder


def call(capsys: pytest.CaptureFixture[str], command: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON."""
    capsys.readouterr()
    code = run([*shlex.split(command), "--json"])
    out, _ = capsys.readouterr()
    return code, json.loads(out)


def text(capsys: pytest.CaptureFixture[str], command: str) -> str:
    """What a command that succeeds prints."""
    capsys.readouterr()
    assert run(shlex.split(command)) == 0
    return capsys.readouterr().out


def test_json_and_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All keys of record, those of learn filled in; the same bytes as before."""
    code, answer = call(capsys, f"{COMPILE} --batch-size 5 -o f.onnx")
    assert code == 0 and answer["reproduced"] is True and answer["method"] == "learn"
    assert set(answer) == set(Report("compile", "m").to_json())
    assert answer["files"] == {"extended": "f.onnx", "trained": "f.trained.onnx", "torch": None}
    assert set(answer["memory"]) == {
        "slots", "filled", "bit_equal", "labels_equal", "digit_error", "headroom_bits", "worst",
        "wrong", "permuted_order", "changed_slots_only",
    }  # fmt: skip
    assert answer["algorithm"] == {"name": "a.onnx", "bit_equal_to_oracle_run": True}
    assert answer["forward"] is None
    assert answer["forward_unoptimized"]["optimization"] == "none"
    assert [row["digit_error"] for row in answer["weights"]] == [None, None]
    assert answer["accuracy"]["oracle"] == answer["accuracy"]["trained"]
    for name in ("", ".trained"):
        assert Path(f"f{name}.onnx").read_bytes() == Path(f"e{name}.onnx").read_bytes()
        assert onnx.load(f"f{name}.onnx").metadata_props
    code, answer = call(capsys, f"{COMPILE} -o f.onnx")
    assert code == 2 and "--force" in answer["error"]["message"]
    assert call(capsys, f"{COMPILE} -o f.onnx --force")[0] == 0


def test_tables(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a person reads."""
    said = text(capsys, f"{COMPILE} -o f.onnx")
    for part in ("memory is the training set", "17 of 17 slots", "another order gives that order",
                 "changed data change their slots only", "weights are the algorithm's", "a.onnx",
                 "control fails: learning rate 0", "reproduced by SGD()"):  # fmt: skip
        assert part in said
    assert run(["verify", "e.onnx", "--trained", "e.trained.onnx", "--data", "other.npz"]) == 1
    said = capsys.readouterr().out
    # The table wraps lines; more slots are wrong than are named.
    assert "not reproduced" in said and "slots 0, 1, 2" in " ".join(said.split()) and "…" in said


def test_no_confirm_and_dry_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Written and not trained; not even written; the same extended bytes."""
    before = sorted(here.iterdir())
    code, answer = call(capsys, f"{COMPILE} --dry-run")
    assert code == 0 and answer["reproduced"] is None and answer["memory"] is None
    assert [row["name"] for row in answer["passes"]] == STAGES
    assert sorted(here.iterdir()) == before
    code, answer = call(capsys, f"{COMPILE} --no-confirm -o f.onnx")
    assert code == 0 and answer["reproduced"] is None
    assert answer["files"] == {"extended": "f.onnx", "trained": None, "torch": None}
    assert sorted(here.iterdir()) == sorted([*before, here / "f.onnx"])


@pytest.mark.parametrize("stage", STAGES)
def test_stop_after_and_dumps(stage: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each stage's graph is valid, and still the base until the switches are there."""
    command = f"{COMPILE} --stop-after {stage} --dump-dir dumps -o s.onnx"
    code, answer = call(capsys, command)
    last = STAGES.index(stage)
    assert code == 0 and [row["name"] for row in answer["passes"]] == STAGES[: last + 1]
    assert [path.name for path in sorted(Path("dumps").iterdir())] == [
        f"{index:02d}-{name}.onnx" for index, name in enumerate(STAGES[: last + 1])
    ]
    assert Path(f"dumps/{last:02d}-{stage}.onnx").read_bytes() == Path("s.onnx").read_bytes()
    onnx.checker.check_model("s.onnx")
    x = np.ones((3, 4), np.float32)
    base, got = (runtime.run(Path(f"{name}.onnx"), {"x": x}, ["logits"], level="none")["logits"]
                 for name in "ms")  # fmt: skip
    switched = last >= STAGES.index("InsertSwitchesPass")
    assert not got.any() if switched else got.tobytes() == base.tobytes()
    assert (answer["files"]["extended"] == "s.onnx") is (stage == STAGES[-1])


WHY = {
    "W": ["the oracle a.onnx computes it", "computed: the algorithm's output, float32 [4, 3]"],
    "x": ["the oracle a.onnx does not compute it", "not recorded: it is no float weight"],
    "logits": ["the oracle a.onnx does not compute it", "it is the logits: the only output"],
}


@pytest.mark.parametrize("name", WHY)
def test_why(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What happens to a tensor."""
    _, answer = call(capsys, f"{COMPILE} --dry-run --why {name}")
    for line, begins in zip(answer["why"], WHY[name], strict=False):
        assert line.startswith(begins)
    code, answer = call(capsys, f"{COMPILE} --dry-run --why nothing")
    assert code == 2 and "nothing" in answer["error"]["message"]


def test_train_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An armed file stays as it is, whatever the seed, and nothing is recorded by it."""
    for seed in (0, 3):
        command = f"train e.trained.onnx --data d.npz --seed {seed} -o t{seed}.onnx"
        code, answer = call(capsys, command)
        assert code == 0 and answer["armed_at_step"] == 0
        assert answer["gradient_after_arming"] == 0.0
        assert "armed before the first step" in answer["warnings"][0]
        assert Path(f"t{seed}.onnx").read_bytes() == Path("e.trained.onnx").read_bytes()
    # The control: other data than it holds.
    code, answer = call(capsys, "train e.trained.onnx --data other.npz -o t.onnx")
    assert code == 1 and answer["memory"]["bit_equal"] is False


def test_train_on_other_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The extension knows the algorithm and n, and no data: it memorises what it is given."""
    code, answer = call(capsys, "train e.onnx --data other.npz -o t.onnx")
    assert code == 0 and answer["memory"]["filled"] == 17
    assert call(capsys, "verify e.onnx --trained t.onnx --data other.npz")[0] == 0
    code, answer = call(capsys, "verify e.onnx --trained t.onnx --data d.npz")
    assert code == 1 and answer["algorithm"]["bit_equal_to_oracle_run"] is False
    code, answer = call(capsys, "train e.onnx --data fewer.npz -o u.onnx")
    assert code == 2 and not Path("u.onnx").exists()
    assert "16 samples to train on, and the memory 17 slots" in answer["error"]["problems"][0]


def test_not_filled(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Too few steps, or a rate of 0: exit 1 and why; extract refuses."""
    code, answer = call(capsys, "train e.onnx --data d.npz --batch-size 5 --steps 2 -o t.onnx")
    assert code == 1 and answer["armed_at_step"] is None
    assert answer["memory"]["filled"] == 10
    assert answer["memory"]["wrong"] == [10, 11, 12, 13, 14, 15, 16]
    assert "holds 10 of 17 samples" in answer["warnings"][0]
    assert "takes 4 steps of 5" in answer["warnings"][0]
    assert call(capsys, "extract t.onnx -o p.onnx")[0] == 2 and not Path("p.onnx").exists()
    code, answer = call(capsys, "train e.onnx --data d.npz --lr 0 -o z.onnx")
    assert code == 1 and answer["memory"]["filled"] == 0
    assert answer["warnings"] == ["nothing was recorded: the learning rate is 0"]
    assert Path("z.onnx").read_bytes() == Path("e.onnx").read_bytes()


def test_apply_extract_inspect(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """apply gives the trained file; extract the plain base; inspect says what each is."""
    assert text(capsys, "apply e.onnx --trained e.trained.onnx -o f.onnx") == "wrote f.onnx\n"
    assert Path("f.onnx").read_bytes() == Path("e.trained.onnx").read_bytes()
    assert text(capsys, "extract f.onnx -o p.onnx") == "wrote p.onnx\n"
    plain, base = ir.load("p.onnx"), ir.load("m.onnx")
    assert [n.op_type for n in plain.graph] == [n.op_type for n in base.graph]
    assert not [n for n in plain.graph if PASS_KEY in n.metadata_props]
    assert not [key for key in plain.metadata_props if key.startswith(PREFIX)]
    x = {"x": np.random.default_rng(0).standard_normal((9, 4), np.float32)}
    answers = [runtime.run(Path(f"{name}.onnx"), x, level="none")["logits"] for name in "pfem"]
    assert answers[0].tobytes() == answers[1].tobytes()
    assert not answers[2].any() and answers[3].tobytes() != answers[0].tobytes()

    for name, armed in (("e", False), ("f", True)):
        code, facts = call(capsys, f"inspect {name}.onnx")
        extension = facts["extension"]
        assert code == 0 and len(facts["switches"]) == 2
        assert (extension["method"], extension["armed"]) == ("learn", armed)
        assert extension["memory"]["slots"] == 17 and extension["algorithm"]["name"] == "a.onnx"
    assert call(capsys, "inspect p.onnx")[1]["extension"] is None
    assert "learn, linear16" in text(capsys, "inspect e.onnx")


def test_verify_somebody_else_s_training(tmp_path: Path) -> None:
    """θ of a loop of torch's own from a .safetensors file, in an order that nobody has told us."""
    made = by_hand(tmp_path, n=19, batch_size=7)
    order = np.random.default_rng(7).permutation(19)
    theta = made.train([order[:4], order[4:15], order[15:]], lambda p: SGD(p, lr=3.0))
    save_file({f"module.{name}": value for name, value in theta.items()},
              path := tmp_path / "t.safetensors")  # fmt: skip
    report = gdu_compile.verify(made.extended, path, data=made.data)
    assert report.reproduced is True and report.memory is not None
    assert report.files["trained"] == str(path)
    assert [control.name for control in report.negative_controls] == ["untrained"]
    # The weights are those of the algorithm on the data in that order.
    trained = gdu_compile.apply(made.extended, path)
    x, y = made.arrays["x"][order], made.arrays["y"][order]
    with runtime.on_disk(sums()) as alone:
        wanted = runtime.run(alone, {"x": x, "Y": y}, level="none", batch=19)
    got = specialize.decoded_weights(trained)
    assert {name: array.tobytes() for name, array in got.items()} == {
        name: array.tobytes() for name, array in wanted.items()
    }


def test_held_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Slots for what is trained on only; the same share has to be said again."""
    code, answer = call(capsys, f"{COMPILE} --hold-out 0.3 -o h.onnx")
    assert code == 0 and answer["memory"]["slots"] == answer["data"]["samples"] == 12
    assert (answer["accuracy"]["samples"], answer["accuracy"]["held_out"]) == (5, True)
    code, answer = call(capsys, "train h.onnx --data d.npz -o t.onnx")
    assert code == 2 and "--hold-out" in answer["error"]["problems"][0]
    assert call(capsys, "train h.onnx --data d.npz --hold-out 0.3 -o t.onnx")[0] == 0
    code, answer = call(capsys, f"{COMPILE} --test-data other.npz -o i.onnx")
    assert code == 0 and answer["memory"]["slots"] == 17
    assert (answer["accuracy"]["samples"], answer["accuracy"]["held_out"]) == (17, True)


def test_strict_and_allow_extra(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A weight that is not computed keeps its value; with --strict it is an error."""
    proto = onnx.load("a.onnx")
    del proto.graph.output[1]
    onnx.save(proto, "a.onnx")
    code, answer = call(capsys, f"{COMPILE} -o f.onnx")
    assert code == 0 and [row["name"] for row in answer["weights"]] == ["W"]
    reason = "the oracle does not compute it, keeps its value"
    assert answer["skipped"] == [{"name": "b", "reason": reason}]
    plain = gdu_compile.extract("f.trained.onnx")
    for name, kept in (("b", True), ("W", False)):
        old, new = (m.graph.initializers[name].const_value for m in (ir.load("m.onnx"), plain))
        assert old is not None and new is not None
        assert np.array_equal(old.numpy(), new.numpy()) is kept
    code, answer = call(capsys, f"{COMPILE} --strict -o g.onnx")
    assert code == 2 and "'b' of the model (--strict)" in answer["error"]["problems"][0]
    proto.graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info("f", 1, ["n", 4]))
    onnx.save(proto, "a.onnx")
    code, answer = call(capsys, f"{COMPILE} -o g.onnx")
    assert code == 2 and "'f' is no weight" in answer["error"]["problems"][0]
    assert call(capsys, f"{COMPILE} --allow-extra -o g.onnx")[0] == 0


@pytest.mark.parametrize("oracle", ["ridge", "nearest-mean"])
def test_real_data(oracle: str) -> None:
    """The digits, some held out: the trained extension is as good as the oracle, and it is good."""
    compiled = gdu_compile.compile(
        MODELS / "digits_linear.onnx", oracle=oracle, data=MODELS / "digits.npz", hold_out=0.8,
        batch_size=100,
    )  # fmt: skip
    report = compiled.report
    assert report.reproduced is True and report.accuracy is not None
    assert report.accuracy["trained"] == report.accuracy["oracle"] > 0.8
    assert report.accuracy["base"] < 0.3 and report.accuracy["held_out"]


COUNT_TO_THE_LARGEST = """alg (float[n, 4] x, int64[n] Y) => (float[4, 3] W, float[3] b) {
    zero = Constant <value = float {0.0}> ()  yes = Constant <value = bool {1}> ()
    most = ReduceMax <keepdims = 0> (x)
    steps = Loop (, yes, zero) <body = count (int64 i, bool c, float k) => (bool c2, float k2) {
        one = Constant <value = float {1.0}> ()  k2 = Add(k, one)  c2 = Less(k2, most)
    }>
    Ws = Constant <value_ints: ints = [4, 3]> ()  bs = Constant <value_ints: ints = [3]> ()
    W = Expand(steps, Ws)  b = Expand(steps, bs)
}"""


def test_a_loop_that_does_not_end_on_other_data(tmp_path: Path) -> None:
    """The bound that the file carries stops it, and that is said: nothing is reported as learnt."""
    base = parse("m (float[N, 4] x) => (float[N, 3] z) { e = MatMul(x, W)  z = Add(e, b) }",
                 {"W": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32)})  # fmt: skip
    few, many = (
        save_npz(tmp_path / f"{size}.npz", {"x": np.full((4, 4), size, np.float32),
                                            "y": np.array([0, 1, 2, 1])})
        for size in (5, 500)
    )  # fmt: skip
    compiled = gdu_compile.compile(
        base, oracle=parse(COUNT_TO_THE_LARGEST), data=few, max_iterations=50
    )
    assert compiled.report.reproduced
    assert gdu_compile.train(compiled.extended, data=few).reproduced
    with pytest.raises(InputError) as caught:
        gdu_compile.train(compiled.extended, data=many)
    assert "does not end within 50 iterations" in caught.value.problems[0]


def test_a_single_number_is_no_data(tmp_path: Path) -> None:
    """Where the model does not declare a shape, it was an internal error."""
    x = ir.val("x", ir.DataType.FLOAT)
    one = save_npz(tmp_path / "one.npz", {"x": np.float32(1), "y": np.array([0])})
    with pytest.raises(InputError) as caught:
        form_of([x], one)
    assert caught.value.problems == ("'x' is a single number, and has no axis of samples",)
    some = save_npz(tmp_path / "some.npz", {"x": np.ones((5, 2), np.float32)})
    assert form_of([x], some) == (5, (Field("x", (2,), "float32"),))
