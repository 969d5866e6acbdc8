"""compress(): the stages in order, each frozen in, frozen out.

    load → prepare → calibrate → candidates → plan → realise → export → measure → report

The search for the price λ is in `running.py`; with `channels` among the methods it runs twice, on the network as it is
and on what is left of it, and the better one is taken (`channels.py`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from smidgen.budget import Budget
from smidgen.errors import BudgetError, PlanError, UserError
from smidgen.measure.scores import Metric
from smidgen.methods import roundings, sharings
from smidgen.pipeline.activations import check_rounding
from smidgen.pipeline.channels import again_without, run_with_channels, split_channels
from smidgen.pipeline.equalise import with_equalised
from smidgen.pipeline.ledger import parse_limit, with_ledger
from smidgen.pipeline.micro import with_sources
from smidgen.pipeline.options import candidates, rounding_for
from smidgen.pipeline.recipes import TRAINED, recipe_of, with_training_of
from smidgen.pipeline.recover import check_reassign, recovery_of
from smidgen.pipeline.running import Asked, Methods, concluded, guards, run, search
from smidgen.pipeline.targets import check_given, check_targets
from smidgen.pipeline.task import Data, Progress, Task, Threads, as_data, open_task
from smidgen.pipeline.workshop import Workshop
from smidgen.planning.fastconv import with_fast
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
    validation: Data = None,
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
    reassign: bool = False,
    round_activations: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Result:
    """Make a trained network smaller within a budget.

    Args:
        model: a module, an ``.onnx`` or ``.pt2`` file, or ``file.py:factory``.
        data: inputs, labels optional: a path, a `Dataset`, or any iterable of batches ``[n, …]``; None for none.
        budget: what to reach; by default the smallest file that agrees with the original on 99 % of the selection
            inputs, and the middle of the trade-off dial when there is no data.
        test: inputs scored once at the end; a fifth of ``data`` is held back when None.
        validation: inputs that choose between plans, and between epochs where something is trained; a fifth of
            ``data`` is held back when None. They tell most where the network was not trained on them.
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
        recipe: a named chain of stages, with the bytes of each in the record (`smidgen.pipeline.recipes`).
            ``"deep-compression"`` prunes, shares and Huffman-codes, in the place of methods, target and rounding; with
            ``train`` the pruning is gradual and the shared values are trained. ``"distil"`` is ``train`` with its
            defaults, of whatever plan the other arguments ask for. ``"extreme"`` trains every weight as an integer
            with a price on its bits, for the smallest archives: it needs data, takes a size, ratio or max_drop, and
            ``train`` says how (`smidgen.pipeline.extreme`).
        train: train what the search found, to answer as the original does: labels are not needed. It is trained on all
            of ``data`` that is neither for selection nor for test; the best epoch by the selection inputs is kept, or
            none. Where points are promised, a plan that loses more than that untrained is tried first.
        checkpoint: file in which a training is kept while it runs, and from which it goes on; a second training has one
            beside it, whose name ends in ``.slower`` or ``.second``.
        gradual: with ``train`` and a pruning: remove weights little by little while it trains, the smallest first,
            in the place of all at once.
        mix: with ``train``, the share of the original's answers in what is learned; labels, where there are some, have
            the rest.
        reassign: with ``train``, shared weights may take other values of their layer's while those are trained, once an
            epoch (`smidgen.recover.centroids`).
        round_activations: with ``train`` and a target that computes in integers, round activations while it trains as
            the file will; a file of ``"onnx-int8"`` then has the very ranges (`smidgen.pipeline.activations`).
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
    flash = parse_limit("max_flash", max_flash)
    said = {
        "methods": methods != "auto", "target": target not in ("onnx", ("onnx",)), "rounding": rounding is not None,
        "guard": guard is not None, "gradual": gradual, "mix": mix != 1, "reassign": reassign,
        "round_activations": round_activations,
    }  # fmt: skip
    chosen = None
    if recipe is not None:
        chosen = recipe_of(recipe, [name for name, given in said.items() if given], budget, settings or {})
        target = "archive" if "target" in chosen.says else target
        train = chosen.training if train is None and not chosen.whole else train
    _check_trained(train is not None or (chosen is not None and chosen.whole), mix, checkpoint)
    targets = check_targets(target)
    data = None if data is None else as_data(data)
    whole = chosen is not None and chosen.whole
    told = with_training_of(recipe, settings or {}, train, checkpoint)
    task = open_task(
        model, data, test, weights, example, metric, threads, device, seed, validation=validation, trains=whole,
        hold_back=told.get("training", {}).get("hold_back") if train is None else train.hold_back,
    )  # fmt: skip
    limited = flash if chosen is None or chosen.budgets is None or "size" in chosen.budgets else None
    budget = budget or Budget(size=limited)
    check_given(targets, task.roles)
    _check_budget(budget, task, targets[0])
    recovery = (
        None
        if train is None or whole
        else recovery_of(task, train, checkpoint, gradual, mix, reassign, round_activations)
    )
    others, cutting = split_channels(methods, settings or {})
    if cutting is not None and recovery is not None:
        raise PlanError("train: channels are weighed without training; cut with smidgen prune first, then train")
    if round_activations:
        check_rounding(targets[0], recovery is not None)
    if reassign:
        shares = chosen is not None and "rounding" in chosen.says  # by itself
        check_reassign(rounding_for(targets[0], "kmeans" if shares else rounding, settings or {}), recovery)
    asked = Asked(
        budget, targets, others, told, rounding, refit, guard, recovery, gradual, progress,
        parse_limit("max_ram", max_ram), flash,
    )  # fmt: skip
    if chosen is not None:
        return chosen.cook(task, asked)
    with Threads(task.threads):
        done = run(task, asked) if cutting is None else run_with_channels(task, asked, cutting)
        return concluded(done, asked, started)


