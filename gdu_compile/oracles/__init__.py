"""Algorithms as ONNX graphs: (X, Y) ↦ weights (THEORY §4).

``build`` makes one from a text such as ``ridge(penalty=0.1)``, for a ``Problem``.  Others add their
own by an entry point of the group ``gdu_compile.oracles``: a function of a Problem, and of keyword
arguments, that returns an onnx_ir model.
"""

from __future__ import annotations

from gdu_compile.oracles.alone import problem_of, run_alone
from gdu_compile.oracles.exhaustive import exhaustive
from gdu_compile.oracles.nearest_mean import nearest_mean
from gdu_compile.oracles.perceptron import perceptron
from gdu_compile.oracles.problem import ORIGINAL, Original, Problem
from gdu_compile.oracles.registry import ENTRY_POINTS, ORACLES, Description, build, describe
from gdu_compile.oracles.ridge import ridge
from gdu_compile.oracles.traced import adam, sgd

__all__ = [
    "ENTRY_POINTS", "ORACLES", "ORIGINAL", "Description", "Original", "Problem", "adam", "build",
    "describe", "exhaustive", "nearest_mean", "perceptron", "problem_of", "ridge", "run_alone",
    "sgd",
]  # fmt: skip
