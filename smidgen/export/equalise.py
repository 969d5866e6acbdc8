"""Cross-layer equalisation: channels that differ in size are brought nearer before one range has to hold them all.

    W1 → diag(1/s) W1,   b1 → b1 / s,   W2 → W2 diag(s)         (arXiv:1906.04721, section 4.1, equations 6 to 8)

Between the two layers stands what passes a positive factor on (`smidgen.export.channel_ties`), so that the network
computes the same function. With a scale a row for weights it is the activations that gain: one range serves all
channels of a value, and where most are small beside the largest, they get few of its steps.

    s_c = r_c^α / k_c^(1 − α)      r_c: largest size of the channel that a layer reads, on calibration inputs
                                   k_c: its largest weight there, in shares of the row's largest

α = 1 gives every channel one range and leaves the weights what it costs; α = 1/2 makes both alike, which is the paper's
s = √(r1 r2) / r2 with the activation's size as r1. A channel that only depthwise layers read has α = 1: their rows
scale with it.

Differs from the paper: activations' sizes in the place of the producer's weights' (as arXiv:2211.10438, equation 4),
since rows have scales of their own here; any number of producers and readers (sums, concatenation); and no
replacement of ReLU6 by ReLU: MobileNetV2 with it differs from itself by 0.54 nats, a hundred times what int8 costs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from smidgen.calibrate.answers import outputs_of
from smidgen.export.channel_ties import HELD, Ties, channel_ties
from smidgen.export.prepare import Prepared
from smidgen.forms import Geometry
from smidgen.site import Site

LEAST = 1 / 64  # of the largest channel a layer reads: one that hardly moves here may move on other inputs
SAME = 1e-4  # of the largest answer, by which answers may change; a graph read wrongly changes them more


def equalised(prepared: Prepared, batches: Iterable[np.ndarray], share: float) -> Prepared | None:
    """The same function with its channels brought nearer to one size.

    Args:
        prepared: the network; not changed.
        batches: calibration inputs ``[n, …]``.
        share: α, 0 to 1.

    Returns:
        None where no channel can be scaled.
    """
    sites = {site.name: site for site in prepared.sites if site.name in prepared.base.sites}
    ties = channel_ties(prepared.base.proto.graph, {name: site.geometry for name, site in sites.items()})
    if not len(ties.free):
        return None
    given = [torch.from_numpy(np.ascontiguousarray(batch)) for batch in batches]
    scale = _scales(ties, sites, _sizes(prepared.module, ties, given), share)
    module, changed = copy.deepcopy(prepared.module), {}
    for name, site in sites.items():
        changed[name] = scaled(site, scale[ties.made[name]], scale[ties.read[name]])
        _put(module, changed[name])
    if not _answers_alike(prepared.module, module, given[0]):
        return None
    return replace(prepared, module=module, sites=[changed.get(site.name, site) for site in prepared.sites])


def scaled(site: Site, made: Float[np.ndarray, " out"], read: Float[np.ndarray, " inp"]) -> Site:
    """A layer that takes its inputs multiplied by 1 / ``read`` and gives its outputs multiplied by 1 / ``made``.

    >>> site = Site("a", Geometry("linear", 2, 1), np.float32([[3, 5]]), np.float32([4]))
    >>> changed = scaled(site, np.array([2.0]), np.array([1.0, 10.0]))
    >>> changed.weight.tolist(), changed.bias.tolist()
    ([[1.5, 25.0]], [2.0])
    """
    if (made == 1).all() and (read == 1).all():
        return site
    weight = site.weight.astype(np.float64) * _columns(site.geometry, read) / made.reshape(-1, *_ones(site))
    bias = None if site.bias is None else (site.bias / made).astype(site.bias.dtype)
    return replace(site, weight=weight.astype(site.weight.dtype), bias=bias)


def _ones(site: Site) -> list[int]:
    return [1] * (site.weight.ndim - 1)


def _columns(geometry: Geometry, values: np.ndarray) -> np.ndarray:
    """Values of input channels where the weight has them, ``[out, in / groups, 1, …]``."""
    rows = np.repeat(values.reshape(geometry.groups, -1), geometry.out_channels // geometry.groups, 0)
    return rows.reshape(*rows.shape, *[1] * len(geometry.kernel))


def _sizes(module: nn.Module, ties: Ties, batches: list[Tensor]) -> dict[str, np.ndarray]:
    """Largest size of every channel, or column, that layers read."""
    found: dict[str, Tensor] = {}
    handles = []

    def watch(name: str) -> None:
        def seen(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            x = given[0].detach().abs()
            most = x.transpose(0, 1).flatten(1).amax(1)
            found[name] = torch.maximum(found[name], most) if name in found else most

        handles.append(module.get_submodule(name).register_forward_pre_hook(seen))

    for name, numbers in ties.read.items():
        if (numbers != HELD).any():
            watch(name)
    try:
        with torch.no_grad():
            device = next(module.parameters()).device
            for batch in batches:
                module(batch.to(device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: most.cpu().double().numpy() for name, most in found.items()}


def _scales(ties: Ties, sites: Mapping[str, Site], sizes: Mapping[str, np.ndarray], share: float) -> np.ndarray:
    """s by channel number; one where nothing is scaled."""
    size, weight, bound = np.zeros(ties.count), np.zeros(ties.count), np.zeros(ties.count, bool)
    for name, most in sizes.items():
        site, numbers = sites[name], ties.read[name]
        rows = np.abs(site.matrix).max(1)
        parts = np.abs(site.weight.astype(np.float64)) / np.where(rows > 0, rows, 1).reshape(-1, *_ones(site))
        columns = parts.reshape(site.geometry.groups, -1, parts.shape[1], *parts.shape[2:])
        columns = columns.max(axis=(1, *range(3, columns.ndim))).reshape(-1)
        np.maximum.at(size, numbers, np.maximum(most, LEAST * most.max(initial=0)))
        np.maximum.at(weight, numbers, columns)
        bound[numbers] |= parts.shape[1] > 1
    free = np.zeros(ties.count, bool)
    free[ties.free] = True
    free &= (size > 0) & (weight > 0)
    scale = np.ones(ties.count)
    alpha = np.where(bound, share, 1.0)[free]
    scale[free] = size[free] ** alpha / weight[free] ** (1 - alpha)
    return scale


def _put(module: nn.Module, site: Site) -> None:
    layer: Any = module.get_submodule(site.name)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(site.weight))
        if site.bias is not None:
            layer.bias.copy_(torch.from_numpy(site.bias))


def _answers_alike(first: nn.Module, second: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        x = x.to(next(first.parameters()).device)
        for before, after in zip(outputs_of(first(x)), outputs_of(second(x)), strict=True):
            if before.is_floating_point() and float((before - after).abs().max()) > SAME * float(before.abs().max()):
                return False
    return True
