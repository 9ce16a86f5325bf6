"""An algorithm of one's own as an oracle: class means, written as ONNX text, saved to a file.

python examples/04_own_oracle/class_means.py build/means.onnx
gdu-compile models/digits_linear.onnx --oracle build/means.onnx --data models/digits.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx

MEANS = """<ir_version: 10, opset_import: ["" : 18]>
class_means (float[n, 1, 8, 8] X, int64[n] Y) => (float[10, 64] weight, float[10] bias) {
    flat = Constant <value_ints: ints = [-1, 64]> ()
    classes = Constant <value_int: int = 10> ()
    off_on = Constant <value_floats: floats = [0.0, 1.0]> ()
    axis = Constant <value_ints: ints = [1]> ()
    half = Constant <value_float: float = -0.5> ()
    x = Reshape(X, flat)                                # [n, 64]
    members = OneHot <axis = 0> (Y, classes, off_on)    # [10, n]
    count = ReduceSum(members, axis)                    # [10, 1]
    sums = MatMul(members, x)                           # [10, 64]
    weight = Div(sums, count)
    squares = Mul(weight, weight)
    norms = ReduceSum <keepdims = 0> (squares, axis)    # [10]
    bias = Mul(norms, half)                             # the nearest mean has the largest logit
}"""


def main(path: Path) -> None:
    """Write the algorithm; its outputs are called as the weights of models/digits_linear.onnx."""
    model = onnx.parser.parse_model(MEANS)
    for node in model.graph.node:
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for output in model.graph.output:
        output.name = renamed(output.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def renamed(name: str) -> str:
    """ONNX text knows no dots in names."""
    return {"weight": "fc.weight", "bias": "fc.bias"}.get(name, name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
