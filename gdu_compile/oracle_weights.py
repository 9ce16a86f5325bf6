"""The oracle weights w*: one array per initializer name, from a file or from memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from os import PathLike
from pathlib import Path

import onnx_ir as ir

from gdu_compile.arrays import READERS, ArrayHeader, Headers, Reader, from_mapping, read_with
from gdu_compile.contracts import state_of
from gdu_compile.errors import InputError
from gdu_compile.name_matching import Rename, parse_rules, rename_all

WeightsLike = str | PathLike[str] | Mapping[str, object]


class OracleWeights(Mapping[str, ArrayHeader]):
    """Name → header; the arrays themselves are read when they are needed.

    Attributes:
        source: the file, for messages.
        constants: names that may be mere constants of an .onnx file (axes, shapes, exponents).
        notes: what the reader of a report should know about the file.
        graph: of an .onnx file: the normalized network; None otherwise.

    Example:
        >>> import numpy as np
        >>> oracle = OracleWeights.load({"fc.bias": np.zeros(10, dtype=np.float32)})
        >>> oracle["fc.bias"].shape, oracle.source
        ((10,), 'given in memory')
    """

    def __init__(
        self,
        headers: Headers,
        source: str,
        *,
        constants: Collection[str] = (),
        notes: Collection[str] = (),
        graph: ir.Model | None = None,
    ) -> None:
        self._headers = headers
        self.graph = graph
        self.source = source
        self.constants = frozenset(constants)
        self.notes = tuple(notes)

    @classmethod
    def load(cls, weights: WeightsLike, rename: Rename = ()) -> OracleWeights:
        """From an .npz, .safetensors, .pt, .pth or .onnx file, or a mapping of arrays.

        Args:
            weights: the file or mapping.
            rename: rules for the names, in order: see ``name_matching.parse_rules``.

        Raises:
            InputError: the file or a rule cannot be used; says why.

        Example:
            >>> import numpy as np
            >>> arrays = {"net.0.weight": np.zeros((2, 3), dtype=np.float32)}
            >>> list(OracleWeights.load(arrays, rename={r"^net\\.(\\d)": r"layer\\1"}))
            ['layer0.weight']
        """
        rules, problems = parse_rules(rename)
        if problems:
            raise InputError("bad rules to rename oracle weights", problems)
        if isinstance(weights, Mapping):
            oracle = cls(from_mapping(weights), "given in memory")
        else:
            oracle = cls.read(Path(weights))
        return oracle.with_names(rename_all(oracle, rules, oracle.source))

    @classmethod
    def read(cls, path: Path) -> OracleWeights:
        """From a file.

        Raises:
            InputError: it cannot be used, or holds no arrays; says why.
        """
        constants: set[str] = set()
        notes: list[str] = []
        graphs: list[ir.Model] = []
        torch_reader = partial(read_torch, notes=notes)
        readers: dict[str, Reader] = {
            ".onnx": partial(read_onnx, constants=constants, graphs=graphs),
            ".pt": torch_reader, ".pth": torch_reader, **READERS,
        }  # fmt: skip
        headers = read_with(readers, path)
        if not headers:
            stay = [state_of(graph).attributes or {} for graph in graphs]
            reasons = [f"{name!r}: {why}" for each in stay for name, why in each.items()]
            raise InputError(f"{path}: holds no arrays", reasons)
        graph = graphs[0] if graphs else None
        return cls(headers, str(path), constants=constants, notes=notes, graph=graph)

    def with_names(self, names: Mapping[str, str]) -> OracleWeights:
        """The same arrays under other names; those that ``names`` lacks are left out.

        Args:
            names: present name → new name, no new name twice.
        """
        return OracleWeights(
            {new: self._headers[old] for old, new in names.items()}, self.source,
            constants=[new for old, new in names.items() if old in self.constants],
            notes=self.notes, graph=self.graph,
        )  # fmt: skip

    def of_headers(self, headers: Headers) -> OracleWeights:
        """Other headers from the same file."""
        return OracleWeights(headers, self.source, notes=self.notes, graph=self.graph)

    def __getitem__(self, name: str) -> ArrayHeader:
        return self._headers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)

    def __repr__(self) -> str:
        return f"OracleWeights({self.source!r}, {len(self)} tensors)"


def read_torch(path: Path, *, notes: list[str]) -> tuple[Headers, list[str]]:
    """The headers of a .pt file, and what is wrong with the others; torch is imported here."""
    from gdu_compile.torch_files import torch_headers

    headers, problems, found = torch_headers(path)
    notes += found
    return headers, problems


def read_onnx(
    path: Path, *, constants: set[str], graphs: list[ir.Model]
) -> tuple[Headers, list[str]]:
    """The headers of an .onnx file and its graph; what may be a mere constant is named."""
    from gdu_compile.onnx_weights import onnx_headers

    headers, found, graph = onnx_headers(path)
    constants |= found
    graphs.append(graph)
    return headers, []
