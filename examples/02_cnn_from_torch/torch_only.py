"""Trains an emitted torch model of the digits: torch and safetensors, and nothing of gdu_compile.

python examples/02_cnn_from_torch/torch_only.py build/cnn.gdu.py build/theta.safetensors
"""

from __future__ import annotations

import runpy
import sys

import torch
from safetensors.torch import save_file


def main(source: str, output: str) -> None:
    """Three steps of AdamW on random data, and θ as a file."""
    model = runpy.run_path(source)["Model"]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(3):
        x, y = torch.randn(32, 1, 8, 8), torch.randint(10, (32,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    save_file({name: theta.detach() for name, theta in model.named_parameters()}, output)


if __name__ == "__main__":
    main(*sys.argv[1:3])
