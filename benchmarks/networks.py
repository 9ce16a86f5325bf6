"""The networks that are measured: seeded, with random weights and random oracle weights.

Each function writes NAME.onnx and NAME.oracle.npz into a folder and returns the two paths.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from gdu_compile import model_io

Paths = tuple[Path, Path]
Float32 = npt.NDArray[np.float32]

MLP_WIDTHS = (2048, 3072, 3072, 3072, 10)  # 25.2 M weights, 101 MB
RESNET_STAGES = ((64, 3), (128, 4), (256, 6), (512, 4))  # channels, blocks: 26.0 M weights, 104 MB
IMAGE = (3, 16, 16)
SMALL_WEIGHTS, SMALL_WIDTH = 2000, 8
CLASSES = 10


@dataclass
class Network:
    """Nodes and weights while a network is made; ``rng`` draws both kinds of weights.

    Attributes:
        name: of the graph and of the files.
        nodes: in order.
        initial: the base's own weights.
        oracle: w*.
    """

    name: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initial: list[onnx.TensorProto] = field(default_factory=list)
    oracle: dict[str, Float32] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def weight(self, name: str, shape: tuple[int, ...], scale: float, mean: float = 0) -> str:
        """A weight of normal numbers, and another one for the oracle; returns its name."""
        for values in (self.initial, self.oracle):
            drawn = self.rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
            array = np.abs(drawn + np.float32(mean)) if mean else drawn
            if isinstance(values, dict):
                values[name] = array
            else:
                values.append(onnx.numpy_helper.from_array(array, name))
        return name

    def op(self, op_type: str, *inputs: str, name: str, **attributes: Any) -> str:
        """A node with one output, called as the node; returns its name."""
        self.nodes.append(
            onnx.helper.make_node(op_type, list(inputs), [name], name=f"{name}/node", **attributes)
        )
        return name

    def linear(self, x: str, rows: int, columns: int, *, name: str, layer: str) -> str:
        """Gemm with weight [rows, columns] and bias."""
        weight = self.weight(f"{layer}.weight", (rows, columns), rows**-0.5)
        bias = self.weight(f"{layer}.bias", (columns,), rows**-0.5)
        return self.op("Gemm", x, weight, bias, name=name)

    def convolution(
        self, x: str, channels: int, filters: int, *, name: str, size: int = 3, stride: int = 1
    ) -> str:
        """Conv without bias, then BatchNormalization in evaluation mode."""
        fan = channels * size * size
        weight = self.weight(f"{name}.conv.weight", (filters, channels, size, size), fan**-0.5)
        z = self.op("Conv", x, weight, name=f"{name}.conv", kernel_shape=[size, size],
                    strides=[stride, stride], pads=[size // 2] * 4)  # fmt: skip
        norm = [
            self.weight(f"{name}.norm.{what}", (filters,), 0.1, mean)
            for what, mean in (("weight", 1), ("bias", 0), ("mean", 0), ("var", 1))
        ]
        return self.op("BatchNormalization", z, *norm, name=name)

    def save(
        self, folder: Path, x: list[str | int | None], logits: str,
        dtype: int = onnx.TensorProto.FLOAT,
    ) -> Paths:  # fmt: skip
        """Write the model and its oracle weights."""
        ends = [
            onnx.helper.make_tensor_value_info("x", dtype, x),
            onnx.helper.make_tensor_value_info(logits, onnx.TensorProto.FLOAT, ["N", CLASSES]),
        ]
        graph = onnx.helper.make_graph(self.nodes, self.name, ends[:1], ends[1:], self.initial)
        opsets = [onnx.helper.make_opsetid("", model_io.OPSET)]
        model, weights = folder / f"{self.name}.onnx", folder / f"{self.name}.oracle.npz"
        onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=opsets), model)
        np.savez(weights, **self.oracle)  # type: ignore[arg-type]
        return model, weights


def bytes_linear(folder: Path, samples: int, features: int) -> Paths:
    """Linear on uint8 [N, features]; returns the model and, instead of weights, random samples."""
    network = Network("bytes_linear")
    real = network.op("Cast", "x", name="real", to=onnx.TensorProto.FLOAT)
    logits = network.linear(real, features, CLASSES, name="logits", layer="fc")
    model, _ = network.save(folder, ["N", features], logits, onnx.TensorProto.UINT8)
    data = folder / f"bytes_{samples}x{features}.npz"
    x = network.rng.integers(0, 256, (samples, features), dtype=np.uint8)
    np.savez(data, x=x, y=network.rng.integers(0, CLASSES, samples))
    return model, data


def mlp(folder: Path) -> Paths:
    """A multi-layer perceptron of ``MLP_WIDTHS``."""
    network, h, last = Network("mlp"), "x", len(MLP_WIDTHS) - 2
    for i, (rows, columns) in enumerate(pairwise(MLP_WIDTHS)):
        name = "logits" if i == last else f"z{i}"
        h = network.linear(h, rows, columns, name=name, layer=f"fc{i}")
        if i < last:
            h = network.op("Relu", h, name=f"h{i}")
    return network.save(folder, ["N", MLP_WIDTHS[0]], h)


def resnet(folder: Path) -> Paths:
    """Blocks of two 3×3 Conv with BatchNormalization and a residual Add, pooling, Gemm."""
    network, before = Network("resnet"), RESNET_STAGES[0][0]
    z = network.convolution("x", IMAGE[0], before, name="stem")
    h = network.op("Relu", z, name="stem.relu")
    for stage, (channels, blocks) in enumerate(RESNET_STAGES):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            h = residual(network, h, before, channels, stride, f"block{stage}_{block}")
            before = channels
    pooled = network.op("GlobalAveragePool", h, name="pooled")
    flat = network.op("Flatten", pooled, name="flat")
    logits = network.linear(flat, before, CLASSES, name="logits", layer="fc")
    return network.save(folder, ["N", *IMAGE], logits)


def residual(network: Network, x: str, before: int, channels: int, stride: int, name: str) -> str:
    """Relu(norm(Conv(Relu(norm(Conv(x))))) + x); where the shape changes, x passes a 1×1 Conv."""
    z = network.convolution(x, before, channels, name=f"{name}.1", stride=stride)
    h = network.op("Relu", z, name=f"{name}.1.relu")
    z = network.convolution(h, channels, channels, name=f"{name}.2")
    if before != channels:
        x = network.convolution(x, before, channels, name=f"{name}.skip", size=1, stride=stride)
    total = network.op("Add", z, x, name=f"{name}.add")
    return network.op("Relu", total, name=f"{name}.relu")


def many_small(folder: Path) -> Paths:
    """``SMALL_WEIGHTS`` weights of at most 10 × 8 numbers: layer after layer."""
    network, h, layers = Network("many_small"), "x", SMALL_WEIGHTS // 2
    for i in range(layers - 1):
        z = network.linear(h, SMALL_WIDTH, SMALL_WIDTH, name=f"z{i}", layer=f"fc{i}")
        h = network.op("Tanh", z, name=f"h{i}")
    logits = network.linear(h, SMALL_WIDTH, CLASSES, name="logits", layer=f"fc{layers - 1}")
    return network.save(folder, ["N", SMALL_WIDTH], logits)
