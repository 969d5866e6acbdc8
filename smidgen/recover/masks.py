"""Weights that were removed stay removed: a torch parametrization of a layer's weight.

    W = w ∘ M        ∂L/∂w = ∂L/∂W ∘ M

Whatever an optimizer does to what is gone (momentum moves it, and so does weight decay), the layer computes with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Kept(nn.Module):
    """A mask that a weight is multiplied by.

    Args:
        mask: True where a weight is there still, shaped as the weight.

    >>> from torch.nn.utils import parametrize
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = parametrize.register_parametrization(layer, "weight", Kept(torch.tensor([[True, False]])))
    >>> layer(torch.tensor([[0.0, 5.0]])).item()
    0.0
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.to(torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        # Not a product: that would make −0 of a negative weight, and nan of what diverged unseen.
        return torch.where(self.mask, weight, 0.0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight
