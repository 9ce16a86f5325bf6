"""If, Loop and Scan in torch: the bits of onnxruntime, the gradients of the unrolled graph."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from conftest import parse
from test_torch_ops import ALL_CASES, as_torch, compare, tolerance

from gdu_compile import model_io, runtime
from gdu_compile.errors import InputError, UnsupportedError
from gdu_compile.torch_backend import lower_to_torch, to_array
from gdu_compile.torch_backend.module import lower

Arrays = dict[str, np.ndarray]

X = np.array([1.5, -2.25, 0.75], dtype=np.float32)
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
POSITIVE = np.array([[4.0, 1.0, 0.5], [1.0, 3.0, 0.25], [0.5, 0.25, 2.0]], dtype=np.float32)


def true() -> np.ndarray:
    """A condition that holds."""
    return np.array(True)


def number(value: int) -> np.ndarray:
    """A trip count."""
    return np.array(value, dtype=np.int64)


# name → a graph, and its inputs
CASES: dict[str, tuple[str, Arrays]] = {
    "trip count only": (
        """g (int64 m, float[3] x) => (float[3] y) {
             y = Loop (m, , x) <body = b (int64 i, bool c, float[3] a) => (bool d, float[3] e) {
               d = Identity(c)  e = Add(a, a) }> }""",
        {"m": number(5), "x": X},
    ),
    "trip count of shape [1]": (
        """g (int64[1] m, float[3] x) => (float[3] y) {
             y = Loop (m, , x) <body = b (int64 i, bool c, float[3] a) => (bool d, float[3] e) {
               d = Identity(c)  e = Add(a, a) }> }""",
        {"m": np.array([2]), "x": X},
    ),
    "the body stops a loop that was given no condition": (
        """g (int64 m, float[3] x) => (float[3] y) {
             y = Loop (m, , x) <body = b (int64 i, bool c, float[3] a) => (bool d, float[3] e) {
               two = Constant <value = int64 {2}> ()  d = Less(i, two)  e = Add(a, a) }> }""",
        {"m": number(9), "x": X},
    ),
    "condition only": (
        """g (bool c0, float x) => (float y) {
             y = Loop (, c0, x) <body = b (int64 i, bool c, float a) => (bool d, float e) {
               e = Add(a, a)  top = Constant <value = float {100}> ()  d = Less(e, top) }> }""",
        {"c0": true(), "x": np.array(1.5, dtype=np.float32)},
    ),
    "neither": (
        """g (float x) => (float y) {
             y = Loop (, , x) <body = b (int64 i, bool c, float a) => (bool d, float e) {
               e = Add(a, a)  top = Constant <value = float {100}> ()  d = Less(e, top) }> }""",
        {"x": np.array(1.5, dtype=np.float32)},
    ),
    "both, the condition ends it": (
        """g (int64 m, bool c0, float x) => (float y) {
             y = Loop (m, c0, x) <body = b (int64 i, bool c, float a) => (bool d, float e) {
               e = Add(a, a)  top = Constant <value = float {100}> ()  d = Less(e, top) }> }""",
        {"m": number(50), "c0": true(), "x": np.array(1.5, dtype=np.float32)},
    ),
    "both, the trip count ends it": (
        """g (int64 m, bool c0, float x) => (float y) {
             y = Loop (m, c0, x) <body = b (int64 i, bool c, float a) => (bool d, float e) {
               e = Add(a, a)  top = Constant <value = float {100}> ()  d = Less(e, top) }> }""",
        {"m": number(3), "c0": true(), "x": np.array(1.5, dtype=np.float32)},
    ),
    "the condition does not hold at the start": (
        """g (int64 m, bool c0, float[3] x) => (float[3] y, float[K,3] s) {
             y, s = Loop (m, c0, x) <body = b (int64 i, bool c, float[3] a)
               => (bool d, float[3] e, float[3] f) {
                 d = Identity(c)  e = Add(a, a)  f = Neg(e) }> }""",
        {"m": number(5), "c0": np.array(False), "x": X},
    ),
    "no iterations": (
        """g (int64 m, float[3] x) => (float[3] y, float[K,3] s, int64[K] t, double[K,A,2] u) {
             y, s, t, u = Loop (m, , x) <body = b (int64 i, bool c, float[3] a)
               => (bool d, float[3] e, float[3] f, int64 j, double[A,2] h) {
                 d = Identity(c)  e = Add(a, a)  f = Neg(e)  j = Identity(i)
                 k = NonZero(a)  l = Transpose(k)  n = Concat <axis = 1> (l, l)
                 h = Cast <to = 11> (n) }> }""",
        {"m": number(0), "x": X},
    ),
    "scan outputs": (
        """g (int64 m, float[3] x) => (float[3] y, float[K,3] s, int64[K] t, bool[K,3] u) {
             y, s, t, u = Loop (m, , x) <body = b (int64 i, bool c, float[3] a)
               => (bool d, float[3] e, float[3] f, int64 j, bool[3] h) {
                 d = Identity(c)  e = Add(a, a)  f = Neg(e)  j = Add(i, i)
                 one = Constant <value_float = 1.0> ()  h = Less(a, one) }> }""",
        {"m": number(4), "x": X},
    ),
    "inputs of the body as its outputs": (
        # not the number of the iteration: onnxruntime 1.31 stacks its last value then
        """g (int64 m, float[3] x) => (float[3] y, float[K,3] s) {
             y, s = Loop (m, , x) <body = b (int64 i, bool c, float[3] a)
               => (bool c, float[3] a, float[3] a) { unused = Neg(a) }> }""",
        {"m": number(3), "x": X},
    ),
    "constants as outputs of the body": (
        """g (int64 m, float[3] x) => (float[3] y, float[K] s) {
             y, s = Loop (m, , x) <body = b (int64 i, bool c, float[3] a)
               => (bool d, float[3] e, float f) {
                 d = Constant <value = bool {1}> ()  f = Constant <value_float = 0.5> ()
                 e = Mul(a, f) }> }""",
        {"m": number(3), "x": X},
    ),
    "captured values": (
        """g (int64 m, float[3] x, float[3] w) => (float[3] y, float[3] z) {
             v = Mul(w, w)
             y = Loop (m, , x) <body = b (int64 i, bool c, float[3] a) => (bool d, float[3] e) {
               d = Identity(c)  f = Add(a, v)  e = Sub(f, w) }>
             z = Add(y, w) }""",
        {"m": number(4), "x": X, "w": X[::-1].copy()},
    ),
    "swapped state variables": (
        """g (int64 m, float[3] x, int32[2] k) => (float[3] y, int32[2] l, bool q, double r) {
             p = Constant <value = bool {1}> ()  o = Constant <value = double {0.1}> ()
             y, l, q, r = Loop (m, , x, k, p, o) <body =
               b (int64 i, bool c, float[3] a, int32[2] n, bool s, double t)
               => (bool d, float[3] e, int32[2] f, bool u, double v) {
                 d = Identity(c)  e = Neg(a)  f = Add(n, n)  u = Not(s)  v = Mul(t, t) }> }""",
        {"m": number(3), "x": X, "k": np.array([3, -5], dtype=np.int32)},
    ),
    "a state that grows": (
        """g (int64 m, float[N] x) => (float[M] y) {
             y = Loop (m, , x) <body = b (int64 i, bool c, float[N] a) => (bool d, float[M] e) {
               d = Identity(c)  e = Concat <axis = 0> (a, a) }> }""",
        {"m": number(3), "x": X},
    ),
    "nested loops": (
        """g (int64 m, float[3] x) => (float[3] y, float[K,L] s) {
             y, s = Loop (m, , x) <body = b (int64 i, bool c, float[3] a)
               => (bool d, float[3] e, float[L] f) {
                 d = Identity(c)  two = Constant <value = int64 {2}> ()  v = Mul(a, a)
                 e, f = Loop (two, , a) <body = bb (int64 ii, bool cc, float[3] aa)
                   => (bool dd, float[3] ee, float ff) {
                     dd = Identity(cc)  t = Sub(v, aa)  r = Cast <to = 1> (i)  ee = Add(t, r)
                     ff = ReduceSum <keepdims = 0> (ee) }> }> }""",
        {"m": number(3), "x": X},
    ),
    "the same names in two bodies": (
        """g (int64 m, float[3] x) => (float[3] y, float[3] z) {
             y = Loop (m, , x) <body = b (int64 i, bool c, float[3] a) => (bool d, float[3] e) {
               d = Identity(c)  e = Add(a, a) }>
             z = Loop (m, , y) <body = b (int64 i, bool c, float[3] a) => (bool d, float[3] e) {
               d = Identity(c)  k = Constant <value_float = 0.25> ()  e = Mul(a, k) }> }""",
        {"m": number(3), "x": X},
    ),
    "the same names in nested bodies": (
        """g (int64 m, float[3] x) => (float[3] y) {
             y = Loop (m, , x) <body = b (int64 i, bool c, float[3] a) => (bool d, float[3] e) {
               d = Identity(c)
               f = Loop (m, , a) <body = b (int64 j, bool p, float[3] k)
                 => (bool q, float[3] r) { q = Identity(p)  r = Add(k, a) }>
               h = Loop (m, , f) <body = b (int64 j, bool p, float[3] k)
                 => (bool q, float[3] r) { q = Identity(p)  r = Sub(k, a) }>
               e = Add(h, a) }> }""",
        {"m": number(2), "x": X},
    ),
    "Loop in If": (
        """g (bool q, int64 m, float[3] x) => (float[3] y) {
             y = If (q) <
               then_branch = t () => (float[3] u) {
                 u = Loop (m, , x) <body = b (int64 i, bool c, float[3] a)
                   => (bool d, float[3] e) { d = Identity(c)  e = Add(a, x) }> },
               else_branch = e () => (float[3] v) { v = Neg(x) }> }""",
        {"q": true(), "m": number(3), "x": X},
    ),
    "If in Loop": (
        """g (int64 m, float[3] x) => (float[3] y, int64[K] s) {
             three = Constant <value_int = 3> ()  half = Constant <value_float = 0.5> ()
             y, s = Loop (m, , x) <body = b (int64 i, bool c, float[3] a)
               => (bool d, float[3] e, int64 f) {
                 d = Identity(c)  r = Mod(i, three)  q = Cast <to = 9> (r)  f = Identity(r)
                 e = If (q) <then_branch = t () => (float[3] u) { u = Mul(a, half) },
                             else_branch = o () => (float[3] v) { v = Add(a, x) }> }> }""",
        {"m": number(7), "x": X},
    ),
    "Rosenblatt's perceptron": (
        """g (int64 m, int32[4,3] x, int32[4] t) => (int32[3] w, int64[K] s) {
             n = Shape <start = 0, end = 1> (x)  shape = Shape <start = 1> (x)
             start = ConstantOfShape <value = int32[1] {0}> (shape)
             zero = Constant <value = int32 {0}> ()
             w, s = Loop (m, , start) <body = b (int64 i, bool c, int32[3] a)
               => (bool d, int32[3] e, int64 f) {
                 d = Identity(c)  row = Mod(i, n)  one = Gather(x, row)  k = Gather(t, row)
                 p = Mul(one, a)  o = ReduceSum <keepdims = 0> (p)  g = Mul(o, k)
                 q = LessOrEqual(g, zero)  r = Squeeze(q)  f = Cast <to = 7> (r)
                 e = If (r) <
                   then_branch = yes () => (int32[3] u) {
                     h = Mul(one, k)  l = Squeeze(h)  u = Add(a, l) },
                   else_branch = no () => (int32[3] v) { v = Identity(a) }> }> }""",
        {"m": number(40), "t": np.array([1, -1, -1, 1], dtype=np.int32),
         "x": np.array([[2, 1, 1], [-1, 2, 1], [-2, -1, 1], [1, -3, 1]], dtype=np.int32)},
    ),
    "Newton until convergence": (
        """g (double w) => (double y, double[K] s) {
             half = Constant <value = double {0.5}> ()  tiny = Constant <value = double {1e-14}> ()
             y, s = Loop (, , w) <body = b (int64 i, bool c, double a)
               => (bool d, double e, double f) {
                 q = Div(w, a)  t = Add(a, q)  e = Mul(half, t)  f = Identity(e)
                 u = Sub(e, a)  v = Abs(u)  d = Less(tiny, v) }> }""",
        {"w": np.array(2.0)},
    ),
    "Scan of sums": (
        """g (float[4] x, float[3,4] r) => (float[4] y, float[3,4] s) {
             y, s = Scan <num_scan_inputs = 1, body = b (float[4] a, float[4] t)
               => (float[4] e, float[4] f) { e = Add(a, t)  f = Mul(e, e) }> (x, r) }""",
        {"x": np.zeros(4, dtype=np.float32), "r": ROWS},
    ),
    "Scan along axes, from behind, to the front": (
        """g (int32[4] x, int32[3,4] r, int32[4,3] q) => (int32[4] y, int32[4,3] s, int32[3] t) {
             y, s, t = Scan <num_scan_inputs = 2, scan_input_axes = [0, -1],
                             scan_input_directions = [1, 0], scan_output_axes = [-1, 0],
                             scan_output_directions = [0, 1],
                             body = b (int32[4] a, int32[4] k, int32[4] l)
               => (int32[4] e, int32[4] f, int32 h) {
                 m = Sub(k, l)  e = Add(a, m)  f = Mul(e, k)
                 h = ReduceMax <keepdims = 0> (f) }> (x, r, q) }""",
        {"x": np.arange(4, dtype=np.int32), "r": ROWS.astype(np.int32),
         "q": 2 * ROWS.T.astype(np.int32)},
    ),
    "Scan without states": (
        """g (float[3,4] r, float[4] w) => (float[4,3] s) {
             s = Scan <num_scan_inputs = 1, scan_output_axes = [1], body = b (float[4] t)
               => (float[4] f) { f = Add(t, w) }> (r) }""",
        {"r": ROWS, "w": ROWS[1]},
    ),
    "Scan of several states, without scan outputs": (
        """g (float[4] x, double z, float[3,4] r) => (float[4] y, double u) {
             y, u = Scan <num_scan_inputs = 1, body = b (float[4] a, double k, float[4] t)
               => (float[4] e, double f) {
                 e = Max(a, t)  m = ReduceSum <keepdims = 0> (t)  n = Cast <to = 11> (m)
                 f = Sub(k, n) }> (x, z, r) }""",
        {"x": ROWS[1], "z": np.array(0.5), "r": ROWS},
    ),
    "Loop in Scan in Loop": (
        """g (int64 m, float[4] x, float[3,4] r) => (float[4] y) {
             y = Loop (m, , x) <body = b (int64 i, bool c, float[4] a) => (bool d, float[4] e) {
               d = Identity(c)
               e = Scan <num_scan_inputs = 1, body = bb (float[4] aa, float[4] t)
                 => (float[4] ee) {
                   ee = Loop (m, , aa) <body = bbb (int64 ii, bool cc, float[4] aaa)
                     => (bool dd, float[4] eee) {
                       dd = Identity(cc)  h = Add(aaa, t)  eee = Sub(h, x) }> }> (a, r) }> }""",
        {"m": number(2), "x": ROWS[2], "r": ROWS},
    ),
}  # fmt: skip


# A·y = x in as many iterations as there are unknowns, or until the residual is small
CONJUGATE_GRADIENTS = """
    g (double[3,3] a, double[3] x) => (double[3] y, double[K] s) {
      n = Size(x)  zero = Constant <value = double {0}> ()  start = Mul(x, zero)
      tiny = Constant <value = double {1e-30}> ()  yes = Constant <value = bool {1}> ()
      q = Mul(x, x)  rr0 = ReduceSum <keepdims = 0> (q)
      y, r, p, rr, s = Loop (n, yes, start, x, x, rr0) <body =
        b (int64 i, bool c, double[3] y1, double[3] r1, double[3] p1, double rr1)
        => (bool d, double[3] y2, double[3] r2, double[3] p2, double rr2, double out) {
          ap = MatMul(a, p1)  pap = MatMul(p1, ap)  alpha = Div(rr1, pap)
          up = Mul(alpha, p1)  y2 = Add(y1, up)  down = Mul(alpha, ap)  r2 = Sub(r1, down)
          square = Mul(r2, r2)  rr2 = ReduceSum <keepdims = 0> (square)
          beta = Div(rr2, rr1)  turn = Mul(beta, p1)  p2 = Add(r2, turn)
          d = Greater(rr2, tiny)  out = Identity(rr2) }> }"""


def in_onnxruntime(model: ir.Model, inputs: Arrays) -> Arrays:
    """The outputs by name, without graph optimisations."""
    with runtime.on_disk(model) as path:
        session = runtime.session(path, "none")
        return dict(zip([v.name for v in session.get_outputs()],
                        session.run(None, inputs), strict=True))  # fmt: skip


def in_torch(model: ir.Model, inputs: Arrays) -> Arrays:
    """The outputs by name."""
    module = lower_to_torch(model, ())
    results = module.run({name: torch.from_numpy(array) for name, array in inputs.items()})
    return {name: to_array(tensor) for name, tensor in results.items()}


def bits(arrays: Arrays) -> dict[str, tuple[object, ...]]:
    """What makes arrays the same to the bit."""
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()}


@pytest.mark.parametrize("case", CASES)
def test_same_bits_as_onnxruntime(case: str) -> None:
    """Every output: dtype, shape, bits."""
    text, inputs = CASES[case]
    model = parse(text)
    assert bits(in_torch(model, inputs)) == bits(in_onnxruntime(model, inputs))


def test_scan_of_no_slices() -> None:
    """The states stay, the scan outputs are empty along their axes; onnxruntime refuses this."""
    model = parse("""
        g (float[4] x, float[N,4] r) => (float[4] y, float[4,N] s, double[N,2] t) {
          y, s, t = Scan <num_scan_inputs = 1, scan_output_axes = [-1, 0],
                          body = b (float[4] a, float[4] k) => (float[4] e, float[4] f, double[2] h)
            { e = Add(a, k)  f = Neg(k)  h = Constant <value = double[2] {1, 2}> () }> (x, r) }""")
    results = in_torch(model, {"x": ROWS[1], "r": ROWS[:0]})
    assert np.array_equal(results["y"], ROWS[1])
    assert (results["s"].dtype, results["s"].shape) == (np.float32, (4, 0))
    assert (results["t"].dtype, results["t"].shape) == (np.float64, (0, 2))


def test_conjugate_gradients() -> None:
    """MatMul sums in another order than onnxruntime's: equal up to the last places."""
    inputs = {"a": POSITIVE.astype(np.float64), "x": X.astype(np.float64)}
    model = parse(CONJUGATE_GRADIENTS)
    got, wanted = in_torch(model, inputs), in_onnxruntime(model, inputs)
    assert got["s"].shape == wanted["s"].shape == (3,)
    np.testing.assert_allclose(got["y"], wanted["y"], rtol=1e-14)
    np.testing.assert_allclose(got["y"], np.linalg.solve(inputs["a"], inputs["x"]), rtol=1e-14)
    identity = in_torch(model, {"a": np.eye(3), "x": inputs["x"]})
    assert identity["s"].shape == (1,) and np.array_equal(identity["y"], inputs["x"])


