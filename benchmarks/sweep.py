"""One network opened once, then compressed at many budgets: the dial's whole curve without repeating calibration."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from smidgen.budget import Budget
from smidgen.data import Dataset
from smidgen.measure.scores import Judge
from smidgen.methods import AnyMethod
from smidgen.pipeline import Task, Workshop, candidates, search
from smidgen.planning.allocate import allocate, price_of_tradeoff
from smidgen.planning.candidates import Options
from smidgen.planning.plan import Plan
from smidgen.planning.search import Trial
from smidgen.runtimes.onnxruntime import open_onnx
from smidgen.runtimes.opening import run_dataset

DIAL = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class Point:
    """One written file and what it scored on the test inputs.

    Args:
        asked: the budget, such as "tradeoff 0.5".
        value: its number.
        nbytes: of the file; the original's where the rewritten file would have been larger and the original is kept.
        ratio: original bytes / written bytes.
        accuracy, agreement: fractions.
        lost, lost_low, lost_high: points of accuracy lost, and their paired 95 % interval.
        kl: KL(original ‖ compressed) in nats a sample.
        predicted: loss that the plan predicted.
        layers: what each changed layer became.
        kept_original: whether the rewritten file would have been larger.
    """

    asked: str
    value: float
    nbytes: int
    ratio: float
    accuracy: float
    agreement: float
    lost: float
    lost_low: float
    lost_high: float
    kl: float | None
    predicted: float
    layers: str
    kept_original: bool

    def as_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)


class Bench:
    """A task with its candidates and the original's answers to the test inputs.

    Args:
        task: from `smidgen.pipeline.open_task`.
        methods: see `smidgen.compress`.
        test: labelled inputs that every file is scored on.
        refit: see `smidgen.compress`.
        target: the kind of file that is written and scored.
        tell: called with a line for each point.
        found: what `smidgen.pipeline.candidates` gave for the methods, if it was asked before.
    """

    def __init__(
        self,
        task: Task,
        methods: str | Sequence[str] | Mapping[str, Sequence[str]],
        test: Dataset,
        *,
        refit: bool = True,
        target: str = "onnx",
        tell: Callable[[str], None] = lambda line: print(line, flush=True),
        found: tuple[list[Options], dict[str, AnyMethod]] | None = None,
    ) -> None:
        self.task, self.test, self.tell = task, test, tell
        self.options, self.chosen = found or candidates(task, methods, target=target)
        self.work = Workshop(task, self.options, refit, lambda stage, done, total: None, targets=(target,))
        with open_onnx(self.work.original, task.threads) as runner:
            answers = run_dataset(runner, test.batches())
            self.judge = Judge(answers, runner.output_names, test.labels)
        self.nbytes = self.work.original.stat().st_size
        self.baseline = self.judge.baseline()
        self._known: dict[Any, Point] = {}
        # The ONNX files of floats, by plan and by what was asked; they are there while this object is.
        self._files: dict[Any, Path] = {}
        self._paths: dict[str, Path] = {}

    def at_dial(self, tradeoff: float) -> Point:
        """The file at one position of the trade-off dial."""
        plan = allocate(self.options, price_of_tradeoff(tradeoff, self.options), self.chosen)
        return self._point(f"tradeoff {tradeoff:g}", tradeoff, plan, None)

    def at_ratio(self, ratio: float) -> Point:
        """The file that `smidgen.compress` finds for a ratio budget."""
        best = search(self.work, Budget(ratio=ratio), self.options, self.chosen).best
        return self._point(f"ratio {ratio:g}", ratio, best.plan, best)

    def at_plan(self, asked: str, value: float, plan: Plan) -> Point:
        """The file of a plan.

        Args:
            asked: what the plan stands for.
            value: its number.
            plan: one choice a site.
        """
        return self._point(asked, value, plan, None)

    def path(self, asked: str) -> Path:
        """The ONNX file of floats that a point was scored on; the original where that was kept."""
        return self._paths[asked]

    def _point(self, asked: str, value: float, plan: Plan, trial: Trial | None) -> Point:
        # Neighbouring positions of the dial often mean the same plan.
        if plan.key not in self._known:
            trial = trial or self.work.trial(plan)
            self._known[plan.key] = self._scored(asked, value, trial)
            self._files[plan.key] = trial.carried[1]
        point = replace(self._known[plan.key], asked=asked, value=value)
        self._paths[asked] = self.work.original if point.kept_original else self._files[plan.key]
        layers = textwrap.shorten(point.layers, 60, placeholder=" …")
        self.tell(
            f"{point.asked:14} {point.nbytes:>9} B  {point.ratio:6.2f}x  accuracy {100 * point.accuracy:6.2f} %  "
            f"lost {point.lost:6.2f}  agreement {100 * point.agreement:6.2f} %  {layers}"
        )
        return point

    def _scored(self, asked: str, value: float, trial: Trial) -> Point:
        with open_onnx(trial.carried[1], self.task.threads) as runner:
            answers = run_dataset(runner, self.test.batches())
        scores, loss = self.judge.judge(answers), self.judge.loss(answers)
        nbytes = min(trial.nbytes, self.nbytes)  # as `smidgen.compress`, which never hands out a larger file
        return Point(
            asked, value, nbytes, self.nbytes / nbytes, _known(scores.accuracy), _known(scores.agreement),
            loss.points, loss.low, loss.high, scores.kl, trial.plan.loss, _layers(trial.plan),
            trial.nbytes > self.nbytes,
        )  # fmt: skip


def _known(value: float | None) -> float:
    if value is None:
        raise ValueError("the test inputs need labels and the network must be a classifier")
    return value


def _layers(plan: Plan) -> str:
    changed = [f"{c.site.split('.')[-1]} {c.method} {c.rank}" for c in plan.choices if c.method is not None]
    rounded = sum(c.step is not None for c in plan.choices)
    return ", ".join([*([f"{rounded} rounded"] if rounded else []), *changed]) or "nothing changed"


def falls(points: Sequence[Point]) -> tuple[bool, bool]:
    """Whether bytes never rise along the dial, and whether they fall at every step."""
    pairs = list(pairwise(points))
    return all(b.nbytes <= a.nbytes for a, b in pairs), all(b.nbytes < a.nbytes for a, b in pairs)
