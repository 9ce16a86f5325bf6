"""Algorithms written in PyTorch as oracles: a step is traced with its backward, written as ONNX,
and put into a Loop over the batches (THEORY §4).

``sgd``, ``adam`` and ``evolution`` train the base.  A class of one's own has ``init``, ``step``,
``weights`` and the number of steps (``base.Oracle``); it is named ``package.module:Class``.
``random`` has random numbers for it.  torch is imported when such an oracle is built.
"""

from __future__ import annotations

from gdu_compile.oracles.traced.included import adam, evolution, sgd
from gdu_compile.oracles.traced.own import build_own, is_class_name

__all__ = ["adam", "build_own", "evolution", "is_class_name", "sgd"]
