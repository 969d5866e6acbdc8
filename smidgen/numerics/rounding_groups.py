"""Rounding with error feedback for many small groups at once, as depthwise and grouped convolutions have."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from smidgen.numerics.rounding import LARGEST

RAISE = 10.0  # from one tried damping to the next


def factorise_groups(moment: Float[Tensor, "groups n n"], *, damp: float = 0.01) -> Float[Tensor, "groups n n"]:
    """Lower Cholesky factor of each group's A + δI, δ a share of the group's mean diagonal.

    Groups whose input was never seen count as the mean of the others; a singular one is damped until it has a factor.

    >>> import torch
    >>> factorise_groups(torch.eye(2)[None] * 4, damp=0.0)[0].tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    """
    wide = moment.detach().to(torch.float64)
    mean = wide.diagonal(dim1=1, dim2=2).mean(1)
    overall = mean.mean() if float(mean.mean()) > 0 else torch.ones_like(mean.mean())
    floor = torch.where(mean > 1e-12 * overall, mean, overall)
    eye = torch.eye(wide.shape[1], dtype=wide.dtype, device=wide.device)
    share = torch.where(mean > 1e-12 * overall, damp, 1.0)
    lower, failed = torch.linalg.cholesky_ex(wide + (share * floor)[:, None, None] * eye)
    while bool(failed.any()):
        share = torch.where(failed > 0, (RAISE * share).clamp_min(1e-8), share)
        lower, failed = torch.linalg.cholesky_ex(wide + (share * floor)[:, None, None] * eye)
    return lower


def round_groups(
    weight: Float[Tensor, "groups out n"],
    lower: Float[Tensor, "groups n n"],
    step: Float[Tensor, "groups out"],
    *,
    levels: int | None = None,
    kept: Bool[Tensor, "groups out n"] | None = None,
) -> Int[Tensor, "groups out n"]:
    """Every column of every group to its nearest step in turn, from the last, the others making good what it lost.

    Args:
        weight: W of each group.
        lower: from `factorise_groups`.
        step: of each row.
        levels: largest magnitude of an integer, for fixed widths; free when None.
        kept: of a pruned weight, what may be another integer than zero; anything when None.

    Paper: arXiv:2210.17323.

    >>> import torch
    >>> lower = factorise_groups(torch.tensor([[[1.0, 0.9], [0.9, 1.0]]]), damp=0.0)
    >>> round_groups(torch.tensor([[[0.4, 0.4]]]), lower, torch.ones(1, 1)).tolist()
    [[[1, 0]]]
    """
    left = weight.detach().to(torch.float64) @ lower
    integers = torch.zeros_like(left)
    wide = step.to(left)
    most = LARGEST if levels is None else levels
    for j in range(left.shape[2] - 1, -1, -1):
        target = left[:, :, j] / lower[:, j, j, None]
        z = (target / wide).round().clamp(-most, most)
        z = z if kept is None else torch.where(kept[:, :, j], z, 0.0)
        integers[:, :, j] = z
        left -= (z * wide)[:, :, None] * lower[:, j, None, :]
    return integers.to(torch.int32)
