"""Channels as part of one plan: what is worth cutting at the plan's own price goes first, the rest is planned anew.

    run → price channels → cut and refit → calibrate and run on what is left → the better of the two

Whether it helps is not predicted but measured: both files are written, and the one that keeps the budget better is
taken. What was found of the other is in the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smidgen.budget import Budget
from smidgen.calibrate.answers import true_losses
from smidgen.errors import PlanError, one_line
from smidgen.methods import CHANNELS, prunings
from smidgen.methods.channels import CRITERIA, CURVATURE
from smidgen.pipeline.cutting import Cutter, without_channels
from smidgen.pipeline.options import curvatures_of
from smidgen.pipeline.prune import layer_row
from smidgen.pipeline.running import Asked, Methods, Run, run
from smidgen.pipeline.task import Progress, Task
from smidgen.planning.allocate import allocate
from smidgen.planning.candidates import Options
from smidgen.planning.channel_price import steps_worth
from smidgen.planning.channel_readers import readers_of
from smidgen.planning.channels import ByCurvature, choose
from smidgen.planning.compute import each_macs
from smidgen.planning.pace import option_times, saved_ms
from smidgen.planning.plan import Cut, Plan, fingerprint
from smidgen.planning.search import Trial
from smidgen.runtimes.opening import open_file, run_dataset
from smidgen.site import Channels, Curvature

STEEPEST = 1e6  # times the plan's price: past it a channel is worth more than anything there is to save


@dataclass(frozen=True)
class Cutting:
    """How channels are cut.

    Args:
        multiple: counts that change become multiples of this; see `smidgen.prune`.
        protect: names of layers whose outputs stay, or patterns of names.
    """

    multiple: int | None = None
    protect: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.multiple is not None and self.multiple < 1:
            raise ValueError(f"multiple={self.multiple!r} must be 1 or more")


def split_channels(methods: Methods, settings: Mapping[str, Mapping[str, Any]]) -> tuple[Methods, Cutting | None]:
    """The other methods, and how channels are cut where that was asked for.

    Raises:
        PlanError: a setting that there is not, or a method that they do not go with.

    >>> split_channels(["auto", "channels"], {}), split_channels("svd", {})
    (('auto', Cutting(multiple=None, protect=())), ('svd', None))
    """
    names = [methods] if isinstance(methods, str) else methods
    if CHANNELS not in names:
        return methods, None
    if isinstance(names, Mapping):
        raise PlanError("methods: channels run through all kinds of layers; give them as auto,channels")
    rest = [name for name in names if name != CHANNELS]
    single = sorted(set(rest) & set(prunings()))
    if single:
        raise PlanError(f"methods: channels do not go with {single[0]}, which removes single weights; "
                        "cut with smidgen prune first")  # fmt: skip
    given = dict(settings.get(CHANNELS, {}))
    try:
        cutting = Cutting(**{**given, "protect": tuple(given.get("protect", ()))})
    except (TypeError, ValueError) as error:
        raise PlanError(f"channels: {one_line(error)}; its settings are {Cutting()}") from error
    return ("auto" if rest == ["auto"] else rest), cutting


def run_with_channels(task: Task, asked: Asked, cutting: Cutting) -> Run:
    """The better of two runs: on the network as it is, and on what is left without channels that are not worth it.

    Args:
        task: from `open_task`.
        asked: what to reach, and by what other methods.
        cutting: how channels are cut.

    Raises:
        PlanError: there is nothing to measure with, or nothing beside channels.
        UserError: no channel can be cut, or a protected layer is not there.
    """
    if task.roles is None:
        raise PlanError("channels: whether cutting them helps is measured; give --data, or cut with smidgen prune")
    progress, curvatures = asked.progress, curvatures_of(task, asked.progress)
    cutter = Cutter(task, cutting.protect, progress)
    whole = run(task, asked, curvatures)
    if all(len(option.labels) < 2 for option in whole.options):
        raise PlanError("channels: no other method is asked that they could be weighed against; name some "
                        "(auto,channels), or cut with smidgen prune")  # fmt: skip
    keep, predicted = _worth_keeping(whole, asked.budget, cutter, cutting, curvatures)
    told: dict[str, Any] = {"taken": False, "predicted_loss": predicted}
    if keep.all():
        return _told(whole, {**told, "why": "at the plan's price no channel is worth removing"})
    cut = Cut(fingerprint(task.prepared.sites), _removed(cutter.found.channels, keep))
    smaller = _without(task, cutter, keep, cut, curvatures, asked.refit)
    left = run(smaller, replace(asked, budget=_same(asked.budget, whole)))
    losses = [_loss(each, whole) for each in (whole, left)]
    rows = [layer_row(layer, keep, None).plain() for layer in cutter.found.channels.layers]
    for name, each, loss in zip(("whole", "cut"), (whole, left), losses, strict=True):
        best = each.outcome.best
        told[name] = {"nbytes": best.nbytes, "loss": loss, "points": best.points, "latency_ms": best.latency_ms}
    told["layers"] = [row for row in rows if row["before"] != row["after"]]
    if _better(left, whole, asked.budget, losses):
        return _told(left, {**told, "taken": True, "why": "the file is better with fewer channels"})
    return _told(whole, {**told, "why": "the file is no better with fewer channels"})


def again_without(task: Task, cut: Cut, refit: bool, progress: Progress) -> Task:
    """The task without the channels that an earlier plan removed.

    Args:
        task: from `open_task`.
        cut: of the plan.
        refit: refit what is left, as in the run that made the plan.
        progress: called with (stage, done, total).

    Raises:
        PlanError: the plan is another network's.
    """
    if cut.network != fingerprint(task.prepared.sites):
        raise PlanError("plan: it was made for another network (layer names or shapes differ); make a new one")
    cutter = Cutter(task, (), progress)
    channels, keep = cutter.found.channels, np.ones(cutter.found.channels.count, dtype=bool)
    layers = {layer.name: layer for layer in channels.layers}
    for name, places in cut.removed.items():
        outputs = layers[name].outputs if name in layers else np.zeros(0, dtype=int)
        if any(place >= len(outputs) or outputs[place] < 0 for place in places):
            raise PlanError(f"plan: it removes outputs of '{name}' that cannot go; make a new one")
        keep[outputs[list(places)]] = False
    if any(not keep[units].any() for units in channels.classes):
        raise PlanError("plan: it removes all channels of a layer; make a new one")
    return _without(task, cutter, keep, cut, curvatures_of(task, progress), refit)


def _worth_keeping(
    whole: Run, budget: Budget, cutter: Cutter, cutting: Cutting, curvatures: Mapping[str, Curvature]
) -> tuple[np.ndarray, float]:
    """Which channels stay at the price at which all fits, and the predicted loss without the others."""
    channels, plan = cutter.found.channels, whole.outcome.best.plan
    limit, most, amounts = _amounts(whole, budget, plan)
    now = amounts(most)
    sizes = {option.site.name: option.site.weight.size for option in whole.options}
    worth = {name: value / sizes[name] for name, value in now.items()}
    pricer = cutter.pricer(CRITERIA[CURVATURE], curvatures)
    if sum(now.values()) > limit:
        most *= STEEPEST
    _, steps = choose(channels, pricer, 0.0, multiple=cutting.multiple, by=worth, most=most)
    count = steps_worth(channels, steps, amounts, limit, most)
    keep = np.ones(channels.count, dtype=bool)
    for step in steps[:count]:
        keep[list(step.units)] = False
    return keep, float(sum(step.cost for step in steps[:count]))


def _amounts(whole: Run, budget: Budget, plan: Plan) -> tuple[float, float, Callable[[float], dict[str, float]]]:
    """What may be taken in all, the plan's price, and what each layer takes at a price: bytes, milliseconds or MACs."""
    options, chosen = whole.options, whole.chosen
    if budget.share:

        def products(price: float) -> dict[str, float]:
            made = allocate(options, 0.0, chosen, price_mac=price)
            return dict(zip((o.site.name for o in options), each_macs(options, made), strict=True))

        asked = budget.share * whole.work.original_macs - whole.work.macs_beside
        limit = min(asked, sum(each_macs(options, plan)))
        return limit, _finite(plan.price_mac, options, [o.macs for o in options]), products
    if budget.timed:
        whole_ms = whole.work.original_ms
        rest = whole_ms - sum(float(option.times[0]) for option in options if option.times is not None)
        limit = (budget.latency_ms or whole_ms / (budget.faster or 1.0)) - max(rest, 0.0)

        def milliseconds(price: float) -> dict[str, float]:
            choices = allocate(options, 0.0, chosen, price).choices
            told = (option_times(o, c) for o, c in zip(options, choices, strict=True))
            return {o.site.name: t["latency_ms_after"] for o, t in zip(options, told, strict=True) if t}

        if whole.outcome.met:
            limit = min(limit, whole_ms - saved_ms(options, plan) - max(rest, 0.0))
        return limit, _finite(plan.price_ms, options, [o.times for o in options]), milliseconds

    def nbytes(price: float) -> dict[str, float]:
        return {choice.site: float(choice.nbytes) for choice in allocate(options, price, chosen).choices}

    best = whole.outcome.best
    asked = budget.nbytes or (whole.work.original.stat().st_size / budget.times if budget.times else None)
    gap = best.nbytes - plan.nbytes  # the graph, and what was predicted amiss
    limit = float(plan.nbytes if asked is None else min(plan.nbytes, asked - gap))
    return limit, _finite(plan.price, options, [o.sizes for o in options]), nbytes


