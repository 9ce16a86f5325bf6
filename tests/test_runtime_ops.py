"""The operators that ONNX's suite does not cover (com.microsoft, ai.onnx.ml) and awkward inputs of
those that it does, against onnxruntime, through the whole lowering."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from gdu_compile.errors import UnsupportedError
from gdu_compile.torch_backend import backend
from gdu_compile.torch_backend.registry import TABLE

MICROSOFT, ML = "com.microsoft", "ai.onnx.ml"
RNG = np.random.default_rng(0)

Case = tuple[str, list[Any], dict[str, Any]]


def floats(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values: int, dtype: Any = np.int64) -> Any:
    return np.array(values, dtype)


def steps(*shape: int, dtype: Any = np.uint8) -> Any:
    """A quantised tensor: every value of the type may occur."""
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max + 1, shape).astype(dtype)


def scale(value: float = 0.02) -> Any:
    return np.array(value, np.float32)


def zero(value: int = 128, dtype: Any = np.uint8) -> Any:
    return np.array(value, dtype)


def model_of(
    op: str, inputs: list[Any], attributes: dict[str, Any], domain: str, outputs: int, version: int
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    names = ["" if x is None else f"in{i}" for i, x in enumerate(inputs)]
    node = helper.make_node(op, names, [f"out{i}" for i in range(outputs)], domain=domain,
                            **attributes)  # fmt: skip
    feeds = {name: np.asarray(x) for name, x in zip(names, inputs, strict=True) if name}
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in feeds.items()
    ]
    results = [helper.make_empty_tensor_value_info(name) for name in node.output]
    graph = helper.make_graph([node], "graph", values, results)
    opsets = [helper.make_opsetid("", version)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 3 if domain == ML else 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), feeds


def check(
    op: str, *inputs: Any, domain: str = "", outputs: int = 1, version: int = 18,
    **attributes: Any,
) -> None:  # fmt: skip
    """The torch side against onnxruntime without its optimiser."""
    model, feeds = model_of(op, list(inputs), attributes, domain, outputs, version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    wanted = session.run(None, feeds)
    results = backend.run_model(model, feeds)
    for result, expected in zip(results, wanted, strict=True):
        assert result.dtype == expected.dtype and result.shape == expected.shape
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=3e-6)


# --- com.microsoft, floats ------------------------------------------------------------

X = floats(2, 5, 8)
IMAGE, FILTERS = floats(1, 3, 6, 7), floats(4, 3, 3, 3)

FLOAT_CASES: list[Case] = [
    ("Gelu", [X], {}),
    ("BiasGelu", [X, floats(8)], {}),
    ("FastGelu", [X], {}),
    ("FastGelu", [X, floats(8)], {}),
    ("QuickGelu", [X], {}),
    ("QuickGelu", [X], {"alpha": 1.0}),
    *[("FusedConv", [IMAGE, FILTERS, floats(4)], {"activation": name, **given,
                                                  "auto_pad": "SAME_UPPER", "strides": [2, 1]})
      for name, given in (
          ("Relu", {}), ("Tanh", {}), ("Sigmoid", {}),
          ("LeakyRelu", {"activation_params": [0.3]}),
          ("Clip", {"activation_params": [-0.2, 1.5]}),
          ("HardSigmoid", {"activation_params": [0.3, 0.4]}))],
    ("FusedConv", [IMAGE, FILTERS, None, floats(1, 4, 4, 5)], {"activation": "Relu"}),
    ("FusedGemm", [floats(3, 4), floats(5, 4), floats(5)], {"transB": 1, "activation": "Relu"}),
    ("FusedGemm", [floats(3, 4), floats(4, 5), floats(3, 1)],
     {"activation": "LeakyRelu", "activation_alpha": 0.2, "alpha": 0.5, "beta": 2.0}),
    ("FusedMatMul", [floats(2, 4, 3), floats(2, 5, 4)], {"transA": 1, "transB": 1, "alpha": 0.25}),
    ("FusedMatMul", [floats(4, 2, 3), floats(2, 3, 5)], {"transBatchA": 1}),
    ("FusedMatMul", [floats(4, 2, 3), floats(5, 2, 4)],
     {"transBatchA": 1, "transA": 1, "transBatchB": 1, "transB": 1}),
    ("TransposeMatMul", [floats(4, 3), floats(4, 5)], {"transA": 1}),
    ("SkipLayerNormalization", [X, floats(2, 5, 8), floats(8), floats(8), floats(8)],
     {"epsilon": 1e-5}),
    ("SkipLayerNormalization", [X, floats(2, 5, 8), floats(8)], {}),
    ("SkipLayerNormalization", [X, floats(1, 5, 8), floats(8), floats(8)], {}),
    ("SkipSimplifiedLayerNormalization", [X, floats(2, 5, 8), floats(8), floats(8)],
     {"epsilon": 1e-6}),
    ("Inverse", [floats(2, 3, 3)], {}),
    ("Trilu", [floats(3, 4), np.array(-1)], {"upper": 0}),
    ("GridSample", [IMAGE, floats(1, 4, 5, 2)], {"padding_mode": "border"}),
]  # fmt: skip


@pytest.mark.parametrize("op, inputs, attributes", FLOAT_CASES)
def test_fused_operators(op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    check(op, *inputs, domain=MICROSOFT, **attributes)


def test_sums_beside_the_normalisations() -> None:
    """Of their four outputs the first and the last."""
    for op, more in (("SkipLayerNormalization", [floats(8)]),
                     ("SkipSimplifiedLayerNormalization", [])):  # fmt: skip
        inputs = [X, floats(2, 5, 8), floats(8), *more, floats(8)]
        names = [f"in{i}" for i in range(len(inputs))]
        node = helper.make_node(op, names, ["y", "", "", "sum"], domain=MICROSOFT)
        values = [helper.make_tensor_value_info(n, 1, x.shape)
                  for n, x in zip(names, inputs, strict=True)]  # fmt: skip
        results = [helper.make_empty_tensor_value_info(name) for name in ("y", "sum")]
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
        graph = helper.make_graph([node], "graph", values, results)
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        session = onnxruntime.InferenceSession(model.SerializeToString())
        wanted = session.run(None, dict(zip(names, inputs, strict=True)))
        for a, b in zip(backend.run_model(model, inputs), wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [0, 1, 2])
def test_embeddings(parts: int) -> None:
    """Without segments, with them, with a mask and positions besides."""
    ids, segments = RNG.integers(0, 9, (2, 5)), RNG.integers(0, 2, (2, 5))
    mask = ints(1, 1, 1, 0, 0, 1, 1, 1, 1, 1).reshape(2, 5)
    tables = [floats(9, 8), floats(7, 8), floats(2, 8) if parts else None]
    inputs = [ids, segments if parts else None, *tables, floats(8), floats(8)]
    if parts == 2:
        inputs += [mask, RNG.integers(0, 7, (2, 5))]
    inputs = [x.astype(np.int32) if x is not None and x.dtype == np.int64 else x for x in inputs]
    check("EmbedLayerNormalization", *inputs, domain=MICROSOFT, outputs=3)


# --- com.microsoft, attention ----------------------------------------------------------

HEADS, SIZE, LENGTH = 2, 4, 5
MASK = ints(1, 1, 1, 0, 0, 1, 1, 1, 1, 1, dtype=np.int32).reshape(2, 5)

PACKED: list[tuple[dict[int, Any], dict[str, Any], int]] = [
    # further inputs by place, attributes, outputs
    ({}, {}, 1),
    ({}, {"unidirectional": 1}, 1),
    ({}, {"scale": 0.3}, 1),
    ({3: ints(3, 5, dtype=np.int32)}, {}, 1),
    ({3: ints(3, 5, 1, 0, dtype=np.int32)}, {}, 1),
    ({3: MASK}, {}, 1),
    ({3: MASK}, {"unidirectional": 1, "mask_filter_value": -1000.0}, 1),
    ({3: np.tril(np.ones((2, 5, 5), np.int32))}, {}, 1),
    ({5: floats(1, 2, 5, 5)}, {}, 1),
    ({4: floats(2, 2, 2, 3, 4)}, {"unidirectional": 1}, 2),
    ({4: floats(2, 2, 2, 3, 4)}, {}, 2),
]


@pytest.mark.parametrize("more, attributes, outputs", PACKED)
def test_attention(more: dict[int, Any], attributes: dict[str, Any], outputs: int) -> None:
    inputs = [X, floats(8, 24), floats(24), *[more.get(i) for i in range(3, 6)]]
    check("Attention", *inputs, domain=MICROSOFT, outputs=outputs, num_heads=HEADS, **attributes)


def test_attention_with_sizes_of_its_own() -> None:
    inputs = [X, floats(8, 8 + 8 + 12), floats(28)]
    check("Attention", *inputs, domain=MICROSOFT, num_heads=HEADS, qkv_hidden_sizes=[8, 8, 12])


def heads(length: int) -> Any:
    return floats(2, HEADS, length, SIZE)


MANY: list[tuple[list[Any], dict[str, Any], int]] = [
    # inputs, attributes, outputs
    ([X, X + 1, X - 1], {}, 1),
    ([X, floats(2, 3, 8), floats(2, 3, 8), floats(24)], {"scale": 0.3}, 1),
    ([X, X, X, None, MASK], {}, 1),
    ([X, X, X, None, MASK], {"unidirectional": 1}, 1),
    ([X, X, X, None, ints(3, 4, dtype=np.int32)], {}, 1),
    ([X, X, X, floats(24), None, floats(2, 2, 5, 5)], {}, 1),
    ([X, X, X, floats(24), None, None, heads(3), heads(3)], {"unidirectional": 1}, 3),
    ([X, heads(3), heads(3), floats(24)], {}, 1),
]


@pytest.mark.parametrize("inputs, attributes, outputs", MANY)
def test_multi_head_attention(inputs: list[Any], attributes: dict[str, Any], outputs: int) -> None:
    check("MultiHeadAttention", *inputs, domain=MICROSOFT, outputs=outputs, num_heads=HEADS,
          **attributes)  # fmt: skip


def test_packed_queries_keys_and_values() -> None:
    """Which onnxruntime has on other devices only: the same as apart."""
    q, k, v = floats(2, 5, 2, 4), floats(2, 5, 2, 4), floats(2, 5, 2, 4)
    apart = [x.reshape(2, 5, 8) for x in (q, k, v)]
    for packed in ([np.stack([q, k, v], 3)], [apart[0], np.stack([k, v], 3)]):
        results = []
        for inputs in (packed, apart):
            model, feeds = model_of(
                "MultiHeadAttention", inputs, {"num_heads": 2}, MICROSOFT, 1, 18
            )
            results.append(backend.run_model(model, feeds)[0])
        np.testing.assert_array_equal(*results)


CACHES = [np.cos(floats(16, 8)), np.sin(floats(16, 8))]


def grouped(batch: int, new: int, past: int, buffer: int, *, packed: bool = False) -> list[Any]:
    """Inputs of GroupQueryAttention: four heads of 16, two for keys and values."""
    if packed:
        first = [floats(batch, new, 128), None, None]
    else:
        first = [floats(batch, new, 64), floats(batch, new, 32), floats(batch, new, 32)]
    cache = [floats(batch, 2, buffer, 16) for _ in range(2)] if buffer else [None, None]
    lengths = ints(*[past + new - 1] * batch, dtype=np.int32)
    return [*first, *cache, lengths, np.array(past + new, np.int32)]


@pytest.mark.parametrize("rotary", [0, 1])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "batch, new, past, buffer", [(2, 4, 0, 0), (2, 1, 3, 3), (1, 3, 4, 4)], ids=str
)
def test_group_query_attention(
    batch: int, new: int, past: int, buffer: int, packed: bool, rotary: int
) -> None:
    inputs = grouped(batch, new, past, buffer, packed=packed)
    check("GroupQueryAttention", *inputs, *(CACHES if rotary else []), domain=MICROSOFT, outputs=3,
          num_heads=4, kv_num_heads=2, do_rotary=rotary)  # fmt: skip


@pytest.mark.parametrize("attributes", [{"local_window_size": 2}, {"softcap": 3.0}, {"scale": 0.1}])
def test_group_query_attention_options(attributes: dict[str, Any]) -> None:
    check("GroupQueryAttention", *grouped(2, 5, 0, 0), domain=MICROSOFT, outputs=3, num_heads=4,
          kv_num_heads=2, **attributes)  # fmt: skip


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("positions", [ints(2), np.arange(10).reshape(2, 5)], ids=["first", "all"])
def test_rotary_embedding(interleaved: int, positions: Any) -> None:
    caches = [np.cos(floats(16, 2)), np.sin(floats(16, 2))]
    check("RotaryEmbedding", X, positions, *caches, domain=MICROSOFT, interleaved=interleaved)
    check("RotaryEmbedding", heads(5), positions, *caches, domain=MICROSOFT,
          interleaved=interleaved)  # fmt: skip


# --- com.microsoft, quantised ----------------------------------------------------------

Q = steps(2, 3, 4, 6)
ONE = [scale(), zero()]

QUANTISED: list[Case] = [
    # No scales whose quotient puts a result half way between two steps.
    *[(op, [Q, *ONE, steps(3, 1, 6), scale(0.0317), zero(100), scale(0.0519), zero(120)], {})
      for op in ("QLinearAdd", "QLinearMul")],
    ("QLinearAdd", [steps(4, dtype=np.int8), scale(), zero(3, np.int8), steps(4, dtype=np.int8),
                    scale(0.1), zero(-5, np.int8), scale(0.11), zero(0, np.int8)], {}),
    ("QLinearSigmoid", [Q, *ONE, scale(1 / 256), zero(0)], {}),
    ("QLinearLeakyRelu", [Q, *ONE, scale(0.015), zero(30)], {"alpha": 0.2}),
    ("QLinearWhere", [np.arange(6) % 2 == 0, Q, *ONE, Q[::-1].copy(), scale(0.03), zero(99),
                      scale(0.04), zero(111)], {}),
    ("QLinearConcat", [scale(0.03), zero(), Q, *ONE, Q, scale(0.05), zero(90)], {"axis": 1}),
    ("QLinearSoftmax", [Q, scale(0.05), zero(), scale(1 / 256), zero(0)], {"opset": 13}),
    ("QLinearSoftmax", [Q, scale(0.05), zero(), scale(1 / 256), zero(0)], {"opset": 12, "axis": 2}),
    ("QLinearAveragePool", [Q, *ONE, scale(0.021), zero(99)],
     {"kernel_shape": [3, 3], "pads": [1, 0, 1, 1]}),
    ("QLinearAveragePool", [Q, *ONE, scale(0.021), zero(99)],
     {"kernel_shape": [2, 2], "channels_last": 1, "strides": [1, 2]}),
    ("QLinearGlobalAveragePool", [Q, *ONE, scale(0.011), zero(99)], {}),
    ("QLinearGlobalAveragePool", [Q, *ONE, scale(0.011), zero(99)], {"channels_last": 1}),
    ("QGemm", [steps(3, 4), *ONE, steps(5, 4, dtype=np.int8), scale(0.03), zero(2, np.int8),
               ints(1, -70, 300, 4, 5, dtype=np.int32), scale(0.2), zero(90)], {"transB": 1}),
    ("QGemm", [steps(3, 4), *ONE, steps(4, 5, dtype=np.int8), floats(5) ** 2,
               zero(0, np.int8).repeat(5)], {}),
    ("MatMulIntegerToFloat", [steps(3, 4), steps(4, 5), scale(), floats(5) ** 2, zero(),
                              steps(5), floats(5)], {}),
    ("DynamicQuantizeMatMul", [floats(3, 4), steps(4, 5, dtype=np.int8), scale(),
                               zero(0, np.int8), floats(5)], {}),
    ("QuantizeLinear", [floats(3, 4), scale(), zero()], {}),
    ("DequantizeLinear", [steps(3, 4), floats(4) ** 2, steps(4)], {"axis": 1}),
    ("NhwcMaxPool", [Q], {"kernel_shape": [2, 2], "strides": [2, 1], "pads": [1, 0, 0, 1]}),
    ("QAttention", [steps(2, 5, 8), steps(8, 24, dtype=np.int8), floats(24), scale(), scale(0.01),
                    MASK, zero(), zero(0, np.int8)], {"num_heads": HEADS}),
]  # fmt: skip


@pytest.mark.parametrize("op, inputs, attributes", QUANTISED)
def test_quantised_operators(op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    check(op, *inputs, domain=MICROSOFT, **attributes)


@pytest.mark.parametrize("direction, count", [("forward", 1), ("reverse", 1), ("bidirectional", 2)])
@pytest.mark.parametrize("columns", [1, 16], ids=["one scale", "per column"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_dynamic_quantize_lstm(direction: str, count: int, columns: int, dtype: Any) -> None:
    """Of 5 steps, 3 sequences, 6 inputs, 4 hidden; with and without states, bias and lengths.

    All sequences are as long: onnxruntime's scale also depends on what it leaves in the rows of
    those that have ended.
    """
    scales = [np.abs(floats(count, columns)) / 200 + 0.001 for _ in range(2)]
    zeros = [np.full((count, columns), 0 if dtype is np.int8 else 131, dtype) for _ in range(2)]
    scales, zeros = ([a[:, 0] if columns == 1 else a for a in each] for each in (scales, zeros))
    given = [floats(5, 3, 6), steps(count, 6, 16, dtype=dtype), steps(count, 4, 16, dtype=dtype)]
    factors = [scales[0], zeros[0], scales[1], zeros[1]]
    options = {"direction": direction, "hidden_size": 4}
    check("DynamicQuantizeLSTM", *given, *5 * [None], *factors, domain=MICROSOFT, outputs=3,
          **options)  # fmt: skip
    states = [floats(count, 3, 4) for _ in range(2)]
    lengths = ints(5, 5, 5, dtype=np.int32)
    check("DynamicQuantizeLSTM", *given, floats(count, 32), lengths, *states, floats(count, 12),
          *factors, domain=MICROSOFT, outputs=3, **options)  # fmt: skip


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", ["none", "packed"])
@pytest.mark.parametrize("wide", [32, 48], ids=["whole blocks", "a part of a block"])
def test_mat_mul_n_bits(bits: int, zeros: str, wide: int) -> None:
    blocks = -(-wide // 32)
    weights = steps(5, blocks, 32 * bits // 8)
    given = [floats(3, wide), weights, floats(5 * blocks) / 50]
    if zeros == "packed":
        given.append(steps(5, -(-blocks * bits // 8)))
    check("MatMulNBits", *given, domain=MICROSOFT, K=wide, N=5, bits=bits, block_size=32)


# --- ai.onnx.ml ------------------------------------------------------------------------

TABLE_OF_NUMBERS = floats(7, 3)

# two trees over three features: node numbers, the last of each tree being leaves
TREES: dict[str, Any] = {
    "nodes_treeids": [0, 0, 0, 0, 0, 1, 1, 1],
    "nodes_nodeids": [0, 1, 2, 3, 4, 0, 1, 2],
    "nodes_featureids": [0, 2, 0, 0, 0, 1, 0, 0],
    "nodes_modes": ["BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF", "LEAF",
                    "BRANCH_LEQ", "LEAF", "LEAF"],
    "nodes_values": [0.1, -0.2, 0.0, 0.0, 0.0, 0.3, 0.0, 0.0],
    "nodes_truenodeids": [1, 3, 0, 0, 0, 1, 0, 0],
    "nodes_falsenodeids": [2, 4, 0, 0, 0, 2, 0, 0],
}  # fmt: skip
LEAVES = {"treeids": [0, 0, 0, 1, 1] * 2, "nodeids": [2, 3, 4, 1, 2] * 2}
TARGETS = {f"target_{name}": value for name, value in LEAVES.items()}
CLASSES = {f"class_{name}": value for name, value in LEAVES.items()}

KERNELS = ("LINEAR", "POLY", "RBF", "SIGMOID")
TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


def machine(classes: int, kernel: str, how: str, coupled: bool) -> dict[str, Any]:
    """Attributes of an SVMClassifier of three features; several support vectors a class."""
    per_class = [1 + i % 3 for i in range(classes)]
    supports, pairs = sum(per_class), classes * (classes - 1) // 2

    def numbers(*shape: int) -> list[float]:
        return list(floats(*shape).reshape(-1).tolist())

    # PROBIT asks for numbers between 0 and 1, and loses digits around 1/2, in onnxruntime too.
    size = 0.02 if how == "PROBIT" else 1.0
    coefficients = [size * each for each in numbers(classes - 1, supports)]
    probabilities = {"prob_a": numbers(pairs), "prob_b": numbers(pairs)} if coupled else {}
    return {
        "vectors_per_class": per_class, "support_vectors": numbers(supports, 3),
        "coefficients": coefficients, "kernel_type": kernel, "kernel_params": [0.3, 0.5, 3.0],
        "rho": [0.8] * pairs if how == "PROBIT" else numbers(pairs), "post_transform": how,
        "classlabels_ints": list(range(4, 4 + classes)), **probabilities,
    }  # fmt: skip


TABULAR: list[tuple[str, list[Any], dict[str, Any], int]] = [
    ("ArrayFeatureExtractor", [TABLE_OF_NUMBERS, ints(2, 0)], {}, 1),
    ("Binarizer", [TABLE_OF_NUMBERS], {"threshold": 0.2}, 1),
    ("Scaler", [TABLE_OF_NUMBERS], {"offset": [0.1, 0.2, 0.3], "scale": [2.0, 3.0, 4.0]}, 1),
    ("Scaler", [ints(1, 2, 3)[None]], {"offset": [0.5], "scale": [2.0]}, 1),
    *[("Normalizer", [TABLE_OF_NUMBERS], {"norm": how}, 1) for how in ("MAX", "L1", "L2")],
    ("Imputer", [np.where(TABLE_OF_NUMBERS > 1, np.nan, TABLE_OF_NUMBERS).astype(np.float32)],
     {"imputed_value_floats": [1.0, 2.0, 3.0], "replaced_value_float": float("nan")}, 1),
    ("FeatureVectorizer", [TABLE_OF_NUMBERS, floats(7, 2)], {"inputdimensions": [3, 2]}, 1),
    ("LinearRegressor", [TABLE_OF_NUMBERS],
     {"coefficients": [1.0, -2.0, 3.0, 0.5, 0.6, 0.7], "intercepts": [0.1, 0.2], "targets": 2}, 1),
    *[("LinearClassifier", [TABLE_OF_NUMBERS],
       {"coefficients": [1.0, -2.0, 3.0, 0.5, 0.6, 0.7, -1.0, 0.0, 2.0], "multi_class": 1,
        "intercepts": [0.1, 0.2, 0.3], "classlabels_ints": [4, 5, 9], "post_transform": how}, 2)
      for how in ("NONE", "SOFTMAX", "LOGISTIC")],
    *[("LinearClassifier", [TABLE_OF_NUMBERS],
       {"coefficients": [-1.0, 2.0, -3.0, 1.0, -2.0, 3.0], "intercepts": [-0.1, 0.1],
        "classlabels_ints": [4, 5], "post_transform": how}, 2)
      for how in ("NONE", "LOGISTIC", "SOFTMAX")],
    *[("SVMRegressor", [TABLE_OF_NUMBERS],
       {"coefficients": [1.0, -2.0], "rho": [0.3], "n_supports": 2, "one_class": one_class,
        "support_vectors": [1.0, 0.5, -1.0, 0.2, 0.3, 2.0], "kernel_params": [0.3, 0.5, 3.0],
        "kernel_type": kernel}, 1) for kernel in KERNELS for one_class in (0, 1)],
    ("SVMRegressor", [TABLE_OF_NUMBERS],
     {"coefficients": [1.0, -2.0, 0.5], "rho": [0.3], "kernel_params": [0.0, 0.0, 0.0]}, 1),
    *[("SVMClassifier", [TABLE_OF_NUMBERS], machine(classes, kernel, how, coupled), 2)
      for classes in (2, 3, 5) for kernel in KERNELS for how in TRANSFORMS
      for coupled in (False, True) if coupled or classes > 2 or how != "PROBIT"],
    *[("SVMClassifier", [TABLE_OF_NUMBERS],
       {"coefficients": coefficients, "rho": [0.1], "kernel_params": [0.0] * 3,
        "classlabels_ints": list(range(4, 4 + len(coefficients) // 3)), "post_transform": how}, 2)
      for how in ("NONE", "SOFTMAX", "LOGISTIC")
      for coefficients in ([1.0, -2.0, 3.0, -0.5, 0.6, 0.7], [1.0, 2.0, 3.0, 0.5, 0.6, 0.7],
                           [1.0, -2.0, 3.0, 0.5, 0.6, 0.7, -1.0, 0.0, 2.0])],
    *[("TreeEnsembleRegressor", [TABLE_OF_NUMBERS],
       {**TREES, **TARGETS, "target_ids": [0] * 5 + [1] * 5, "n_targets": 2,
        "target_weights": [1.0, 2.0, 3.0, -4.0, 5.0, 0.1, 0.2, 0.3, 0.4, -0.5],
        "aggregate_function": how, "base_values": [0.5, 0.25]}, 1)
      for how in ("SUM", "AVERAGE", "MIN", "MAX")],
    *[("TreeEnsembleClassifier", [TABLE_OF_NUMBERS],
       {**TREES, **CLASSES, "class_ids": [0, 1, 2, 1, 0, 2, 0, 0, 2, 1],
        "class_weights": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
        "post_transform": how, "classlabels_int64s": [7, 8, 9]}, 2)
      for how in ("NONE", "SOFTMAX", "LOGISTIC")],
    *[("TreeEnsembleClassifier", [TABLE_OF_NUMBERS],
       {**TREES, **{name: given[:5] for name, given in CLASSES.items()}, "class_ids": [0] * 5,
        "post_transform": how, "class_weights": weights, "classlabels_int64s": [7, 8], **base}, 2)
      for how in ("NONE", "LOGISTIC", "SOFTMAX") for base in ({}, {"base_values": [0.25]})
      for weights in ([0.1, 0.2, 0.3, 0.4, 0.5], [0.1, -0.2, 0.3, 0.4, -0.5])],
]  # fmt: skip


@pytest.mark.parametrize("op, inputs, attributes, outputs", TABULAR)
def test_tabular_operators(
    op: str, inputs: list[Any], attributes: dict[str, Any], outputs: int
) -> None:
    check(op, *inputs, domain=ML, outputs=outputs, **attributes)


NAMED = {"classlabels_strings": ["a", "b"]}
NAMING = {
    "LinearClassifier": {"coefficients": [1.0] * 6, "intercepts": [0.1, 0.2], **NAMED},
    "SVMClassifier": {**machine(2, "RBF", "NONE", True), **NAMED},
    "TreeEnsembleClassifier": {
        **TREES, **CLASSES, "class_ids": [0, 1] * 5, "class_weights": [0.1] * 10, **NAMED},
}  # fmt: skip


@pytest.mark.parametrize("op", NAMING)
def test_names_as_labels(op: str) -> None:
    """Torch has no strings: refused where they are asked for, and not where nobody reads them."""
    attributes = {name: each for name, each in NAMING[op].items() if "_ints" not in name}
    model, feeds = model_of(op, [TABLE_OF_NUMBERS], attributes, ML, 2, 18)
    with pytest.raises(UnsupportedError, match="numbers as labels"):
        backend.run_model(model, feeds)
    del model.graph.output[0]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)
    (scores,) = backend.run_model(model, feeds)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op, attributes, words", [
    ("SVMClassifier", machine(2, "RBF", "PROBIT", False), "leaves a score unset"),
    ("SVMRegressor", {"coefficients": [1.0] * 3, "rho": [0.0], "post_transform": "LOGISTIC",
                      "kernel_params": [0.0] * 3}, "onnxruntime leaves it out"),
])  # fmt: skip
def test_machines_that_runtimes_do_not_agree_on(
    op: str, attributes: dict[str, Any], words: str
) -> None:
    outputs = 2 if op == "SVMClassifier" else 1
    model, feeds = model_of(op, [TABLE_OF_NUMBERS], attributes, ML, outputs, 18)
    with pytest.raises(UnsupportedError, match=words):
        backend.run_model(model, feeds)


# --- what the suite covers in one way only ----------------------------------------------

PHOTO = floats(1, 2, 5, 6)
HALF_PIXELS = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric",
               "half_pixel_symmetric"]  # fmt: skip


@pytest.mark.parametrize("how", HALF_PIXELS)
@pytest.mark.parametrize("sizes", [(5, 6), (10, 12), (7, 9), (3, 4), (1, 1), (2, 11)], ids=str)
@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
def test_resize(mode: str, how: str, sizes: tuple[int, int]) -> None:
    check("Resize", PHOTO, None, None, ints(1, 2, *sizes), mode=mode, version=19,
          coordinate_transformation_mode=how, nearest_mode="floor" if how == "asymmetric"
          else "round_prefer_floor")  # fmt: skip


@pytest.mark.parametrize("factor", [1.7, 0.7, 1.1, 2.3, 0.31])
@pytest.mark.parametrize(
    "how, nearest",
    [("asymmetric", "floor"), ("half_pixel", "round_prefer_ceil"), ("half_pixel", "ceil"),
     ("half_pixel", "round_prefer_floor")],
    # align_corners by a factor: onnxruntime takes the whole new size, ONNX's suite the fraction.
)  # fmt: skip
def test_resize_to_the_nearest_of_float32(factor: float, how: str, nearest: str) -> None:
    factors = np.array([1, 1, factor, factor], np.float32)
    check("Resize", floats(1, 1, 20, 30), None, factors, mode="nearest", nearest_mode=nearest,
          coordinate_transformation_mode=how)  # fmt: skip


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("sizes", [(2, 3), (3, 4), (10, 4)], ids=str)
def test_resize_antialiased(mode: str, sizes: tuple[int, int]) -> None:
    check("Resize", PHOTO, None, None, ints(1, 2, *sizes), mode=mode, antialias=1)
    check("Resize", PHOTO, None, None, ints(1, 2, *sizes), mode=mode, antialias=1,
          exclude_outside=1)  # fmt: skip


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_resize_a_volume(mode: str) -> None:
    factors = np.array([1, 1, 1.5, 2, 0.6], np.float32)
    check("Resize", floats(1, 2, 4, 5, 6), None, factors, mode=mode)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [0, 1])
def test_grid_sample(mode: str, padding: str, align: int) -> None:
    grid = (floats(1, 7, 8, 2) * 1.5).astype(np.float32)
    check("GridSample", PHOTO, grid, mode=mode, padding_mode=padding, align_corners=align)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("how", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align(mode: str, how: str, ratio: int) -> None:
    boxes = np.array([[0, 0, 4, 3], [1.3, 0.2, 9, 2], [-3, -2, 2, 1.5]], np.float32)
    check("RoiAlign", floats(2, 3, 6, 7), boxes, ints(0, 1, 0), mode=mode, output_height=2,
          output_width=3, sampling_ratio=ratio, coordinate_transformation_mode=how,
          spatial_scale=0.8)  # fmt: skip


@pytest.mark.parametrize("centred", [0, 1])
def test_non_max_suppression(centred: int) -> None:
    corners = np.sort(RNG.uniform(0, 10, (2, 20, 2, 2)), axis=2).reshape(2, 20, 4)
    boxes = corners.astype(np.float32)
    scores = np.round(RNG.uniform(0, 1, (2, 3, 20)), 1).astype(np.float32)  # equal ones occur
    check("NonMaxSuppression", boxes, scores, ints(5), np.array([0.3], np.float32),
          np.array([0.25], np.float32), center_point_box=centred)  # fmt: skip


def test_integer_convolutions() -> None:
    check("ConvInteger", steps(1, 4, 6, 7), steps(6, 2, 3, 3), zero(120), zero(131), group=2,
          strides=[2, 1], pads=[1, 0, 2, 1])  # fmt: skip
    check("QLinearConv", steps(1, 4, 6, 7), scale(), zero(120), steps(6, 4, 3, 3, dtype=np.int8),
          floats(6) ** 2 + np.float32(0.01), zero(0, np.int8).repeat(6), scale(2.5), zero(100),
          RNG.integers(-900, 900, 6).astype(np.int32), pads=[1, 1, 1, 1])  # fmt: skip
    check("QLinearMatMul", steps(2, 3, 4), scale(), zero(), steps(4, 5), scale(0.03), zero(99),
          scale(0.21), zero(120))  # fmt: skip


def test_column_sums_and_transforms() -> None:
    check("Col2Im", floats(1, 2 * 6, 12), ints(5, 6), ints(2, 3), dilations=[2, 1],
          pads=[0, 0, 0, 0], strides=[1, 1])  # fmt: skip
    check("DFT", floats(2, 7, 3, 2), np.array(5), np.array(1), version=20)
    check("DFT", floats(2, 7, 1), None, np.array(-2), version=20, onesided=1)
    check("DFT", floats(2, 7, 2), np.array(9), version=20, inverse=1)
    check("STFT", floats(2, 33, 1), np.array(5), floats(8), np.array(8), onesided=1)
    check("MelWeightMatrix", *[np.array(n, np.int64) for n in (8, 64, 16000)],
          scale(80.0), scale(7000.0))  # fmt: skip
    check("MaxUnpool", np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2),
          ints(0, 3, 9, 14).reshape(1, 1, 2, 2), kernel_shape=[2, 2], strides=[2, 2])  # fmt: skip


def test_losses() -> None:
    labels = RNG.integers(0, 4, (3, 5))
    for reduction in ("none", "sum", "mean"):
        for more in ([], [np.abs(floats(4))]):
            given = [floats(3, 4, 5), labels, *more]
            check("NegativeLogLikelihoodLoss", *given, reduction=reduction, ignore_index=2)
            check("SoftmaxCrossEntropyLoss", *given, reduction=reduction, ignore_index=2,
                  outputs=2)  # fmt: skip


# --- the tests reach the table -----------------------------------------------------------


def test_every_operator_of_the_other_domains_is_compared() -> None:
    """TreeEnsemble has its cases in ONNX's suite."""
    microsoft = {op for op, *_ in [*FLOAT_CASES, *QUANTISED]}
    microsoft |= {"EmbedLayerNormalization", "Attention", "MultiHeadAttention", "RotaryEmbedding",
                  "GroupQueryAttention", "MatMulNBits", "DynamicQuantizeLSTM"}  # fmt: skip
    assert set(TABLE[MICROSOFT]) == microsoft
    assert set(TABLE[ML]) == {op for op, *_ in TABULAR} | {"TreeEnsemble"}


