"""Pruning by weight and activation: the smallest |w| · ‖x‖ of each row go, the others stay as they are.

    score_ij = |w_ij| · √A_jj,    A_jj = E[x_j²] summed over positions

Sun et al. 2023, arXiv:2306.11695, where weights are compared within a row; other scopes can be asked for. It is what
remains of `smidgen.methods.obs` without compensation where A is diagonal and all rows count alike.

Helps: layers whose inputs differ much in size (it was made for language models with a few huge activations), at the
price of one pass over the data and no solve.

Does not help: small convolutional networks: each row gives up the same share however much it matters, so LeNet at 90 %
falls apart where `smidgen.methods.obs` loses next to nothing.

Records: pruning_unstructured.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from smidgen.methods._pruned import Pruned, Settings
from smidgen.numerics.cancellation import Factor
from smidgen.numerics.pruning import activity


@dataclass(frozen=True)
class Wanda(Pruned):
    """Pruning by weight and activation.

    >>> import torch
    >>> lower = torch.diag(torch.tensor([3.0, 1.0]))[None]
    >>> PRUNING.scores(torch.tensor([[[0.5, -1.0]]]), lower, torch.ones(1, 1), 0.0).tolist()
    [[[1.5, 1.0]]]
    """

    def scores(self, weight: Tensor, factors: list[Factor] | Tensor, rows: Tensor, price: float) -> Tensor:
        """|w| · ‖x‖."""
        return activity(weight, factors)


PRUNING = Wanda("wanda", Settings(scope="row"))
