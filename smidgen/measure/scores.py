"""How well the answers of a written file are, and what they lost against the original's.

A network is read by its outputs. One output [n, k] with k ≥ 2 (trailing axes of length 1 are dropped) is a classifier:
accuracy, top-5, ROC AUC, agreement, KL. One output [n, 1] with labels 0 and 1 is a classifier too, its value being the
logit of class 1 (its probability where the original's values all lie in [0, 1]). Anything else, several outputs, a map
or a regression, is judged by the normalised error of each output against the original's, without labels.

The loss is in points, a hundred to the unit, above zero where the file answers worse:

    your metric        100 · (metric of the original − metric of the file)
    accuracy           100 · (accuracy of the original − accuracy of the file)
    agreement          100 · (1 − agreement)                        classifiers without labels
    normalised error   100 · mean over outputs and samples          everything else
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from smidgen.errors import UserError
from smidgen.measure.outputs import Outputs, as_classes, check_outputs, class_numbers, why_no_classes
from smidgen.measure.user_metric import Metric, apply_metric, load_metric, metric_name
from smidgen.numerics import metrics

__all__ = ["CONFIDENCE", "Judge", "Loss", "Metric", "Outputs", "Scores", "load_metric", "score"]

CONFIDENCE = 0.95
# Top five says something only of more classes than five.
_TOP = 5
# Resamples behind the interval of a user's metric, which may be slow: five in each 2.5 % tail.
_METRIC_RESAMPLES = 200


@dataclass(frozen=True)
class Scores:
    """What one network scored on ``count`` samples; None where it could not be measured, with the reason in ``why``.

    Fractions for accuracy, top5, roc_auc and agreement, nats a sample for kl, for output_error the mean normalised
    error of each output; intervals are 95 % Wilson intervals of single shares.
    """

    count: int
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    top5: float | None = None
    roc_auc: float | None = None
    agreement: float | None = None
    agreement_interval: tuple[float, float] | None = None
    kl: float | None = None
    output_error: dict[str, float] | None = None
    metric: float | None = None
    metric_name: str | None = None
    why: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Loss:
    """What was lost, in points (module docstring), with its 95 % confidence interval; ``metric`` names what.

    ``error`` is one standard error of the points, paired sample by sample. Unlike the interval it is zero where no
    sample differs: what changes nothing is then never doubted, however few the samples.
    """

    points: float
    low: float
    high: float
    metric: str
    error: float = 0.0


@dataclass(frozen=True, eq=False)
class Judge:
    """Judges a network's outputs against the original's on the same samples.

    ``reference``: the original's outputs, one array [n, …] each; ``output_names`` name them; ``labels``: class numbers
    [n], or whatever ``metric`` takes, or None; ``metric``: see ``load_metric``, replaces accuracy.
    DataError when counts or labels do not fit.

    >>> logits = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    >>> judge = Judge(reference=(logits,), output_names=("logits",), labels=np.array([0, 1, 0]))
    >>> judge.judge((-logits,)).accuracy, judge.loss((-logits,)).points, judge.measures
    (0.0, 100.0, 'accuracy')
    """

    reference: Outputs
    output_names: tuple[str, ...]
    labels: np.ndarray | None = None
    metric: Metric | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_outputs(self.reference, self.output_names, None, self.labels)
        if self.metric is None:
            _ = self._labels  # labels that do not fit are told now, not after an hour

    @property
    def measures(self) -> str:
        """What the loss is counted in: 'accuracy', 'agreement', 'normalised error' or the metric's name."""
        if self.metric is not None:
            return metric_name(self.metric)
        if as_classes(self.reference, self.labels, None) is None:
            return "normalised error"
        return "agreement" if self._labels is None else "accuracy"

    def baseline(self) -> Scores:
        """Scores of the original itself, without agreement, KL or output error."""
        return score(
            self.reference, reference=None, labels=self.labels, output_names=self.output_names, metric=self.metric
        )

    def judge(self, outputs: Outputs) -> Scores:
        """Scores of ``outputs``, one array [n, …] an output. DataError when they do not match the original's."""
        return score(
            outputs, reference=self.reference, labels=self.labels, output_names=self.output_names, metric=self.metric
        )

    def loss(self, outputs: Outputs) -> Loss:
        """What ``outputs`` lost against the original, paired sample by sample (module docstring).

        An output with NaN or infinity loses infinitely many points by normalised error, and its sample by accuracy.
        DataError when the outputs do not match the original's.
        """
        check_outputs(outputs, self.output_names, self.reference, self.labels)
        if self.metric is not None:
            return self._metric_loss(outputs)
        before = as_classes(self.reference, self.labels, None)
        after = as_classes(outputs, self.labels, self.reference)
        if before is None or after is None:
            return _error_loss(self.reference, outputs, self.seed)
        if self._labels is None:
            return _agreement_loss(before, after)
        right, still = metrics.correct(before, self._labels), metrics.correct(after, self._labels)
        low, high = metrics.paired_interval(right, still, CONFIDENCE)
        lost = right.astype(np.float64) - still
        return _points(float(right.mean() - still.mean()), low, high, "accuracy", _standard_error(lost))

    @cached_property
    def _labels(self) -> Int64[np.ndarray, " n"] | None:
        classes = as_classes(self.reference, self.labels, None)
        return None if classes is None else class_numbers(self.labels, classes.shape[1])

    @cached_property
    def _metric_before(self) -> tuple[float, list[float | None]]:
        """The original's metric, on all samples and on each resample: the same for every file judged."""
        assert self.metric is not None  # for the type checker: asked for by _metric_loss alone
        return apply_metric(self.metric, self.reference, self.labels), self._resampled(self.metric, self.reference)

    def _metric_loss(self, outputs: Outputs) -> Loss:
        """Percentile bootstrap over samples, both networks on the same resamples (doi:10.1214/aos/1176344552)."""
        assert self.metric is not None  # for the type checker: asked for by loss alone
        before, resampled_before = self._metric_before
        drop = before - apply_metric(self.metric, outputs, self.labels)
        pairs = zip(resampled_before, self._resampled(self.metric, outputs), strict=True)
        drops = [b - a for b, a in pairs if b is not None and a is not None]
        if len(drops) < _METRIC_RESAMPLES // 2:
            raise UserError(
                f"metric: '{metric_name(self.metric)}' fails on most resamples of the {len(outputs[0])} samples; "
                "give more samples, or a metric that is defined on any of them"
            )
        error = float(np.std(drops))
        low, high = (float(q) for q in np.quantile(drops, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)))
        if low == high:
            # No resample differs: as in paired_interval, from the spread of one sample.
            count = len(outputs[0])
            spread = float(np.std([b for b in resampled_before if b is not None])) * math.sqrt(count)
            slack = metrics.proportion_interval(0, count, CONFIDENCE)[1] * (spread or 1.0)
            low, high = low - slack, high + slack
        return _points(drop, min(low, drop), max(high, drop), metric_name(self.metric), error)

    def _resampled(self, metric: Metric, outputs: Outputs) -> list[float | None]:
        rng = np.random.default_rng(self.seed)
        count = len(outputs[0])
        found: list[float | None] = []
        for _ in range(_METRIC_RESAMPLES):
            rows = rng.integers(0, count, count)
            labels = None if self.labels is None else self.labels[rows]
            try:
                found.append(apply_metric(metric, tuple(each[rows] for each in outputs), labels))
            except UserError:  # a class may be missing from one resample
                found.append(None)
        return found