def apply(
    model: nn.Module | str | Path,
    plan: str,
    data: Data = None,
    *,
    test: Data = None,
    validation: Data = None,
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
    task = open_task(model, data, test, weights, example, metric, threads, device, seed, validation=validation)
    if parsed.cut is not None:
        task = again_without(task, parsed.cut, refit, progress)
    parsed.check(task.prepared.sites)
    check_given([parsed.target], task.roles)
    task = task if parsed.equalised is None else with_equalised(task, parsed.equalised)
    needed = sorted({c.method for c in parsed.choices if c.method is not None and not c.fast})
    targets = check_targets(parsed.target)
    rounding = next((name for name in parsed.settings if name in {**roundings(), **sharings()}), None)
    options, _ = candidates(task, needed, progress, parsed.settings, targets[0], rounding)
    fast = {str(c.method) for c in parsed.choices if c.fast}
    options = with_fast(options, fast)
    with Threads(task.threads):
        mode = cast(Refit, parsed.moved) if any(c.rounded for c in parsed.choices) else None
        # Whoever made a plan with larger kernels allowed for them.
        most = sys.maxsize if fast else None
        work = Workshop(task, options, refit, progress, targets=targets, mode=mode, most=most)
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


def _check_trained(trains: bool, mix: float, checkpoint: str | Path | None) -> None:
    """UserError where how to train is told and nothing is trained; `check_gradual` says so of ``gradual``."""
    for name, given in (("mix", mix != 1), ("checkpoint", checkpoint is not None)):
        if given and not trains:
            raise UserError(f"train: {name} is given and nothing is trained; give train=Training(), or leave it out")


def _check_budget(budget: Budget, task: Task, target: str) -> None:
    if budget.timed and target == "mcu":
        raise BudgetError(f"budget: {budget.kind} cannot be asked of mcu: {UNTIMED}; give a size, ratio or max_drop")
    if budget.kind == "max_drop" and task.roles is None:
        raise BudgetError("budget: max_drop needs inputs to measure on; give --data, or a size, ratio or tradeoff")
