"""Which way each convolution is computed: the fastest, as long as the larger kernels fit the bytes there are.

gain of a step = milliseconds saved / bytes added;  steps are taken by falling gain while they fit
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from smidgen.forms import Geometry
from smidgen.planning.pace import TOLERANCE


@dataclass(frozen=True)
class Way:
    """One way to compute a layer, timed.

    Args:
        algorithm: its name.
        ms: of the layer alone, one sample.
        nbytes: of what is stored for its kernel.
        error: largest difference from the direct convolution in float64, as a share of the largest output.
    """

    algorithm: str
    ms: float
    nbytes: int
    error: float


def choose(layers: Sequence[Sequence[Way]], spare: int | None = None) -> list[int]:
    """A way for each layer.

    Args:
        layers: the ways of each, the direct one first.
        spare: bytes that may be added to those of the direct ones; None for any number.

    Returns:
        Places among the ways. What is not faster than the direct one by more than two timings of one layer differ is
        never taken.

    >>> ways = [Way("direct", 5.0, 100, 0.0), Way("winograd2", 4.0, 178, 1e-6), Way("winograd4", 3.0, 400, 1e-5)]
    >>> choose([ways]), choose([ways], 299), choose([ways], 10)
    ([2], [1], [0])
    >>> choose([[ways[0], Way("fft", 4.9, 1000, 1e-6)]])
    [0]
    """
    taken = [0] * len(layers)
    while True:
        steps = [
            (_gain(ways[now], ways[i]), layer, i)
            for layer, (ways, now) in enumerate(zip(layers, taken, strict=True))
            for i in _better(ways, now)
            if spare is None or ways[i].nbytes - ways[now].nbytes <= spare
        ]
        if not steps:
            return taken
        _, layer, i = max(steps)
        if spare is not None:
            spare -= layers[layer][i].nbytes - layers[layer][taken[layer]].nbytes
        taken[layer] = i


def _better(ways: Sequence[Way], now: int) -> list[int]:
    limit = min(ways[now].ms, ways[0].ms / (1 + TOLERANCE))
    return [i for i, way in enumerate(ways) if way.ms < limit]


def _gain(before: Way, after: Way) -> float:
    """Milliseconds a byte; what adds no bytes comes before everything else."""
    added = after.nbytes - before.nbytes
    return (before.ms - after.ms) / added if added > 0 else np.inf


def direct_outputs(weight: np.ndarray, geometry: Geometry, x: np.ndarray, dtype: Any = np.float64) -> np.ndarray:
    """A layer's answer without its bias, by the direct convolution.

    Args:
        weight: its kernel.
        geometry: its window.
        x: one sample, [1, inp, h, w].
        dtype: to compute in.
    """
    inputs, kernel = (torch.from_numpy(array.astype(dtype)) for array in (x, weight))
    g = geometry
    found = F.conv2d(inputs, kernel, None, list(g.stride), list(g.padding), list(g.dilation), g.groups)
    return found.numpy()


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference, as a share of the largest output.

    Args:
        found, wanted: outputs of one layer.

    >>> relative_error(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    0.5
    """
    return float(np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), 1e-30))
