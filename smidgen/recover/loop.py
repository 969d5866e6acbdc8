"""The training loop: best weights kept, resumed to the bit after a kill, taken back when the loss explodes.

A step is decided by the seed and its place alone (order of inputs, augmentation, dropout), so nothing but weights,
optimizer and hooks has to be stored to go on, and a resumed run ends in the same bits as one that was not stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from smidgen.data import Dataset
from smidgen.errors import LoadError, UserError
from smidgen.recover.checkpoint import Fingerprint, fingerprint, read_checkpoint, write_checkpoint
from smidgen.recover.feeding import Feed, Place
from smidgen.recover.holding import Holding
from smidgen.recover.processes import Asked, processes
from smidgen.recover.scoring import exactly
from smidgen.recover.training import Training, duration, multiplies_bfloat16

__all__ = ["Fitted", "Hook", "Training", "fit"]

SAVE_SECONDS = 60.0  # between checkpoints within an epoch
TELL_SECONDS = 10.0  # between two sentences of progress
MOST_ROLLBACKS = 3  # of a run; then it ends with the best so far
EXPLODED = 1e6  # times the first loss (of at least 1): far beyond a bad step, well before float32 overflows
Progress = Callable[[str, int, int], None]
Loss = Callable[..., Tensor]  # (x, labels or None, *rows beside) -> scalar
Stopped = Literal["done", "patience", "time", "nan"]


def silent(stage: str, done: int, total: int) -> None:
    """Progress that no one looks at."""


@runtime_checkable
class Hook(Protocol):
    """What happens after each step of the optimizer: a pruning schedule, a penalty's ramp, an average of weights.

    Its state must be tensors and plain values, nested in dicts and lists: it is stored with the weights.
    """

    def step(self) -> object: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


@dataclass(frozen=True)
class Fitted:
    """How a training went.

    Args:
        epochs: finished.
        steps: taken, those of epochs that were taken back left out.
        best: held-out score of the best epoch; None without one.
        best_epoch: from 1, whose weights the network has now; None where it has the last ones, or their average.
        seconds: of training, those before a resumption included.
        stopped: why it ended: all epochs done, no better score for long, out of time, or a loss that kept exploding.
        history: of each epoch: epoch, loss, held, lr.
        rollbacks: how often it was taken back to the start of an epoch.
        precision: what was computed in, ``bfloat16`` or ``float32``.
    """

    epochs: int
    steps: int
    best: float | None
    best_epoch: int | None
    seconds: float
    stopped: Stopped
    history: tuple[dict[str, Any], ...]
    rollbacks: int = 0
    precision: str = "float32"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "history": list(self.history)}


def fit(
    model: nn.Module,
    inputs: Dataset,
    loss: Loss,
    training: Training,
    *,
    held: Callable[[], float] | None = None,
    within: Callable[[float], float] = exactly,
    keep: Callable[[], bool] = lambda: True,
    groups: Sequence[Mapping[str, Any]] | None = None,
    hooks: Sequence[Hook] = (),
    beside: Sequence[Tensor] = (),
    checkpoint: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Fitted:
    """Train a network in place.

    Under ``torchrun`` each process takes ``training.batch`` inputs of every step and all get the same weights.

    Args:
        model: moved to the device, and left there in evaluation mode with the best weights.
        inputs: labels optional; shuffled anew each epoch.
        loss: of a batch: called with inputs, labels or None, and the rows of ``beside``; a closure over the model.
        training: see `Training`.
        held: score on the held-out part, lower is better; asked after each epoch, the model in evaluation mode. The
            weights of the best epoch come back at the end.
        within: how far above the lowest score a later epoch may be that is taken for as good, by that score.
        keep: whether the epoch that has ended may be the best, as when a schedule has first to reach its end.
        groups: of parameters; each with ``params`` and perhaps ``lr_scale`` (times the rate) or ``weight_decay``; all
            of the model's when None.
        hooks: stepped after the optimizer, in order.
        beside: rows for each input, ``[inputs, …]``, such as a teacher's answers.
        checkpoint: file to go on from, and to write: each epoch, each minute, and at the end.
        identity: what else must agree for a run to go on, as plain values.
        device: ``cpu`` or ``cuda``.
        progress: called with (what is done, with loss and time left; steps done; all steps).

    Returns:
        How it went.

    Raises:
        UserError: fewer inputs than a batch, nothing to train, or a checkpoint of another run; nothing is then written.

    >>> import numpy as np
    >>> x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    >>> net = nn.Linear(1, 1)
    >>> loss = lambda inputs, labels: (net(inputs) - (3 * inputs + 1)).square().mean()
    >>> fit(net, Dataset.from_array(x), loss, Training(epochs=60, batch=16, lr=0.1)).stopped
    'done'
    >>> [round(value.item(), 2) for value in (net.weight, net.bias)]
    [3.0, 1.0]
    """
    team = processes(device)
    feed = Feed(inputs, beside, training, team)
    model.to(team.device)
    made = None if checkpoint is None else fingerprint(model, inputs, training, hooks, identity or {})
    holding = Holding(model, _groups(model, groups, training), training, hooks)
    run = _Run(model, loss, training, feed, team, holding, held, within, keep, progress)
    with torch.random.fork_rng(devices=_cuda(team.device)):
        return run.train(None if checkpoint is None or made is None else _Saving(checkpoint, made))


def _cuda(device: torch.device) -> list[int]:
    """The card whose random numbers are drawn from, besides the host's."""
    if device.type != "cuda":
        return []
    return [torch.cuda.current_device() if device.index is None else device.index]


