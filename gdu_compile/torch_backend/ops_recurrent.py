"""The recurrent operators: RNN, GRU, LSTM.

All three are one loop over the time steps, ``_scan``.  What differs is the cell:
a function from the gates' share of the input at one time step and the states
before it to the states after it, of which the first is the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gdu_compile.errors import UnsupportedError
from gdu_compile.torch_backend.registry import operator

States = tuple[Tensor, ...]  # each [N, H]
Cell = Callable[[Tensor, States], States]
Function = Callable[[Tensor], Tensor]

REVERSED = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


class Activation(NamedTuple):
    """An activation function of x, alpha and beta, and their defaults.

    None: it takes no such parameter; NaN: it takes one, and has no default that ONNX and
    onnxruntime agree on (ThresholdedRelu's is 1 in the one and 0 in the other).
    """

    function: Callable[[Tensor, float, float], Tensor]
    alpha: float | None = None
    beta: float | None = None


ACTIVATIONS = {
    "affine": Activation(lambda x, alpha, beta: alpha * x + beta, math.nan, math.nan),
    "elu": Activation(lambda x, alpha, _: nnf.elu(x, alpha), 1.0),
    "hardsigmoid": Activation(lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1), 0.2, 0.5),
    "leakyrelu": Activation(lambda x, alpha, _: nnf.leaky_relu(x, alpha), 0.01),
    "relu": Activation(lambda x, *_: nnf.relu(x)),
    "scaledtanh": Activation(
        lambda x, alpha, beta: alpha * torch.tanh(beta * x), math.nan, math.nan
    ),
    "sigmoid": Activation(lambda x, *_: torch.sigmoid(x)),
    "softplus": Activation(lambda x, *_: nnf.softplus(x)),
    "softsign": Activation(lambda x, *_: nnf.softsign(x)),
    "tanh": Activation(lambda x, *_: torch.tanh(x)),
    "thresholdedrelu": Activation(lambda x, alpha, _: torch.where(x >= alpha, x, 0), math.nan),
}


def functions_of(
    names: Sequence[str], alphas: Sequence[float] | None, betas: Sequence[float] | None
) -> list[Function]:
    """The activation functions; each takes the next alpha and beta, if it has such a parameter."""
    left, right = iter(alphas or ()), iter(betas or ())
    functions: list[Function] = []
    for name in names:
        if name.lower() not in ACTIVATIONS:
            raise UnsupportedError(f"activation {name!r} of a recurrent operator is not in ONNX")
        function, alpha, beta = ACTIVATIONS[name.lower()]
        alpha = 0.0 if alpha is None else next(left, alpha)
        beta = 0.0 if beta is None else next(right, beta)
        if math.isnan(alpha) or math.isnan(beta):
            raise UnsupportedError(
                f"activation {name!r} of a recurrent operator lacks a parameter that has no "
                "default which all runtimes share: give activation_alpha and activation_beta"
            )
        functions.append(partial(_activate, function, alpha, beta))
    return functions


def _activate(
    function: Callable[[Tensor, float, float], Tensor], alpha: float, beta: float, x: Tensor
) -> Tensor:
    return function(x, alpha, beta)


def _clipped(function: Function, clip: float | None) -> Function:
    """``function`` of the gates' sum, clipped first if the operator says so."""
    return function if clip is None else lambda x: function(x.clamp(-clip, clip))


def _scan(
    gates: Tensor, states: States, cell: Cell, lengths: Tensor | None, reverse: bool
) -> tuple[Tensor, States]:
    """The output of every time step [T, N, H], 0 beyond a sequence's length, and the last states.

    Args:
        gates: what the input contributes to the gates, [T, N, G·H].
        states: the initial states.
        cell: one time step.
        lengths: of each sequence, [N]; None: all have length T.
        reverse: from the last time step to the first.
    """
    steps = range(len(gates))
    outputs = [states[0]] * len(gates)
    for t in reversed(steps) if reverse else steps:
        after = cell(gates[t], states)
        if lengths is None:
            states, outputs[t] = after, after[0]
        else:  # a reversed sequence waits in its initial state for its last element
            inside = (t < lengths)[:, None]  # [N, 1]
            states = tuple(torch.where(inside, *pair) for pair in zip(after, states, strict=True))
            outputs[t] = torch.where(inside, after[0], 0)
    if lengths is not None:  # onnxruntime: an empty sequence ends in 0, not where it began
        states = tuple(torch.where((lengths > 0)[:, None], state, 0) for state in states)
    if not outputs:
        return states[0].new_zeros(0, *states[0].shape), states
    return torch.stack(outputs), states


class Recurrence:
    """The inputs of a recurrent operator, in layout 0 and with what is absent made up for.

    Attributes:
        x: [T, N, I].
        w: [D, G·H, I].
        wb, rb: the two halves of the bias, each [D, G·H].
    """

    def __init__(
        self,
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None,
        lengths: Tensor | None,
        initial: Sequence[Tensor | None],
        direction: str,
        layout: int,
    ) -> None:
        self.x, self.w = x.transpose(0, 1) if layout else x, w
        bias = w.new_zeros(w.shape[0], 2 * w.shape[1]) if b is None else b
        self.wb, self.rb = bias.chunk(2, dim=1)
        self.lengths, self.reversed, self.layout = lengths, REVERSED[direction], layout
        zeros = x.new_zeros(w.shape[0], self.x.shape[1], r.shape[-1])  # [D, N, H]
        self.initial = [
            zeros if state is None else state.transpose(0, 1) if layout else state
            for state in initial
        ]

    def run(self, cell_of: Callable[[int], Cell]) -> tuple[Tensor, ...]:
        """Y and the last states, in the layout of the inputs; ``cell_of``: by direction."""
        outputs, states = [], []
        for d, reverse in enumerate(self.reversed):
            gates = self.x @ self.w[d].T + self.wb[d]  # [T, N, G·H]
            start = tuple(state[d] for state in self.initial)
            output, last = _scan(gates, start, cell_of(d), self.lengths, reverse)
            outputs.append(output)
            states.append(last)
        y = torch.stack(outputs, 1)  # [T, D, N, H]
        lasts = [torch.stack(of_state) for of_state in zip(*states, strict=True)]  # each [D, N, H]
        if self.layout:
            return (y.permute(2, 0, 1, 3), *(last.transpose(0, 1) for last in lasts))
        return (y, *lasts)


@operator("RNN", since=14)
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: Sequence[str] = ("Tanh", "Tanh"),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    num_outputs_: int = 2,
) -> tuple[Tensor, ...]:
    given = Recurrence(x, w, r, b, sequence_lens, [initial_h], direction, layout)
    functions = functions_of(activations, activation_alpha, activation_beta)

    def cell_of(d: int) -> Cell:
        f = _clipped(functions[d], clip)

        def cell(gates: Tensor, states: States) -> States:
            return (f(gates + states[0] @ r[d].T + given.rb[d]),)

        return cell

    return given.run(cell_of)[:num_outputs_]


