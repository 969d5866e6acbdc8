"""Activations rounded while a network trains as its file of integers will round them.

    x̂ = s (clamp(rint(x / s) + z, 0, 255) − z)        ∂L/∂x = ∂L/∂x̂ within the range, 0 where it clips

The ranges are those of the file, chosen before the training and kept by it: what is trained is what the runtime
computes, but for sums of products that it rounds in integers (biases of 32 bits, means).

Differs from LSQ (Esser et al. 2020, arXiv:1902.08153): an activation's step is not learned. A range is chosen by what
the file loses (`smidgen.export.static`), and one that moved with each batch would have to be held against it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from smidgen.calibrate.ranges import LEVELS, Range


class Rounding(nn.Module):
    """Rounds to the 256 steps of a range.

    Args:
        held: the range.

    >>> x = torch.tensor([-1.0, 0.3, 0.5, 9.0], requires_grad=True)
    >>> rounded = Rounding(Range(0.0, 127.5))(2 * x)
    >>> rounded.sum().backward()
    >>> rounded.tolist(), x.grad.tolist()
    ([0.0, 0.5, 1.0, 18.0], [0.0, 2.0, 2.0, 2.0])
    """

    scale: Tensor

    def __init__(self, held: Range) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(held.scale))
        self.zero = held.zero

    def forward(self, values: Tensor) -> Tensor:
        return _Rounded.apply(values, self.scale, self.zero)


class _Rounded(torch.autograd.Function):
    """As QuantizeLinear and DequantizeLinear do forward; the gradient passes where nothing was clipped."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, zero: int) -> Tensor:
        wide = torch.round(values / scale) + zero
        ctx.save_for_backward((wide >= 0) & (wide <= LEVELS))
        return (wide.clamp(0, LEVELS) - zero) * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return torch.where(inside, grads[0], 0.0), None, None


def with_rounding(module: fx.GraphModule, ranges: Mapping[str, Range]) -> fx.GraphModule:
    """Round what nodes of a graph give, in place.

    Args:
        module: a network as a graph.
        ranges: by the node's name.

    >>> graph = fx.symbolic_trace(nn.Sequential(nn.ReLU()))
    >>> with_rounding(graph, {"_0": Range(0.0, 255.0)})(torch.tensor([-2.0, 2.4])).tolist()
    [0.0, 2.0]
    """
    for node in list(module.graph.nodes):
        if node.name not in ranges:
            continue
        name = f"rounding_{node.name}"
        module.add_module(name, Rounding(ranges[node.name]))
        with module.graph.inserting_after(node):
            rounded = module.graph.call_module(name, (node,))
        node.replace_all_uses_with(rounded, delete_user_cb=lambda user, own=rounded: user is not own)
    module.recompile()
    return module
