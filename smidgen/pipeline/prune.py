"""prune(): whole channels and neurons cut, until so many multiplications are left, and what is left refitted.

    load → prepare → (find channels → calibrate → choose → cut → refit) × rounds → export → measure

What comes out is an ordinary smaller network, which `compress` can take further; with `channels` among its methods it
cuts by its own price. Nothing is trained: a refit is least squares on calibration inputs, and the test inputs are
scored once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from smidgen.budget import share_of
from smidgen.errors import BudgetError, DataError, UserError
from smidgen.measure.scores import Metric
from smidgen.methods.channels import CURVATURE, Criterion, choose_criterion
from smidgen.pipeline.cutting import Cutter, Smaller, without_channels
from smidgen.pipeline.measuring import measured
from smidgen.pipeline.task import Data, Progress, Task, Threads, one_input, open_task
from smidgen.planning.channels import Step, choose
from smidgen.report.pruning import LayerRow, Pruning
from smidgen.report.record import versions
from smidgen.site import ChannelLayer


def prune(
    model: nn.Module | str | Path,
    data: Data = None,
    *,
    macs: float | int | str | None = None,
    params: float | int | str | None = None,
    criterion: str = CURVATURE,
    multiple: int | None = None,
    rounds: int = 1,
    protect: Sequence[str] = (),
    test: Data = None,
    validation: Data = None,
    weights: str | Path | None = None,
    example: torch.Tensor | None = None,
    metric: str | Metric | None = None,
    refit: bool = True,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Pruning:
    """Cut whole channels and neurons, and refit what is left.

    Args:
        model: a module, an ``.onnx`` or ``.pt2`` file, or ``file.py:factory``.
        data: inputs, labels optional, as for `smidgen.compress`; None for none.
        macs: share of the multiply-accumulates that is left at most: ``"50%"`` or 0.5.
        params: the same of the weights, instead.
        criterion: which channels go first; see `smidgen.methods.channels`.
        multiple: counts of channels that change become multiples of this, 1 for any; when None of 16, and of 8 in
            layers of fewer than 48, which runs faster.
        rounds: cuts on the way to that share, each calibrated anew on the network that the one before it left.
        protect: names of layers whose outputs stay, or patterns such as ``"layer3*"``.
        test: inputs scored once at the end; a fifth of ``data`` is held back when None.
        validation: inputs that choose between networks; a fifth of ``data`` is held back when None.
        weights: ``.safetensors`` or weights-only ``.pth`` for a factory.
        example: one batch of inputs, needed where neither data nor the file tell the shape.
        metric: replaces accuracy; see `smidgen.compress`.
        refit: refit the layers that read other values than before to the original's (needs data).
        threads: for torch and onnxruntime; what torch uses when None.
        seed: of everything drawn.
        progress: called with (stage, done, total).

    Returns:
        The smaller network, its file, and what was measured on it.

    Raises:
        UserError: for anything wrong with what was given.

    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    >>> prune(net, torch.randn(50, 8), macs="50%").model(torch.zeros(1, 8)).shape
    torch.Size([1, 3])
    """
    wanted, by = share_wanted(macs, params)
    chosen = choose_criterion(criterion)
    if multiple is not None and multiple < 1:
        raise UserError(f"prune: channels cannot be multiples of {multiple}; give 1, 4, 8 or 16")
    if rounds < 1:
        raise UserError(f"prune: it cannot be done in {rounds} rounds; give 1 or more")
    task = open_task(model, data, test, weights, example, metric, threads, "cpu", seed, validation=validation)
    if chosen.needs == "inputs" and task.roles is None:
        raise DataError(f"prune: the criterion '{criterion}' needs inputs to run; give --data, or another criterion")
    asked = {by: wanted, "criterion": criterion, "multiple": multiple, "rounds": rounds, "protect": list(protect)}
    with Threads(task.threads):
        done = cut_in_rounds(task, chosen, wanted, by, rounds, multiple=multiple, protect=protect, refit=refit,
                             progress=progress)  # fmt: skip
        return _finished(task, done, asked, progress)


@dataclass(frozen=True, eq=False)
class Done:
    """What some rounds came to.

    Args:
        first: what cut the network that was given.
        smaller: the last network.
        kept: which channels of the first are left.
        steps: of all rounds.
    """

    first: Cutter
    smaller: Smaller
    kept: np.ndarray
    steps: tuple[Step, ...]


def cut_in_rounds(
    task: Task, criterion: Criterion, share: float, by: str = "macs", rounds: int = 1, *, multiple: int | None = None,
    protect: Sequence[str] = (), refit: bool = True, progress: Progress = lambda stage, done, total: None,
) -> Done:  # fmt: skip
    """Cut until a share is left, by equal factors.

    A curvature and its refits hold for small changes; after each cut they are found anew, and every layer is refitted
    to the first network's values. It is no gain on ResNet-20 at half its multiplications (1,000 inputs; 0.280 nats in
    one round, 0.297 in two, 0.363 in four): a network that was refitted tells less of what the first one needs.

    Args:
        task: from `open_task`.
        criterion: which channels go first.
        share: of the multiplications (or weights) that is left at last.
        by: "macs" or "weights".
        rounds: how many cuts.
        multiple, protect, refit, progress: see `prune`.
    """
    first = cutter = Cutter(task, protect, progress)
    whole, steps = _amount(first, by), list[Step]()
    for number in range(1, rounds + 1):
        left = share ** (number / rounds) * whole / _amount(cutter, by)
        pricer = cutter.pricer(criterion)
        keep, taken = choose(
            cutter.found.channels, pricer, left, multiple=multiple, by=by,
            tick=lambda done, total: progress("choose", done, total),
        )  # fmt: skip
        steps += taken
        smaller = cutter.cut(keep, refit, pricer)
        if number == rounds:
            return Done(first, smaller, cutter.kept(keep), tuple(steps))
        smaller_task = without_channels(task, smaller, first.path)
        cutter = Cutter(smaller_task, cutter.protected_names, progress, (cutter, keep))
    raise AssertionError  # there is at least one round


def _amount(cutter: Cutter, by: str) -> int:
    channels = cutter.found.channels
    every = np.ones(channels.count, dtype=bool)
    return channels.macs(every) if by == "macs" else channels.weights(every)


def parse_share(name: str, given: float | int | str) -> float:
    """A share that is left, between 0 and 1.

    >>> parse_share("macs", "35%"), parse_share("macs", 0.5)
    (0.35, 0.5)
    """
    share = share_of(given)
    if share is None:
        raise BudgetError(f"prune: {name}={str(given)!r:.40} is no share that could be left; "
                          "give one between 0 and 1: 50%")  # fmt: skip
    return share


def share_wanted(macs: float | int | str | None, params: float | int | str | None) -> tuple[float, str]:
    if (macs is None) == (params is None):
        raise BudgetError("prune: say how much is to be left, of one of the two: --macs 50% or --params 50%")
    if macs is not None:
        return parse_share("macs", macs), "macs"
    return parse_share("params", params or 0), "weights"


def _finished(task: Task, done: Done, asked: dict[str, Any], progress: Progress) -> Pruning:
    """Measure, score on the test inputs once, and write the record."""
    first, smaller, channels = done.first, done.smaller, done.first.found.channels
    progress("test", 0, 1)
    before, after = (
        measured(first.path, path, one_input(task), task.test, task.metric, task.threads, task.seed)
        for path in (first.path, smaller.path)
    )
    layers = tuple(layer_row(layer, done.kept, channels.left.get(layer.name)) for layer in channels.layers)
    predicted = sum(step.cost for step in done.steps) if asked["criterion"] == CURVATURE else None
    record = {
        "schema_version": 1, "name": task.network.name, "asked": asked, "seed": task.seed,
        "threads": task.threads, "versions": versions(),
        "data": task.roles.describe() if task.roles is not None else None,
        "predicted_loss": predicted, "measured_loss": smaller.loss,
        "original": before.plain(), "smaller": after.plain(), "layers": [row.plain() for row in layers],
    }  # fmt: skip
    return Pruning(smaller.model, before, after, layers, record, smaller.path, first.folder)


def layer_row(layer: ChannelLayer, kept: np.ndarray, reason: str | None) -> LayerRow:
    """Outputs of a layer before and after.

    Args:
        layer: before.
        kept: which channels are left.
        reason: why all its outputs stay, where they must.
    """
    return LayerRow(layer.name, len(layer.outputs), int(np.append(kept, True)[layer.outputs].sum()), reason)