@operator("GRU", since=14)
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: Sequence[str] = ("Sigmoid", "Tanh") * 2,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
    num_outputs_: int = 2,
) -> tuple[Tensor, ...]:
    given = Recurrence(x, w, r, b, sequence_lens, [initial_h], direction, layout)
    functions = functions_of(activations, activation_alpha, activation_beta)
    size = r.shape[-1]

    def cell_of(d: int) -> Cell:
        f, g = (_clipped(function, clip) for function in functions[2 * d : 2 * d + 2])
        r_zr, r_h = torch.split(r[d], [2 * size, size])
        rb_zr, rb_h = torch.split(given.rb[d], [2 * size, size])

        def cell(gates: Tensor, states: States) -> States:
            (h,) = states
            zr, hidden = torch.split(gates, [2 * size, size], 1)
            update, reset = f(zr + h @ r_zr.T + rb_zr).chunk(2, 1)
            if linear_before_reset:
                hidden = g(hidden + reset * (h @ r_h.T + rb_h))
            else:
                hidden = g(hidden + (reset * h) @ r_h.T + rb_h)
            return ((1 - update) * hidden + update * h,)

        return cell

    return given.run(cell_of)[:num_outputs_]


@operator("LSTM", since=14)
def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    p: Tensor | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: Sequence[str] = ("Sigmoid", "Tanh", "Tanh") * 2,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
    num_outputs_: int = 3,
) -> tuple[Tensor, ...]:
    given = Recurrence(x, w, r, b, sequence_lens, [initial_h, initial_c], direction, layout)
    functions = functions_of(activations, activation_alpha, activation_beta)
    return run_lstm(given, r, p, functions, clip, input_forget)[:num_outputs_]


def run_lstm(
    given: Recurrence,
    r: Tensor,
    p: Tensor | None,
    functions: Sequence[Function],
    clip: float | None,
    input_forget: int,
    seen: Function = lambda hidden: hidden,
) -> tuple[Tensor, ...]:
    """All outputs; ``seen``: what the product with R sees of the hidden state."""
    peepholes = r.new_zeros(r.shape[0], 3 * r.shape[-1]) if p is None else p

    def cell_of(d: int) -> Cell:
        f, g = (_clipped(function, clip) for function in functions[3 * d : 3 * d + 2])
        h = functions[3 * d + 2]  # onnxruntime clips the gates' sums, but not the cell state
        p_i, p_o, p_f = peepholes[d].chunk(3)

        def cell(gates: Tensor, states: States) -> States:
            hidden, c = states
            i, o, forget, content = (gates + seen(hidden) @ r[d].T + given.rb[d]).chunk(4, 1)
            i = f(i + p_i * c)
            forget = 1 - i if input_forget else f(forget + p_f * c)
            c = forget * c + i * g(content)
            return f(o + p_o * c) * h(c), c

        return cell

    return given.run(cell_of)