def operators(graph: onnx.GraphProto) -> set[str]:
    """All in the graph and in its subgraphs."""
    found = set()
    for node in graph.node:
        found.add(node.op_type)
        for attribute in node.attribute:
            found |= operators(attribute.g)
    return found


# Others than those of tensors only; Scan as it was before opset 9.
NOT_OURS = r".*(seq|opt|bfloat16).*|test_scan_sum"
CONFORMANCE = [
    case for case in ALL_CASES
    if not re.fullmatch(NOT_OURS, case.name)
    and operators(case.model.graph) & {"If", "Loop", "Scan"}
]  # fmt: skip


@pytest.mark.parametrize("case", CONFORMANCE, ids=lambda case: case.name)
def test_conformance(case: Any) -> None:
    """ONNX's own cases, and its operators that are functions with a Loop, a Scan or an If."""
    module = lower_to_torch(model_io.raise_opset(ir.from_proto(case.model)), ())
    for inputs, wanted in case.data_sets:
        results = module(*map(as_torch, inputs))
        results = results if isinstance(results, tuple) else (results,)
        for result, expected in zip(results, wanted, strict=True):
            compare(result, as_torch(expected), *tolerance(case))


def test_conformance_has_cases_of_each() -> None:
    """The check above does not pass because nothing was found."""
    names = {case.name for case in CONFORMANCE}
    assert {"test_if", "test_loop11", "test_scan9_sum", "test_scan9_multi_state"} < names
    assert len(names) > 20


