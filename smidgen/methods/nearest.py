"""Rounding every weight to its nearest step: no error feedback, nothing but the weight and its scales.

    z_ij = round(W_ij / (r_i · s_j))

The steps are those of `smidgen.methods._stepped`. It is what remains of `smidgen.methods.gptq` where A is diagonal, and
the baseline that the others are held against.

Helps: as a baseline, and where nothing is known of the inputs: it needs no data and no time.

Does not help: below eight bits as soon as there is a calibration input: feedback is then better at the same bytes.

Records: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from smidgen.methods._stepped import Settings, Stepped
from smidgen.numerics.cancellation import Factor
from smidgen.numerics.rounding import Rounded, round_nearest


@dataclass(frozen=True)
class Nearest(Stepped):
    """Rounding to the nearest.

    >>> import torch
    >>> from smidgen.numerics.cancellation import factorise
    >>> form = ROUNDING.rounded(torch.eye(3)[None], [factorise(torch.eye(3))], torch.ones(1, 3), 0.01)
    >>> form.integers.diagonal().tolist()
    [108, 108, 108]
    """

    feedback: ClassVar[bool] = False

    def _one(
        self, weight: Tensor, factor: Factor, rows: Tensor, step: float, row_scale: Tensor, column_scale: Tensor
    ) -> Rounded:
        return round_nearest(weight, row_scale, column_scale)

    def _several(self, weight: Tensor, lower: Tensor, step: Tensor, kept: Tensor | None) -> Tensor:
        return (weight.double() / step.double()[:, :, None]).round()


ROUNDING = Nearest("nearest", Settings())
