"""What a process of a sweep does: carry one plan out, write its file, score it on the inputs that may choose.

The network, its data and what rounds its layers travel once, as one parcel; a point travels as its plan and the forms
that its layers take, which the parent has built: no method runs here, so nothing is calibrated twice. What is pickled
comes from this program alone and goes to processes that it, or the user's own executor, started.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from smidgen.budget import FILES
from smidgen.forms import Form
from smidgen.measure.scores import Judge, Metric, load_metric
from smidgen.methods import Family
from smidgen.model.load import import_factory
from smidgen.pipeline.targets import runnable
from smidgen.pipeline.task import Task, Threads
from smidgen.pipeline.workshop import Workshop
from smidgen.planning.candidates import Options, Rounder
from smidgen.planning.plan import Plan, plan_from_json
from smidgen.planning.realise import Refit
from smidgen.report.result import Scratch
from smidgen.runtimes.opening import open_file, run_dataset
from smidgen.site import Site

Forms = Mapping[str, Form]


@dataclass(frozen=True, eq=False)
class Goods:
    """What every point needs.

    Args:
        task: what is worked on; its metric is named where it came from a file.
        rounders: what turns each site's forms into integers, by its name.
        target: the file that is written.
        refit: whether layers are refitted.
        circumstances: what a plan says of the run.
        original: the bytes of the original's file.
        metric: ``file.py:function``, where the metric came so.
    """

    task: Task
    rounders: Mapping[str, Rounder]
    target: str
    refit: bool
    circumstances: Mapping[str, Any]
    original: bytes
    metric: str | None = None


@dataclass(frozen=True)
class Parcel:
    """Goods on their way.

    Args:
        key: tells one parcel from another.
        path: file that holds them, for processes of this machine; None where they travel in ``blob``.
        blob: the goods pickled.
        code: ``file.py:factory`` that the network's classes come from.
    """

    key: str
    path: str | None = None
    blob: bytes = b""
    code: str | None = None


class Kitchen:
    """The goods unpacked: a workshop for plans, and judges of what it wrote.

    Args:
        goods: see `Goods`.
    """

    def __init__(self, goods: Goods) -> None:
        self._folder = Scratch()
        self.place = self._folder.path
        task = goods.task
        source = task.network.source
        if source is not None and not source.is_file():  # a machine of a cluster
            source = self.place / source.name
            source.write_bytes(goods.original)
        metric: Metric | None = task.metric if goods.metric is None else load_metric(goods.metric)
        self.task = replace(task, network=replace(task.network, source=source), metric=metric)
        self._goods = goods
        self._work: Workshop | None = None
        self._judge: Judge | None = None

    def trial(self, plan: Plan, forms: Forms, mode: Refit | None) -> dict[str, Any]:
        """A plan carried out, written and scored on the selection inputs.

        Args:
            plan: one choice a site.
            forms: of the sites that take one from a method, by name.
            mode: what a refit moves in layers of integers; found by measurement when None.

        Returns:
            Plain values of the point; its file under ``file``.
        """
        goods = self._goods
        options = [_given(site, forms.get(site.name), goods.rounders.get(site.name), plan, i)
                   for i, site in enumerate(self.task.prepared.sites)]  # fmt: skip
        with Threads(self.task.threads):
            if self._work is None:
                self._work = Workshop(self.task, options, goods.refit, _quiet, targets=(goods.target,))
            work = self._work
            work.options, work.mode = options, mode
            trial = work.trial(replace(plan, **goods.circumstances))
        assert work.judge is not None  # a sweep has data
        _, floats, written = trial.carried
        content = written.read_bytes()
        for each in {floats, written}:
            each.unlink()
        baseline = work.judge.baseline()
        return {
            "nbytes": trial.nbytes, "measure": work.judge.measures, "points": trial.points, "error": trial.error,
            "score": score_of(work.judge.measures, _whole(baseline), cast(float, trial.points)),
            "predicted_loss": plan.loss, "price": None if plan.price == np.inf else plan.price,
            "plan": trial.plan.to_json(), "file": content,
        }  # fmt: skip

    def test(self, content: bytes) -> dict[str, Any]:
        """A written file scored on the test inputs.

        Args:
            content: of the file.
        """
        task = self.task
        assert task.test is not None  # a sweep has data
        if self._judge is None:
            original = self.place / "before.onnx"
            original.write_bytes(self._goods.original)
            with open_file(original, task.threads) as runner:
                outputs = run_dataset(runner, task.test.batches())
                self._judge = Judge(outputs, runner.output_names, task.test.labels, task.metric, task.seed)
        path = self.place / FILES[self._goods.target]
        path.write_bytes(content)
        with open_file(runnable(self._goods.target, path), task.threads) as runner:
            outputs = run_dataset(runner, task.test.batches())
        loss, scores = self._judge.loss(outputs), self._judge.judge(outputs)
        before = _whole(self._judge.baseline())
        return {
            "measure": loss.metric, "points": loss.points, "interval": [loss.low, loss.high],
            "score": score_of(loss.metric, before, loss.points), "agreement": scores.agreement, "kl": scores.kl,
            "original_score": before if loss.metric not in ("agreement", "normalised error") else None,
        }  # fmt: skip


def _quiet(stage: str, done: int, total: int) -> None:
    """Progress of one point that nobody sees."""


def _whole(baseline: Any) -> float | None:
    return baseline.metric if baseline.metric is not None else baseline.accuracy


def score_of(measure: str, before: float | None, points: float) -> float:
    """What a file scores, from what the original did and the points it lost: higher is better.

    >>> score_of("accuracy", 0.9, 1.0), score_of("agreement", None, 1.0), score_of("normalised error", None, 5.0)
    (0.89, 0.99, 0.95)
    """
    return (1.0 if before is None or measure in ("agreement", "normalised error") else before) - points / 100


def _given(site: Site, form: Form | None, rounder: Rounder | None, plan: Plan, place: int) -> Options:
    """A site's options, of which there is one: the form that came with the point."""
    choice = plan.choices[place]
    families = {}
    if form is not None and choice.method is not None and choice.rank is not None:
        ready = partial(_same, form)
        families = {choice.method: Family(choice.method, (choice.rank,), (choice.loss,), ready, ready)}
    return Options(site, families, np.zeros(1), np.zeros(1, dtype=np.int64), (), precision=rounder)