def _finite(price: float, options: Sequence[Options], amounts: Sequence[np.ndarray | None]) -> float:
    """A price that can be reckoned with, where the plan was made at none or at any: by what all is worth altogether.

    Args:
        price: of the plan.
        options: of every site.
        amounts: of every option, of what the price is for; None for sites that have none.
    """
    if 0 < price < np.inf:
        return price
    counted = [(o.worth, float(each[0])) for o, each in zip(options, amounts, strict=True) if each is not None]
    worth, whole = (sum(column) for column in zip(*counted, strict=True)) if counted else (0.0, 0.0)
    middle = worth / whole if worth and whole else 1.0
    return middle if price else middle / STEEPEST


def _without(
    task: Task, cutter: Cutter, keep: np.ndarray, cut: Cut, curvatures: Mapping[str, Curvature], refit: bool
) -> Task:
    """The task without channels: each layer that read them makes good what it can, then all are refitted."""
    channels = cutter.found.channels
    priced = ByCurvature(channels, readers_of(channels, cutter.sites, curvatures))
    for unit in np.flatnonzero(~keep).tolist():  # in one order, so that a plan carried out again gives the same
        for reader in priced.readers.values():
            reader.remove(unit)
    smaller = without_channels(task, cutter.cut(keep, refit, priced), cutter.path)
    return replace(smaller, cut=cut, scratch=cutter.folder if task.network.source is None else None)


