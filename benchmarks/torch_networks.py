"""Networks in plain PyTorch, as large as those that people use, and their export to ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models import build

OPSET = 20
"""Gelu is an operator from here on."""
OLD_OPSET = 14
"""The first at which the exporter before knows attention."""
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # ResNet-50: width, blocks
VOCABULARY, WIDTH, LAYERS, HEADS, TOKENS = 30522, 768, 12, 12, 128  # BERT-base


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions with BatchNormalization, and the input added (He et al. 2015)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.path = nn.Sequential(
            nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        self.skip = nn.Identity() if before == after and stride == 1 else nn.Sequential(
            nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """[n, before, h, w] → [n, 4·width, h/stride, w/stride]."""
        return torch.relu(self.path(x) + self.skip(x))


def resnet50() -> nn.Module:
    """25.6 M weights, [n, 3, 224, 224] → [n, 1000]."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    before = 64
    for stage, (width, blocks) in enumerate(STAGES):
        for block in range(blocks):
            layers.append(Bottleneck(before, width, 2 if stage and not block else 1))
            before = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000))


class Bert(nn.Module):
    """BERT-base's encoder (Devlin et al. 2018) and a head of two classes: 108 M weights."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(TOKENS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [n, TOKENS] → [n, 2]."""
        h = self.norm(self.words(tokens) + self.places.weight)
        logits: Tensor = self.head(self.encoder(h)[:, 0])
        return logits


@dataclass(frozen=True)
class TorchNetwork:
    """A network to be measured.

    Attributes:
        name: of the network.
        make: builds it.
        batch: a batch of inputs of this size.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[int], Tensor]


NETWORKS = {
    each.name: each
    for each in (
        TorchNetwork("digits_cnn", build.Residual,
                     lambda n: torch.randn(n, 1, 8, 8)),
        TorchNetwork("resnet50", resnet50, lambda n: torch.randn(n, 3, 224, 224)),
        TorchNetwork("bert_base", Bert, lambda n: torch.randint(0, VOCABULARY, (n, TOKENS))),
    )
}  # fmt: skip


def export(network: nn.Module, batch: Tensor, path: Path) -> None:
    """Write the network in evaluation mode as ONNX, with a dynamic batch.

    The exporter's rewriting is left out: it would fold BatchNormalization into Conv, and what is
    compared would not be the same network.
    """
    network.eval()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        network, (batch,), dynamo=True, opset_version=OPSET, input_names=["x"],
        output_names=["z"], dynamic_shapes=({0: torch.export.Dim("N")},), verbose=False,
        optimize=False,
    )  # fmt: skip
    assert program is not None
    program.model = build.tidy(program.model)
    program.save(path)


def export_by_torchscript(network: nn.Module, batch: Tensor, path: Path) -> None:
    """The same by the exporter before, at an old opset: what older converters can read."""
    network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        torch.onnx.export(
            network, (batch,), str(path), dynamo=False, opset_version=OLD_OPSET,
            input_names=["x"], output_names=["z"], dynamic_axes={"x": {0: "N"}},
        )  # fmt: skip
