"""What comes out as files: determinism, folding in onnxruntime, apply, verify, extract."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import MODELS, REAL, mlp, oracle_for, save_onnx
from safetensors.numpy import save_file

import gdu_compile
from gdu_compile import model_io, runtime, specialize
from gdu_compile.arrays import read_arrays
from gdu_compile.metadata import Extension


@pytest.fixture(scope="module", params=REAL)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with NAME.gdu.onnx and NAME.gdu.trained.onnx of a real model."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    report = gdu_compile.compile(
        MODELS / f"{name}.onnx", MODELS / f"{name}.oracle.npz", data=MODELS / "digits.npz",
        output=folder / f"{name}.gdu.onnx",
    ).report  # fmt: skip
    assert report.reproduced is True
    return folder


def extended_in(folder: Path) -> Path:
    """NAME.gdu.onnx."""
    return next(p for p in folder.glob("*.gdu.onnx"))


def trained_in(folder: Path) -> Path:
    """NAME.gdu.trained.onnx."""
    return next(p for p in folder.glob("*.gdu.trained.onnx"))


def base_with_oracle(name: str, path: Path) -> Path:
    """The original file with w* in it, written with onnx alone."""
    proto = onnx.load(MODELS / f"{name}.onnx")
    with np.load(MODELS / f"{name}.oracle.npz") as oracle:
        for tensor in proto.graph.initializer:
            if tensor.name in oracle:
                array = onnx.numpy_helper.from_array(oracle[tensor.name], tensor.name)
                tensor.CopyFrom(array)
    onnx.save(proto, path)
    return path


def operators(path: Path, folder: Path) -> Counter[str]:
    """Operators that onnxruntime keeps after optimising."""
    optimized = folder / f"{path.stem}.optimized.onnx"
    runtime.session(path, "all", optimized=optimized)
    return Counter(node.op_type for node in onnx.load(optimized).graph.node)


def test_onnxruntime_folds_the_trained_extension_to_the_base(
    compiled: Path, tmp_path: Path
) -> None:
    """Operator list and outputs are the base's; the untrained extension keeps its own."""
    name = compiled.name.rstrip("0123456789")
    base = base_with_oracle(name, tmp_path / "base.onnx")
    folded = operators(trained_in(compiled), tmp_path)
    assert folded == operators(base, tmp_path)
    assert operators(extended_in(compiled), tmp_path) != folded
    with np.load(MODELS / "digits.npz") as data:
        x = data["x"]
    for level in runtime.LEVELS:
        a = runtime.run(trained_in(compiled), {"x": x}, level=level)["logits"]
        b = runtime.run(base, {"x": x}, level=level)["logits"]
        assert np.array_equal(a.view(np.uint32), b.view(np.uint32))


def test_the_trained_file_is_the_extended_file_with_theta_filled_in(compiled: Path) -> None:
    """Nothing else changes."""
    extended, trained = onnx.load(extended_in(compiled)), onnx.load(trained_in(compiled))
    changed = [
        old.name
        for old, new in zip(extended.graph.initializer, trained.graph.initializer, strict=True)
        if old != new
    ]
    assert changed == ["gdu_theta_0"]
    del extended.graph.initializer[:], trained.graph.initializer[:]
    assert extended == trained


def test_extract_gives_the_plain_network(compiled: Path, tmp_path: Path) -> None:
    """Original nodes, no trace of the extension, w* bit for bit, from the trained file alone."""
    name = compiled.name.rstrip("0123456789")
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(trained_in(compiled).read_bytes())
    plain = tmp_path / "plain.onnx"
    gdu_compile.extract(alone, output=plain)
    original, got = onnx.load(MODELS / f"{name}.onnx"), onnx.load(plain)
    assert [n.SerializeToString() for n in got.graph.node] == [
        n.SerializeToString() for n in original.graph.node
    ]
    assert got.graph.input == original.graph.input and got.graph.output == original.graph.output
    assert b"gdu_" not in plain.read_bytes() and b"gdu." not in plain.read_bytes()
    with np.load(MODELS / f"{name}.oracle.npz") as oracle:
        weights = {t.name: onnx.numpy_helper.to_array(t) for t in got.graph.initializer}
        for key in oracle:
            assert np.array_equal(weights[key].view(np.uint32), oracle[key].view(np.uint32))
    assert set(weights) == {t.name for t in original.graph.initializer}


def test_decoders_agree(compiled: Path) -> None:
    """onnxruntime's decoded weights are those of the numpy code, from the same θ."""
    trained = model_io.load(trained_in(compiled))
    facts = Extension.from_metadata(trained.metadata_props)
    decoded = specialize.decoded_weights(trained)
    for bucket, slot in facts.slots():
        theta = trained.graph.initializers[bucket.theta].const_value.numpy()
        encoding = bucket.encoding(facts.code)
        digits = encoding.code.quantize(encoding.code.ratio(theta, facts.gain))
        rows = digits[slot.offset : slot.offset + slot.elements]
        weight = encoding.join(rows, slot.shape)
        assert np.array_equal(weight.view(np.uint32), decoded[slot.weight].view(np.uint32))


@pytest.mark.parametrize("form", ["safetensors", "npz", "onnx", "wrapped names"])
def test_verify_and_apply_take_theta_from_anybody(
    compiled: Path, tmp_path: Path, form: str
) -> None:
    """With nothing but the files; apply writes the very file that compile wrote."""
    trained = model_io.load(trained_in(compiled))
    theta = {"gdu_theta_0": trained.graph.initializers["gdu_theta_0"].const_value.numpy()}
    if form == "onnx":
        path = trained_in(compiled)
    elif form == "npz":
        path = tmp_path / "t.npz"
        np.savez_compressed(path, **theta, unrelated=np.zeros(3))
    else:
        path = tmp_path / "t.safetensors"
        prefix = "module." if form == "wrapped names" else ""
        save_file({prefix + name: array for name, array in theta.items()}, path)
    report = gdu_compile.verify(extended_in(compiled), path, data=MODELS / "digits.npz")
    assert report.reproduced is True
    assert [(c.name, c.reproduced) for c in report.negative_controls] == [("untrained", False)]
    output = tmp_path / "applied.onnx"
    gdu_compile.apply(extended_in(compiled), path, output=output)
    assert output.read_bytes() == trained_in(compiled).read_bytes()


def test_verify_does_not_believe_wrong_theta(compiled: Path) -> None:
    """Negative control: one flipped digit, and an untrained θ."""
    trained = model_io.load(trained_in(compiled))
    theta = trained.graph.initializers["gdu_theta_0"].const_value.numpy().copy()
    theta[5, 1] += 2 * theta[0, 1]  # the next digit
    report = gdu_compile.verify(extended_in(compiled), {"gdu_theta_0": theta})
    assert report.reproduced is False
    assert [row.bit_equal for row in report.weights].count(False) == 1
    report = gdu_compile.verify(extended_in(compiled), {"gdu_theta_0": np.zeros_like(theta)})
    assert report.reproduced is False
    assert "the trained θ is not armed: a calibrator is 0" in report.warnings


def test_train_continues_from_the_file_alone(compiled: Path, tmp_path: Path) -> None:
    """The subcommand needs the extended file only; its trained file verifies."""
    output = tmp_path / "t.onnx"
    report = gdu_compile.train(extended_in(compiled), steps=2, lr=5.0, output=output)
    assert report.reproduced is True and report.armed_at_step == 1
    again = gdu_compile.train(output, steps=2)
    assert again.reproduced is True and again.armed_at_step == 0


COMPILE = """
import sys, gdu_compile
gdu_compile.compile("models/digits_mlp.onnx", "models/digits_mlp.oracle.npz",
                    data="models/digits.npz", output=sys.argv[1], steps=2)
"""


def test_same_input_same_bytes_in_two_processes(tmp_path: Path) -> None:
    """Both files, byte for byte, with different hash seeds."""
    sums = []
    for seed in ("1", "2"):
        path = tmp_path / seed / "m.gdu.onnx"
        subprocess.run([sys.executable, "-c", COMPILE, str(path)], check=True,
                       env={"PYTHONHASHSEED": seed, "PATH": ""})  # fmt: skip
        files = sorted(path.parent.iterdir())
        assert [f.name for f in files] == ["m.gdu.onnx", "m.gdu.trained.onnx"]
        sums.append([hashlib.sha256(f.read_bytes()).hexdigest() for f in files])
    assert sums[0] == sums[1]