def score(
    outputs: Outputs,
    *,
    reference: Outputs | None,
    labels: np.ndarray | None,
    output_names: Sequence[str],
    metric: Metric | None = None,
) -> Scores:
    """Everything that can be said of ``outputs`` (module docstring), with reasons for the rest.

    ``outputs`` and ``reference``: one array [n, …] an output, ``reference`` the original's; ``labels`` [n].
    DataError when counts, shapes or labels do not fit; UserError when the metric fails.

    >>> found = score((np.eye(3),), reference=None, labels=np.array([0, 1, 0]), output_names=["y"])
    >>> round(found.accuracy, 3), found.why["roc_auc"], found.why["kl"]
    (0.667, 'needs two classes, the network has 3', 'nothing to compare with')
    """
    check_outputs(outputs, output_names, reference, labels)
    why: dict[str, str] = {}
    found: dict[str, Any] = {}
    classes = as_classes(outputs, labels, reference)
    if metric is not None:
        found |= {"metric": apply_metric(metric, outputs, labels), "metric_name": metric_name(metric)}
        why |= dict.fromkeys(("accuracy", "top5", "roc_auc"), f"judged by your metric '{metric_name(metric)}'")
    elif classes is None:
        why |= dict.fromkeys(("accuracy", "top5", "roc_auc"), why_no_classes(outputs))
    else:
        _score_labels(classes, class_numbers(labels, classes.shape[1]), found, why)
    if reference is None:
        why |= dict.fromkeys(("agreement", "kl", "output_error"), "nothing to compare with")
    else:
        _score_reference(outputs, reference, labels, output_names, found, why)
    return Scores(count=len(outputs[0]), why=why, **found)


