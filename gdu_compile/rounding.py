"""How far two correct runs of one network lie apart: by what it rounds to, and how often in a row.

To round is to move a number by at most u: in float16 by 2⁻¹¹ of itself, in bfloat16 by 2⁻⁸; where
activations become whole numbers of b bits, by half a step, 2⁻ᵇ of the largest.  Two runs that sum
in different orders round independently of each other, uniformly within ±u: each rounding on the
way adds 2·u²/3 to the variance of their difference, and six standard deviations are √24·√(Σ u²).
For floats it is a third of that: u is of the number itself, and a typical one is a third of the
largest.  The last rounding may fall to the other side: 2·u more.  (In a quantized network a
difference grows to this, however small it began: next to the edge of a step a number falls one
step apart.)

A network that magnifies differences from layer to layer exceeds it: it is for a warning.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from gdu_compile.contracts import PASS_KEY
from gdu_compile.legal_inputs import FORWARDS

SUMS = 1e-5
"""Of float32 sums in different orders: 2⁻²⁴ a rounding times a few hundred of them."""

SIX_DEVIATIONS = math.sqrt(24)
TYPICAL = 1 / 3
"""The root mean square of floats, of the largest of some hundreds."""

BITS = {
    ir.DataType.FLOAT16: 11, ir.DataType.BFLOAT16: 8, ir.DataType.FLOAT8E4M3FN: 4,
    ir.DataType.FLOAT8E4M3FNUZ: 4, ir.DataType.FLOAT8E5M2: 3, ir.DataType.FLOAT8E5M2FNUZ: 3,
    ir.DataType.FLOAT4E2M1: 2,
}  # fmt: skip
"""Float kinds that are narrower than float32: u is 2 to the minus this."""

QUANTIZES = ("QuantizeLinear", "DynamicQuantize", "QLinear", "QGemm", "QAttention", "QEmbed")
"""How the names of operators begin that round activations to steps."""
IN_BLOCKS = 4
"""accuracy_level of a MatMulNBits that rounds activations to 8 bits."""


@dataclass(frozen=True, order=True)
class Rounding:
    """To which numbers.

    Attributes:
        bits: u is 2⁻ᵇⁱᵗˢ.
        what: in words.
        typical: u of a typical number, of that of the largest.
    """

    bits: int
    what: str
    typical: float

    @property
    def u(self) -> float:
        """The largest change, of the largest number."""
        return 2.0**-self.bits


@dataclass(frozen=True)
class Path:
    """The roundings on a way through the network, and how many of each in a row."""

    roundings: tuple[tuple[Rounding, int], ...] = ()

    @property
    def variance(self) -> float:
        """Σ u²."""
        return sum(count * (each.typical * each.u) ** 2 for each, count in self.roundings)

    @property
    def expected(self) -> float:
        """What two correct runs differ by at most, of the largest number."""
        last = max((2 * each.u for each, _ in self.roundings), default=0.0)
        return max(SUMS, last + SIX_DEVIATIONS * math.sqrt(self.variance))

    def and_one(self, each: Rounding) -> Path:
        """With one more."""
        counts = Counter(dict(self.roundings))
        counts[each] += 1
        return Path(tuple(sorted(counts.items())))

    def __str__(self) -> str:
        said = [f"{count} to {each.what}" for each, count in self.roundings]
        return f"roundings in a row: {', '.join(said)}" if said else "float32 sums in other orders"


Known = dict[ir.Value, tuple[Path, ir.DataType | None]]
"""Values that depend on an input: the way to them, and their float kind as far as it is known."""


def path_to(model: ir.Model, name: str) -> Path:
    """The way with the largest variance from the inputs to an output.

    Args:
        model: extended or not; nodes of the extension do not count.
        name: of the output.

    Example:
        >>> x, z = ir.val("x", ir.DataType.FLOAT, [1, 4]), ir.val("z", ir.DataType.FLOAT16)
        >>> nodes = [ir.node("Cast", [x], {"to": 10}, outputs=[z])]
        >>> model = ir.Model(ir.Graph([x], [z], nodes=nodes), ir_version=10)
        >>> print(path_to(model, "z"))
        roundings in a row: 1 to float16
    """
    known: Known = {v: (Path(), v.dtype) for v in model.graph.inputs if not v.is_initializer()}
    follow(model.graph, known)
    found = [known[value][0] for value in model.graph.outputs if value.name == name
             and value in known]  # fmt: skip
    return found[0] if found else Path()


def follow(graph: ir.Graph, known: Known) -> None:
    """Add the values that the nodes of a graph compute."""
    for node in graph:
        inner = [body for attr in node.attributes.values() for body in bodies(attr)]
        sources = [known[value] for value in node.inputs if value in known]
        for body in inner:
            if sources:
                known |= {value: (worst(sources), value.dtype) for value in body.inputs}
            follow(body, known)
            sources += [known[value] for value in body.outputs if value in known]
        if sources:
            path, kind = worst(sources), float_kind(node, known)
            if not inner and PASS_KEY not in node.metadata_props:
                path = rounded(path, node, kind, sources)
            known |= {value: (path, value.dtype or kind) for value in node.outputs}


def worst(sources: Iterable[tuple[Path, ir.DataType | None]]) -> Path:
    """The way with the largest variance."""
    return max((path for path, _ in sources), key=lambda path: path.variance)


def rounded(
    path: Path, node: ir.Node, kind: ir.DataType | None,
    sources: Iterable[tuple[Path, ir.DataType | None]],
) -> Path:  # fmt: skip
    """The way behind a node: one rounding longer where it rounds to fewer bits than float32."""
    if node.attributes.get_int("accuracy_level", 0) == IN_BLOCKS:
        return path.and_one(steps(8))
    if node.op_type.startswith(QUANTIZES):
        return path.and_one(quantized_to(node))
    kept = node.op_type in FORWARDS and kind in {given for _, given in sources}
    return path if kept or kind not in BITS else path.and_one(floats(kind))


def floats(kind: ir.DataType) -> Rounding:
    """To the nearest float of a kind."""
    return Rounding(BITS[kind], kind.name.lower(), TYPICAL)


def steps(bits: int) -> Rounding:
    """To the nearest whole number of so many bits."""
    return Rounding(bits, f"steps of {bits} bits", 1.0)


def quantized_to(node: ir.Node) -> Rounding:
    """What a node that quantizes rounds to: the kind of its result, or of the zero point."""
    points = [v for v in node.inputs[2:3] if v is not None and node.op_type == "QuantizeLinear"]
    kinds = [value.dtype for value in [*points, node.outputs[0]] if value.dtype is not None]
    kinds += [ir.DataType(node.attributes.get_int("output_dtype", 0))]
    for kind in kinds:
        if kind in BITS and node.op_type == "QuantizeLinear":
            return floats(kind)
        if kind.is_integer():
            return steps(min(kind.bitwidth, 16))
    return steps(8)


def bodies(attr: ir.Attr) -> list[ir.Graph]:
    """The graphs that an attribute holds."""
    if attr.type == ir.AttributeType.GRAPH:
        return [attr.as_graph()]
    return list(attr.as_graphs()) if attr.type == ir.AttributeType.GRAPHS else []


def float_kind(node: ir.Node, known: Known) -> ir.DataType | None:
    """The float kind of a node's result: what is said, or that of its first float input."""
    said = node.outputs[0].dtype
    if said is not None:
        return said
    if node.op_type == "Cast":
        return ir.DataType(node.attributes.get_int("to", 0))
    like = node.inputs[1:2] if node.op_type in {"CastLike", "DequantizeLinear"} else node.inputs
    kinds = [known[v][1] if v in known else v.dtype for v in like if v is not None]
    floats = [kind for kind in kinds if kind is not None and kind.is_floating_point()]
    return floats[0] if floats else None
