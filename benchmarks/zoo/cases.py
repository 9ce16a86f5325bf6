"""The table of all cases, by source; `--only` of the command and the page go by their names."""

from __future__ import annotations

from benchmarks.zoo import (
    from_onnx,
    from_packages,
    from_quantizer,
    from_sklearn,
    from_torch,
    from_transformers,
)
from benchmarks.zoo.case import by_name

SOURCES = (from_onnx, from_torch, from_transformers, from_quantizer, from_sklearn,
           from_packages)  # fmt: skip
CASES = by_name(case for source in SOURCES for case in source.cases())
