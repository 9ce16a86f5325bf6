"""Algorithms as ONNX graphs: (X, Y) ↦ weights (THEORY §4)."""

from __future__ import annotations

from gdu_compile.oracles.problem import Problem

__all__ = ["Problem"]