def _score_labels(
    classes: Float[np.ndarray, "n k"],
    labels: Int64[np.ndarray, " n"] | None,
    found: dict[str, Any],
    why: dict[str, str],
) -> None:
    """Adds what needs labels."""
    if labels is None:
        why |= dict.fromkeys(("accuracy", "top5", "roc_auc"), "no labels")
        return
    right = metrics.correct(classes, labels)
    found["accuracy"] = float(right.mean())
    found["accuracy_interval"] = metrics.proportion_interval(int(right.sum()), len(right), CONFIDENCE)
    size = classes.shape[1]
    if size > _TOP:
        found["top5"] = metrics.topk(classes, labels, _TOP)
    else:
        why["top5"] = f"needs more than {_TOP} classes, the network has {size}"
    if size != 2:
        why["roc_auc"] = f"needs two classes, the network has {size}"
    elif not np.isfinite(classes).all():
        why["roc_auc"] = "the output has NaN or infinity"
    elif len(np.unique(labels)) < 2:
        why["roc_auc"] = f"needs samples of both classes, all labels are {labels[0]}"
    else:
        found["roc_auc"] = metrics.roc_auc(classes[:, 1] - classes[:, 0], labels)


def _score_reference(
    outputs: Outputs,
    reference: Outputs,
    labels: np.ndarray | None,
    output_names: Sequence[str],
    found: dict[str, Any],
    why: dict[str, str],
) -> None:
    """Adds what needs the original's outputs."""
    errors = _errors(reference, outputs)
    if all(np.isfinite(each).all() for each in errors):
        found["output_error"] = {name: float(each.mean()) for name, each in zip(output_names, errors, strict=True)}
    else:
        why["output_error"] = "an output has NaN or infinity"
    before, after = as_classes(reference, labels, None), as_classes(outputs, labels, reference)
    if before is None or after is None:
        why |= dict.fromkeys(("agreement", "kl"), why_no_classes(outputs))
        return
    same = metrics.correct(after, before.argmax(axis=1))
    found["agreement"] = float(same.mean())
    found["agreement_interval"] = metrics.proportion_interval(int(same.sum()), len(same), CONFIDENCE)
    if np.isfinite(before).all() and np.isfinite(after).all():
        found["kl"] = float(metrics.kl_divergence(before, after).mean())
    else:
        why["kl"] = "an output has NaN or infinity"


def _agreement_loss(before: Float[np.ndarray, "n k"], after: Float[np.ndarray, "n k"]) -> Loss:
    """The share of samples answered otherwise; a single share, for it cannot be negative."""
    other = ~metrics.correct(after, before.argmax(axis=1))
    low, high = metrics.proportion_interval(int(other.sum()), len(other), CONFIDENCE)
    return _points(float(other.mean()), low, high, "agreement", _standard_error(other.astype(np.float64)))


def _error_loss(reference: Outputs, outputs: Outputs, seed: int) -> Loss:
    """The mean normalised error; where nothing differs, one sample as bad as the mean sets the interval."""
    error = np.mean(_errors(reference, outputs), axis=0)
    mean = float(error.mean())
    if not math.isfinite(mean):
        return Loss(math.inf, math.inf, math.inf, "normalised error")
    if len(error) == 1:
        slack = metrics.proportion_interval(0, 1, CONFIDENCE)[1]
        low, high = mean - slack, mean + slack
    else:
        low, high = metrics.paired_interval(error, np.zeros_like(error), CONFIDENCE, seed, unit=1.0)
    return _points(mean, max(low, 0.0), high, "normalised error", _standard_error(error))


def _standard_error(lost: Float[np.ndarray, " n"]) -> float:
    """Of the mean of what each sample lost.

    >>> _standard_error(np.zeros(5)), _standard_error(np.array([1.0, 0.0, 0.0, 0.0]))
    (0.0, 0.21650635094610965)
    """
    return float(lost.std()) / math.sqrt(len(lost))


def _errors(reference: Outputs, outputs: Outputs) -> list[Float[np.ndarray, " n"]]:
    pairs = zip(reference, outputs, strict=True)
    return [metrics.normalised_error(r.astype(np.float64), o.astype(np.float64)) for r, o in pairs]


def _points(mean: float, low: float, high: float, metric: str, error: float) -> Loss:
    return Loss(100 * mean, 100 * low, 100 * high, metric, 100 * error)
