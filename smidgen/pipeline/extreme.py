"""The smallest file that training can find: `--recipe extreme` (Oktay et al. 2020, arXiv:1906.06624).

    train     every weight as an integer times a step, the coder's bits in the loss     smidgen.recover.entropy
    cut       channels that fell silent on the way, so that the rest trains faster      smidgen.pipeline.silent
    write     the integers as they are                                                  model.smidgen, model.onnx

The loss is KL from the original, and from the labels where there are some, plus λ · bytes with the planner's λ: given,
or steered while it trains until a size, a ratio or a drop is reached (`smidgen.recover.price`). One run, no search.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from smidgen.budget import Budget, format_size
from smidgen.coding import cost_model
from smidgen.errors import BudgetError, DataError, PlanError
from smidgen.forms import Quantized, dense, scales
from smidgen.model.replace import with_forms
from smidgen.pipeline.extreme_training import Aim, Run, Settings, stored_of, told
from smidgen.pipeline.ledger import with_ledger
from smidgen.pipeline.running import Asked
from smidgen.pipeline.silent import in_order
from smidgen.pipeline.task import Progress, Task, Threads
from smidgen.pipeline.workshop import Workshop
from smidgen.planning.candidates import gather
from smidgen.planning.plan import Choice, Plan, fingerprint
from smidgen.planning.realise import Realised
from smidgen.planning.search import Outcome, Trial
from smidgen.recover.loop import Fitted
from smidgen.recover.training import Training
from smidgen.report.result import Result
from smidgen.site import Site, Stored

NAME = "extreme"
POINTS = 1.0  # that may be lost, where nobody said
DEFAULTS = Training(epochs=60, batch=128, lr=1e-3, warmup=0.02, clip=None)


def extreme(task: Task, asked: Asked) -> Result:
    """Train, cut, write; see the module's docstring.

    Args:
        task: from `open_task`, its calibration inputs being all that may be trained on.
        asked: its budget is a size, a ratio, a drop, or none: one point then, unless a price is set. Its settings:
            ``extreme`` of `smidgen.pipeline.extreme_training.Settings`, ``training`` of
            `smidgen.recover.training.Training`. Nothing is refitted: training moves every weight.

    Raises:
        DataError: no inputs.
        PlanError: a setting that there is none of.
    """
    started, budget, progress = time.perf_counter(), asked.budget, asked.progress
    own, training = read_settings(asked.settings or {}, task.seed)
    if task.roles is None:
        raise DataError(f"recipe: {NAME} trains, and needs inputs; give --data (labels are used, not needed)")
    with Threads(task.threads):
        # A drop is one of accuracy where there are labels; with no budget at all a workshop judges by agreement.
        judged = Budget(max_drop=POINTS) if budget.kind == "default" else budget
        first = Workshop(task, [], False, progress, judged, targets=("archive",))
        assert first.judge is not None  # there are inputs
        aim = _aim(budget, first.original, own)
        run = Run(task, own, training, aim, first.judge, first.folder.path, progress)
        done = run.train()
        result = _finished(run, first.original, judged, budget, done, started, progress)
    record = {
        **result.record, "recipe": NAME, "mode": "training",
        "predicted": {**result.record["predicted"], "nbytes": round(run.price.predicted_nbytes)},
        "training": {
            "epochs": sum(each.epochs for each in done), "inputs": len(task.roles.calibration), "kept": True,
            "training": run.training.plain(), "settings": _plain(own), "history": told(done),
            "bytes": run.price.told(), "stopped": done[-1].stopped, "seconds": sum(each.seconds for each in done),
        },
    }  # fmt: skip
    # The ledger tells each layer of the network that was given, not of the one without silent channels.
    whole = replace(result, record=record, sites=task.prepared.sites)
    whole = with_ledger(whole, first.original, asked.max_ram, asked.max_flash)
    return replace(whole, sites=result.sites)


def read_settings(given: Mapping[str, Mapping[str, Any]], seed: int) -> tuple[Settings, Training]:
    """Settings of the recipe and of its training.

    Raises:
        PlanError: one that there is none of.

    >>> read_settings({"training": {"epochs": 3}}, seed=0)[1].epochs
    3
    """
    known = sorted(field.name for field in fields(Settings))
    unknown = sorted(set(given) - {NAME, "training"}) + sorted(set(given.get(NAME, {})) - set(known))
    if unknown:
        raise PlanError(f"{NAME}: there is no setting {unknown[0]!r}; there are: training, {', '.join(known)}")
    plain = {**DEFAULTS.plain(), "seed": seed, **given.get("training", {})}
    own, training = Settings(**given.get(NAME, {})), Training.from_plain(plain)
    if training.mixes and not own.live:
        raise PlanError(f"{NAME}: the original has to answer mixed images themselves; leave live=false out, or mixup")
    return own, training


def _plain(own: Settings) -> dict[str, Any]:
    """For a record; where the checkpoint lay is nobody else's business."""
    return {name: value for name, value in asdict(own).items() if name != "checkpoint"}


