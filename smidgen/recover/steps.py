"""Integers that stay integers while they are trained: a torch parametrization of a layer's weight.

    z = round(clamp(w / (c r), ±Q))      W = (z c) r      r = 2^(round(n e) / n)

w are floats behind the integers, r a learned step of each row, c fixed scales of columns, n steps an octave. Rounding
passes gradients straight through, so that (Esser et al. 2020, arXiv:1902.08153, equation 3)

    ∂W/∂w = 1, 0 where clamped        ∂W/∂r = c (z − w / (c r)), c (±Q) where clamped

and the gradient of a step is made smaller by 1 / √(N Q), N being the weights that have it (their section 2.2). Integers
of any size have no Q to be clamped to; the largest there is takes its place in that factor.

Differs from the paper: a step is learned by its exponent e, and it is on the grid of the written file at every step of
the training, not at the end: what is evaluated is what is written, to the bit. Activations stay floats.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from smidgen.forms import Quantized, nearest_exponents, scales
from smidgen.forms.scales import LARGEST_EXPONENT

MOST = 1 << 23  # an integer that float32 holds exactly, and twice that


class Stepped(nn.Module):
    """A weight on a grid of learned steps.

    Args:
        form: its scales to begin with, and its zeros; the integers are those nearest to the layer's own weight.
        shape: of the layer's weight.
        bits: integers are clamped to ±(2^(bits−1) − 1); None for any size.
        keep_zeros: integers that are 0 stay 0.
        learned: whether steps are trained; where all rows have one step they go on having one.

    >>> from torch.nn.utils import parametrize
    >>> form = Quantized(np.array([[3, -1]], np.int32), np.array([-2], np.int32), np.zeros(1, np.int32), 1)
    >>> layer = nn.Linear(2, 1)
    >>> _ = nn.init.constant_(layer.weight, 0.7)
    >>> _ = parametrize.register_parametrization(layer, "weight", Stepped(form, (1, 2), bits=2))
    >>> layer.weight.tolist()
    [[0.25, 0.25]]
    """

    column: Tensor
    mask: Tensor | None

    def __init__(
        self, form: Quantized, shape: tuple[int, ...], bits: int | None = None, *, keep_zeros: bool = False,
        learned: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shape, self.per_octave, self.learned = shape, form.per_octave, learned
        self.rows, self.exponents = len(form.row), form.column
        largest = int(np.abs(form.integers).max(initial=0))
        self.levels = MOST if bits is None else 2 ** (bits - 1) - 1
        one = self.rows > 1 and bool((form.row == form.row[0]).all())
        row = form.row[:1] if one else form.row
        each = form.integers.size / max(len(row), 1)
        self.factor = 1 / math.sqrt(max(each * (largest if bits is None else self.levels), 1))
        exponents = torch.from_numpy(row.astype(np.float32) / form.per_octave)
        self.octaves = nn.Parameter(exponents, requires_grad=learned)
        column = torch.from_numpy(scales(form.column, form.per_octave))
        self.register_buffer("column", column.reshape(1, -1, 1))
        there = torch.from_numpy(form.integers != 0).reshape(self.rows, len(form.column), -1)
        self.register_buffer("mask", there if keep_zeros else None)

    def forward(self, weight: Tensor) -> Tensor:
        row = self._row()
        return ((self._integers(weight, row) * self.column) * row).reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def _row(self) -> Tensor:
        return _OnGrid.apply(self.octaves, self.per_octave, self.factor).reshape(-1, 1, 1)

    def _integers(self, weight: Tensor, row: Tensor) -> Tensor:
        wide = weight.reshape(self.rows, self.column.shape[1], -1) / (self.column * row)
        integers = _Rounded.apply(wide.clamp(-self.levels, self.levels))
        return integers if self.mask is None else torch.where(self.mask, integers, 0.0)

    def form(self, weight: Tensor, shape: tuple[int, ...]) -> Quantized:
        """The integers and scales as they are now."""
        with torch.no_grad():
            integers = self._integers(weight.detach(), self._row()).to(torch.int32)
        row = np.broadcast_to(_exponents(self.octaves, self.per_octave).cpu().numpy().astype(np.int32), self.rows)
        return Quantized(integers.cpu().numpy().reshape(shape), row.copy(), self.exponents, self.per_octave)


class _Rounded(torch.autograd.Function):
    """The nearest integers forward, the gradient as it is backward."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return torch.round(values) + 0.0  # no −0

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0]


class _OnGrid(torch.autograd.Function):
    """2^e with e on the grid, the same bits as `smidgen.forms.scales`; its gradient, made smaller by a factor."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, octaves: Tensor, per_octave: int, factor: float) -> Tensor:
        result = torch.from_numpy(scales(_exponents(octaves, per_octave).cpu().numpy(), per_octave)).to(octaves.device)
        ctx.save_for_backward(result)
        ctx.factor = factor * math.log(2)  # type: ignore[attr-defined]
        return result

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grads[0] * scale * ctx.factor, None, None  # type: ignore[attr-defined]


def _exponents(octaves: Tensor, per_octave: int) -> Tensor:
    most = LARGEST_EXPONENT * per_octave
    return torch.round(octaves.detach() * per_octave).clamp(-most, most).to(torch.int64)


def first_steps(weight: np.ndarray, bits: int, per_octave: int) -> Quantized:
    """Integers of a float weight to begin with, a step a row of 2 E|w| / √Q (arXiv:1902.08153, section 2.1).

    >>> first_steps(np.array([[0.5, -1.5]], np.float32), 3, 4).integers.tolist()
    [[0, -1]]
    """
    levels = 2 ** (bits - 1) - 1
    flat = weight.reshape(len(weight), -1)
    row = nearest_exponents(2 * np.abs(flat).mean(1) / math.sqrt(levels), per_octave)
    integers = np.round(flat / scales(row, per_octave)[:, None])
    integers = np.clip(integers, -levels, levels).astype(np.int32).reshape(weight.shape)
    return Quantized(integers, row, np.zeros(1, np.int32), per_octave)
