"""The order of the samples: a seeded permutation for each pass, by integer operators in the graph.

The counter-based generator hashes (seed, pass, sample) to 31 bits, without a state, and sorting
the hashes of a pass gives its permutation.  Products stay below 2⁶²: it is the same everywhere.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gdu_compile.builder import INT64, Builder

Integers = npt.NDArray[np.int64]

PRIME = 2**31 - 1
FACTORS = (1_540_483_477, 1_812_433_253, 48_271)
"""Multipliers of MurmurHash2, MT19937 and MINSTD; below PRIME."""
SHIFT = 2**15
MOST_SAMPLES = PRIME


def mixed(x: Integers) -> Integers:
    """A hash of numbers in 0 … PRIME − 1 to 31 bits.

    Example:
        >>> mixed(np.arange(1, 4)).tolist()
        [1969009528, 822839179, 1934775535]
    """
    for factor in FACTORS:
        x = x * factor % PRIME
        x = x ^ (x // SHIFT)
    return x


def order_of(samples: int, steps: int, batch: int, seed: int) -> Integers:
    """Which samples each step takes, int64 [steps, batch]; what ``emit_order`` computes.

    The passes follow each other without a gap: a batch may end one pass and begin the next.

    Example:
        >>> order_of(4, 3, 3, seed=0).tolist()
        [[0, 3, 2], [1, 1, 2], [0, 3, 1]]
    """
    passes = -(-steps * batch // samples)
    counters = (np.arange(passes * samples, dtype=np.int64) + 1) % PRIME
    hashes = mixed((mixed(counters) ^ seed_hash(seed)) % PRIME).reshape(passes, samples)
    keys = hashes * samples + np.arange(samples)  # no two alike
    order = np.argsort(keys, axis=1).reshape(-1)
    return order[: steps * batch].reshape(steps, batch)


def seed_hash(seed: int) -> int:
    """The seed's part of the hash."""
    return int(mixed(np.array([(seed + 1) % PRIME], dtype=np.int64))[0])


def emit_order(b: Builder, samples: int, steps: int, batch: int, seed: int) -> ir.Value:
    """``order_of`` as nodes: INT64 [steps, batch]."""
    passes = -(-steps * batch // samples)
    total = passes * samples

    def op(kind: str, *inputs: ir.Value, name: str, shape: list[int]) -> ir.Value:
        return b.op(kind, *inputs, name=f"order_{name}", dtype=INT64, shape=shape)

    def number(value: int, name: str) -> ir.Value:
        return b.constant(np.array(value, dtype=np.int64), f"order_{name}")

    prime, shift, one = number(PRIME, "prime"), number(SHIFT, "shift"), number(1, "one")
    factors = [number(factor, "factor") for factor in FACTORS]

    def mix(x: ir.Value) -> ir.Value:
        for factor in factors:
            x = op("Mul", x, factor, name="product", shape=[total])
            x = op("Mod", x, prime, name="rest", shape=[total])
            x = op("BitwiseXor", x, op("Div", x, shift, name="high", shape=[total]), name="hash",
                   shape=[total])  # fmt: skip
        return x

    last = number(total + 1, "end")
    counters = op("Mod", op("Range", one, last, one, name="counter", shape=[total]), prime,
                  name="counter", shape=[total])  # fmt: skip
    seeded = op("BitwiseXor", mix(counters), number(seed_hash(seed), "seed"), name="seeded",
                shape=[total])  # fmt: skip
    hashes = mix(op("Mod", seeded, prime, name="seeded", shape=[total]))
    rows = op("Reshape", hashes, b.ints([passes, samples], "order_form"), name="hashes",
              shape=[passes, samples])  # fmt: skip
    count = number(samples, "samples")
    places = op("Range", number(0, "zero"), count, one, name="places", shape=[samples])
    scaled = op("Mul", rows, count, name="scaled", shape=[passes, samples])
    keys = op("Add", scaled, places, name="keys", shape=[passes, samples])
    _, order = b.multi_op(
        "TopK", keys, b.ints([samples], "order_all"), axis=1, largest=0, sorted=1,
        outputs=[("order_sorted", INT64, [passes, samples]), ("order", INT64, [passes, samples])],
    )  # fmt: skip
    flat = op("Reshape", order, b.ints([-1], "order_flat_form"), name="flat", shape=[total])
    used = op("Slice", flat, b.ints([0], "order_start"), b.ints([steps * batch], "order_stop"),
              name="used", shape=[steps * batch])  # fmt: skip
    return op("Reshape", used, b.ints([steps, batch], "order_batches"), name="batches",
              shape=[steps, batch])  # fmt: skip
