"""BindOraclePass: which initializer gets which digits.

Before: a normalized model.  After: what the oracle names is an initializer (``places.py``:
values computed from constants, single uses, narrow kinds of numbers), nothing else has changed;
state ``targets`` (the oracle's bytes as units, views) and ``skipped`` (weights that keep their
values).
Refuses, all problems at once: names the model does not have (unless
``allow_extra``), wrong shapes and dtypes, NaN, and with ``strict`` weights that
the oracle does not cover.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from gdu_compile.passes._base import GduPass

from gdu_compile.arrays import ArrayHeader
from gdu_compile.constants import constant_values
from gdu_compile.contracts import Skipped, State, Target
from gdu_compile.digits import DEFAULT_CODE, Array, DigitCode
from gdu_compile.encoding import encoding_of
from gdu_compile.errors import InputError
from gdu_compile.name_matching import fitted, unknown_names
from gdu_compile.number_formats import numpy_dtype
from gdu_compile.oracle_weights import OracleWeights
from gdu_compile.places import stand, uses_by_name, uses_of
from gdu_compile.weights import CARRIERS, dtype_name, is_usual_weight, no_weight, unsupported


class BindOraclePass(GduPass):
    """Match oracle tensors to initializers, by name or, for another export, by structure.

    Args:
        oracle: the oracle weights w*.
        allow_extra: ignore names that the model does not have.
        strict: a float weight that the oracle does not cover is an error.
        cover_all: record such weights at their present value.
        code: the digit code.
        untie: an oracle tensor may be for one use of a shared value, ``NAME@NODE.INPUT``.
    """

    needs = ("lifted",)
    gives = ("targets", "skipped", "code")

    def __init__(
        self,
        oracle: OracleWeights,
        *,
        allow_extra: bool = False,
        strict: bool = False,
        cover_all: bool = False,
        code: DigitCode = DEFAULT_CODE,
        untie: bool = False,
    ) -> None:
        self.oracle = oracle
        self.allow_extra = allow_extra
        self.strict = strict
        self.cover_all = cover_all
        self.code = code
        self.untie = untie

    def run(self, model: ir.Model, state: State) -> dict[str, int]:
        """Change the model; return what was done in numbers."""
        problems: list[str] = []
        targets: list[Target] = []
        skipped: list[Skipped] = []
        lifted = state.lifted or {}
        fit = fitted(self.oracle, model, state)
        oracle = fit.oracle
        standing = stand(model, self.wanted(model, oracle), untie=self.untie or fit.untie)
        state.placed = {**{each.weight: each.how for each in state.restored}, **standing.how}
        lifted = state.lifted = {
            name: node for name, node in lifted.items() if name not in standing.removed
        }
        for name, value in model.graph.initializers.items():
            if name in oracle:
                narrow = standing.carried.get(name)
                complaint, array = self.match(name, value, oracle[name], narrow)
                if complaint is not None:
                    problems.append(complaint)
            elif is_usual_weight(value) and name not in lifted:
                array, reason = self.uncovered(name, value, problems)
                if array is None:
                    skipped.append(Skipped(name, reason))
            elif (why_not := unsupported(value)) is not None:
                array = None
                skipped.append(Skipped(name, f"{why_not}; keeps its value"))
                if self.strict:
                    problems.append(f"{name!r} {why_not} (--strict)")
            else:
                continue
            if array is None:
                continue
            if array.size == 0:
                skipped.append(Skipped(name, "has no elements"))
                continue
            encoding = encoding_of(self.code, str(array.dtype))
            targets.append(Target(name, array.shape, str(array.dtype), encoding.units(array)))
        for name, reason in (state.attributes or {}).items():
            skipped.append(Skipped(name, reason))
            if self.strict:
                problems.append(f"{name!r}: {reason} (--strict)")
        if not self.allow_extra:
            unknown = self.unknown(model, oracle, lifted)
            problems += [*unknown, *fit.problems] if unknown else []
        if not targets and not problems:
            problems.append("it covers no weight of the model that has elements")
            problems.append(known_weights(model))
            problems += [f"{name!r}: {why}" for name, why in (state.attributes or {}).items()]
        if problems:
            raise InputError(f"cannot use the oracle weights {self.oracle.source}", problems)
        state.targets, state.skipped, state.code = targets, skipped, self.code
        state.held = frozenset(self.oracle)
        placed = {"placed": len(standing.how)} if standing.how else {}
        return {"targets": len(targets), "skipped": len(skipped), **placed}

    def wanted(self, model: ir.Model, oracle: OracleWeights) -> dict[str, None]:
        """What has to be an initializer of a dtype that is recorded; in order, as the order in
        which initializers are made is that of the file."""
        narrow = [
            name
            for name, value in model.graph.initializers.items()
            if self.cover_all and is_usual_weight(value)
        ]
        return dict.fromkeys([*oracle, *narrow])

    def match(
        self, name: str, value: ir.Value, header: ArrayHeader, narrow: str | None = None
    ) -> tuple[str | None, Array | None]:
        """(complaint, None) or (None, array) for a weight that the oracle names.

        Args:
            name: of the weight.
            value: its initializer.
            header: what the oracle has.
            narrow: the dtype that it had in the model, where a wider one stands for it.
        """
        assert value.const_value is not None
        shape = tuple(value.const_value.shape.numpy())  # the graph may declare it symbolically
        if header.shape != shape:
            return f"{name!r} has shape {list(header.shape)}, but {list(shape)} in the model", None
        if (reason := no_weight(value)) is not None:
            same = np.array_equal(header.load(), value.const_value.numpy())
            return (None if same else f"{name!r} {reason}"), None
        own = dtype_name(value)
        dtype = narrow or own
        if str(header.dtype) not in {dtype, own} and not is_raw(header.dtype, dtype):
            return f"{name!r} is {header.dtype}, but {dtype} in the model: convert it", None
        array = header.load()
        if is_raw(header.dtype, dtype):
            array = array.view(numpy_dtype(dtype))
        if narrow is not None:
            given, array = array, array.astype(numpy_dtype(narrow)).astype(numpy_dtype(own))
            if not np.array_equal(given.astype(array.dtype), array, equal_nan=own == "float16"):
                return f"{name!r} holds numbers that {narrow} of the model does not have", None
        if (bad := first_nan(array)) is not None:
            return f"{name!r} holds NaN (first at flat index {bad})", None
        return None, array

    def uncovered(
        self, name: str, value: ir.Value, problems: list[str]
    ) -> tuple[Array | None, str]:
        """A weight that the oracle does not name: its present value, or None and the reason."""
        assert value.const_value is not None
        if self.cover_all:
            array = value.const_value.numpy()
            if first_nan(array) is None:
                return array, ""
            return None, "holds NaN in the model, keeps its value"
        if self.strict:
            problems.append(f"{name!r} of the model is not in it (--strict)")
        return None, "not in the oracle weights, keeps its value"

    def unknown(
        self, model: ir.Model, oracle: OracleWeights, lifted: Mapping[str, str]
    ) -> list[str]:
        """Complaints about oracle names that are no initializer, with what could be meant."""
        weights = model.graph.initializers
        headers = {name: header for name, header in oracle.items() if name not in weights}
        if not headers:
            return []
        free = [
            value for name, value in weights.items()
            if is_usual_weight(value) and name not in oracle and name not in lifted
        ]  # fmt: skip
        shared = uses_by_name(model, constant_values(model)) if not self.untie else {}
        uses = {name: headers.pop(name) for name in [*headers] if name in shared}
        complaints = [tied(name, shared[name][0]) for name in uses]
        if headers:
            complaints += [
                *unknown_names(headers, free, weights, oracle.graph),
                known_weights(model),
            ]
            complaints += shared_weights(headers, weights, [value for value, _ in shared.values()])
        return complaints


def tied(name: str, value: ir.Value) -> str:
    """The complaint about a single use where weights are to stay tied."""
    return (f"{name!r} is one of the {len(list(uses_of(value)))} uses of {value.name!r}, which "
            "share one value; --untie gives it its own")  # fmt: skip


def shared_weights(
    headers: Mapping[str, ArrayHeader], weights: Mapping[str, ir.Value], shared: list[ir.Value]
) -> list[str]:
    """Initializers with several uses, one of which an unknown oracle tensor may be meant for."""
    shapes = {header.shape for header in headers.values()}
    names = [
        f"{name!r} ({len(list(uses_of(value)))} uses)" for name, value in weights.items()
        if value in shared and is_usual_weight(value) and value.const_value is not None
        and tuple(value.const_value.shape.numpy()) in shapes
    ]  # fmt: skip
    if not names:
        return []
    listed = ", ".join(names[:4]) + " …" * (len(names) > 4)
    return [f"several nodes share {listed}: inspect names the uses, and --untie, with --rename, "
            "gives each a value of its own"]  # fmt: skip


def known_weights(model: ir.Model) -> str:
    """The names that an oracle could use, for a message."""
    known = [name for name, value in model.graph.initializers.items() if is_usual_weight(value)]
    names = ", ".join(known[:12]) or "none"
    return f"weights of the model: {names}{' …' if len(known) > 12 else ''}"


def is_raw(given: np.dtype[np.generic], wanted: str) -> bool:
    """Whether numpy has lost the name of the dtype: it writes bfloat16 into .npz files as |V2, and
    float8 and integers below 8 bits, of which each has a byte there, as |V1."""
    named = wanted == "bfloat16" or (wanted in CARRIERS and wanted != "bool")
    return named and given.kind == "V" and given.itemsize == numpy_dtype(wanted).itemsize


def first_nan(array: Array) -> int | None:
    """Flat index of the first NaN; the array is read in pieces of 4 M elements."""
    flat = array.reshape(-1)
    if array.dtype.kind in "iu":
        return None
    for start in range(0, flat.size, 1 << 22):
        with np.errstate(invalid="ignore"):  # ml_dtypes warns of signalling NaNs
            where = np.flatnonzero(np.isnan(flat[start : start + (1 << 22)]))
        if where.size:
            return start + int(where[0])
    return None
