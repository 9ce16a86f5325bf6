"""What torch cannot run in a user's file is one line that names the node; our faults are not."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
import torch

from gdu_compile.errors import NodeError
from gdu_compile.torch_backend import lower_to_torch, registry

HEAD = '<ir_version: 8, opset_import: ["": 18]>'


def module_of(text: str) -> torch.nn.Module:
    """A model in ONNX's text form, in torch."""
    return lower_to_torch(ir.from_proto(onnx.parser.parse_model(f"{HEAD} {text}")), ())


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("i = Constant<value=int64[1] {9}>()  y = Gather(x, i)",
         "node of 'y' (Gather), output 'y': torch cannot run it on the values that it gets "
         "(IndexError: index out of range in self)"),
        ("s = Constant<value=int64[2] {7, 5}>()  y = Reshape(x, s)",
         "node of 'y' (Reshape), output 'y': torch cannot run it on the values that it gets "
         "(RuntimeError: shape '[7, 5]' is invalid for input of size 12)"),
        ("n = Constant<value=float[5] {1,2,3,4,5}>()  y = Add(x, n)",
         "node of 'y' (Add), output 'y': torch cannot run it on the values that it gets "
         "(RuntimeError: The size of tensor a (4) must match the size of tensor b (5)"),
        ("c = Constant<value=bool {1}>()  n = Constant<value=float[5] {1,2,3,4,5}>()"
         "y = If(c) <then_branch = a () => (float[3,4] z) { z = Mul(x, n) },"
         "           else_branch = b () => (float[3,4] v) { v = Identity(x) }>",
         "node of 'z' (Mul), output 'z': torch"),
    ],
)  # fmt: skip
def test_named(body: str, said: str) -> None:
    """Indices, sizes, shapes; inside a branch the node in there."""
    module = module_of(f"g (float[3,4] x) => (float[3,4] y) {{ {body} }}")
    with pytest.raises(NodeError) as raised:
        module(torch.ones(3, 4))
    assert said in raised.value.message and "\n" not in raised.value.message
    assert isinstance(raised.value.__cause__, IndexError | RuntimeError)


@pytest.mark.parametrize("fault", [TypeError, KeyError, AttributeError, AssertionError])
def test_faults_of_ours(fault: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay what they are: an internal error, exit 3."""

    def broken(x: torch.Tensor) -> torch.Tensor:
        raise fault("ours")

    monkeypatch.setitem(registry.TABLE[""], "Neg", {1: broken})
    module = module_of("g (float[3] x) => (float[3] y) { y = Neg(x) }")
    with pytest.raises(fault):
        module(torch.ones(3))
