"""Weights that share values, trained through those: a torch parametrization of a layer's weight.

    W_i = c_{k(i)}        ∂L/∂c_k = Σ_{i: k(i) = k} ∂L/∂W_i

The gradients of all weights of a cluster are summed and move its one value; which weight has which value stays as it is
(Han et al. 2016, arXiv:1510.00149, section 3). A value that is exactly 0 is what pruning left and stays 0.

Differs from the paper: values that came with few significant bits, which pack well, are trained with as many, the
gradient going straight through.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from smidgen.forms import Codebook
from smidgen.numerics.kmeans import SIGNIFICANT, rounded_values


class Shared(nn.Module):
    """The values of a codebook in the place of a weight.

    Args:
        form: where it starts, and which weight has which value.
        shape: of the layer's weight.

    >>> from torch.nn.utils import parametrize
    >>> layer, form = nn.Linear(3, 1), Codebook(np.array([[0, 1, 1]], np.uint8), np.array([-1.0, 2.0], np.float32))
    >>> _ = parametrize.register_parametrization(layer, "weight", Shared(form, (1, 3)))
    >>> layer(torch.tensor([[1.0, 10.0, 100.0]])).sum().backward()
    >>> layer.parametrizations["weight"].original.grad.tolist()
    [1.0, 110.0]
    """

    indices: Tensor
    start: Tensor
    free: Tensor

    def __init__(self, form: Codebook, shape: tuple[int, ...]) -> None:
        super().__init__()
        values = torch.from_numpy(form.values.astype(np.float32))
        self.register_buffer("indices", torch.from_numpy(form.indices.astype(np.int64).ravel()))
        self.register_buffer("start", values)
        self.register_buffer("free", values != 0)
        self.shape = shape
        self.coarse = bool(np.array_equal(rounded_values(form.values), form.values))

    def forward(self, values: Tensor) -> Tensor:
        return self.values(values).index_select(0, self.indices).reshape(self.shape)

    def values(self, values: Tensor) -> Tensor:
        """Those that the weights have now."""
        values = torch.where(self.free, values, 0.0)
        return _Coarse.apply(values) if self.coarse else values

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The mean of each cluster; where it has no weight, what it was.

        In double precision: the mean of equal numbers is then that number to the bit. Not every device has that.
        """
        flat, indices, start = weight.detach().cpu().double().flatten(), self.indices.cpu(), self.start.cpu().double()
        sums = torch.zeros_like(start).index_add_(0, indices, flat)
        counts = torch.bincount(indices, minlength=len(start))
        return torch.where(counts > 0, sums / counts.clamp_min(1), start).to(weight)

    def form(self, values: Tensor, shape: tuple[int, ...]) -> Codebook:
        """The codebook as it is now, its values rising."""
        now = self.values(values.detach()).cpu().numpy()
        order = np.argsort(now, kind="stable")
        place = np.empty(len(order), np.uint8)
        place[order] = np.arange(len(order))
        return Codebook(place[self.indices.cpu().numpy()].reshape(shape), now[order])


class _Coarse(torch.autograd.Function):
    """Few significant bits forward, all of the gradient backward."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(values)
        coarse = torch.round(mantissa * 2**SIGNIFICANT) / 2**SIGNIFICANT
        # Half of the power twice: 2^exponent of a very small value would not be a float.
        half = torch.div(exponent, 2, rounding_mode="floor")
        return coarse * _POWERS.to(values.device)[half + 126] * _POWERS.to(values.device)[exponent - half + 126]

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0]


_POWERS = torch.from_numpy(np.ldexp(np.float32(1), np.arange(-126, 128)))