PLACES = """
import sys, numpy as np, onnx, gdu_compile
model = onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 18]>
g (float[N,3] x) => (float[N,3] z) <float[3] b = {0, 0, 0}, float[3] c = {1, 2, 3}> {
    d = Neg(c) e = Exp(c) [f] p = Add(x, b) [g] q = Mul(p, b) [h] r = Add(q, b) s = Add(r, d)
    z = Mul(s, e)
}''')
onnx.save(model, sys.argv[1] + ".base.onnx")
oracle = {name: np.float32([4, 5, 6]) for name in ("b@f.1", "b@g.1", "b@h.1", "d", "e")}
gdu_compile.compile(sys.argv[1] + ".base.onnx", oracle, untie=True, output=sys.argv[1],
                    confirm=False)
"""


def test_what_becomes_an_initializer_does_so_in_the_same_order(tmp_path: Path) -> None:
    """Single uses and computed values stand in the oracle's order, whatever the hash seed."""
    sums = set()
    for seed in ("1", "2", "3"):
        path = tmp_path / f"{seed}.onnx"
        subprocess.run([sys.executable, "-c", PLACES, str(path)], check=True,
                       env={"PYTHONHASHSEED": seed, "PATH": ""})  # fmt: skip
        sums.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(sums) == 1


def test_large_models_go_to_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit tensors lie beside the model; everything works on from there."""
    monkeypatch.setattr(model_io, "EXTERNAL_BYTES", 1000)
    base = mlp(d=40, h=30)
    path = tmp_path / "m.gdu.onnx"
    report = gdu_compile.compile(base, oracle_for(base), output=path).report
    assert report.reproduced is True
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "m.gdu.onnx", "m.gdu.onnx.data", "m.gdu.trained.onnx", "m.gdu.trained.onnx.data",
    ]  # fmt: skip
    assert gdu_compile.verify(path, tmp_path / "m.gdu.trained.onnx").reproduced is True
    plain = gdu_compile.extract(tmp_path / "m.gdu.trained.onnx", output=tmp_path / "plain.onnx")
    assert sorted(plain.graph.initializers) == ["W1", "W2", "b1", "b2"]


def test_a_base_with_external_data(tmp_path: Path) -> None:
    """Weights beside the base file are read from there."""
    base = mlp(d=40, h=30)
    path = tmp_path / "base.onnx"
    ir.save(base, path, external_data="base.data", size_threshold_bytes=0)
    report = gdu_compile.compile(path, oracle_for(base), output=tmp_path / "m.gdu.onnx").report
    assert report.reproduced is True
    assert not (tmp_path / "m.gdu.onnx.data").exists()


def test_oracle_from_safetensors_and_compressed_npz(tmp_path: Path) -> None:
    """The same weights from three kinds of files give the same extended model."""
    base = save_onnx(tmp_path / "b.onnx", mlp())
    oracle = oracle_for(mlp())
    np.savez(tmp_path / "w.npz", **oracle)
    np.savez_compressed(tmp_path / "c.npz", **oracle)
    save_file(oracle, tmp_path / "w.safetensors")
    written = []
    for name in ("w.npz", "c.npz", "w.safetensors"):
        output = tmp_path / f"{name}.gdu.onnx"
        gdu_compile.compile(base, tmp_path / name, confirm=False, output=output)
        written.append(output.read_bytes())
    assert written[0] == written[1] == written[2]


def test_arrays_are_views_of_the_file(tmp_path: Path) -> None:
    """An uncompressed .npz member is memory-mapped, Fortran order and odd offsets included."""
    values = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "f": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "s": np.array(2.5, dtype=np.float32),
    }
    np.savez(tmp_path / "v.npz", **values)
    for name, header in read_arrays(tmp_path / "v.npz").items():
        array = header.load()
        assert np.array_equal(array, values[name]) and array.shape == values[name].shape
        assert not array.flags.owndata