def _groups(model: nn.Module, groups: Sequence[Mapping[str, Any]] | None, training: Training) -> list[dict[str, Any]]:
    """For the optimizer: each group divided into what decays and what does not."""
    made: list[dict[str, Any]] = []
    every: list[Mapping[str, Any]] = [{"params": list(model.parameters())}]
    for group in every if groups is None else groups:
        trained = [each for each in group["params"] if each.requires_grad]
        decay = group.get("weight_decay")
        for part, share in (
            ([p for p in trained if p.ndim > 1], training.weight_decay if decay is None else decay),
            ([p for p in trained if p.ndim <= 1], 0.0 if decay is None else decay),
        ):
            if part:
                made.append({"params": part, "lr_scale": float(group.get("lr_scale", 1.0)), "weight_decay": share})
    if not made:
        raise UserError("train: the network has no parameters to train; unfreeze some")
    return made


@dataclass(frozen=True)
class _Saving:
    path: Path
    made: Fingerprint


@dataclass
class _Books:
    """Everything a run knows of itself besides weights; plain values, stored with them."""

    epoch: int = 0
    step: int = 0
    total: float = 0.0  # of the losses in this epoch
    first: float | None = None
    scale: float = 1.0  # of the rate; halved at each rollback
    rollbacks: int = 0
    best: float | None = None
    best_epoch: int | None = None
    lowest: float | None = None  # score; the best is within its noise, and later
    stale: int = 0  # epochs since the lowest
    seconds: float = 0.0
    stopped: str | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


class _Exploded(Exception):
    """The loss, or its gradient, is not finite or far beyond where it began."""


class _OutOfTime(Exception):
    """The time limit is reached."""