def _removed(channels: Channels, keep: np.ndarray) -> dict[str, tuple[int, ...]]:
    left = np.append(keep, True)
    gone = {layer.name: tuple(np.flatnonzero(~left[layer.outputs]).tolist()) for layer in channels.layers}
    return {name: places for name, places in gone.items() if places}


def _same(budget: Budget, whole: Run) -> Budget:
    """What is asked of the smaller network: the same, but where a dial was turned, as many bytes as came out."""
    judged = whole.work.judge is not None
    if budget.kind == "tradeoff" or (budget.kind == "default" and not judged):
        return Budget(size=whole.outcome.best.nbytes)
    return budget


def _loss(each: Run, whole: Run) -> float:
    """The loss of a file's answers beside the original's, on the selection inputs."""
    roles = each.task.roles
    assert roles is not None
    answers = []
    for path in (whole.work.original, _opened(each.outcome.best)):
        with open_file(path, each.task.threads) as runner:
            found = run_dataset(runner, roles.selection.batches())
        answers.append([[torch.from_numpy(np.ascontiguousarray(one)) for one in found]])
    return float(true_losses(*answers).mean())


def _opened(trial: Trial) -> Path:
    """The file that a runtime opens: of an archive, the one beside it."""
    _, path, written = trial.carried
    return path if written is None or written.suffix == ".smidgen" else written


def _better(left: Run, whole: Run, budget: Budget, losses: Sequence[float]) -> bool:
    """Whether the smaller network's file keeps the budget better."""
    if left.outcome.met != whole.outcome.met:
        return left.outcome.met
    if budget.kind in ("max_drop", "default") and whole.work.judge is not None:
        return left.outcome.best.nbytes < whole.outcome.best.nbytes
    return losses[1] < losses[0]


def _told(taken: Run, told: dict[str, Any]) -> Run:
    return replace(taken, beside={"channels": told})
