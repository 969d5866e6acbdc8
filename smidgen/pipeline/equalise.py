"""Whether a network's channels are equalised before its activations become integers: what that loses is measured."""

from __future__ import annotations

from dataclasses import replace

import torch

from smidgen.calibrate.answers import outputs_of
from smidgen.calibrate.curvature import collect
from smidgen.export.equalise import equalised
from smidgen.export.onnx import fill
from smidgen.export.prepare import Prepared
from smidgen.export.static import static_losses
from smidgen.forms import STATIC
from smidgen.measure.memory import release
from smidgen.pipeline.options import kept_batches
from smidgen.pipeline.task import Progress, Task, Threads
from smidgen.pipeline.workshop import surely_lower
from smidgen.planning.widths import in_integers
from smidgen.site import untouched

SHARES = (0.5, 1.0)  # α: alike for weights and activations, all for activations
SURE = 1.0  # standard errors by which it must lose less
SEEN = 512  # calibration inputs that channels are seen on at most
ROUNDED_BY = 64  # calibration inputs of the curvature that weights are rounded under for the trial
TARGET = "onnx-int8"  # in whose file it is tried: every static one has a range a value and a scale a row


def better_equalised(task: Task, target: str, progress: Progress = lambda stage, done, total: None) -> Task:
    """The task with its network's channels equalised where a file of integers then loses less.

    Measured on the selection inputs before anything is planned, all weights rounded under a first look at the
    curvature: to the nearest, they would lose by it what they do not when planned (SqueezeNet: KL 0.0048 before, 0.0084
    after; as planned 0.0042 and 0.0030 at α = 1). Few inputs tell little, so it must lose less by more than their
    noise: of ResNet-20's 200 selection inputs α = 1 loses 13 % less, of 2,000 others its activations lose 12 to 25 %
    more.

    Args:
        task: from `open_task`; not changed.
        target: the file that the budget binds; nothing is done for one of floats.
        progress: called with (stage, done, total).
    """
    if target not in STATIC or task.roles is None:
        return task
    with Threads(task.threads):
        tried = [task]
        for share in SHARES:
            other = with_equalised(task, share)
            if other is not task:
                tried.append(other)
        if len(tried) == 1:
            return task
        reference = _reference(task)
        losses = []
        for done, each in enumerate(tried):
            losses.append(_losses(each, reference))
            progress("equalise", done + 1, len(tried))
    release()
    best = 0
    for i in range(1, len(tried)):
        if surely_lower(losses[i], losses[0], SURE) and losses[i].mean() < losses[best].mean():
            best = i
    return tried[best]


def with_equalised(task: Task, share: float) -> Task:
    """The task with its network's channels equalised; the same where nothing can be.

    Args:
        task: with calibration inputs; not changed.
        share: α of `smidgen.export.equalise.equalised`.
    """
    if task.roles is None:
        return task
    prepared = equalised(task.prepared, kept_batches(task.roles.calibration, SEEN), share)
    return task if prepared is None else _with(task, prepared, share)


def _with(task: Task, prepared: Prepared, share: float) -> Task:
    network = replace(task.network, module=prepared.module)
    return replace(task, prepared=prepared, network=network, equalised=share)


def _reference(task: Task) -> list[torch.Tensor]:
    assert task.roles is not None
    found = []
    with torch.no_grad():
        for batch in task.roles.selection.batches():
            answers = task.prepared.module(torch.from_numpy(batch).to(task.device))
            found.append([each.cpu() for each in outputs_of(answers)])
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def _losses(task: Task, reference: list[torch.Tensor]) -> torch.Tensor:
    assert task.roles is not None
    prepared = task.prepared
    inputs = kept_batches(task.roles.calibration, ROUNDED_BY)
    curvatures = collect(prepared.module, prepared.sites, inputs, device=task.device, seed=task.seed)
    stored = {s.name: in_integers(s, untouched(s), TARGET, curvatures.get(s.name)) for s in prepared.sites}
    model = fill(prepared.base, prepared.sites, stored, TARGET)
    return static_losses(model, reference, task.roles.calibration, task.roles.selection, task.threads)