# --- gradients ----------------------------------------------------------------


def rolled(kind: str, steps: int) -> str:
    """steps × a ← tanh(a·w) + r_k, all a as a scan output; r by slices, from behind, in a Scan."""
    if kind == "Loop":
        return f"""g (float[3] x, float[3,3] w, float[4,3] r) => (float[3] y, float[{steps},3] s) {{
            m = Constant <value_int = {steps}> ()
            y, s = Loop (m, , x) <body = b (int64 i, bool c, float[3] a)
              => (bool d, float[3] e, float[3] f) {{
                d = Identity(c)  k = MatMul(a, w)  t = Tanh(k)  l = Gather(r, i)
                e = Add(t, l)  f = Mul(e, e) }}> }}"""
    return f"""g (float[3] x, float[3,3] w, float[4,3] r) => (float[3] y, float[{steps},3] s) {{
        from = Constant <value_ints = [0]> ()  to = Constant <value_ints = [{steps}]> ()
        rows = Slice(r, from, to)
        y, s = Scan <num_scan_inputs = 1, scan_input_directions = [1],
                     scan_output_directions = [1], body = b (float[3] a, float[3] l)
          => (float[3] e, float[3] f) {{
            k = MatMul(a, w)  t = Tanh(k)  e = Add(t, l)  f = Mul(e, e) }}> (x, rows) }}"""