def _same(form: Form, rank: int) -> Form:
    return form


_KEPT: dict[str, Kitchen] = {}  # one parcel a process: those of an earlier sweep make room


def opened(parcel: Parcel) -> Kitchen:
    """The goods of a parcel, unpacked at the first point and kept."""
    if parcel.key not in _KEPT:
        _KEPT.clear()
        if parcel.code is not None:
            import_factory(parcel.code)
        blob = parcel.blob if parcel.path is None else Path(parcel.path).read_bytes()
        _KEPT[parcel.key] = Kitchen(pickle.loads(blob))
    return _KEPT[parcel.key]


def closed(parcel: Parcel) -> None:
    """Forget what was kept of a parcel in this process."""
    _KEPT.pop(parcel.key, None)


def evaluate(parcel: Parcel, plan: str, forms: Forms, mode: Refit | None) -> dict[str, Any]:
    """One point, in whatever process; see `Kitchen.trial`."""
    return opened(parcel).trial(plan_from_json(plan), forms, mode)


def scored(parcel: Parcel, content: bytes) -> dict[str, Any]:
    """One written file on the test inputs; see `Kitchen.test`."""
    return opened(parcel).test(content)


def packed(goods: Goods, code: str | None, folder: Path | None) -> Parcel:
    """Goods as a parcel.

    Args:
        goods: what every point needs.
        code: ``file.py:factory`` that the network's classes come from.
        folder: where it lies for other processes of this machine; None to travel with every point.

    Raises:
        Exception: of pickle, where something of the user's cannot travel.
    """
    blob = pickle.dumps(goods, protocol=pickle.HIGHEST_PROTOCOL)
    key = hashlib.sha256(blob).hexdigest()
    if folder is None:
        return Parcel(key, blob=blob, code=code)
    path = folder / "parcel"
    path.write_bytes(blob)
    return Parcel(key, str(path), code=code)


def at_home(goods: Goods) -> Parcel:
    """Goods that stay in this process, for an executor that runs here."""
    key = f"here {id(goods)}"
    _KEPT.clear()
    _KEPT[key] = Kitchen(goods)
    return Parcel(key)


class Here(Executor):
    """Runs each call at once, in this process.

    >>> Here().submit(sum, [1, 2]).result()
    3
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """The call's outcome, in a future that is done."""
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


def forms_of(options: Sequence[Options], plan: Plan) -> dict[str, Form]:
    """The forms that a plan takes from methods, before any rounding, by site name."""
    return {
        option.site.name: option.form(choice.method, choice.rank)
        for option, choice in zip(options, plan.choices, strict=True)
        if choice.method is not None
    }
