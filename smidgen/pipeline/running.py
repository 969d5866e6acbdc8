"""One run from a task to the plan whose file meets the budget: candidates → plan → realise, until it does.

The search for the price λ is in plain sight: `planning.search` is given a function that realises a plan, writes the
file, runs it in its runtime on the selection inputs, and says what it measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from smidgen.budget import Budget
from smidgen.errors import BudgetError, PlanError
from smidgen.forms import FLOATS, STATIC
from smidgen.methods import AnyMethod, Pruning, prunings, sharings
from smidgen.methods._ranks import told_ranks
from smidgen.pipeline.equalise import better_equalised
from smidgen.pipeline.fast_files import with_gaining
from smidgen.pipeline.ledger import with_ledger
from smidgen.pipeline.micro import with_sources
from smidgen.pipeline.options import candidates
from smidgen.pipeline.recover import Recovery, check_gradual, trained
from smidgen.pipeline.task import Progress, Task
from smidgen.pipeline.times import with_times
from smidgen.pipeline.workshop import Workshop, in_words
from smidgen.planning.allocate import allocate, price_of_tradeoff, spend
from smidgen.planning.candidates import Options
from smidgen.planning.compute import macs_of, plan_within, with_macs
from smidgen.planning.fastconv import with_fast
from smidgen.planning.front import MILD
from smidgen.planning.pace import guarded, saved_ms
from smidgen.planning.plan import Plan
from smidgen.planning.search import Outcome, Trial, cheapest, search_drop, search_size
from smidgen.planning.search_time import search_time
from smidgen.planning.sparsity import pruned_plan
from smidgen.report.result import Result
from smidgen.report.table import DENSE
from smidgen.report.training import with_training
from smidgen.site import Curvature

DEFAULT_POINTS = 1.0  # with no budget given: the smallest file that agrees on 99 % of the selection inputs
DEFAULT_TRADEOFF = 0.5  # with no budget and no data
DEAREST = 1e9  # times the middle price of a millisecond: only time counts, and bytes may still have a price

Methods = str | Sequence[str] | Mapping[str, Sequence[str]]


@dataclass(frozen=True, eq=False)
class Asked:
    """What a user asked of a task; see `smidgen.compress`."""

    budget: Budget
    targets: tuple[str, ...]
    methods: Methods = "auto"
    settings: Mapping[str, Mapping[str, Any]] | None = None
    rounding: str | None = None
    refit: bool = True
    guard: bool | None = None
    recovery: Recovery | None = None
    gradual: bool = False
    progress: Progress = lambda stage, done, total: None
    max_ram: int | None = None
    max_flash: int | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """A finished search.

    Args:
        task: what was worked on; its channels may have been equalised.
        work: what realised and measured.
        options, chosen: from `candidates`.
        outcome: where it ended.
        beside: what the record says of it beside.
        training: what the record says of a training, where there was one.
    """

    task: Task
    work: Workshop
    options: list[Options]
    chosen: Mapping[str, AnyMethod]
    outcome: Outcome
    beside: Mapping[str, Any] = field(default_factory=dict)
    training: dict[str, Any] | None = None


def run(task: Task, asked: Asked, curvatures: Mapping[str, Curvature] | None = None) -> Run:
    """Find the plan that meets a budget.

    Args:
        task: from `open_task`.
        asked: what to reach, and by what.
        curvatures: from `smidgen.pipeline.options.curvatures_of`, where they are known already.
    """
    budget, target, methods, progress = asked.budget, asked.targets[0], asked.methods, asked.progress
    equalised = better_equalised(task, target, progress)
    if equalised is not task:
        task, curvatures = equalised, None
    methods = prunings_named(asked.settings) or methods if methods == "auto" else methods
    if methods == "auto" and budget.kind == "default" and bits_named(asked.settings):
        methods = ()  # every layer as it is, at those bits: with factors the fewest bytes would be the least ranks
    options, chosen = candidates(
        task, methods, progress, asked.settings, target, asked.rounding, curvatures=curvatures
    )  # fmt: skip
    check_ranks(options, chosen)
    if asked.gradual:
        check_gradual(chosen.values(), target, asked.recovery)
    if pruning_chosen(chosen) and budget.kind != "default" and target in DENSE:
        raise BudgetError(f"budget: zeros make a dense file of {target} no smaller or faster; "
                          "give target onnx-sparse or archive, or no budget")  # fmt: skip
    if pruning_chosen(chosen) and budget.share:
        raise BudgetError("budget: zeros are multiplied like other weights, so macs cannot be asked of single weights "
                          "removed; cut channels (--methods auto,channels)")  # fmt: skip
    # Zeros take as long as other weights: there is nothing to time.
    guard = (guards(budget, target) and not pruning_chosen(chosen)) if asked.guard is None else asked.guard
    fast = budget.timed and target == "onnx" and asked.methods == "auto"
    options = with_fast(options) if fast else options
    if guard or budget.timed:
        options = with_times(options, task.threads, progress)
    most = asked.max_flash if budget.timed else None
    work = Workshop(task, options, asked.refit, progress, budget, targets=asked.targets, most=most)
    if fast:
        options = with_gaining(task, options, work.original, work.folder.path, progress)
    allowed = guarded(options) if guard else options
    allowed = with_macs(allowed) if budget.share else allowed
    if asked.recovery is None:
        return Run(task, work, allowed, chosen, search(work, budget, allowed, chosen))

    def find(looser: float, of: Budget) -> Outcome:
        return search(work, of, allowed, chosen, looser)

    outcome, told = trained(work, budget, asked.recovery, find, promised(work, budget, allowed, chosen))
    return Run(task, work, allowed, chosen, outcome, training=told)


def concluded(done: Run, asked: Asked, started: float) -> Result:
    """The files of a finished search, written and measured.

    Args:
        done: from `run`.
        asked: what it was to reach.
        started: by `time.perf_counter`.
    """
    result = done.work.finish(done.outcome, asked.budget, time.perf_counter() - started)
    result = replace(result, record={**result.record, **done.beside})
    result = result if done.training is None else with_training(result, done.training)
    return with_sources(with_ledger(result, done.work.original, asked.max_ram, asked.max_flash))


def guards(budget: Budget, target: str) -> bool:
    """Whether forms that measure slower than the layer they replace are left out, where nobody said.

    Where the file runs as it is and bytes are not what was asked for. A size or a ratio goes before time: the report
    says how fast its file is. Integers are for storing and sending.

    >>> guards(Budget(), "onnx"), guards(Budget(size="20 kB"), "onnx"), guards(Budget(), "archive")
    (True, False, False)
    """
    return budget.timed or (target == "onnx" and budget.kind not in ("size", "ratio"))


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

    def plan_at(price: float, price_ms: float = 0.0, price_mac: float = 0.0) -> Plan:
        return replace(allocate(options, price, chosen, price_ms, price_mac), **work.circumstances)

    if budget.kind == "default" and named(options, chosen):
        pruned = pruning_chosen(chosen)
        plan = replace(pruned_plan(options, chosen), **work.circumstances) if pruned else plan_at(inf)
        return Outcome(work.trial(plan), met=True)
    if budget.timed:
        return _search_time(work, budget, options, plan_at)
    if budget.share:
        least = _least_price(work, options)
        return _search_macs(work, budget.share, options, lambda price: plan_at(least, 0.0, price))
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


def _search_time(
    work: Workshop, budget: Budget, options: list[Options], plan_at: Callable[[float, float], Plan]
) -> Outcome:
    """The search where time has the price, in shares of the time that is asked for; bytes keep to a limit."""
    whole_ms, most, least = work.original_ms, work.most_of(options), _least_price(work, options)

    def share(trial: Trial) -> float:
        assert trial.latency_ms is not None
        assert trial.speedup is not None
        return trial.latency_ms / budget.latency_ms if budget.latency_ms else (budget.faster or 1.0) / trial.speedup

    # A share of the limit in milliseconds by the layers' times.
    limit_ms = budget.latency_ms or whole_ms / (budget.faster or 1.0)
    layers_ms = sum(float(option.times[0]) for option in options if option.times is not None)
    middle = price_of_tradeoff(0.5, options) or 1.0
    middle_ms = sum(option.worth for option in options) / max(layers_ms, 1e-9) or 1.0

    def within(price_ms: float) -> Plan:
        plan = plan_at(least, price_ms)
        if plan.nbytes <= most:
            return plan
        # Kernels of fast convolutions are larger: bytes get the lowest price at which the file is small enough.
        price_ms = min(price_ms, DEAREST * middle_ms)
        return cheapest(lambda price: plan_at(least + price, price_ms), lambda plan: plan.nbytes <= most, middle)

    return search_time(
        within, work.trial, share, lambda plan: (whole_ms - saved_ms(options, plan)) / limit_ms, middle_ms,
        spend=lambda plan, spare: spend(
            options, plan, spare * limit_ms, [option.times for option in options], most - plan.nbytes
        ),
        asked=in_words(budget),
    )  # fmt: skip


def _least_price(work: Workshop, options: list[Options]) -> float:
    """The price of bytes where something else is budgeted: a mild one where integers are a choice, else none.

    Such a file was asked for to be small; without a price every layer that is fast enough would keep its floats.
    """
    return 0.0 if work.targets[0] in (*FLOATS, *STATIC) else price_of_tradeoff(MILD, options)


def _search_macs(work: Workshop, share: float, options: list[Options], plan_at: Callable[[float], Plan]) -> Outcome:
    """The plan whose file has the share of the original's multiply-accumulates: counted, so one file is written."""
    whole, beside = work.original_macs, work.macs_beside
    plan = plan_within(plan_at, options, share * whole - beside)
    left, trial = (macs_of(options, plan) + beside) / whole, work.trial(plan)
    note = f"the fewest multiply-accumulates found are {left:.1%} of the original's, asked were {share:.1%}"
    return Outcome(trial, left <= share, (trial,), "" if left <= share else note)
