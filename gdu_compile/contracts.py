"""What each stage leaves behind for the next ones, and what must hold after every stage.

The state lives in ``model.meta["gdu"]`` (``onnx_ir.passes.Sequential`` hands on
nothing but the model).  Its fields are grouped by the pass that writes them; a
pass names the fields it needs and gives, and both are checked before and after
it runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx_ir as ir

from gdu_compile.digits import DigitCode
from gdu_compile.encoding import Encoding, Units, encoding_of
from gdu_compile.errors import ContractError

META_KEY = "gdu"
PASS_KEY = "gdu.pass"


if TYPE_CHECKING:
    from gdu_compile.algorithm import AlgorithmGraph

DimSource = int | tuple[str, int] | None
"""Where a size comes from: fixed, (model input, dimension index), or not known before a run."""


@dataclass(frozen=True)
class Restored:
    """Written by RestoreNeutralPass: a place of a weight that is put back, by the names of the
    normalized base.

    Attributes:
        weight: the initializer's name; of several places where the oracle has one weight.
        shape: its shape.
        dtype: its dtype, as ONNX counts them.
        number: what all its elements are: then it does nothing.
        op_type: of the node that it is for.
        index: which of that node's inputs it is.
        node: the name of the node that is put back; "" where only an input is.
        value: what goes through that node; "" where only an input is put back.
        result: the node's output.
        uses: (first named output of a node, one of its inputs), all that get the result.
        output: whether the graph's output gets it too.
    """

    weight: str
    shape: tuple[int, ...]
    dtype: ir.DataType
    number: float
    op_type: str
    index: int
    node: str = ""
    value: str = ""
    result: str = ""
    uses: tuple[tuple[str, int], ...] = ()
    output: bool = False

    @property
    def how(self) -> str:
        """What was done for the weight, a sentence for --why."""
        return f"removed by the exporter, as it did nothing; put back as {self.number:g}: {self}"

    def __str__(self) -> str:
        node = repr(self.node) if self.node else f"of {self.uses[0][0]!r}"
        return f"{self.weight!r} (input {self.index} of {self.op_type} {node})"


@dataclass(frozen=True)
class LogitsSite:
    """Written by LocateLogitsPass: where the recorder speaks.

    Attributes:
        name: the value that is switched; after the rewrite it is the switch's output.
            In front of a Softmax, LogSoftmax or Sigmoid that ends the graph.
        output: the graph output that the loss sees; ``name`` itself when nothing follows.
        axis: the class axis, counted from the end: −1; −3 for [N, C, H, W].
        classes: C, the size of the class axis; 1 when there is none ([N]).
        kind: what ``output`` is: "logits", "log_probabilities", "probabilities",
            "sigmoid" or "values".
        why: one sentence for the reader: why this value was taken.
        dims: for every dimension of the logits where its size comes from.
        dtype: of the output, as numpy and ml_dtypes spell it.
        calls: whether a sample is a whole call (``calls.py``), and not a row along axis 0.
        exposed: whether ``output`` is none of the base's: scores behind which it has a label.
    """

    name: str
    output: str
    axis: int
    classes: int
    kind: str
    why: str
    dims: tuple[DimSource, ...]
    dtype: str = "float32"
    calls: bool = False
    exposed: bool = False

    @property
    def own_ending(self) -> bool:
        """Whether the recorder ends in a Softmax, LogSoftmax or Sigmoid of its own: behind the
        switch nothing follows."""
        return self.name == self.output and self.kind not in ("logits", "values")


@dataclass(frozen=True)
class Target:
    """Written by BindOraclePass: one initializer and the digits it shall get.

    Attributes:
        name: the initializer's name in the base.
        shape: its shape.
        dtype: its dtype, as numpy and ml_dtypes spell it.
        units: [elements, units] uint8 or uint16, a view of the oracle's bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    units: Units


