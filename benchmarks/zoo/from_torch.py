"""Layers and usual blocks of torch.nn, random weights, by both exporters of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.case import Case, Given
from benchmarks.zoo.exporters import EXPORTERS, Apply, export, export_twice, seeded

WIDTH, CLASSES, TOKENS, VOCABULARY = 8, 5, 6, 11
ONLY_DYNAMO = {"Transformer"}
"""The older exporter does not take them."""
OPSETS = {
    "mlp": (9, 17), "cnn": (9, 11), "separable": (14,), "upsampling": (11, 13), "unet": (9,),
    "LSTM": (9, 14), "GRU, both ways, two layers": (11,), "tagger of RNN": (13,), "text": (14, 16),
    "MultiheadAttention": (14,), "tied": (14,),
}  # fmt: skip
"""Older ones, by the older exporter."""
TWICE = ("mlp", "residual", "LSTM", "text", "tied")
"""Exported a second time with other weights: what is equal, and merged, in one file is not in the
other."""
NEWEST = 23
"""The newest that the newer exporter writes."""
QUICK = {"mlp, torchscript", "cnn, torchscript", "LSTM, torchscript", "tagger of GRU, torchscript",
         "MultiheadAttention, torchscript", "text, torchscript"}  # fmt: skip


class Tagger(nn.Module):
    """A recurrent layer, and a class for each token."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[n, TOKENS, WIDTH] → [n, TOKENS, CLASSES]."""
        logits: Tensor = self.head(self.layer(x)[0])
        return logits


def tagger(layer: Callable[..., nn.Module]) -> nn.Module:
    """With a recurrent layer of this class."""
    return Tagger(layer(WIDTH, WIDTH, batch_first=True), WIDTH)


def convolution(before: int, after: int, size: int = 3, **options: Any) -> nn.Sequential:
    """Conv2d, BatchNorm2d, ReLU."""
    layer = nn.Conv2d(before, after, size, padding=size // 2, bias=False, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(after), nn.ReLU())


def classifier(*body: nn.Module, width: int = WIDTH) -> nn.Sequential:
    """Convolutions, the mean over all pixels, and a linear layer."""
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


def residual() -> nn.Module:
    """A block of ResNet (He et al. 2015)."""
    path = nn.Sequential(convolution(WIDTH, WIDTH), nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
                         nn.BatchNorm2d(WIDTH))  # fmt: skip
    block = Apply(lambda path, x: torch.relu(path(x) + x), path=path)
    return classifier(convolution(3, WIDTH), block)


def squeeze_excite() -> nn.Module:
    """A block whose channels are weighted by a small network (Hu et al. 2018)."""
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(WIDTH, 2, 1), nn.SiLU(),
                         nn.Conv2d(2, WIDTH, 1), nn.Sigmoid())  # fmt: skip
    block = Apply(lambda gate, x: x * gate(x), gate=gate)
    return classifier(convolution(3, WIDTH), block)


def separable() -> nn.Module:
    """A depthwise and a pointwise convolution (Howard et al. 2017)."""
    depthwise = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
    return classifier(
        nn.Conv2d(3, WIDTH, 3, stride=2), nn.Hardswish(), depthwise, nn.BatchNorm2d(WIDTH),
        nn.ReLU6(), nn.Conv2d(WIDTH, WIDTH, 1), nn.PReLU(WIDTH),
    )  # fmt: skip


def convnext() -> nn.Module:
    """A block of ConvNeXt (Liu et al. 2022), with GroupNorm."""
    block = nn.Sequential(
        nn.Conv2d(WIDTH, WIDTH, 7, padding=3, groups=WIDTH), nn.GroupNorm(2, WIDTH),
        nn.Conv2d(WIDTH, 2 * WIDTH, 1), nn.GELU(), nn.Conv2d(2 * WIDTH, WIDTH, 1),
    )  # fmt: skip
    return classifier(nn.Conv2d(3, WIDTH, 4, 4), Apply(lambda block, x: x + block(x), block=block))


def unet() -> nn.Module:
    """Down, up, and joined: a class for each pixel (Ronneberger et al. 2015)."""

    def function(one: nn.Module, down: nn.Module, up: nn.Module, head: nn.Module, x: Tensor) -> Any:
        a = one(x)
        return head(torch.cat([a, up(down(a))], 1))

    return Apply(
        function, one=convolution(3, WIDTH),
        down=nn.Sequential(nn.MaxPool2d(2), convolution(WIDTH, WIDTH)),
        up=nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2), head=nn.Conv2d(2 * WIDTH, CLASSES, 1),
    )  # fmt: skip


def upsampling() -> nn.Module:
    """InstanceNorm2d and bilinear Upsample: a class for each pixel."""
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, 2, 1), nn.InstanceNorm2d(WIDTH, affine=True), nn.LeakyReLU(),
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(WIDTH, CLASSES, 3, padding=1),
    )  # fmt: skip


def mlp(*end: nn.Module, outputs: int = CLASSES) -> nn.Module:
    """Two hidden layers, Dropout out of use."""
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Dropout(), nn.LayerNorm(16),
                         nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, outputs), *end)  # fmt: skip


def text() -> nn.Module:
    """Token ids, Embedding, TransformerEncoder, mean, classes."""

    def function(table: nn.Module, layers: nn.Module, head: nn.Module, tokens: Tensor) -> Any:
        return head(layers(table(tokens)).mean(1))

    return Apply(function, table=nn.Embedding(VOCABULARY, WIDTH), layers=encoder(),
                 head=nn.Linear(WIDTH, CLASSES))  # fmt: skip


