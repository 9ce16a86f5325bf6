"""A model as one Python file that needs only torch and safetensors: a torch.nn.Module, written out.

``forward`` has one line for each node, in order, with the names of the values and their shapes; an
If is Python's ``if``, a Loop or Scan a ``for``.  The functions that it calls are those of the
operator table, copied into the file (``excerpt.py``), so it computes what GraphModule computes.
"""

from __future__ import annotations

import builtins
import inspect
import keyword
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from gdu_compile.errors import UnsupportedError
from gdu_compile.graph_view import called
from gdu_compile.names import identifier
from gdu_compile.torch_backend import ops_elementwise, ops_unsigned, registry
from gdu_compile.torch_backend.control_flow import Stack, of_each
from gdu_compile.torch_backend.excerpt import Excerpt, fresh
from gdu_compile.torch_backend.module import GraphModule, attributes_of
from gdu_compile.version import __version__

WIDTH = 100
SMALL = 8
"""Elements of a constant that is written as numbers."""
RESERVED = {"_", "Model", "Path", "count", "load_file", "nnf", "number", "self", "tensors",
            "torch", "weights"}  # fmt: skip
QUOTES = {'"', "\\"}
STRING, GLUE = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", "\0"
"""A literal as repr writes it, and what a blank in it is while the line is broken."""
UNSIGNED = {ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64}

SIGNS: dict[Any, str] = {
    torch.add: "+", torch.sub: "-", torch.mul: "*", torch.eq: "==", torch.gt: ">", torch.ge: ">=",
    torch.lt: "<", torch.le: "<=",
}  # fmt: skip
"""Functions of two tensors for which Python has an operator."""

HEADER = '''"""{about}

Written by gdu-compile {version}.  Needs torch and safetensors, and nothing else; its tensors are in
the .safetensors file of the same name beside it.

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
"""
'''
CLASS = '''def number(model, name, value, dtype):
    """A small constant."""
    model.register_buffer(name, torch.tensor(value, dtype=dtype), persistent=False)


class Model(torch.nn.Module):
    """{about}"""

    def __init__(self, weights=Path(__file__).with_suffix(".safetensors")):
        super().__init__()
        tensors = load_file(weights)
{tensors}

    def forward(self, {inputs}):
        """Returns {outputs}.

        Args:
{notes}
        """
{lines}'''


def to_source(model: ir.Model, module: GraphModule, about: str) -> str:
    """The text of the file.

    Args:
        model: the model; its branches hold what only they use, no two values share a name.
        module: the same model, lowered: it says what the tensors are called.
        about: one line: what the model is.

    Raises:
        UnsupportedError: a function of the operator table has no source, or a constant in an
            attribute is too large to be written out.
    """
    return Writer(model, module).file(about)


def tensors_of(module: GraphModule) -> dict[str, Tensor]:
    """What the file loads: the parameters, and the buffers that it does not write as numbers."""
    buffers = {name: x for name, x in module.named_buffers() if not is_literal(x)}
    return {**{name: p.detach() for name, p in module.named_parameters()}, **buffers}


