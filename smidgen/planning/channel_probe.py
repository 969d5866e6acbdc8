"""One cut of each class tried: what it really costs puts right how classes compare.

The prediction takes layers one by one, and errors at a layer's positions for independent. How far off that is differs
from layer to layer by more than a factor of ten. So a share of each class is cut alone, its readers compensated, and
the true loss is told by inputs that the curvature did not see; the class's costs are multiplied by true over predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from smidgen.planning.channel_readers import compensated
from smidgen.planning.channels import Block, ByCurvature
from smidgen.site import Channels, Site

SHARE = 0.3  # of a class; about what is cut of one when a third of the multiplications go
FURTHEST = 30.0  # from the median of all classes that one may be; a probe is a measurement too


def probe(
    channels: Channels, pricer: ByCurvature, module: nn.Module, sites: Mapping[str, Site],
    loss: Callable[[nn.Module], float], tick: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:  # fmt: skip
    """True over predicted loss of each class, ``[classes]``.

    Args:
        channels: of the network.
        pricer: before anything is removed; not changed.
        module: the network; as it was when this is done.
        sites: its layers by name.
        loss: of a network's answers.
        tick: called with how many of the classes are done.
    """
    keep, found = np.ones(channels.count, dtype=bool), np.ones(len(channels.classes))
    for which, units in enumerate(channels.classes):
        block = pricer.block(which, max(1, round(SHARE * len(units))), keep)
        if block.cost > 0 and all(sites[r.site.name].refusal is None for r in block.after.values()):
            with _changed(module, block):
                found[which] = max(loss(module), 0.0) / block.cost
        tick(which + 1, len(channels.classes))
    middle = float(np.median(found)) or 1.0
    return np.clip(found, middle / FURTHEST, middle * FURTHEST)


@contextmanager
def _changed(module: nn.Module, block: Block) -> Iterator[None]:
    """The network without a block of channels, for the time of the block."""
    kept: list[tuple[Any, Any, Any]] = []
    try:
        for name, (weight, bias) in compensated(block.after.values()).items():
            layer: Any = module.get_submodule(name)
            kept.append((layer, layer.weight, layer.bias))
            layer.weight = nn.Parameter(torch.from_numpy(weight).to(layer.weight))
            layer.bias = None if bias is None else nn.Parameter(torch.from_numpy(bias).to(layer.weight))
        yield
    finally:
        for layer, weight, bias in kept:
            layer.weight, layer.bias = weight, bias
