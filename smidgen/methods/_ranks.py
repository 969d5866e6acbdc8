"""What all low-rank methods share: which ranks are offered, and how one is picked where the price is not to choose.

price    every rank (or a grid of them); the planner takes the one that is worth its bytes
energy   the fewest components that hold a share of the energy
vbmf     the components that stand out of the noise (Nakajima et al., JMLR 14, 2013)
fixed    the rank that was given
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from smidgen.errors import Refusal

Choice = Literal["price", "energy", "vbmf", "fixed"]


def told_ranks(settings: Any) -> str:
    """The choice of ranks in words.

    >>> told_ranks(RankSettings("fixed", 12)), told_ranks(RankSettings("vbmf"))
    ('rank 12', 'the rank that vbmf gives it')
    """
    return f"rank {settings.rank}" if settings.ranks == "fixed" else f"the rank that {settings.ranks} gives it"


@dataclass(frozen=True)
class RankSettings:
    """How ranks are chosen.

    Args:
        ranks: who chooses: the ``price``, the ``energy`` kept, ``vbmf``, or ``fixed``.
        rank: the rank of ``fixed``; 0 for the others.
        energy: share that ``energy`` keeps.
        multiple: ranks are multiples of it (rounded up where the layer allows that): runtimes like 8.
    """

    ranks: Choice = "price"
    rank: int = 0
    energy: float = 0.9
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.ranks not in get_args(Choice):
            raise ValueError(f"ranks={self.ranks!r} must be one of {', '.join(get_args(Choice))}")
        if type(self.rank) is not int or (self.rank >= 1) != (self.ranks == "fixed") or self.rank < 0:
            raise ValueError(f"rank={self.rank!r} must be a whole number from 1 with ranks='fixed', 0 with any other")
        if not 0 < self.energy <= 1:
            raise ValueError(f"energy={self.energy!r} must be above 0 and at most 1")
        if type(self.multiple) is not int or not 1 <= self.multiple <= 1024:
            raise ValueError(f"multiple={self.multiple!r} must be a whole number from 1 to 1024")

    def picked(
        self, name: str, most: int, *, there: int, energy: Callable[[float], int], vbmf: Callable[[], int] | None
    ) -> int | None:
        """The one rank that is chosen here, None where the price chooses.

        Args:
            name: of the method, for reasons.
            most: largest rank that makes the layer smaller, at least 1.
            there: the rank at which the form is exact.
            energy: share → rank.
            vbmf: → rank, 0 for noise; None where the method has none.

        Raises:
            Refusal: the rank is 0, above what the layer has, or would grow it.

        >>> RankSettings(ranks="energy", multiple=8).picked("svd", 30, there=64, energy=lambda share: 9, vbmf=None)
        16
        """
        match self.ranks:
            case "price":
                return None
            case "fixed":
                found = self.rank
            case "energy":
                found = energy(self.energy)
            case "vbmf" if vbmf is not None:
                found = vbmf()
            case _:
                raise Refusal(f"{name}: vbmf has no form of it; choose ranks by price, energy or fixed")
        if found < 1:
            raise Refusal(f"{name}: {self.ranks} finds nothing but noise in this layer (rank 0)")
        if found > there:
            raise Refusal(f"{name}: rank {found} is above what this layer has ({there})")
        if found > most:
            raise Refusal(f"{name}: rank {found} by {self.ranks} would grow this layer (ranks up to {most} do not)")
        return min(-(-found // self.multiple) * self.multiple, _largest_multiple(most, self.multiple))

    def grid(self, most: int, points: int | None = None) -> tuple[int, ...]:
        """The ranks that the price chooses from.

        Args:
            most: the largest.
            points: how many, evenly in the logarithm from a 64th of the largest; all when None.

        >>> RankSettings(multiple=8).grid(30), RankSettings().grid(64, 4)
        ((8, 16, 24), (1, 4, 16, 64))
        """
        wanted: Sequence[int] = range(1, most + 1)
        if points is not None:
            wanted = [max(1, round(r)) for r in np.geomspace(max(1.0, most / 64), most, points)]
        top = _largest_multiple(most, self.multiple)
        return tuple(sorted({min(-(-r // self.multiple) * self.multiple, top) for r in wanted}))


def _largest_multiple(most: int, multiple: int) -> int:
    """… up to a rank; the rank itself where it is smaller than the multiple."""
    return most - most % multiple or most


def evenly(keys: Sequence[int], points: int) -> list[int]:
    """Indices of at most so many of a rising sequence, evenly in its logarithm, the ends among them.

    >>> evenly([1, 2, 3, 4, 6, 8], 4)
    [0, 1, 3, 5]
    """
    wanted = np.geomspace(keys[0], keys[-1], points)
    return sorted({int(np.abs(np.log(np.asarray(keys) / each)).argmin()) for each in wanted})
