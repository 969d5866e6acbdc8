"""downsample(): every place where the network could downsample earlier, tried, refitted, written and measured.

    load → prepare → find changes → apply → refit → export → measure, each alone; then the best of them together

Nothing is trained: a refit is least squares on calibration inputs, what it is worth is told by the selection inputs,
and the test inputs are scored once, at the end, and choose nothing.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from smidgen.budget import Budget
from smidgen.calibrate.answers import outputs_of, true_loss
from smidgen.errors import DataError, Refusal, UserError
from smidgen.export.onnx import write
from smidgen.export.prepare import prepare
from smidgen.export.verify import verify
from smidgen.forms import Dense, macs
from smidgen.measure.memory import release
from smidgen.measure.scores import Judge, Metric
from smidgen.model.aims import find_aims
from smidgen.model.downsample import Change, apply_change, find_changes
from smidgen.model.load import load_network
from smidgen.model.sites import find_sites
from smidgen.pipeline.measuring import counted, entry_of
from smidgen.pipeline.options import kept_batches
from smidgen.pipeline.task import Data, Progress, Task, Threads, one_input, open_task
from smidgen.planning.reconstruct import reconstruct
from smidgen.report.downsampling import Downsampling, Row, Tried, plain
from smidgen.report.record import versions
from smidgen.report.result import Scratch
from smidgen.runtimes.opening import open_file, run_dataset
from smidgen.site import untouched

DEFAULT_POINTS = 1.0  # that may be lost where nobody said, as in `compress`
REFIT_INPUTS = 512  # calibration inputs that refits use at most
EXACT = 1e-9  # nats; nothing is left to refit
LOSS_INPUTS = 256  # selection inputs that say whether a refit is kept


def downsample(
    model: nn.Module | str | Path,
    data: Data,
    *,
    max_drop: float | int | str = DEFAULT_POINTS,
    test: Data = None,
    validation: Data = None,
    weights: str | Path | None = None,
    metric: str | Metric | None = None,
    refit: bool = True,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Downsampling:
    """Make a network downsample earlier: a lower resolution, a stride moved, a pooling taken into a convolution.

    Args:
        model: a module, an ``.onnx`` or ``.pt2`` file, or ``file.py:factory``; one input, a map of two dimensions.
        data: inputs, labels optional, as for `smidgen.compress`.
        max_drop: percentage points that the chosen network may lose on the selection inputs, one standard error
            included.
        test: inputs scored once at the end; a fifth of ``data`` is held back when None.
        validation: inputs that choose between networks; a fifth of ``data`` is held back when None.
        weights: ``.safetensors`` or weights-only ``.pth`` for a factory.
        metric: replaces accuracy; see `smidgen.compress`.
        refit: refit changed layers and those behind them to the original's values.
        threads: for torch and onnxruntime; what torch uses when None.
        seed: of everything drawn.
        progress: called with (stage, done, total).

    Returns:
        A row for each change alone and for the combinations, and the network of fewest MACs among those that lose
        little enough: changes are added one by one, by the loss that each costs for the MACs it saves.

    Raises:
        UserError: for anything wrong with what was given.

    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 3))
    >>> result = downsample(net, torch.randn(20, 1, 8, 8))
    >>> result.chosen.changes
    ('pooling: _0 takes avg_pool2d in, wider kernel',)
    """
    points = _points(max_drop)
    task = open_task(model, data, test, weights, None, metric, threads, "cpu", seed, validation=validation)
    if task.roles is None:
        raise DataError("downsample: it needs inputs to refit and to measure on; give --data")
    if task.example.ndim != 4:
        raise UserError(f"downsample: an input {list(task.example.shape[1:])} is no map of channels, height and width")
    with Threads(task.threads):
        progress("find changes", 0, 1)
        work = _Work(task, refit, progress)
        possible, refused = find_changes(work.base, task.example[:1])
        tried = []
        for number, change in enumerate(possible):
            progress("candidates", number + 1, len(possible))
            try:
                tried.append(work.trial((change,), work.original.macs))
            except Refusal as reason:
                refused[change] = str(reason)
        best, combined = _combined(work, tried, points)
        return work.finish([*tried, *combined], best, refused, points)


@dataclass(frozen=True, eq=False)
class _Trial:
    """A changed network, written and measured."""

    changes: tuple[Change, ...]
    model: nn.Module
    path: Path
    measured: Tried

    @property
    def macs(self) -> int:
        """Told of the original before anything else, so that they are known here."""
        return self.measured.macs or 0

    @property
    def lost(self) -> float:
        """Points lost, with one standard error: the luckiest of many trials would be taken else."""
        return self.measured.points + self.measured.points_error


def _points(max_drop: float | int | str) -> float:
    points = Budget(max_drop=max_drop).points
    assert points is not None
    return points


def _combined(work: _Work, tried: list[_Trial], points: float) -> tuple[_Trial, list[_Trial]]:
    """Changes added one by one, the cheapest in loss for the MACs saved first, while what is lost stays small.

    Each combination is refitted from the original anew, and measured; one that saves nothing more, or loses too much,
    is left out again.
    """

    def price(trial: _Trial) -> float:
        saved = work.original.macs - trial.macs
        return trial.measured.loss / saved if saved > 0 else inf

    best, combined = work.original, []
    for trial in sorted((t for t in tried if price(t) < inf), key=price):
        together = trial
        if best.changes:
            work.progress(f"combine {len(combined) + 1}", 0, 0)
            try:
                together = work.trial((*best.changes, *trial.changes), best.macs)
            except Refusal:
                continue
            combined.append(together)
        if together.lost <= points and together.macs < best.macs:
            best = together
    alone = [trial for trial in tried if trial.lost <= points]
    return min([best, *alone], key=lambda trial: trial.macs), combined


class _Work:
    """Applies, refits, writes and measures changes of one network."""

    def __init__(self, task: Task, refit: bool, progress: Progress) -> None:
        assert task.roles is not None
        self.task, self.refit, self.progress, self.folder, self.count = task, refit, progress, Scratch(), 0
        self.roles = task.roles
        path = task.network.source or self.folder.path / "original.onnx"
        if task.network.source is None:
            sites = task.prepared.sites
            write(task.prepared.base, sites, {s.name: untouched(s) for s in sites}, path)
        module = task.prepared.module
        # What cannot be traced is read back from its file: an imported network is a graph.
        self.base = module if isinstance(module, fx.GraphModule) else _graph(path)
        self.batches = kept_batches(self.roles.calibration, REFIT_INPUTS)
        selection = kept_batches(self.roles.selection, LOSS_INPUTS)
        self.selection = [torch.from_numpy(batch) for batch in selection]
        self.reference = self._answers(self.base)
        with open_file(path, task.threads) as runner:
            answers = run_dataset(runner, self.roles.selection.batches())
            self.names = runner.output_names
        labels = self.roles.selection.labels
        self.judge = Judge(answers, self.names, labels, task.metric if labels is not None else None, task.seed)
        self.original = _Trial((), self.base, path, self._measured(path, 0.0))
        if self.original.measured.macs is None:
            raise UserError("downsample: the network's multiplications cannot be counted; export it with fixed sizes")

    def trial(self, changes: tuple[Change, ...], most_macs: int) -> _Trial:
        """The network with these changes.

        Args:
            changes: applied one after the other.
            most_macs: as many or more are not worth a refit.

        Raises:
            Refusal: they do not go together.
        """
        task, example = self.task, self.task.example[:1]
        model = self.base
        # A lower resolution may begin at a pooling that another change takes away: it goes first.
        for change in sorted(changes, key=lambda c: c.kind != "resolution"):
            model = apply_change(model, change, example)
        sites = find_sites(model, example)
        if sum(macs(Dense(s.weight), s.geometry) for s in sites) >= most_macs:
            raise Refusal("it saves no multiplications")
        loss = self._loss(model)
        if self.refit and loss > EXACT:
            aims = find_aims(self.base, model)
            model, loss = reconstruct(
                self.base, model, aims, sites, self.batches, self._loss, seed=task.seed,
                tick=lambda name: self.progress(f"refit {name}", 0, 0),
            )  # fmt: skip
        prepared = prepare(replace(task.network, module=model, source=None), example)
        self.count += 1
        path = self.folder.path / f"trial{self.count}.onnx"
        write(prepared.base, prepared.sites, {s.name: untouched(s) for s in prepared.sites}, path)
        verify(model, path, one_input(task), task.threads)
        release()
        return _Trial(changes, model, path, self._measured(path, loss))

    def finish(self, trials: list[_Trial], best: _Trial, refused: dict[Change, str], points: float) -> Downsampling:
        """Score all on the test inputs, once, and write the record."""
        scored = [self.original, *trials]
        tests = self._tests(scored)
        rows = tuple(
            Row(tuple(map(str, t.changes)), replace(t.measured, test=test), chosen=t is best)
            for t, test in zip(scored, tests, strict=True)
        ) + tuple(Row((str(change),), reason=reason) for change, reason in refused.items())
        task = self.task
        record = {
            "schema_version": 1, "name": task.network.name, "max_drop": points, "seed": task.seed,
            "threads": task.threads, "versions": versions(), "data": self.roles.describe(), "rows": plain(rows),
        }  # fmt: skip
        path = self.folder.path / "model.onnx"
        shutil.copyfile(best.path, path)
        return Downsampling(best.model, rows, record, path, self.folder)

    def _tests(self, trials: list[_Trial]) -> list[dict[str, Any] | None]:
        test, judge, found = self.task.test, None, []
        if test is None:
            return [None] * len(trials)
        for number, trial in enumerate(trials):
            self.progress("test", number + 1, len(trials))
            with open_file(trial.path, self.task.threads) as runner:
                answers = run_dataset(runner, test.batches())
            if judge is None:
                judge = Judge(answers, self.names, test.labels, self.task.metric, self.task.seed)
            found.append(entry_of(judge.loss(answers), judge.judge(answers)))
        return found

    def _measured(self, path: Path, loss: float) -> Tried:
        task = self.task
        with open_file(path, task.threads) as runner:
            lost = self.judge.loss(run_dataset(runner, self.roles.selection.batches()))
        original = task.network.source or self.folder.path / "original.onnx"
        there = counted(original, path, one_input(task), task.threads)
        return Tried(**there.plain(), loss=loss, points=lost.points, points_error=lost.error)

    def _loss(self, model: nn.Module) -> float:
        return true_loss(self.reference, self._answers(model))

    def _answers(self, model: nn.Module) -> list[list[torch.Tensor]]:
        with torch.no_grad():
            return [outputs_of(model(x)) for x in self.selection]


def _graph(path: Path) -> fx.GraphModule:
    module = load_network(path).module
    assert isinstance(module, fx.GraphModule)  # for the type checker: what is imported is a graph
    return module
