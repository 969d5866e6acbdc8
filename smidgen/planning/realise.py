"""Carry out a plan: build each site's form and refit it on what the compressed layers before it produce.

The last layer U of a factored site is refitted by least squares from its own inputs z in the compressed network to the
original's outputs y, with intercept:

    U = (E[(y − ȳ)(z − z̄)ᵀ] + ρ U₀) (E[(z − z̄)(z − z̄)ᵀ] + ρ I)⁻¹,   b = ȳ − U z̄

Sites are taken in running order, so what one layer loses the next can make good, dense layers too: a dense layer after
a changed one is refitted where the sample determines it well, at no byte's cost. U₀, the calibrated start, is what the
ridge ρ pulls towards. (Asymmetric reconstruction, Zhang et al. 2015, arXiv:1505.06798.)
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smidgen.calibrate.columns import choose_positions, input_rows, output_rows
from smidgen.forms import Geometry, dense, leaves, replace_last, stages
from smidgen.model.replace import place
from smidgen.planning.candidates import Options
from smidgen.planning.plan import Plan
from smidgen.site import Site, Stored

PASSES = 8  # most forward passes of the compressed network a refit takes; layers in between are refitted together
MOST_COLUMNS = 2304  # widest dense layer that is refitted
ROWS_PER_COLUMN = 8  # a refit of a dense layer on fewer rows learns the sample
RIDGE = 0.01  # share of the variance of z; keeps a refit on few samples near the calibrated start
ROWS_NBYTES = 256 << 20  # memory for the original's outputs at all sites
MOST_POSITIONS = 64  # output positions of one sample that enter a refit at most; neighbours tell nearly the same


@dataclass(frozen=True, eq=False)
class Realised:
    """A plan carried out.

    Args:
        model: the smaller network.
        stored: form and bias of every site that the file holds separately.
        refitted: names of the sites whose values a refit moved, dense ones among them.
    """

    model: nn.Module
    stored: Mapping[str, Stored]
    refitted: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class References:
    """What the original answers at every site on the calibration inputs; computed once, used by every refit.

    Args:
        batches: the inputs.
        rows: outputs by site name, ``[groups, n · positions, out]`` for each batch.
        positions: the output positions taken, by site name; None for all.
    """

    batches: Sequence[np.ndarray]
    rows: Mapping[str, list[Tensor]]
    positions: Mapping[str, Tensor | None]


class _Enough(Exception):
    """Ends a forward pass once the last wanted layer has run."""


def references(
    model: nn.Module, sites: Sequence[Site], batches: Sequence[np.ndarray], *, device: str = "cpu", seed: int = 0
) -> References:
    """Run the original once and keep its outputs at some positions of every site.

    Args:
        model: the original, in evaluation mode.
        sites: the sites that may change.
        batches: calibration inputs.
        device: where the model lies.
        seed: of the positions drawn.
    """
    samples = sum(len(batch) for batch in batches)
    width = sum(site.geometry.out_channels for site in sites)
    most = int(np.clip(ROWS_NBYTES / max(1, 4 * samples * width), 4, MOST_POSITIONS))
    generator = torch.Generator().manual_seed(seed)
    positions = {site.name: choose_positions(site.geometry, most, generator) for site in sites}
    rows: dict[str, list[Tensor]] = {site.name: [] for site in sites}

    def keep(site: Site) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, result: Tensor) -> None:
            # A copy: a later in-place activation must not change what is kept.
            rows[site.name].append(_rows(result, site.geometry, positions[site.name]).clone())

        return hook

    handles = [model.get_submodule(site.name).register_forward_hook(keep(site)) for site in sites]
    _run(model, batches, handles, device)
    return References(batches, rows, positions)


def realise(
    model: nn.Module,
    options: Sequence[Options],
    plan: Plan,
    known: References | None = None,
    *,
    device: str = "cpu",
    tick: Callable[[str], None] = lambda name: None,
) -> Realised:
    """Build the network a plan describes.

    Args:
        model: the original, in evaluation mode; not changed.
        options: of every site, in running order.
        plan: one choice a site.
        known: the original's outputs, for the refit; None leaves the forms as the methods made them.
        device: where the model lies.
        tick: called with each changed site's name when it is done.
    """
    smaller = copy.deepcopy(model)
    stored = {
        o.site.name: Stored(o.form(c.method, c.rank), o.site.bias) for o, c in zip(options, plan.choices, strict=True)
    }
    touched = _touched(options, plan, known)
    for block in _blocks(touched):
        for site in block:
            place(smaller, site, stored[site.name])
        if known is not None:
            stored.update(_refit(smaller, block, stored, known, device))
            for site in block:
                place(smaller, site, stored[site.name])
        for site in block:
            tick(site.name)
    return Realised(smaller, stored, frozenset(() if known is None else (site.name for site in touched)))


def _touched(options: Sequence[Options], plan: Plan, known: References | None) -> list[Site]:
    """Changed sites, and dense ones after them that can make good for free what was lost before them."""
    result: list[Site] = []
    for option, choice in zip(options, plan.choices, strict=True):
        healing = bool(result) and known is not None and _well_determined(option.site, known)
        if choice.method is not None or healing:
            result.append(option.site)
    return result


def _well_determined(site: Site, known: References) -> bool:
    """Whether a dense layer's refit rests on many more rows than it has columns."""
    g = site.geometry
    if site.name not in known.rows or g.kind == "conv_transpose":
        return False
    rows = sum(batch.shape[1] for batch in known.rows[site.name])
    return g.columns <= MOST_COLUMNS and rows >= ROWS_PER_COLUMN * g.columns


