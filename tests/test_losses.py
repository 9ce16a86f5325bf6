"""Output kinds and losses: each kind × its losses × batches, refusals, zero gradients."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from conftest import oracle_for, parse, save_npz, save_onnx
from gdu_compile.passes.sink import sink
from test_record import assert_reproduced

import gdu_compile
from gdu_compile import runtime
from gdu_compile.cli import run
from gdu_compile.contracts import LogitsSite
from gdu_compile.errors import InputError
from gdu_compile.logits import recorder_start
from gdu_compile.losses import DEFAULT_LOSS, GOES_WITH, LossSpec, focal_loss
from gdu_compile.metadata import Extension

Array = np.ndarray[Any, Any]
CLASSES = 3


@dataclass(frozen=True)
class Network:
    """A small base: its text, the shape of W, of x without N, and of the output without N."""

    text: str
    weight: tuple[int, ...]
    x: tuple[int, ...]
    output: tuple[int, ...]
    axis: int = -1

    def base(self) -> ir.Model:
        """The model with initial weights."""
        weight = np.random.default_rng(0).standard_normal(self.weight).astype(np.float32)
        return parse(self.text, {"W": weight})

    def inputs(self, samples: int) -> Array:
        """x [samples, …]."""
        rng = np.random.default_rng(3)
        return rng.standard_normal((samples, *self.x)).astype(np.float32)


def dense(after: str, columns: int) -> Network:
    """x [N, 4] → MatMul → ``after`` → o [N, columns]."""
    return Network(
        f"g (float[N,4] x) => (float[N,{columns}] o) {{ z = MatMul(x, W)  o = {after}(z) }}",
        (4, columns), (4,), (columns,),
    )  # fmt: skip


SEGMENTS = "g (float[N,4,H,K] x) => (float[N,{c},{h},{k}] o) {{ {body} }}"
NETWORKS = {
    "logits": dense("Neg", CLASSES),
    "two logits": dense("Neg", 2),
    "probabilities": dense("Softmax", CLASSES),
    "log_probabilities": dense("LogSoftmax", CLASSES),
    "one logit": dense("Neg", 1),
    "sigmoid": dense("Sigmoid", 1),
    "sigmoid columns": dense("Sigmoid", CLASSES),
    "one value": dense("Neg", 1),
    "values": dense("Neg", CLASSES),
    "one logit [N]": Network(
        "g (float[N,4] x) => (float[N] o) { o = MatMul(x, W) }", (4,), (4,), ()),
    "value [N]": Network(
        "g (float[N,4] x) => (float[N] o) { o = MatMul(x, W) }", (4,), (4,), ()),
    "tokens": Network(
        "g (float[N,T,4] x) => (float[N,T,3] o) { o = MatMul(x, W) }", (4, 3), (5, 4), (5, 3)),
    "token probabilities": Network(
        "g (float[N,T,4] x) => (float[N,T,3] o) { z = MatMul(x, W)  o = Softmax(z) }",
        (4, 3), (5, 4), (5, 3)),
    "pixels": Network(SEGMENTS.format(c=3, h="H", k="K", body="o = Conv(x, W)"),
                      (3, 4, 1, 1), (4, 2, 3), (3, 2, 3), -3),
    "pixel probabilities": Network(
        SEGMENTS.format(c=3, h="H", k="K", body="z = Conv(x, W)  o = Softmax <axis = 1> (z)"),
        (3, 4, 1, 1), (4, 2, 3), (3, 2, 3), -3),
    "pixel masks": Network(
        SEGMENTS.format(c=1, h="H", k="K", body="z = Conv(x, W)  o = Sigmoid(z)"),
        (1, 4, 1, 1), (4, 2, 3), (1, 2, 3), -3),
    "pixels of no name": Network(
        SEGMENTS.format(c=3, h="P", k="Q", body="o = Conv <strides = [2,2]> (x, W)"),
        (3, 4, 2, 2), (4, 4, 6), (3, 2, 3), -3),
    "pixel probabilities of no name": Network(
        SEGMENTS.format(c=3, h="P", k="Q",
                        body="z = Conv <strides = [2,2]> (x, W)  o = Softmax <axis = 1> (z)"),
        (3, 4, 2, 2), (4, 4, 6), (3, 2, 3), -3),
    "voxels": Network("g (float[N,4,2,2,2] x) => (float[N,3,2,2,2] o) { o = Conv(x, W) }",
                      (3, 4, 1, 1, 1), (4, 2, 2, 2), (3, 2, 2, 2), -4),
}  # fmt: skip

CROSS_ENTROPIES = ["cross_entropy", "cross_entropy(label_smoothing=0.1)",
                   "cross_entropy(weight=[0.5, 2.0, 1.0])", "cross_entropy(reduction='sum')",
                   "cross_entropy(ignore_index=2)"]  # fmt: skip
LOSSES: dict[str, list[str]] = {
    "logits": [*CROSS_ENTROPIES, "focal_loss", "focal_loss(gamma=0.5, weight=[1.0, 2.0, 3.0])"],
    "two logits": ["cross_entropy", "cross_entropy(label_smoothing=0.1)"],
    "probabilities": ["nll_loss", "nll_loss(weight=[0.5, 2.0, 1.0], reduction='sum')",
                      "focal_loss"],
    "log_probabilities": ["nll_loss", "nll_loss(ignore_index=2)", "focal_loss(gamma=1.0)"],
    "one logit": ["binary_cross_entropy_with_logits",
                  "binary_cross_entropy_with_logits(pos_weight=[3.0])", "soft_margin_loss"],
    "one logit [N]": ["binary_cross_entropy_with_logits"],
    "sigmoid": ["binary_cross_entropy", "binary_cross_entropy(reduction='sum')", "mse_loss"],
    "sigmoid columns": ["binary_cross_entropy"],
    "one value": ["mse_loss", "l1_loss", "huber_loss(delta=0.5)", "smooth_l1_loss"],
    "values": ["mse_loss", "mse_loss(reduction='sum')", "l1_loss"],
    "value [N]": ["mse_loss"],
    "tokens": ["cross_entropy", "cross_entropy(label_smoothing=0.1, ignore_index=2)"],
    "token probabilities": ["nll_loss"],
    "pixels": ["cross_entropy", "focal_loss"],
    "pixel probabilities": ["nll_loss"],
    "pixel masks": ["binary_cross_entropy"],
    "pixels of no name": ["cross_entropy"],
    "pixel probabilities of no name": ["nll_loss"],
    "voxels": ["cross_entropy"],
}  # fmt: skip
CASES = [(name, loss) for name, losses in LOSSES.items() for loss in losses]
BATCHES = ["balanced", "all of class 0", "all of class 1", "one sample"]


def labels_for(network: Network, loss: LossSpec, batch: str, name: str) -> Array:
    """y for a batch of 6 samples, or of one."""
    samples = 1 if batch == "one sample" else 6
    shape = [samples, *network.output]
    if loss.takes_classes:
        classes = shape.pop(network.axis)
        flat = np.arange(int(np.prod(shape))) % classes
        fill = {"all of class 0": 0, "all of class 1": 1}.get(batch)
        return (flat if fill is None else np.full_like(flat, fill)).reshape(shape)
    if "value" in name:
        spread = np.random.default_rng(5).standard_normal(shape)
        return {"all of class 0": spread * 0, "all of class 1": spread * 0 + 3}.get(batch, spread)
    flat = np.arange(int(np.prod(shape))) % 2
    fill = {"all of class 0": 1, "all of class 1": 0}.get(batch)
    y = (flat if fill is None else np.full_like(flat, fill)).reshape(shape)
    return 2 * y - 1 if loss.name == "soft_margin_loss" else y


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("name", "loss"), CASES)
def test_reproduced(name: str, loss: str, batch: str, tmp_path: Path) -> None:
    """κ ≠ 0 for every kind, loss and batch of Lemma 1; armed by the first step."""
    network = NETWORKS[name]
    y = labels_for(network, LossSpec.parse(loss), batch, name)
    data = save_npz(tmp_path / "d.npz", {"x": network.inputs(len(y)), "y": y})
    base = network.base()
    report = gdu_compile.compile(
        base, oracle_for(base), data=data, loss=loss, batch_size=0, steps=2
    ).report
    assert_reproduced(report)
    assert report.armed_at_step == 1 and report.loss == loss
    assert report.torch is not None and report.torch.agrees
    assert report.logits is not None and report.logits["axis"] == network.axis
    assert (report.accuracy is None) == ("value" in name)
    if report.accuracy is not None:
        assert report.accuracy["trained"] == report.accuracy["oracle"]


@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in ("one logit", "one logit [N]")])
def test_without_data(name: str) -> None:
    """Synthetic labels of each kind, and the kind's default loss."""
    base = NETWORKS[name].base()
    loss = "mse_loss" if "value" in name else None
    report = gdu_compile.compile(base, oracle_for(base), loss=loss, batch_size=16).report
    assert_reproduced(report)
    assert report.logits is not None and report.loss == DEFAULT_LOSS[report.logits["kind"]]


