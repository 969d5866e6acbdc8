"""sweep(): the whole front in one run: one calibration, many prices, each plan a written and measured file.

    load → prepare → calibrate → candidates → ladder of plans → points, in parallel → choice → test, latency → report

Each finished point is a file of its own in ``points/``, known by what its plan does, so a run that was killed goes on,
and a finer one adds to what is there. Points are scored on the selection inputs, which alone choose; every written file
is scored once on the test inputs after that, and timed, one file at a time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smidgen.budget import FILES, Budget
from smidgen.errors import BudgetError, DataError, SmidgenError, UserError, one_line
from smidgen.measure.cost import file_cost
from smidgen.measure.scores import Metric
from smidgen.measure.speed import compare_speed
from smidgen.pipeline.equalise import better_equalised
from smidgen.pipeline.options import candidates
from smidgen.pipeline.running import Methods
from smidgen.pipeline.sweep_book import Book, Order, claim, identity, record_of
from smidgen.pipeline.sweep_jobs import Goods, Here, Parcel, at_home, closed, evaluate, forms_of, packed, scored
from smidgen.pipeline.targets import check_given, check_targets, runnable
from smidgen.pipeline.task import Data, Progress, Task, Threads, data_hash, one_input, open_task
from smidgen.pipeline.times import with_times
from smidgen.planning.candidates import Options
from smidgen.planning.front import JOINT, halving, plans_at, rungs, single_curves
from smidgen.planning.pace import guarded
from smidgen.planning.plan import plan_from_json
from smidgen.report.result import Scratch, writable_folder
from smidgen.report.sweep import Mark, Sweep

POINTS = 12
SINGLES = 3  # times fewer points of a single method's curve


def sweep(
    model: nn.Module | str | Path,
    data: Data = None,
    *,
    test: Data = None,
    validation: Data = None,
    folder: str | Path | None = None,
    points: int = POINTS,
    budget: Budget | None = None,
    marks: Sequence[Mark] = (),
    jobs: int = 1,
    executor: Executor | None = None,
    time_limit: float | None = None,
    weights: str | Path | None = None,
    example: torch.Tensor | None = None,
    methods: Methods = "auto",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    target: str = "onnx",
    rounding: str | None = None,
    metric: str | Metric | None = None,
    refit: bool = True,
    threads: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    guard: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Sweep:
    """Compress a trained network to many sizes: what every size costs.

    Args:
        model, data, test, validation, weights, example, methods, settings, target, rounding, metric, refit, threads,
        device, seed: see `smidgen.compress`; inputs are needed, and there is one target.
        folder: where finished points are kept while it runs, and from which it goes on; a temporary one when None.
        points: of the joint plan's curve; each single method has a third as many.
        budget: which point is chosen: the best within a size or ratio, the smallest within max_drop; by default the
            one where the front bends most.
        marks: points of others to show beside.
        jobs: processes that points run in. More than one need a program that can be imported (a script's work under
            ``if __name__ == "__main__":``).
        executor: runs the points in their place, on a cluster perhaps: any `concurrent.futures.Executor`.
        time_limit: seconds after which no more points are begun; what is there is scored, timed and kept.
        guard: leave out forms that measure slower than the layer they replace.
        progress: called with (stage, done, total).

    Returns:
        The points and the one chosen.

    Raises:
        UserError: for anything wrong with what was given.

    >>> import numpy as np
    >>> net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> found = sweep(net, [np.random.default_rng(0).normal(size=(60, 32)).astype("f4")], points=3, methods="svd")
    >>> len(found.record["points"]), found.record["chosen"] in [p["name"] for p in found.record["points"]]
    (3, True)
    """
    started = time.monotonic()
    _check(points, jobs, time_limit, data, budget)
    (target,) = check_targets(target)
    scratch = Scratch() if folder is None else None
    place = scratch.path if scratch is not None else writable_folder(Path(str(folder)))
    task = open_task(model, data, test, weights, example, metric, threads, device, seed, validation=validation)
    check_given([target], task.roles)
    task = better_equalised(task, target, progress)
    options, chosen = candidates(task, methods, progress, settings, target, rounding)
    if guard:
        options = guarded(with_times(options, task.threads, progress))
    original = _original(task, place)
    circumstances = {
        "seed": seed, "refit": refit, "data": data_hash(task.roles), "target": target, "equalised": task.equalised,
    }  # fmt: skip
    claim(place, identity(task, original, circumstances, chosen, guard))
    orders, asked = _orders(options, chosen, points)
    code = str(model) if isinstance(model, str) and ":" in model and not Path(model).exists() else None
    named = metric if isinstance(metric, str) else None
    goods = Goods(
        replace(task, metric=None) if named else task,
        {o.site.name: o.precision for o in options if o.precision is not None},
        target, refit, circumstances, original.read_bytes(), named,
    )  # fmt: skip
    book = Book(place, FILES[target].removeprefix("model"))
    deadline = None if time_limit is None else started + time_limit
    with _crew(goods, code, executor, jobs, place) as (crew, parcel, busy, note):
        _evaluated(orders, book, crew, parcel, busy, deadline, progress)
        done = [order for order in orders if book.entry(order.key) is not None]
        if not done:
            raise SmidgenError("sweep: no point was finished within the time limit; give a longer one")
        _tested(done, book, crew, parcel, busy, progress)
    _timed(done, book, original, task, target, progress)
    record = record_of(task, done, book, original, target, budget, marks, options)
    record |= {
        "points_asked": points, "left": len(orders) - len(done), "jobs": busy, "seconds": time.monotonic() - started,
        "note": note, "refit": refit, "rungs": asked,
    }  # fmt: skip
    return Sweep(record, place, scratch)


def _check(points: int, jobs: int, time_limit: float | None, data: Data, budget: Budget | None) -> None:
    if data is None:
        raise DataError("sweep: it needs inputs to calibrate and to measure on; give --data")
    if not 2 <= points <= 1000:
        raise UserError(f"sweep: {points} points are not between 2 and 1000; leave --points out for {POINTS}")
    if not 1 <= jobs <= 256:
        raise UserError(f"sweep: {jobs} processes are not between 1 and 256; leave --jobs out for all processors")
    if time_limit is not None and not time_limit > 0:
        raise UserError(f"sweep: a time limit of {time_limit:g} s leaves no time; give e.g. 10m")
    if budget is not None and budget.kind not in ("size", "ratio", "max_drop", "default"):
        raise BudgetError(f"sweep: no point is chosen by {budget.kind}; give a size, ratio or max_drop, or nothing")


def _original(task: Task, place: Path) -> Path:
    """The given ONNX file, else the network as it is, written by us."""
    from smidgen.export.onnx import write
    from smidgen.report.result import ORIGINAL
    from smidgen.site import untouched

    if task.network.source is not None:
        return task.network.source
    sites = task.prepared.sites
    write(task.prepared.base, sites, {site.name: untouched(site) for site in sites}, place / ORIGINAL)
    return place / ORIGINAL


def _orders(options: Sequence[Options], chosen: Mapping[str, Any], points: int) -> tuple[list[Order], list[int]]:
    """What is to be carried out, the joint plan's curve first, each curve from coarse to fine; and the rungs."""
    sizes = rungs(options, chosen, points)
    curves = {JOINT: (options, sizes)}
    few = max(2, -(-points // SINGLES))
    for name, alone in single_curves(options).items():
        least = sum(int(each.sizes.min()) for each in alone)
        within = [size for size in sizes if size >= least] or [least]
        steps = sorted({round(i * (len(within) - 1) / max(1, few - 1)) for i in range(few)})
        curves[name] = (alone, [within[i] for i in steps])
    found: dict[Any, Order] = {}
    for name, (those, bytes_) in curves.items():
        plans = plans_at(those, chosen, bytes_)
        for i in halving(len(plans)) if plans else []:
            plan = plans[i]
            known = found.get(plan.key)
            if known is not None:
                found[plan.key] = replace(known, curves=tuple(dict.fromkeys((*known.curves, name))))
            else:
                found[plan.key] = Order(f"{name}-{i + 1:02d}", (name,), plan, those)
    return list(found.values()), sizes


@contextmanager
def _crew(
    goods: Goods, code: str | None, executor: Executor | None, jobs: int, place: Path
) -> Iterator[tuple[Executor, Parcel, int, str]]:
    """What runs the points, the parcel for it, how many at a time, and what to say of that."""
    note, parcel = "", None
    if executor is not None or jobs > 1:
        alone = replace(goods, task=replace(goods.task, threads=max(1, goods.task.threads // jobs)))
        try:
            parcel = packed(alone, code, None if executor is not None else place)
        except Exception as error:  # whatever a user's class raises when it is pickled
            note = f"the points ran in one process: the network cannot travel to others ({one_line(error, 100)})"
    if parcel is None:
        parcel = at_home(goods)
        try:
            yield Here(), parcel, 1, note
        finally:
            closed(parcel)
    elif executor is not None:
        yield executor, parcel, max(jobs, 2 * (os.cpu_count() or 1)), note
    else:
        spawn = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_worker) as pool:
                yield pool, parcel, jobs, note
        finally:
            Path(str(parcel.path)).unlink(missing_ok=True)


def _worker() -> None:
    """Ctrl-C is for the parent, which lets the points that are being worked on finish."""
    import warnings

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")


def _each(
    calls: Sequence[tuple[Any, ...]], crew: Executor, busy: int, deadline: float | None = None
) -> Iterator[tuple[Any, Any]]:
    """What calls give, (name, function, arguments …), so many at a time and in the order they finish."""
    waiting = list(calls)
    running: dict[Future[Any], Any] = {}
    try:
        while waiting or running:
            late = deadline is not None and time.monotonic() > deadline
            while waiting and len(running) < busy and not late:
                name, call, *arguments = waiting.pop(0)
                prepared = [each() if callable(each) else each for each in arguments]
                running[crew.submit(call, *prepared)] = name
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()
    except BrokenExecutor as error:
        raise UserError(
            "sweep: a process that worked on a point died, of too little memory perhaps; finished points are kept: go "
            "on with fewer --jobs"
        ) from error
    finally:
        for future in running:
            future.cancel()


def _evaluated(
    orders: Sequence[Order], book: Book, crew: Executor, parcel: Parcel, busy: int, deadline: float | None,
    progress: Progress,
) -> None:  # fmt: skip
    """All points that are not in the book, until the deadline."""
    missing = [order for order in orders if book.entry(order.key) is None]
    total = len(orders)
    by_key = {order.key: order for order in missing}
    mode = None
    # What a refit moves in layers of integers the first point finds by measurement, and all others take over.
    integers = any(choice.rounded for order in orders for choice in order.plan.choices)
    told = [entry for order in orders if (entry := book.entry(order.key)) is not None]
    if integers and told:
        mode = plan_from_json(told[0]["plan"]).moved

    def call(order: Order) -> tuple[Any, ...]:
        return (order.key, evaluate, parcel, order.plan.to_json(), _later(forms_of, order.options, order.plan), mode)

    first = missing[:1] if integers and mode is None else []
    rest = missing[len(first) :]
    for part in (first, rest):
        for key, found in _each([call(order) for order in part], crew, busy, deadline):
            content = found.pop("file")
            book.add(key, {"name": by_key[key].name, **found}, content)
            if integers and mode is None:
                mode = plan_from_json(found["plan"]).moved
            finished = sum(book.entry(order.key) is not None for order in orders)
            progress("points", finished, total)


def _later(call: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """A call for when its turn comes: forms of points that wait need no memory."""
    return lambda: call(*arguments)


def _tested(done: Sequence[Order], book: Book, crew: Executor, parcel: Parcel, busy: int, progress: Progress) -> None:
    """Each written file on the test inputs, once."""
    missing = [order for order in done if "test" not in (book.entry(order.key) or {})]
    calls = [(order.key, scored, parcel, _later(book.file(order.key).read_bytes)) for order in missing]
    for count, (key, found) in enumerate(_each(calls, crew, busy)):
        book.add(key, {**(book.entry(key) or {}), "test": found})
        progress("test", count + 1, len(missing))


def _timed(done: Sequence[Order], book: Book, original: Path, task: Task, target: str, progress: Progress) -> None:
    """Each written file in turns with the original, one at a time, and what it computes."""
    missing = [order for order in done if "macs" not in (book.entry(order.key) or {})]
    for count, order in enumerate(missing):
        file = runnable(target, book.file(order.key))
        params, macs = file_cost(file)
        found: dict[str, Any] = {"params": params, "macs": macs}
        if target != "mcu":
            with Threads(task.threads):
                before, after = compare_speed(original, file, one_input(task), task.threads)
            found |= {
                "latency_ms": after.median_ms, "speedup": after.speedup, "speedup_error": after.error,
                "original_ms": before.median_ms,
            }  # fmt: skip
        if file != book.file(order.key):
            file.unlink()
        book.add(order.key, {**(book.entry(order.key) or {}), **found})
        progress("latency", count + 1, len(missing))
