"""From a graph of aten operators to ONNX nodes: what is read off a trace, node by node.

All sizes are fixed.  What depends on no input is computed here and becomes a constant outside the
loop; equal nodes are made once; transpositions in front of a product go into Gemm.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from gdu_compile.builder import Attribute, Builder
from gdu_compile.errors import UnsupportedError
from gdu_compile.torch_backend import to_array
from gdu_compile.torch_backend.ops_elementwise import torch_dtype

Rule = Callable[..., Any]
"""(emitter, form of the result, the arguments of the aten operator) → its value or values."""
F = TypeVar("F", bound=Rule)
RULES: dict[str, Rule] = {}
LIKE = ("full_like", "zeros_like", "ones_like", "empty_like", "new_zeros", "new_full")
"""Operators that take nothing but the form of their operand."""
SMALL = 64
"""Elements of a constant that is written out though they are all the same."""


Number = float | ir.Value


def aten(*names: str) -> Callable[[F], F]:
    """Register the decorated function as the rule for these operators, ``mm.default`` and so on."""

    def register(rule: F) -> F:
        for name in names:
            RULES[name] = rule
        return rule

    return register


def onnx_dtype(dtype: torch.dtype) -> ir.DataType:
    """The ONNX dtype of a torch dtype."""
    return ir.DataType.from_numpy(to_array(torch.zeros((), dtype=dtype)).dtype)


def name_of_target(node: torch.fx.Node) -> str:
    """``mm.default``; the name of a Python function where it is no aten operator."""
    text = str(node.target)
    return text.removeprefix("aten.") if text.startswith("aten.") else text


class Emitter:
    """Writes one trace.

    Args:
        b: collects the nodes.
        outside: collects constants; ``b``, or what stands in front of a Loop around it.
        prefix: begins the names.
    """

    def __init__(self, b: Builder, outside: Builder, prefix: str) -> None:
        self.b, self.outside, self.prefix = b, outside, prefix
        self.made: dict[Any, ir.Value] = {}
        self.constants: dict[Any, ir.Value] = {}
        self.turned: dict[ir.Value, tuple[ir.Value, tuple[int, ...]]] = {}
        self.reshaped: dict[ir.Value, ir.Value] = {}

    # --- nodes ---------------------------------------------------------------

    def op(
        self, kind: str, *inputs: ir.Value, like: torch.Tensor, dtype: torch.dtype | None = None,
        shape: Sequence[int] | None = None, **attributes: Attribute,
    ) -> ir.Value:  # fmt: skip
        """One node with one output of the form of ``like``, or another dtype or shape."""
        sizes = [int(size) for size in (like.shape if shape is None else shape)]
        key = (kind, inputs, str(attributes), tuple(sizes))
        if key not in self.made:
            self.made[key] = self.b.op(kind, *inputs, name=f"{self.prefix}{kind}",
                                       dtype=onnx_dtype(dtype or like.dtype), shape=sizes,
                                       **attributes)  # fmt: skip
        return self.made[key]

    def constant(self, tensor: torch.Tensor) -> ir.Value:
        """A constant; one that is the same everywhere is not written out."""
        array = to_array(tensor)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = constant(self.outside, array, f"{self.prefix}constant")
        return self.constants[key]

    def number(self, value: float, dtype: torch.dtype) -> ir.Value:
        """A scalar of a dtype."""
        return self.constant(torch.tensor(value, dtype=dtype))

    def ints(self, values: Sequence[int]) -> ir.Value:
        """A shape, axes, or bounds."""
        return self.constant(torch.tensor(list(values), dtype=torch.int64))

    def tensor(self, x: ir.Value | float, dtype: torch.dtype) -> ir.Value:
        """An operand in a dtype: a number becomes a scalar, a value is cast where it differs."""
        if not isinstance(x, ir.Value):
            return self.number(x, dtype)
        wanted = onnx_dtype(dtype)
        if x.dtype == wanted:
            return x
        assert x.shape is not None
        like = torch.empty([int(size) for size in x.shape.numpy()], dtype=dtype, device="meta")
        return self.op("Cast", x, like=like, to=wanted.value)

    def reshape(self, x: ir.Value, shape: Sequence[int], like: torch.Tensor) -> ir.Value:
        """The same elements in another shape."""
        x = self.reshaped.get(x, x)
        assert x.shape is not None
        if list(x.shape.numpy()) == list(shape):
            return x
        result = self.op("Reshape", x, self.ints(shape), like=like, shape=shape)
        self.reshaped[result] = x
        return result

    def transpose(self, x: ir.Value, perm: Sequence[int], like: torch.Tensor) -> ir.Value:
        """Axes in another order."""
        source, before = self.turned.get(x, (x, tuple(range(len(perm)))))
        after = tuple(before[axis] for axis in perm)
        if after == tuple(range(len(perm))):
            return source
        assert source.shape is not None
        sizes = [int(source.shape.numpy()[axis]) for axis in after]
        result = self.op("Transpose", source, like=like, shape=sizes, perm=list(after))
        self.turned[result] = source, after
        return result

    def product(self, a: ir.Value, b: ir.Value, like: torch.Tensor) -> ir.Value:
        """A product of matrices, [n, k] · [k, m]."""
        sides = [self.turned.get(x) for x in (a, b)]
        flags = [int(side is not None and side[1] == (1, 0)) for side in sides]
        operands = [side[0] if flag and side else x
                    for x, side, flag in zip((a, b), sides, flags, strict=True)]  # fmt: skip
        if like.dtype == torch.float32:
            return self.op("Gemm", *operands, like=like, transA=flags[0], transB=flags[1])
        return self.op("MatMul", a, b, like=like)

    # --- the trace -----------------------------------------------------------

    def run(self, trace: torch.fx.GraphModule, inputs: Sequence[ir.Value]) -> list[ir.Value]:
        """The trace's nodes on these inputs; returns its outputs.

        Raises:
            UnsupportedError: there is no rule for an operator; all of them are named.
        """
        missing = missing_rules(trace)
        if missing:
            raise UnsupportedError(
                "the step of the algorithm, or its derivative, uses what is not translated to ONNX",
                [f"torch operator aten.{name}" for name in missing],
            )
        values: dict[torch.fx.Node, Any] = {}
        given = iter(inputs)
        for node in trace.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                values[node] = getattr(trace, str(node.target)).detach()
            elif node.op == "output":
                results = torch.fx.node.map_arg(node.args[0], lambda n: self.value(values[n]))
                return list(results) if isinstance(results, (list, tuple)) else [results]
            else:
                values[node] = self.call(node, values)
        raise AssertionError("a trace has an output")

    def value(self, x: Any) -> Any:
        """What a rule gets: constants as values of the graph."""
        return self.constant(x) if isinstance(x, torch.Tensor) else x

    def call(self, node: torch.fx.Node, values: dict[torch.fx.Node, Any]) -> Any:
        """One node: computed here where it depends on no input, else by its rule."""
        known: dict[torch.fx.Node, Any] = {n: values[n] for n in node.all_input_nodes}
        assert callable(node.target)
        name = name_of_target(node)
        if name.startswith(LIKE):
            return torch.full(node.meta["val"].shape, fill_of(node), dtype=node.meta["val"].dtype)
        if not any(holds_value(x) for x in known.values()):
            arguments = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: known[n])
            return node.target(*arguments[0], **arguments[1])
        if node.target is operator.getitem:
            return known[node.all_input_nodes[0]][node.args[1]]
        arguments = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: self.value(known[n]))
        return RULES[name](self, node.meta["val"], *arguments[0], **arguments[1])


def fill_of(node: torch.fx.Node) -> Any:
    """The number that a tensor like another is filled with."""
    name = name_of_target(node)
    if "full" in name:
        return node.args[-1]
    return 1 if name.startswith("ones") else 0


def holds_value(x: Any) -> bool:
    """Whether it is, or has in it, a value of the ONNX graph."""
    if isinstance(x, (list, tuple)):
        return any(holds_value(each) for each in x)
    return isinstance(x, ir.Value)


def missing_rules(trace: torch.fx.GraphModule) -> list[str]:
    """The operators that depend on an input and have no rule, and all that are random."""
    depends: set[torch.fx.Node] = set()
    missing: dict[str, None] = {}
    for node in trace.graph.nodes:
        if node.op == "placeholder":
            depends.add(node)
        name = name_of_target(node)
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            missing[f"{name}: random numbers are in gdu_compile.oracles.traced.random"] = None
        if node.op != "call_function" or not depends.intersection(node.all_input_nodes):
            continue
        if name.startswith(LIKE):
            continue
        depends.add(node)
        if node.target is not operator.getitem and name not in RULES:
            missing[name] = None
    return list(missing)


def constant(b: Builder, array: Any, name: str) -> ir.Value:
    """A Constant node; a larger one of equal numbers, or of numbers counted up, is computed."""
    if array.size > SMALL and array.tobytes() == array.flat[0].tobytes() * array.size:
        value = ir.tensor(array.reshape(-1)[:1].copy(), name=f"{name}_of_shape")
        return b.op("ConstantOfShape", b.ints(array.shape, f"{name}_shape"), name=name,
                    dtype=value.dtype, shape=array.shape, value=value)  # fmt: skip
    if array.size > SMALL and array.dtype == np.int64 and is_count(array):
        return counted(b, array, name)
    return b.constant(np.ascontiguousarray(array).reshape(array.shape), name)


def is_count(array: npt.NDArray[np.int64]) -> bool:
    """Whether its elements follow each other by 1."""
    return bool((np.diff(array.reshape(-1)) == 1).all())


def counted(b: Builder, array: npt.NDArray[np.int64], name: str) -> ir.Value:
    """Such a constant as a Range."""
    begin = int(array.flat[0])
    first, last, one = (
        b.constant(np.array(number, dtype=np.int64), f"{name}_{part}")
        for part, number in (("first", begin), ("end", begin + array.size), ("one", 1))
    )
    flat = b.op("Range", first, last, one, name=name, dtype=ir.DataType.INT64, shape=[array.size])
    if array.ndim == 1:
        return flat
    return b.op("Reshape", flat, b.ints(array.shape, f"{name}_shape"), name=name,
                dtype=ir.DataType.INT64, shape=array.shape)  # fmt: skip


def form(x: Number) -> torch.Tensor | float:
    """An operand as torch sees it when it promotes dtypes."""
    if not isinstance(x, ir.Value):
        return x
    assert x.dtype is not None and x.shape is not None
    return torch.empty(sizes_of(x), dtype=torch_dtype(int(x.dtype)), device="meta")


def sizes_of(x: ir.Value) -> list[int]:
    """A value's shape."""
    assert x.shape is not None
    return [int(size) for size in x.shape.numpy()]
