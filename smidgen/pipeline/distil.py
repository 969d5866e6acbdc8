"""distil(): a smaller network of any kind learns to answer as the given one does.

open both → divide the data → (search) → fit → export → measure
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smidgen.calibrate.answers import is_classifier, outputs_of
from smidgen.errors import LoadError, UserError
from smidgen.measure.scores import Metric
from smidgen.model.load import Network, load_network
from smidgen.pipeline.task import Data, Progress, Threads
from smidgen.pipeline.training import (
    Ground,
    check_classes,
    finish,
    open_ground,
    original_file,
    weights_digest,
    write_network,
)
from smidgen.recover.distil import Mixture, Teaching, need_labels
from smidgen.recover.loop import Fitted, fit
from smidgen.recover.scoring import exactly, indistinct
from smidgen.recover.training import Training
from smidgen.report.training import Trained

SEARCH_EPOCHS = 4  # a trial has one epoch in so many of the training's
SEARCH_SHARE = 0.5  # of a time limit
TEMPERATURES, MIXES, RATES = (1.0, 16.0), (0.3, 1.0), (0.2, 5.0)  # that trials draw from; rates as shares of lr


def distil(
    teacher: nn.Module | str | Path,
    student: nn.Module | str | Path,
    data: Data,
    *,
    training: Training | None = None,
    temperature: float = 4.0,
    mix: float | None = None,
    features: float = 0.0,
    search: int = 0,
    test: Data = None,
    validation: Data = None,
    weights: str | Path | None = None,
    student_weights: str | Path | None = None,
    metric: str | Metric | None = None,
    checkpoint: str | Path | None = None,
    threads: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Trained:
    """Train a student to answer as its teacher does (Hinton et al. 2015, arXiv:1503.02531).

    Args:
        teacher: a module, an ``.onnx`` or ``.pt2`` file, or ``file.py:factory``.
        student: the same; any network with the teacher's inputs and outputs, such as what `smidgen.prune` made of it.
        data: inputs, labels optional, as for `smidgen.compress`. Four fifths are learned from, by the last one the
            best epoch is chosen.
        training: see `smidgen.Training`; its seed is ``seed``.
        temperature: T, of the softened scores.
        mix: the teacher's share of the loss, the labels have the rest: 0.9 with labels, 1 without, when None. 0 trains
            on labels alone.
        features: weight of what the layers pass on beside the answers (FitNets, arXiv:1412.6550).
        search: trials that choose temperature, mix and rate on the selection inputs (needs ``smidgen[train]``); the
            given ones are the first.
        test: inputs scored once at the end; a fifth of ``data`` is held back when None.
        validation: inputs that choose between epochs and trials of a search; a fifth of ``data`` is held back when
            None.
        weights, student_weights: ``.safetensors`` or weights-only ``.pth`` for a factory.
        metric: replaces accuracy in the files' scores; see `smidgen.compress`.
        checkpoint: file to go on from, if it is there, and to write.
        threads: for torch and onnxruntime; what torch uses when None.
        device: where torch computes: ``cpu`` or ``cuda``.
        seed: of everything drawn, the student's first weights included.
        progress: called with (stage, done, total).

    Returns:
        The trained student, its file, and what was measured on both files.

    Raises:
        UserError: for anything wrong with what was given.

    >>> _ = torch.manual_seed(0)
    >>> big = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
    >>> small = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> result = distil(big, small, torch.randn(100, 8), training=Training(epochs=1, batch=16))
    >>> result.model(torch.zeros(1, 8)).shape, list(result.files)
    (torch.Size([1, 3]), ['teacher', 'student'])
    """
    if search < 0:
        raise UserError(f"distil: search={search} is no number of trials; give 0 or more")
    training = replace(training or Training(), seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pupil = load_network(student, student_weights)
    master = load_network(teacher, weights)
    ground = open_ground(master, data, test, validation, metric, threads, training)
    share = need_labels(ground.learned, mix)
    with Threads(ground.threads):
        lesson = _Lesson(ground, master, pupil, device, None if checkpoint is None else Path(checkpoint))
        chosen = Mixture(temperature, share if lesson.classifier or mix is not None else 1.0, features)
        lesson.rehearse(chosen)
        trials: list[dict[str, Any]] = []
        if search:
            chosen, training, trials = _search(lesson, chosen, training, search, progress)
        fitted = lesson.fit(pupil.module, chosen, training, lesson.checkpoint, progress)
        for number in range(search):  # not before: a run that is killed here goes through them at once
            if lesson.checkpoint is not None:
                _place(lesson.checkpoint, number + 1).unlink(missing_ok=True)
        return lesson.finish(chosen, training, fitted, trials)


@dataclass(frozen=True, eq=False)
class _Lesson:
    """One teacher, one student, and the data."""

    ground: Ground
    teacher: Network
    student: Network
    device: str
    checkpoint: Path | None

    def __post_init__(self) -> None:
        self.teacher.module.to(self.device)

    @property
    def classifier(self) -> bool:
        """Whether the teacher is one."""
        with torch.no_grad():
            return is_classifier(outputs_of(self.teacher.module(self.ground.example.to(self.device))))

    def rehearse(self, mixture: Mixture) -> None:
        """What could fail after an hour is tried now: that the two go together, and that the student can be written."""
        student = copy.deepcopy(self.student.module)
        Teaching(self.teacher.module, student.to(self.device), mixture, self.ground.example.to(self.device))
        with torch.no_grad():
            check_classes(self.ground, self.teacher.module(self.ground.example.to(self.device)))
        write_network(self.student, student, self.ground, self.ground.folder.path / "model.onnx")

    def fit(
        self, student: nn.Module, mixture: Mixture, training: Training, checkpoint: Path | None, progress: Progress
    ) -> Fitted:
        """Train a student in place."""
        student.to(self.device)
        teaching = Teaching(self.teacher.module, student, mixture, self.ground.example.to(self.device))
        learned, selection = self.ground.roles.calibration, self.ground.roles.selection
        progress("the teacher's answers", 0, 1)
        wanted = teaching.keep_answers(selection)
        # Of images that are changed the teacher is asked anew; so it is for features.
        known = not training.augment and not mixture.features and mixture.mix > 0
        kept = teaching.keep_answers(learned) if known else []
        held: Callable[[], float] | None = (lambda: teaching.score(selection, wanted)) if wanted else None
        groups: list[dict[str, Any]] = [{"params": list(student.parameters())}]
        if teaching.projections:
            groups.append({"params": teaching.projections, "weight_decay": 0.0})
        return fit(
            student, learned, teaching.loss, training, held=held,
            within=indistinct(len(selection)) if teaching.classifier else exactly, groups=groups, beside=kept,
            checkpoint=checkpoint, identity=self.identity(mixture), device=self.device, progress=progress,
        )  # fmt: skip

    def identity(self, mixture: Mixture) -> dict[str, Any]:
        """What a checkpoint must agree in besides the training."""
        chosen_by = self.ground.roles.selection.sha256
        return {"teacher": weights_digest(self.teacher.module), "selection": chosen_by, **asdict(mixture)}

    def finish(self, mixture: Mixture, training: Training, fitted: Fitted, trials: list[dict[str, Any]]) -> Trained:
        """Write the student, and measure both."""
        self.teacher.module.cpu()
        path = self.ground.folder.path / "model.onnx"
        write_network(self.student, self.student.module, self.ground, path)
        files = {"teacher": original_file(self.teacher, self.ground), "student": path}
        return finish(
            self.ground, files, self.student.module, training, fitted, kind="distil", name=self.student.name,
            teacher=self.teacher.name, asked=asdict(mixture), search=trials,
        )  # fmt: skip


def _search(
    lesson: _Lesson, first: Mixture, training: Training, count: int, progress: Progress
) -> tuple[Mixture, Training, list[dict[str, Any]]]:
    """Temperature, mix and rate that serve best in short trainings, by the selection inputs."""
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as error:
        raise LoadError("distil: the search needs Optuna; run: pip install 'smidgen[train]'") from error
    limit = training.time_limit
    short = replace(
        training, epochs=max(1, training.epochs // SEARCH_EPOCHS),
        time_limit=None if limit is None else limit * SEARCH_SHARE / count,
    )  # fmt: skip
    labelled, done = lesson.ground.learned.labels is not None and lesson.classifier, []

    def attempt(trial: Any) -> float:
        rate = trial.suggest_float("lr", training.lr * RATES[0], training.lr * RATES[1], log=True)
        temperature = trial.suggest_float("temperature", *TEMPERATURES, log=True) if lesson.classifier else 1.0
        mix = trial.suggest_float("mix", *MIXES) if labelled else first.mix
        mixture, number = Mixture(temperature, mix, first.features), trial.number + 1
        student = copy.deepcopy(lesson.student.module)
        place = None if lesson.checkpoint is None else _place(lesson.checkpoint, number)
        fitted = lesson.fit(
            student, mixture, replace(short, lr=rate), place,
            lambda stage, at, total: progress(f"trial {number} of {count}, {stage}", at, total),
        )  # fmt: skip
        if fitted.best is None:
            raise optuna.TrialPruned
        done.append({"lr": rate, **asdict(mixture), "score": fitted.best, "epochs": fitted.epochs})
        return fitted.best

    asked = {"lr": training.lr, "temperature": first.temperature, "mix": first.mix}
    told = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=training.seed))
        study.enqueue_trial({name: value for name, value in asked.items() if _tried(name, value)})
        study.optimize(attempt, n_trials=count)
    finally:
        optuna.logging.set_verbosity(told)
    if not done:
        raise UserError("distil: every trial of the search exploded; give a lower --lr")
    best = min(done, key=lambda one: one["score"])
    chosen = Mixture(best["temperature"], best["mix"], best["features"])
    return chosen, replace(training, lr=best["lr"], time_limit=None if limit is None else limit * SEARCH_SHARE), done


def _tried(name: str, value: float) -> bool:
    low, high = {"temperature": TEMPERATURES, "mix": MIXES}.get(name, (0.0, float("inf")))
    return low <= value <= high


def _place(checkpoint: Path, number: int) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.trial{number}")
