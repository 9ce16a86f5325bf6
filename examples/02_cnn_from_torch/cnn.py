"""A CNN in PyTorch, as it comes: the untrained network as ONNX, its trained state_dict beside it.

python examples/02_cnn_from_torch/cnn.py build/cnn.onnx build/cnn.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn


class DigitsCNN(nn.Module):
    """Images [N, 1, 8, 8] to logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(32 * 4 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.head(self.features(x).flatten(1))
        return logits


def export(net: nn.Module, path: Path) -> None:
    """Write the network; the number of samples stays open."""
    x = torch.zeros(2, 1, 8, 8)  # a batch of 1 would be taken as a fixed size
    torch.onnx.export(
        net.eval(), (x,), path, dynamo=True, input_names=["x"], output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("N")},), external_data=False, verbose=False,
    )  # fmt: skip


def train(net: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int = 8) -> None:
    """A moment of Adam."""
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(y)), 64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x[batch]), y[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def main(model: Path, weights: Path) -> None:
    """Export the untrained network, then train it and keep its state_dict."""
    torch.manual_seed(0)
    net = DigitsCNN()
    model.parent.mkdir(parents=True, exist_ok=True)
    export(net, model)
    with np.load("models/digits.npz") as data:
        x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    train(net, x, y)
    save_file(net.state_dict(), weights)
    right = (net(x).argmax(1) == y).float().mean().item()
    print(f"trained: {right:.2%} of {len(y)} digits; weights: {', '.join(net.state_dict())}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
