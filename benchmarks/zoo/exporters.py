"""PyTorch's two exporters, as people call them: their defaults, and a dynamic batch."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.case import Given

EXPORTERS = ("dynamo", "torchscript")


class Apply(nn.Module):
    """Modules in their place in a function of any inputs."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleDict(modules)

    def forward(self, *inputs: Tensor) -> Any:
        """As the function says."""
        return self.function(*self.parts.values(), *inputs)


def export(
    module: nn.Module, arguments: dict[str, Tensor], folder: Path, exporter: str,
    outputs: int = 1, opset: int | None = None,
) -> Given:  # fmt: skip
    """Write a module in evaluation mode.

    Args:
        module: takes ``arguments`` in this order.
        arguments: input name → a batch of two.
        folder: where the file goes.
        exporter: one of ``EXPORTERS``.
        outputs: how many the module returns.
        opset: of the file; None for the exporter's own.
    """
    module.eval()
    path, names = folder / "network.onnx", [f"output_{i}" for i in range(outputs)]
    options: dict[str, Any] = {
        "input_names": list(arguments), "output_names": names, "opset_version": opset,
    }  # fmt: skip
    given = tuple(arguments.values())
    if exporter == "dynamo":
        shapes = tuple({0: torch.export.Dim("batch")} for _ in given)
        options |= {"dynamo": True, "verbose": False}
        options["dynamic_shapes"] = (shapes,) if takes_any_number(module) else shapes
    else:
        axes = {name: {0: "batch"} for name in [*arguments, *names]}
        options |= {"dynamo": False, "dynamic_axes": axes}
    with quiet(), torch.no_grad():
        torch.onnx.export(module, given, path, **options)
    return Given(path, {name: tensor.numpy() for name, tensor in arguments.items()})


def export_twice(
    module: nn.Module, arguments: dict[str, Tensor], folder: Path, exporter: str, outputs: int = 1
) -> Given:
    """A network, and the oracle as people have it: other weights of the module, exported anew."""
    base = export(module, arguments, folder, exporter, outputs)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.rand_like(parameter) / 64
            parameter.mul_(1 + noise).add_(noise / 8)
    second = folder / "second"
    second.mkdir()
    oracle = export(module, arguments, second, exporter, outputs)
    return Given(base.path, base.inputs, oracle.path)


def takes_any_number(module: nn.Module) -> bool:
    """Whether the inputs are one parameter, ``*inputs``."""
    parameters = inspect.signature(module.forward).parameters.values()
    return any(parameter.kind == parameter.VAR_POSITIONAL for parameter in parameters)


@contextlib.contextmanager
def quiet() -> Any:
    """Without the exporters' messages."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operators have no form in ONNX
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A module with random weights, the same each time; statistics of norms are random, too."""
    torch.manual_seed(0)
    module = make()
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return module
