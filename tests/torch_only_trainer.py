"""Trains emitted torch models with nothing but torch: no import of gdu_compile is possible here.

Run as a program: JOBS.json, a list of {source, output, optimizer, data}.  Three steps each, on the
batches 64, 1 and 13 of the data.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.3, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
}
BATCHES = (64, 1, 13)


def main(source: str, output: str, optimizer: str, data: str) -> None:
    """Load, three steps, save the parameters."""
    model = runpy.run_path(source)["Model"]()
    chosen = OPTIMIZERS[optimizer](model.parameters())
    with np.load(data) as arrays:
        batches = [torch.from_numpy(arrays[name]).split(BATCHES) for name in ("x", "y")]
    for x, y in zip(*batches, strict=True):
        chosen.zero_grad()
        loss_of(model(x), y).backward()
        chosen.step()
    save_file({name: p.detach() for name, p in model.named_parameters()}, output)


def loss_of(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits, or of a Softmax's probabilities; binary for one column."""
    if output.shape[1] == 1:
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        return loss(output[:, 0], y.to(torch.float32))
    if torch.allclose(output.sum(1), torch.ones(len(output))):
        return torch.nn.functional.nll_loss(output.log(), y)
    return torch.nn.functional.cross_entropy(output, y)


if __name__ == "__main__":
    sys.modules["gdu_compile"] = None  # type: ignore[assignment]  # importing it fails
    for job in json.loads(Path(sys.argv[1]).read_text()):
        main(**job)
