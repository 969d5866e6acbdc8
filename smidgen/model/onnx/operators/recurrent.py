"""Recurrent layers: LSTM, GRU and RNN as torch's own where they mean the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from ..call import Call
from ..registry import operator
from ..values import Malformed, Value

# ONNX stacks its gates i o f c and z r h; torch i f c o and r z h.
_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}


@operator("LSTM", "GRU", "RNN")
def recurrent(call: Call) -> tuple[Value | None, ...]:
    """LSTM, GRU and RNN with known weights, every sequence of full length."""
    x = call.x(0)
    directions = _check(call)
    hidden, inputs = call.static_shape(call.x(1))[1] // len(_ORDER[call.op]), call.static_shape(call.x(1))[2]
    if call.flag("layout", 0):
        raise Malformed("layout=1 is not supported; onnxruntime does not run it either")
    if call.rank(x) != 3 or call.shape(x)[2] != inputs:
        raise Malformed(f"an operand of shape {list(call.shape(x))} for weights of {inputs} inputs")
    kinds: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
    dtype, bias = call.dtype(call.x(1)), call.optional(3) is not None
    module = kinds[call.op](inputs, hidden, bias=bias, bidirectional=directions == 2, device="meta", dtype=dtype)
    if call.shape(call.x(2)) != (directions, call.static_shape(call.x(1))[1], hidden):
        raise Malformed(f"recurrent weights of {list(call.shape(call.x(2)))} do not fit {hidden} units")
    backwards = call.attr("direction", "forward") == "reverse"
    state = [_state(call, index) for index in ((5, 6) if call.op == "LSTM" else (5,))]
    sequence = call.emit(torch.flip, x, [0]) if backwards else x
    results = _apply(call, module, _tensors(call, hidden, directions, bias), sequence, state, hidden, directions)
    y = call.emit(torch.flip, results[0], [0]) if backwards else results[0]
    return (call.emit(by_direction, y, directions), *results[1:])


def by_direction(y: Tensor, directions: int) -> Tensor:
    """(time, batch, directions · hidden) as (time, directions, batch, hidden).

    >>> by_direction(torch.zeros(5, 2, 6), 2).shape
    torch.Size([5, 2, 2, 3])
    """
    return y.reshape([y.shape[0], y.shape[1], directions, -1]).permute(0, 2, 1, 3)


def _check(call: Call) -> int:
    operands = {index: call.optional(index) for index in range(len(call.operands))}
    if any(isinstance(operands.get(index), Node) for index in (1, 2, 3)):
        raise Malformed("its weights must be constants")
    if call.has(4):
        steps = call.shape(call.x(0))[0]
        if not call.is_constant(4) or any(length != steps for length in call.ints(4)):
            raise Malformed("sequences of different lengths are not supported")
    if call.has(7) or "clip" in call.attributes or call.flag("input_forget", 0):
        raise Malformed("peepholes, clip and input_forget are not supported")
    if call.op == "GRU" and not call.flag("linear_before_reset", 0):
        raise Malformed("a GRU needs linear_before_reset=1, as torch and Keras write it")
    directions = {"forward": 1, "reverse": 1, "bidirectional": 2}.get(call.attr("direction", "forward"))
    if directions is None or call.shape(call.x(1))[0] != directions:
        raise Malformed(f"direction {call.attr('direction')!r} does not fit its weights")
    names = [name.lower() for name in call.attr("activations") or _ACTIVATIONS[call.op] * directions]
    if names != _ACTIVATIONS[call.op] * directions or "activation_alpha" in call.attributes:
        raise Malformed(f"activations {names} are not supported")
    return directions


def _state(call: Call, index: int) -> Tensor | Node | None:
    """An initial state, None where it is absent or known to be zero."""
    value = call.optional(index)
    return None if value is None or (isinstance(value, Tensor) and not bool(value.any())) else value


def _tensors(call: Call, hidden: int, directions: int, bias: bool) -> dict[str, Tensor | None]:
    gates = len(_ORDER[call.op])
    tensors: dict[str, Tensor | None] = {}
    for d in range(directions):
        suffix = "_reverse" if d else ""
        for index, name in ((1, "weight_ih_l0"), (2, "weight_hh_l0")):
            tensors[name + suffix] = _gates(call, index, d, 0, gates, hidden)
        for half, name in enumerate(("bias_ih_l0", "bias_hh_l0") if bias else ()):
            tensors[name + suffix] = _gates(call, 3, d, half * gates * hidden, gates, hidden)
    return tensors


def _gates(call: Call, index: int, direction: int, start: int, gates: int, hidden: int) -> Tensor:
    stored = call.constant(index)

    def reordered(tensor: Tensor) -> Tensor:
        rows = tensor[direction, start : start + gates * hidden]
        return torch.cat([rows[gate * hidden : (gate + 1) * hidden] for gate in _ORDER[call.op]])

    return call.builder.derived_once(stored, f"{call.op} {direction} {start}", reordered)


def _apply(
    call: Call,
    module: nn.Module,
    tensors: dict[str, Tensor | None],
    x: Tensor | Node,
    state: list[Tensor | Node | None],
    hidden: int,
    directions: int,
) -> tuple[Value, ...]:
    given: Any = None
    if any(value is not None for value in state):
        batch = call.builder.size(x, 1)
        zeros = call.emit(torch.Tensor.new_zeros, x, [directions, batch, hidden])
        filled = [zeros if value is None else value for value in state]
        given = tuple(filled) if call.op == "LSTM" else filled[0]
    result = call.builder.layer(module, tensors, (call.op, call.name), x, *(() if given is None else (given,)))
    y, final = call.builder.parts(result, 2)
    return (y, *call.builder.parts(final, 2)) if call.op == "LSTM" else (y, final)