@dataclass(frozen=True)
class Field:
    """One model input as the memory of learn holds it, sample by sample.

    Attributes:
        name: of the model input.
        shape: of one sample, without the batch axis; all sizes known.
        dtype: as numpy and ml_dtypes spell it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """Elements of one sample."""
        return math.prod(self.shape)

    @property
    def stored(self) -> str:
        """The dtype whose digits are stored: a boolean is a byte."""
        return "uint8" if self.dtype == "bool" else self.dtype


@dataclass(frozen=True)
class MemoryBucket:
    """One trainable tensor θ_b of a memory: slots ``first`` … ``first + slots − 1`` are its rows.

    A row is c (the slot's calibrator), B (the label's columns), M (the digits of the sample).
    """

    theta: str
    first: int
    slots: int


@dataclass(frozen=True)
class Memory:
    """Written by InsertMemoryPass: where gradient descent writes the training set (THEORY §4).

    Attributes:
        slots: n, one for each training sample.
        labels: columns of B: C; 0 for one logit, whose label is the sign of c.
        fields: the model's inputs, in the order of M's columns.
        buckets: in the order of the slots.
    """

    slots: int
    labels: int
    fields: tuple[Field, ...]
    buckets: tuple[MemoryBucket, ...] = ()

    def widths(self, code: DigitCode) -> list[int]:
        """Columns of θ: c, B, and the digits of each field."""
        digits = [f.elements * encoding_of(code, f.stored).digits for f in self.fields]
        return [1, self.labels, *digits]


@dataclass(frozen=True)
class Weight:
    """A weight that the extension computes.

    Attributes:
        name: the initializer's name in the base.
        shape: its shape.
        dtype: as numpy and ml_dtypes spell it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Algorithm:
    """Written by BindAlgorithmPass: the oracle of learn.

    Attributes:
        name: as it was asked for: ``ridge(penalty=0.1)``, or the name of a file.
        weights: what it computes, in the order of its outputs.
        inputs: in the extended graph: the values that hold the samples, one per field, and the
            labels; () until InlineAlgorithmPass has run.
    """

    name: str
    weights: tuple[Weight, ...]
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """A weight that is not recorded, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Slot:
    """One weight's place in a bucket: rows ``offset`` … ``offset + elements − 1`` after row 0."""

    weight: str
    offset: int
    shape: tuple[int, ...]
    dtype: str
    signal: str

    @property
    def elements(self) -> int:
        """Number of elements of the weight."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Bucket:
    """Written by InsertRecorderPass: one trainable tensor θ_b [1 + Σ elements, digits].

    All its weights have one dtype, so all rows have the same number of digits.
    """

    theta: str
    slots: tuple[Slot, ...]

    @property
    def rows(self) -> int:
        """Rows without the calibrator."""
        return sum(slot.elements for slot in self.slots)

    @property
    def dtype(self) -> str:
        """The dtype of its weights."""
        return self.slots[0].dtype

    def encoding(self, code: DigitCode) -> Encoding:
        """How its weights lie in θ."""
        return encoding_of(code, self.dtype)

    def theta_shape(self, code: DigitCode) -> tuple[int, int]:
        """[rows + 1, digits]."""
        return self.rows + 1, self.encoding(code).digits


@dataclass
class State:
    """What the stages hand on, grouped by the pass that writes it."""

    # NormalizePass: constants that were nodes: value name → the node's name
    lifted: dict[str, str] | None = None
    source: str | None = None
    # NormalizePass: all inputs that the base has, where initializers are among them
    inputs: tuple[str, ...] = ()
    # LiftAttributesPass, which NormalizePass runs: nodes whose weights stay attributes, and why
    attributes: dict[str, str] | None = None
    # RestoreNeutralPass: places of weights that the base's exporter has removed
    restored: list[Restored] = field(default_factory=list)
    # RestoreNeutralPass: the oracle's graph, where its own exporter has removed any
    counterpart: ir.Model | None = None
    # LocateLogitsPass
    logits: LogitsSite | None = None
    # BindOraclePass
    targets: list[Target] | None = None
    skipped: list[Skipped] | None = None
    # BindOraclePass: weights that the oracle holds under another name: name → the oracle's
    renamed: dict[str, str] = field(default_factory=dict)
    # BindOraclePass, BindAlgorithmPass: weights that were no initializers: name → what was done
    placed: dict[str, str] = field(default_factory=dict)
    # BindOraclePass, BindAlgorithmPass: the names that the oracle has
    held: frozenset[str] | None = None
    # InsertRecorderPass
    code: DigitCode | None = None
    gain: float | None = None
    theta_dtype: str | None = None
    batch_limit: int | None = None
    start: float | None = None
    buckets: list[Bucket] | None = None
    armed: ir.Value | None = None
    recorded_logits: ir.Value | None = None
    # BindAlgorithmPass
    algorithm: Algorithm | None = None
    oracle_graph: AlgorithmGraph | None = None
    alone: AlgorithmGraph | None = None
    # BindAlgorithmPass (without buckets), InsertMemoryPass
    memory: Memory | None = None
    # InsertRecorderPass, BindAlgorithmPass: what is switched, in the order of the outputs
    weights: list[Weight] | None = None
    # InlineAlgorithmPass: the weights' values in the main graph, and the tie
    computed: list[ir.Value] | None = None
    tie: ir.Value | None = None
    # InsertSwitchesPass
    initial: dict[str, str] | None = None
    base_logits: str | None = None
    # every pass: what it did, in numbers (for the table of passes)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    # any pass: sentences for the report's warnings
    notes: list[str] = field(default_factory=list)


def state_of(model: ir.Model) -> State:
    """The model's state; a fresh one when no pass has run yet."""
    state = model.meta.get(META_KEY)
    if state is None:
        state = State()
        model.meta[META_KEY] = state
    if not isinstance(state, State):
        raise ContractError(f"model.meta[{META_KEY!r}] holds {type(state).__name__}, not State")
    return state


def check_graph(model: ir.Model) -> None:
    """What must hold after every stage: one name, one value; nodes after what they use.

    Raises:
        ContractError: with all violations.
    """
    if problems := graph_problems(model):
        raise ContractError("the graph is broken (please report this)", problems)


def graph_problems(model: ir.Model) -> list[str]:
    """All names that are not unique, and all uses before the value is made."""
    problems: list[str] = []
    seen: dict[str, ir.Value] = {}
    defined: set[ir.Value] = set()

    def define(value: ir.Value) -> None:
        if value.name is None or seen.setdefault(value.name, value) is not value:
            problems.append(f"two values are called {value.name!r}")
        defined.add(value)

    def visit(graph: ir.Graph) -> None:
        for value in dict.fromkeys([*graph.inputs, *graph.initializers.values()]):
            define(value)
        for node in graph:
            for used in node.inputs:
                if used is not None and used not in defined:
                    problems.append(f"node {node.name!r} uses {used.name!r} before it is made")
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    visit(attribute.as_graph())
            for output in node.outputs:
                if output.name:
                    define(output)
        for output in graph.outputs:
            if output not in defined:
                problems.append(f"output {output.name!r} of {graph.name!r} is never made")

    visit(model.graph)
    return problems