class Writer:
    """Writes one model.

    Attributes:
        locals: value name → variable of ``forward``.
        excerpt: the functions that are called.
        helpers: expression → name, for functions that are made by a call.
        lines: ``forward``, so far.
    """

    def __init__(self, model: ir.Model, module: GraphModule) -> None:
        self.model, self.module = model, module
        self.opset = int(model.graph.opset_imports.get("", 1))
        self.locals: dict[str, str] = {}
        self.taken = {*RESERVED, *dir(builtins), *keyword.kwlist}
        for graph in model.graphs():
            made = [output for node in graph for output in node.outputs]
            for name in (str(value.name or "") for value in [*graph.inputs, *made]):
                if name and name not in module.attribute_of and name not in self.locals:
                    self.locals[name] = fresh(identifier(name), self.taken)
        self.excerpt = Excerpt(set(self.taken))
        self.helpers: dict[str, str] = {}
        self.lines: list[str] = []

    # --- the parts of the file ---------------------------------------------------

    def file(self, about: str) -> str:
        """Everything."""
        graph = self.model.graph
        if self.block(graph, 2):
            self.add(2, f"return {', '.join(self.ref(value) for value in graph.outputs)}")
        self.excerpt.imports |= {
            "from pathlib import Path", "from safetensors.torch import load_file",
        }  # fmt: skip
        inputs = [value for value in graph.inputs if value.name in self.module.inputs]
        names = [self.locals[str(value.name)] for value in inputs]
        notes = [f"            {name}: {self.note(value)}."
                 for value, name in zip(inputs, names, strict=True)]  # fmt: skip
        outputs = ", ".join(f"{harmless(str(value.name))}: {self.note(value)}"
                            for value in graph.outputs)  # fmt: skip
        parts = [
            f"{HEADER.format(about=about, version=__version__)}\n"
            + self.excerpt.import_lines(),
            self.excerpt.text(),
            "\n".join(f"{name} = {text}" for text, name in self.helpers.items()),
            CLASS.format(about=about, tensors="\n".join(self.held()), inputs=", ".join(names),
                         outputs=outputs, notes="\n".join(notes), lines="\n".join(self.lines)),
        ]  # fmt: skip
        return "\n\n\n".join(part for part in parts if part) + "\n"

    def held(self) -> list[str]:
        """The parameters and buffers, one line each."""
        onnx_names = {attribute: name for name, attribute in self.module.attribute_of.items()}
        lines = []
        for name, x in [*self.module.named_parameters(), *self.module.named_buffers()]:
            shape = f"  # {list(x.shape)} {str(x.dtype).removeprefix('torch.')}"
            if isinstance(x, torch.nn.Parameter):
                text = f'self.{name} = torch.nn.Parameter(tensors["{name}"])'
            elif is_literal(x):
                text, shape = f'number(self, "{name}", {literal(x.tolist())}, {x.dtype})', ""
            else:
                text = f'self.register_buffer("{name}", tensors["{name}"])'
            called_ = "" if onnx_names[name] == name else f"  # {harmless(onnx_names[name])}"
            lines.append(f"        {text}{shape}{called_}")
        return lines

    # --- lines and names -----------------------------------------------------------

    def ref(self, value: ir.Value | None) -> str:
        """A value in an expression."""
        if value is None:
            return "None"
        name = str(value.name)
        held = self.module.attribute_of.get(name)
        return self.locals[name] if held is None else f"self.{held}"

    def note(self, value: ir.Value) -> str:
        """Shape and dtype of a value, and what ONNX calls it where Python cannot."""
        sizes = [str(size) if isinstance(size, int) else harmless(str(size.value or "?"))
                 for size in value.shape or ()]  # fmt: skip
        shape = "?" if value.shape is None else f"[{', '.join(sizes)}]"
        dtype = "" if value.dtype is None else f" {str(value.dtype).lower()}"
        name = str(value.name)
        other = "" if self.locals.get(name, name) == name else f"  # {harmless(name)}"
        return f"{shape}{dtype}{other}"

    def add(self, depth: int, text: str, comment: str = "") -> None:
        """One line; a call that is too long is broken after its parenthesis."""
        indent, after = "    " * depth, f"  # {comment}" if comment else ""
        start = text.find("(")
        if len(indent + text + after) <= WIDTH or start < 0 or not text.endswith(")"):
            self.lines.append(f"{indent}{text}{after}")
            return
        whole = re.sub(STRING, lambda string: string[0].replace(" ", GLUE), text[start + 1 : -1])
        parts = textwrap.wrap(whole, WIDTH - len(indent) - 4, break_long_words=False,
                              break_on_hyphens=False)  # fmt: skip
        inside = [part.replace(GLUE, " ") for part in parts]
        self.lines += [f"{indent}{text[: start + 1]}", *(f"{indent}    {part}" for part in inside),
                       f"{indent}){after}"]  # fmt: skip

    def assign(self, depth: int, value: ir.Value, text: str) -> None:
        """One value, under its name."""
        if value.name:
            self.add(depth, f"{self.locals[str(value.name)]} = {text}", self.note(value))

    def device(self) -> str:
        """Where the model is."""
        names = [name for name, _ in self.module.named_parameters()]
        return f"self.{names[0]}.device" if names else "None"

    # --- nodes -------------------------------------------------------------------

    def block(self, graph: ir.Graph, depth: int) -> bool:
        """The nodes of a graph; False when it ends in a ``raise``."""
        special = {"If": self.if_, "Loop": self.loop, "Scan": self.scan, "Identity": self.identity}
        for node in graph:
            if str(node.outputs[0].name) in self.module.attribute_of:
                continue  # a constant
            if node.op_type in special and not node.domain:
                special[node.op_type](node, depth)
            elif not self.call(node, depth):
                return False
        return True

    def call(self, node: ir.Node, depth: int) -> bool:
        """One call; False when the operator is missing: then a ``raise``."""
        try:
            function = registry.lookup(node.op_type, self.opset, domain=node.domain)
            attributes = attributes_of(node, function)
        except UnsupportedError as error:
            text = f"node {called(node)}: {error.message}"
            self.add(depth, f"raise NotImplementedError({text!r})")
            return False
        text = self.expression(node, function, attributes)
        if not returns_tuple(function, len(node.outputs)):
            self.assign(depth, node.outputs[0], text)
            return True
        targets = [self.locals[str(value.name)] if value.name else "_" for value in node.outputs]
        self.add(depth, "(")
        for name, value in zip(targets, node.outputs, strict=True):
            self.add(depth + 1, f"{name},", self.note(value) if value.name else "")
        self.add(depth + 1, "*_,")
        self.add(depth, f") = {text}")
        return True

    def expression(
        self, node: ir.Node, function: Callable[..., Any], attributes: dict[str, Any]
    ) -> str:
        """What a node computes: an operator of Python, a method, or a call."""
        arguments = [self.ref(value) for value in node.inputs]
        names = inspect.signature(function).parameters
        function = plain(function, node.inputs)
        sign = SIGNS.get(function) if not hasattr(function, "__code__") else None
        if sign is not None:
            return f"{arguments[0]} {sign} {arguments[1]}"
        if node.op_type == "Cast" and not node.domain:
            return f"{arguments[0]}.to({ops_elementwise.torch_dtype(attributes['to'])})"
        arguments += [f"{name}={literal(value)}" for name, value in sorted(attributes.items())
                      if name not in names or value != names[name].default]  # fmt: skip
        return f"{self.helper(node.op_type, function)}({', '.join(arguments)})"

    def helper(self, op_type: str, function: Callable[..., Any]) -> str:
        """What is called: a name of torch, or of the file."""
        expression = self.excerpt.expression(function)
        if re.fullmatch(r"[\w.]+", expression):
            return expression
        if expression not in self.helpers:
            wanted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", op_type).lower()
            self.helpers[expression] = fresh(wanted, self.excerpt.taken)
        return self.helpers[expression]

    def identity(self, node: ir.Node, depth: int) -> None:
        """Identity: another name."""
        self.assign(depth, node.outputs[0], self.ref(node.inputs[0]))

    # --- control flow --------------------------------------------------------------

    def if_(self, node: ir.Node, depth: int) -> None:
        """If: ``if`` … ``else``."""
        for head, name in ((f"if {self.ref(node.inputs[0])}:", "then_branch"),
                           ("else:", "else_branch")):  # fmt: skip
            self.add(depth, head)
            branch = node.attributes[name].as_graph()
            if self.block(branch, depth + 1):
                for output, inner in zip(node.outputs, branch.outputs, strict=True):
                    self.assign(depth + 1, output, self.ref(inner))

    def loop(self, node: ir.Node, depth: int) -> None:
        """Loop: ``for`` with a ``break``; the number of the iteration is a tensor."""
        body = node.attributes["body"].as_graph()
        limit, condition, *states = node.inputs
        number, goes_on, *inner = body.inputs
        self.assign(depth, goes_on, "torch.tensor(True)" if condition is None
                    else self.ref(condition))  # fmt: skip
        rows = self.open(inner, states, body.outputs[1 + len(states) :], depth)
        index = fresh("i", self.taken)
        steps = "count()" if limit is None else f"range(int({self.ref(limit)}))"
        if limit is None:
            self.excerpt.imports.add("from itertools import count")
        self.add(depth, f"for {index} in {steps}:")
        self.add(depth + 1, f"if not {self.ref(goes_on)}:")
        self.add(depth + 2, "break")
        if number.uses():
            self.assign(depth + 1, number, f"torch.tensor({index}, device={self.device()})")
        if self.block(body, depth + 1):
            self.carry([goes_on, *inner], body.outputs, rows, depth + 1)
        stacks = [Stack(node, value) for value in body.outputs[1 + len(states) :]]
        self.close(node, inner, rows, stacks, depth)

    def scan(self, node: ir.Node, depth: int) -> None:
        """Scan: ``for`` over the slices."""
        body = node.attributes["body"].as_graph()
        sequences = node.attributes.get_int("num_scan_inputs", 0)
        states, scanned = node.inputs[:-sequences], node.inputs[-sequences:]
        inner, parts = body.inputs[: len(states)], body.inputs[len(states) :]
        outputs = body.outputs[len(states) :]
        rows = self.open(inner, states, outputs, depth)
        axes = of_each(node, "scan_input_axes", sequences)
        backwards = of_each(node, "scan_input_directions", sequences)
        slices = [f"{self.ref(value)}.unbind({axis}){'[::-1]' if back else ''}"
                  for value, axis, back in zip(scanned, axes, backwards, strict=True)]  # fmt: skip
        names = ", ".join(self.locals[str(value.name)] for value in parts)
        self.add(depth, f"for {names}, in zip({', '.join(slices)}, strict=True):")
        if self.block(body, depth + 1):
            self.carry(inner, body.outputs, rows, depth + 1)
        to_axes = of_each(node, "scan_output_axes", len(outputs))
        to_front = of_each(node, "scan_output_directions", len(outputs))
        stacks = [Stack(node, *how) for how in zip(outputs, to_axes, to_front, strict=True)]
        self.close(node, inner, rows, stacks, depth)

    def open(
        self, inner: Sequence[ir.Value], states: Sequence[ir.Value | None],
        outputs: Iterable[ir.Value], depth: int,
    ) -> list[str]:  # fmt: skip
        """The states before a loop, and an empty list for each scan output; their names."""
        for value, state in zip(inner, states, strict=True):
            self.assign(depth, value, self.ref(state))
        rows = [fresh(f"{identifier(str(value.name))}_rows", self.taken) for value in outputs]
        for name in rows:
            self.add(depth, f"{name} = []")
        return rows

    def carry(
        self, states: Sequence[ir.Value], results: Sequence[ir.Value], rows: Sequence[str],
        depth: int,
    ) -> None:  # fmt: skip
        """The end of an iteration: the next states, all at once, and what goes to the lists."""
        for name, value in zip(rows, results[len(states) :], strict=True):
            self.add(depth, f"{name}.append({self.ref(value)})")
        if states:
            left = ", ".join(self.locals[str(value.name)] for value in states)
            self.add(depth, f"{left} = {', '.join(map(self.ref, results[: len(states)]))}")

    def close(
        self, node: ir.Node, inner: Sequence[ir.Value], rows: Sequence[str],
        stacks: Sequence[Stack], depth: int,
    ) -> None:  # fmt: skip
        """The outputs of a loop."""
        for output, value in zip(node.outputs, inner, strict=False):
            if output.uses() or output.is_graph_output():
                self.assign(depth, output, self.ref(value))
        for output, name, stack in zip(node.outputs[len(inner) :], rows, stacks, strict=False):
            rows_ = f"{name}[::-1]" if stack.to_front else name
            empty = stack.empty(None)
            none = f"torch.empty({list(empty.shape)}, dtype={empty.dtype}, device={self.device()})"
            joined = f"torch.stack({rows_}, {stack.axis})"
            self.assign(depth, output, f"({joined} if {name} else {none})")


