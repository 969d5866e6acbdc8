"""What `mobile.py` holds the gender CNN against: its published form, and the network without dense layers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from gender_cnn import CHANNELS, FLAT, INPUT, GenderCnn
from torch import nn

from smidgen.data import Dataset
from smidgen.export.onnx import write
from smidgen.export.prepare import prepare
from smidgen.model.load import load_network
from smidgen.pipeline import Workshop, candidates, open_task
from smidgen.planning.allocate import allocate
from smidgen.planning.candidates import Label, Options
from smidgen.planning.plan import Choice
from smidgen.site import untouched

FACTORED = 3  # dense layers, the first of the four; the last has two outputs
DECAYS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def write_network(net: nn.Module, path: Path, shape: Sequence[int] = INPUT) -> None:
    """The network as ONNX, as smidgen writes one that it did not change."""
    prepared = prepare(load_network(net), torch.zeros(1, *shape))
    write(prepared.base, prepared.sites, {site.name: untouched(site) for site in prepared.sites}, path)


def dense_weights(rank: int, sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Weights and biases of dense layers as three factors.

    Args:
        rank: of all.
        sizes: inputs and outputs of each layer.

    >>> dense_weights(5, [(2288, 256), (256, 256), (256, 32)])
    [13001, 2841, 1497]
    """
    return [rank * (inputs + rank + outputs) + outputs for inputs, outputs in sizes]


def write_low_rank(network: Path, calibration: Dataset | None, rank: int, threads: int, seed: int, path: Path) -> None:
    """The first three dense layers as three factors of one rank, everything else as it is.

    Args:
        network: the original's file.
        calibration: inputs for the metric and the refit; None for the plain SVD of the weights.
        rank: of the three layers.
        threads, seed: of the run.
        path: the ONNX file that is written.
    """
    task = open_task(network, calibration, None, None, None, None, threads, "cpu", seed)
    options, chosen = candidates(task, {"linear": ["svd"]}, settings={"svd": {"factors": 3}})
    work = Workshop(task, options, calibration is not None, lambda stage, done, total: None)
    whole = allocate(options, 0.0, chosen)
    dense = [o.site.name for o in options if o.site.geometry.kind == "linear"][:FACTORED]
    choices = [
        _at_rank(option, rank) if option.site.name in dense else choice
        for option, choice in zip(options, whole.choices, strict=True)
    ]
    shutil.copyfile(work.trial(replace(whole, choices=tuple(choices))).carried[1], path)


def _at_rank(option: Options, rank: int) -> Choice:
    i = option.labels.index(Label("svd", rank))
    return Choice(option.site.name, "svd", rank, float(option.losses[i]), int(option.sizes[i]))


class Readout(nn.Module):
    """The network's convolutions and one linear layer on what they give.

    Args:
        original: whose convolutions are taken as they are.
        pooled: a mean over each of the 16 maps before the linear layer.
    """

    def __init__(self, original: GenderCnn, *, pooled: bool) -> None:
        super().__init__()
        self.features = original.features
        self.flatten = nn.Sequential(*([nn.AdaptiveAvgPool2d(1)] if pooled else []), nn.Flatten())
        self.readout = nn.Linear(CHANNELS[-1] if pooled else FLAT, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.flatten(self.features(x)))


def without_dense(
    original: GenderCnn, images: torch.Tensor, labels: torch.Tensor, seed: int, *, pooled: bool
) -> Readout:
    """The network with its dense layers removed: a logistic regression on the features of the training split.

    Args:
        original: trained; its convolutions stay.
        images, labels: the training split, labels included: unlike everything else here this is retraining.
        seed: of the fifth that the weight decay is chosen on.
        pooled: see `Readout`.
    """
    net = Readout(original, pooled=pooled).eval()
    with torch.no_grad():
        features = torch.cat([net.flatten(net.features(part)) for part in images.split(500)]).double()
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    x = (features - mean) / std
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    held, kept = order[: len(x) // 5], order[len(x) // 5 :]
    tried = {d: _regression(x[kept], labels[kept], d) for d in DECAYS}
    decay = min(DECAYS, key=lambda d: F.cross_entropy(x[held] @ tried[d][0].T + tried[d][1], labels[held]).item())
    weight, bias = _regression(x, labels, decay)
    net.readout.weight.data = (weight / std).float()  # on the features as they are
    net.readout.bias.data = (bias - weight @ (mean / std)).float()
    return net


def _regression(x: torch.Tensor, labels: torch.Tensor, decay: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [2, n] and bias [2] of the smallest cross-entropy with so much weight decay."""
    weight = torch.zeros(2, x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(2, dtype=x.dtype, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimiser.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, labels) + decay * weight.square().sum()
        value.backward()
        return value.item()

    optimiser.step(loss)
    return weight.detach(), bias.detach()
