"""The torch form: it trains where gdu_compile cannot be imported, and computes the same bits."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from conftest import ALL_MODELS, MODELS, mlp, model_data, oracle_for, parse, save_onnx
from safetensors.numpy import load_file
from safetensors.torch import save_file
from test_control_flow import CASES as CONTROL_FLOW
from test_torch_ops import ALL_CASES, as_torch, excluded, relevant

import gdu_compile
from gdu_compile.cli import run
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.torch_backend import GraphModule, prepared
from gdu_compile.torch_backend.module import to_tensor
from gdu_compile.torch_backend.source import tensors_of, to_source

SAMPLES = 78
LEARN = "nearest-mean"
OPTIMIZERS = ("SGD", "AdamW")


def random_data(name: str, path: Path) -> Path:
    """Random samples and labels in the form of a model's data."""
    rng = np.random.default_rng(3)
    with np.load(model_data(name)) as arrays:
        x, classes = arrays["x"], int(arrays["y"].max()) + 1
    np.savez(path, x=rng.standard_normal((SAMPLES, *x.shape[1:])).astype(x.dtype),
             y=rng.integers(0, classes, SAMPLES).astype(np.int64))  # fmt: skip
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All models with the torch form, and their θ after training without gdu_compile."""
    folder = tmp_path_factory.mktemp("emitted")
    jobs = []
    for name in [*ALL_MODELS, LEARN]:
        base = "digits_linear" if name == LEARN else name
        data = random_data(base, folder / f"{name}.npz")
        chosen: dict[str, Any] = {"weights": MODELS / f"{base}.oracle.npz"}
        if name == LEARN:
            chosen = {"oracle": LEARN, "data": data}
        gdu_compile.compile(MODELS / f"{base}.onnx", **chosen, output=folder / f"{name}.gdu.onnx",
                            emit="both", confirm=False, digits="linear16")  # fmt: skip
        jobs += [{"source": str(folder / f"{name}.gdu.py"), "optimizer": optimizer,
                  "output": str(folder / f"{name}.{optimizer}.safetensors"), "data": str(data)}
                 for optimizer in OPTIMIZERS]  # fmt: skip
    (folder / "jobs.json").write_text(json.dumps(jobs))
    trainer = Path(__file__).with_name("torch_only_trainer.py")
    subprocess.run([sys.executable, trainer, folder / "jobs.json"], check=True, cwd=folder)
    return folder


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", [*ALL_MODELS, LEARN])
def test_trained_without_gdu_compile(name: str, optimizer: str, folder: Path) -> None:
    """Three steps of torch.optim; verify says reproduced, and not when one digit is changed."""
    extended, trained = folder / f"{name}.gdu.onnx", folder / f"{name}.{optimizer}.safetensors"
    data = {"data": folder / f"{name}.npz"} if name == LEARN else {}
    assert gdu_compile.verify(extended, trained, **data).reproduced is True
    if optimizer != "SGD":
        return  # one control a model is enough
    theta = {key: np.array(array) for key, array in load_file(trained).items()}
    first = theta["gdu_theta_0"]
    # One digit more: twice the calibrator, which is in row 0 (record), in column 0 (learn).
    first[1, -1] += 2 * (first[1, 0] if name == LEARN else first[0, -1])
    assert gdu_compile.verify(extended, theta, **data).reproduced is False


def test_verify_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    """Exit code 0, and 1 for a changed digit."""
    extended = str(folder / "digits_mlp.gdu.onnx")
    trained = folder / "digits_mlp.SGD.safetensors"
    assert run(["verify", extended, "--trained", str(trained), "-q"]) == 0
    theta = {key: torch.from_numpy(array.copy()) for key, array in load_file(trained).items()}
    theta["gdu_theta_0"][5, 0] += 2 * theta["gdu_theta_0"][0, 0]
    save_file(theta, tmp_path / "changed.safetensors")
    assert run(["verify", extended, "--trained", str(tmp_path / "changed.safetensors"), "-q"]) == 1


@pytest.mark.parametrize("name", [*ALL_MODELS, LEARN])
def test_same_bits_as_the_module(name: str, folder: Path) -> None:
    """While recording and armed, for batches of any size; nothing of gdu_compile is imported."""
    text = (folder / f"{name}.gdu.py").read_text()
    assert "import gdu_compile" not in text and "from gdu_compile" not in text
    emitted = runpy.run_path(str(folder / f"{name}.gdu.py"))["Model"]()
    module = gdu_compile.to_torch(folder / f"{name}.gdu.onnx")
    with np.load(folder / f"{name}.npz") as arrays:
        x = torch.from_numpy(arrays["x"])
    for theta in (None, load_file(folder / f"{name}.SGD.safetensors")):
        if theta is not None:
            tensors = {key: torch.from_numpy(array) for key, array in theta.items()}
            for each in (emitted, module):
                each.load_state_dict(tensors, strict=False)
        for size in (1, 7):
            assert torch.equal(emitted(x[:size]), module(x[:size]))


def emitted_from(model: ir.Model, folder: Path) -> tuple[Any, GraphModule]:
    """The class of the emitted file, and the module that it has to equal."""
    ready = prepared(model)
    module = GraphModule(ready, ())
    source = folder / "net.py"
    source.write_text(to_source(ready, module, "A model."), encoding="utf-8")
    save_file({name: x.contiguous() for name, x in tensors_of(module).items()},
              source.with_suffix(".safetensors"))  # fmt: skip
    return runpy.run_path(str(source))["Model"](), module


def same(a: Any, b: Any) -> bool:
    """Same dtypes, shapes and bits, NaN included."""
    lists = [list(each) if isinstance(each, tuple) else [each] for each in (a, b)]
    return len(lists[0]) == len(lists[1]) and all(
        x.dtype == y.dtype and x.shape == y.shape and x.numpy().tobytes() == y.numpy().tobytes()
        for x, y in zip(*lists, strict=True)
    )


@pytest.mark.parametrize("case", CONTROL_FLOW)
def test_control_flow(case: str, tmp_path: Path) -> None:
    """If, Loop and Scan as Python's own."""
    text, inputs = CONTROL_FLOW[case]
    emitted, module = emitted_from(parse(text), tmp_path)
    arguments = [to_tensor(ir.Tensor(inputs[name])) for name in module.inputs]
    assert same(emitted(*arguments), module(*arguments))