def unrolled(kind: str, steps: int) -> str:
    """The same without a loop."""
    order = range(steps) if kind == "Loop" else range(steps)[::-1]
    lines, last = ["zero = Constant <value_ints = [0]> ()"], "x"
    for i in order:
        lines.append(f"""
            k{i} = MatMul({last}, w)  t{i} = Tanh(k{i})  i{i} = Constant <value_int = {i}> ()
            l{i} = Gather(r, i{i})  e{i} = Add(t{i}, l{i})
            f{i} = Mul(e{i}, e{i})  u{i} = Unsqueeze(f{i}, zero)""")
        last = f"e{i}"
    rows = ", ".join(f"u{i}" for i in range(steps))
    lines.append(f"y = Identity({last})  s = Concat <axis = 0> ({rows})")
    return f"""g (float[3] x, float[3,3] w, float[4,3] r) => (float[3] y, float[{steps},3] s) {{
        {" ".join(lines)} }}"""


def gradients(text: str) -> list[torch.Tensor]:
    """Of Σy + Σs·(1, 2, …) with respect to x, w and r."""
    arrays = X / 4, POSITIVE / 4, ROWS.reshape(4, 3) / 16
    leaves = [torch.from_numpy(array).requires_grad_() for array in arrays]
    y, s = lower_to_torch(parse(text), ())(*leaves)
    loss = y.sum() + (s * torch.arange(1, 1 + s.numel()).reshape(s.shape)).sum()
    return list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("kind", ["Loop", "Scan"])