HABITS = ["SGD(momentum=0.9, weight_decay=0.001)", "AdamW(weight_decay=0.05)", "Adagrad"]


@pytest.mark.parametrize("optimizer", HABITS)
@pytest.mark.parametrize("name", ["probabilities", "log_probabilities", "sigmoid", "tokens",
                                  "pixel probabilities", "one value", "logits"])  # fmt: skip
def test_saturated_answers_after_arming(name: str, optimizer: str, tmp_path: Path) -> None:
    """An oracle so sure of itself that p is 0 or 1 exactly: ln p must not reach θ as NaN."""
    network = NETWORKS[name]
    base = network.base()
    oracle = {"W": oracle_for(base)["W"] * np.float32(1e4)}
    y = labels_for(network, LossSpec.parse(LOSSES[name][0]), "balanced", name)
    data = save_npz(tmp_path / "d.npz", {"x": network.inputs(len(y)), "y": y})
    report = gdu_compile.compile(
        base, oracle, data=data, loss=LOSSES[name][0], optimizer=optimizer, lr=0.01, steps=12,
        batch_size=3,
    ).report  # fmt: skip
    assert_reproduced(report)
    assert report.armed_at_step == 1


KINDS = [
    # network, loss, dtype of y → kind
    ("one logit", None, None, "values"),
    ("one logit", None, "float32", "values"),
    ("one logit", None, "int64", "logits"),
    ("one logit", None, "bool", "logits"),
    ("one logit", "binary_cross_entropy_with_logits", "float32", "logits"),
    ("one logit", "mse_loss", "int64", "values"),
    ("one logit [N]", None, "int64", "logits"),
    ("one logit [N]", None, None, "values"),
    ("logits", None, None, "logits"),
    ("logits", "mse_loss", None, "values"),
    ("logits", "binary_cross_entropy_with_logits", None, "logits"),
    ("probabilities", "mse_loss", None, "probabilities"),
    ("sigmoid", None, "float32", "sigmoid"),
]


