"""The source of chosen functions with all that they need of this package: what a file that stands
alone is made of.

A function is found by its name in its module, or, when a factory has made it, written as a call of
the factory.  What its source reads from the module follows; what comes from other packages becomes
an import.
"""

from __future__ import annotations

import ast
import builtins
import dis
import importlib
import inspect
import io
import sys
import tokenize
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import torch

from gdu_compile.errors import UnsupportedError

PACKAGE = __name__.partition(".")[0]
TORCH_MODULES = {"import torch": "torch", "import torch.nn.functional as nnf": "nnf"}
DROPPED_DECORATORS = {"operator"}  # registering has no meaning outside the package
# Written in another way, so that a file needs neither this package's errors nor numpy.
INSTEAD = {
    "gdu_compile.errors": 'class {name}(Exception):\n    """{doc}"""',
    "gdu_compile.torch_backend.memory": "def {name}(shape, dtype, device):\n"
    "    return torch.empty(shape, dtype=dtype, device=device)",
}


class Place(NamedTuple):
    """A name that a module of this package binds."""

    module: str
    name: str


class Excerpt:
    """Collects definitions and imports for one file.

    Attributes:
        imports: the import lines.
        taken: every name that the file binds at its top.
    """

    def __init__(self, taken: set[str]) -> None:
        self.imports: set[str] = {"from __future__ import annotations", "import torch"}
        self.taken = {*taken, *TORCH_MODULES.values(), *dir(builtins)}
        self._imported = dict(TORCH_MODULES)  # import line, as it is in our module → name here
        self._called: dict[Place, str] = {}  # what stands in the file → its name there
        self._texts: dict[Place, str] = {}  # in an order in which they can be executed

    def expression(self, value: Any) -> str:
        """Python for a function, or for a value that one of its factories was given.

        Raises:
            UnsupportedError: no source can be found.
        """
        if isinstance(value, partial):
            arguments = [self.expression(each) for each in (value.func, *value.args)]
            arguments += [f"{name}={self.expression(v)}" for name, v in value.keywords.items()]
            return f"{self.add_import('from functools import partial')}({', '.join(arguments)})"
        if not callable(value):
            return repr(value)
        name = getattr(value, "__name__", "")
        for line, home in zip(TORCH_MODULES, (torch, torch.nn.functional), strict=True):
            if getattr(home, name, None) is value:
                return f"{self.add_import(line)}.{name}"
        return self.function(value)

    def function(self, function: Callable[..., Any]) -> str:
        """The name of a function of this package, or the call of the factory that makes it."""
        place = Place(getattr(function, "__module__", ""), getattr(function, "__name__", ""))
        if is_ours(place.module) and getattr(module_of(place), place.name, None) is function:
            return self.define(place)
        code = getattr(function, "__code__", None)
        factory, _, inner = (code.co_qualname if code else "").partition(".<locals>.")
        home = getattr(function, "__globals__", {}).get("__name__", "")
        if not is_ours(home):
            raise UnsupportedError(f"{function!r} has no source that can be copied")
        if (found := entry_of(function, home)) is not None:
            return f"{self.define(Place(home, found[0]))}{found[1]}"
        maker = getattr(importlib.import_module(home), factory, None)
        captured = inspect.getclosurevars(function).nonlocals
        names = [] if maker is None else list(inspect.signature(maker).parameters)
        if not inner or not names or not set(names) <= set(captured):
            raise UnsupportedError(f"{function!r} has no source that can be copied")
        given = [self.expression(captured[name]) for name in names]
        return f"{self.define(Place(home, factory))}({', '.join(given)})"

    def define(self, place: Place) -> str:
        """Put a definition, and what it needs, into the file; its name there."""
        if place in self._called:
            return self._called[place]
        node = bindings(place.module).get(place.name)
        if node is None:
            raise UnsupportedError(
                f"{place.module}.{place.name} cannot be written as Python source"
            )
        if isinstance(node, ast.Import | ast.ImportFrom):
            return self.imported(place, node)
        name = self._called[place] = fresh(place.name, self.taken)
        if place.module in INSTEAD:
            doc = (getattr(module_of(place), place.name).__doc__ or "").splitlines()[0]
            self._texts[place] = INSTEAD[place.module].format(name=name, doc=doc)
            return name
        text = source_of(place, node)
        used = sorted(globals_of(text) & set(bindings(place.module)))
        needed = {each: self.define(Place(place.module, each)) for each in used}
        self._texts[place] = renamed(text, {**needed, place.name: name})
        return name

    def imported(self, place: Place, node: ast.Import | ast.ImportFrom) -> str:
        """A name that a module has imported: from this package it is defined, else imported."""
        (alias,) = [each for each in node.names if bound_by(each) == place.name]
        if isinstance(node, ast.ImportFrom) and is_ours(node.module or ""):
            name = self._called[place] = self.define(Place(str(node.module), alias.name))
            return name
        line = ast.unparse(type(node)(**{**vars(node), "names": [alias]}))
        return self.add_import(line, place.name)

    def add_import(self, line: str, wanted: str | None = None) -> str:
        """An import; the name that it has in the file."""
        if line not in self._imported:
            wanted = wanted or line.split()[-1]
            name = self._imported[line] = fresh(wanted, self.taken)
            self.imports.add(line if name == wanted else f"{line.partition(' as ')[0]} as {name}")
        elif line in TORCH_MODULES:
            self.imports.add(line)
        return self._imported[line]

    def text(self) -> str:
        """All definitions, each after what it needs."""
        return "\n\n\n".join(self._texts.values())

    def import_lines(self) -> str:
        """The imports as a linter likes them: the future, the standard library, the others."""
        froms: dict[str, set[str]] = {}
        groups: dict[int, list[str]] = {0: [], 1: [], 2: []}
        for line in sorted(self.imports):
            words = line.split()
            if words[0] == "from":
                froms.setdefault(words[1], set()).add(line.partition(" import ")[2])
            else:
                groups[group_of(words[1])].append(line)
        for module, names in sorted(froms.items()):
            ordered = sorted(names, key=lambda name: (name.islower(), name))
            groups[group_of(module)].append(f"from {module} import {', '.join(ordered)}")
        return "\n\n".join("\n".join(lines) for lines in groups.values() if lines)


