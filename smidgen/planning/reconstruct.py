"""Refit a changed network to the original's values, layer by layer, in closed form.

Each layer sees what the changed layers before it give (asymmetric reconstruction, Zhang et al. 2015, arXiv:1505.06798)
and takes the weight of least squared distance to what the original gave there, z its inputs and t the aim:

    min over W, b of  mean d(W z + b, t)² + ρ ‖W − W₀‖²

d is the difference, but zero where t was cut off by the activation and the layer's value is beyond it too. That is
convex; with the values beyond taken as aims of their own it is least squares again, so a few rounds of those, on one
factorisation, lower it at each round. W₀ is the start, and ρ, relative to each input's variance, is the one that does
best on the last fifth of the inputs when fitted to the others; infinite ρ moves the bias alone. A layer is near its aim
and the answer further off where later layers amplify what is left, or are themselves not refitted yet. So there are two
passes, one that keeps a refit only where the loss of the answers falls, on inputs of their own, and one that keeps all;
the network of least loss on the way is what comes out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from smidgen.calibrate.columns import choose_positions, input_rows, output_rows
from smidgen.forms import Geometry
from smidgen.model.aims import Aim
from smidgen.model.graph import run_nodes
from smidgen.model.replay import Enough, Replay
from smidgen.site import Site

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, inf)  # tried, as shares of each input's variance
ROUNDS, TRIED_ROUNDS = 20, 6  # of least squares, at last and while ρ is chosen
HELD_BACK = 5  # one row in so many is for choosing ρ
MOST_COLUMNS = 2304  # widest layer whose weight moves; past it the bias does alone
ROWS_PER_COLUMN = 24  # rows that are enough
LEAST_ROWS = 4096
ROWS_NBYTES = 192 << 20  # most memory for one layer's inputs
MOST_POSITIONS = 64  # of one input; neighbours tell nearly the same


def reconstruct(
    original: fx.GraphModule,
    changed: fx.GraphModule,
    aims: Sequence[Aim],
    sites: Sequence[Site],
    batches: Sequence[np.ndarray],
    loss: Callable[[nn.Module], float],
    *,
    seed: int = 0,
    rounds: tuple[int, int] = (ROUNDS, TRIED_ROUNDS),
    tick: Callable[[str], None] = lambda name: None,
) -> tuple[fx.GraphModule, float]:
    """A copy of the changed network with its layers refitted.

    Args:
        original, changed: in evaluation mode; neither is changed.
        aims: from `smidgen.model.aims.find_aims`.
        sites: of the changed network.
        batches: calibration inputs.
        loss: of a network's answers, on other inputs than these.
        seed: of the positions drawn.
        rounds: of least squares, at last and while ρ is chosen.
        tick: called with each layer's name when it is done.

    Returns:
        The network, and the loss of its answers.
    """
    places = {site.name: site for site in sites if site.refusal is None}
    aims = [aim for aim in aims if aim.layer in places]
    generator = torch.Generator().manual_seed(seed)
    samples = sum(map(len, batches))
    picked = {a.layer: _positions(places[a.layer].geometry, samples, generator) for a in aims}
    wanted = _wanted(original, aims, places, picked, batches)
    best, least, refused = copy.deepcopy(changed), loss(changed), False
    for careful in (True, False):
        if not careful and not refused:
            break  # both would do the same
        result, current = copy.deepcopy(changed), loss(changed)
        replay, left = Replay(result, batches), {aim.layer for aim in aims}
        for aim in aims:
            layer: Any = result.get_submodule(aim.layer)
            g, before = places[aim.layer].geometry, (layer.weight, layer.bias)
            z = _inputs(replay, layer, g, picked[aim.layer], left)
            _refit(layer, z, torch.cat(wanted[aim.layer], 1), aim, g, rounds)
            found = loss(result)
            if found < least:
                best, least = copy.deepcopy(result), found
            if found >= current and careful:
                (layer.weight, layer.bias), found, refused = before, current, True
            current = found
            left.discard(aim.layer)
            tick(aim.layer)
    return best, least


def _refit(layer: Any, z: Tensor, t: Tensor, aim: Aim, g: Geometry, rounds: tuple[int, int]) -> None:
    start = layer.weight.detach().reshape(g.groups, -1, g.columns)
    weight, bias = solve(z, t, (aim.low, aim.high), start, moved=g.columns <= MOST_COLUMNS, rounds=rounds)
    layer.weight, layer.bias = nn.Parameter(weight.reshape(layer.weight.shape)), nn.Parameter(bias.flatten())


def solve(
    z: Float[Tensor, "groups k n"],
    t: Float[Tensor, "groups k out"],
    bounds: tuple[float, float],
    start: Float[Tensor, "groups out n"],
    *,
    moved: bool = True,
    rounds: tuple[int, int] = (ROUNDS, TRIED_ROUNDS),
) -> tuple[Float[Tensor, "groups out n"], Float[Tensor, "groups out"]]:
    """Weight and bias of least one-sided distance; see the module.

    Args:
        z: inputs, in the order of the samples.
        t: aims.
        bounds: past which a value need not be met.
        start: W₀.
        moved: whether the weight moves, or the bias alone.
        rounds: at last, and while ρ is chosen.

    >>> z = torch.randn(1, 500, 3)
    >>> t = (z @ torch.tensor([[1.0], [2.0], [0.0]]) + 0.5).clamp(0)
    >>> w, b = solve(z, t, (0.0, inf), torch.zeros(1, 1, 3))
    >>> [round(v) for v in w.flatten().tolist()]
    [1, 2, 0]
    """
    train = max(1, z.shape[1] - z.shape[1] // HELD_BACK)
    shares = RIDGES if moved and train < z.shape[1] else (inf,)
    fits = {}
    if len(shares) > 1:
        for share in shares:
            weight, bias = _fit(z[:, :train], t[:, :train], bounds, start, share, rounds[1])
            miss = _missed(z[:, train:] @ weight.mT + bias[:, None], t[:, train:], bounds)
            fits[share] = float(miss.square().mean())
    best = min(shares, key=lambda share: fits.get(share, 0.0))
    return _fit(z, t, bounds, start, best, rounds[0])


def _fit(
    z: Tensor, t: Tensor, bounds: tuple[float, float], start: Tensor, share: float, rounds: int
) -> tuple[Tensor, Tensor]:
    """Rounds of least squares at one ρ."""
    mean = z.mean(1, keepdim=True)
    centred = z - mean
    step = _Step(centred, start, share) if share < inf else None
    weight, aim = start, t
    for _ in range(rounds):
        if step is not None:
            weight = step.weight(aim)
        given = z @ weight.mT
        given = given + (aim - given).mean(1, keepdim=True)
        aim = given - _missed(given, t, bounds)
    return weight, (aim - z @ weight.mT).mean(1)


class _Step:
    """Least squares at one ρ, factorised once."""

    def __init__(self, centred: Tensor, start: Tensor, share: float) -> None:
        moment = (centred.mT @ centred).double() / centred.shape[1]
        scale = torch.diagonal(moment, dim1=1, dim2=2)
        ridge = share * scale + 1e-6 * scale.mean(1, keepdim=True) + 1e-30
        self.centred = centred
        self.factor = torch.linalg.cholesky(moment + torch.diag_embed(ridge))
        self.pull = start.double() * ridge[:, None]

    def weight(self, aim: Tensor) -> Tensor:
        cross = (aim.mT @ self.centred).double() / self.centred.shape[1]
        return torch.cholesky_solve((cross + self.pull).mT, self.factor).mT.to(self.centred)


def _missed(given: Tensor, t: Tensor, bounds: tuple[float, float]) -> Tensor:
    """given − t, and zero where both are beyond the same bound."""
    low, high = bounds
    beyond = ((t <= low) & (given < low)) | ((t >= high) & (given > high))
    return torch.where(beyond, 0.0, given - t)


def _positions(g: Geometry, samples: int, generator: torch.Generator) -> Tensor | None:
    """Enough output positions of each sample to determine the layer, within the memory for them."""
    most = ROWS_NBYTES // (4 * g.groups * g.columns)
    wanted = min(max(LEAST_ROWS, ROWS_PER_COLUMN * g.columns), most)
    return choose_positions(g, int(np.clip(-(-wanted // samples), 1, MOST_POSITIONS)), generator)


def _wanted(
    original: fx.GraphModule,
    aims: Sequence[Aim],
    places: dict[str, Site],
    picked: dict[str, Tensor | None],
    batches: Sequence[np.ndarray],
) -> dict[str, list[Tensor]]:
    """The original's values as rows, by layer, for each batch."""
    rows: dict[str, list[Tensor]] = {aim.layer: [] for aim in aims}
    for batch in batches:
        values = run_nodes(original, torch.from_numpy(batch), keep={aim.node for aim in aims})
        for aim in aims:
            g = places[aim.layer].geometry
            found, at = aim.resized(values[aim.node], g.out_size), picked[aim.layer]
            if at is not None:
                found = found.flatten(2)[:, :, at] if g.kind == "conv" else found
            rows[aim.layer].append(output_rows(found, g))
    return rows


def _inputs(replay: Replay, layer: Any, g: Geometry, at: Tensor | None, left: set[str]) -> Tensor:
    rows: list[Tensor] = []

    def hook(_module: Any, args: tuple[Tensor, ...]) -> None:
        rows.append(input_rows(args[0], g, at))
        raise Enough

    handle = layer.register_forward_pre_hook(hook)
    try:
        replay.run(left)
    finally:
        handle.remove()
    return torch.cat(rows, 1)