def one_of_each_operator() -> list[Any]:
    """The first conformance cases of every operator."""
    found: dict[str, Any] = {}
    for case in ALL_CASES:
        if not relevant(case.model) or excluded(case.name):
            continue
        found.setdefault(case.model.graph.node[0].op_type, case)
    return list(found.values())


@pytest.mark.parametrize("case", one_of_each_operator(), ids=lambda case: case.name)
def test_every_operator_is_emitted(case: Any, tmp_path: Path) -> None:
    """The copied functions give the same bits as the table's."""
    emitted, module = emitted_from(ir.from_proto(case.model), tmp_path)
    arguments = [as_torch(value) for value in case.data_sets[0][0]]
    assert same(emitted(*arguments), module(*arguments))


def test_the_operators_are_many() -> None:
    """The table above is not empty."""
    assert len(one_of_each_operator()) > 120


def test_small_constants_keep_their_bits(tmp_path: Path) -> None:
    """−0, ∞, NaN with a sign and a payload, subnormals."""
    words = np.array([0x80000000, 0x7F800000, 0xFFC12345, 1, 0x7F7FFFFF], dtype=np.uint32)
    model = parse("g () => (float[5] y) { y = Identity(c) }", {"c": words.view(np.float32)})
    emitted, _ = emitted_from(model, tmp_path)
    assert emitted().numpy().view(np.uint32).tolist() == words.tolist()
    ordinary = parse("g () => (float[2] y) { y = Identity(c) }",
                     {"c": np.array([-0.0, 1e-45], dtype=np.float32)})  # fmt: skip
    emitted, _ = emitted_from(ordinary, tmp_path)
    assert emitted().numpy().view(np.uint32).tolist() == [0x80000000, 1]


NAMES = ["a\nraise SystemExit('owned')", 'b"""\nraise SystemExit', "class", "__dunder", "ﬁ", "fi",
         "²", "number", "torch", "Model", "forward", "self", "relu", "print", "x y"]  # fmt: skip


def test_names_of_the_model_are_no_code(tmp_path: Path) -> None:
    """Whatever values, weights, inputs, outputs and dimensions are called."""
    model = parse("g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }")
    graph = model.graph
    last = graph.outputs[0]
    graph.outputs.clear()
    for i, name in enumerate(NAMES):
        tensor = ir.tensor(np.full(99 if i % 2 else 1, i, dtype=np.float32)[:, None], name=name)
        weight = ir.Value(name=f"{name}w", const_value=tensor, shape=tensor.shape,
                          type=ir.TensorType(tensor.dtype))  # fmt: skip
        graph.register_initializer(weight)
        total = ir.node("ReduceSum", [weight], {"keepdims": 0}, outputs=[ir.val(f"{name}s")])
        node = ir.node("Add", [last, total.outputs[0]], outputs=[ir.val(name)])
        graph.extend([total, node])
        last = node.outputs[0]
        last.shape = ir.Shape([name, 2])
    graph.outputs.append(last)
    graph.inputs[0].name = "import\nraise SystemExit"
    emitted, module = emitted_from(model, tmp_path)
    x = torch.ones(3, 2)
    assert same(emitted(x), module(x))
    assert float(module(x)[0, 0]) == 1 + sum(i * (99 if i % 2 else 1) for i in range(len(NAMES)))


