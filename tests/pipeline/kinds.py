"""A small network with a layer of every kind, and inputs for it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


class Kinds(nn.Module):
    """A convolution, a depthwise one, a transposed one, dense layers flat and over positions."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 25, 3, padding=1)
        self.depthwise = nn.Conv2d(25, 25, 3, padding=1, groups=25)
        self.up = nn.ConvTranspose2d(25, 9, 2, stride=2)
        self.over = nn.Linear(64, 33)
        self.head = nn.Linear(33 * 9, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.up(torch.relu(self.depthwise(torch.relu(self.stem(x))))))
        return self.head(torch.relu(self.over(x.flatten(2))).flatten(1))


def kinds(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return Kinds(outputs).eval()


def noise(count: int = 200) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, 4, 4)).astype("f4")