class _Run:
    """One call of `fit`."""

    def __init__(
        self, model: nn.Module, loss: Loss, training: Training, feed: Feed, team: Any, holding: Holding,
        held: Callable[[], float] | None, within: Callable[[float], float], keep: Callable[[], bool],
        progress: Progress,
    ) -> None:  # fmt: skip
        self.model, self.training, self.feed, self.team, self.holding = model, training, feed, team, holding
        self.held, self.within, self.keep, self.progress = held, within, keep, progress
        self.asked = Asked(model, loss, holding.beyond)
        self.loss = team.share(self.asked)
        self.books = _Books()
        self.start: dict[str, Any] = {}  # as it was when this epoch began
        self.best: dict[str, Any] | None = None
        self.saving: _Saving | None = None
        self.sentence = ""
        self.all_steps = training.epochs * feed.steps
        self.mixed = training.precision == "mixed" and multiplies_bfloat16(team.device.type)

    def train(self, saving: _Saving | None) -> Fitted:
        self.saving = saving
        self._resume()
        books, limit = self.books, self.training.time_limit
        if books.stopped == "time" and (limit is None or books.seconds < limit):
            books.stopped = None
        if books.stopped is None:
            self.feed.lay_out(self._attempt)
        self.clock = self.saved = self.told = time.monotonic()
        while books.stopped is None:
            try:
                self._epoch()
            except _Exploded:
                self._take_back()
            except _OutOfTime:
                self._close(self._score(), partial=True)
                books.stopped = "time"
            if books.stopped is None and books.epoch == self.training.epochs:
                books.stopped = "done"
            self._save()
        return self._finish()

    def _attempt(self, x: Tensor, labels: Tensor | None, *rows: Tensor) -> None:
        """A step of which nothing is left: not in the statistics of norms either."""
        now = self.holding.weights()
        self.model.train()
        try:
            self._asked_of(self.asked, x, labels, rows).backward()
        finally:
            self.holding.load_weights(now)

    def _asked_of(self, loss: nn.Module, x: Tensor, labels: Tensor | None, rows: Sequence[Tensor]) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.mixed):
            return loss(x, labels, *rows)

    def _epoch(self) -> None:
        books = self.books
        if books.step == 0:
            self.start = self.holding.state()
        self.model.train()
        while books.step < self.feed.steps:
            self._step()
            if time.monotonic() - self.saved > SAVE_SECONDS:
                self._save()
        score = self._score()
        books.history.append({
            "epoch": books.epoch + 1, "loss": books.total / self.feed.steps, "held": score,
            "lr": self.training.lr * books.scale * self.training.rate(self._place(books.step - 1), self.all_steps),
        })  # fmt: skip
        books.epoch, books.step, books.total = books.epoch + 1, 0, 0.0
        self._close(score)
        patience = self.training.patience
        if patience is not None and books.stale >= patience and books.epoch < self.training.epochs:
            books.stopped = "patience"

    def _step(self) -> None:
        books, training, holding = self.books, self.training, self.holding
        place = Place(books.epoch, books.step, books.rollbacks)
        torch.manual_seed(self.feed.seed(place))
        x, labels, rows = self.feed.batch(place)
        holding.optimizer.zero_grad(set_to_none=True)
        loss = self._asked_of(self.loss, x, labels, rows)
        loss.backward()
        norm = holding.clip(training.clip)
        # One message between processes says both: what the loss is and whether time is up.
        late = training.time_limit is not None and self._elapsed() > training.time_limit
        value, stop = self.team.mean(loss.item(), float(late))
        first = books.first = value if books.first is None else books.first
        if not (math.isfinite(value) and math.isfinite(norm)) or abs(value) > EXPLODED * max(1.0, abs(first)):
            raise _Exploded
        holding.step(books.scale * training.rate(self._place(books.step), self.all_steps))
        books.step, books.total = books.step + 1, books.total + value
        self._tell(value)
        if stop > 0:
            raise _OutOfTime

    def _place(self, step: int) -> int:
        return self.books.epoch * self.feed.steps + step

    def _score(self) -> float | None:
        """On the held-out part; the same in every process."""
        if self.held is None:
            return None
        self.model.eval()
        # Each process gathers statistics of its own, and the checkpoint holds those of the first.
        self.team.agree(self.holding.statistics)
        with torch.no_grad(), self.holding.judged():
            score = float(self.held())
        self.model.train()
        return self.team.mean(score)[0]

    def _close(self, score: float | None, partial: bool = False) -> None:
        """Remember the weights if they are the best yet."""
        books = self.books
        if score is None or not self.keep():
            return
        books.stale += 1
        if math.isnan(score):
            return
        lowest = books.best if books.lowest is None else books.lowest
        if lowest is None or score < lowest:
            books.lowest, books.stale = score, 0
        if lowest is None or score < lowest + self.within(lowest):
            books.best, books.best_epoch = score, books.epoch + partial
            with self.holding.judged():
                self.best = self.holding.weights()

    def _take_back(self) -> None:
        """To the start of the epoch, with half the rate."""
        books = self.books
        self.holding.load(self.start)
        books.rollbacks, books.scale, books.step, books.total = books.rollbacks + 1, books.scale / 2, 0, 0.0
        if books.rollbacks >= MOST_ROLLBACKS:
            books.stopped = "nan"
        told = "ends with the best so far" if books.stopped else "taken back, the rate halved"
        self.progress(f"train: the loss exploded in epoch {books.epoch + 1}; {told}", self._place(0), self.all_steps)

    def _finish(self) -> Fitted:
        books = self.books
        self.team.wait()  # for the checkpoint that the first of them writes
        if self.best is None and self.training.average is not None:
            with self.holding.judged():
                self.best = self.holding.weights()
        if self.best is not None:
            self.holding.load_weights(self.best)
        self.model.eval()
        self.holding.optimizer.zero_grad(set_to_none=True)
        stopped: Any = books.stopped
        steps = books.epoch * self.feed.steps + books.step
        return Fitted(
            books.epoch, steps, books.best, books.best_epoch, books.seconds, stopped, tuple(books.history),
            books.rollbacks, "bfloat16" if self.mixed else "float32",
        )  # fmt: skip

    def _elapsed(self) -> float:
        return self.books.seconds + time.monotonic() - self.clock

    def _tell(self, loss: float) -> None:
        now, done = time.monotonic(), self._place(self.books.step)
        if not self.sentence or now - self.told > TELL_SECONDS:
            left = self._elapsed() / done * (self.all_steps - done)
            if self.training.time_limit is not None:
                left = min(left, max(0.0, self.training.time_limit - self._elapsed()))
            self.sentence, self.told = f"train: loss {loss:.4g}, {duration(left)} left, step", now
        self.progress(self.sentence, done, self.all_steps)

    def _save(self) -> None:
        now = time.monotonic()
        self.books.seconds, self.clock, self.saved = self._elapsed(), now, now
        # No process waits for another here: their clocks differ, and so may what they think is due.
        if self.saving is None or self.team.rank != 0:
            return
        state: dict[str, Any] = {"books": asdict(self.books), "now": self.holding.state()}
        if self.books.step:
            state["start"] = self.start
        if self.best is not None:
            state["best"] = self.best
        write_checkpoint(self.saving.path, state, self.saving.made)

    def _resume(self) -> None:
        state = None if self.saving is None else read_checkpoint(self.saving.path, self.saving.made)
        if state is None or self.saving is None:
            return
        try:
            self.books = _Books(**state["books"])
            self.holding.load(state["now"])
            self.start, self.best = state.get("start", {}), state.get("best")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise LoadError(f"checkpoint: '{self.saving.path}' is damaged; remove it to start over") from error
