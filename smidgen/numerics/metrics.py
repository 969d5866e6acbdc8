"""How well one network answers, and how far another's answers are from it: numpy in, float64 inside.

Axis letters: n samples, k classes. Sources stand beside each formula; the intervals are

    0/1 outcomes, two networks    Tango's score interval (Statistics in Medicine 17, 891–908, 1998),
                                  doi:10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B
    0/1 outcomes, one network     Wilson's score interval, doi:10.1080/01621459.1927.10502953
    real values                   Efron's BCa bootstrap of the mean, doi:10.1080/01621459.1987.10478410,
                                  widened for few samples, doi:10.1080/00031305.2015.1089789
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Integer, Num, Shaped

# A softmax in float32 sums to one within 1e-6; an 8-bit grid of step 1/256 leaves it within a few hundredths.
_SUMS_TO_ONE = 0.02
# Float32's resolution at one: a probability that rounded to nothing costs at most 16 nats instead of infinitely many.
_SMALLEST_PROBABILITY = float(np.finfo(np.float32).eps)
# Resamples behind a bootstrap limit: the Monte Carlo error of a 2.5 % tail is then about a seventh of that tail.
_RESAMPLES = 2000
# Halvings of [-1, 1]: the last interval is narrower than one float64 step.
_HALVINGS = 60


def correct(logits: Float[np.ndarray, "n k"], labels: Integer[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which samples are answered right: argmaxⱼ logits[i, j] = labels[i], the first maximum winning.

    A row holding NaN is wrong whatever its label. Returns one truth value a sample.

    >>> correct(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
    array([ True, False])
    """
    return (logits.argmax(axis=1) == labels) & ~np.isnan(logits).any(axis=1)


def accuracy(logits: Float[np.ndarray, "n k"], labels: Integer[np.ndarray, " n"]) -> float:
    """Share of samples whose largest logit is the label's; the first maximum wins, a row with NaN is wrong.

    Takes logits (or probabilities) and class numbers, returns a fraction in [0, 1]. ValueError without samples.

    >>> accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
    0.5
    """
    return float(_some(correct(logits, labels)).mean())


def topk(logits: Float[np.ndarray, "n k"], labels: Integer[np.ndarray, " n"], k: int = 5) -> float:
    """Share of samples whose label is among the ``k`` largest logits; of equal logits the earlier ranks higher.

    Takes logits and class numbers, returns a fraction in [0, 1]. A row with NaN is wrong. ValueError without samples.

    >>> topk(np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), np.array([1, 2]), k=2)
    0.5
    """
    own = np.take_along_axis(logits, labels[:, None].astype(np.int64), axis=1)
    earlier = np.arange(logits.shape[1])[None, :] < labels[:, None]
    ahead = (logits > own).sum(axis=1) + ((logits == own) & earlier).sum(axis=1)
    return float(_some((ahead < k) & ~np.isnan(logits).any(axis=1)).mean())