def group_of(module: str) -> int:
    """Where an import stands: 0 the future, 1 the standard library, 2 others."""
    root = module.partition(".")[0]
    return 0 if root == "__future__" else 1 if root in sys.stdlib_module_names else 2


def entry_of(function: Callable[..., Any], module: str) -> tuple[str, str] | None:
    """A table at the top of a module that holds a lambda: its name, and how to get at it."""
    for name in bindings(module) if function.__name__ == "<lambda>" else ():
        table = getattr(importlib.import_module(module), name, None)
        for key, entry in table.items() if isinstance(table, dict) else ():
            for i, part in enumerate(entry if isinstance(entry, tuple) else ()):
                if part is function:
                    return name, f"[{key!r}][{i}]"
            if entry is function:
                return name, f"[{key!r}]"
    return None


def is_ours(module: str) -> bool:
    """Whether a module belongs to this package."""
    return module.partition(".")[0] == PACKAGE


def module_of(place: Place) -> ModuleType:
    """The module of a place."""
    return importlib.import_module(place.module)


def fresh(wanted: str, taken: set[str]) -> str:
    """A name that is not taken yet; it is then."""
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    taken.add(name)
    return name


@cache
def parsed(module: str) -> tuple[str, ast.Module]:
    """The source of a module, and its tree."""
    text = inspect.getsource(importlib.import_module(module))
    return text, ast.parse(text)


@cache
def bindings(module: str) -> Mapping[str, ast.stmt]:
    """What the statements at the top of a module bind."""
    found: dict[str, ast.stmt] = {}
    for node in parsed(module)[1].body:
        for name in names_bound(node):
            found.setdefault(name, node)
    return found


def names_bound(node: ast.stmt) -> Iterator[str]:
    """The names that one statement binds."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from map(bound_by, node.names)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def bound_by(alias: ast.alias) -> str:
    """The name that an import binds."""
    return alias.asname or alias.name.partition(".")[0]


def source_of(place: Place, node: ast.stmt) -> str:
    """The text of a definition, without the decorators that register it."""
    text = parsed(place.module)[0].splitlines()
    first = node.lineno
    kept: list[str] = []
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        kept = [f"@{ast.unparse(each)}" for each in node.decorator_list
                if not (isinstance(each, ast.Call) and isinstance(each.func, ast.Name)
                        and each.func.id in DROPPED_DECORATORS)]  # fmt: skip
    return "\n".join([*kept, *text[first - 1 : node.end_lineno]])


def globals_of(text: str) -> set[str]:
    """The names that a definition reads from its module, in its annotations too."""
    code = compile("from __future__ import annotations\n" + text, "<excerpt>", "exec")
    names = set(read_by(code))
    for node in ast.walk(ast.parse(text)):
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(part, ast.expr):
                names |= {each.id for each in ast.walk(part) if isinstance(each, ast.Name)}
    return names


def read_by(code: CodeType) -> Iterator[str]:
    """The global names that code reads, with all code inside it."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in {"LOAD_GLOBAL", "LOAD_NAME"}:
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from read_by(constant)


def renamed(text: str, names: Mapping[str, str]) -> str:
    """The text with other global names; names after a dot and of keyword arguments stay."""
    changed = {old: new for old, new in names.items() if old != new}
    if not changed:
        return text
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    tokens.insert(0, tokens[-1])  # something in front of the first
    lines = text.splitlines(keepends=True)
    for before, token, after in reversed(list(zip(tokens, tokens[1:], tokens[2:], strict=False))):
        if token.type != tokenize.NAME or token.string not in changed or before.string == ".":
            continue
        if after.string != "=" or before.string not in {",", "("}:
            (row, start), end = token.start, token.end[1]
            line = lines[row - 1]
            lines[row - 1] = line[:start] + changed[token.string] + line[end:]
    return "".join(lines)