LONG = 'a name, and = (blanks) "in" it\'s ' * 5
TEXTS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "a string with blanks": ("Einsum", {"equation": "ij, kj" + " " * 90 + " -> ik"}, None),
    "the name of an attribute": ("Relu", {"a=exit('owned'), b": 1}, "without the attribute \"a="),
    "of another domain": ("com.microsoft::Gelu", {"a=exit('owned'), b": 1}, "the attribute \"a="),
    "a graph": ("com.microsoft::Gelu", {"g": ir.Graph([], [], nodes=[], name="exit('owned')")},
                "without the attribute 'g'"),
    "a missing operator": ("Bernoulli", {"seed": 1.0}, "is not in the torch operator table"),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
def test_texts_of_the_model_are_no_code(case: str, tmp_path: Path) -> None:
    """What nodes and their attributes are called and hold, in lines of any length."""
    operator, attributes, message = TEXTS[case]
    domain, _, op_type = operator.rpartition("::")
    x = ir.val("x", ir.DataType.FLOAT, [None, 3])
    inputs = [x, x] if op_type == "Einsum" else [x]
    node = ir.node(op_type, inputs, attributes, domain=domain, name=LONG, outputs=[ir.val("y")])
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 18, "com.microsoft": 1})
    emitted, module = emitted_from(ir.Model(graph, ir_version=10), tmp_path)
    if message is None:
        assert same(emitted(torch.ones(2, 3)), module(torch.ones(2, 3)))
        return
    for each, error in ((emitted, NotImplementedError), (module, UnsupportedError)):
        with pytest.raises(error) as caught:
            each(torch.ones(2, 3))
        assert message in str(caught.value) and repr(LONG) in str(caught.value)


@pytest.mark.parametrize("name", ["_", "-", "nnf", "torch", "load_file"])
def test_names_that_the_file_uses(name: str, tmp_path: Path) -> None:
    """``_`` takes the outputs that nobody reads, nnf.mish is called by Mish."""
    model = parse("""g (float[4] x) => (float[4] y) { d = Neg(x)  v, i = TopK(x, k)  e = Mish(d)
                      f = Cast <to = 1> (i)  t = Add(f, v)  u = Add(t, e)  y = Add(u, d) }""",
                  {"k": np.array([4])})  # fmt: skip
    model.opset_imports[""] = 20
    ir.convenience.rename_values(model.graph.node(0).outputs[0], name)
    emitted, module = emitted_from(model, tmp_path)
    x = torch.tensor([3.0, -1.0, 2.0, 7.0])
    assert same(emitted(x), module(x))


def test_long_names_of_scan_outputs(tmp_path: Path) -> None:
    """The line that stacks them is broken where Python allows it."""
    name = "a_long_name_of_an_output_" * 3
    model = parse(f"""g (float[2] x, int64 n, bool t) => (float[m, 2] {name}) {{
      {name} = Loop (n, t) <body = b (int64 i, bool c) => (bool c2, float[2] {name}_inner) {{
          c2 = Identity(c)  {name}_inner = Neg(x) }}> }}""")  # fmt: skip
    emitted, module = emitted_from(model, tmp_path)
    for steps in (0, 2):
        inputs = (torch.ones(2), torch.tensor(steps), torch.tensor(True))
        assert same(emitted(*inputs), module(*inputs))


def test_a_missing_operator_is_named_when_it_is_reached(tmp_path: Path) -> None:
    """Such a network records, as everywhere."""
    model = parse(
        """g (float[N, 3] x) => (float[N, 2] logits) {
             s = Bernoulli <seed = 1.0> (x)  logits = MatMul(s, W) }""",
        {"W": np.ones((3, 2), dtype=np.float32)},
    )
    ready = prepared(model)
    text = to_source(ready, GraphModule(ready, ()), "A model.")
    assert "raise NotImplementedError(" in text and "Bernoulli" in text


