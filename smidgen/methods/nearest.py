"""Rounding every weight to its nearest step: no error feedback, nothing but the weight and its scales.

    z_ij = round(W_ij / (r_i · s_j))

The steps are those of `smidgen.methods.gptq`. It is what remains of that method where A is diagonal, and the baseline
that the others are held against.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from smidgen.forms import Quantized
from smidgen.methods.gptq import Settings as Scales
from smidgen.methods.gptq import fixed, quantized
from smidgen.numerics.cancellation import Factor
from smidgen.numerics.rounding import Rounded, round_nearest


@dataclass(frozen=True)
class Settings(Scales):
    """Settings of `Nearest`: those of the scales."""


@dataclass(frozen=True)
class Nearest:
    """Rounding to the nearest.

    >>> import torch
    >>> from smidgen.numerics.cancellation import factorise
    >>> form = ROUNDING.rounded(torch.eye(3)[None], [factorise(torch.eye(3))], torch.ones(1, 3), 0.01)
    >>> form.integers.diagonal().tolist()
    [108, 108, 108]
    """

    name: str = "nearest"
    settings: Settings = Settings()

    def with_settings(self, **settings: Any) -> Nearest:
        """The same rounding with other settings."""
        return replace(self, settings=Settings(**{**asdict(self.settings), **settings}))

    def rounded(
        self,
        weight: Float[Tensor, "groups out n"],
        factors: list[Factor] | Float[Tensor, "groups n n"],
        rows: Float[Tensor, "groups out"],
        step: float,
        window: int = 1,
    ) -> Quantized:
        """The weight as integers; arguments as of `smidgen.methods.gptq.Gptq.rounded`."""
        return quantized(weight, factors, rows, step, window, self.settings, _one, _several)

    def fixed(
        self, weight: Float[Tensor, "groups out n"], factors: list[Factor] | Float[Tensor, "groups n n"], bits: int
    ) -> Quantized:
        """The weight as integers of a fixed width; see `smidgen.methods.gptq.Gptq.fixed`."""
        return fixed(weight, factors, bits, feedback=False)


def _one(weight: Tensor, _factor: Factor, row_scale: Tensor, column_scale: Tensor) -> Rounded:
    return round_nearest(weight, row_scale, column_scale)


def _several(weight: Tensor, _lower: Tensor, step: Tensor) -> Tensor:
    return (weight.double() / step.double()[:, :, None]).round()


ROUNDING = Nearest()
