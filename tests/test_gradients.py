"""Derivatives are true: every operator in float64 through the lowering, against differences.

The tables hold the whole operator table: what is smooth almost everywhere is compared with finite
differences, what jumps has derivative exactly 0 (THEORY §1, rule 1), and what has no numbers to
derive is named.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto

import gdu_compile.torch_backend
from gdu_compile.torch_backend import lower_to_torch
from gdu_compile.torch_backend.registry import TABLE

MICROSOFT, ML = "com.microsoft", "ai.onnx.ml"
RNG = np.random.default_rng(0)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def one(value: int) -> Any:
    return np.array(value, np.int64)


def spread(*shape: int) -> Any:
    """Numbers of both signs, none near 0 and no two alike."""
    size = int(np.prod(shape))
    values = RNG.permutation(np.linspace(-1.7, 1.9, size + 2)[1:-1])
    return np.where(np.abs(values) < 0.05, values + 0.11, values).reshape(shape)


Case = tuple[str, list[Any], dict[str, Any]]
X, UNIT = spread(2, 3), spread(2, 3) / 2
IMAGE = spread(1, 2, 5, 4)

# operators of one input: its values
UNARY: dict[str, Any] = {
    **dict.fromkeys(
        ["Abs", "Asinh", "Atan", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid",
         "HardSwish", "LeakyRelu", "LogSoftmax", "LpNormalization", "Mish", "Neg", "Reciprocal",
         "Relu", "Selu", "Shrink", "Sigmoid", "Sin", "Sinh", "Softmax", "Softplus", "Softsign",
         "Swish", "Tan", "Tanh", "ThresholdedRelu", "Identity", "Transpose", "Flatten", "Dropout",
         "Squeeze"], X,
    ),
    **dict.fromkeys(["Acos", "Asin", "Atanh"], UNIT),
    **dict.fromkeys(["Log", "Sqrt"], np.abs(X)), "Acosh": np.abs(X) + 1.1, "Det": spread(2, 3, 3),
    **dict.fromkeys(["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"], IMAGE),
    "MeanVarianceNormalization": spread(2, 2, 3, 2),
}  # fmt: skip

REDUCE = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
QKV = [spread(1, 2, 3, 4), spread(1, 2, 5, 4), spread(1, 2, 5, 4)]
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def recurrent(op: str) -> list[Any]:
    rows = 2 * GATES[op]
    given = [spread(3, 2, 2), spread(2, rows, 2), spread(2, rows, 2), spread(2, 2 * rows),
             np.array([3, 2], np.int32), spread(2, 2, 2)]  # fmt: skip
    return given + ([spread(2, 2, 2), spread(2, 6)] if op == "LSTM" else [])


SMOOTH: list[Case] = [
    *[(op, [x], {}) for op, x in UNARY.items()],
    ("Celu", [X], {"alpha": 0.7}), ("Gelu", [X], {"approximate": "tanh"}),
    *[(op, [X, spread(3)], {}) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean",
                                          "SwiGLU")],
    ("Mod", [X, np.array([0.7, 0.9, 1.1])], {"fmod": 1}), ("PRelu", [X, spread(3)], {}),
    ("Pow", [np.abs(X), spread(3)], {}), ("Where", [X > 0, X, spread(3)], {}),
    ("Clip", [X, np.array(-0.71), np.array(0.83)], {}), ("Cast", [X], {"to": TensorProto.DOUBLE}),
    ("CastLike", [X, np.zeros(1)], {}), ("Expand", [X, ints(2, 2, 3)], {}),
    *[(f"Reduce{op}", [np.abs(X) if op == "LogSum" else X, ints(1)], {}) for op in REDUCE],
    ("CumSum", [X, one(1)], {"exclusive": 1}), ("CumProd", [X, one(1)], {"reverse": 1}),
    ("TopK", [X, ints(2)], {"outputs": 1}), ("Unique", [X], {"outputs": 1}),
    ("Reshape", [X, ints(3, -1)], {}), ("Unsqueeze", [X, ints(0, 2)], {}),
    ("Concat", [X, spread(2, 2)], {"axis": 1}),
    ("Split", [X, ints(1, 2)], {"axis": 1, "outputs": 2}),
    ("Slice", [X, ints(-1), ints(-9), ints(1), ints(-2)], {}), ("Tile", [X, ints(2, 1)], {}),
    ("Trilu", [X], {"upper": 0}), ("Pad", [X, ints(1, 0, 0, 2), np.array(0.3)], {}),
    ("Pad", [X, ints(0, 1, 0, 2)], {"mode": "reflect"}),
    ("DepthToSpace", [spread(1, 4, 2, 3)], {"blocksize": 2}),
    ("SpaceToDepth", [spread(1, 1, 4, 2)], {"blocksize": 2}),
    ("Gather", [X, ints(-1, 0, 2)], {"axis": 1}),
    ("GatherElements", [X, ints(1, 0, -1)[None]], {"axis": 1}),
    ("GatherND", [X, ints(1, -1)[None]], {}),
    *[("ScatterElements", [X, ints(1, 0)[None], spread(1, 2)], {"axis": 1, "reduction": r})
      for r in ("none", "add", "mul", "max")],
    *[("ScatterND", [X, ints(1)[None], spread(1, 3)], {"reduction": r})
      for r in ("none", "add", "mul", "min")],
    ("TensorScatter", [spread(2, 4, 2), spread(2, 2, 2), ints(1, 2)], {}),
    ("OneHot", [ints(1, 0), one(3), spread(2)], {}), ("Compress", [X, np.array([True, False])], {}),
    ("ReverseSequence", [X, ints(2, 1, 1)], {}),
    ("MatMul", [X, spread(3, 2)], {}), ("Gemm", [X, spread(2, 3), spread(2)], {"transB": 1}),
    ("Einsum", [X, spread(3, 2)], {"equation": "ij,jk->ki"}),
    ("Conv", [IMAGE, spread(2, 1, 3, 2), spread(2)], {"group": 2, "strides": [2, 1],
                                                      "pads": [1, 0, 0, 1]}),
    ("ConvTranspose", [IMAGE, spread(2, 1, 2, 3), spread(2)], {"group": 2, "strides": [2, 1]}),
    ("DeformConv", [IMAGE, spread(2, 2, 2, 2), spread(1, 8, 4, 3) / 4 + 0.05, spread(2),
                    spread(1, 4, 4, 3)], {}),
    ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "dilations": [2, 1], "outputs": 1}),
    ("AveragePool", [IMAGE], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "ceil_mode": 1,
                              "strides": [2, 2]}),
    ("LpPool", [IMAGE], {"kernel_shape": [2, 2]}),
    ("MaxUnpool", [spread(1, 1, 2, 2), ints(0, 3, 9, 14).reshape(1, 1, 2, 2)],
     {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("BatchNormalization", [spread(2, 3, 2), spread(3), spread(3), spread(3), np.abs(spread(3))],
     {}),
    ("InstanceNormalization", [spread(2, 2, 3), spread(2), spread(2)], {}),
    ("GroupNormalization", [spread(2, 4, 2), spread(4), spread(4)], {"num_groups": 2}),
    ("LayerNormalization", [spread(2, 4), spread(4), spread(4)], {"outputs": 3}),
    ("RMSNormalization", [spread(2, 4), spread(4)], {}),
    ("LRN", [spread(1, 4, 2)], {"size": 3, "alpha": 0.5}),
    *[(op, recurrent(op), {"direction": "bidirectional", "hidden_size": 2}) for op in GATES],
    ("Attention", QKV, {}), ("Attention", QKV, {"is_causal": 1, "softcap": 2.0}),
    ("Attention", [*QKV, spread(3, 5)], {}),
    ("RotaryEmbedding", [spread(1, 2, 3, 4), spread(1, 3, 2), spread(1, 3, 2)], {}),
    ("FlexAttention", QKV, {"domain": "ai.onnx.preview"}),
    *[("Resize", [IMAGE, None, np.array([1, 1, 1.3, 0.7], np.float32)], {"mode": mode})
      for mode in ("nearest", "linear", "cubic")],
    ("Resize", [IMAGE, None, None, ints(1, 2, 3, 2)], {"mode": "cubic", "antialias": 1}),
    *[("GridSample", [IMAGE, spread(1, 3, 2, 2) / 2], {"mode": mode})
      for mode in ("linear", "cubic")],
    *[("RoiAlign", [IMAGE, np.array([[0.31, 0.22, 3.1, 2.83]]), ints(0)],
       {"mode": mode, "output_height": 2, "output_width": 2, "sampling_ratio": 2})
      for mode in ("avg", "max")],
    ("Col2Im", [spread(1, 4, 4), ints(3, 3), ints(2, 2)], {}),
    ("DFT", [spread(2, 5, 1), one(4), one(1)], {}),
    ("DFT", [spread(2, 5, 2)], {"inverse": 1}),
    ("STFT", [spread(1, 9, 1), one(2), spread(4)], {}),
    ("DequantizeLinear", [np.array([[3, 4]], np.uint8), np.array(0.7)], {}),
    ("NegativeLogLikelihoodLoss", [X, ints(1, 2), np.abs(spread(3))], {}),
    ("SoftmaxCrossEntropyLoss", [X, ints(1, 0)], {"ignore_index": 0}),
    ("AffineGrid", [spread(1, 2, 3), ints(1, 1, 2, 3)], {}),
    ("CenterCropPad", [X, ints(1, 4)], {}),
]  # fmt: skip

OTHERS: list[Case] = [
    *[(op, [X], {}) for op in ("Gelu", "FastGelu", "QuickGelu")], ("BiasGelu", [X, spread(3)], {}),
    ("FastGelu", [X, spread(3)], {}), ("Inverse", [spread(3, 3) + 2 * np.eye(3)], {}),
    ("FusedConv", [IMAGE, spread(2, 2, 2, 2), spread(2)], {"activation": "Tanh"}),
    ("FusedGemm", [X, spread(3, 2), spread(2)],
     {"activation": "LeakyRelu", "activation_alpha": 0.3}),
    ("FusedMatMul", [X, spread(4, 3)], {"transB": 1, "alpha": 0.5}),
    ("SkipLayerNormalization", [X, spread(2, 3), spread(3), spread(3), spread(3)],
     {"epsilon": 1e-3}),
    ("SkipSimplifiedLayerNormalization", [X, spread(2, 3), spread(3)], {"epsilon": 1e-3}),
    ("EmbedLayerNormalization", [ints(1, 2, 0)[None], None, spread(3, 4), spread(3, 4), None,
                                 spread(4), spread(4)], {"epsilon": 1e-3, "outputs": 1}),
    ("Attention", [spread(1, 3, 4), spread(4, 12), spread(12)],
     {"num_heads": 2, "unidirectional": 1}),
    ("MultiHeadAttention", [spread(1, 3, 4), spread(1, 2, 4), spread(1, 2, 4), spread(12)],
     {"num_heads": 2}),
    ("GroupQueryAttention", [spread(1, 2, 8), spread(1, 2, 4), spread(1, 2, 4), None, None,
                             np.array([1], np.int32), np.array(2, np.int32)],
     {"num_heads": 2, "kv_num_heads": 1}),
    ("RotaryEmbedding", [spread(1, 2, 4), ints(1), spread(5, 2), spread(5, 2)], {}),
    ("MatMulNBits", [spread(2, 16), RNG.integers(0, 256, (3, 1, 8)).astype(np.uint8), spread(3)],
     {"K": 16, "N": 3, "block_size": 16}),
]  # fmt: skip


def module_of(op: str, inputs: list[Any], attributes: dict[str, Any]) -> Any:
    """A model of one node, all of whose inputs it holds; those of floats are parameters."""
    given = dict(attributes)
    domain, outputs = given.pop("domain", ""), given.pop("outputs", 1)
    values = [None if x is None else ir.val(f"in{i}", const_value=ir.tensor(x, name=f"in{i}"))
              for i, x in enumerate(inputs)]  # fmt: skip
    for value in values:
        if value is not None:
            assert value.const_value is not None
            value.dtype, value.shape = value.const_value.dtype, ir.Shape(value.const_value.shape)
    node = ir.node(op, values, attributes=given, domain=domain, num_outputs=outputs)
    for i, output in enumerate(node.outputs):
        output.name = f"out{i}"
    held = [value for value in values if value is not None]
    imports = {"": 28} | ({domain: 1} if domain else {})
    graph = ir.Graph([], list(node.outputs), nodes=[node], initializers=held, opset_imports=imports)
    floats = [str(v.name) for v in held if v.dtype == ir.DataType.DOUBLE]
    return lower_to_torch(ir.Model(graph, ir_version=13), floats)


def function_of(module: Any) -> tuple[Any, list[torch.Tensor]]:
    """The float outputs as a function of the parameters, and these."""
    names = [name for name, _ in module.named_parameters()]

    def function(*parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = dict(zip(names, parameters, strict=True))
        results = torch.func.functional_call(module, given, ())
        results = results if isinstance(results, tuple) else (results,)
        return tuple(x for x in results if x is not None and x.requires_grad)

    return function, [parameter for _, parameter in module.named_parameters()]


@pytest.mark.parametrize("op, inputs, attributes", SMOOTH)
def test_derivative(op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    function, parameters = function_of(module_of(op, inputs, attributes))
    assert parameters and function(*parameters)
    assert torch.autograd.gradcheck(function, parameters)


@pytest.mark.parametrize("op, inputs, attributes", OTHERS)
def test_derivative_of_microsoft(op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    function, parameters = function_of(module_of(op, inputs, {**attributes, "domain": MICROSOFT}))
    assert torch.autograd.gradcheck(function, parameters)


@pytest.mark.parametrize(
    "op, attributes",
    [("Scaler", {"offset": [0.1], "scale": [3.0]}), ("Normalizer", {"norm": "L2"}),
     ("LinearRegressor", {"coefficients": [1.0, -2.0, 0.5]}),
     ("LinearClassifier", {"coefficients": [1.0, -2.0, 0.5] * 2, "classlabels_ints": [0, 1],
                           "post_transform": "SOFTMAX", "outputs": 2}),
     *[("SVMRegressor", {"coefficients": [1.0, -2.0], "rho": [0.3], "n_supports": 2,
                         "support_vectors": [1.0, 0.5, -1.0, 0.2, 0.3, 2.0],
                         "kernel_params": [0.3, 0.5, 3.0], "kernel_type": kernel})
       for kernel in ("LINEAR", "POLY", "RBF", "SIGMOID")],
     *[("SVMClassifier", {"coefficients": [1.0, -2.0, 0.5, 0.3, 0.2, -0.7], "rho": [0.1, 0.2, 0.3],
                          "support_vectors": [1.0, 0.5, -1.0, 0.2, 0.3, 2.0, -0.4, 0.1, 0.6],
                          "vectors_per_class": [1, 1, 1], "classlabels_ints": [0, 1, 2],
                          "kernel_params": [0.3, 0.5, 3.0], "kernel_type": "RBF", "outputs": 2,
                          **more})
       for more in ({}, {"prob_a": [-1.0, -2.0, 0.5], "prob_b": [0.1, 0.2, 0.3]})],
     ("Imputer", {"imputed_value_floats": [0.5]})],
)  # fmt: skip
def test_derivative_of_tables(op: str, attributes: dict[str, Any]) -> None:
    function, parameters = function_of(module_of(op, [X], {**attributes, "domain": ML}))
    assert torch.autograd.gradcheck(function, parameters)


# --- what jumps -------------------------------------------------------------------------

LEAVES = {"target_treeids": [0, 0], "target_nodeids": [1, 2], "target_ids": [0, 0],
          "target_weights": [1.0, 2.0]}  # fmt: skip
TREE = {"nodes_treeids": [0, 0, 0], "nodes_nodeids": [0, 1, 2], "nodes_featureids": [1, 0, 0],
        "nodes_modes": ["BRANCH_LT", "LEAF", "LEAF"], "nodes_values": [0.1, 0.0, 0.0],
        "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0]}  # fmt: skip

JUMPING: list[Case] = [
    *[(op, [X], {}) for op in ("Round", "Floor", "Ceil", "Sign", "Hardmax", "IsNaN", "IsInf",
                               "ArgMax", "ArgMin", "NonZero", "Shape", "Size", "EyeLike",
                               "OptionalHasElement")],
    *[(op, [X, spread(3)], {}) for op in ("Equal", "Greater", "GreaterOrEqual", "Less",
                                          "LessOrEqual")],
    *[("Cast", [X], {"to": kind}) for kind in (TensorProto.INT32, TensorProto.BOOL,
                                               TensorProto.INT4, TensorProto.FLOAT4E2M1)],
    ("CastLike", [X, ints(1)], {}),
    ("QuantizeLinear", [X, np.array(0.1), np.array(3, np.uint8)], {}),
    ("DynamicQuantizeLinear", [X], {}),
    ("NonMaxSuppression", [spread(1, 3, 4), spread(1, 1, 3), ints(2)], {}),
    ("Binarizer", [X], {"domain": ML}),
    ("TreeEnsembleRegressor", [X], {"domain": ML, **TREE, **LEAVES}),
]  # fmt: skip


@pytest.mark.parametrize("op, inputs, attributes", JUMPING)
def test_what_jumps_has_derivative_zero(
    op: str, inputs: list[Any], attributes: dict[str, Any]
) -> None:
    """Exactly 0, or no derivative at all, which is the same to what comes after it."""
    function, parameters = function_of(module_of(op, inputs, attributes))
    results = function(*parameters)
    if results:
        total = sum(result.to(torch.float64).sum() for result in results)
        for gradient in torch.autograd.grad(total, parameters, allow_unused=True):
            assert gradient is None or not gradient.any()


# --- nothing is left out, and nothing is tricked ----------------------------------------

NO_NUMBERS = {
    "And", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Not",
    "Or", "Xor",  # bits
    "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul",  # integers in and out
    "Constant", "ConstantOfShape", "Range", "MelWeightMatrix",  # out of nothing to be trained
    "ConcatFromSequence", "Optional", "OptionalGetElement", "SequenceAt", "SequenceConstruct",
    "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SplitToSequence",
}  # fmt: skip


def test_every_operator_is_in_one_of_the_tables() -> None:
    checked = {op for op, *_ in [*SMOOTH, *JUMPING]}
    assert set(TABLE[""]) - checked == NO_NUMBERS
    assert not checked & NO_NUMBERS


def test_lists_hand_derivatives_on() -> None:
    """Through SplitToSequence, SequenceAt and ConcatFromSequence."""
    functions = {op: TABLE[""][op][11] for op in (
        "SplitToSequence", "SequenceInsert", "SequenceErase", "SequenceAt",
        "ConcatFromSequence")}  # fmt: skip

    def through(x: torch.Tensor) -> torch.Tensor:
        parts = functions["SplitToSequence"](x, axis=1)
        parts = functions["SequenceInsert"](parts, x[:, :1] * 2, torch.tensor(0))
        last = functions["SequenceAt"](parts, torch.tensor(-1))
        joined = functions["ConcatFromSequence"](functions["SequenceErase"](parts), axis=1)
        return torch.cat([joined, last.square()], 1)

    assert torch.autograd.gradcheck(through, torch.from_numpy(X).requires_grad_())


@pytest.mark.parametrize("op", ["Softmax", "Attention", "ReduceL2", "LpNormalization"])
def test_hidden_rows_have_finite_derivatives(op: str) -> None:
    """A query that may look at nothing; a vector of zeros."""
    if op == "Attention":
        mask = np.array([[0.0, 0, 0, 0, 0], [-np.inf] * 5, [0, -np.inf, 0, 0, 0]])
        module = lower_to_torch(masked(mask), ["q"])
    else:
        module = module_of(op, [np.zeros((2, 3)), *([ints(1)] if op == "ReduceL2" else [])], {})
    function, parameters = function_of(module)
    total = sum(result.sum() for result in function(*parameters))
    assert all(x.isfinite().all() for x in torch.autograd.grad(total, parameters))


def masked(mask: Any) -> ir.Model:
    values = [ir.val(name, const_value=ir.tensor(x, name=name))
              for name, x in zip("qkvm", [*QKV, mask], strict=True)]  # fmt: skip
    node = ir.node("Attention", values)
    node.outputs[0].name = "y"
    graph = ir.Graph([], node.outputs, nodes=[node], initializers=values, opset_imports={"": 24})
    return ir.Model(graph, ir_version=11)


FORBIDDEN = r"autograd\.Function|\.detach\(|no_grad|inference_mode|\.data\b|requires_grad_\(False"
# file → why what it does lies on no path from a loss to a parameter
ALLOWED = {
    "module.py": "to_array hands a copy to numpy",
    "registry.py": "the rule itself",
    "source.py": "the tensors of a file that is written",
}


def test_nothing_cuts_the_path_of_the_gradient() -> None:
    folder = Path(gdu_compile.torch_backend.__file__).parent
    found = {
        path.name: lines
        for path in sorted(folder.glob("*.py"))
        if (lines := [line for line in path.read_text().splitlines() if is_cut(line)])
    }
    assert set(found) == set(ALLOWED)
    assert all("cpu().clone(" in line for line in found["module.py"])
    assert all("in module.named_parameters()" in line for line in found["source.py"])
    assert all(line.startswith("autograd function, no") for line in found["registry.py"])


def is_cut(line: str) -> bool:
    return bool(re.search(FORBIDDEN, line)) and not line.lstrip().startswith("#")


def test_a_cut_is_seen() -> None:
    assert is_cut("    return x.detach()") and is_cut("with torch.no_grad():")
    assert not is_cut("    return self.data_of(x)")
