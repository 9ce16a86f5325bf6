"""Which initializers are weights: their dtype, and what the graph uses them for.

A shape, an axis, an index or a bound of a loop is an initializer too, and no weight: a network
reads the *structure* of its computation off it.
"""

from __future__ import annotations

import onnx_ir as ir

from gdu_compile.number_formats import FLOATS, FORMATS

# operator → the inputs that it takes as structure (ONNX operators, opset 18 to 25)
STRUCTURE = {
    "Compress": {1}, "ConstantOfShape": {0}, "CumProd": {1}, "CumSum": {1}, "Expand": {1},
    "Gather": {1}, "GatherElements": {1}, "GatherND": {1}, "If": {0}, "Loop": {0, 1},
    "NonMaxSuppression": {2, 3, 4}, "OneHot": {1}, "Pad": {1, 3}, "Range": {0, 1, 2},
    "Reshape": {1}, "Resize": {1, 2, 3}, "ReverseSequence": {1}, "ScatterElements": {1},
    "ScatterND": {1}, "SequenceAt": {1}, "Slice": {1, 2, 3, 4}, "Split": {1}, "Squeeze": {1},
    "Tile": {1}, "TopK": {1}, "Trilu": {1}, "Unsqueeze": {1}, "Upsample": {1},
    "CenterCropPad": {1}, "Col2Im": {1, 2}, "TensorScatter": {2}, "RNN": {4}, "GRU": {4},
    "LSTM": {4},
}  # fmt: skip
CARRIERS = {
    "bool": "uint8", "int4": "int8", "uint4": "uint8", "float8_e4m3fn": "float16",
    "float8_e5m2": "float16", "float8_e4m3fnuz": "float16", "float8_e5m2fnuz": "float16",
}  # fmt: skip
"""Kinds that are recorded as a wider one, which holds each of their numbers: onnxruntime has Cast
for them, and If, Reshape or Split not for all (measured).  Of 2 bits there is none: onnxruntime
1.31.1 reads such a constant wrong once it has folded it."""
# dtypes of which an uncovered initializer is worth a word; wider integers are mostly not weights.
USUAL = {kind.name for kind in FLOATS} | {"int8", "uint8", "int16", "uint16", *CARRIERS} - {"bool"}
NO_NUMBERS = {"object"}  # strings
# operator → inputs that are weights also where they are of 32 bits
QUANTIZED = {"DequantizeLinear": {0}, "QLinearConv": {8}, "QGemm": {6}}


def dtype_name(value: ir.Value) -> str:
    """The dtype as numpy and ml_dtypes spell it; ONNX's own name where numpy has none."""
    assert value.dtype is not None
    try:
        return str(value.dtype.numpy())
    except TypeError:
        return value.dtype.name


def no_weight(value: ir.Value) -> str | None:
    """Why an initializer is no weight that can be recorded, or None.

    Example:
        >>> import onnx_ir as ir
        >>> shape = ir.val("s", ir.DataType.INT64, [2])
        >>> _ = ir.node("Reshape", [ir.val("x"), shape], name="r")
        >>> no_weight(shape)
        "is int64 that Reshape 'r' takes as structure (a shape, an axis, an index)"
    """
    dtype = dtype_name(value)
    if dtype not in FORMATS and dtype not in CARRIERS:
        return f"is {dtype} in the model; recorded are {', '.join((*FORMATS, *CARRIERS))}"
    return structural_use(value)


def structural_use(value: ir.Value) -> str | None:
    """Which use makes a value part of the computation's structure, or None."""
    for node, index in value.uses():
        axes = node.op_type.startswith("Reduce") and index == 1
        if node.domain == "" and (axes or index in STRUCTURE.get(node.op_type, ())):
            return (f"is {dtype_name(value)} that {node.op_type} {node.name!r} takes as structure "
                    "(a shape, an axis, an index)")  # fmt: skip
    return None


def is_usual_weight(value: ir.Value) -> bool:
    """A weight of a dtype that networks usually learn: floats, and integers of up to 16 bits."""
    if value.dtype is None or no_weight(value) is not None:
        return False
    return dtype_name(value) in USUAL or any(
        index in QUANTIZED.get(node.op_type, ()) for node, index in value.uses()
    )


def unsupported(value: ir.Value) -> str | None:
    """Why an initializer of numbers that are no structure cannot be recorded, or None."""
    dtype = dtype_name(value)
    if dtype in FORMATS or dtype in CARRIERS or dtype in NO_NUMBERS or structural_use(value):
        return None
    return no_weight(value)