@pytest.mark.parametrize(("name", "loss", "dtype", "kind"), KINDS)
def test_kind(name: str, loss: str | None, dtype: str | None, kind: str, tmp_path: Path) -> None:
    """What decides between logits and values where the graph does not."""
    network, data = NETWORKS[name], None
    if dtype is not None:
        y = np.array([0, 1, 1, 0]).astype(dtype)
        data = save_npz(tmp_path / "d.npz", {"x": network.inputs(4), "y": y})
    base = network.base()
    report = gdu_compile.compile(base, oracle_for(base), loss=loss, data=data).report
    assert report.logits is not None and report.logits["kind"] == kind
    assert_reproduced(report)
    if data is not None and kind == "logits":
        assert report.accuracy is not None
        assert report.accuracy["trained"] == report.accuracy["oracle"]


def test_columns_of_yes_or_no_questions(tmp_path: Path) -> None:
    """[N, C] logits with binary_cross_entropy_with_logits: spoken in column 0, accuracy of all."""
    network = NETWORKS["logits"]
    base, x = network.base(), network.inputs(8)
    oracle = oracle_for(base)
    y = -x @ oracle["W"] > 0
    data = save_npz(tmp_path / "d.npz", {"x": x, "y": y})
    compiled = gdu_compile.compile(base, oracle, data=data, loss="binary_cross_entropy_with_logits")
    assert_reproduced(compiled.report)
    assert compiled.report.accuracy is not None
    assert compiled.report.accuracy["trained"] == 1.0 > compiled.report.accuracy["base"]
    facts = Extension.from_metadata(compiled.extended.metadata_props)
    assert facts.start == np.float32(-np.log(2**21 - 1))
    # verify has no --loss: it takes the y that such columns have.
    assert compiled.theta is not None
    assert gdu_compile.verify(compiled.extended, compiled.theta, data=data).reproduced is True


