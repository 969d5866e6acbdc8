"""compress(): the stages in order, each frozen in, frozen out.

    load → prepare → calibrate → candidates → plan → realise → export → measure → report

The search for the price λ is in `running.py`; with `channels` among the methods it runs twice, on the network as it is
and on what is left of it, and the better one is taken (`channels.py`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from smidgen.budget import Budget
from smidgen.errors import BudgetError, PlanError
from smidgen.measure.scores import Metric
from smidgen.methods import roundings, sharings
from smidgen.pipeline.channels import again_without, run_with_channels, split_channels
from smidgen.pipeline.equalise import with_equalised
from smidgen.pipeline.ledger import parse_limit, with_ledger
from smidgen.pipeline.micro import with_sources
from smidgen.pipeline.options import candidates
from smidgen.pipeline.recipes import TRAINED, recipe_of, with_training_of
from smidgen.pipeline.recover import recovery_of, with_training
from smidgen.pipeline.running import Asked, Methods, guards, run, search
from smidgen.pipeline.targets import check_given, check_targets
from smidgen.pipeline.task import Data, Progress, Task, Threads, as_data, open_task
from smidgen.pipeline.workshop import Workshop
from smidgen.planning.plan import Plan, plan_from_json
from smidgen.planning.realise import Refit
from smidgen.planning.search import Outcome
from smidgen.recover.training import Training
from smidgen.report.record import UNTIMED
from smidgen.report.result import Result

__all__ = ["Task", "Workshop", "apply", "candidates", "compress", "guards", "open_task", "search"]


def compress(
    model: nn.Module | str | Path,
    data: Data = None,
    *,
    budget: Budget | None = None,
    test: Data = None,
    weights: str | Path | None = None,
    example: torch.Tensor | None = None,
    methods: Methods = "auto",
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
            ``"channels"`` beside others, as in ``["auto", "channels"]``, weighs whole channels against them
            (`smidgen.pipeline.channels`).
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
    others, cutting = split_channels(methods, settings or {})
    if cutting is not None and recovery is not None:
        raise PlanError("train: channels are weighed without training; cut with smidgen prune first, then train")
    asked = Asked(budget, targets, others, settings, rounding, refit, guard, recovery, gradual, progress)
    with Threads(task.threads):
        done = run(task, asked) if cutting is None else run_with_channels(task, asked, cutting)
        result = done.work.finish(done.outcome, budget, time.perf_counter() - started)
        result = replace(result, record={**result.record, **done.beside})
        result = result if done.training is None else with_training(result, done.training)
        return with_sources(with_ledger(result, done.work.original, most, flash))


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
    if parsed.cut is not None:
        task = again_without(task, parsed.cut, refit, progress)
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
