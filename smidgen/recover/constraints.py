"""Constraints for a training loop of your own: zeros, shared values or integers that any optimizer leaves alone.

    net = parametrize(net, "steps", bits=4)     # before the loop
    ...                                         # the loop, unchanged
    plain(net)                                  # after it: an ordinary network again, its weights on the grid

Gradual pruning in a loop of your own is `smidgen.recover.schedule.Pruner`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize as torch_parametrize

from smidgen.errors import PlanError
from smidgen.forms import Codebook, Leaf, Masked
from smidgen.model.sites import LAYERS
from smidgen.numerics.kmeans import kmeans, nearest, rounded_values
from smidgen.recover.steps import first_steps
from smidgen.recover.trainable import hold

Constraint = Literal["zeros", "values", "steps"]
BITS = {"zeros": 0, "values": 5, "steps": 8}  # where nobody says
PER_OCTAVE = 1024  # of learned steps: as good as any real number, and exact in every file of fixed widths


def parametrize(
    module: nn.Module, constraint: str, *, bits: int | None = None, protect: Sequence[str] = ()
) -> nn.Module:
    """Keep the weights of all dense layers and convolutions within a constraint while they train.

    ``zeros``: weights that are zero now stay zero. ``values``: each layer shares 2^bits values, by k-means, which train
    with the summed gradients of their weights; zeros stay zero (arXiv:1510.00149). ``steps``: integers of so many bits
    times a learned step a row (arXiv:1902.08153).

    Args:
        module: changed in place; make the optimizer after this.
        constraint: ``zeros``, ``values`` or ``steps``.
        bits: of an index (5 where None) or of an integer (8).
        protect: names of layers left alone, or patterns of names.

    Returns:
        The same module.

    Raises:
        PlanError: no such constraint or width, no layer to keep, or one that is kept already.

    >>> net = parametrize(nn.Sequential(nn.Linear(16, 8)), "steps", bits=2)
    >>> optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    >>> net(torch.ones(1, 16)).square().sum().backward()
    >>> optimizer.step()
    >>> max(len(row.unique()) for row in plain(net)[0].weight)
    3
    """
    if constraint not in get_args(Constraint):
        raise PlanError(f"parametrize: there is no {constraint!r}; there are: {', '.join(get_args(Constraint))}")
    bits = BITS[constraint] if bits is None else bits
    if constraint != "zeros" and not (1 if constraint == "values" else 2) <= bits <= 8:
        raise PlanError(f"parametrize: bits={bits!r} must be from 1 to 8, of integers from 2")
    named = {name: each for name, each in module.named_modules() if isinstance(each, LAYERS)}
    chosen = {n: each for n, each in named.items() if not any(fnmatchcase(n, pattern) for pattern in protect)}
    kept = [name for name, layer in chosen.items() if torch_parametrize.is_parametrized(layer, "weight")]
    if kept:
        raise PlanError(f"parametrize: the weight of {kept[0]!r} is parametrized already; call plain first")
    if not chosen:
        raise PlanError("parametrize: there is no layer to keep; give a network with dense layers or convolutions")
    for layer in chosen.values():
        hold(layer, _leaf(layer, constraint, bits), bits=bits if constraint == "steps" else None)
    return module


def plain(module: nn.Module) -> nn.Module:
    """Take the parametrizations off, in place: ordinary layers, with the weights they had last.

    >>> net = parametrize(nn.Linear(3, 2), "values", bits=1)
    >>> sorted(plain(net).state_dict()), len(net.weight.unique())
    (['bias', 'weight'], 2)
    """
    for each in list(module.modules()):
        if torch_parametrize.is_parametrized(each):
            parametrized: Any = each.parametrizations
            for name in list(parametrized):
                torch_parametrize.remove_parametrizations(each, name, leave_parametrized=True)
    return module


def _leaf(layer: Any, constraint: str, bits: int) -> Leaf:
    weight = layer.weight.detach().cpu().float().numpy()
    if constraint == "zeros":
        return Masked(weight)
    return _clustered(weight, 2**bits) if constraint == "values" else first_steps(weight, bits, PER_OCTAVE)


def _clustered(weight: np.ndarray, count: int) -> Codebook:
    """Values by k-means; where weights were removed one of them is 0 and only they have it."""
    gone = weight == 0
    centres = rounded_values(kmeans(weight[~gone], max(count - bool(gone.any()), 1))) if not gone.all() else []
    values = np.unique(np.append(centres, [0.0] if gone.any() else [])).astype(np.float32)
    there = torch.from_numpy(values[values != 0].astype(np.float64))
    indices = np.searchsorted(values, np.zeros_like(weight))
    if len(there):
        near = there.numpy()[nearest(torch.from_numpy(weight.astype(np.float64)), there).numpy()]
        indices = np.where(gone, indices, np.searchsorted(values, near.astype(np.float32)))
    return Codebook(indices.astype(np.uint8), values)