def encoder(**options: Any) -> nn.Module:
    """TransformerEncoder of two layers."""
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def attention() -> nn.Module:
    """MultiheadAttention of a sequence to itself."""
    layer = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    return Apply(lambda layer, x: layer(x, x, x, need_weights=False)[0], layer=layer)


def two_heads() -> nn.Module:
    """A class and a value from one body."""
    return Apply(
        lambda body, one, two, x: (one(h := body(x)), two(h)),
        body=nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU()),
        one=nn.Linear(16, CLASSES), two=nn.Linear(16, 1),
    )  # fmt: skip


def two_inputs() -> nn.Module:
    """Token ids and numbers."""
    return Apply(
        lambda table, body, head, tokens, x: head(torch.cat([table(tokens).mean(1), body(x)], 1)),
        table=nn.Embedding(VOCABULARY, WIDTH), body=nn.Linear(WIDTH, WIDTH),
        head=nn.Linear(2 * WIDTH, CLASSES),
    )  # fmt: skip


def tied() -> nn.Module:
    """A language model whose head is its embedding."""
    table = nn.Embedding(VOCABULARY, WIDTH)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False)
    head.weight = table.weight
    return nn.Sequential(table, encoder(), head)


def vectors() -> dict[str, Tensor]:
    """[2, WIDTH]."""
    return {"x": torch.randn(2, WIDTH)}


def sequences() -> dict[str, Tensor]:
    """[2, TOKENS, WIDTH]."""
    return {"x": torch.randn(2, TOKENS, WIDTH)}


def images() -> dict[str, Tensor]:
    """[2, 3, 16, 16]."""
    return {"x": torch.randn(2, 3, 16, 16)}


def ids() -> dict[str, Tensor]:
    """[2, TOKENS]."""
    return {"tokens": torch.randint(0, VOCABULARY, (2, TOKENS))}


RECURRENT = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
# name → (module, inputs, number of outputs)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Tensor]], int]] = {
    "mlp": (mlp, vectors, 1),
    "mlp to Softmax": (lambda: mlp(nn.Softmax(-1)), vectors, 1),
    "mlp to LogSoftmax": (lambda: mlp(nn.LogSoftmax(-1)), vectors, 1),
    "mlp to Sigmoid": (lambda: mlp(nn.Sigmoid(), outputs=1), vectors, 1),
    "mlp to one value": (lambda: mlp(outputs=1), vectors, 1),
    "mlp to values": (lambda: mlp(nn.Flatten(0), outputs=1), vectors, 1),
    "two heads": (two_heads, vectors, 2),
    "two inputs": (two_inputs, lambda: {**ids(), **vectors()}, 1),
    "cnn": (lambda: classifier(convolution(3, WIDTH)), images, 1),
    "residual": (residual, images, 1),
    "squeeze and excite": (squeeze_excite, images, 1),
    "separable": (separable, images, 1),
    "convnext": (convnext, images, 1),
    "unet": (unet, images, 1),
    "upsampling": (upsampling, images, 1),
    **{
        f"{name}{', both ways' * both}{', two layers' * (layers - 1)}": (
            partial(layer, WIDTH, WIDTH, layers, batch_first=True, bidirectional=both),
            sequences, 3 if name == "LSTM" else 2,
        )
        for name, layer in RECURRENT.items() for both, layers in ((False, 1), (True, 2))
    },
    **{
        f"tagger of {name}": (partial(tagger, layer), sequences, 1)
        for name, layer in RECURRENT.items()
    },
    "MultiheadAttention": (attention, sequences, 1),
    "TransformerEncoder": (encoder, sequences, 1),
    "TransformerEncoder, norm first": (
        lambda: encoder(norm_first=True, activation="gelu"), sequences, 1),
    "Transformer": (
        lambda: nn.Transformer(WIDTH, 2, 1, 1, 16, batch_first=True),
        lambda: {"source": torch.randn(2, TOKENS, WIDTH), "target": torch.randn(2, 4, WIDTH)}, 1),
    "text": (text, ids, 1),
    "tied": (tied, ids, 1),
}  # fmt: skip


def cases() -> Iterator[Case]:
    """Every network by every exporter."""
    for name in NETWORKS:
        for exporter in EXPORTERS:
            if exporter != "dynamo" and name in ONLY_DYNAMO:
                continue
            called = f"{name}, {exporter}"
            yield Case(called, f"torch.nn, {exporter}", partial(given, name, exporter),
                       called in QUICK)  # fmt: skip
    yield from versions()
    for name in TWICE:
        for exporter in EXPORTERS:
            yield Case(f"{name}, {exporter}, twice", f"torch.nn, {exporter}",
                       partial(given_twice, name, exporter))  # fmt: skip


def versions() -> Iterator[Case]:
    """Networks at other opsets than the exporters' own."""
    for name, opsets in OPSETS.items():
        for opset in opsets:
            yield Case(f"{name}, opset {opset}", "torch.nn, torchscript",
                       partial(given, name, "torchscript", opset=opset))  # fmt: skip
    for name in ("mlp", "cnn", "LSTM", "text"):
        yield Case(f"{name}, opset {NEWEST}", "torch.nn, dynamo",
                   partial(given, name, "dynamo", opset=NEWEST))  # fmt: skip


def given_twice(name: str, exporter: str, folder: Path) -> Given:
    """A network on disk, and other weights for it, exported by themselves."""
    make, inputs, outputs = NETWORKS[name]
    return export_twice(seeded(make), inputs(), folder, exporter, outputs)


def given(name: str, exporter: str, folder: Path, opset: int | None = None) -> Given:
    """A network on disk."""
    make, inputs, outputs = NETWORKS[name]
    module = seeded(make)
    return export(module, inputs(), folder, exporter, outputs, opset)
