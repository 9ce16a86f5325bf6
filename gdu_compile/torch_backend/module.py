"""The lowering: one ONNX graph → one torch.nn.Module, run by ordinary autograd.

Parameters are exactly the trainable initializers; every other tensor is a
buffer.  Nodes are executed in order by the functions of the operator table; an
operator that the table lacks raises only when it is reached, so that a network
whose base torch cannot run can at least be recorded.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from gdu_compile.digits import Array
from gdu_compile.errors import UnsupportedError
from gdu_compile.graph_view import called, nested
from gdu_compile.names import identifier
from gdu_compile.torch_backend import blocks, control_flow, fusion, registry
from gdu_compile.torch_backend.control_flow import names_of
from gdu_compile.torch_backend.numbers import (
    TRACED,
    Numbers,
    as_arguments,
    as_tensor,
    in_numbers,
    known,
    tracing,
)
from gdu_compile.torch_backend.program import Call, Environment, Program, Step

# what a tensor of the graph is handed to, with its name
Hold = Callable[[str, torch.Tensor], None]


class GraphModule(torch.nn.Module):
    """An ONNX model as a module.

    Args:
        model: the model; opset 18 or above; no two values share a name (names.make_unique).
        trainable: names of the initializers that become parameters.

    Attributes:
        inputs: names of the model's inputs, the order of ``forward``'s arguments.
        outputs: names of the model's outputs, the order of its results.
    """

    def __init__(self, model: ir.Model, trainable: Collection[str]) -> None:
        super().__init__()
        self.inputs = tuple(names_of(model.graph.inputs))
        self.outputs = tuple(names_of(model.graph.outputs))
        self.attribute_of: dict[str, str] = {}  # value name → attribute of this module
        self._numbers: dict[str, Numbers] = {}  # constants that are known while torch traces
        for graph in model.graphs():
            for name, value in graph.initializers.items():
                assert value.const_value is not None
                self._hold(name, to_tensor(value.const_value), trainable=name in trainable)
        opset = int(model.graph.opset_imports.get("", 1))
        self._program = lower(model.graph, opset, self._hold)

    def _hold(self, name: str, tensor: torch.Tensor, *, trainable: bool = False) -> None:
        """Make a tensor part of the module under a name that torch and Python allow."""
        attribute = identifier(name)
        while hasattr(self, attribute):
            attribute += "_"
        self.attribute_of[name] = attribute
        if trainable:
            self.register_parameter(attribute, torch.nn.Parameter(tensor.clone()))
        else:
            self.register_buffer(attribute, tensor)
            if (numbers := known(tensor)) is not None:
                self._numbers[name] = numbers

    def run(self, inputs: Mapping[str, torch.Tensor]) -> Environment:
        """Outputs by name.

        Raises:
            UnsupportedError: a node was reached whose operator the table lacks.
            NodeError: torch cannot run a node on the values that it gets.
        """
        # Not getattr, 1 µs each: a memory in many buckets has thousands of constants.
        held: dict[str, Any] = {**self._parameters, **self._buffers}
        environment = {name: held[attribute] for name, attribute in self.attribute_of.items()}
        environment.update(inputs)
        traced = tracing(*inputs.values())
        if traced:
            environment[TRACED] = True
            for name, numbers in self._numbers.items():
                environment[name] = numbers.of(environment[name])
        results = self._program.run(environment)
        if traced:
            results.update((name, as_tensor(results[name])) for name in self.outputs)
        return {name: results[name] for name in self.outputs}

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Inputs in the model's order; one tensor, or a tuple when there are several outputs."""
        results = tuple(self.run(dict(zip(self.inputs, inputs, strict=True))).values())
        return results[0] if len(results) == 1 else results


def lower(graph: ir.Graph, opset: int, hold: Hold) -> Program:
    """A graph as a program; the tensors of Constant nodes are handed to ``hold``."""
    nodes = []
    for node in graph:
        constant = constant_of(node, opset)
        if constant is None:
            nodes.append(node)
        else:
            hold(str(node.outputs[0].name), constant)
    drops = last_uses(graph, nodes)
    steps: list[Step] = []
    done = 0
    while done < len(nodes):
        chain, call = next_call(nodes[done:], opset, hold)
        names = tuple(output.name or "" for output in blocks.results_of(chain))
        dropped = [name for drop in drops[done : done + len(chain)] for name in drop]
        said = f"{called(chain[-1])} ({chain[-1].op_type})"
        steps.append(Step(said, call, names, tuple(dropped)))
        done += len(chain)
    inputs, outputs = names_of(graph.inputs), names_of(graph.outputs)
    made = {output.name for node in nodes for output in node.outputs}
    kept = dict.fromkeys([*inputs, *(name for name in outputs if name in made)])
    return Program(tuple(steps), tuple(inputs), tuple(outputs), tuple(kept))


