"""From a loaded network to one ready for compression: BatchNorm folded, sites found, graph exported once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from smidgen.calibrate.norms import Signal, norm_signals
from smidgen.export.norms import without_norms
from smidgen.export.onnx import Base, export_base
from smidgen.model.fold import fold_norms
from smidgen.model.load import Network
from smidgen.model.sites import find_sites
from smidgen.site import Site


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network ready for compression.

    Args:
        module: with BatchNorm folded where it directly follows a layer.
        sites: its layers with weights, in running order.
        base: its graph, the sites left open.
        signals: what the network's BatchNorms told of the sites' inputs before they were folded, by site name.
        gains: sizes of the scales of the BatchNorm that followed a site, by site name.
    """

    module: nn.Module
    sites: list[Site]
    base: Base
    signals: Mapping[str, Signal] = field(default_factory=dict)
    gains: Mapping[str, np.ndarray] = field(default_factory=dict)


def prepare(network: Network, example: torch.Tensor) -> Prepared:
    """Fold, find the sites, export.

    Args:
        network: from `smidgen.model.load.load_network`; not changed.
        example: one batch of inputs.

    Raises:
        LoadError: when the network cannot run on the example or cannot be exported.

    >>> from smidgen.model.load import load_network
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    >>> [type(m).__name__ for m in prepare(load_network(model), torch.zeros(1, 3)).module]
    ['Linear', 'Identity', 'ReLU', 'Linear']
    """
    module = network.module
    sites = find_sites(module, example)
    base = export_base(module, sites, example, network.input_name, network.output_names)
    signals, gains = norm_signals(base.proto.graph), _gains(module, base.norms)
    if base.norms:
        module, folded = fold_norms(module, base.norms)
        sites = find_sites(module, example)
        base = without_norms(base, folded)
    sites = [
        replace(s, refusal="its weight is not kept apart in the exported graph")
        if s.refusal is None and s.name not in base.sites
        else s
        for s in sites
    ]
    return Prepared(module, sites, base, signals, gains)


def _gains(module: nn.Module, norms: tuple[tuple[str, str], ...]) -> dict[str, np.ndarray]:
    found = {site: module.get_submodule(norm)._parameters.get("weight") for site, norm in norms}
    return {site: gain.detach().abs().cpu().numpy() for site, gain in found.items() if gain is not None}