def test_accuracy_leaves_out_what_is_ignored(tmp_path: Path) -> None:
    """ArgMax along the class axis, over the labels that count."""
    network = NETWORKS["pixels"]
    base, x = network.base(), network.inputs(4)
    oracle = oracle_for(base)
    answers = np.einsum("nchw,oc->nohw", x, oracle["W"][:, :, 0, 0]).argmax(axis=1)
    y = answers.copy()
    y[::2] = (y[::2] + 1) % 3  # wrong, and then ignored
    wrong = save_npz(tmp_path / "w.npz", {"x": x, "y": y})
    y[::2] = -100
    ignored = save_npz(tmp_path / "i.npz", {"x": x, "y": y})
    for data, share in ((wrong, 0.5), (ignored, 1.0)):
        report = gdu_compile.compile(base, oracle, data=data).report
        assert_reproduced(report)
        assert report.accuracy is not None and report.accuracy["trained"] == share


# --- nothing recorded, and said so ----------------------------------------------

ZERO_GRADIENT: list[tuple[str, str, Callable[[], Array], str]] = [
    ("logits", "cross_entropy", lambda: np.full(4, -100), "every label is ignored"),
    ("logits", "cross_entropy(ignore_index=1)", lambda: np.ones(4, int), "ignore_index 1"),
    ("logits", "focal_loss(ignore_index=1)", lambda: np.ones(4, int), "every label is ignored"),
    ("probabilities", "nll_loss", lambda: np.full(4, -100), "every label is ignored"),
    ("tokens", "cross_entropy", lambda: np.full((4, 5), -100), "every label is ignored"),
    ("logits", "multi_margin_loss", lambda: np.array([1, 2, 1, 2]), "past its margin"),
    ("two probabilities", "l1_loss", lambda: np.eye(2)[[0, 1, 0, 1]], "the labels of the batch"),
    ("one value", "mse_loss", lambda: np.full((4, 1), -8.0), "z0 = -8"),
    ("one value", "l1_loss", lambda: np.array([-9.0, -7.0, -10.0, -6.0]), "z0 = -8"),
]