def plain(function: Callable[..., Any], inputs: Sequence[ir.Value | None]) -> Callable[..., Any]:
    """The function without what is only there for types that the inputs do not have."""
    if made_by(function, ops_elementwise.inputs_only):
        function = inspect.getclosurevars(function).nonlocals["function"]
    dtypes = {value.dtype for value in inputs if value is not None}
    wrapped = any(made_by(function, each) for each in (ops_unsigned.modular, ops_unsigned.by_value))
    if not wrapped or None in dtypes or dtypes & UNSIGNED:
        return function
    inner: Callable[..., Any] = function.__wrapped__  # type: ignore[attr-defined]
    # A function of the table is copied with its decorator.
    return function if hasattr(inner, "__code__") else inner


def harmless(text: str) -> str:
    """A name of the model in a comment or docstring, which it must not be able to end.

    Example:
        >>> harmless("fc.weight"), harmless("a\\nb")
        ('fc.weight', 'a?b')
    """
    return "".join(c if c.isprintable() and c not in QUOTES else "?" for c in text)


def made_by(function: Callable[..., Any], factory: Callable[..., Any]) -> bool:
    """Whether a function is what the factory returns."""
    code = getattr(function, "__code__", None)
    return code is not None and code in factory.__code__.co_consts


def returns_tuple(function: Callable[..., Any], outputs: int) -> bool:
    """Whether a function gives a tuple, for this number of outputs."""
    try:
        says = str(inspect.signature(function).return_annotation)
    except ValueError:
        return False  # one of torch's own: a tensor
    return outputs > 1 or (says.startswith("tuple") and "|" not in says)


