"""Optimal brain surgery: the weights whose loss others can make good go, and the others make it good.

    score_ij = ½ g_i L_jj² t_ij²  (nats)        Ŵ_iS = W_i A_:S (A_SS)⁻¹

The scores are those of `smidgen.numerics.pruning`: a weight goes where that costs less than one price τ, the same in
all layers, so the sparsity of each layer falls out. Every survivor of a row is then solved for. OBC, arXiv:2208.11580;
SparseGPT, arXiv:2301.00774.

Differs from the papers: one price for the network, in nats by the rows' curvature g; all survivors of a row make good,
not those of later columns alone. Measured, nothing refitted: ResNet-20 with half of its weights removed has a KL of
1.34 by magnitude, 0.86 by ½ g A_jj w², 0.033 so; with 70 % removed 2.4, 2.4 and 0.22.

Helps: whenever single weights are removed without training: the survivors take over what the removed ones did. Half of
a convolutional network's weights go at a fraction of a point, nine tenths of a wide dense layer's.

Does not help: time, since runtimes compute with the zeros; wide layers seen through few inputs (hundreds of columns
more than inputs), whose A says little of what others could make good; bytes in a dense file, where a zero is stored as
any other number.

Records: pruning_unstructured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smidgen.methods._pruned import Pruned
from smidgen.methods._pruned import Settings as Common
from smidgen.numerics.cancellation import Factor, cancel
from smidgen.numerics.pruning import activity, surgery, survivors


@dataclass(frozen=True)
class Settings(Common):
    """Settings of `Obs`.

    Args:
        ahead: whether a score counts what the other weights will make good; else it is ½ g_i A_jj w_ij². None tries
            both where there are inputs to measure on: of wide layers a few inputs tell little (LeNet's dense layer has
            2,450 columns: at 90 % a KL of 0.027 with it, 0.011 without).
    """

    ahead: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ahead not in (None, True, False):
            raise ValueError(f"ahead={self.ahead!r} must be true, false or none")


@dataclass(frozen=True)
class Obs(Pruned):
    """Pruning by curvature, with compensation.

    >>> import torch
    >>> from smidgen.numerics.cancellation import factorise
    >>> moment = torch.tensor([[4.0, 2.0], [2.0, 10.0]])
    >>> weight, kept = torch.tensor([[[1.0, 0.5]]]), torch.tensor([[[True, False]]])
    >>> PRUNING.values(weight, moment[None], [factorise(moment, damp=0.0)], kept).tolist()
    [[[1.25, 0.0]]]
    """

    def scores(self, weight: Tensor, factors: list[Factor] | Tensor, rows: Tensor, price: float) -> Tensor:
        """½ g_i L_jj² t_ij², with what costs less than the price removed on the way; or ½ g_i A_jj w_ij²."""
        if getattr(self.settings, "ahead", None) is False:
            return 0.5 * rows.to(torch.float64)[:, :, None] * activity(weight, factors).square()
        return surgery(weight, factors, rows, price)

    def variants(self) -> tuple[Pruned, ...]:
        """With and without what others will make good, where nobody said."""
        if getattr(self.settings, "ahead", None) is not None:
            return (self,)
        return self.with_settings(ahead=True), self.with_settings(ahead=False)

    def values(
        self, weight: Tensor, moment: Tensor | None, factors: list[Factor] | Tensor, kept: Tensor
    ) -> Tensor:  # fmt: skip
        """The survivors at their least squares; where A is not known whole, later columns alone make good."""
        if moment is not None:
            return torch.stack([survivors(*each) for each in zip(weight, moment, kept, strict=True)])
        assert not isinstance(factors, Tensor)  # several groups have a whole moment each
        there, found = kept[0], torch.zeros_like(weight[0], dtype=torch.float64)

        def choose(j: int, target: Tensor) -> Tensor:
            found[:, j] = torch.where(there[:, j], target, 0.0)
            return found[:, j]

        cancel(weight[0], factors[0], choose)
        return found[None]


PRUNING = Obs("obs", Settings())
