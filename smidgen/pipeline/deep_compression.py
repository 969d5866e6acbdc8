"""Deep Compression (Han et al. 2016, arXiv:1510.00149): prune → share → Huffman, with training or without.

    pruned    single weights removed, the others refitted or trained              model.sparse.onnx of floats
    shared    2^bits values a layer, one of them exactly 0, and packed indices    model.sparse.onnx
    tuned     with training: the values, by the summed gradients of their weights
    Huffman   runs of zeros and indices with a Huffman code each                  model.huffman.smidgen
    archive   the same weights with the arithmetic coder, beside it               model.smidgen

Every stage is a file that runs, or that unpacks to one to the bit; its bytes and what it lost on the selection inputs
are in ``result.json`` under ``stages``.

Without training weights go by curvature, not by size, and all at once. With it the smallest go little by little while
the network trains (`smidgen.pipeline.recover`), and pruning that does not answer better so stays as it was untrained.

Differs from the paper: what is learned is the original's answers, so no labels are needed; the values are the optimum
of a weighted k-means; one width for all layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from smidgen.budget import Budget
from smidgen.methods import Sharing, choose_rounding
from smidgen.pipeline.ledger import with_ledger
from smidgen.pipeline.options import candidates, curvatures_of
from smidgen.pipeline.recover import Recovery, check_gradual, recovered
from smidgen.pipeline.running import Asked
from smidgen.pipeline.stages import Stage, with_stages
from smidgen.pipeline.targets import huffman_archive, write_target
from smidgen.pipeline.task import Task, Threads
from smidgen.pipeline.workshop import Workshop
from smidgen.planning.candidates import Options
from smidgen.planning.plan import Plan
from smidgen.planning.realise import Realised
from smidgen.planning.search import Outcome, Trial
from smidgen.planning.sparsity import pruned_plan
from smidgen.planning.widths import in_shared_values
from smidgen.recover.trainable import filled
from smidgen.report.result import Result
from smidgen.report.training import with_training
from smidgen.site import Curvature

# Tried from the most to the least where no sparsity is named: the first that keeps the promise is taken.
SPARSITIES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
TRAINED_SPARSITIES = (0.95, *SPARSITIES)
BITS = 5  # of an index; the paper's for dense layers
POINTS = 1.0  # that may be lost, where nobody said
PRUNING, SHARING = "obs", "kmeans"
TARGETS = ("archive", "onnx-sparse")
PRUNING_SHARE = 0.5  # of a time limit; the values have what is left

Settings = Mapping[str, Mapping[str, Any]]


def deep_compression(task: Task, asked: Asked) -> Result:
    """Prune → share → Huffman.

    Args:
        task: from `open_task`.
        asked: settings of ``obs`` and ``kmeans``: the most sparsity that keeps the promise and 5 bits where they say
            none. Its budget is none, or the points that may be lost; its recovery says how to train, if at all.
    """
    started, budget = time.perf_counter(), asked.budget
    points = POINTS if budget.points is None else budget.points
    curvatures = curvatures_of(task, asked.progress)
    with Threads(task.threads):
        make = _untrained if asked.recovery is None else _trained
        work, before, trials, told = make(task, asked, curvatures, points)
        shared = trials[-1]
        kept = shared.cautious is None or shared.cautious <= points
        note = (
            "" if kept else f"the chain loses {shared.points:.2f} points, allowed were {points:g}; name less sparsity"
        )
        outcome, seconds = Outcome(shared, kept, trials, note), time.perf_counter() - started
        result = work.finish(outcome, budget, seconds, alone=told is None)
        coded = huffman_archive(task.prepared, result.stored, result.files["onnx"])
        stages = [
            Stage("original", work.original.stat().st_size),
            *before,
            Stage("Huffman", coded.stat().st_size, coded.name),
            Stage("archive", result.files["archive"].stat().st_size, "model.smidgen"),
        ]
        stages[-3] = replace(stages[-3], path="model.sparse.onnx")  # of these the last one is saved
        result = with_stages(
            replace(result, beside=(*result.beside, coded)), "deep-compression", stages, told is not None
        )  # fmt: skip
        result = result if told is None else with_training(result, told)
        return with_ledger(result, work.original, asked.max_ram, asked.max_flash)


_Pruned = tuple[dict[str, Any], Trial, dict[str, Any]]  # settings, what they gave, and the record of its training
_Made = tuple[Workshop, list[Stage], tuple[Trial, ...], dict[str, Any] | None]  # the last of how it was trained


def _untrained(task: Task, asked: Asked, curvatures: Mapping[str, Curvature], points: float) -> _Made:
    """All weights that go at once; what is left shared as it is."""

    def tried(chosen: dict[str, Any]) -> _Pruned:
        options, plan = _planned(task, asked, {PRUNING: chosen}, curvatures, "onnx-sparse")
        work = Workshop(task, options, asked.refit, asked.progress, Budget(), targets=("onnx-sparse",))
        return chosen, work.trial(replace(plan, **work.circumstances)), {}

    chosen, pruned, _ = _first_kept(asked, SPARSITIES, points, tried)
    options, plan = _planned(task, asked, {PRUNING: chosen, SHARING: _sharing(asked)}, curvatures, "archive")
    work = Workshop(task, options, asked.refit, asked.progress, asked.budget, targets=TARGETS)
    shared = work.trial(replace(plan, **work.circumstances))
    stages = [Stage("pruned", pruned.nbytes, None, pruned.points), _floats("shared", work, shared)]
    return work, stages, (pruned, shared), None


def _trained(task: Task, asked: Asked, curvatures: Mapping[str, Curvature], points: float) -> _Made:
    """Weights go while the network trains; then the values that the others share are trained."""
    recovery, budget = asked.recovery, asked.budget
    assert recovery is not None
    spent = [0.0]  # seconds

    def tried(chosen: dict[str, Any]) -> _Pruned:
        options, plan = _planned(task, asked, {PRUNING: chosen}, curvatures, "onnx-sparse")
        work = Workshop(task, options, asked.refit, asked.progress, budget, targets=("onnx-sparse",))
        sparsity = f"pruned{100 * chosen.get('sparsity', 0.0):g}"
        how = replace(_shorter(recovery, PRUNING_SHARE).again(sparsity, sum(spent)), gradual=True)
        start = Outcome(work.trial(replace(plan, **work.circumstances)), met=True)
        outcome, told = recovered(work, start, Budget(), how)
        spent.append(told["seconds"])
        return chosen, outcome.best, told

    chosen, pruned, first = _first_kept(asked, TRAINED_SPARSITIES, points, tried)
    options, plan = _planned(task, asked, {PRUNING: chosen, SHARING: _sharing(asked)}, curvatures, "archive")
    work = Workshop(task, options, asked.refit, asked.progress, budget, targets=TARGETS)
    plan = replace(plan, **work.circumstances)
    shared = work.weighed(plan, _shared(task, asked, plan, pruned.carried[0]))
    how = replace(recovery.again("shared", sum(spent)), gradual=False)
    outcome, second = recovered(work, Outcome(shared, met=True), Budget(), how)
    tuned, before = outcome.best, second["before"]["loss"]
    after = second["after"]["loss"] if second["kept"] else before
    stages = [
        Stage("pruned", pruned.nbytes, None, pruned.points, first["after" if first["kept"] else "before"]["loss"]),
        _floats("shared", work, shared, before),
        _floats("tuned", work, tuned, after),
    ]
    kept = first["kept"] or second["kept"]
    training = {
        **second, "epochs": first["epochs"] + second["epochs"], "seconds": sum(spent) + second["seconds"],
        "gradual": first["kept"], "kept": kept, "parts": {"pruned": first, "shared": second},
        "why": None if kept else second["why"],
    }  # fmt: skip
    return work, stages, (pruned, shared, tuned), training


def _floats(name: str, work: Workshop, trial: Trial, loss: float | None = None) -> Stage:
    """A stage whose file is one of packed indices, not the archive that the trial was weighed by."""
    realised = trial.carried[0] or work.realised(trial.plan)
    file = write_target("onnx-sparse", work.source(realised, trial.carried[1]))
    return Stage(name, file.stat().st_size, None, trial.points, loss)


def _shared(task: Task, asked: Asked, plan: Plan, pruned: Realised) -> Realised:
    """What is left of a trained network, shared under the inputs that its layers now have."""
    now = replace(task, prepared=replace(task.prepared, module=pruned.model))
    curvatures, sites = curvatures_of(now, asked.progress), task.prepared.sites
    how, stored = choose_rounding(SHARING, {SHARING: _sharing(asked)}), dict(pruned.stored)
    assert isinstance(how, Sharing)
    for site, choice in zip(sites, plan.choices, strict=True):
        if choice.bits is not None:
            stored[site.name] = in_shared_values(
                site, stored[site.name], how, choice.bits, curvatures.get(site.name)
            )  # fmt: skip
    return Realised(filled(pruned.model, sites, stored), stored)


def _first_kept(
    asked: Asked, sparsities: Sequence[float], points: float, tried: Callable[[dict[str, Any]], _Pruned]
) -> _Pruned:
    """The most sparsity that loses half of the points, which leaves half for what comes after; or the one named."""
    mine = dict((asked.settings or {}).get(PRUNING, {}))
    named = mine.get("sparsity") is not None or mine.get("pattern") is not None
    tries = [mine] if named else [{**mine, "sparsity": sparsity} for sparsity in sparsities]
    found = tried(tries[0])
    for chosen in tries[1:]:
        if found[1].cautious is None or found[1].cautious <= points / 2:
            break
        found = tried(chosen)
    return found


def _sharing(asked: Asked) -> dict[str, Any]:
    return {"bits": BITS, **(asked.settings or {}).get(SHARING, {})}


def _shorter(recovery: Recovery, share: float) -> Recovery:
    limit = recovery.training.time_limit
    return replace(
        recovery, training=replace(recovery.training, time_limit=None if limit is None else share * limit)
    )  # fmt: skip


def _planned(
    task: Task, asked: Asked, settings: Settings, curvatures: Mapping[str, Curvature], target: str
) -> tuple[list[Options], Plan]:
    """Every layer pruned, and shared where the settings say so."""
    rounding = SHARING if SHARING in settings else None
    options, chosen = candidates(task, PRUNING, asked.progress, settings, target, rounding, curvatures=curvatures)
    if asked.recovery is not None:
        check_gradual(chosen.values(), "onnx-sparse", asked.recovery)
    return options, pruned_plan(options, chosen)