def constant_of(node: ir.Node, opset: int) -> torch.Tensor | None:
    """The tensor of a Constant node; None for others, and for one that torch cannot have."""
    if node.op_type != "Constant" or node.domain:
        return None
    try:
        return torch.as_tensor(function_of(node, opset)())
    except UnsupportedError:
        return None  # the node raises when it is reached


def next_call(nodes: list[ir.Node], opset: int, hold: Hold) -> tuple[list[ir.Node], Call]:
    """The node, or the few nodes, that are run by the next call, and the call."""
    found = fusion.fused(nodes, lambda node: function_of(node, opset))
    if found is None:
        return nodes[:1], call_of(nodes[0], opset, hold)
    chain, function = found
    return chain, call_on(function, fusion.outer_inputs(chain))


def last_uses(graph: ir.Graph, nodes: list[ir.Node]) -> list[list[str]]:
    """For each node, the names made in this graph that nobody reads after it."""
    kept = {value.name for value in graph.outputs}
    made = {output.name for node in nodes for output in node.outputs}
    seen: set[str | None] = set()
    drops: list[list[str]] = []
    for node in reversed(nodes):
        # Not the outputs of its subgraphs: ONNX has them made in there.
        touched = dict.fromkeys(
            value.name for inner in nested(node) for value in inner.inputs if value is not None
        )
        touched.update(dict.fromkeys(output.name for output in node.outputs))
        last = [n for n in touched if n in made and n not in kept and n not in seen]
        seen.update(touched)
        drops.append([name for name in last if name])
    return drops[::-1]


def call_of(node: ir.Node, opset: int, hold: Hold) -> Call:
    """What executes this node."""
    if node.op_type in control_flow.CALLS and node.domain == "":
        return control_flow.CALLS[node.op_type](node, partial(lower, opset=opset, hold=hold))
    try:
        function = function_of(node, opset)
    except UnsupportedError as error:
        return raising(UnsupportedError(f"node {called(node)}: {error.message}"))
    return traceable(node, function)


def traceable(node: ir.Node, function: partial[Any]) -> Call:
    """``call_on``, and while torch traces what Python knows goes through as numbers."""
    op_type = "" if node.domain else node.op_type
    inputs = names_of(node.inputs)

    def call(environment: Environment) -> tuple[Any, ...]:
        arguments = [environment[name] if name else None for name in inputs]
        if TRACED in environment:
            numbers = in_numbers(op_type, function.keywords, arguments)
            if numbers is not None:
                return (numbers,)
            arguments = as_arguments(op_type, arguments)
        result = function(*arguments)
        return result if isinstance(result, tuple) else (result,)

    return call


def function_of(node: ir.Node, opset: int) -> partial[Any]:
    """The operator table's function with the node's attributes.

    Raises:
        UnsupportedError: the table lacks the operator, or one of its attributes.
    """
    function = registry.lookup(node.op_type, opset, domain=node.domain)
    return partial(function, **attributes_of(node, function))


def attributes_of(node: ir.Node, function: Callable[..., Any]) -> dict[str, Any]:
    """The keywords that the operator table's function is called with.

    Raises:
        UnsupportedError: the function does not know one of the attributes.
    """
    parameters = inspect.signature(function).parameters
    names = {name for name, each in parameters.items() if each.kind == each.KEYWORD_ONLY}
    if unknown := sorted(set(node.attributes) - names):
        raise UnsupportedError(
            f"operator {node.domain or 'ai.onnx'}::{node.op_type} is in the torch operator table "
            f"without the attribute {', '.join(map(repr, unknown))}"
        )
    attributes = {name: attribute_value(a) for name, a in node.attributes.items()}
    if "num_outputs_" in names:
        attributes["num_outputs_"] = len(node.outputs)
    if "dtypes_" in names:
        attributes["dtypes_"] = [dtype_of(value) for value in node.inputs]
    if "label_used_" in names:
        attributes["label_used_"] = is_used(node.outputs[0])
    return attributes