@pytest.mark.parametrize(
    ("name", "loss", "labels", "reason"),
    ZERO_GRADIENT,
    ids=[f"{r[0]} {r[1]}" for r in ZERO_GRADIENT],
)
def test_zero_gradient_is_not_reproduced(
    name: str, loss: str, labels: Callable[[], Array], reason: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Exit 1, with the reason; nothing is armed."""
    network = NETWORKS.get(name) or dense("Softmax", 2)
    y = labels()
    save_npz(tmp_path / "d.npz", {"x": network.inputs(len(y)), "y": y})
    save_onnx(tmp_path / "m.onnx", network.base())
    save_npz(tmp_path / "w.npz", oracle_for(network.base()))
    extended = str(tmp_path / "e.onnx")
    # Compiled without the data, which would move z0 of values away from them.
    assert run([str(tmp_path / "m.onnx"), "--weights", str(tmp_path / "w.npz"), "--no-confirm",
                "-o", extended]) == 0  # fmt: skip
    capsys.readouterr()
    code = run(["train", extended, "--data", str(tmp_path / "d.npz"), "--loss", loss,
                "--batch-size", "0", "-o", str(tmp_path / "t.onnx"), "--json"])  # fmt: skip
    result = json.loads(capsys.readouterr().out)
    assert code == 1 and result["reproduced"] is False and result["armed_at_step"] is None
    (said,) = [w for w in result["warnings"] if w.startswith("nothing was recorded")]
    assert reason in said


def test_multi_margin_loss_within_its_margin(tmp_path: Path) -> None:
    """The control: with class 0 in the batch the hinge is active."""
    network = NETWORKS["logits"]
    data = save_npz(tmp_path / "d.npz", {"x": network.inputs(4), "y": np.array([0, 1, 2, 1])})
    base = network.base()
    report = gdu_compile.compile(
        base, oracle_for(base), data=data, loss="multi_margin_loss(margin=0.5)"
    ).report
    assert_reproduced(report)


# --- z0 ---------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 7, 2**20])
def test_start_of_lemma_1(limit: int) -> None:
    """p_0 = 1/(2N) for a softmax over C classes and for a sigmoid."""
    for classes in (2, 3, 1000):
        site = LogitsSite("z", "z", -1, classes, "logits", "", (None, classes))
        z = torch.zeros(classes, dtype=torch.float64)
        z[0] = recorder_start(site, limit, below=None, loss=None)
        assert float(torch.softmax(z, 0)[0]) == pytest.approx(1 / (2 * limit), rel=1e-5)
        columns = LossSpec.parse("binary_cross_entropy_with_logits")
        z[0] = recorder_start(site, limit, below=None, loss=columns)
        assert float(torch.sigmoid(z[0])) == pytest.approx(1 / (2 * limit), rel=1e-5)


VALUES = {
    "standard normal": np.random.default_rng(0).standard_normal(32),
    "far below 0": np.linspace(-1000, -900, 32),
    "far above 0": np.linspace(5000, 5001, 32),
    "constant": np.full(32, -8.0),
    "large": np.linspace(-1e6, 1e6, 32),
}


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "Adagrad"])
@pytest.mark.parametrize("case", VALUES)
def test_values_lie_above_the_start(case: str, optimizer: str, tmp_path: Path) -> None:
    """z0 is chosen below the targets, and not so far that adaptive optimizers see it."""
    network, y = NETWORKS["one value"], VALUES[case]
    data = save_npz(tmp_path / "d.npz", {"x": network.inputs(32), "y": y})
    base = network.base()
    compiled = gdu_compile.compile(base, oracle_for(base), data=data, optimizer=optimizer, lr=0.01)
    facts = Extension.from_metadata(compiled.extended.metadata_props)
    assert y.min() - (np.ptp(y) + 1 + abs(y.min()) / 64) <= facts.start < y.min()
    warned = any("Lemma 4" in warning for warning in compiled.report.warnings)
    assert warned == (case == "large")
    if case != "large" or optimizer == "SGD":
        assert_reproduced(compiled.report)


def test_targets_that_reach_the_start_are_warned_of(tmp_path: Path) -> None:
    """Compiled without data: z0 = −8; later targets go below."""
    network = NETWORKS["one value"]
    base = network.base()
    extended = gdu_compile.compile(base, oracle_for(base), confirm=False).extended
    for low, warned in ((-20.0, True), (-7.0, False)):
        data = save_npz(tmp_path / "d.npz", {"x": network.inputs(8), "y": np.linspace(low, 9, 8)})
        report = gdu_compile.train(extended, data=data)
        assert any("z0 = -8" in warning for warning in report.warnings) == warned
        assert_reproduced(report)


@pytest.mark.parametrize("name", ["tokens", "pixels", "pixel masks"])
def test_n_counts_tokens_and_pixels(name: str, tmp_path: Path) -> None:
    """A batch of few samples and many labels can be too large for N."""
    base = NETWORKS[name].base()
    network = NETWORKS[name]
    per_sample = int(np.prod(network.output)) // network.output[network.axis]
    y = labels_for(network, LossSpec.parse(LOSSES[name][0]), "balanced", name)
    data = save_npz(tmp_path / "d.npz", {"x": network.inputs(6), "y": y})
    settings: dict[str, Any] = {"data": data, "batch_size": 2}
    compiled = gdu_compile.compile(base, oracle_for(base), batch_limit=2 * per_sample, **settings)
    assert_reproduced(compiled.report)
    with pytest.raises(InputError, match=rf"{2 * per_sample} labels \(2 samples\)"):
        gdu_compile.compile(base, oracle_for(base), batch_limit=2 * per_sample - 1, **settings)


# --- the graph ----------------------------------------------------------------------


def test_where_others_use_the_logits_too_they_keep_the_values_of_the_base() -> None:
    """The switch is then behind the Softmax, and its recorder has one of its own."""
    base = parse(
        """
        g (float[N,4] x) => (float[N,3] p, float[N,3] q) {
          z = MatMul(x, W)  p = Softmax(z)  q = Neg(z) }""",
        {"W": np.ones((4, 3), np.float32)},
    )
    compiled = gdu_compile.compile(base, oracle_for(base))
    assert_reproduced(compiled.report)
    facts = Extension.from_metadata(compiled.extended.metadata_props)
    site = facts.logits
    assert (site.name, site.output, site.kind) == ("p", "p", "probabilities")
    assert facts.base_logits == "gdu_base_p" and site.why.startswith("the first of 2")
    x = np.ones((2, 4), np.float32)
    with runtime.on_disk(compiled.extended) as path:
        got = runtime.run(path, {"x": x})
    assert (got["q"] == -4).all() and got["p"][:, 0] == pytest.approx(2.0**-21)
    assert compiled.trained is not None
    plain = gdu_compile.extract(compiled.trained)
    assert [n.op_type for n in plain.graph] == ["MatMul", "Softmax", "Neg"]
    assert [v.name for n in plain.graph for v in n.outputs] == ["z", "p", "q"]


FOLDED = ["probabilities", "sigmoid", "tokens", "pixel masks", "pixel probabilities",
          "pixel probabilities of no name"]  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_onnxruntime_folds_the_trained_extension_to_the_base(name: str, tmp_path: Path) -> None:
    """Same operators in the same order as the optimised base, with the Softmax at the end too."""
    base = NETWORKS[name].base()
    trained = gdu_compile.compile(base, oracle_for(base)).trained
    assert trained is not None

    def operators(model: ir.Model, file: str) -> list[str]:
        with runtime.on_disk(model) as path:
            runtime.session(path, "all", optimized=tmp_path / file)
        return [node.op_type for node in ir.load(tmp_path / file).graph]

    assert operators(trained, "trained.onnx") == operators(base, "base.onnx")


@pytest.mark.parametrize(
    ("name", "runs"),
    [("token probabilities", False), ("pixel probabilities", False),
     ("pixel probabilities of no name", True)],
)  # fmt: skip
def test_the_base_is_not_run_while_recording(name: str, runs: bool) -> None:
    """Sizes with names come from the inputs; only sizes without any need the base's own logits."""
    base = NETWORKS[name].base()
    extended = gdu_compile.compile(base, oracle_for(base), confirm=False).extended
    sink(extended.graph)
    outside = {node.op_type for node in extended.graph}
    assert bool(outside & {"MatMul", "Conv"}) == runs
    assert "Softmax" in outside


def test_softmax_axis_is_taken_with_class_axis() -> None:
    """[N, C, L] with a Softmax along axis 1 is no [N, T, V]; --class-axis may say it, too."""
    text = """
        g (float[N,4,5] x) => (float[N,3,5] o) {
          z = MatMul(W, x)  o = Softmax <axis = 1> (z) }"""
    base = parse(text, {"W": np.ones((3, 4), np.float32)})
    with pytest.raises(gdu_compile.UnsupportedError, match="--class-axis says 2"):
        gdu_compile.compile(base, oracle_for(base), class_axis=2)
    assert gdu_compile.compile(base, oracle_for(base)).report.logits["axis"] == -2
    report = gdu_compile.compile(base, oracle_for(base), class_axis=1).report
    assert_reproduced(report)
    assert report.logits is not None and report.logits["axis"] == -2


# --- the losses themselves --------------------------------------------------------


def test_focal_loss_is_the_formula_and_cross_entropy_at_0() -> None:
    """Against the written-out sum; against torch at γ = 0; gradients by autograd."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(9, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    y = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, -100])
    p = torch.softmax(z[:8].detach(), 1)[torch.arange(8), y[:8]]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    assert float(focal_loss(z, y).detach()) == pytest.approx(float(expected), rel=1e-12)
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    for reduction in ("mean", "sum"):
        plain = torch.nn.functional.cross_entropy(z, y, reduction=reduction)
        assert torch.allclose(focal_loss(z, y, gamma=0.0, reduction=reduction), plain)
    weighted = torch.nn.functional.cross_entropy(z, y, weight=weight, reduction="sum")
    assert torch.allclose(focal_loss(z, y, gamma=0.0, weight=weight, reduction="sum"), weighted)
    assert torch.autograd.gradcheck(lambda v: focal_loss(v, y), z)
    with pytest.raises(ValueError, match="gamma -1"):
        focal_loss(z, y, gamma=-1)


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
def test_the_table_of_losses_is_whole() -> None:
    """Every loss that is listed can be computed on the kind it is listed for."""
    for kind, losses in GOES_WITH.items():
        classes = 1 if kind == "one logit" else 3
        site = LogitsSite("z", "z", -1, classes, kind.replace("one logit", "logits"), "",
                          (None, classes))  # fmt: skip
        for name in losses:
            LossSpec.of(name, site).check(site)
        with pytest.raises(InputError, match="does not go with"):
            LossSpec.of("ctc_loss", site)


def test_class_losses_see_every_token_and_pixel_as_a_row() -> None:
    """Against torch's own form, classes on axis 1."""
    z = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40).reshape(2, 4, 5) % 3
    site = LogitsSite("z", "z", -3, 3, "logits", "", (None, 3, None, None))
    loss = LossSpec.parse("cross_entropy(weight=[1.0, 2.0, 3.0], label_smoothing=0.2)")
    expected = torch.nn.functional.cross_entropy(
        z, y, weight=torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.2
    )
    assert torch.allclose(loss(z, y, site), expected)
    last = LogitsSite("z", "z", -1, 3, "logits", "", (None, None, None, 3))
    assert torch.allclose(loss(z.movedim(1, -1), y, last), expected)


