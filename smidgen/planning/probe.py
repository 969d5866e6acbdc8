"""Probes: hold the predicted loss of each site against the true loss of a few changes there, and rescale.

The curvature is a local, factored and tempered estimate: its scale can be off by a factor that differs from layer to
layer, and a network that is sure of itself answers small changes with less than the square. A few forward passes with
one site changed, from mildly to strongly, tell the curve: predicted losses are mapped to true ones by straight lines
between the probes in the logarithms, and in proportion beyond the first and the last.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from smidgen.calibrate.answers import outputs_of, true_loss
from smidgen.forms import Form
from smidgen.model.replace import place, put
from smidgen.model.replay import Replay
from smidgen.planning.candidates import Options
from smidgen.site import Site, Stored

SHARES = (0.5, 0.15, 0.04)  # a probed option is the largest with at most this share of the dense bytes
LEAST = 1e-12  # nats; below, a change is lost in rounding


def probe(
    model: nn.Module,
    options: Sequence[Options],
    batches: Sequence[np.ndarray],
    *,
    device: str = "cpu",
    tick: Callable[[str], None] = lambda name: None,
) -> list[Options]:
    """Options with losses rescaled by one probe of the true loss a site.

    Args:
        model: the original, in evaluation mode; not changed.
        options: of every site.
        batches: unlabelled calibration inputs.
        device: where the model lies.
        tick: called with each site's name when it is done.
    """
    alone = _Alone(model, [option.site.name for option in options], batches, device)
    result = []
    for option in options:
        points = []
        for chosen in _probed(option):
            true = alone.loss(option.site, option.form(*option.labels[chosen]))
            points.append((float(option.losses[chosen]), max(true, LEAST)))
        result.append(_rescaled(option, points) if points else option)
        tick(option.site.name)
    return result


def losses_alone(
    model: nn.Module,
    forms: Mapping[str, tuple[Site, Form]],
    batches: Sequence[np.ndarray],
    *,
    device: str = "cpu",
) -> dict[str, float]:
    """The true loss of each form with all other layers as they were.

    Args:
        model: the original, in evaluation mode; not changed.
        forms: site and form by the site's name, in running order.
        batches: unlabelled inputs.
        device: where the model lies.
    """
    alone = _Alone(model, list(forms), batches, device)
    return {name: alone.loss(site, form) for name, (site, form) in forms.items()}


class _Alone:
    """What one changed layer costs with all others as they were.

    Args:
        model: the original; not changed.
        names: of the layers, in the order in which they will be asked for.
        batches: the inputs.
        device: where the model lies.
    """

    def __init__(self, model: nn.Module, names: list[str], batches: Sequence[np.ndarray], device: str) -> None:
        self.replay = Replay(copy.deepcopy(model), batches, device=device)
        self.reference = [outputs_of(y) for y in self.replay.run(names)]
        self.names = names

    def loss(self, site: Site, form: Form) -> float:
        """The true loss with one layer in this form."""
        model, later = self.replay.model, self.names[self.names.index(site.name) :]
        before = model.get_submodule(site.name)
        place(model, site, Stored(form, site.bias))
        try:
            return true_loss(self.reference, [outputs_of(y) for y in self.replay.run(later)])
        finally:
            put(model, site.name, before)


def _probed(option: Options) -> list[int]:
    found = []
    for share in SHARES:
        small = [i for i in range(1, len(option.sizes)) if option.sizes[i] <= share * option.sizes[0]]
        small = [i for i in small if option.losses[i] > LEAST]
        if small:
            found.append(max(small, key=lambda i: (option.sizes[i], -option.losses[i])))
    return sorted(dict.fromkeys(found), key=lambda i: float(option.losses[i]))


def _rescaled(option: Options, points: list[tuple[float, float]]) -> Options:
    """The option with its losses on the curve through the probes, (predicted, true) each, mild to strong."""
    predicted, true = (np.maximum.accumulate(np.log(values)) for values in np.array(points).T)

    def curve(losses: np.ndarray) -> np.ndarray:
        logs = np.log(np.maximum(losses, LEAST**2))
        inside = np.interp(logs, predicted, true)
        beyond = logs - np.clip(logs, predicted[0], predicted[-1])
        return np.where(losses > 0, np.exp(inside + beyond), 0.0)

    return replace(option, losses=curve(option.losses), worth=float(curve(np.array([option.worth]))[0]))
