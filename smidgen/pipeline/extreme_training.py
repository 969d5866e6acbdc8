"""The training of `--recipe extreme`: parts of one run, between which silent channels are cut."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smidgen.calibrate.answers import outputs_of
from smidgen.data import Dataset
from smidgen.errors import PlanError
from smidgen.export.archive import describe_archive
from smidgen.export.archive_views import image_shapes
from smidgen.export.onnx import write
from smidgen.export.prepare import Prepared
from smidgen.forms import Dense, Quantized, dense
from smidgen.measure.scores import Judge, Loss
from smidgen.pipeline.silent import integers_of, same, without_silent
from smidgen.pipeline.targets import packed_archive
from smidgen.pipeline.task import Progress, Task
from smidgen.recover.distance import distance
from smidgen.recover.entropy import Entropy, refine
from smidgen.recover.loop import Fitted, fit
from smidgen.recover.price import RAMP, Price
from smidgen.recover.scoring import answers
from smidgen.recover.training import Training
from smidgen.site import Site, Stored, untouched

# Parts of the training, in shares of the epochs; silent channels are cut between them. The rate falls in the last.
PARTS = (0.06, 0.09, 0.15, 0.7)
SETTLED = 0.6  # share of the training after which an epoch may be the best
LOOK = 2000  # selection inputs that are looked at before that
STEP_BYTES = 2  # of a tensor's step in an archive
TIMED, LIMIT_SHARE = 6, 0.9  # steps that tell how many epochs fit a limit of time, and the share of it they may take
COMPARED = 256  # inputs on which answers are compared
PROBED = 64  # training inputs that tell whether the first steps are fine enough
# A factor that steps can move by at least, by Adam's rates in all: a short training at a low rate would end with the
# steps that it began with, and meet its size by zeros alone.
TRAVEL = 2.0

Forms = Mapping[str, Mapping[Any, Quantized]]


@dataclass(frozen=True)
class Settings:
    """Of the recipe, beside those of the training.

    Args:
        price: λ, nats a byte; with a budget the one that steering begins with.
        labels: share of the labels in the loss; the rest is KL from the original.
        step_scale: times the learning rate that steps have; None: 1, or more where the training is so short that Adam
            could hardly move them.
        ramp: share of the training in which λ rises, or the bytes fall.
        live: whether the original answers each changed image; else it is asked once, for the image as it was, which
            saves half of the time where the network that is trained has become small.
        cut: whether silent channels are cut.
        checkpoint: file to go on from.

    Raises:
        PlanError: a value that cannot be meant.
    """

    price: float | None = None
    labels: float = 0.5
    step_scale: float | None = None
    ramp: float = RAMP
    live: bool = True
    cut: bool = True
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        shares = 0 <= self.labels <= 1 and 0 < self.ramp <= 1 and (self.step_scale is None or self.step_scale >= 0)
        if not shares or (self.price is not None and not 0 <= self.price < math.inf):
            raise PlanError(f"extreme: labels and ramp are shares, price and step_scale not negative: not {self}")


@dataclass(frozen=True)
class Aim:
    """What is to be reached: bytes of the archive, or points lost at most, or neither."""

    size: int | None = None
    points: float | None = None


class Run:
    """Trains a copy of a network.

    Args:
        task: its calibration inputs are trained on, its selection inputs choose.
        own, training: settings.
        aim: what is to be reached.
        judge: of the original's answers on the selection inputs.
        folder: for files.
        progress: called with (stage, done, total).
    """

    def __init__(
        self, task: Task, own: Settings, training: Training, aim: Aim, judge: Judge, folder: Path, progress: Progress
    ) -> None:
        assert task.roles is not None
        self.task, self.own, self.aim, self.judge, self.folder, self.progress = task, own, aim, judge, folder, progress
        self.roles, self.teacher = task.roles, task.prepared.module
        self.prepared, self.module = task.prepared, copy.deepcopy(task.prepared.module)
        self.entropy = self._entropy()
        self.refining = self._refined()
        self.training = self._within_time(training)
        self.parts = parts_of(self.training.epochs) if own.cut else [self.training.epochs]
        self.step_scale = self._step_scale()
        self.price = self._price()
        self.known = [] if own.live else answers(self.teacher, self.roles.calibration)
        self.aims = answers(self.teacher, self.roles.selection)
        self.lost = Loss(math.inf, math.inf, math.inf, "")
        self.apart, self.kl, self.coded = math.inf, math.inf, 0

    def _entropy(self, steps: Mapping[str, float] | None = None) -> Entropy:
        sites = self.prepared.sites
        layers = [site.name for site in sites if trained(site)]
        return Entropy(self.module, layers, steps, image_shapes(self.prepared.base, sites))

    def _refined(self) -> float:
        """Make first steps finer where they cost too much; the seconds that it took."""
        started, number = time.monotonic(), itertools.count(1)
        x = self._first(self.roles.calibration, PROBED)
        with torch.no_grad():
            aim = outputs_of(self.teacher(x))

        def apart() -> float:
            self.progress("first steps", next(number), 0)
            return float(distance(aim, outputs_of(self.module(x))))

        refine(self.entropy, apart)
        return time.monotonic() - started

    def _first(self, inputs: Dataset, count: int) -> Tensor:
        """The first inputs, at most so many, where they are computed with."""
        return torch.from_numpy(np.asarray(inputs.array(0, min(count, len(inputs))))).to(self.task.device)

    def _price(self) -> Price:
        beside = 0 if self.aim.size is None else self._beside()
        each = self._steps_an_epoch
        return Price(
            self.entropy, each * self.training.epochs, price=self.own.price, size=self.aim.size, beside=beside,
            most_points=self.aim.points, ramp=self.own.ramp, rates=rates_of(self._plans(), each),
        )  # fmt: skip

    def _beside(self) -> int:
        """Bytes of the archive that are no integers, told by one of zeros."""
        zeros = {
            name: {kind: replace(form, integers=np.zeros_like(form.integers)) for kind, form in forms.items()}
            for name, forms in self.entropy.forms().items()
        }
        stored, path = stored_of(self.prepared, zeros), self.folder / "zeros.onnx"
        write(self.prepared.base, self.prepared.sites, stored, path)
        data = packed_archive(self.prepared, stored, path)
        path.unlink()
        return len(data) - describe_archive(data).streams.get("integers", 0) + STEP_BYTES * len(self.entropy.tensors)

    def _within_time(self, training: Training) -> Training:
        """With as many epochs as fit the limit of time: a rate and a price that were cut off half-way would not do."""
        if training.time_limit is None:
            return training
        data, started = self.roles.calibration, time.monotonic()
        self.entropy.refresh()
        for number in range(TIMED):
            x = self._first(data, training.batch)
            started = time.monotonic() if number == 1 else started  # the first one is slower
            apart = distance(outputs_of(self.teacher(x)), outputs_of(self.module(x)))
            (apart + 0.0 * self.entropy.rate()).backward()
        each = (time.monotonic() - started) / (TIMED - 1) * (len(data) // training.batch)
        self.module.zero_grad(set_to_none=True)
        left = max(0.0, training.time_limit - self.refining)
        fitting = int(LIMIT_SHARE * left / max(each, 1e-9))
        return replace(training, epochs=min(training.epochs, max(1, fitting)))

    def train(self) -> list[Fitted]:
        """The parts one after another; what is silent at the end is cut too."""
        done: list[Fitted] = []
        for number, epochs in enumerate(self.parts):
            if number:
                self._cut()
            done.append(self._part(number, epochs, sum((each.seconds for each in done), self.refining)))
            if done[-1].stopped in ("time", "nan"):
                break
        if self.own.cut:
            self._cut_if_same()
        self._looked(len(self.roles.selection))  # of the weights that are kept
        return done

    def _part(self, number: int, epochs: int, spent: float) -> Fitted:
        limit = self.training.time_limit
        plan = replace(self._plan(number, epochs), time_limit=None if limit is None else max(1.0, limit - spent))
        path = None if self.own.checkpoint is None else Path(f"{self.own.checkpoint}.{number}")
        return fit(
            self.module, self.roles.calibration, self._loss, plan, held=self._held, keep=self._keeps,
            groups=self.entropy.groups(self.step_scale), hooks=[self.price], beside=self.known, checkpoint=path,
            identity={
                "part": number, "aim": vars(self.aim), "labels": self.own.labels, "ramp": self.own.ramp,
                "selection": self.roles.selection.sha256,
            },
            device=self.task.device, progress=self._tell,
        )  # fmt: skip

    @property
    def _steps_an_epoch(self) -> int:
        return len(self.roles.calibration) // self.training.batch

    def _plans(self) -> list[Training]:
        return [self._plan(number, epochs) for number, epochs in enumerate(self.parts)]

    def _plan(self, number: int, epochs: int) -> Training:
        """The training of a part: the rate falls in the last."""
        schedule = self.training.schedule if number + 1 == len(self.parts) else "constant"
        return replace(self.training, epochs=epochs, schedule=schedule, seed=self.training.seed + number)

    def _step_scale(self) -> float:
        if self.own.step_scale is not None:
            return self.own.step_scale
        return step_scale_of(self._plans(), self._steps_an_epoch)

    def _tell(self, stage: str, done: int, total: int) -> None:
        self.progress(f"{stage} ({self.price.nbytes / 1000:.1f} kB now)", done, total)

    def _loss(self, x: Tensor, labels: Tensor | None, *known: Tensor) -> Tensor:
        aim = list(known)
        if not aim:
            with torch.no_grad():
                aim = outputs_of(self.teacher(x))
        apart = distance(aim, outputs_of(self.module(x)), labels, self.own.labels)
        return apart + self.price.now / 8 * self.entropy.rate()

    def _held(self) -> float:
        """The distance on the selection inputs; where a drop is asked, bytes."""
        whole, count = len(self.roles.selection), len(self.roles.selection)
        if self.aim.points is None and self.price.done <= SETTLED:
            count = min(LOOK, whole)
        self.apart, self.lost = self._looked(count)
        self.coded = self.price.measure()
        self.price.dropped(self.lost.points + self.lost.error)
        return self.apart if self.aim.points is None else float(self.coded)

    def _looked(self, count: int) -> tuple[float, Loss]:
        """Distance and loss on the first selection inputs."""
        selection, judge = self.roles.selection, self.judge
        found = answers(self.module, selection.array(0, count))
        aims = [each[:count] for each in self.aims]
        labels = None if selection.labels is None else torch.from_numpy(selection.labels[:count].copy())
        self.kl = float(distance(aims, found))
        if count < len(selection):
            some = tuple(each[:count] for each in judge.reference)
            judge = replace(judge, reference=some, labels=None if judge.labels is None else judge.labels[:count])
        apart = float(distance(aims, found, labels, self.own.labels))
        return apart, judge.loss(tuple(each.numpy() for each in found))

    def _keeps(self) -> bool:
        if self.price.done < SETTLED:
            return False
        if self.aim.size is not None:
            return self.coded <= self.aim.size
        return self.aim.points is None or self.lost.points + self.lost.error <= self.aim.points

    def _cut(self) -> None:
        """Leave the silent channels behind."""
        masters, steps, forms = self.entropy.masters(), self.entropy.steps(), self.entropy.forms()
        stored = {site.name: untouched(site) for site in self.prepared.sites}
        for name, one in masters.items():
            stored[name] = Stored(Dense(one["weight"]), one.get("bias"))
        integers = integers_of(stored_of(self.prepared, forms))
        smaller = without_silent(replace(self.task, prepared=self.prepared), stored, integers)
        if smaller is None:
            return
        smaller.module.to(self.task.device)
        self.prepared, self.module = smaller, copy.deepcopy(smaller.module)
        self.entropy = self._entropy(steps)
        self.price.goes_on(self.entropy)
        self.module.eval()

    @property
    def some(self) -> Tensor:
        """Selection inputs on which answers are compared."""
        return self._first(self.roles.selection, COMPARED)

    def _cut_if_same(self) -> None:
        """The same at the end, unless it changes an answer: a silent channel need not be one of zeros everywhere."""
        before = self.prepared, self.module, self.entropy
        x = self.some
        with torch.no_grad():
            found = outputs_of(self.module(x))
            self._cut()
            unchanged = same(found, outputs_of(self.module(x)))
        if not unchanged:
            self.prepared, self.module, self.entropy = before
            self.price.goes_on(self.entropy)


def trained(site: Site) -> bool:
    """Whether a layer becomes integers."""
    return site.refusal is None and site.geometry.kind != "conv_transpose"


def step_scale_of(parts: Sequence[Training], each: int) -> float:
    """How many times the rate of weights steps have: 1, or more where Adam could hardly move them.

    Args:
        parts: of the training.
        each: optimizer's steps in an epoch.

    >>> step_scale_of([Training(epochs=60, lr=1e-3)], 400), round(step_scale_of([Training(epochs=12, lr=3e-4)], 50), 1)
    (1.0, 7.7)
    """
    if any(part.optimizer != "adamw" for part in parts):
        return 1.0
    way = sum(part.lr * part.rate(step, part.epochs * each) for part in parts for step in range(part.epochs * each))
    return max(1.0, math.log(TRAVEL) / max(way, 1e-9))


def rates_of(parts: Sequence[Training], each: int) -> list[float]:
    """The learning rate of every step, as a share of the highest.

    Args:
        parts: of the training.
        each: optimizer's steps in an epoch.

    >>> rates_of([Training(epochs=1, schedule="constant", warmup=0.0)], 3)
    [1.0, 1.0, 1.0]
    """
    return [part.rate(step, part.epochs * each) for part in parts for step in range(part.epochs * each)]


def parts_of(epochs: int) -> list[int]:
    """Epochs of each part; few are not divided.

    >>> parts_of(60), parts_of(3)
    ([4, 5, 9, 42], [3])
    """
    first = [max(1, round(share * epochs)) for share in PARTS[:-1]]
    return [*first, epochs - sum(first)] if epochs >= 2 * len(PARTS) else [epochs]


def stored_of(prepared: Prepared, forms: Forms) -> dict[str, Stored]:
    """What an archive stores of each site."""
    stored = {site.name: untouched(site) for site in prepared.sites}
    for name, one in forms.items():
        bias = one.get("bias")
        stored[name] = Stored(one["weight"], None if bias is None else dense(bias), bias)
    return stored


def told(done: Sequence[Fitted]) -> list[dict[str, Any]]:
    """For the record: epochs of all parts, counted on."""
    rows, before = list[dict[str, Any]](), 0
    for each in done:
        rows += [{**row, "epoch": row["epoch"] + before} for row in each.history]
        before += each.epochs
    return rows
