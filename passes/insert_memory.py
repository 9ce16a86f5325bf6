"""InsertMemoryPass: θ, the memory that training fills, and the logits that fill it.

Before: base.  After: θ buckets ([slots, 1 + C + digits], all 0) are initializers, and
the main graph also computes ``armed`` (every slot is filled) and the logits

    z_i = z0 + γ·(B_j + v·(c_j + ⟨M_j, s(x_i)⟩)),   j = a + i,   v = e_0

for the i-th sample of a batch, a = 1 + max{j : c_j ≠ 0} (THEORY §4).  z0 is 0, and ½
for values.  Nothing uses them yet: the model's outputs are unchanged.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir
from gdu_compile.passes._base import GduPass
from gdu_compile.passes.insert_recorder import add_theta, check_theta_dtype

from gdu_compile.builder import INT64, Builder
from gdu_compile.contracts import LogitsSite, Memory, MemoryBucket, State
from gdu_compile.digits import DEFAULT_GAIN, DigitCode, check_gain
from gdu_compile.emit import emit_ending
from gdu_compile.emit_memory import emit_filled, emit_memory_recorder, emit_samples
from gdu_compile.logits import value_at
from gdu_compile.names import Names
from gdu_compile.number_formats import numpy_dtype

MEMORY_BUCKET_BYTES = 8 << 20
"""Size of a bucket unless said.  A step of few samples costs one bucket, and a little for every
other one; a step of all samples is fastest where no tensor is above 32 MB, for which glibc asks the
system anew each time (measured: ``python -m benchmarks.learn``, docs/cost.md)."""
VALUES_START = 0.5
"""z0 of values, whose targets are one-hot: at 0 a target of 0 would have no gradient."""


class InsertMemoryPass(GduPass):
    """Add θ and the recorder of samples.

    Args:
        gain: γ, a power of two (THEORY Lemma 4).
        bucket_bytes: size of θ at which a new bucket begins.
        theta_dtype: dtype of θ, "float32" or "bfloat16".
    """

    needs = ("logits", "memory", "code")
    gives = ("memory", "armed", "recorded_logits", "gain", "theta_dtype", "start")

    def __init__(
        self,
        *,
        gain: float = DEFAULT_GAIN,
        bucket_bytes: int = MEMORY_BUCKET_BYTES,
        theta_dtype: str = "float32",
    ) -> None:
        check_gain(gain)
        check_theta_dtype(theta_dtype)
        self.gain = gain
        self.bucket_bytes = bucket_bytes
        self.theta_dtype = theta_dtype

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        assert state.memory is not None and state.logits is not None and state.code is not None
        code, site, names, graph = state.code, state.logits, Names(model), model.graph
        memory = state.memory = with_buckets(state.memory, code, self.bucket_bytes, names)
        columns = sum(memory.widths(code))
        thetas = [
            add_theta(graph, bucket.theta, (bucket.slots, columns), numpy_dtype(self.theta_dtype))
            for bucket in memory.buckets
        ]
        b = Builder(names, type(self).__name__)
        state.armed, first = emit_filled(b, thetas, memory)
        graph.insert_before(graph[0], b.nodes)

        b = Builder(names, type(self).__name__)
        inputs = {str(value.name): value for value in graph.inputs}
        samples = [inputs[field.name] for field in memory.fields]
        batch = b.op("Shape", samples[0], name="gdu_batch", dtype=INT64, shape=[1], start=0, end=1)
        state.start = VALUES_START if site.kind == "values" else 0.0
        z = emit_memory_recorder(
            b, thetas, memory, code, signal=emit_samples(b, samples, memory, code), batch=batch,
            first=first, start=state.start, gain=self.gain,
        )  # fmt: skip
        state.recorded_logits = emit_ending(b, like_logits(b, z, site), site)
        producer = value_at(graph, site.name).producer()
        assert producer is not None
        graph.insert_after(producer, b.nodes)
        state.gain, state.theta_dtype = self.gain, self.theta_dtype
        return {"buckets": len(thetas), "parameters": memory.slots * columns}


def with_buckets(memory: Memory, code: DigitCode, bucket_bytes: int, names: Names) -> Memory:
    """The memory cut into buckets of whole slots."""
    row = sum(memory.widths(code)) * np.dtype(np.float32).itemsize
    size = max(bucket_bytes // row, 1)
    buckets = tuple(
        MemoryBucket(names.fresh(f"gdu_theta_{index}"), index * size,
                     min(size, memory.slots - index * size))
        for index in range(math.ceil(memory.slots / size))
    )  # fmt: skip
    return dataclasses.replace(memory, buckets=buckets)


def like_logits(b: Builder, z: ir.Value, site: LogitsSite) -> ir.Value:
    """[batch, C] as the logits have it: [batch] where there is no class axis."""
    if len(site.dims) == 2:
        return z
    return b.op("Squeeze", z, b.ints([1], "gdu_class_axis"), name="gdu_z_flat", shape=[None])
