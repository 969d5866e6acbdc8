"""compress(): the stages in order, each frozen in, frozen out.

    load → prepare → calibrate → candidates → plan → realise → export → measure → report

The search for the price λ is in plain sight: `planning.search` is given a function that realises a plan, writes the
file, runs it in its runtime on the selection inputs, and says what it measured.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from smidgen.budget import Budget
from smidgen.errors import BudgetError, PlanError
from smidgen.measure.scores import Metric
from smidgen.methods import AnyMethod, Pruning, prunings, roundings, sharings
from smidgen.methods._ranks import told_ranks
from smidgen.pipeline.equalise import better_equalised, with_equalised
from smidgen.pipeline.ledger import parse_limit, with_ledger
from smidgen.pipeline.micro import with_sources
from smidgen.pipeline.options import candidates
from smidgen.pipeline.recipes import TRAINED, recipe_of, with_training_of
from smidgen.pipeline.recover import check_gradual, recovery_of, trained, with_training
from smidgen.pipeline.targets import check_given, check_targets
from smidgen.pipeline.task import Data, Progress, Task, Threads, as_data, open_task
from smidgen.pipeline.times import with_times
from smidgen.pipeline.workshop import Workshop, in_words
from smidgen.planning.allocate import allocate, price_of_tradeoff, spend
from smidgen.planning.candidates import Options
from smidgen.planning.pace import guarded, saved_ms, spend_ms
from smidgen.planning.plan import Plan, plan_from_json
from smidgen.planning.realise import Refit
from smidgen.planning.search import Outcome, PlanAt, Trial, search_drop, search_size
from smidgen.planning.search_time import search_time
from smidgen.planning.sparsity import pruned_plan
from smidgen.recover.training import Training
from smidgen.report.record import UNTIMED
from smidgen.report.result import Result
from smidgen.report.table import DENSE

__all__ = ["Task", "Workshop", "apply", "candidates", "compress", "guards", "open_task", "search"]

DEFAULT_POINTS = 1.0  # with no budget given: the smallest file that agrees on 99 % of the selection inputs
DEFAULT_TRADEOFF = 0.5  # with no budget and no data


def compress(
    model: nn.Module | str | Path,
    data: Data = None,
    *,
    budget: Budget | None = None,
    test: Data = None,
    weights: str | Path | None = None,
    example: torch.Tensor | None = None,
    methods: str | Sequence[str] | Mapping[str, Sequence[str]] = "auto",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    target: str | Sequence[str] = "onnx",
    rounding: str | None = None,
    metric: str | Metric | None = None,
    refit: bool = True,
    threads: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    guard: bool | None = None,
    max_ram: int | str | None = None,
    max_flash: int | str | None = None,
    recipe: str | None = None,
    train: Training | None = None,
    checkpoint: str | Path | None = None,
    gradual: bool = False,
    mix: float = 1.0,
    progress: Progress = lambda stage, done, total: None,
) -> Result:
    """Make a trained network smaller within a budget.

    Args:
        model: a module, an ``.onnx`` or ``.pt2`` file, or ``file.py:factory``.
        data: inputs, labels optional: a path, a `Dataset`, or any iterable of batches ``[n, …]``; None for none.
        budget: what to reach; by default the smallest file that agrees with the original on 99 % of the selection
            inputs, and the middle of the trade-off dial when there is no data.
        test: inputs scored once at the end; a fifth of ``data`` is held back when None.
        weights: ``.safetensors`` or weights-only ``.pth`` for a factory.
        example: one batch of inputs, needed where neither data nor the file tell the shape.
        methods: ``"auto"`` for all, names, or names by layer kind: ``{"linear": ["svd"], "conv": ["cp"]}``. Or one
            pruning of single weights: ``"obs"`` (by curvature, the others making good), ``"wanda"``, ``"magnitude"``.
        settings: of methods, by name: ``{"svd": {"ranks": "vbmf", "multiple": 8}}``. Where ranks are not chosen by the
            price and no budget is given, every layer takes its rank if that makes it smaller. Of prunings:
            ``{"obs": {"sparsity": 0.7}}`` removes 70 % of all weights, ``{"obs": {"pattern": "2:4"}}`` two of four;
            ``"scope": "layer"`` the share of each layer, ``"protect": ["head*"]`` leaves layers whole.
        target: the kind of file the budget binds, or several, the first of which it binds: ``"archive"`` (integers,
            entropy-coded; `smidgen.unpack` gives back the ONNX file), ``"onnx"`` (floats), ``"onnx-fp16"`` and
            ``"tflite-fp16"`` (weights of 16 bits, widened when the file is opened), ``"onnx-w8"`` or
            ``"onnx-w4"`` (weights as 8-bit, or 4- and 8-bit integers, through DequantizeLinear), ``"onnx-shared"``
            (weights that share 2 to 256 values a layer, as packed indices), ``"onnx-sparse"`` (floats, zeros left out),
            ``"onnx-int8"`` (static: activations too; it computes in integers, and needs data), ``"tflite"`` or
            ``"executorch"`` (floats), ``"tflite-int8"`` or ``"executorch-int8"`` (weights and activations of 8 bits,
            float ends; needs data) or ``"mcu"`` (TFLite with integers at the ends too, for TensorFlow Lite Micro, and
            C sources).
        rounding: how integers are found, for a target that holds them: ``"gptq"``, ``"rate_aware"`` or ``"nearest"``;
            ``"kmeans"`` shares weights, for ``"archive"`` and ``"onnx-shared"``. With
            ``settings={"kmeans": {"bits": 5}}`` and no budget every layer that gets smaller by it shares 32 values.
        metric: replaces accuracy: a function ``(outputs, labels) → float``, higher is better, or ``file.py:function``.
        refit: refit each layer on what the compressed layers before it produce (needs data).
        threads: for torch and onnxruntime; what torch uses when None.
        device: where curvature, methods and refits compute.
        seed: of everything drawn.
        guard: leave out forms that measure slower here than the layer they replace; see `guards` for the default.
        max_ram: bytes, or text such as "64 KiB", that the activations of the target's file may take at once (of
            ``"mcu"`` the whole arena it runs in); where they take more the budget is not met.
        max_flash: the same of the target's file; it is the budget where none is given.
        recipe: a named chain of stages in the place of methods, target and rounding: ``"deep-compression"`` prunes,
            shares and Huffman-codes, with the bytes of each stage in the record (`smidgen.pipeline.recipes`);
            ``"extreme"`` trains every weight as an integer with a price on its bits, for the smallest archives: it
            needs data, takes a size, ratio or max_drop, and ``train`` says how (`smidgen.pipeline.extreme`).
        train: train what the search found, to answer as the original does: labels are not needed. It is trained on all
            of ``data`` that is neither for selection nor for test; the best epoch by the selection inputs is kept, or
            none. Where points are promised, a plan that loses more than that untrained is tried first.
        checkpoint: file in which a training is kept while it runs, and from which it goes on; a second training has one
            beside it, whose name ends in ``.slower`` or ``.second``.
        gradual: with ``train`` and a pruning: remove weights little by little while it trains, the smallest first,
            in the place of all at once.
        mix: with ``train``, the share of the original's answers in what is learned; labels, where there are some, have
            the rest.
        progress: called with (stage, done, total).

    Returns:
        The smaller network, its plan and what was measured on the written file; ``met`` tells whether the budget was.

    Raises:
        UserError: for anything wrong with what was given.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> result = compress(net, example=torch.zeros(1, 64), budget=Budget(ratio=2))
    >>> result.record["files"]["onnx"]["nbytes"] * 2 <= result.record["original"]["nbytes"]
    True
    """
    started = time.perf_counter()
    if recipe is not None:
        said = {
            "methods": methods != "auto", "target": target not in ("onnx", ("onnx",)), "rounding": rounding is not None,
            "training": train is not None and recipe not in TRAINED,
        }  # fmt: skip
        cook = recipe_of(recipe, [name for name, given in said.items() if given], budget or Budget())
        trains = recipe in TRAINED
        task = open_task(model, data, test, weights, example, metric, threads, device, seed, trains=trains)
        _check_budget(budget or Budget(), task, "archive")
        told = with_training_of(recipe, settings or {}, train, checkpoint)
        return cook(task, told, budget or Budget(), refit, progress)
    targets = check_targets(target)
    most, flash = parse_limit("max_ram", max_ram), parse_limit("max_flash", max_flash)
    data = None if data is None else as_data(data)
    task = open_task(model, data, test, weights, example, metric, threads, device, seed)
    budget = budget or Budget(size=flash)
    check_given(targets, task.roles)
    _check_budget(budget, task, targets[0])
    recovery = None if train is None else recovery_of(task, data, train, checkpoint, gradual, mix)
    task = better_equalised(task, targets[0], progress)
    methods = prunings_named(settings) or methods if methods == "auto" else methods
    if methods == "auto" and budget.kind == "default" and bits_named(settings):
        methods = ()  # every layer as it is, at those bits: with factors the fewest bytes would be the least ranks
    options, chosen = candidates(task, methods, progress, settings, targets[0], rounding)
    check_ranks(options, chosen)
    if gradual:
        check_gradual(chosen.values(), targets[0], recovery)
    if pruning_chosen(chosen) and budget.kind != "default" and targets[0] in DENSE:
        raise BudgetError(f"budget: zeros make a dense file of {targets[0]} no smaller or faster; "
                          "give target onnx-sparse or archive, or no budget")  # fmt: skip
    with Threads(task.threads):
        # Zeros take as long as other weights: there is nothing to time.
        guard = (guards(budget, targets[0]) and not pruning_chosen(chosen)) if guard is None else guard
        if guard or budget.timed:
            options = with_times(options, task.threads, progress)
        work = Workshop(task, options, refit, progress, budget, targets=targets)
        options = guarded(options) if guard else options
        if recovery is None:
            outcome, told = search(work, budget, options, chosen), None
        else:
            find = partial(search, work, budget, options, chosen)
            outcome, told = trained(work, budget, recovery, find, promised(work, budget, options, chosen))
        result = work.finish(outcome, budget, time.perf_counter() - started)
        result = result if told is None else with_training(result, told)
        return with_sources(with_ledger(result, work.original, most, flash))


def guards(budget: Budget, target: str) -> bool:
    """Whether forms that measure slower than the layer they replace are left out, where nobody said.

    Where the file runs as it is and bytes are not what was asked for. A size or a ratio goes before time: the report
    says how fast its file is. Integers are for storing and sending.

    >>> guards(Budget(), "onnx"), guards(Budget(size="20 kB"), "onnx"), guards(Budget(), "archive")
    (True, False, False)
    """
    return budget.timed or (target == "onnx" and budget.kind not in ("size", "ratio"))


def apply(
    model: nn.Module | str | Path,
    plan: str,
    data: Data = None,
    *,
    test: Data = None,
    weights: str | Path | None = None,
    example: torch.Tensor | None = None,
    metric: str | Metric | None = None,
    refit: bool | None = None,
    threads: int | None = None,
    device: str = "cpu",
    seed: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Result:
    """Carry out a saved plan.

    Args:
        plan: text of a ``plan.json``.
        refit, seed: as in the run that made the plan when None.

    The other arguments are those of `compress`. The same data, seed and refit give the same file; the record's note
    says where one of them differs.

    Raises:
        PlanError: when the plan is damaged or belongs to another network.
    """
    started = time.perf_counter()
    parsed = plan_from_json(plan)
    trained = [name for name in parsed.settings if name in TRAINED]
    if trained:
        raise PlanError(f"plan: the recipe {trained[0]} trained what it tells of; run the recipe again with its seed")
    seed, refit = (parsed.seed if seed is None else seed), (parsed.refit if refit is None else refit)
    task = open_task(model, data, test, weights, example, metric, threads, device, seed)
    parsed.check(task.prepared.sites)
    check_given([parsed.target], task.roles)
    task = task if parsed.equalised is None else with_equalised(task, parsed.equalised)
    needed = sorted({c.method for c in parsed.choices if c.method is not None})
    targets = check_targets(parsed.target)
    rounding = next((name for name in parsed.settings if name in {**roundings(), **sharings()}), None)
    options, _ = candidates(task, needed, progress, parsed.settings, targets[0], rounding)
    with Threads(task.threads):
        mode = cast(Refit, parsed.moved) if any(c.rounded for c in parsed.choices) else None
        work = Workshop(task, options, refit, progress, targets=targets, mode=mode)
        trial = work.trial(replace(parsed, **work.circumstances))
        outcome = Outcome(trial, met=True, note=_differences(parsed, trial.plan))
        result = work.finish(outcome, Budget(), time.perf_counter() - started)
        return with_sources(with_ledger(result, work.original))


def promised(work: Workshop, budget: Budget, options: list[Options], chosen: Mapping[str, AnyMethod]) -> float | None:
    """The points of the metric that a search may lose at most, None where it is of something else."""
    if budget.kind != "default" or work.judge is None:
        return budget.points
    return None if named(options, chosen) else DEFAULT_POINTS


def named(options: list[Options], chosen: Mapping[str, AnyMethod]) -> bool:
    """Whether the user said how small each layer becomes: by a sparsity, a rank or a width."""
    # A step of rounding is for the price to find, as without pruning.
    stepped = any(label.step is not None for option in options for label in option.labels)
    if pruning_chosen(chosen) and not stepped:
        return True
    return bool(ranks_chosen(chosen)) or (bits_chosen(chosen) and not any(option.families for option in options))


def search(
    work: Workshop, budget: Budget, options: list[Options], chosen: Mapping[str, AnyMethod], looser: float = 1.0
) -> Outcome:
    """Find the plan whose written file meets a budget.

    Args:
        work: realises, writes and measures plans.
        budget: what to reach.
        options, chosen: from `candidates`.
        looser: times as many points may be lost: what training will regain.
    """

    def plan_at(price: float, price_ms: float = 0.0) -> Plan:
        return replace(allocate(options, price, chosen, price_ms), **work.circumstances)

    if budget.kind == "default" and named(options, chosen):
        pruned = pruning_chosen(chosen)
        plan = replace(pruned_plan(options, chosen), **work.circumstances) if pruned else plan_at(inf)
        return Outcome(work.trial(plan), met=True)
    if budget.timed:
        return _search_time(work, budget, options, lambda price_ms: plan_at(0.0, price_ms))
    middle = price_of_tradeoff(0.5, options) or 1.0
    if budget.kind == "tradeoff" or (budget.kind == "default" and work.judge is None):
        dial = DEFAULT_TRADEOFF if budget.tradeoff is None else budget.tradeoff
        return Outcome(work.trial(plan_at(price_of_tradeoff(dial, options))), met=True)
    if budget.kind == "size" or budget.kind == "ratio":
        limit = work.limit(budget) or 0
        return search_size(plan_at, work.trial, limit, middle, spend=lambda plan, spare: spend(options, plan, spare))
    points = DEFAULT_POINTS if budget.points is None else budget.points
    return search_drop(plan_at, work.trial, looser * points, middle)


def ranks_chosen(chosen: Mapping[str, AnyMethod]) -> list[str]:
    """The methods whose ranks are not chosen by the price."""
    return [name for name, method in chosen.items() if getattr(method.settings, "ranks", "price") != "price"]


def pruning_chosen(chosen: Mapping[str, AnyMethod]) -> bool:
    """Whether the user asked for single weights to be removed."""
    return any(isinstance(method, Pruning) for method in chosen.values())


def prunings_named(settings: Mapping[str, Mapping[str, Any]] | None) -> tuple[str, ...]:
    """The prunings that settings are given for.

    >>> prunings_named({"obs": {"sparsity": 0.7}}), prunings_named({"svd": {"rank": 3}})
    (('obs',), ())
    """
    return tuple(name for name in prunings() if name in (settings or {}))


def bits_named(settings: Mapping[str, Mapping[str, Any]] | None) -> bool:
    """Whether settings name the width of what is shared.

    >>> bits_named({"kmeans": {"bits": 5}}), bits_named({"kmeans": {"passes": 1}})
    (True, False)
    """
    return any((settings or {}).get(name, {}).get("bits") for name in sharings())


def bits_chosen(chosen: Mapping[str, AnyMethod]) -> bool:
    """Whether the user named the width of what is shared."""
    return any(getattr(method.settings, "bits", 0) for method in chosen.values())


def check_ranks(options: Sequence[Options], chosen: Mapping[str, AnyMethod]) -> None:
    """PlanError where the user chose a rank and no layer can take it."""
    for name in ranks_chosen(chosen):
        if any(name in option.families for option in options):
            continue
        reasons = dict.fromkeys(option.refusals[name] for option in options if name in option.refusals)
        shown = "; ".join(list(reasons)[:3])
        raise PlanError(f"compress: no layer takes {told_ranks(chosen[name].settings)}: {shown}")


def _search_time(work: Workshop, budget: Budget, options: list[Options], plan_at: PlanAt) -> Outcome:
    """The search where time has the price, in shares of the time that is asked for."""
    whole_ms = work.original_ms()

    def share(trial: Trial) -> float:
        assert trial.latency_ms is not None
        assert trial.speedup is not None
        return trial.latency_ms / budget.latency_ms if budget.latency_ms else (budget.faster or 1.0) / trial.speedup

    # A share of the limit in milliseconds by the layers' times.
    limit_ms = budget.latency_ms or whole_ms / (budget.faster or 1.0)
    layers_ms = sum(float(option.times[0]) for option in options if option.times is not None)
    return search_time(
        plan_at, work.trial, share, lambda plan: (whole_ms - saved_ms(options, plan)) / limit_ms,
        sum(option.worth for option in options) / max(layers_ms, 1e-9) or 1.0,
        spend=lambda plan, spare: spend_ms(options, plan, spare * limit_ms), asked=in_words(budget),
    )  # fmt: skip


def _differences(made: Plan, now: Plan) -> str:
    """What was not as in the run that made a plan, so that another file may come out."""
    told = []
    if now.data != made.data and None in (now.data, made.data):
        told.append(f"the plan was made {'without data' if made.data is None else 'with data, none are given'}")
    elif now.seed != made.seed:
        told.append(f"the plan was made with seed {made.seed}, which also divides the data")
    elif now.data != made.data:
        told.append("the calibration data differ from those the plan was made with")
    if now.refit != made.refit:
        told.append(f"the plan was made {'with' if made.refit else 'without'} refit")
    return "; ".join(told)


def _check_budget(budget: Budget, task: Task, target: str) -> None:
    if budget.timed and target == "mcu":
        raise BudgetError(f"budget: {budget.kind} cannot be asked of mcu: {UNTIMED}; give a size, ratio or max_drop")
    if budget.kind == "max_drop" and task.roles is None:
        raise BudgetError("budget: max_drop needs inputs to measure on; give --data, or a size, ratio or tradeoff")