def roc_auc(scores: Num[np.ndarray, " n"], labels: Shaped[np.ndarray, " n"]) -> float:
    """Area under the ROC curve, exactly: the chance that a positive scores above a negative, ties counting half.

        AUC = (R₁ − n₁(n₁+1)/2) / (n₁·n₀)

    R₁ is the sum of the positives' ranks, ties sharing their mean rank (the Mann–Whitney statistic;
    doi:10.1148/radiology.143.1.7063747). Takes one score a sample and labels 0/1, returns a fraction in [0, 1].
    ValueError when a class is missing, a label is neither 0 nor 1, or a score is NaN.

    >>> roc_auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    0.75
    """
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"ROC AUC needs labels 0 and 1, got {np.unique(labels)[:5].tolist()}")
    if np.isnan(scores).any():
        raise ValueError("ROC AUC needs scores that can be ordered, got NaN")
    positive = labels == 1
    ones = int(positive.sum())
    zeros = len(labels) - ones
    if not ones or not zeros:
        raise ValueError(f"ROC AUC needs both classes, got {zeros} of class 0 and {ones} of class 1")
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    mid_rank = count.cumsum() - (count - 1) / 2
    return float((mid_rank[place][positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def agreement(a: Float[np.ndarray, "n k"], b: Float[np.ndarray, "n k"]) -> float:
    """Share of samples on which two networks name the same class; the first maximum wins.

    Takes two sets of logits, returns a fraction in [0, 1]. A row with NaN in ``b`` agrees with nothing.

    >>> agreement(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[0.0, 9.0], [0.0, 9.0]]))
    0.5
    """
    return accuracy(b, a.argmax(axis=1))


def are_probabilities(rows: Float[np.ndarray, "n k"]) -> bool:
    """Whether every row is non-negative and sums to one (within 0.02), as behind a softmax.

    >>> are_probabilities(np.array([[0.25, 0.75]])), are_probabilities(np.array([[0.25, 1.75]]))
    (True, False)
    """
    return bool((rows >= 0).all() and (np.abs(rows.sum(axis=1, dtype=np.float64) - 1) <= _SUMS_TO_ONE).all())


def kl_divergence(
    logits_p: Float[np.ndarray, "n k"],
    logits_q: Float[np.ndarray, "n k"],
    probabilities: bool | Literal["auto"] = "auto",
) -> Float[np.ndarray, " n"]:
    """Kullback–Leibler divergence KL(p‖q) = Σⱼ pⱼ (log pⱼ − log qⱼ) of each sample, in nats.

    ``p`` is the reference. Logits pass through a stable log-softmax. With ``probabilities`` the rows are taken as
    behind a softmax already, floored at 2⁻²³ and rescaled to sum to one; ``"auto"`` does so when all rows of
    ``logits_p`` are non-negative and sum to one. Returns float64 [n], never negative (doi:10.1214/aoms/1177729694).

    >>> float(kl_divergence(np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]]))[0].round(6))
    0.143841
    """
    if probabilities == "auto":
        probabilities = are_probabilities(logits_p)
    log_of = _log_of_probabilities if probabilities else _log_softmax
    log_p, log_q = log_of(logits_p.astype(np.float64)), log_of(logits_q.astype(np.float64))
    # Rounding alone can leave a few 1e-17 below zero.
    return np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0.0)


def normalised_error(
    reference: Float[np.ndarray, "n ..."], output: Float[np.ndarray, "n ..."]
) -> Float[np.ndarray, " n"]:
    """Squared error of each sample in units of the reference's variance: 0 is the same answer, 1 as bad as the mean.

        eᵢ = meanⱼ (outᵢⱼ − refᵢⱼ)² / v,      v = meanⱼ varᵢ(refᵢⱼ)

    with i the sample and j every other axis. A reference that does not vary is measured against its mean square, one
    that is all zero against 1. Returns float64 [n]; a sample with NaN or infinity has infinite error.
    ValueError when the shapes differ or there are no samples.

    >>> normalised_error(np.array([[0.0], [2.0]]), np.array([[0.0], [3.0]]))
    array([0., 1.])
    """
    if reference.shape != output.shape:
        raise ValueError(f"outputs to compare must have one shape, got {reference.shape} and {output.shape}")
    rows = _some(reference).reshape(len(reference), -1).astype(np.float64)
    error = ((output.reshape(rows.shape).astype(np.float64) - rows) ** 2).mean(axis=1)
    power = float((rows**2).mean())
    unit = float(rows.var(axis=0).mean())
    # A variance this far below the power is rounding of a constant, not variation.
    if unit <= power * float(np.finfo(np.float32).eps) ** 2:
        unit = power or 1.0
    return np.where(np.isfinite(error), error / unit, np.inf)


def proportion_interval(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (doi:10.1080/01621459.1927.10502953); never of zero width.

        (p̂ + z²/2n ± z·√(p̂(1−p̂)/n + z²/4n²)) / (1 + z²/n)

    Takes how many of ``count`` samples succeeded; returns two fractions in [0, 1]. ValueError without samples.

    >>> [round(x, 4) for x in proportion_interval(0, 100)]
    [0.0, 0.037]
    """
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(f"a share needs samples and no more successes than those, got {successes} of {count}")
    z2 = _normal_quantile(confidence) ** 2
    share = successes / count
    centre = share + z2 / (2 * count)
    half = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2)))
    low, high = ((centre + sign * half) / (1 + z2 / count) for sign in (-1, 1))
    # Exact at the ends, where rounding would leave 1e-19.
    return (0.0 if successes == 0 else low), (1.0 if successes == count else high)


def paired_interval(
    before: Shaped[np.ndarray, " n"],
    after: Shaped[np.ndarray, " n"],
    confidence: float = 0.95,
    seed: int = 0,
    unit: float | None = None,
) -> tuple[float, float]:
    """Confidence interval of the mean of ``before − after``, both measured on the same samples.

    Vectors of 0/1 (right or wrong): Tango's score interval, all δ with

        (b − c − nδ)² ≤ z²·n·(2q̃(δ) + δ(1−δ))

    b samples lost, c won, q̃ the likeliest share won given δ. It depends on the flips alone, and with none it is
    ±z²/(n+z²), not a point. Other values: the BCa bootstrap of the mean (sources above), reproducible by ``seed``.
    When no difference varies, the share that may yet differ is z²/(n+z²) and one such sample is taken to be worth
    ``unit`` (default: the standard deviation of ``before``).
    Returns (low, high) in the values' own unit. ValueError for fewer than two real values, or values not finite.

    >>> [round(x, 4) for x in paired_interval(np.ones(100, bool), np.ones(100, bool))]
    [-0.037, 0.037]
    """
    first, second = _some(before).astype(np.float64), after.astype(np.float64)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("an interval needs finite values, got NaN or infinity")
    if np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all():
        lost, won = int((first > second).sum()), int((first < second).sum())
        return _score_interval(lost, won, len(first), confidence)
    if len(first) < 2:
        raise ValueError("an interval of real values needs two samples or more, got 1")
    difference = first - second
    if np.ptp(difference) > 0:
        return _bca_interval(difference, confidence, seed)
    z2 = _normal_quantile(confidence) ** 2
    slack = z2 / (len(first) + z2) * (float(first.std()) if unit is None else unit)
    return float(difference[0] - slack), float(difference[0] + slack)


def _score_interval(lost: int, won: int, count: int, confidence: float) -> tuple[float, float]:
    """Tango (1998): the δ = (share lost − share won) that a score test does not reject."""
    z2 = _normal_quantile(confidence) ** 2

    def rejected(delta: float) -> bool:
        # The constrained likelihood's stationary point: 2n·q² + b₁·q + b₀ = 0, its larger root.
        b1 = -lost - won + (2 * count - lost + won) * delta
        b0 = -won * delta * (1 - delta)
        share_won = (math.sqrt(max(b1 * b1 - 8 * count * b0, 0.0)) - b1) / (4 * count)
        variance = count * (2 * share_won + delta * (1 - delta))
        return (lost - won - count * delta) ** 2 > z2 * variance

    estimate = (lost - won) / count
    return _edge(rejected, estimate, -1.0), _edge(rejected, estimate, 1.0)


def _edge(rejected: Callable[[float], bool], inside: float, outside: float) -> float:
    """Bisect for the last value that is not rejected between the estimate and the end of the scale."""
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
    return (inside + outside) / 2


def _bca_interval(values: Float[np.ndarray, " n"], confidence: float, seed: int) -> tuple[float, float]:
    """Efron (1987) for the mean, z replaced by √(n/(n−1))·t as Hesterberg (2015) does for the percentile interval."""
    count, normal = len(values), NormalDist()
    rng = np.random.default_rng(seed)
    means = np.sort([values[rng.integers(0, count, count)].mean() for _ in range(_RESAMPLES)])
    centred = values - values.mean()
    acceleration = float((centred**3).sum() / (6 * (centred**2).sum() ** 1.5))
    below = float((means < values.mean()).mean() + (means == values.mean()).mean() / 2)
    # Kept off 0 and 1, where the quantile is infinite.
    bias = normal.inv_cdf(min(max(below, 0.5 / _RESAMPLES), 1 - 0.5 / _RESAMPLES))
    wide = math.sqrt(count / (count - 1)) * _t_quantile(_normal_quantile(confidence), count - 1)
    limits = []
    for z in (-wide, wide):
        slope = 1 - acceleration * (bias + z)
        # A slope at or below zero lies beyond the transformation's reach: the outermost resample is the limit.
        level = normal.cdf(bias + (bias + z) / slope) if slope > 0 else float(z > 0)
        limits.append(float(np.quantile(means, level)))
    return limits[0], limits[1]


def _t_quantile(z: float, freedom: int) -> float:
    """Student's t from the normal quantile (Abramowitz & Stegun 26.7.5, three terms)."""
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def _normal_quantile(confidence: float) -> float:
    """z with P(|Z| ≤ z) = confidence."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _log_softmax(rows: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """xⱼ − max x − log Σ exp(x − max x)."""
    shifted = rows - rows.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _log_of_probabilities(rows: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Logarithms of rows floored and rescaled to sum to one."""
    floored = np.maximum(rows, _SMALLEST_PROBABILITY)
    return np.log(floored / floored.sum(axis=1, keepdims=True))


def _some(values: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, "n ..."]:
    """The values, or ValueError when there are none."""
    if not len(values):
        raise ValueError("there are no samples to measure on")
    return values
