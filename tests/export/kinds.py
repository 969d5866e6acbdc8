"""A small network with a layer of every kind, ready to be written."""

from __future__ import annotations

import torch
from torch import nn

from smidgen.export.prepare import Prepared, prepare
from smidgen.model.load import load_network


class Kinds(nn.Module):
    """Convolutions with and without groups, odd sizes, dense layers flat and over positions, with and without bias."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 3, padding=1)
        self.grouped = nn.Conv2d(7, 21, 3, padding=1, groups=7, bias=False)
        self.point = nn.Conv2d(21, 5, 1)
        self.over = nn.Linear(5, 9)
        self.bare = nn.Linear(9, 3, bias=False)
        self.head = nn.Linear(75, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.point(torch.relu(self.grouped(torch.relu(self.stem(x))))))
        return self.head(self.bare(torch.relu(self.over(x.flatten(2).mT))).flatten(1))


def kinds(outputs: int) -> Prepared:
    torch.manual_seed(0)
    return prepare(load_network(Kinds(outputs).eval()), torch.zeros(1, 3, 5, 5))
