"""torch.export and torch.compile: the bits and the gradients of the eager module, in one graph."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from conftest import ALL_MODELS, MODELS, model_data, parse
from safetensors.numpy import load_file
from test_torch_ops import ALL_CASES, as_torch, evaluate, excluded, opset_of, relevant
from torch.fx.experimental.proxy_tensor import make_fx

import gdu_compile
from gdu_compile import model_io
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.torch_backend import GraphModule, lower_to_torch
from gdu_compile.torch_backend.numbers import READ, known

BATCHES = (64, 1, 13)


def compiled(name: str) -> ir.Model:
    """A real model, extended."""
    return gdu_compile.compile(
        MODELS / f"{name}.onnx", MODELS / f"{name}.oracle.npz", confirm=False
    ).extended


def data(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples and labels."""
    with np.load(model_data(name)) as arrays:
        x, y = (torch.from_numpy(arrays[key][: sum(BATCHES)]) for key in ("x", "y"))
    return x, y


def train(
    run: Any, parameters: list[torch.nn.Parameter], name: str
) -> tuple[list[torch.Tensor], float]:
    """The output of each of three steps, and the last gradient, of the armed network."""
    optimizer = torch.optim.SGD(parameters, lr=0.3)
    outputs = []
    x, y = data(name)
    for part, labels in zip(x.split(BATCHES), y.split(BATCHES), strict=True):
        optimizer.zero_grad()
        outputs.append(run(part))
        loss = torch.nn.functional.cross_entropy(
            outputs[-1], labels.clamp(max=outputs[-1].shape[1] - 1)
        )
        (loss + outputs[-1][:, 0].mean()).backward()
        optimizer.step()
    return [each.detach() for each in outputs], float(parameters[0].grad.abs().max())


def check_training(run: Any, module: torch.nn.Module, name: str, extended: ir.Model) -> None:
    """Recording step and armed steps as in the eager module; θ is reproduced."""
    eager = gdu_compile.to_torch(extended)
    wanted, _ = train(eager, list(eager.parameters()), name)
    outputs, gradient = train(run, list(module.parameters()), name)
    for output, other in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(output, other, rtol=1e-5, atol=1e-5)
    assert gradient == 0
    theta = {key: p.detach().numpy() for key, p in module.named_parameters()}
    assert gdu_compile.verify(extended, theta).reproduced is True


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_MODELS)
def test_exported(name: str, tmp_path: Path) -> None:
    """NAME.pt2: saved, loaded, trained; batches of other sizes than the traced one."""
    extended = compiled(name)
    (path,) = gdu_compile.export_torch(extended, output=tmp_path / "net.pt2")
    module = torch.export.load(path).module()
    check_training(module, module, name, extended)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_MODELS)
def test_compiled_in_one_graph(name: str) -> None:
    """torch.compile with fullgraph: nothing falls back to Python."""
    torch._dynamo.reset()
    extended = compiled(name)
    module = gdu_compile.to_torch(extended)
    run = torch.compile(module, backend="aot_eager", fullgraph=True)
    check_training(run, module, name, extended)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iris_binary", "digits_linear"])
def test_compiled_by_inductor(name: str) -> None:
    """torch.compile's own backend, which needs a C++ compiler."""
    torch._dynamo.reset()
    extended = compiled(name)
    module = gdu_compile.to_torch(extended)
    check_training(torch.compile(module, fullgraph=True), module, name, extended)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ALL_MODELS, "three_node"])
def test_imported_networks_compiled(name: str) -> None:
    """The network itself, weights as parameters: outputs and gradients by torch.compile's own
    backend are the eager module's, but for sums in another order; other weights give others."""
    torch._dynamo.reset()
    model = model_io.load(MODELS / f"{name}.onnx")
    weights = [n for n, v in model.graph.initializers.items() if v.dtype == ir.DataType.FLOAT]
    module = lower_to_torch(model, weights)
    with np.load(model_data(name)) as arrays:
        x = torch.from_numpy(arrays["x"][:64])

    def results(run: Any) -> list[torch.Tensor]:
        module.zero_grad()
        output = run(x)
        (output * output.detach().cos()).sum().backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        return [output.detach(), *(each.clone() for each in gradients)]

    eager, found = results(module), results(torch.compile(module, fullgraph=True))
    assert len(found) == len(eager) > 1
    assert relative(found, eager) < 1e-5
    with torch.no_grad():
        next(module.parameters()).mul_(1.01)
    assert relative(results(module), eager) > 1e-4