def is_used(value: ir.Value) -> bool:
    """Whether anything reads it."""
    return bool(value.uses()) or value.is_graph_output()


def dtype_of(value: ir.Value | None) -> int | None:
    """The TensorProto.DataType of an input; None where it is absent or the model does not say."""
    if value is not None and value.dtype is not None:
        return int(value.dtype)
    tensor = None if value is None else value.const_value
    return None if tensor is None else int(tensor.dtype)


def call_on(function: Callable[..., Any], inputs: Sequence[ir.Value | None]) -> Call:
    """``function`` on these values of an environment; always a tuple."""
    names = tuple(None if value is None else value.name for value in inputs)

    def call(environment: Environment) -> tuple[Any, ...]:
        arguments = [None if name is None else environment[name] for name in names]
        if TRACED in environment:
            arguments = as_arguments("", arguments)
        result = function(*arguments)
        return result if isinstance(result, tuple) else (result,)

    return call


def raising(error: UnsupportedError) -> Call:
    """A step that raises when it is reached."""

    def call(environment: Environment) -> tuple[Any, ...]:
        raise error

    return call


def attribute_value(attribute: ir.Attr) -> Any:
    """An ONNX attribute as the operator functions expect it."""
    if attribute.type == ir.AttributeType.TENSOR:
        return to_tensor(attribute.as_tensor())
    if attribute.type == ir.AttributeType.STRING:
        return attribute.as_string()
    if attribute.type == ir.AttributeType.STRINGS:
        return list(attribute.as_strings())
    if attribute.type == ir.AttributeType.TYPE_PROTO:
        return None  # of Optional, which does not ask
    if isinstance(attribute.value, Iterable):
        return list(attribute.value)
    return attribute.value


# numpy has no such types of its own; the bits go over as integers of the same width.
BY_BITS = {
    np.dtype(ml_dtypes.bfloat16): (np.uint16, torch.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, torch.float8_e4m3fn),
    np.dtype(ml_dtypes.float8_e4m3fnuz): (np.uint8, torch.float8_e4m3fnuz),
    np.dtype(ml_dtypes.float8_e5m2): (np.uint8, torch.float8_e5m2),
    np.dtype(ml_dtypes.float8_e5m2fnuz): (np.uint8, torch.float8_e5m2fnuz),
    np.dtype(ml_dtypes.float8_e8m0fnu): (np.uint8, torch.float8_e8m0fnu),
}
# Below 8 bits: one number in a byte.
HELD_IN: dict[np.dtype[Any], Any] = {
    np.dtype(ml_dtypes.uint4): np.uint8,
    np.dtype(ml_dtypes.int4): np.int8,
    np.dtype(ml_dtypes.float4_e2m1fn): ml_dtypes.float8_e4m3fn,
    np.dtype(ml_dtypes.uint2): np.uint8,
    np.dtype(ml_dtypes.int2): np.int8,
}


def to_array(tensor: torch.Tensor) -> Array:
    """A torch tensor as a numpy (or ml_dtypes) array of its own on the CPU; the way back."""
    plain = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    for dtype, (integers, torch_dtype) in BY_BITS.items():
        if plain.dtype == torch_dtype:
            bits = torch.uint16 if integers is np.uint16 else torch.uint8
            return np.asarray(plain.view(bits).numpy().view(dtype))
    return np.asarray(plain.numpy())


def to_tensor(tensor: ir.TensorProtocol) -> torch.Tensor:
    """An ONNX tensor as a torch tensor that shares its memory (one of 4 or 2 bits: by value).

    Raises:
        UnsupportedError: torch has no such dtype (strings).
    """
    array = np.ascontiguousarray(tensor.numpy()).reshape(tuple(tensor.shape.numpy()))
    if array.dtype in HELD_IN:
        array = array.astype(HELD_IN[array.dtype])
    with warnings.catch_warnings():
        # Read-only memory (a mapped file) is fine: buffers are never written to.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        try:
            if array.dtype in BY_BITS:
                integers, dtype = BY_BITS[array.dtype]
                return torch.from_numpy(array.view(integers)).view(dtype)
            return torch.from_numpy(array)
        except TypeError as error:
            raise UnsupportedError(
                f"tensor {tensor.name!r}: torch has no dtype for {tensor.dtype}"
            ) from error
