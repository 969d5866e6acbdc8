"""Train a small network on one core so that a killed run goes on where it stopped: for `vgg.py` and `gender_cnn.py`.

Every epoch ends in a checkpoint and begins with a seed of its own, so a run that was resumed ends in the same weights
as one that was not.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from smidgen.recover.training import multiplies_bfloat16

BATCH = 500  # for scoring


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with Nesterov momentum under one cycle of the rate (Smith and Topin, 2018).

    Args:
        epochs, batch: over the training split.
        rate: the highest, reached after three tenths of the steps.
        decay: of the weights.
        seed: of weights, order and augmentation.
    """

    epochs: int
    batch: int
    rate: float
    decay: float
    seed: int


def fit(
    net: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    recipe: Recipe,
    batch_of: Callable[[torch.Tensor, torch.Generator], torch.Tensor],
    checkpoint: Path,
) -> float:
    """Train a network in place.

    Args:
        net: with freshly seeded weights.
        images: (N, C, H, W), the training split, in whatever form `batch_of` takes.
        labels: classes (N,).
        recipe: see `Recipe`.
        batch_of: augments and normalises images taken from the training split.
        checkpoint: written after every epoch; read first if it is there.

    Returns:
        Seconds, of earlier runs too.
    """
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload] - the stubs of `to` lack this form
    optimiser = torch.optim.SGD(
        net.parameters(), lr=recipe.rate, momentum=0.9, weight_decay=recipe.decay, nesterov=True
    )
    steps = len(images) // recipe.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, recipe.epochs * steps)
    parts = {"net": net, "optimiser": optimiser, "schedule": schedule}
    done, seconds = _resume(parts, checkpoint)
    for epoch in range(done, recipe.epochs):
        started = time.time()
        loss = _epoch(net, optimiser, schedule, images, labels, recipe, epoch, batch_of)
        seconds += time.time() - started
        _keep(parts, epoch + 1, seconds, checkpoint)
        print(f"seed {recipe.seed} epoch {epoch + 1}/{recipe.epochs} loss {loss:.4f} {seconds:.0f} s", flush=True)
    return seconds


def _epoch(
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    images: torch.Tensor,
    labels: torch.Tensor,
    recipe: Recipe,
    epoch: int,
    batch_of: Callable[[torch.Tensor, torch.Generator], torch.Tensor],
) -> float:
    """One pass over the training split; the mean loss."""
    torch.manual_seed(1000 * recipe.seed + epoch)  # dropout draws from the global generator
    random = torch.Generator().manual_seed(1000 * recipe.seed + epoch)
    net.train()
    steps, total = len(images) // recipe.batch, 0.0
    for pick in torch.randperm(len(images), generator=random)[: steps * recipe.batch].split(recipe.batch):
        batch = batch_of(images[pick], random).to(memory_format=torch.channels_last)
        # Twice as fast where the processor multiplies bfloat16, and twelve times slower where it does not; the weights
        # stay float32.
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=multiplies_bfloat16("cpu")):
            loss = F.cross_entropy(net(batch).float(), labels[pick])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        total += loss.item()
    return total / steps


def _resume(parts: dict[str, Any], checkpoint: Path) -> tuple[int, float]:
    """Epochs done and the seconds they took."""
    if not checkpoint.is_file():
        return 0, 0.0
    state = torch.load(checkpoint, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["epochs"], state["seconds"]


def _keep(parts: dict[str, Any], epochs: int, seconds: float, checkpoint: Path) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    state = {name: part.state_dict() for name, part in parts.items()}
    fresh = checkpoint.with_suffix(".new")
    torch.save({**state, "epochs": epochs, "seconds": seconds}, fresh)
    os.replace(fresh, checkpoint)  # a run killed here leaves the older one


def shifted(images: torch.Tensor, most: int, random: torch.Generator) -> torch.Tensor:
    """Each image moved by up to `most` pixels either way over a border of zeros, half of them mirrored."""
    count, _, height, width = images.shape
    padded = F.pad(images, (most, most, most, most))
    down, right = torch.randint(0, 2 * most + 1, (2, count, 1), generator=random)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    flip = torch.rand(count, 1, generator=random) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    which = torch.arange(count)[:, None, None]
    # Indices on either side of a slice put the channels last.
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def answers(
    net: nn.Module, images: torch.Tensor, prepare: Callable[[torch.Tensor], torch.Tensor] = lambda part: part
) -> torch.Tensor:
    """The network's outputs in float32."""
    net.eval()
    with torch.no_grad():
        return torch.cat([net(prepare(part)) for part in images.split(BATCH)])


def save_weights(net: nn.Module, facts: dict[str, Any], folder: Path) -> None:
    """Write ``seed<n>.safetensors`` and ``seed<n>.json``, and drop the checkpoint.

    Args:
        net: trained.
        facts: how it was trained and how well it does; with its "seed".
        folder: where to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"seed{facts['seed']}"
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder / f"{stem}.safetensors")
    (folder / f"{stem}.json").write_text(json.dumps(facts, indent=1))
    checkpoint_of(folder, facts["seed"]).unlink(missing_ok=True)
    print(json.dumps(facts))


def checkpoint_of(folder: Path, seed: int) -> Path:
    """Where an unfinished training is kept."""
    return folder / f"seed{seed}.checkpoint"