def _aim(budget: Budget, original: Path, own: Settings) -> Aim:
    if budget.kind in ("size", "ratio"):
        return Aim(size=budget.nbytes or int(original.stat().st_size / (budget.times or 1)))
    if budget.kind == "default":
        return Aim(points=POINTS if own.price is None else None)
    if budget.kind == "max_drop":
        return Aim(points=budget.points)
    raise BudgetError(f"recipe: {NAME} has no budget of {budget.kind}; give a size, ratio or max_drop, or none")


def _finished(
    run: Run, original: Path, judged: Budget, budget: Budget, done: list[Fitted], started: float, progress: Progress
) -> Result:
    """Write, measure, score once."""
    prepared = run.prepared
    task = replace(run.task, prepared=prepared, network=replace(run.task.network, source=original))
    stored = in_order(task, stored_of(prepared, run.entropy.forms()), run.some)
    predicted = run.price.predicted_nbytes
    work = Workshop(task, gather(prepared.sites, {}, {}), False, progress, judged, targets=("archive",))
    plan = Plan(
        _choices(prepared.sites, stored, predicted, run.kl), run.price.now, fingerprint(prepared.sites),
        {NAME: _plain(run.own)}, **work.circumstances,
    )  # fmt: skip
    trial = work.weighed(plan, Realised(with_forms(prepared.module, prepared.sites, stored), stored))
    met, note = _verdict(run.aim, trial, done)
    return work.finish(Outcome(trial, met, (trial,), note), budget, time.perf_counter() - started, alone=False)


def _choices(sites: list[Site], stored: Mapping[str, Stored], nbytes: float, loss: float) -> tuple[Choice, ...]:
    """What each layer took: bytes by the model that priced them; the loss is of all layers, in equal parts."""
    bits = {site.name: _bits(stored[site.name]) for site in sites}
    whole = sum(bits.values()) or 1.0
    made = []
    for site in sites:
        form = stored[site.name].form
        step = float(scales(form.column, form.per_octave)[0]) if isinstance(form, Quantized) else None
        made.append(Choice(site.name, None, None, loss / len(sites), round(nbytes * bits[site.name] / whole),
                           site.refusal, step))  # fmt: skip
    return tuple(made)


def _bits(stored: Stored) -> float:
    if not isinstance(stored.form, Quantized):
        return 8.0 * dense(stored.form).nbytes
    values = stored.form.integers.reshape(len(stored.form.integers), -1)
    model = cost_model(values)
    return float(model.bits(values, model.classes).sum())


def _verdict(aim: Aim, trial: Trial, done: list[Fitted]) -> tuple[bool, str]:
    """Whether the written file is what was asked for, and how near it came."""
    if done[-1].stopped == "nan":
        return False, "the loss exploded again and again; give a lower rate"
    if aim.size is not None and trial.nbytes > aim.size:
        asked = format_size(aim.size)
        return False, f"{format_size(trial.nbytes)} were reached, asked were {asked}; give more epochs, or more bytes"
    if aim.points is not None and (trial.cautious is None or trial.cautious > aim.points):
        return False, f"it loses {trial.points:.2f} ± {trial.error:.2f} points, allowed were {aim.points:g}"
    return True, ""
