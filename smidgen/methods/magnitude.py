"""Magnitude pruning: the smallest weights go, the others stay as they are.

    score_ij = |w_ij|

Of a single weight L1 and L2 give the same order. Compared over the whole network by default (Han et al. 2015,
arXiv:1506.02626, prune each layer by its own threshold: ``scope="layer"``). No data are needed.

Helps: as a baseline, without data, and in gradual pruning while a network trains, where the survivors learn to make
good by themselves.

Does not help: without training, beyond a third of a convolutional network: a small weight on a large input counts for
nothing here, and nothing is made good.

Records: pruning_unstructured, pruning_trained.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from smidgen.methods._pruned import Pruned, Settings
from smidgen.numerics.cancellation import Factor
from smidgen.numerics.pruning import magnitude


@dataclass(frozen=True)
class Magnitude(Pruned):
    """Pruning by size.

    >>> import torch
    >>> PRUNING.scores(torch.tensor([[[0.5, -2.0]]]), torch.eye(2)[None], torch.ones(1, 1), 0.0).tolist()
    [[[0.5, 2.0]]]
    """

    def scores(self, weight: Tensor, factors: list[Factor] | Tensor, rows: Tensor, price: float) -> Tensor:
        """|w|."""
        return magnitude(weight)


PRUNING = Magnitude("magnitude", Settings())
