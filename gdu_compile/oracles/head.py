"""The last layer of a network: logits = features · weight + bias, and who is who in it.

The included oracles fit the last layer of any network that has one; all other weights keep their
initial values.  For a linear network the features are its (flattened) input, for another they are
random features: what its initial weights make of the input.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from gdu_compile.endings import in_front_of_ending
from gdu_compile.errors import UnsupportedError
from gdu_compile.logits import value_at
from gdu_compile.oracles.problem import Problem


@dataclass(frozen=True)
class Layer:
    """outputs = alpha · features · weight + beta · bias, as a base computes it.

    Attributes:
        features: the value φ [n, d] that enters; [d, n] when ``transposed``.
        weight: the initializer; its shape is [C, d] when ``rows``, else [d, C] or [d].
        bias: the initializer of C elements; None when the layer has none.
        d: number of features.
        classes: C, number of outputs.
        rows: whether a row of the weight belongs to an output, as in torch.nn.Linear.
        transposed: whether the features enter transposed (Gemm with transA).
        alpha: factor of the product.
        beta: factor of the bias.
    """

    features: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    d: int
    classes: int
    rows: bool
    transposed: bool = False
    alpha: float = 1.0
    beta: float = 1.0


def last_layer(problem: Problem) -> Layer:
    """The layer that computes the logits.

    MatMul or Gemm, with an Add or without; Identity and Squeeze may follow, a Transpose of the
    weight may come before.

    Raises:
        UnsupportedError: the logits come from something else; names the node.

    Example:
        >>> from gdu_compile import model_io, passes
        >>> from gdu_compile.contracts import state_of
        >>> base = model_io.load("models/digits_mlp.onnx")
        >>> for stage in (passes.NormalizePass(), passes.LocateLogitsPass()):
        ...     _ = stage(base)
        >>> layer = last_layer(Problem(base, state_of(base).logits, (), 1))
        >>> layer.features.name, layer.weight.name, layer.bias.name, layer.classes, layer.d
        ('relu_1', 'fc3.weight', 'fc3.bias', 10, 32)
    """
    site = problem.site
    value = value_at(problem.base.graph, site.name)
    if site.own_ending:
        value = in_front_of_ending(value)
    layer = layer_at(value, len(site.dims))
    if layer.classes != site.classes:
        raise refusal(f"it has {layer.classes} outputs, the logits {site.classes} classes", layer)
    return layer


def layer_at(value: ir.Value, rank: int) -> Layer:
    """The linear layer whose output is ``value``.

    Args:
        value: the output.
        rank: its rank.

    Raises:
        UnsupportedError: it is no such layer; names the node.
    """
    value, rank = behind_forms(value, rank)
    node, bias = value.producer(), None
    if node is not None and is_op(node, "Add"):
        value, bias = split_add(node)
        value, rank = behind_forms(value, rank)
        node = value.producer()
    if node is None or not (is_op(node, "MatMul") or is_op(node, "Gemm")):
        what = f"value {value.name!r}" if node is None else called(node)
        raise refusal(f"it comes from {what}, not from MatMul or Gemm")
    layer = of_matmul(node, bias, rank) if node.op_type == "MatMul" else of_gemm(node, bias)
    check_layer(node, layer)
    return layer


def behind_forms(value: ir.Value, rank: int) -> tuple[ir.Value, int]:
    """The value and its rank before Identity and Squeeze."""
    while (node := value.producer()) is not None and node.inputs[0] is not None:
        if is_op(node, "Squeeze"):
            axes = node.inputs[1] if len(node.inputs) > 1 else None
            tensor = None if axes is None else ir.convenience.get_const_tensor(axes)
            if tensor is None:
                break
            rank += tensor.size
        elif not is_op(node, "Identity"):
            break
        value = node.inputs[0]
    return value, rank


def split_add(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """What is added to the bias, and the bias, in either order."""
    left, right = node.inputs
    assert left is not None and right is not None
    if left.is_initializer():
        left, right = right, left
    if not right.is_initializer():
        raise refusal(f"{called(node)} adds {left.name!r} and {right.name!r}, and neither is a "
                      "bias (an initializer)")  # fmt: skip
    return left, right


def of_matmul(node: ir.Node, bias: ir.Value | None, rank: int) -> Layer:
    """The layer of a MatMul, whose output has this rank."""
    features, weight = node.inputs
    assert features is not None and weight is not None
    weight, turned = behind_transpose(weight)
    shape = sizes(node, weight)
    if rank != len(shape):  # a matrix times a vector is a vector
        raise refusal(f"the features {features.name!r} of {called(node)} are not 2-D, "
                      f"its output has {rank} axes")  # fmt: skip
    d, classes = (shape[0], 1) if len(shape) == 1 else shape[::-1] if turned else shape
    return Layer(features, weight, bias, d, classes, rows=turned)


def of_gemm(node: ir.Node, bias: ir.Value | None) -> Layer:
    """The layer of a Gemm; its own third input is the bias when no Add follows."""
    features, weight = node.inputs[:2]
    assert features is not None and weight is not None
    own = node.inputs[2] if len(node.inputs) > 2 else None
    alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    if alpha == 0:
        raise refusal(f"{called(node)} has alpha 0")
    if own is not None and beta != 0:
        if bias is not None:
            raise refusal(f"there are two biases, {own.name!r} of {called(node)} and {bias.name!r}")
        bias = own
    else:
        beta = 1.0
    weight, turned = behind_transpose(weight)
    shape = sizes(node, weight)
    rows = turned != bool(node.attributes.get_int("transB", 0))
    d, classes = shape[::-1] if rows else shape
    transposed = bool(node.attributes.get_int("transA", 0))
    return Layer(features, weight, bias, d, classes, rows, transposed, alpha, beta)


def behind_transpose(weight: ir.Value) -> tuple[ir.Value, bool]:
    """The value before a Transpose of a matrix, and whether there is one."""
    node = weight.producer()
    if node is None or not is_op(node, "Transpose") or node.inputs[0] is None:
        return weight, False
    if list(node.attributes.get_ints("perm", (1, 0))) != [1, 0] or len(weight.uses()) > 1:
        return weight, False
    return node.inputs[0], True


def sizes(node: ir.Node, weight: ir.Value) -> tuple[int, ...]:
    """The shape of the weight, a matrix or (of a MatMul) a vector."""
    if not weight.is_initializer() or weight.const_value is None:
        raise refusal(f"the right operand {weight.name!r} of {called(node)} is no initializer")
    shape = tuple(weight.const_value.shape.numpy())
    if len(shape) != 2 and not (len(shape) == 1 and node.op_type == "MatMul"):
        raise refusal(f"the weight {weight.name!r} of {called(node)} is no matrix, but "
                      f"{list(shape)}")  # fmt: skip
    return shape


def check_layer(node: ir.Node, layer: Layer) -> None:
    """Raise UnsupportedError, with all complaints, when a new value cannot be put in place."""
    problems = []
    for value in (layer.weight, layer.bias):
        if value is None:
            continue
        if not value.is_initializer() or value.const_value is None:
            problems.append(f"the bias {value.name!r} is no initializer")
            continue
        if len(value.uses()) > 1:
            others = [called(use.node) for use in value.uses()]
            problems.append(f"{value.name!r} is used {len(others)} times: by {', '.join(others)}")
        if value is layer.bias and value.const_value.size != layer.classes:
            problems.append(f"the bias {value.name!r} has {value.const_value.size} elements for "
                            f"{layer.classes} outputs")  # fmt: skip
    if problems:
        raise refusal(f"{called(node)} cannot be fitted", more=problems)


def need_bias(layer: Layer, oracle: str) -> None:
    """Raise UnsupportedError when the layer has no bias, which the oracle has to set."""
    if layer.bias is None:
        raise UnsupportedError(
            f"{oracle} sets a bias, and the layer of weight {layer.weight.name!r} has none; add "
            "one to the base, or take an oracle that needs none (ridge, perceptron)"
        )


def refuse_values(problem: Problem, oracle: str) -> None:
    """Raise UnsupportedError when the base answers with one number that is no logit."""
    if problem.site.kind == "values" and problem.site.classes == 1:
        raise UnsupportedError(
            f"{oracle} decides between classes, and the output {problem.site.output!r} is one "
            "value per sample; take ridge, or say that it is a logit: --loss BCEWithLogitsLoss"
        )


def is_op(node: ir.Node, op_type: str) -> bool:
    """Whether the node is this operator of ONNX's own domain."""
    return node.op_type == op_type and node.domain == ""


def called(node: ir.Node) -> str:
    """The node in words, for a message."""
    name = f"{node.name!r}" if node.name else f"of {node.outputs[0].name!r}"
    return f"node {name} ({node.op_type})"


def refusal(
    fact: str, layer: Layer | None = None, *, more: list[str] | None = None
) -> UnsupportedError:
    """The error for a network whose last layer no included oracle can fit."""
    where = "" if layer is None else f"the layer of weight {layer.weight.name!r}: "
    return UnsupportedError(
        "the included oracles fit a last layer, logits = features · weight + bias, and this "
        "network does not end in one; give an algorithm of your own as an ONNX graph (--oracle "
        "FILE.onnx)",
        [where + fact, *(more or [])],
    )
