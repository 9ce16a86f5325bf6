"""Cases for the tests of the zoo, in a module that a process of its own imports quickly."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from benchmarks.zoo.case import Case, Given


def case_of(text: str) -> Case:
    """A network in ONNX's text format."""
    return Case("own", "here", partial(save, text))


def save(text: str, folder: Path) -> Given:
    """A network as a file, and inputs for it."""
    path = folder / "own.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return Given(path, {"x": np.array([[1, -2, 3], [4, 5, -6]], np.float32)})


def dies(folder: Path) -> Given:
    """A network that takes the process with it."""
    os._exit(7)
