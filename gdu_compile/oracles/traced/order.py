"""The order of the samples: a seeded permutation for each pass, computed in the graph.

Sorting the hashes (``random.integers``) of a pass gives its permutation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gdu_compile.oracles.traced.random import Counter, integers


def order_of(samples: int, steps: int, batch: int, seed: Counter) -> Tensor:
    """Which samples each step takes, int64 [steps, batch].

    The passes follow each other without a gap: a batch may end one pass and begin the next.

    Example:
        >>> order_of(4, 3, 3, seed=0).tolist()
        [[1, 3, 0], [2, 0, 1], [3, 2, 3]]
    """
    passes = -(-steps * batch // samples)
    hashes = integers([passes, samples], seed=seed)
    keys = hashes * samples + torch.arange(samples)  # no two alike
    order = torch.argsort(keys, dim=1).reshape(-1)
    return order[: steps * batch].reshape(steps, batch)
