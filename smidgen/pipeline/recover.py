"""Training after the plan: the network that was realised learns to answer as the original does.

    search → realised → trainable → fit → read back → written and measured as any trial

The loss is T² KL(original ‖ smaller) at temperature T (Hinton et al. 2015, arXiv:1503.02531; for what is no classifier
the squared error over its variance), so no labels are needed. The best epoch by the same loss on the selection inputs
is kept, and none of them where training did not help. Ranks, masks, indices and grids are the plan's all along
(`smidgen.recover.trainable`). The steps of an archive's integers are learned too, unless bytes are budgeted: LeNet at
9 kB grew by 3 % with them, by nothing without (KL 1.5 untrained, 0.44 and 0.59 after three epochs of 4,000 digits).

What is trained is not in ``plan.json``: `smidgen.apply` carries the plan out untrained. The settings are in the record.

With ``gradual`` weights are removed little by little from the network as it was (Zhu and Gupta 2017, arXiv:1710.01878),
the smallest of all layers first, in the first part of the training; what is left trains on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smidgen.budget import Budget, format_size
from smidgen.calibrate.answers import is_classifier, outputs_of
from smidgen.data import Dataset
from smidgen.errors import DataError, PlanError, UserError
from smidgen.forms import FLOATS, Dense, Masked
from smidgen.measure.memory import release
from smidgen.methods import Leaves, Pruning, Sharing
from smidgen.model.sites import FORWARD
from smidgen.pipeline.activations import Forward, rounded_forward
from smidgen.pipeline.options import kept_batches
from smidgen.pipeline.task import Task
from smidgen.pipeline.workshop import Workshop
from smidgen.planning.plan import Plan
from smidgen.planning.realise import Realised
from smidgen.planning.search import Outcome, Trial, keeps
from smidgen.recover.augment import check_images
from smidgen.recover.centroids import Reassigning
from smidgen.recover.distance import distance
from smidgen.recover.distil import Mixture, need_labels
from smidgen.recover.loop import Fitted, Training, fit
from smidgen.recover.schedule import Pruner, Schedule
from smidgen.recover.trainable import filled, read_back, steps_of, trainable
from smidgen.site import untouched

# A network that answers well already is spoiled by a rate that trains one from scratch.
TRAINING = Training(epochs=10, lr=5e-4)
HELD = 4096  # selection inputs that are asked after each epoch at most
TEMPERATURE = 4.0
# Of the rate, where it made nothing better: what answers well already needs small steps.
SLOWER = 0.1
STEPS_RATE = 10.0  # times that of weights
LOOSER = 4.0  # times the points promised that a plan may lose before it is trained
# Of the bytes asked for that a plan may take once training made one grow too large, less that growth: the same again
# and a little more, for growth differs (LeNet-300-100 at 5 kB: by 7 %).
ROOM = 0.99
PRUNINGS = 40  # of a gradual schedule …
PRUNED = 0.5  # … in this share of all steps


@dataclass(frozen=True, eq=False)
class Recovery:
    """How a plan is trained.

    Args:
        training: settings of the loop.
        inputs: trained on: none of them are for selection or test.
        checkpoint: file to go on from.
        gradual: remove weights little by little.
        mix: the original's share of what is learned from; labels have the rest.
        learned_steps: whether the steps of an archive's integers are trained, which may make it larger.
        reassign: whether shared weights take other values while those are trained.
        round_activations: whether activations are rounded as the file of integers will.
    """

    training: Training
    inputs: Dataset
    checkpoint: Path | None = None
    gradual: bool = False
    mix: float = 1.0
    learned_steps: bool = True
    reassign: bool = False
    round_activations: bool = False

    def again(self, what: str, seconds: float, rate: float = 1.0) -> Recovery:
        """The same once more, with a checkpoint of its own and the time that is left after so many seconds.

        Args:
            what: is trained: the end of the checkpoint's name.
            seconds: spent already.
            rate: times the learning rate.
        """
        old, path = self.training, self.checkpoint
        limit = None if old.time_limit is None else max(1.0, old.time_limit - seconds)
        training = replace(old, lr=rate * old.lr, time_limit=limit)
        return replace(self, training=training, checkpoint=path and path.with_name(f"{path.name}.{what}"))


def recovery_of(
    task: Task,
    training: Training,
    checkpoint: str | Path | None,
    gradual: bool,
    mix: float = 1.0,
    reassign: bool = False,
    round_activations: bool = False,
) -> Recovery:
    """What is trained on, checked before any work starts.

    Args:
        task: with the data divided; what is neither selection nor test is trained on.
        training, checkpoint, gradual, mix, reassign, round_activations: see `compress`.

    Raises:
        DataError: no inputs, fewer than a batch, changes of what is no image, or no labels where they are needed.
        UserError: a share that is none, or labels for what is no classifier.
    """
    if task.roles is None:
        raise DataError("train: there are no inputs to train on; give --data (labels are not needed)")
    inputs = task.roles.training
    if len(inputs) < training.batch:
        raise DataError(f"train: {len(inputs)} inputs are left for training, fewer than a batch of {training.batch}; "
                        f"give more, or --batch {max(1, len(inputs) // 4)}")  # fmt: skip
    check_images(inputs.shape, training.augment)
    mix = need_labels(inputs, Mixture(mix=mix).mix)
    with torch.no_grad():
        if mix < 1 and not is_classifier(outputs_of(task.prepared.module(task.example.to(task.device)))):
            raise UserError("train: labels are mixed in for classifiers alone; leave the mix out")
    return Recovery(
        training, inputs, None if checkpoint is None else Path(checkpoint), gradual, mix, reassign=reassign,
        round_activations=round_activations,
    )  # fmt: skip


def trained(
    work: Workshop, budget: Budget, recovery: Recovery, find: Callable[[float, Budget], Outcome], points: float | None
) -> tuple[Outcome, dict[str, Any]]:
    """Find a plan and train it; where points are promised, first one that loses several times as many untrained.

    Where bytes are budgeted and training made the file too large, a plan of fewer bytes is trained.

    Args:
        work, budget: as of `smidgen.pipeline.search`.
        recovery: how to train.
        find: that search, given how many times the points promised may be lost, and the budget.
        points: those promised, None where the budget is of something else.

    Returns:
        The outcome, and the record of the training.
    """
    if points is None:
        limit = work.limit(budget)
        recovery = replace(recovery, learned_steps=limit is None)
        outcome, first = recovered(work, find(1.0, budget), budget, recovery)
        after = first["after"]
        # Where the loss fell, and the file is all that grew, a smaller one may do.
        if limit is None or after["nbytes"] <= limit or not _fell(after["loss"], first["before"]["loss"]):
            return outcome, first
        tight = Budget(size=max(1, int(ROOM * limit * limit / after["nbytes"])))
        again = recovered(work, find(1.0, tight), budget, recovery.again("smaller", first["seconds"]))
        return _better_of((outcome, first), again, limit)
    outcome, first = recovered(work, find(LOOSER, budget), budget, recovery)
    if keeps(outcome.best, points):
        return replace(outcome, met=True, note=""), first
    outcome, told = recovered(work, find(1.0, budget), budget, recovery.again("second", first["seconds"]))
    met = keeps(outcome.best, points)
    note = f"after training it loses {outcome.best.points:.2f} ± {outcome.best.error:.2f} points"
    return replace(outcome, met=met, note="" if met else note), {**told, "first": first}


def _fell(best: float | None, start: float) -> bool:
    """Whether the loss on the selection inputs fell by a training."""
    return best is not None and best < start


def _better_of(
    first: tuple[Outcome, dict[str, Any]], smaller: tuple[Outcome, dict[str, Any]], limit: int
) -> tuple[Outcome, dict[str, Any]]:
    """A plan of fewer bytes, trained, where it is better than the first plan, which only fits untrained."""
    (untrained, told), (outcome, again) = first, smaller
    fits = again["kept"] and again["after"]["nbytes"] <= limit
    if not fits or not _fell(again["after"]["loss"], told["before"]["loss"]):
        return untrained, {**told, "smaller": again}
    return replace(outcome, met=True, note="", trials=(*untrained.trials, *outcome.trials)), {**again, "first": told}


def recovered(work: Workshop, outcome: Outcome, budget: Budget, recovery: Recovery) -> tuple[Outcome, dict[str, Any]]:
    """Train what a search found.

    Args:
        work: that realised it.
        outcome: of the search.
        budget: what it has to meet after training too.
        recovery: from `recovery_of`.

    Returns:
        The outcome with the trained trial as its best, or as it was where training did not help, and the record.
    """
    before = outcome.best
    realised: Realised = before.carried[0] or work.realised(before.plan)
    before = replace(before, carried=(realised, *before.carried[1:]))
    train = _gradual if recovery.gradual else _trained
    start, fitted, changed = train(work, before.plan, realised, recovery)
    if not recovery.gradual and not _fell(fitted.best, start):
        recovery = recovery.again("slower", fitted.seconds, SLOWER)
        start, fitted, changed = train(work, before.plan, realised, recovery)
    release()
    after = work.weighed(before.plan, changed)
    why = _refusal(start, fitted, before, after, work.limit(budget))
    record = {
        "settings": recovery.training.plain(), "inputs": len(recovery.inputs), "gradual": recovery.gradual,
        "mix": recovery.mix, "reassign": recovery.reassign,
        "round_activations": recovery.round_activations, **fitted.plain(),
        "before": {**_told(before), "loss": start},
        "after": {**_told(after), "loss": fitted.best}, "kept": not why, "why": why or None,
    }  # fmt: skip
    if why:
        note = f"trained, but left as it was: {why}"
        return replace(outcome, best=before, note="; ".join(filter(None, (outcome.note, note)))), record
    return Outcome(after, outcome.met, (*outcome.trials, after), outcome.note), record


def _refusal(start: float, fitted: Fitted, before: Trial, after: Trial, limit: int | None) -> str:
    """Why the trained network is not taken; empty where it is."""
    if fitted.best is None:
        return "it ended before there was an epoch to judge"
    if not _fell(fitted.best, start):
        return f"the loss on the selection inputs did not fall ({start:.4g} before)"
    if limit is not None and after.nbytes > limit >= before.nbytes:
        return f"its file would have {format_size(after.nbytes)}, {after.nbytes - limit} bytes more than asked"
    return ""


def _told(trial: Trial) -> dict[str, Any]:
    return {"nbytes": trial.nbytes, "points": trial.points, "error": trial.error}


def _trained(work: Workshop, plan: Plan, realised: Realised, recovery: Recovery) -> tuple[float, Fitted, Realised]:
    """The realised network, trained within its forms."""
    task, sites = work.task, work.task.prepared.sites
    learned = recovery.learned_steps or work.targets[0] != "archive"
    net = trainable(
        realised.model, sites, realised.stored, target=work.targets[0], fixed=_fixed(task),
        keep_zeros=[choice.site for choice in plan.choices if choice.pruned], learned_steps=learned,
        reassign=recovery.reassign,
    )  # fmt: skip
    epoch = max(1, len(recovery.inputs) // recovery.training.batch)
    hooks = (Reassigning(net, epoch),) if recovery.reassign else ()
    forward: Forward = net
    held = None
    if recovery.round_activations:
        forward, held = rounded_forward(task, realised.stored, net)
    start, fitted = _fitted(work, net, plan, recovery, forward, hooks=hooks)
    stored = read_back(net, sites, realised.stored)
    return start, fitted, Realised(filled(realised.model, sites, stored), stored, realised.refitted, held)


def _gradual(work: Workshop, plan: Plan, realised: Realised, recovery: Recovery) -> tuple[float, Fitted, Realised]:
    """The original, pruned while it trains to the sparsity that the plan has."""
    task, sites = work.task, work.task.prepared.sites
    pruned = {c.site for c in plan.choices if c.pruned and isinstance(realised.model.get_submodule(c.site), FORWARD)}
    count = sum(site.weight.size for site in sites if site.name in pruned)
    left = sum(choice.rank or 0 for choice in plan.choices if choice.site in pruned)
    whole = {site.name: untouched(site) for site in sites}
    net = trainable(task.prepared.module, sites, whole, fixed=_fixed(task))
    steps = recovery.training.epochs * (len(recovery.inputs) // recovery.training.batch)
    every = max(1, round(PRUNED * steps / PRUNINGS))
    schedule = Schedule(1 - left / count, every=every, times=min(PRUNINGS, max(1, steps // 2)))
    spared = [name for name, module in net.named_modules() if isinstance(module, FORWARD) and name not in pruned]
    pruner = Pruner(net, schedule, protect=spared)
    with torch.no_grad():
        start = _held(work, filled(realised.model, sites, realised.stored), recovery.mix)()
    ends = schedule.every * schedule.times
    _, fitted = _fitted(work, net, plan, recovery, net, hooks=(pruner,), keep=lambda: pruner.steps > ends)
    stored = read_back(net, sites, whole)
    masks = {name: Masked(one.form.values) for name, one in stored.items() if isinstance(one.form, Dense)}
    stored |= {name: replace(stored[name], form=masks[name]) for name in pruned}
    return start, fitted, Realised(filled(task.prepared.module, sites, stored), stored)


def _fitted(
    work: Workshop, net: nn.Module, plan: Plan, recovery: Recovery, forward: Forward, **more: Any
) -> tuple[float, Fitted]:
    """The loss before, and how the training went."""
    task, training = work.task, recovery.training
    assert task.roles is not None  # there is something to train on
    teacher = task.prepared.module
    held = _held(work, forward, recovery.mix)

    def loss(x: Tensor, labels: Tensor | None) -> Tensor:
        with torch.no_grad():
            wanted = outputs_of(teacher(x))
        return distance(wanted, outputs_of(forward(x)), labels, 1 - recovery.mix, TEMPERATURE)

    net.eval()
    with torch.no_grad():
        start = held()
    made = hashlib.sha256(plan.to_json().encode()).hexdigest()[:16]
    identity = {
        "plan": made, "selection": task.roles.selection.sha256, "gradual": recovery.gradual, "mix": recovery.mix,
        "reassign": recovery.reassign, "round_activations": recovery.round_activations,
    }  # fmt: skip
    fitted = fit(
        net, recovery.inputs, loss, training, held=held, checkpoint=recovery.checkpoint, identity=identity,
        device=task.device, progress=work.progress, groups=_groups(net), **more,
    )  # fmt: skip
    return start, fitted


def _groups(net: nn.Module) -> list[dict[str, Any]]:
    """Steps are exponents: what moves a weight of 0.05 by a part in fifty would hardly move them."""
    steps = [each for each in steps_of(net) if each.requires_grad]
    known = {id(each) for each in steps}
    others = [each for each in net.parameters() if id(each) not in known]
    return [{"params": others}, {"params": steps, "lr_scale": STEPS_RATE}]


def _held(work: Workshop, forward: Forward, mix: float) -> Callable[[], float]:
    """The loss on selection inputs."""
    task = work.task
    assert task.roles is not None
    batches, labels = kept_batches(task.roles.selection, HELD), task.roles.selection.labels
    ends = np.cumsum([len(each) for each in batches])
    aims = (
        [None] * len(batches)
        if labels is None
        else [torch.from_numpy(y).to(task.device) for y in np.split(labels[: ends[-1]].copy(), ends[:-1])]
    )
    with torch.no_grad():
        before = [outputs_of(task.prepared.module(torch.from_numpy(each).to(task.device))) for each in batches]

    def score() -> float:
        after = [outputs_of(forward(torch.from_numpy(each).to(task.device))) for each in batches]
        told = zip(batches, before, after, aims, strict=True)
        apart = (len(x) * float(distance(b, a, y, 1 - mix, TEMPERATURE)) for x, b, a, y in told)
        return sum(apart) / int(ends[-1])

    return score


def _fixed(task: Task) -> list[str]:
    """Sites whose weights the exported graph has no place for."""
    return [site.name for site in task.prepared.sites if site.name not in task.prepared.base.sites]


def check_reassign(how: Leaves, recovery: Recovery | None) -> None:
    """PlanError where nothing is trained, or weights share nothing."""
    if recovery is None:
        raise PlanError("reassign: shared weights take other values while the network trains; give --train")
    if not isinstance(how, Sharing):
        raise PlanError("reassign: no weights share values; give target onnx-shared, or an archive --rounding kmeans")


def check_gradual(chosen: Collection[object], target: str, recovery: Recovery | None) -> None:
    """PlanError where nothing is trained, nothing says how much is removed, or the file holds integers."""
    if recovery is None:
        raise PlanError("gradual: weights are removed little by little while the network trains; give --train")
    settings = [each.settings for each in chosen if isinstance(each, Pruning)]
    if not settings or not settings[0].share:
        raise PlanError("gradual: nothing says how much is removed; give a sparsity")
    if settings[0].pattern is not None or settings[0].scope != "global":
        raise PlanError("gradual: weights of all layers are compared, in no pattern; leave pattern and scope out")
    if target not in FLOATS:
        raise PlanError(f"gradual: what it leaves are floats, and {target} holds integers; give target onnx-sparse")
