"""What all prunings share: how many weights go, where they are counted together, and which layers are left alone.

With a sparsity s over a scope the s·N weights of the least scores go, of the N in the network, in a layer, or in a row.
With a pattern N:M, of every M neighbouring input channels, at each place of the window, N stay.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from smidgen.numerics.cancellation import Factor

Scope = Literal["global", "layer", "row"]
_PATTERN = re.compile(r"([1-9]\d?):([1-9]\d?)", re.ASCII)


@dataclass(frozen=True)
class Settings:
    """Settings of every pruning.

    Args:
        sparsity: share of the weights that goes, above 0 and below 1; None where a pattern says it.
        scope: where weights are compared: over the whole network (``global``), a ``layer``, or a ``row`` of one.
        pattern: "2:4" keeps two of every four neighbouring input channels; any N:M with N < M up to 99.
        protect: names of layers that stay whole, or patterns of names such as "features.0" and "head*".
    """

    sparsity: float | int | None = None
    scope: Scope = "global"
    pattern: str | None = None
    protect: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.sparsity is not None:
            number = type(self.sparsity) in (int, float)
            if not number or not 0 < self.sparsity < 1:
                hint = "; give 0.7 for 70 %" if number and 1 < self.sparsity < 100 else ""
                raise ValueError(f"sparsity={self.sparsity!r} must be above 0 and below 1{hint}")
        if self.scope not in ("global", "layer", "row"):
            raise ValueError(f"scope={self.scope!r} must be global, layer or row")
        if self.pattern is not None:
            found = _PATTERN.fullmatch(self.pattern) if isinstance(self.pattern, str) else None
            if found is None or int(found[1]) >= int(found[2]):
                raise ValueError(f"pattern={self.pattern!r} must be N:M with N below M, such as 2:4")
            if self.sparsity is not None:
                raise ValueError(f"pattern={self.pattern!r} says the sparsity itself; leave sparsity out")
        names = [self.protect] if isinstance(self.protect, str) else list(self.protect)
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"protect={self.protect!r} must be names of layers")
        object.__setattr__(self, "protect", tuple(names))  # lists come back from JSON

    @property
    def kept_of(self) -> tuple[int, int] | None:
        """N and M of the pattern.

        >>> Settings(pattern="2:4").kept_of, Settings(sparsity=0.5).kept_of
        ((2, 4), None)
        """
        if self.pattern is None:
            return None
        kept, of = self.pattern.split(":")
        return int(kept), int(of)

    @property
    def share(self) -> float:
        """Of the weights that go; 0 where nobody said."""
        kept_of = self.kept_of
        return 1 - kept_of[0] / kept_of[1] if kept_of else float(self.sparsity or 0.0)


@dataclass(frozen=True)
class Pruned:
    """A pruning; subclasses say which weights go first, and perhaps what becomes of the others."""

    name: str
    settings: Settings

    def with_settings(self, **settings: Any) -> Pruned:
        """The same with other settings."""
        values: dict[str, Any] = {**asdict(self.settings), **settings}
        return replace(self, settings=type(self.settings)(**values))

    def variants(self) -> tuple[Pruned, ...]:
        """Itself with what was left open decided in each way there is; which one is best, true losses tell."""
        return (self,)

    def scores(
        self,
        weight: Float[Tensor, "groups out n"],
        factors: list[Factor] | Float[Tensor, "groups n n"],
        rows: Float[Tensor, "groups out"],
        price: float,
    ) -> Float[Tensor, "groups out n"]:
        """What is removed first has the least; see `smidgen.methods.Pruning`."""
        raise NotImplementedError  # each pruning has its own

    def values(
        self,
        weight: Float[Tensor, "groups out n"],
        moment: Float[Tensor, "groups n n"] | None,
        factors: list[Factor] | Float[Tensor, "groups n n"],
        kept: Bool[Tensor, "groups out n"],
    ) -> Float[Tensor, "groups out n"]:
        """The survivors as they were, and zeros."""
        return torch.where(kept, weight.to(torch.float64), 0.0)
