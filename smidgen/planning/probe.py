"""Probes: hold the predicted loss of each site against the true loss of a change there, and rescale.

The curvature is a local, factored and tempered estimate, so its scale can be off by a factor that differs from layer to
layer. Two forward passes with one site changed, once mildly and once strongly, tell that factor. Every predicted loss
of the site is multiplied by

    √(t₁ t₂ / (p₁ p₂))      t the true losses of the probed options, p their predicted ones

Measured on ResNet-20 (float ONNX, low rank alone): the prediction for a whole plan comes within 2.3x of the measured KL
at 1.15x, 1.4x and 1.8x smaller, where it was 4x off; on LeNet within 1.8x, where it was 200x off. Fitting the bend too
(a power law through both probes) chose worse plans on LeNet and is left out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from smidgen.calibrate.answers import outputs_of, true_loss
from smidgen.model.replace import place
from smidgen.planning.candidates import Options
from smidgen.site import Stored

SHARES = (0.5, 0.15)  # a probed option is the largest with at most this share of the dense bytes
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
    with torch.no_grad():
        inputs = [torch.from_numpy(batch).to(device) for batch in batches]
        reference = [outputs_of(model(x)) for x in inputs]
        result = []
        for option in options:
            points = []
            for chosen in _probed(option):
                changed = copy.deepcopy(model)
                method, rank = option.labels[chosen]
                place(changed, option.site, Stored(option.form(method, rank), option.site.bias))
                true = true_loss(reference, [outputs_of(changed(x)) for x in inputs])
                points.append((float(option.losses[chosen]), max(true, LEAST)))
            result.append(_rescaled(option, points) if points else option)
            tick(option.site.name)
    return result


def _probed(option: Options) -> list[int]:
    found = []
    for share in SHARES:
        small = [i for i in range(1, len(option.sizes)) if option.sizes[i] <= share * option.sizes[0]]
        small = [i for i in small if option.losses[i] > LEAST]
        if small:
            found.append(max(small, key=lambda i: (option.sizes[i], -option.losses[i])))
    return list(dict.fromkeys(found))


def _rescaled(option: Options, points: list[tuple[float, float]]) -> Options:
    """The option with its losses multiplied by the mean factor of the probes, (predicted, true) each."""
    factor = float(np.exp(np.mean([np.log(true / predicted) for predicted, true in points])))
    return replace(option, losses=option.losses * factor, worth=option.worth * factor, factor=factor)
