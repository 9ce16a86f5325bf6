"""What an oracle is built for: the base, its logits, and the form of the training set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir as ir

from gdu_compile.contracts import Field, LogitsSite
from gdu_compile.digits import Array
from gdu_compile.report import OriginalCheck

ORIGINAL = "gdu.original"
"""Where a model made from PyTorch keeps its Original, in ``meta``."""


class Original(Protocol):
    """The algorithm in PyTorch from which a graph was made."""

    def check(self, samples: Sequence[Array], labels: Array) -> Any:
        """Compare the first steps on the training set.

        Raises:
            InputError: the graph does not compute what PyTorch computes.
        """
        ...

    def compare(
        self, samples: Sequence[Array], labels: Array, weights: Mapping[str, Array]
    ) -> tuple[OriginalCheck, dict[str, Array]]:
        """Run all of it in PyTorch, and compare its weights; returns them too."""
        ...


@dataclass(frozen=True)
class Problem:
    """What an oracle's builder is given.

    The algorithm that it returns is an onnx_ir model of opset 18 or above.  Inputs: one per field,
    under the field's name, [n, *shape] of its dtype, and the labels, ``Y``, INT64 [n] (0 and 1 for
    one logit).  Outputs: one per weight, under its name in the base, of its shape and dtype.  n may
    be dynamic, or ``samples``.

    Attributes:
        base: the normalized base (every weight is an initializer of the main graph); not to be
            changed.
        site: the base's logits.
        fields: the model's inputs as the memory holds them.
        samples: n, the number of training samples.
    """

    base: ir.Model
    site: LogitsSite
    fields: tuple[Field, ...]
    samples: int
