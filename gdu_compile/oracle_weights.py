"""The oracle weights w*: one array per initializer name, from a file or from memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path

from gdu_compile.arrays import ArrayHeader, Headers, from_mapping, read_arrays
from gdu_compile.errors import InputError

WeightsLike = str | PathLike[str] | Mapping[str, object]


class OracleWeights(Mapping[str, ArrayHeader]):
    """Name → header; the arrays themselves are read when they are needed.

    Example:
        >>> import numpy as np
        >>> oracle = OracleWeights.load({"fc.bias": np.zeros(10, dtype=np.float32)})
        >>> oracle["fc.bias"].shape, oracle.source
        ((10,), 'given in memory')
    """

    def __init__(self, headers: Headers, source: str) -> None:
        self._headers = headers
        self.source = source

    @classmethod
    def load(cls, weights: WeightsLike) -> OracleWeights:
        """From an .npz or .safetensors file, or a mapping of arrays.

        Raises:
            InputError: the file cannot be used; says why.
        """
        if isinstance(weights, Mapping):
            return cls(from_mapping(weights), "given in memory")
        path = Path(weights)
        headers = read_arrays(path)
        if not headers:
            raise InputError(f"{path}: holds no arrays")
        return cls(headers, str(path))

    def __getitem__(self, name: str) -> ArrayHeader:
        return self._headers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)

    def __repr__(self) -> str:
        return f"OracleWeights({self.source!r}, {len(self)} tensors)"