def is_literal(x: Tensor) -> bool:
    """Whether a buffer is written as numbers; NaN has bits that Python's does not show."""
    return 0 < x.numel() <= SMALL and x.dtype in LITERAL_DTYPES and not bool(x.isnan().any())


LITERAL_DTYPES = {torch.float32, torch.float64, torch.bool, torch.uint8, torch.int8, torch.int16,
                  torch.int32, torch.int64}  # fmt: skip


def literal(value: Any) -> str:
    """Python for the value of an attribute or of a small tensor.

    Raises:
        UnsupportedError: a tensor that is too large.

    Example:
        >>> literal([1, -0.0, float("inf")]), literal("edge")
        ("[1, -0.0, float('inf')]", "'edge'")
    """
    if isinstance(value, Tensor):
        if value.numel() > SMALL**2:
            raise UnsupportedError(
                f"a constant of {value.numel()} elements in an attribute cannot be written as "
                "Python source; make it an initializer"
            )
        text = f"torch.tensor({literal(value.tolist())}, dtype={value.dtype})"
        return text if value.numel() else f"{text}.reshape({list(value.shape)})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    if value is not None and not isinstance(value, int | float | str):
        raise UnsupportedError(f"an attribute with {type(value).__name__} as its value cannot be "
                               "written as Python source")  # fmt: skip
    return f"float({str(value)!r})" if str(value) in {"nan", "inf", "-inf"} else repr(value)