def relative(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The largest difference, relative to the largest element of all: the gradient by the bias of
    a key is nothing but rounding errors."""
    differences = [(x - y).abs().max() for x, y in zip(found, wanted, strict=True)]
    return float(max(differences) / max(y.abs().max() for y in wanted))


TRAINER = """
import sys
sys.modules["gdu_compile"] = None
import torch
from safetensors.torch import save_file
module = torch.export.load(sys.argv[1]).module()
optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
for size in (64, 1, 13):
    optimizer.zero_grad()
    output = module(torch.randn(size, 4))
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    loss(output[:, 0], torch.randint(0, 2, (size,)).float()).backward()
    optimizer.step()
save_file({name: p.detach() for name, p in module.named_parameters()}, sys.argv[2])
"""


@pytest.mark.slow
def test_the_program_needs_torch_only(tmp_path: Path) -> None:
    """Trained in a process that cannot import gdu_compile; a changed digit is found."""
    extended = compiled("iris_binary")
    (path,) = gdu_compile.export_torch(extended, output=tmp_path / "net.pt2")
    trained = tmp_path / "theta.safetensors"
    subprocess.run([sys.executable, "-c", TRAINER, path, trained], check=True)
    assert gdu_compile.verify(extended, trained).reproduced is True
    theta = {key: np.array(array) for key, array in load_file(trained).items()}
    theta["gdu_theta_0"][1, 0] += 2 * theta["gdu_theta_0"][0, 0]
    assert gdu_compile.verify(extended, theta).reproduced is False


@pytest.mark.parametrize("form", ["exported", "compiled"])
def test_a_small_network(form: str, tmp_path: Path) -> None:
    """The above in seconds: recording step and armed steps, batches of any size."""
    base = parse("g (float[N, 3] x) => (float[N, 2] z) { z = MatMul(x, W) }",
                 {"W": np.ones((3, 2), dtype=np.float32)})  # fmt: skip
    oracle = {"W": np.array([[1, -2], [0.5, 3], [-0.0, 1e-40]], dtype=np.float32)}
    extended = gdu_compile.compile(base, oracle, confirm=False).extended
    if form == "exported":
        (path,) = gdu_compile.export_torch(extended, output=tmp_path / "net.pt2")
        module = run = torch.export.load(path).module()
    else:
        torch._dynamo.reset()
        module = gdu_compile.to_torch(extended)
        run = torch.compile(module, backend="eager", fullgraph=True, dynamic=True)
    assert [name for name, _ in module.named_parameters()] == ["gdu_theta_0"]
    (theta,) = module.parameters()
    before = run(torch.ones(4, 3))
    for size in (4, 9):
        module.zero_grad()
        torch.nn.functional.cross_entropy(
            run(torch.ones(size, 3)), torch.ones(size).long()
        ).backward()
        assert bool(theta.grad.any()) == (size == 4)  # the second one is armed
        with torch.no_grad():
            theta -= 0.3 * theta.grad
    after = run(torch.ones(4, 3))
    assert torch.equal(after, torch.ones(4, 3) @ torch.from_numpy(oracle["W"]))
    assert not torch.equal(before, after)
    result = {"gdu_theta_0": theta.detach().numpy()}
    assert gdu_compile.verify(extended, result).reproduced is True


def test_learn_is_refused(tmp_path: Path) -> None:
    """The addresses of its memory depend on its contents; nothing is written."""
    with np.load(MODELS / "digits.npz") as arrays:
        np.savez(tmp_path / "d.npz", **{key: arrays[key][:20] for key in ("x", "y")})
    extended = gdu_compile.compile(MODELS / "digits_linear.onnx", oracle="nearest-mean",
                                   data=tmp_path / "d.npz", confirm=False).extended  # fmt: skip
    with pytest.raises(UnsupportedError, match=r"the form of NAME\.py takes every model"):
        gdu_compile.export_torch(extended, output=tmp_path / "net.pt2")
    assert not (tmp_path / "net.pt2").exists()
    (tmp_path / "net.pt2").write_text("mine")
    with pytest.raises(InputError, match="exists; use --force"):
        gdu_compile.export_torch(extended, output=tmp_path / "net.pt2")


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_pooling_of_images_of_any_size(operator: str) -> None:
    """A rest of the image that no window looks at fixes nothing, and is not cut off."""
    model = parse(f"""g (float[N, 1, H, W] x) => (float[N, 1, h, w] y) {{
                       y = {operator} <kernel_shape = [2, 2], strides = [2, 2]> (x) }}""")
    module = lower_to_torch(model, ())
    sizes = {axis: torch.export.Dim(name) for axis, name in ((0, "N"), (2, "H"), (3, "W"))}
    program = torch.export.export(module, (torch.zeros(5, 1, 7, 9),),
                                  dynamic_shapes=((sizes,),), strict=True)  # fmt: skip
    for shape in ((1, 1, 7, 9), (3, 1, 8, 5)):
        x = torch.randn(shape)
        assert torch.equal(program.module()(x), module(x))


@pytest.mark.slow
def test_the_refusal_says_which_size(tmp_path: Path) -> None:
    """torch.export's reason is in the lines after its first."""
    base = parse("""g (float[N, 1, H, W] x) => (float[N, 2] y) {
        c = Conv <kernel_shape = [3, 3]> (x, K)  p = GlobalAveragePool(c)  y = Flatten(p) }""",
                 {"K": np.ones((2, 1, 3, 3), dtype=np.float32)})  # fmt: skip
    oracle = {"K": np.zeros((2, 1, 3, 3), dtype=np.float32)}
    extended = gdu_compile.compile(base, oracle, confirm=False).extended
    with pytest.raises(UnsupportedError, match=r"Not all values of [HW]"):
        gdu_compile.export_torch(extended, output=tmp_path / "net.pt2")


# name → a graph of x: float[3], n: int64
TRACED = {
    "If": """g (float[3] x, int64 n) => (float[3] y) {
        two = Constant <value = int64 {2}> ()  c = Less(n, two)
        y = If (c) <then_branch = t () => (float[3] p) { p = Identity(x) },
                    else_branch = e () => (float[3] q) { q = Mul(x, x) }> }""",
    "Loop with a known trip count": """g (float[3] x, int64 n) => (float[3] y, float[4, 3] s) {
        m = Constant <value = int64 {4}> ()
        y, s = Loop (m, , x) <
          body = b (int64 i, bool c, float[3] a) => (bool d, float[3] e, float[3] f) {
            d = Identity(c)  k = Cast <to = 1> (i)  e = Add(a, k)  f = Mul(e, x) }> }""",
    "Loop with a trip count of the data": """g (float[3] x, int64 n) => (float[3] y) {
        y = Loop (n, , x) <body = b (int64 i, bool c, float[3] a) => (bool d, float[3] e) {
            d = Identity(c)  e = Add(a, x) }> }""",
    "Loop with a condition": """g (float[3] x, int64 n) => (float[3] y) {
        t = Constant <value = int64 {1}> ()  c0 = Greater(n, t)
        y = Loop (, c0, x) <body = b (int64 i, bool c, float[3] a) => (bool d, float[3] e) {
            e = Add(a, x)  j = Add(i, t)  d = Less(j, n) }> }""",
    "Scan": """g (float[3] x, int64 n) => (float y, float[3] s) {
        z = Constant <value_float = 0.0> ()
        y, s = Scan <num_scan_inputs = 1, body = b (float a, float r) => (float e, float f) {
            e = Add(a, r)  f = Mul(e, e) }> (z, x) }""",
    "Scan over sizes and a constant": """g (float[3] x, int64 n) => (int64 y, int64[2] s) {
        k = Constant <value = int64[2] {5, 7}> ()  z = Constant <value = int64 {1}> ()
        one = Constant <value = int64[1] {1}> ()  d = Shape(x)
        y, s = Scan <num_scan_inputs = 1, body = b (int64 a, int64 r) => (int64 e, int64 f) {
            e = Add(a, r)  f = Squeeze(d) }> (z, k) }""",
    "sizes": """g (float[3] x, int64 n) => (float[6] y) {
        s = Shape(x)  two = Constant <value = int64[1] {2}> ()  d = Mul(s, two)
        one = Constant <value = int64[1] {1}> ()  h = Concat <axis = 0> (one, s)
        r = Reshape(x, h)  t = Tile(r, h)  e = Add(d, s)  u = Slice(t, s, e, one)
        y = Reshape(u, d) }""",
}


def traced(module: GraphModule, form: str, *arguments: torch.Tensor) -> Any:
    """The module, traced with these arguments: nothing is left of Python."""
    if form == "make_fx":
        return make_fx(module, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*arguments)
    torch._dynamo.reset()
    return torch.compile(module, backend="eager", fullgraph=True)


@pytest.mark.parametrize("form", ["compile", "make_fx"])
@pytest.mark.parametrize("case", TRACED)
def test_control_flow(case: str, form: str) -> None:
    """In one graph, for values that were not the traced ones: the bits of eager."""
    module = module_of(TRACED[case])
    x = torch.tensor([1.5, -2.0, 0.25])
    run = traced(module, form, x, torch.tensor(1))
    for number in (1, 3):
        results = [f(x + number, torch.tensor(number)) for f in (module, run)]
        wanted, found = (v if isinstance(v, tuple) else (v,) for v in results)
        assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def numbers_cases() -> list[Any]:
    """For each operator that reads numbers, the conformance cases whose inputs are such."""
    cases = [case for case in ALL_CASES if relevant(case.model) and not excluded(case.name)]
    return [case for case in cases if case.model.graph.node[0].op_type in READ]


def test_functions_take_numbers() -> None:
    """What is read with tolist() may be Numbers: the same results as with tensors."""
    seen = set()
    for case in numbers_cases():
        node = case.model.graph.node[0]
        values = iter(as_torch(value) for value in case.data_sets[0][0])
        tensors: dict[str, Any] = {name: next(values) for name in node.input if name}
        wanted = evaluate(node, opset_of(case.model), dict(tensors))
        for i, name in enumerate(node.input):
            if name and i in READ[node.op_type] and (numbers := known(tensors[name])) is not None:
                tensors[name] = numbers
                seen.add((node.op_type, i))
        found = evaluate(node, opset_of(case.model), tensors)
        for a, b in zip(wanted, found, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=case.name)
    assert len({op for op, _ in seen}) > 16


def module_of(text: str, **weights: np.ndarray) -> GraphModule:
    """A graph as a module; its weights are trained."""
    return lower_to_torch(parse(text, weights), set(weights))


REFUSED = {
    "scan outputs": ("""g (float[3] x, int64 n) => (float[k, 3] s) {
        y, s = Loop (n, , x) <
          body = b (int64 i, bool c, float[3] a) => (bool d, float[3] e, float[3] f) {
            d = Identity(c)  e = Add(a, x)  f = Mul(e, W) }> }""", "collects a scan output"),
    "gradients": ("""g (float[3] x, int64 n) => (float[3] y) {
        y = Loop (n, , x) <body = b (int64 i, bool c, float[3] a) => (bool d, float[3] e) {
            d = Identity(c)  e = Add(a, W) }> }""", "needs a gradient"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_loop_that_cannot_be_traced(case: str) -> None:
    """Named; eagerly it runs."""
    text, message = REFUSED[case]
    module = module_of(text, W=np.ones(3, dtype=np.float32))
    arguments = (torch.ones(3), torch.tensor(3))
    assert module(*arguments).requires_grad
    with pytest.raises(Exception, match=message):
        torch.export.export(module, arguments)
