"""What all roundings share: the scales, by the price or by a width, and where the integers of one layer go.

    W_ij ≈ r_i · s_j · z_ij,    steps r_i = 1/√g_i times s: the price alone sets them, c = √(12 μ / ln 2)
    W_ij ≈ r_i · z_ij,          |z| < 2^(bits−1): r_i fits the row, where the file fixes the width

A row's step follows the row's share g_i of the loss, so a single constant c serves every layer of a network and bits
fall out; the steps are those of WaterSIC, arXiv:2603.04956. A rounding says how integers are found at given scales.

Differs from the paper: one column scale for a layer by default. Waterfilling over columns (``columns="channel"``)
reaches the same KL on ResNet-20 at 4 % more bytes, since every scale has to be stored, and LeNet does worse with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from smidgen.forms import Quantized, nearest_exponents, scales
from smidgen.forms.scales import LARGEST_EXPONENT, PER_OCTAVE
from smidgen.numerics.cancellation import Factor, row_costs
from smidgen.numerics.fixed_width import clamped_nearest, round_fixed
from smidgen.numerics.rounding import Rounded, round_gptq
from smidgen.numerics.rounding_groups import round_groups

# Scales an octave where the width is fixed: no finer integers can make good a scale beside the best, as they do where
# the step follows the price. At most 0.034 % off: 127 steps are off by less than a twentieth of one.
FIXED_GRID = 1024


@dataclass(frozen=True)
class Settings:
    """Settings of every rounding.

    Args:
        columns: ``one`` scale for all columns of a layer, or one for each input ``channel``.
        per_octave: grid of the scales.
    """

    columns: Literal["one", "channel"] = "one"
    per_octave: int = 4

    def __post_init__(self) -> None:
        if self.columns not in ("one", "channel") or self.per_octave not in PER_OCTAVE:
            raise ValueError(f"columns={self.columns!r} must be one or channel, per_octave={self.per_octave!r} one of "
                             f"{PER_OCTAVE}")  # fmt: skip


@dataclass(frozen=True)
class Stepped:
    """A rounding; subclasses say how one layer, or many small groups, become integers at given scales."""

    name: str
    settings: Settings
    feedback: ClassVar[bool] = True  # whether later columns make good what earlier ones lost

    def with_settings(self, **settings: Any) -> Stepped:
        """The same rounding with other settings."""
        return replace(self, settings=replace(self.settings, **settings))

    def rounded(
        self,
        weight: Float[Tensor, "groups out n"],
        factors: list[Factor] | Float[Tensor, "groups n n"],
        rows: Float[Tensor, "groups out"],
        step: float,
        window: int = 1,
        kept: Bool[Tensor, "groups out n"] | None = None,
    ) -> Quantized:
        """The weight as integers.

        Args:
            weight: im2col rows of each group.
            factors: of A: one `Factor`, or the lower factors of several groups.
            rows: g, each row's share of the loss.
            step: c; a weight of unit curvature is rounded to multiples of it.
            window: neighbouring columns of one input channel.
            kept: of a pruned weight, what is not zero and must stay so; its zeros are given, and no rate moves them.

        Returns:
            Integers ``[groups · out, n]`` with their scales.
        """
        grid = self.settings.per_octave
        if isinstance(factors, Tensor):
            # Groups share the column scale, so each group's own goes into its rows.
            own = factors.diagonal(dim1=1, dim2=2).log().mean(1).neg().exp().repeat_interleave(rows.shape[1])
            row = nearest_exponents(step * _inverse_roots(rows.flatten()) * own.cpu().numpy(), grid)
            wide = torch.from_numpy(scales(row, grid)).to(weight)
            z = self._several(weight, factors, wide.reshape(rows.shape), kept).flatten(0, 1)
            return Quantized(z.cpu().numpy().astype(np.int32, copy=False), row, np.zeros(1, np.int32), grid)
        factor = factors[0]
        column = _column_exponents(factor, step, window if self.settings.columns == "channel" else 0, grid)
        row = nearest_exponents(_inverse_roots(rows[0]), grid)
        row_scale, column_scale = (torch.from_numpy(scales(e, grid)).to(weight.device) for e in (row, column))
        wide = column_scale.repeat_interleave(weight.shape[2] // len(column))
        if kept is not None and self.feedback:
            z = round_gptq(weight[0], factor, row_scale, wide, kept=kept[0]).integers
        else:
            z = self._one(weight[0], factor, rows[0], step, row_scale, wide).integers
        return Quantized(z.cpu().numpy().astype(np.int32, copy=False), row, column, grid)

    def fixed(
        self,
        weight: Float[Tensor, "groups out n"],
        factors: list[Factor] | Float[Tensor, "groups n n"],
        bits: int,
        *,
        shared: bool = False,
        kept: Bool[Tensor, "groups out n"] | None = None,
    ) -> Quantized:
        """The weight as integers of a fixed width, ±(2^(bits−1) − 1), a scale a row.

        The column's exponent is 0, so that a weight is one float32 product, z · r, as a runtime computes it.

        Args:
            weight, factors: as of `rounded`.
            bits: width of every integer.
            shared: one scale for all rows.
            kept: as of `rounded`.
        """
        return _fixed(weight, factors, bits, feedback=self.feedback, shared=shared, kept=kept)

    def _one(
        self, weight: Tensor, factor: Factor, rows: Tensor, step: float, row_scale: Tensor, column_scale: Tensor
    ) -> Rounded:
        """A layer ``[out, n]`` at given scales."""
        raise NotImplementedError  # each rounding has its own

    def _several(self, weight: Tensor, lower: Tensor, step: Tensor, kept: Tensor | None) -> Tensor:
        """Groups ``[groups, out, n]`` at given steps ``[groups, out]``, as integers."""
        return round_groups(weight, lower, step, kept=kept)


def _fixed(
    weight: Float[Tensor, "groups out n"],
    factors: list[Factor] | Float[Tensor, "groups n n"],
    bits: int,
    *,
    feedback: bool,
    shared: bool,
    kept: Bool[Tensor, "groups out n"] | None,
) -> Quantized:
    """Scales that fit the width, then integers at them."""
    groups, out, n = weight.shape
    levels, flat = 2 ** (bits - 1) - 1, weight.reshape(groups * out, n)
    if isinstance(factors, Tensor):
        importance = factors.diagonal(dim1=1, dim2=2).square().repeat_interleave(out, 0)

        def by_group(tries: Tensor) -> Tensor:
            """``[tries, groups · out, …]`` → ``[groups, tries · out, …]``: tries are more rows of a group."""
            return tries.unflatten(1, (groups, out)).transpose(0, 1).flatten(1, 2)

        def by_try(rows: Tensor) -> Tensor:
            return rows.unflatten(1, (-1, out)).transpose(0, 1).flatten(1, 2)

        def cost(change: Tensor) -> Tensor:
            return by_try((by_group(change) @ factors).square().sum(2))

        def fed(scale: Tensor) -> Tensor:
            repeated = (1, len(scale), 1)
            may = None if kept is None else kept.repeat(repeated)
            return by_try(round_groups(weight.repeat(repeated), factors, by_group(scale), levels=levels, kept=may))
    else:
        factor, importance = factors[0], factors[0].diagonal.square()[None]

        def cost(change: Tensor) -> Tensor:
            return row_costs(change.flatten(0, 1), factor).unflatten(0, change.shape[:2])

        def fed(scale: Tensor) -> Tensor:
            may = None if kept is None else kept[0].repeat(len(scale), 1)
            z = round_gptq(flat.repeat(len(scale), 1), factor, scale.flatten(), levels=levels, kept=may).integers
            # An input that was never seen may come yet, and here a zero would save nothing.
            nearest = clamped_nearest(flat, scale, levels)
            return torch.where(factor.alive, z.reshape(nearest.shape), nearest)

    def grid(exponents: Tensor) -> Tensor:
        return torch.from_numpy(scales(_within(exponents), FIXED_GRID)).to(weight.device)

    z, row = round_fixed(flat, importance, bits, FIXED_GRID, grid, cost, fed if feedback else None, shared=shared)
    return Quantized(z.cpu().numpy(), _within(row), np.zeros(1, np.int32), FIXED_GRID)


def _within(exponents: Tensor) -> np.ndarray:
    most = LARGEST_EXPONENT * FIXED_GRID
    return exponents.clamp(-most, most).cpu().numpy().astype(np.int32)


def _inverse_roots(rows: Tensor) -> np.ndarray:
    return rows.detach().double().clamp_min(1e-300).rsqrt().cpu().numpy()


def _column_exponents(factor: Factor, step: float, window: int, grid: int) -> np.ndarray:
    """Exponents of c / L_jj, in the mean over each input channel's columns, or over all (window 0)."""
    logs = (step / factor.diagonal.clamp_min(1e-300)).log()
    alive = factor.alive.to(logs)
    width = window or len(logs)
    weights = alive.reshape(-1, width).sum(1)
    means = (logs * alive).reshape(-1, width).sum(1) / weights.clamp_min(1)
    return nearest_exponents(means.exp().cpu().numpy(), grid)