def _blocks(sites: list[Site]) -> list[list[Site]]:
    """Sites in running order, in at most `PASSES` blocks."""
    each = -(-len(sites) // PASSES)
    return [sites[i : i + each] for i in range(0, len(sites), max(each, 1))]


def _refit(
    smaller: nn.Module, block: list[Site], stored: Mapping[str, Stored], known: References, device: str
) -> dict[str, Stored]:
    """Least squares for the last layer of every site of a block."""
    last = {site.name: stages(stored[site.name].form, site.geometry)[-1].geometry for site in block}
    sums: dict[str, _Moments] = {}
    seen = dict.fromkeys(last, 0)

    def gather(site: Site) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            z = input_rows(args[0], last[site.name], known.positions[site.name])
            y = known.rows[site.name][seen[site.name]]
            seen[site.name] += 1
            sums.setdefault(site.name, _Moments(y, z)).add(y, z)
            if site is block[-1]:
                raise _Enough

        return hook

    handles = []
    for site in block:
        layer: Any = smaller.get_submodule(site.name)
        layer = layer[-1] if isinstance(layer, nn.Sequential) else layer
        handles.append(layer.register_forward_pre_hook(gather(site)))
    _run(smaller, known.batches, handles, device)
    return {site.name: _solved(stored[site.name], last[site.name], sums[site.name], device) for site in block}


def _solved(stored: Stored, last: Geometry, sums: _Moments, device: str) -> Stored:
    start = torch.as_tensor(dense(list(leaves(stored.form))[-1]), dtype=torch.float64, device=device)
    u, bias = sums.solve(start.reshape(last.groups, -1, last.columns), intercept=stored.bias is not None)
    form = replace_last(stored.form, u.reshape(start.shape).float().cpu().numpy())
    return Stored(form, None if bias is None else bias.flatten().float().cpu().numpy())


def _run(model: nn.Module, batches: Sequence[np.ndarray], handles: list[Any], device: str) -> None:
    try:
        with torch.no_grad():
            for batch in batches:
                with contextlib.suppress(_Enough):
                    model(torch.from_numpy(batch).to(device))
    finally:
        for handle in handles:
            handle.remove()


class _Moments:
    """Running sums of y, z, y zᵀ and z zᵀ, one of each a group."""

    def __init__(self, y: Tensor, z: Tensor) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(y.shape[0], *shape, dtype=torch.float64, device=y.device)

        out, rank = y.shape[2], z.shape[2]
        self.y, self.z, self.yz, self.zz, self.count = zeros(out), zeros(rank), zeros(out, rank), zeros(rank, rank), 0

    def add(self, y: Tensor, z: Tensor) -> None:
        y, z = y.double(), z.double()
        self.y += y.sum(1)
        self.z += z.sum(1)
        self.yz += y.mT @ z
        self.zz += z.mT @ z
        self.count += y.shape[1]

    def solve(self, start: Tensor, *, intercept: bool) -> tuple[Tensor, Tensor | None]:
        y, z, yz, zz = (s / self.count for s in (self.y, self.z, self.yz, self.zz))
        if intercept:
            yz = yz - y[:, :, None] * z[:, None, :]
            zz = zz - z[:, :, None] * z[:, None, :]
        scale = torch.diagonal(zz, dim1=1, dim2=2)
        # Each inner channel has its own size: the ridge is relative to it, with a floor for dead ones.
        ridge = torch.diag_embed(RIDGE * scale + 1e-6 * scale.mean(1, keepdim=True) + 1e-30)
        u = torch.linalg.solve(zz + ridge, yz + start @ ridge, left=False)
        return u, (y - (u @ z[:, :, None])[:, :, 0]) if intercept else None


def _rows(values: Tensor, geometry: Geometry, picked: Tensor | None) -> Tensor:
    if picked is not None:
        picked = picked.to(values.device)
        values = values.flatten(2)[:, :, picked] if geometry.kind != "linear" else _positions(values, picked)
    return output_rows(values, geometry)


def _positions(values: Tensor, picked: Tensor) -> Tensor:
    return values.reshape(values.shape[0], -1, values.shape[-1])[:, picked]
