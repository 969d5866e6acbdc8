"""What each trial of a search does: realise a plan, write the file, run it in its runtime, score it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smidgen.budget import FILES, Budget, format_size
from smidgen.calibrate.answers import outputs_of, true_losses
from smidgen.export.onnx import write
from smidgen.export.verify import STATIC_TOLERANCE, TOLERANCE, verify
from smidgen.forms import FLOATS, HALVES, STATIC, WIDTHS, Dense, macs
from smidgen.measure.cost import file_cost
from smidgen.measure.latency import Latency
from smidgen.measure.memory import release, scarce
from smidgen.measure.scores import Judge
from smidgen.measure.speed import compare_speed
from smidgen.pipeline.options import kept_batches, probe_inputs
from smidgen.pipeline.targets import ALWAYS, Source, runnable, write_target
from smidgen.pipeline.task import Progress, Task, data_hash, one_input
from smidgen.planning.candidates import Options
from smidgen.planning.plan import Choice, Plan
from smidgen.planning.probe import losses_alone
from smidgen.planning.realise import REFITS, Realised, Refit, realise, references
from smidgen.planning.search import Outcome, Trial
from smidgen.report.record import measure_files, record
from smidgen.report.result import ORIGINAL, Result, Scratch
from smidgen.runtimes.onnxruntime import saturation
from smidgen.runtimes.opening import open_file, run_dataset
from smidgen.site import untouched

REFIT_INPUTS = 1024  # calibration inputs that a refit uses at most
SURE = 2.0  # standard errors by which a refit that moves less must be better
SATURATING, FEW = "onnx-int8", 32  # the file whose products may saturate, and inputs that tell
TIMED = 5  # measurements of a file's time, where time is budgeted


class Workshop:
    """Realises plans, writes them and measures them, for one task.

    Args:
        task: what to work on.
        options: of every site, from `candidates`.
        refit: refit each layer on what the compressed layers before it produce.
        progress: called with (stage, done, total).
        budget: with none given trials are judged by agreement with the original, even where there are labels; where
            it is one of time they are timed.
        targets: the files wanted; a budget binds the first.
        mode: what a refit moves in layers of integers; found by measurement when None.
        most: bytes that the first target's file may have; those of the original when None.
    """

    def __init__(
        self,
        task: Task,
        options: list[Options],
        refit: bool,
        progress: Progress,
        budget: Budget | None = None,
        *,
        targets: Sequence[str] = ("onnx",),
        mode: Refit | None = None,
        most: int | None = None,
    ) -> None:
        self.task, self.options, self.progress, self.targets = task, options, progress, tuple(targets)
        self.circumstances: dict[str, Any] = {
            "seed": task.seed, "refit": refit, "data": data_hash(task.roles), "target": self.targets[0],
            "equalised": task.equalised, "cut": task.cut,
        }  # fmt: skip
        self.folder = Scratch()
        self.known = None
        if refit and task.roles is not None:
            sites = [o.site for o in options if o.site.refusal is None]
            module = task.prepared.module
            self.known = references(
                module, sites, kept_batches(task.roles.calibration, REFIT_INPUTS), device=task.device, seed=task.seed
            )
            release()
        self.count = 0
        self.mode: Refit | None = mode
        self.original = self._original()
        self.judge = self._judge(budget is not None and budget.kind == "default")
        self.timed = budget is not None and budget.timed
        self.most = self.original.stat().st_size if most is None else most

    def trial(self, plan: Plan) -> Trial:
        """Realise, write, run in the runtime, score on the selection inputs."""
        trial = self.weighed(plan, self.realised(plan))
        # Two copies of the weights a trial: where memory is scarce the chosen one is realised again.
        return replace(trial, carried=(None, *trial.carried[1:])) if scarce() else trial

    def weighed(self, plan: Plan, realised: Realised) -> Trial:
        """Write what was realised, run it in the runtime, score it on the selection inputs."""
        task = self.task
        self.count += 1
        path = self.folder.path / f"trial{self.count}.onnx"
        write(task.prepared.base, task.prepared.sites, realised.stored, path)
        written = write_target(self.targets[0], self.source(realised, path))
        nbytes = written.stat().st_size
        points, error, timing = None, 0.0, {}
        # What an archive unpacks to differs from the file beside it in the names of weights alone.
        opened = path if self.targets[0] == "archive" else written
        if self.judge is not None and task.roles is not None:
            with open_file(opened, task.threads) as runner:
                loss = self.judge.loss(run_dataset(runner, task.roles.selection.batches()))
                points, error = loss.points, loss.error
        if self.timed:
            _, found = self._speed(opened)
            timing = {
                "latency_ms": found.median_ms, "speedup": found.speedup, "speedup_error": found.error,
            }  # fmt: skip
        release()
        self.progress(f"trial {self.count}: {format_size(nbytes)}", self.count, 0)
        plan = replace(plan, moved=self.mode or "weights")
        return Trial(plan, nbytes, points, (realised, path, written), error, **timing)

    def source(self, realised: Realised, path: Path) -> Source:
        task = self.task
        inputs, held = (None, None) if task.roles is None else (task.roles.calibration, task.roles.selection)
        return Source(
            task.prepared, realised.stored, realised.model, path, inputs, held, one_input(task), task.threads,
            self.targets[0], realised.activations,
        )  # fmt: skip

    def most_of(self, options: Sequence[Options]) -> int:
        """Bytes that the layers may take together, by what the whole file may have."""
        layers = sum(int(option.sizes[0]) for option in options)
        return self.most - max(0, self.original.stat().st_size - layers)

    def limit(self, budget: Budget) -> int | None:
        """Bytes that a budget of size or ratio leaves for the file; None for others."""
        if budget.kind not in ("size", "ratio"):
            return None
        return budget.nbytes or int(self.original.stat().st_size / (budget.times or 1))

    @cached_property
    def original_ms(self) -> float:
        """Time of the original for one input, in milliseconds."""
        return self._speed(self.original)[0].median_ms

    @cached_property
    def original_macs(self) -> int:
        """Multiply-accumulates of the original for one input."""
        return file_cost(self.original)[1] or self._layer_macs

    @cached_property
    def macs_beside(self) -> int:
        """Multiply-accumulates that no plan touches: of products of activations, as in attention."""
        path = self._written_as_it_is(self.folder.path / "uncompressed.onnx")
        return max(0, (file_cost(path)[1] or 0) - self._layer_macs)

    @property
    def _layer_macs(self) -> int:
        return sum(macs(Dense(site.weight), site.geometry) for site in self.task.prepared.sites)

    def _speed(self, file: Path) -> tuple[Latency, Latency]:
        return compare_speed(self.original, file, one_input(self.task), self.task.threads, TIMED)

    def realised(self, plan: Plan) -> Realised:
        """The plan carried out, with the kind of refit that measured best on the selection inputs.

        A layer of integers that is moved to the original's outputs on the inputs it now gets makes good what was lost
        before it, and learns the sample: LeNet and ResNet-20 gain by it, MobileNetV2 from 240 inputs loses (KL 0.064
        with weights, 0.013 with biases alone, 0.015 with nothing moved). Less is moved only where that is surely
        better: few selection inputs tell little (ResNet-20 at 64 kB: of 200, fewer nats by 0.002 with nothing moved;
        of 5,000 others, fewer by 0.006 with weights). The first plan decides for all.
        """
        task = self.task

        def carry_out(mode: Refit) -> Realised:
            return realise(
                task.prepared.module, self.options, plan, self.known, refit=mode, device=task.device,
                tick=lambda name: self.progress(f"trial {self.count + 1}", 0, 0),
            )  # fmt: skip

        if self.mode is not None or self.known is None or not any(c.rounded for c in plan.choices):
            return carry_out("weights" if self.mode is None else self.mode)
        tried = {mode: carry_out(mode) for mode in REFITS}
        losses = {mode: self._losses(realised) for mode, realised in tried.items()}
        self.mode = REFITS[0]
        for mode in REFITS[1:]:
            self.mode = mode if surely_lower(losses[mode], losses[self.mode]) else self.mode
        return tried[self.mode]

    def _losses(self, realised: Realised) -> torch.Tensor:
        """KL, or the normalised squared error, of each selection input."""
        assert self.task.roles is not None
        before, after = [], []
        with torch.no_grad():
            for batch in self.task.roles.selection.batches():
                x = torch.from_numpy(batch).to(self.task.device)
                before.append(outputs_of(self.task.prepared.module(x)))
                after.append(outputs_of(realised.model(x)))
        return true_losses(before, after)

    def finish(self, outcome: Outcome, budget: Budget, seconds: float, *, alone: bool = True) -> Result:
        """Verify the chosen file, score it once on the test inputs, and write the record.

        Args:
            outcome: where the search ended.
            budget: what was asked for.
            seconds: that it took.
            alone: whether each layer's own loss is measured; it says nothing of layers that were trained together.
        """
        task = self.task
        if outcome.best.nbytes > max(self.most, self.original.stat().st_size):
            outcome = self._original_kept(outcome)
        best = outcome.best
        kept, path, measured = best.carried
        realised: Realised = kept or self.realised(best.plan)
        final: Path = path.replace(path.with_name(FILES["onnx"]))
        written: dict[str, Path] = {}
        for name in dict.fromkeys((*self.targets, *ALWAYS)):
            if name == self.targets[0] != "onnx" and measured is not None:
                written[name] = measured.replace(final.with_name(FILES[name]))  # the very file of the trial
            else:
                written[name] = write_target(name, self.source(realised, final))
        for name, each in written.items():
            if name != "archive":
                rounded = name in STATIC or name in HALVES or (name in WIDTHS and self.targets[0] in FLOATS)
                share = STATIC_TOLERANCE if rounded else TOLERANCE
                verify(realised.model, each, one_input(task), task.threads, task.device, share)
        self.progress("measure", 0, 1)
        files = measure_files(
            {"original": self.original, **written}, task.test, task.metric, one_input(task), task.threads,
            {name: runnable(name, path) for name, path in written.items()},
            times=TIMED if self.timed else 1,
        )  # fmt: skip
        if SATURATING in written:
            files[SATURATING]["saturation"] = saturation(written[SATURATING], self._few(), task.threads)
        outcome = _judged(outcome, budget, files["original"], files[self.targets[0]])
        entries = record(
            files, outcome=outcome, budget=budget, options=self.options, refitted=realised.refitted, roles=task.roles,
            test=task.test, seed=task.seed, threads=task.threads, seconds=seconds, name=task.network.name,
            alone=self._layer_losses(best.plan) if alone else {},
        )  # fmt: skip
        return Result(
            model=realised.model, plan=best.plan, met=outcome.met, record=entries, files=written,
            sites=task.prepared.sites, stored=realised.stored, folder=self.folder,
            test=task.test,
        )  # fmt: skip

    def _few(self) -> np.ndarray:
        """Some inputs, of those that choose where there are any."""
        roles = self.task.roles
        return one_input(self.task) if roles is None else next(iter(roles.selection.batches(FEW)))

    def _layer_losses(self, plan: Plan) -> dict[str, float]:
        """The true loss of each changed layer alone, before any refit, on selection inputs."""
        if self.task.roles is None:
            return {}
        selection = self.task.roles.selection
        count = min(len(selection), probe_inputs(self.options))
        batches, model = list(selection.array(0, count).batches()), self.task.prepared.module
        changed = [
            (option, choice) for option, choice in zip(self.options, plan.choices, strict=True)
            if choice.changed and not choice.fast
        ]  # fmt: skip
        forms = {o.site.name: (o.site, o.form(*c.taken)) for o, c in changed}
        return losses_alone(model, forms, batches, device=self.task.device)

    def _original(self) -> Path:
        """The given ONNX file, else our stripped float export."""
        source, path = self.task.network.source, self.folder.path / ORIGINAL
        if source is not None and self.task.scratch is None:
            return source
        if source is not None:
            return Path(shutil.copyfile(source, path))
        return self._written_as_it_is(path)

    def _written_as_it_is(self, path: Path) -> Path:
        """Our export of the network that is compressed, no layer changed."""
        sites = self.task.prepared.sites
        write(self.task.prepared.base, sites, {s.name: untouched(s) for s in sites}, path)
        return path

    def _original_kept(self, outcome: Outcome) -> Outcome:
        """Never a larger file than the one given: a rewritten graph can be longer than a very lean original."""
        task, plan = self.task, outcome.best.plan
        choices = tuple(
            Choice(o.site.name, None, None, 0.0, int(o.sizes[0]), "the rewritten file would be larger")
            for o in self.options
        )
        path = self.folder.path / "kept.onnx"
        shutil.copyfile(self.original, path)
        realised = Realised(task.prepared.module, {o.site.name: untouched(o.site) for o in self.options})
        kept = Trial(replace(plan, choices=choices), path.stat().st_size, 0.0, (realised, path, None))
        note = f"the rewritten file would be larger ({outcome.best.nbytes} bytes), so the original is kept"
        return replace(outcome, best=kept, note="; ".join(filter(None, (outcome.note, note))))

    def _judge(self, agreement: bool) -> Judge | None:
        if self.task.roles is None:
            return None
        selection = self.task.roles.selection
        with open_file(self.original, self.task.threads) as runner:
            reference = run_dataset(runner, selection.batches())
            labels, metric = (None, None) if agreement else (selection.labels, self.task.metric)
            return Judge(reference, runner.output_names, labels, metric, self.task.seed)


def _judged(outcome: Outcome, budget: Budget, original: Mapping[str, Any], file: Mapping[str, Any]) -> Outcome:
    """A budget of time, or of products, is met where the measurement that is reported says so too."""
    if not outcome.met:
        return outcome
    if budget.share and original["macs"] and file["macs"] and file["macs"] > budget.share * original["macs"]:
        left = file["macs"] / original["macs"]
        note = f"the file has {left:.1%} of the original's multiply-accumulates, asked were {budget.share:.1%}"
    elif budget.timed and not _in_time(budget, file):
        again = f"{file['latency_ms']:.3g} ms, {file['speedup']:.2f} ± {file['speedup_error']:.2f} times faster"
        note = f"measured again at the end it takes {again} than the original, asked was {in_words(budget)}"
    else:
        return outcome
    return replace(outcome, met=False, note="; ".join(filter(None, (outcome.note, note))))


def _in_time(budget: Budget, file: Mapping[str, Any]) -> bool:
    return file["speedup"] >= (budget.faster or 0.0) and file["latency_ms"] <= (budget.latency_ms or inf)


def in_words(budget: Budget) -> str:
    """What a budget of time asks for.

    >>> in_words(Budget(speedup=2)), in_words(Budget(latency="5 ms"))
    ('2 times faster', '5 ms')
    """
    return f"{budget.latency_ms:g} ms" if budget.latency_ms else f"{budget.faster:g} times faster"


def surely_lower(first: torch.Tensor, second: torch.Tensor, errors: float = SURE) -> bool:
    """Whether paired losses are lower by more than so many standard errors.

    >>> surely_lower(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 3.1, 4.0]))
    True
    >>> surely_lower(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([9.0, 1.5, 2.5]))
    False
    """
    change = first - second
    return len(change) > 1 and float(change.mean()) < -errors * float(change.std()) / len(change) ** 0.5