def test_gradient_is_that_of_the_unrolled_graph(kind: str) -> None:
    """To the bit; another number of iterations gives another one."""
    expected = gradients(unrolled(kind, 4))
    assert all(bool(gradient.any()) for gradient in expected)
    assert all(map(torch.equal, gradients(rolled(kind, 4)), expected))
    assert not any(map(torch.equal, gradients(rolled(kind, 3)), expected))


def test_parameters_in_a_body_are_trained() -> None:
    """An initializer that a body captures is a parameter like any other: ∂(w³·x)/∂w = 3w²·x."""
    text = """g (float x) => (float y) {
        m = Constant <value_int = 3> ()
        y = Loop (m, , x) <body = b (int64 i, bool c, float a) => (bool c, float e) {
          e = Mul(a, w) }> }"""
    module = lower_to_torch(parse(text, {"w": np.array(5.0, dtype=np.float32)}), ["w"])
    module(torch.tensor(2.0)).backward()
    assert [float(p.grad) for p in module.parameters() if p.grad is not None] == [150.0]


# --- the environment -----------------------------------------------------------


def test_what_bodies_made_is_gone_afterwards() -> None:
    """They run in the environment of the graph around them, and leave it as it was."""
    text, inputs = CASES["nested loops"]
    model, held = parse(text), dict[str, torch.Tensor]()
    program = lower(model.graph, 18, held.__setitem__)
    given = {**held, **{name: torch.from_numpy(array) for name, array in inputs.items()}}
    assert set(program.run(dict(given))) == {*given, "y", "s"}
    body = model.graph[0].attributes["body"].as_graph()
    alone = {**given, "i": torch.tensor(0), "c": torch.tensor(True), "a": given["x"]}
    left = lower(body, 18, held.__setitem__).run(alone)
    assert {"i", "c", "a", "d", "e", "f"} < set(left)  # so there is something to take away


