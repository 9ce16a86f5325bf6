"""Trains an extended ONNX file in tinygrad: its own importer and autograd, every float initializer.

Run as a program: EXTENDED.onnx DATA.npz THETA.npz STEPS.  It knows nothing of gdu-compile.
"""

from __future__ import annotations

import sys

import numpy as np
from tinygrad import Tensor, dtypes
from tinygrad.helpers import Context
from tinygrad.nn.onnx import OnnxRunner
from tinygrad.nn.optim import SGD


def main(extended: str, data: str, output: str, steps: int) -> None:
    """Train, check that nothing but θ gets a gradient, and save the initializers."""
    runner = OnnxRunner(extended)
    trained = {
        name: value.contiguous().realize()
        for name, value in runner.graph_values.items()
        if isinstance(value, Tensor) and value.dtype == dtypes.float32
    }
    runner.graph_values.update(trained)
    with np.load(data) as arrays:
        x, y = Tensor(arrays["x"]), Tensor(arrays["y"].astype(np.int32))
    optimizer = SGD(list(trained.values()), lr=0.3, momentum=0.9)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(runner({"x": x}), y).backward()
        for name, value in trained.items():
            assert value.grad is not None, name
            gradient = float(value.grad.abs().max().item())
            moves = step == 0 and name.startswith("gdu_theta")
            assert (gradient > 0) if moves else gradient == 0, (step, name, gradient)
        with Context(TRAINING=1):
            optimizer.step()
    np.savez(output, **{name: value.numpy() for name, value in trained.items()})


def loss_of(outputs: dict[str, Tensor], y: Tensor) -> Tensor:
    """Cross-entropy of logits, or the negative log-likelihood of a Softmax's p."""
    if "logits" in outputs:
        return outputs["logits"].sparse_categorical_crossentropy(y)
    p = outputs["p"]
    return -(p.log() * y.one_hot(p.shape[-1])).sum(axis=-1).mean()


if __name__ == "__main__":
    main(*sys.argv[1:4], steps=int(sys.argv[4]))
