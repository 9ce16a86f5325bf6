"""What PyTorch's own exporter emits runs here as the module it was exported from."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from torch import nn

from gdu_compile.torch_backend import backend

IMAGE, TEXT = torch.randn(2, 8, 12, 10), torch.randn(2, 5, 16)
PLACES = torch.randint(0, 2, (2, 5, 16))


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


class SelfAttention(nn.Module):
    """nn.MultiheadAttention of a text to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x)[0]  # type: ignore[no-any-return]


def causal(x: torch.Tensor) -> torch.Tensor:
    heads = x.view(2, 5, 2, 8).transpose(1, 2)
    return nnf.scaled_dot_product_attention(heads, heads, heads, is_causal=True)


def activations(x: torch.Tensor) -> list[torch.Tensor]:
    functions = [nnf.gelu, nnf.elu, nnf.selu, nnf.celu, nnf.mish, nnf.softplus, nnf.hardsigmoid,
                 nnf.hardtanh, nnf.relu6, nnf.logsigmoid, nnf.softsign, nnf.tanhshrink,
                 nnf.softshrink, nnf.hardshrink, torch.erf, torch.round, torch.trunc]  # fmt: skip
    results = [function(x) for function in functions]
    results += [nnf.gelu(x, approximate="tanh"), nnf.glu(x, 1), nnf.prelu(x, torch.tensor([0.2]))]
    results += [torch.rsqrt(x.abs() + 1), x % 0.7, torch.fmod(x, 0.7), torch.atan2(x, x + 1)]
    return results


def interpolations(x: torch.Tensor) -> list[torch.Tensor]:
    scaled = [
        nnf.interpolate(x, scale_factor=1.7, mode=m) for m in ("nearest", "bilinear", "bicubic")
    ]
    return [
        *scaled, nnf.interpolate(x, scale_factor=2.0, mode="nearest-exact"),
        nnf.interpolate(x, size=(5, 17), mode="bilinear", align_corners=True),
        nnf.interpolate(x, size=(5, 4), mode="bilinear", antialias=True),
    ]  # fmt: skip


CASES: dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]] = {
    "transformer": (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (TEXT,)),
    "attention": (SelfAttention(), (TEXT,)),
    "causal": (Function(causal), (TEXT,)),
    "gru": (nn.GRU(16, 8, 2, bidirectional=True, batch_first=True), (TEXT,)),
    "lstm": (nn.LSTM(16, 8, 2, batch_first=True), (TEXT,)),
    "convolutions": (nn.Sequential(
        nn.Conv2d(8, 4, 3, stride=2, padding=1, dilation=2), nn.BatchNorm2d(4), nn.SiLU(),
        nn.ConvTranspose2d(4, 3, 3, 2, 1, 1), nn.GroupNorm(3, 3), nn.Hardswish(),
        nn.AdaptiveAvgPool2d(3)), (IMAGE,)),
    "interpolations": (Function(interpolations), (IMAGE,)),
    "grid": (Function(lambda x, g: nnf.grid_sample(x, g, padding_mode="reflection",
                                                   align_corners=False)),
             (IMAGE, torch.rand(2, 4, 4, 2) * 3 - 1.5)),
    "pixels": (Function(lambda x: nnf.pixel_unshuffle(nnf.pixel_shuffle(x, 2), 4)), (IMAGE,)),
    "activations": (Function(activations), (IMAGE,)),
    "reductions": (Function(lambda x: (
        x.topk(3)[0], x.cumsum(-1), torch.einsum("bchw,bdhw->bcd", x, x), x.roll(2, 1), x.flip(-1),
        x.std(1), x.logsumexp(1), x.tril(), x.unfold(2, 3, 2), x.argmax(1), x.sort(-1)[0],
        x.prod(1))), (IMAGE,)),
    "fold": (Function(lambda x: nnf.fold(nnf.unfold(x, 3, padding=1, stride=2), (12, 10), 3,
                                         padding=1, stride=2)), (IMAGE,)),
    "scatter": (Function(lambda x, i: (
        x.scatter_add(1, i, x), x.gather(1, i), x.index_put((i[0, :2, 0],), x[:2] + 1))),
        (TEXT, PLACES)),
    "pools": (Function(lambda x: (
        nnf.max_pool2d(x, 3, 2, 1, ceil_mode=True), nnf.adaptive_max_pool2d(x, (3, 5)),
        nnf.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        nnf.lp_pool2d(x, 2, 2), nnf.max_pool2d(x, 2, dilation=2))), (IMAGE,)),
    "norms": (Function(lambda x: (
        nnf.layer_norm(x, (10,)), nnf.instance_norm(x), nnf.local_response_norm(x, 3),
        nnf.normalize(x, dim=1), nnf.rms_norm(x, (10,)))), (IMAGE,)),
    "pads": (Function(lambda x: (
        nnf.pad(x, (1, 2, -1, 3)), *(nnf.pad(x, (1, 2, 2, 1), mode=m)
                                     for m in ("reflect", "replicate", "circular")))), (IMAGE,)),
    "fourier": (Function(lambda x: torch.view_as_real(torch.fft.fft(x, dim=-1))), (TEXT,)),
    "embedding": (nn.Embedding(10, 4), (torch.randint(0, 10, (2, 5)),)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The exporter has much to say."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def flat(value: Any) -> list[Any]:
    return [y for x in value for y in flat(x)] if isinstance(value, list | tuple) else [value]


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("name", CASES)
def test_exported(name: str, opset: int) -> None:
    module, inputs = CASES[name]
    program = torch.onnx.export(module.eval(), inputs, opset_version=opset, dynamo=True,
                                verbose=False)  # fmt: skip
    assert program is not None
    results = backend.run_model(program.model_proto, [x.numpy() for x in inputs])
    wanted = [x.detach().numpy() for x in flat(module(*inputs))]
    for result, expected in zip(results, wanted, strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=2e-5)