def test_constants_of_bodies_are_buffers() -> None:
    """Made once, and moved and cast with the module: in float64 the whole Loop is."""
    text = """g (int64 m, float[3] x) => (float[3] y) {
        y = Loop (m, , x) <body = b (int64 i, bool c, float[3] a) => (bool c, float[3] e) {
          k = Constant <value_float = 0.1> ()  l = Constant <value = float[1] {0.1}> ()
          f = Mul(a, k)  e = Add(f, l) }> }"""
    module = lower_to_torch(parse(text), ())
    assert [name for name, _ in module.named_buffers()] == ["k", "l"]
    result = module.double()(torch.tensor(2), torch.from_numpy(X).double())
    assert result.dtype == torch.float64


# --- errors -------------------------------------------------------------------

MISSING = """g (int64 m, float[3] x) => (float[3] y) {{
    [around] y = Loop (m, , x) <body = b (int64 i, bool c, float[3] a) => (bool c, float[3] e) {{
      {label} e = Bernoulli(a) }}> }}"""


@pytest.mark.parametrize("label, named", [("[noise]", "node 'noise'"), ("", "node of 'e'")])
def test_an_operator_that_is_missing_is_named_when_it_is_reached(label: str, named: str) -> None:
    """Not by a Loop that makes no iteration."""
    module = lower_to_torch(parse(MISSING.format(label=label)), ())
    x = torch.from_numpy(X)
    assert torch.equal(module(torch.tensor(0), x), x)
    with pytest.raises(UnsupportedError, match=f"^{named}: operator ai.onnx::Bernoulli"):
        module(torch.tensor(1), x)


