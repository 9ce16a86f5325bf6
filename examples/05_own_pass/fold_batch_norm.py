"""A pass of one's own among the stages of record: BatchNormalization goes into the Conv before it.

python examples/05_own_pass/fold_batch_norm.py build/folded.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

import gdu_compile
from gdu_compile import passes, runtime, specialize
from gdu_compile.contracts import State
from gdu_compile.oracle_weights import OracleWeights

MODEL, WEIGHTS = "models/digits_cnn.onnx", "models/digits_cnn.oracle.npz"
DATA = "models/digits.npz"
Floats = npt.NDArray[np.float32]


class FoldBatchNormalizationPass(passes.GduPass):
    """Conv, then BatchNormalization: one Conv with other weights, and the same function.

    With a = scale/√(variance + ε): weight ← a·weight, bias ← a·(bias − mean) + shift.
    """

    needs = ("lifted",)  # NormalizePass comes before: all weights are initializers

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        folded = 0
        for node in list(model.graph):
            if (conv := conv_before(node)) is not None:
                fold(model.graph, conv, node)
                folded += 1
        return {"folded": folded}


def conv_before(norm: ir.Node) -> ir.Node | None:
    """The Conv that a BatchNormalization can go into: nothing else uses it, or their weights."""
    normalized = norm.inputs[0] if norm.op_type == "BatchNormalization" else None
    conv = None if normalized is None else normalized.producer()
    if normalized is None or conv is None or conv.op_type != "Conv" or len(conv.inputs) < 3:
        return None
    alone = len(normalized.uses()) == 1 and not normalized.is_graph_output()
    weights = [*conv.inputs[1:], *norm.inputs[1:]]
    own = all(w is not None and w.is_initializer() and len(w.uses()) == 1
              and not w.is_graph_output() for w in weights)  # fmt: skip
    return conv if alone and own else None


def fold(graph: ir.Graph, conv: ir.Node, norm: ir.Node) -> None:
    """Change the weights of the Conv, and take the other node away."""
    names = [str(value.name) for node in (conv, norm) for value in node.inputs[1:] if value]
    weight, bias, scale, shift, mean, variance = (weight_of(graph, name) for name in names)
    a = scale / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))  # [channels]
    column = a.reshape(-1, *[1] * (weight.ndim - 1))  # [channels, 1, …]
    folded = column * weight, a * (bias - mean) + shift
    for name, array in zip(names, folded, strict=False):
        graph.initializers[name].const_value = ir.Tensor(array, name=name)
    result = norm.outputs[0].name
    norm.outputs[0].replace_all_uses_with(conv.outputs[0], replace_graph_outputs=True)
    graph.remove(norm, safe=True)
    conv.outputs[0].name = result  # it may be an output of the model
    for name in names[2:]:
        del graph.initializers[name]


def weight_of(graph: ir.Graph, name: str) -> Floats:
    """The value of an initializer."""
    tensor = graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def fold_weights(base: ir.Model, weights: dict[str, Floats]) -> dict[str, Floats]:
    """Oracle weights for the folded network: the same pass, on the network that holds them."""
    model = specialize.with_weights(base, weights)
    ir.passes.Sequential(passes.NormalizePass(), FoldBatchNormalizationPass())(model)
    return {name: weight_of(model.graph, name) for name in weights
            if name in model.graph.initializers}  # fmt: skip


def extend(base: ir.Model, weights: dict[str, Floats]) -> ir.Model:
    """The stages of record with one more after the first."""
    extended, oracle = base.clone(), OracleWeights.load(fold_weights(base, weights))
    normalize, *rest = passes.record_passes(oracle)
    ir.passes.Sequential(normalize, FoldBatchNormalizationPass(), *rest)(extended)
    return extended


def logits_of(model: ir.Model, x: Floats) -> Floats:
    """What onnxruntime computes, node by node: optimised, it would fold the original, too."""
    with runtime.on_disk(model) as path:
        return runtime.run(path, {"x": x}, level="none")["logits"].astype(np.float32)


def main(path: Path) -> None:
    """Extend, train, fold the extension away, and compare with the network as it was."""
    base, weights, x = ir.load(MODEL), dict(np.load(WEIGHTS)), np.load(DATA)["x"]
    report = gdu_compile.train(extend(base, weights), data=DATA, output=path, force=True)
    plain, original = gdu_compile.extract(path), specialize.with_weights(base, weights)
    expected, found = logits_of(original, x), logits_of(plain, x)
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    print("nodes before:", ", ".join(node.op_type for node in original.graph))
    print("nodes after: ", ", ".join(node.op_type for node in plain.graph))
    print("gradient descent reproduced the folded weights, bit for bit:", report.reproduced)
    print(f"outputs against the original's: {difference:.1e} of the largest")
    print(f"same answers: {(found.argmax(1) == expected.argmax(1)).mean():.2%} of {len(x)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
