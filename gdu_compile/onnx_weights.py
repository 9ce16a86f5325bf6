"""Weights from an .onnx file: another export of the same network, under the names of the passes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from gdu_compile import model_io
from gdu_compile.arrays import ArrayHeader, Headers, damaged
from gdu_compile.contracts import state_of
from gdu_compile.digits import Array
from gdu_compile.errors import GduError, UnsupportedError
from gdu_compile.weights import is_usual_weight


def onnx_headers(path: Path) -> tuple[Headers, frozenset[str], ir.Model]:
    """The initializers of a model after NormalizePass, which may be mere constants, and the model.

    Constant nodes, and initializers of branches and functions, have the names that
    BindOraclePass sees in the base.  What was a Constant node, or is of a dtype that
    is no usual weight, may be an axis, a shape or an exponent: it is no oracle weight unless
    it differs from the base's.

    Raises:
        InputError, UnsupportedError: the file cannot be read, or is no base network.
    """
    from gdu_compile.passes import NormalizePass
    from gdu_compile.passes.lift_attributes import raised

    model = raised(model_io.load(path))
    try:
        NormalizePass()(model)
    except GduError as error:
        raise type(error)(f"{path}: {error.message}", error.problems) from error
    lifted = state_of(model).lifted or {}
    headers: Headers = {}
    constants: set[str] = set()
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING:
            continue
        shape, dtype = tuple(tensor.shape.numpy()), np.dtype(tensor.dtype.numpy())
        headers[name] = ArrayHeader(name, shape, dtype, partial(contents, path, name, tensor))
        if name in lifted or not is_usual_weight(value):
            constants.add(name)
    return headers, frozenset(constants), model


def at_opset(model: ir.Model, other: ir.Model) -> ir.Model:
    """The normalized model at the opset of the other, where that is higher and it can be raised.

    An operator may have an attribute where a later version has an input.
    """
    from gdu_compile.passes import NormalizePass

    wanted = model_io.opset_of(other)
    if model_io.opset_of(model) >= wanted:
        return model
    try:
        raised = model_io.raise_opset(model, wanted)
    except UnsupportedError:
        return model
    NormalizePass()(raised)
    return raised


def contents(path: Path, name: str, tensor: ir.TensorProtocol) -> Array:
    """The array of a tensor, a view of the file where possible.

    Raises:
        InputError: its bytes cannot be read although its header could.
    """
    try:
        array: Array = tensor.numpy()
    except Exception as error:  # onnx_ir's, numpy's and the system's
        raise damaged(path, name, error) from error
    return array