def test_a_wrong_result_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE[MICROSOFT]["QuickGelu"], 1, lambda x: x * torch.sigmoid(1.701 * x))
    with pytest.raises(AssertionError):
        check("QuickGelu", X, domain=MICROSOFT)


def test_int4_weights() -> None:
    """Held in bytes; a zero point of int4 makes int4 results."""
    weights = helper.make_tensor("w", TensorProto.INT4, (2, 3), [-8, 7, 1, 0, -1, 3])
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["f"]),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["out"]),
    ]
    constants = [
        weights, helper.make_tensor("s", TensorProto.FLOAT, (), [0.25]),
        helper.make_tensor("z", TensorProto.INT4, (), [2]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "int4", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (4, 2))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, (4, 3))], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = floats(4, 2)
    wanted = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_array_equal(backend.run_model(model, [x])[0], wanted[0])


@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_resize_in_half_precision(mode: str, dtype: torch.dtype) -> None:
    """Torch's own interpolation, where it is taken, and ours beside it, where one axis moves."""
    x, both = torch.from_numpy(PHOTO).to(dtype), torch.tensor([1, 1, 2.0, 2.0])
    resize = TABLE[""]["Resize"][13]
    result = resize(x, None, both, mode=mode)
    wide = resize(x.float(), None, both, mode=mode, cubic_coeff_a=-0.75000001)
    assert result.dtype == dtype
    torch.testing.assert_close(result, wide.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-3)
