"""Named chains of stages. Deep Compression (Han et al. 2016, arXiv:1510.00149): prune → share → Huffman, untrained.

    pruned    single weights removed by curvature, the others refitted           model.sparse.onnx of floats
    shared    2^bits values a layer, one of them exactly 0, and packed indices    model.sparse.onnx
    Huffman   runs of zeros and indices with a Huffman code each                  model.huffman.smidgen
    archive   the same weights with the arithmetic coder, beside it               model.smidgen

Every stage is a file that runs, or that unpacks to one to the bit; its bytes and what it lost on the selection inputs
are in ``result.json`` under ``stages``.

Differs from the paper: no stage is trained; weights go by curvature, not by size; the values are the optimum of a
weighted k-means; one width for all layers. The recipe `extreme` has files of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smidgen.budget import Budget
from smidgen.errors import PlanError
from smidgen.pipeline.extreme import extreme
from smidgen.pipeline.ledger import with_ledger
from smidgen.pipeline.options import candidates, curvatures_of
from smidgen.pipeline.targets import huffman_archive
from smidgen.pipeline.task import Progress, Task, Threads
from smidgen.pipeline.workshop import Workshop
from smidgen.planning.candidates import Options
from smidgen.planning.search import Outcome, Trial
from smidgen.planning.sparsity import pruned_plan
from smidgen.recover.training import Training
from smidgen.report.result import Result
from smidgen.site import Curvature

# Tried from the most to the least where no sparsity is named: the first that keeps the promise is taken.
SPARSITIES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
BITS = 5  # of an index; the paper's for dense layers
POINTS = 1.0  # that may be lost, where nobody said
PRUNING, SHARING = "obs", "kmeans"

Settings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Stage:
    """One stage as carried out.

    Args:
        name: what was done.
        nbytes: of the file after it.
        path: its name, where it is saved.
        points: lost on the selection inputs, None where nothing was measured or nothing changed.
    """

    name: str
    nbytes: int
    path: str | None = None
    points: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "nbytes": self.nbytes, "path": self.path, "points": self.points}


def deep_compression(task: Task, settings: Settings, budget: Budget, refit: bool, progress: Progress) -> Result:
    """Prune → share → Huffman.

    Args:
        task: from `open_task`.
        settings: of ``obs`` and ``kmeans``; the most sparsity that keeps the promise and 5 bits where they say none.
        budget: none, or the points that may be lost.
        refit: refit each layer on what the compressed layers before it produce.
        progress: called with (stage, done, total).
    """
    started, points = time.perf_counter(), POINTS if budget.points is None else budget.points
    curvatures = curvatures_of(task, progress)
    with Threads(task.threads):
        asked, pruned = _pruned(task, settings, curvatures, points, refit, progress)
        options, plan = _planned(task, asked, curvatures, "archive", progress)
        work = Workshop(task, options, refit, progress, budget, targets=("archive", "onnx-sparse"))
        shared = work.trial(replace(plan, **work.circumstances))
        kept = shared.cautious is None or shared.cautious <= points
        note = (
            "" if kept else f"the chain loses {shared.points:.2f} points, allowed were {points:g}; name less sparsity"
        )
        result = work.finish(Outcome(shared, kept, (pruned, shared), note), budget, time.perf_counter() - started)
        coded = huffman_archive(task.prepared, result.stored, result.files["onnx"])
        stages = [
            Stage("original", work.original.stat().st_size),
            Stage("pruned", pruned.nbytes, None, pruned.points),
            Stage("shared", result.files["onnx-sparse"].stat().st_size, "model.sparse.onnx", shared.points),
            Stage("Huffman", coded.stat().st_size, coded.name),
            Stage("archive", result.files["archive"].stat().st_size, "model.smidgen"),
        ]
        record = {**result.record, "recipe": "deep-compression", "stages": [stage.as_dict() for stage in stages]}
        result = replace(result, record=record, beside=(*result.beside, coded))
        return with_ledger(result, work.original)


def _pruned(
    task: Task, settings: Settings, curvatures: Mapping[str, Curvature], points: float, refit: bool, progress: Progress
) -> tuple[dict[str, dict[str, Any]], Trial]:
    """Settings with a sparsity, and the pruned network: half of the points are left for what comes after."""
    mine = dict(settings.get(PRUNING, {}))
    named = mine.get("sparsity") is not None or mine.get("pattern") is not None
    tries = [mine] if named else [{**mine, "sparsity": sparsity} for sparsity in SPARSITIES]

    def tried(chosen: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], Trial]:
        options, plan = _planned(task, {PRUNING: chosen}, curvatures, "onnx-sparse", progress)
        work = Workshop(task, options, refit, progress, Budget(), targets=("onnx-sparse",))
        sharing = {"bits": BITS, **settings.get(SHARING, {})}
        return {PRUNING: chosen, SHARING: sharing}, work.trial(replace(plan, **work.circumstances))

    found = tried(tries[0])
    for chosen in tries[1:]:
        if found[1].cautious is None or found[1].cautious <= points / 2:
            break
        found = tried(chosen)
    return found


def _planned(
    task: Task, settings: Settings, curvatures: Mapping[str, Curvature], target: str, progress: Progress
) -> tuple[list[Options], Any]:
    rounding = SHARING if SHARING in settings else None
    options, chosen = candidates(task, PRUNING, progress, settings, target, rounding, curvatures=curvatures)
    return options, pruned_plan(options, chosen)


Recipe = Callable[[Task, Settings, Budget, bool, Progress], Result]
RECIPES: dict[str, Recipe] = {"deep-compression": deep_compression, "extreme": extreme}
# What a recipe's budget may be, and those that train: they take all inputs that are not held back.
BUDGETS = {"deep-compression": ("default", "max_drop"), "extreme": ("default", "size", "ratio", "max_drop")}
TRAINED = ("extreme",)


def recipe_of(name: str, given: Sequence[str], budget: Budget) -> Recipe:
    """The recipe of a name.

    Args:
        name: one of `RECIPES`.
        given: other ways of saying what to do, which a recipe says itself.
        budget: one that it can meet, see `BUDGETS`.

    Raises:
        PlanError: there is none, or something is given that it says itself.

    >>> recipe_of("deep-compresion", [], Budget())
    Traceback (most recent call last):
    smidgen.errors.PlanError: recipe: there is no 'deep-compresion'; there are: deep-compression, extreme
    """
    if name not in RECIPES:
        raise PlanError(f"recipe: there is no {name!r}; there are: {', '.join(RECIPES)}")
    if given:
        raise PlanError(f"recipe: {name} says {' and '.join(given)} itself; leave {'it' if len(given) == 1 else 'them'}"
                        " out")  # fmt: skip
    if budget.kind not in BUDGETS[name]:
        offered = ", ".join(kind for kind in BUDGETS[name] if kind != "default")
        raise PlanError(f"recipe: {name} has no budget of {budget.kind}; give {offered}, or none")
    return RECIPES[name]


def with_training_of(
    recipe: str, settings: Settings, train: Training | None, checkpoint: str | Path | None
) -> Settings:  # fmt: skip
    """Settings of a recipe that trains, with how it trains and where that is kept.

    >>> with_training_of("deep-compression", {}, None, None)
    {}
    """
    if recipe not in TRAINED:
        return settings
    own = {**settings.get(recipe, {}), **({} if checkpoint is None else {"checkpoint": str(checkpoint)})}
    how = settings.get("training", {}) if train is None else train.plain()
    return {**settings, recipe: own, "training": how}