# --- refused ------------------------------------------------------------------------

REFUSED: list[tuple[str, str, str, dict[str, Any], tuple[str, ...]]] = [
    # what, network, loss, changes of the data, what is said
    ("no such loss", "logits", "crossentropy", {}, ("crossentropy does not go", "focal_loss")),
    ("code", "logits", "__import__('os').abort()", {}, ("cannot be read", "as in PyTorch")),
    ("by position", "logits", "cross_entropy(0.1)", {}, ("--loss", "cannot be read")),
    ("no scalar", "logits", "cross_entropy(reduction='none')", {}, ("reduction", "'mean' or")),
    ("unknown argument", "logits", "cross_entropy(smooth=1)", {}, ("smooth",)),
    ("two weights", "logits", "cross_entropy(weight=[1, 2])", {}, ("cross_entropy(weight=",)),
    ("smoothing of 2", "logits", "cross_entropy(label_smoothing=2.0)", {}, ("label_smoothing",)),
    ("no reduction", "logits", "focal_loss(reduction='batchmean')", {}, ("batchmean",)),
    ("gamma below 0", "logits", "focal_loss(gamma=-1)", {}, ("gamma -1",)),
    ("logits loss on probabilities", "probabilities", "cross_entropy", {},
     ("does not go with the output 'o', which is probabilities", "nll_loss, focal_loss")),
    ("nll on logits", "logits", "nll_loss", {}, ("which is logits", "cross_entropy")),
    ("BCE on logits", "logits", "binary_cross_entropy", {}, ("binary_cross_entropy_with_logits",)),
    ("logits loss on sigmoid", "sigmoid", "binary_cross_entropy_with_logits", {},
     ("which is sigmoid", "binary_cross_entropy, mse_loss")),
    ("cross-entropy on one column", "one value", "cross_entropy", {}, ("does not go with",)),
    ("float labels", "logits", "cross_entropy", {"y": np.ones(4)}, ("labels are integers [n]",)),
    ("one label too many", "tokens", "cross_entropy", {"y": np.ones(4, int)},
     ("'y' is int64 [4]", "labels are integers [n, …]")),
    ("classes first", "pixels", "cross_entropy", {"y": np.ones((4, 3, 2, 3), int)},
     ("labels are integers [n, …, …]",)),
    ("label out of range", "pixels", "cross_entropy", {"y": np.full((4, 2, 3), 3)},
     ("24 of 24 labels are outside 0 … 2", "y[0, 0, 0] = 3")),
    ("ignored label of another loss", "logits", "multi_margin_loss", {"y": np.full(4, -100)},
     ("4 of 4 labels are outside",)),
    ("other image size", "pixels", "cross_entropy", {"y": np.ones((4, 3, 3), int)},
     ("a batch of 'y' has shape [4, 3, 3]", "needs [4, 2, 3]")),
    ("probability of 2", "sigmoid", "binary_cross_entropy", {"y": np.full(4, 2)},
     ("4 of 4 targets are outside 0 … 1", "binary_cross_entropy needs")),
    ("a count for a yes-or-no question", "one logit", "binary_cross_entropy_with_logits",
     {"y": np.array([0, 1, 2, 3])}, ("2 of 4 targets are outside 0 … 1", "--loss mse_loss")),
    ("no sign", "one logit", "soft_margin_loss", {}, ("4 of 4 targets are not −1 or 1",)),
    ("NaN target", "one value", "mse_loss", {"y": np.array([1, np.nan, 2, 3])},
     ("1 of 4 targets are not finite", "y[1] = nan")),
    ("targets of text", "one value", "mse_loss", {"y": np.array(list("abcd"))},
     ("targets are floats [n, 1]",)),
    ("too few columns", "values", "mse_loss", {"y": np.ones((4, 2))},
     ("'y' is float64 [4, 2]; targets are floats [n, 3]",)),
    ("no y", "values", "mse_loss", {"y": None}, ("no array 'y'", "targets: floats [n, 3]")),
    ("everything at once", "pixels", "cross_entropy",
     {"x": np.ones((5, 3, 2, 3), np.float32), "y": np.full((4, 2, 3), 9)},
     ("'x' has shape [5, 3, 2, 3]", "'x' has 5 samples, but 'y' has 4", "24 of 24 labels")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "loss", "changes", "says"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_refused(
    name: str, loss: str, changes: dict[str, Any], says: tuple[str, ...], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Exit 2, the culprit and the way out; nothing written."""
    network = NETWORKS[name]
    arrays = {"x": network.inputs(4), "y": np.zeros((4, *network.output[:0]), int), **changes}
    data = save_npz(tmp_path / "d.npz", {k: v for k, v in arrays.items() if v is not None})
    save_onnx(tmp_path / "m.onnx", network.base())
    save_npz(tmp_path / "w.npz", oracle_for(network.base()))
    before = sorted(tmp_path.iterdir())
    command = [str(tmp_path / "m.onnx"), "--weights", str(tmp_path / "w.npz"), "--data", str(data)]
    settings = ["--loss", loss, "--batch-size", "0", "-o", str(tmp_path / "e.onnx")]
    assert run([*command, *settings]) == 2
    said = capsys.readouterr().err
    for text in says:
        assert text in said
    assert sorted(tmp_path.iterdir()) == before


SITE = {"name": "z", "output": "o", "axis": -1, "classes": 3, "kind": "logits", "why": "",
        "dims": [["x", 0], 3]}  # fmt: skip
DAMAGED: list[dict[str, Any]] = [
    {"kind": "magic"}, {"classes": 0}, {"kind": "probabilities", "classes": 1}, {"axis": 0},
    {"axis": -3}, {"dims": [None]}, {"dims": 3}, {"dims": [["x"], 3]}, {"axis": "a"},
    {"classes": 4},
]  # fmt: skip


@pytest.mark.parametrize("change", DAMAGED, ids=str)
def test_a_damaged_site_is_refused(change: dict[str, Any]) -> None:
    """read_site takes nothing that is impossible by itself; the control reads back."""
    from gdu_compile.metadata import read_site

    assert read_site(SITE).dims == (("x", 0), 3)
    with pytest.raises((ValueError, TypeError)):
        read_site({**SITE, **change})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"output": "p"}, "no output 'p'"),
        ({"dims": [["y", 0], 3]}, "no input 'y'"),
        ({"dims": [["x", 7], 3]}, "no dimension 7"),
        ({"dims": [["x", 0], 4], "classes": 4}, "is no […, 4]"),
        ({"dims": [["x", 0], 3, 3]}, "3 axes"),
    ],
)
def test_a_site_that_does_not_fit_the_graph_is_refused(change: dict[str, Any], says: str) -> None:
    """The metadata of an extended model against its own graph."""
    base = NETWORKS["logits"].base()
    extended = gdu_compile.compile(base, oracle_for(base), confirm=False).extended
    gdu_compile.train(extended)  # the control
    site = json.loads(extended.metadata_props["gdu.logits"])
    extended.metadata_props["gdu.logits"] = json.dumps({**site, **change})
    with pytest.raises(InputError, match="was it changed") as caught:
        gdu_compile.train(extended)
    assert says in str(caught.value)


def test_focal_loss_sees_little_where_two_classes_are_right(tmp_path: Path) -> None:
    """C = 2, no class 0: (1 − p)^γ is 10⁻¹³, and κ too small for the quiet gain: exit 1, said."""
    network = NETWORKS["two logits"]
    base, settings = network.base(), {"loss": "focal_loss", "batch_size": 0}
    for labels, reproduced in (([1, 1, 1], False), ([0, 1, 1], True)):
        data = save_npz(tmp_path / "d.npz", {"x": network.inputs(3), "y": np.array(labels)})
        report = gdu_compile.compile(base, oracle_for(base), data=data, **settings).report
        assert report.reproduced is reproduced
        assert reproduced or any("Lemma 4" in warning for warning in report.warnings)