def test_a_string_constant_is_refused_when_it_is_reached() -> None:
    """Torch has no strings; what is not reached does not matter."""
    text = """g (bool q, float[3] x) => (float[3] y) {
        y = If (q) <then_branch = t () => (float[3] u) { u = Neg(x) },
                    else_branch = e () => (string v) { [word] v = Constant <value_string="a"> () }>
        }"""
    module = lower_to_torch(parse(text), ())
    assert torch.equal(module(torch.tensor(True), torch.ones(3)), -torch.ones(3))
    with pytest.raises(UnsupportedError, match="Constant of strings"):
        module(torch.tensor(False), torch.ones(3))


def test_scan_over_different_lengths() -> None:
    """The message names the node and the lengths; equal ones pass."""
    text = """g (float[N] a, float[M] b) => (float[K] s) {
        [both] s = Scan <num_scan_inputs = 2, body = q (float c, float d) => (float e) {
          e = Add(c, d) }> (a, b) }"""
    module = lower_to_torch(parse(text), ())
    with pytest.raises(InputError, match=r"node 'both': .* lengths \[3, 4\]"):
        module(torch.ones(4), torch.ones(3))
    assert torch.equal(module(torch.ones(3), torch.ones(3)), 2 * torch.ones(3))


def test_no_iteration_and_no_dtype() -> None:
    """Only then the dtype that the model declares is needed."""
    text, _ = CASES["scan outputs"]
    model = parse(text)
    model.graph[0].name = "around"
    model.graph[0].attributes["body"].as_graph().outputs[2].type = None
    module = lower_to_torch(model, ())
    assert module(torch.tensor(2), torch.from_numpy(X))[1].shape == (2, 3)
    with pytest.raises(UnsupportedError, match=r"node 'around': no iteration .* 'f' has no dtype"):
        module(torch.tensor(0), torch.from_numpy(X))
