"""Layers that read channels, and what it costs them to be refitted without some; see `smidgen.planning.channels`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from smidgen.planning.candidates import weights_only
from smidgen.site import ChannelLayer, Channels, Curvature, Site

RIDGE = 0.01  # share of a column's variance; as in refits
FLOOR = 1e-6  # share of the mean variance, for dead columns
WIDEST = 6144  # columns past which those of a layer are taken for uncorrelated


@dataclass(eq=False)
class Reader:
    """A layer, or one group of a convolution, that reads channels.

    Args:
        site: the layer.
        group: which one.
        inverse: C⁻¹, ``[n, n]``.
        weight: W, ``[rows, n]``.
        root: G^½ W.
        scale: factor on every loss.
        columns: where each channel stands.
        mean: of the inputs, ``[n]``, where it is known.
    """

    site: Site
    group: int
    inverse: Tensor
    weight: Tensor
    root: Tensor
    scale: float
    columns: dict[int, np.ndarray] = field(default_factory=dict)
    mean: Tensor | None = None

    def copy(self) -> Reader:
        return replace(self, inverse=self.inverse.clone(), weight=self.weight.clone(), root=self.root.clone())

    def costs(self, units: Sequence[int]) -> np.ndarray:
        """½ tr(G W_c (C⁻¹_cc)⁻¹ W_cᵀ) of each channel c, 0 for those it does not read."""
        found = np.zeros(len(units))
        sizes: dict[int, list[int]] = {}
        for place, unit in enumerate(units):
            if unit in self.columns:
                sizes.setdefault(len(self.columns[unit]), []).append(place)
        for places in sizes.values():
            at = torch.from_numpy(np.stack([self.columns[units[place]] for place in places]))
            inner = torch.linalg.inv(self.inverse[at[:, :, None], at[:, None, :]])
            rows = self.root[:, at].transpose(0, 1)
            found[places] = 0.5 * self.scale * ((rows @ inner) * rows).sum((1, 2)).numpy()
        return found

    def remove(self, unit: int) -> None:
        """Downdate C⁻¹ and G^½ W for a reader without the channel."""
        if unit not in self.columns:
            return
        at = torch.from_numpy(self.columns[unit])
        across = self.inverse[at]
        solved = torch.linalg.solve(self.inverse[at[:, None], at[None, :]], across)
        # What would be left of the channel is rounding; a unit block keeps later inverses finite.
        for values in (self.weight, self.root):
            values -= values[:, at] @ solved
            values[:, at] = 0.0
        self.inverse -= across.mT @ solved
        self.inverse[at], self.inverse[:, at] = 0.0, 0.0
        self.inverse[at, at] = 1.0


def readers_of(
    channels: Channels, sites: Mapping[str, Site], curvatures: Mapping[str, Curvature]
) -> list[Reader]:  # fmt: skip
    """Every layer that reads channels, with the curvature found there; as the weights tell where there is none."""
    found = []
    for layer in channels.layers:
        site = sites.get(layer.name)
        if layer.depthwise or site is None or (layer.inputs < 0).all():
            continue
        curvature = curvatures.get(layer.name) or weights_only(site)
        found += [_reader(layer, site, curvature, group) for group in range(layer.groups)]
    return found


def _reader(layer: ChannelLayer, site: Site, curvature: Curvature, group: int) -> Reader:
    g = site.geometry
    inside = len(layer.inputs) // layer.groups
    units = layer.inputs[group * inside : (group + 1) * inside]
    weight = torch.as_tensor(site.weight, dtype=torch.float64)
    if g.kind == "conv_transpose":
        taps = weight.flatten(2).permute(2, 1, 0)  # of one group: others are left alone
        columns = 1
    else:
        taps = weight.reshape(layer.groups, -1, g.columns)[group : group + 1]
        columns = layer.taps
    outputs, root = curvature.outputs.matrix, taps
    if outputs is not None:
        root = _root(outputs[min(group, len(outputs) - 1)].double().cpu()) @ taps
    inverse = torch.linalg.inv(_covariance(curvature, group, taps.shape[2], g.positions if g.kind != "conv_transpose"
                                           else int(np.prod(g.in_size))))  # fmt: skip
    mean = None if curvature.inputs.mean is None else curvature.inputs.mean[group].double().cpu()
    rows, root = (values.reshape(-1, values.shape[2]).clone() for values in (taps, root))
    reader = Reader(site, group, inverse, rows, root, curvature.scale, mean=mean)
    for unit in np.unique(units[units >= 0]).tolist():
        places = np.flatnonzero(units == unit)
        reader.columns[unit] = (places[:, None] * columns + np.arange(columns)).ravel()
    return reader


def _root(matrix: Tensor) -> Tensor:
    """R with Rᵀ R = G."""
    values, vectors = torch.linalg.eigh(matrix)
    return values.clamp_min(0).sqrt()[:, None] * vectors.mT


def _covariance(curvature: Curvature, group: int, width: int, positions: int) -> Tensor:
    """The inputs' A about their mean, with a ridge."""
    moment = curvature.inputs
    if moment.matrix is not None:
        a = moment.matrix[group].double().cpu()
    elif moment.rows is not None:
        rows = moment.rows[group].double().cpu()
        own = rows.square().sum(0) if moment.diagonal is None else rows.square().sum(0) + moment.diagonal[group].cpu()
        a = rows.mT @ rows if width <= WIDEST else torch.diag(own)
        torch.diagonal(a).copy_(own)
    else:
        a = torch.eye(width, dtype=torch.float64)
    if moment.mean is not None and (moment.matrix is not None or width <= WIDEST):
        times = positions if curvature.source == "calibration" else 1
        share = 1.0 if moment.noise is None else 1.0 - float(moment.noise[group])
        mean = share * moment.mean[group].double().cpu()
        a = a - times * mean[:, None] * mean[None]
    own = torch.diagonal(a).clamp_min(0)
    return a + torch.diag(RIDGE * own + FLOOR * own.mean() + 1e-30)


def compensated(readers: Iterable[Reader]) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Weight and bias of each reader's layer, refitted without what was removed; zero where that was read.

    The bias takes what the mean of the inputs gave. It is None where a layer has none and needs none.

    Args:
        readers: all groups of each of their layers.
    """
    found: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    for reader in readers:
        site, g = reader.site, reader.site.geometry
        weight, bias = found.get(site.name, (site.weight.copy(), None if site.bias is None else site.bias.copy()))
        if g.kind == "conv_transpose":
            old = site.weight.reshape(*site.weight.shape[:2], -1).transpose(2, 1, 0)
            new = reader.weight.numpy().reshape(old.shape)
            weight = new.transpose(2, 1, 0).reshape(site.weight.shape).astype(np.float32)
            # Each output place gets so many taps of all, on average.
            moved = (old - new).sum(0) * (np.prod(g.in_size) / g.positions)
        else:
            rows = weight.reshape(g.groups, -1, g.columns)
            new = reader.weight.numpy()
            moved = rows[reader.group] - new
            rows[reader.group] = new
        if reader.mean is not None:
            bias = np.zeros(g.out_channels, np.float32) if bias is None else bias
            bias.reshape(g.groups, -1)[reader.group] += moved @ reader.mean.numpy()
        found[site.name] = weight, bias
    return found
