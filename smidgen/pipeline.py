"""compress(): the stages in order, each frozen in, frozen out.

    load → prepare → calibrate → candidates → plan → realise → export → measure → report

The search for the price λ is in plain sight: `planning.search` is given a function that realises a plan, writes the
file, runs it in its runtime on the selection inputs, and says what it measured.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from smidgen.budget import Budget, format_size
from smidgen.calibrate.curvature import collect
from smidgen.data import Dataset, Roles, as_dataset, check_inputs, check_labels, open_data, split_roles
from smidgen.errors import BudgetError, DataError, VerificationError
from smidgen.export.onnx import write
from smidgen.export.prepare import Prepared, prepare
from smidgen.measure.scores import Judge, Metric, load_metric
from smidgen.methods import Method, choose_methods
from smidgen.model.load import Network, load_network
from smidgen.planning.allocate import allocate, price_of_tradeoff
from smidgen.planning.candidates import Options, gather
from smidgen.planning.plan import Plan, plan_from_json
from smidgen.planning.realise import Realised, realise, references
from smidgen.planning.search import Outcome, Trial, search_drop, search_size
from smidgen.report.record import measure_files, record
from smidgen.report.result import Result, Scratch
from smidgen.runtimes.onnxruntime import open_onnx, run_dataset
from smidgen.site import untouched

BATCH = 32  # inputs a forward pass; small enough for one layer's im2col on a small machine
REFIT_INPUTS = 512  # calibration inputs a refit uses at most …
REFIT_NBYTES = 128 << 20  # … and their bytes, since they are kept in memory
DEFAULT_AGREEMENT = 1.0  # points: with no budget given, the smallest file that agrees on 99 % of the selection inputs
TOLERANCE = 1e-3  # largest difference between the written file and the torch model, as a share of the largest output

Data = Any
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Task:
    """Everything a run works on, opened and checked."""

    network: Network
    prepared: Prepared
    roles: Roles | None
    test: Dataset | None
    example: torch.Tensor
    metric: Metric | None
    threads: int
    device: str
    seed: int


def compress(
    model: nn.Module | str | Path,
    data: Data = None,
    *,
    budget: Budget | None = None,
    test: Data = None,
    weights: str | Path | None = None,
    example: torch.Tensor | None = None,
    methods: str | Sequence[str] | Mapping[str, Sequence[str]] = "auto",
    metric: str | Metric | None = None,
    refit: bool = True,
    threads: int | None = None,
    device: str = "cpu",
    seed: int = 0,
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
        methods: ``"auto"`` for all, names, or names by layer kind: ``{"linear": ["svd"], "conv": ["cp"]}``.
        metric: replaces accuracy: a function ``(outputs, labels) → float``, higher is better, or ``file.py:function``.
        refit: refit each layer on what the compressed layers before it produce (needs data).
        threads: for torch and onnxruntime; what torch uses when None.
        device: where curvature, methods and refits compute.
        seed: of everything drawn.
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
    task = open_task(model, data, test, weights, example, metric, threads, device, seed)
    _check_budget(budget or Budget(), task)
    options, chosen = candidates(task, methods, progress)
    with _threads(task.threads):
        work = Workshop(task, options, refit, progress)
        outcome = _search(work, budget or Budget(), options, chosen)
        return work.finish(outcome, budget or Budget(), time.perf_counter() - started)


def apply(
    model: nn.Module | str | Path,
    plan: str,
    data: Data = None,
    *,
    test: Data = None,
    weights: str | Path | None = None,
    example: torch.Tensor | None = None,
    metric: str | Metric | None = None,
    refit: bool = True,
    threads: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Result:
    """Carry out a saved plan.

    Args:
        plan: text of a ``plan.json``.

    The other arguments are those of `compress`.

    Raises:
        PlanError: when the plan is damaged or belongs to another network.
    """
    started = time.perf_counter()
    task = open_task(model, data, test, weights, example, metric, threads, device, seed)
    parsed = plan_from_json(plan, task.prepared.sites)
    needed = sorted({c.method for c in parsed.choices if c.method is not None})
    options, _ = candidates(task, needed, progress, parsed.settings)
    with _threads(task.threads):
        work = Workshop(task, options, refit, progress)
        return work.finish(Outcome(work.trial(parsed), met=True), Budget(), time.perf_counter() - started)


def open_task(
    model: nn.Module | str | Path,
    data: Data,
    test: Data,
    weights: str | Path | None,
    example: torch.Tensor | None,
    metric: str | Metric | None,
    threads: int | None,
    device: str,
    seed: int,
) -> Task:
    """Open and check everything before any work starts; see `compress` for the arguments."""
    network = load_network(model, weights)
    given, kept = (None if d is None else _as_data(d) for d in (data, test))
    for one in (given, kept):
        if one is not None and network.input_shape:
            check_inputs(one, network.input_shape)
    roles = None if given is None else split_roles(given, test=kept, seed=seed)
    example = _example(network, given or kept, example)
    prepared = prepare(network, example)
    _check_classes(prepared, given, kept, example, metric)
    if isinstance(metric, str):
        metric = load_metric(metric)
    prepared.module.to(device)
    return Task(
        network, prepared, roles, roles.test if roles else kept, example, metric, threads or torch.get_num_threads(),
        device, seed,
    )  # fmt: skip


def candidates(
    task: Task,
    methods: str | Sequence[str] | Mapping[str, Sequence[str]],
    progress: Progress = lambda stage, done, total: None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[list[Options], dict[str, Method]]:
    """Curvature, and every form every site could take.

    Args:
        task: from `open_task`.
        methods: see `compress`.
        progress: called with (stage, done, total).
        settings: of methods, by name.

    Returns:
        The options in running order, and the methods they came from.
    """
    chosen, allowed = choose_methods(methods, settings or {})
    sites = task.prepared.sites
    with _threads(task.threads):
        curvatures = {}
        if task.roles is not None:
            batches = _counted(task.roles.calibration, progress)
            curvatures = collect(task.prepared.module, sites, batches, device=task.device, seed=task.seed)
        done: list[str] = []

        def tick(name: str) -> None:
            done.append(name)
            progress("candidates", len(done), len(sites))

        options = gather(sites, curvatures, chosen, allowed=allowed, device=task.device, seed=task.seed, tick=tick)
    return options, chosen


class Workshop:
    """Realises plans, writes them and measures them, for one task."""

    def __init__(self, task: Task, options: list[Options], refit: bool, progress: Progress) -> None:
        self.task, self.options, self.progress = task, options, progress
        self.folder = Scratch()
        self.known = None
        if refit and task.roles is not None:
            sites = [o.site for o in options if len(o.labels) > 1]
            module = task.prepared.module
            self.known = references(module, sites, _refit_batches(task.roles), device=task.device, seed=task.seed)
        self.count = 0
        self.original = self._original()
        self.judge = self._judge()

    def trial(self, plan: Plan) -> Trial:
        """Realise, write, run in the runtime, score on the selection inputs."""
        task = self.task
        self.count += 1
        path = self.folder.path / f"trial{self.count}.onnx"
        realised = realise(
            task.prepared.module, self.options, plan, self.known, device=task.device,
            tick=lambda name: self.progress(f"trial {self.count}", 0, 0),
        )  # fmt: skip
        nbytes = write(task.prepared.base, task.prepared.sites, realised.stored, path)
        points = None
        if self.judge is not None and task.roles is not None:
            with open_onnx(path, task.threads) as runner:
                points = self.judge.loss(run_dataset(runner, task.roles.selection.batches(BATCH))).points
        self.progress(f"trial {self.count}: {format_size(nbytes)}", self.count, 0)
        return Trial(plan, nbytes, points, (realised, path))

    def finish(self, outcome: Outcome, budget: Budget, seconds: float) -> Result:
        """Verify the chosen file, score it once on the test inputs, and write the record."""
        task, best = self.task, outcome.best
        realised: Realised = best.carried[0]
        path: Path = best.carried[1]
        note = outcome.note
        if best.nbytes > self.original.stat().st_size:
            # Never a larger file than the one given: the rewritten graph can be longer than a very lean original.
            shutil.copyfile(self.original, path)
            note = "the rewritten file would be larger than the original, so the original is kept"
        final = path.with_name("model.onnx")
        path.replace(final)
        self._verify(realised, final)
        self.progress("measure", 0, 1)
        files = measure_files(
            {"original": self.original, "onnx": final}, task.test, task.metric, _one_input(task), task.threads, BATCH
        )
        entries = record(
            files, outcome=outcome, note=note, budget=budget, options=self.options, roles=task.roles,
            test=task.test, seed=task.seed, threads=task.threads, seconds=seconds, name=task.network.name,
        )  # fmt: skip
        return Result(
            model=realised.model, plan=best.plan, met=outcome.met, record=entries, files={"onnx": final},
            sites=task.prepared.sites, stored=realised.stored, folder=self.folder,
        )  # fmt: skip

    def _original(self) -> Path:
        """The given ONNX file, else our stripped float export."""
        if self.task.network.source is not None:
            return self.task.network.source
        path = self.folder.path / "original.onnx"
        sites = self.task.prepared.sites
        write(self.task.prepared.base, sites, {s.name: untouched(s) for s in sites}, path)
        return path

    def _judge(self) -> Judge | None:
        if self.task.roles is None:
            return None
        selection = self.task.roles.selection
        with open_onnx(self.original, self.task.threads) as runner:
            reference = run_dataset(runner, selection.batches(BATCH))
            return Judge(reference, runner.output_names, selection.labels, self.task.metric, self.task.seed)

    def _verify(self, realised: Realised, path: Path) -> None:
        x = _one_input(self.task)
        with torch.no_grad():
            answer = realised.model(torch.from_numpy(x).to(self.task.device))
        expected = [a.cpu().numpy() for a in (answer if isinstance(answer, (tuple, list)) else [answer])]
        with open_onnx(path, self.task.threads) as runner:
            written = runner.run(x)
        for want, got in zip(expected, written, strict=True):
            worst, size = float(np.abs(want - got).max()), float(np.abs(want).max())
            if not worst <= TOLERANCE * max(size, 1e-6):
                raise VerificationError(
                    f"export: the written file differs from the network by {worst:.2g} (outputs up to {size:.2g}); "
                    "please report this network"
                )


def _search(work: Workshop, budget: Budget, options: list[Options], chosen: dict[str, Method]) -> Outcome:
    def plan_at(price: float) -> Plan:
        return allocate(options, price, chosen)

    middle = price_of_tradeoff(0.5, options) or 1.0
    if budget.kind == "tradeoff" or (budget.kind == "default" and work.judge is None):
        dial = 0.5 if budget.tradeoff is None else budget.tradeoff
        return Outcome(work.trial(plan_at(price_of_tradeoff(dial, options))), met=True)
    if budget.kind == "size" or budget.kind == "ratio":
        limit = budget.nbytes or int(work.original.stat().st_size / (budget.times or 1))
        return search_size(plan_at, work.trial, limit, middle)
    points = DEFAULT_AGREEMENT if budget.points is None else budget.points
    return search_drop(plan_at, work.trial, points, middle)


def _check_budget(budget: Budget, task: Task) -> None:
    if budget.kind == "max_drop" and task.roles is None:
        raise BudgetError("budget: max_drop needs inputs to measure on; give --data, or a size, ratio or tradeoff")


def _as_data(given: Data) -> Dataset:
    if isinstance(given, Dataset):
        return given
    return open_data(given) if isinstance(given, (str, Path)) else as_dataset(given)


def _example(network: Network, data: Dataset | None, example: torch.Tensor | None) -> torch.Tensor:
    if example is not None:
        return example
    if data is not None:
        return torch.from_numpy(next(iter(data.take([0]).batches(1))))
    shape = network.input_shape[1:]
    if not network.input_shape or any(s is None for s in shape):
        raise DataError("load: the input shape is not known; give --data, or --input 1,3,224,224 (example= in Python)")
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, *[int(s or 1) for s in shape], generator=generator)


def _check_classes(
    prepared: Prepared, data: Dataset | None, test: Dataset | None, example: torch.Tensor, metric: Any
) -> None:
    with torch.no_grad():
        answer = prepared.module(example)
    if metric is None and isinstance(answer, torch.Tensor) and answer.flatten(1).shape[1] == answer.shape[1] > 1:
        for one in (data, test):
            if one is not None and one.labels is not None:
                check_labels(one, answer.shape[1])


def _one_input(task: Task) -> np.ndarray:
    source = task.roles.calibration if task.roles is not None else task.test
    return next(iter(source.take([0]).batches(1))) if source is not None else task.example[:1].numpy()


def _refit_batches(roles: Roles) -> list[np.ndarray]:
    calibration = roles.calibration
    each = int(np.prod(calibration.shape)) * 4
    count = min(len(calibration), REFIT_INPUTS, max(16, REFIT_NBYTES // each))
    return list(calibration.array(0, count).batches(BATCH))


def _counted(data: Dataset, progress: Progress) -> Any:
    for i, batch in enumerate(data.batches(BATCH)):
        yield batch
        progress("calibrate", min((i + 1) * BATCH, len(data)), len(data))


class _threads:
    """Torch's thread count for the time of a block."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)