def test_same_bytes(given: dict[str, Any]) -> None:
    """Whatever the order of Python's sets is."""
    gdu_compile.compile(**given, emit="torch")
    files = [given["output"].with_name(f"net.gdu{suffix}") for suffix in (".py", ".safetensors")]
    written = [file.read_bytes() for file in files]
    code = "import sys; from gdu_compile.cli import main; main(sys.argv[1:])"
    command = [
        sys.executable,
        "-c",
        code,
        str(given["model"]),
        "--weights",
        str(given["weights"]),
        "--no-confirm",
        "--emit",
        "torch",
        "-q",
        "-o",
        str(given["output"]),
        "--force",
    ]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "1"})
    assert [file.read_bytes() for file in files] == written


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    """A base, its oracle, and where to write."""
    save_onnx(tmp_path / "net.onnx", mlp())
    np.savez(tmp_path / "w.npz", **oracle_for(mlp()))
    return {"model": tmp_path / "net.onnx", "weights": tmp_path / "w.npz",
            "output": tmp_path / "net.gdu.onnx", "confirm": False}  # fmt: skip


@pytest.mark.parametrize("emit", ["onnx", "torch", "both"])
def test_what_is_written(emit: str, given: dict[str, Any]) -> None:
    """The files, and what the report says about them."""
    report = gdu_compile.compile(**{**given, "confirm": True}, emit=emit).report
    assert report.reproduced is True
    onnx = {"net.gdu.onnx", "net.gdu.trained.onnx"} if emit != "torch" else set()
    forms = {"net.gdu.py", "net.gdu.safetensors"} if emit != "onnx" else set()
    folder = given["output"].parent
    assert {file.name for file in folder.glob("net.gdu.*")} == onnx | forms
    assert (report.files["extended"] is not None) == bool(onnx)
    assert report.files["torch"] == (str(folder / "net.gdu.py") if forms else None)
    modes = {(folder / name).stat().st_mode for name in onnx | forms}
    assert len(modes) == 1  # safetensors alone would keep them from other users


@pytest.mark.parametrize("taken", ["net.gdu.py", "net.gdu.safetensors"])
def test_files_that_exist(taken: str, given: dict[str, Any]) -> None:
    """Replaced with force only; otherwise nothing is written."""
    file = given["output"].with_name(taken)
    file.write_text("mine")
    with pytest.raises(InputError, match="exists; use --force"):
        gdu_compile.compile(**given, emit="both")
    assert file.read_text() == "mine" and not given["output"].exists()
    gdu_compile.compile(**given, emit="both", force=True)
    assert file.read_bytes() != b"mine"


@pytest.mark.parametrize("name", ["net.py", "net.pt2"])
@pytest.mark.parametrize("force", [False, True])
def test_one_name_for_two_files(name: str, force: bool, given: dict[str, Any]) -> None:
    """The ONNX file and the torch form: refused before anything is written."""
    output = given["output"].with_name(name)
    with pytest.raises(InputError, match="would be written twice"):
        gdu_compile.compile(**{**given, "output": output}, emit="both", force=force)
    assert sorted(file.name for file in output.parent.iterdir()) == ["net.onnx", "w.npz"]


def test_inputs_are_not_replaced(given: dict[str, Any]) -> None:
    """Not even with force."""
    weights = given["output"].with_name("net.gdu.safetensors")
    save_file({k: torch.from_numpy(v) for k, v in oracle_for(mlp()).items()}, weights)
    with pytest.raises(InputError, match="is an input of this very run"):
        gdu_compile.compile(**{**given, "weights": weights}, emit="torch", force=True)


BAD_OPTIONS = {
    "no such form": ({"emit": "tf"}, "--emit tf: onnx, torch, both"),
    "half an extension": ({"emit": "torch", "stop_after": "NormalizePass"}, "leave --stop-after"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(case: str, given: dict[str, Any]) -> None:
    """Named, with the way out."""
    options, message = BAD_OPTIONS[case]
    with pytest.raises(InputError) as caught:
        gdu_compile.compile(**given, **options)
    assert message in str(caught.value)


def test_export_torch(given: dict[str, Any]) -> None:
    """From Python, beside an extended file; not without a place, and not for a plain model."""
    gdu_compile.compile(**given)
    extended = given["output"]
    files = gdu_compile.export_torch(extended, output=extended)
    assert files == [extended.with_name("net.gdu.py"), extended.with_name("net.gdu.safetensors")]
    with pytest.raises(InputError, match=r"output=NAME\.py"):
        gdu_compile.export_torch(extended)
    with pytest.raises(InputError):
        gdu_compile.export_torch(given["model"], output=extended.with_name("plain.py"))
