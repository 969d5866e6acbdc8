"""Metrics against known answers, scikit-learn, brute force and their own laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.optimize import minimize_scalar
from sklearn.metrics import roc_auc_score, top_k_accuracy_score

from smidgen.numerics import metrics

LOGITS = st.integers(2, 6).flatmap(lambda k: arrays(np.float64, (7, k), elements=st.floats(-50, 50)))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_accuracy_counts_the_first_maximum_and_not_nan() -> None:
    logits = np.array([[1.0, 1.0], [0.0, 2.0], [np.nan, 3.0], [3.0, np.nan]])
    assert metrics.accuracy(logits, np.array([0, 1, 1, 0])) == 0.5
    assert metrics.correct(logits, np.array([1, 1, 0, 0])).tolist() == [False, True, False, False]


def test_accuracy_needs_samples() -> None:
    with pytest.raises(ValueError, match="no samples"):
        metrics.accuracy(np.zeros((0, 3)), np.zeros(0, np.int64))


def test_topk_agrees_with_scikit_learn_and_grows_with_k(rng: np.random.Generator) -> None:
    logits, labels = rng.normal(size=(200, 8)), rng.integers(0, 8, 200)
    shares = [metrics.topk(logits, labels, k) for k in range(1, 9)]
    theirs = [top_k_accuracy_score(labels, logits, k=k, labels=range(8)) for k in range(1, 8)]
    assert shares[:-1] == pytest.approx(theirs)
    assert shares == sorted(shares)
    assert shares[0] == metrics.accuracy(logits, labels)
    assert shares[-1] == 1.0


def test_topk_gives_a_tie_to_the_earlier_class() -> None:
    logits = np.zeros((1, 3))
    assert [metrics.topk(logits, np.array([label]), k=2) for label in range(3)] == [1.0, 1.0, 0.0]


def test_roc_auc_agrees_with_scikit_learn_under_ties(rng: np.random.Generator) -> None:
    for steps in (3, 10, 10_000):
        scores, labels = rng.integers(0, steps, 500) / steps, rng.integers(0, 2, 500)
        assert metrics.roc_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@given(arrays(np.int64, 20, elements=st.integers(-5, 5)), st.lists(st.booleans(), min_size=18, max_size=18))
def test_roc_auc_of_reversed_scores_is_the_complement(scores: np.ndarray, rest: list[bool]) -> None:
    labels = np.array([0, 1, *rest], dtype=np.int64)
    auc = metrics.roc_auc(scores, labels)
    assert metrics.roc_auc(-scores, labels) == pytest.approx(1 - auc, abs=1e-12)
    assert metrics.roc_auc(scores, 1 - labels) == pytest.approx(1 - auc, abs=1e-12)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [([1, 1], [0.0, 1.0], "both classes"), ([0, 2], [0.0, 1.0], "0 and 1"), ([0, 1], [0.0, math.nan], "NaN")],
)
def test_roc_auc_refuses(labels: list[int], scores: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.roc_auc(np.array(scores), np.array(labels))


def test_agreement_counts_equal_classes() -> None:
    a = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    b = np.array([[0.0, 9.0], [9.0, 0.0], [0.0, 9.0], [np.nan, 1.0]])
    assert metrics.agreement(a, b) == 0.5


def test_kl_agrees_with_scipy(rng: np.random.Generator) -> None:
    p, q = rng.dirichlet(np.ones(5), 30), rng.dirichlet(np.ones(5), 30)
    expected = stats.entropy(p, q, axis=1)
    assert metrics.kl_divergence(np.log(p) + 3, np.log(q) - 2) == pytest.approx(expected, abs=1e-9)
    # Behind a softmax: found by itself, and not where it is forbidden.
    assert metrics.kl_divergence(p, q) == pytest.approx(expected, rel=1e-4)
    assert metrics.kl_divergence(p, q, probabilities=False) != pytest.approx(expected, rel=1e-2)


def test_kl_survives_huge_logits_and_vanished_probabilities() -> None:
    assert metrics.kl_divergence(np.array([[1e4, 0.0]]), np.array([[0.0, 1e4]]))[0] == pytest.approx(1e4)
    cost = metrics.kl_divergence(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))[0]
    assert cost == pytest.approx(-math.log(2**-23), rel=1e-4)


@given(LOGITS, st.data())
def test_kl_laws(p: np.ndarray, data: st.DataObject) -> None:
    q = data.draw(arrays(np.float64, p.shape, elements=st.floats(-50, 50)))
    kl = metrics.kl_divergence(p, q, probabilities=False)
    assert (kl >= 0).all()
    assert (metrics.kl_divergence(p, p) == 0).all()
    assert metrics.kl_divergence(p + 7, q - 3, probabilities=False) == pytest.approx(kl, abs=1e-10)


def test_normalised_error_is_one_for_the_mean_and_keeps_its_unit(rng: np.random.Generator) -> None:
    reference = rng.normal(3, 2, size=(40, 2, 5))
    mean = np.broadcast_to(reference.mean(axis=0), reference.shape).copy()
    assert metrics.normalised_error(reference, mean).mean() == pytest.approx(1)
    noisy = reference + rng.normal(size=reference.shape)
    scaled = metrics.normalised_error(10 * reference - 4, 10 * noisy - 4)
    assert scaled == pytest.approx(metrics.normalised_error(reference, noisy))
    assert metrics.normalised_error(reference, reference).max() == 0


def test_normalised_error_without_variance() -> None:
    assert metrics.normalised_error(np.full((2, 1), 4.0), np.array([[4.0], [6.0]])).tolist() == [0, 0.25]
    assert metrics.normalised_error(np.zeros((1, 2)), np.array([[3.0, 1.0]])).tolist() == [5]


def test_normalised_error_of_nan_is_infinite() -> None:
    reference = np.array([[0.0], [1.0], [2.0]], np.float32)
    output = np.array([[np.nan], [np.inf], [2.0]], np.float32)
    assert metrics.normalised_error(reference, output).tolist() == [math.inf, math.inf, 0]


def test_normalised_error_needs_one_shape() -> None:
    with pytest.raises(ValueError, match="one shape"):
        metrics.normalised_error(np.zeros((2, 3)), np.zeros((2, 4)))


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (1, 10), (30, 40), (40, 40)])
def test_proportion_interval_agrees_with_scipy(successes: int, count: int) -> None:
    expected = stats.binomtest(successes, count).proportion_ci(method="wilson")
    assert metrics.proportion_interval(successes, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def outcomes(both: int, lost: int, won: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Right/wrong vectors before and after, from the four counts."""
    counts = [both, lost, won, neither]
    return np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)


def score_statistic(lost: int, won: int, count: int, delta: float) -> float:
    """The score test's z by brute force: the likelihood maximised numerically over the share won."""
    rest = count - lost - won

    def cost(q: float) -> float:
        terms = [(lost, q + delta), (won, q), (rest, 1 - 2 * q - delta)]
        return -sum(n * math.log(max(p, 1e-300)) for n, p in terms if n)

    found = minimize_scalar(
        cost, bounds=(max(0.0, -delta), (1 - delta) / 2), method="bounded", options={"xatol": 1e-12}
    )
    share = min([0.0, found.x], key=cost) if delta >= 0 else found.x
    return (lost - won - count * delta) / math.sqrt(count * (2 * share + delta * (1 - delta)))


@pytest.mark.parametrize("counts", [(90, 3, 2, 5), (950, 12, 1, 37), (1, 1, 7, 12), (40, 9, 9, 2), (480, 1, 1, 18)])
def test_paired_interval_of_flips_ends_where_the_score_test_rejects(counts: tuple[int, int, int, int]) -> None:
    low, high = metrics.paired_interval(*outcomes(*counts))
    assert score_statistic(counts[1], counts[2], sum(counts), low) == pytest.approx(1.959964, abs=1e-3)
    assert score_statistic(counts[1], counts[2], sum(counts), high) == pytest.approx(-1.959964, abs=1e-3)


def test_paired_interval_without_flips_is_wilsons() -> None:
    low, high = metrics.paired_interval(*outcomes(700, 0, 0, 300))
    assert (-low, high) == pytest.approx((metrics.proportion_interval(0, 1000)[1],) * 2)


@given(st.lists(st.integers(0, 40), min_size=4, max_size=4).filter(sum))
def test_paired_interval_of_flips_laws(counts: list[int]) -> None:
    before, after = outcomes(*counts)
    low, high = metrics.paired_interval(before, after)
    assert -1 <= low <= (before - after).mean() <= high <= 1
    assert high > low
    swapped = metrics.paired_interval(after, before)
    assert swapped == pytest.approx((-high, -low), abs=1e-9)
    wider = metrics.paired_interval(before, after, confidence=0.99)
    assert wider[0] <= low + 1e-12
    assert wider[1] >= high - 1e-12


@pytest.mark.parametrize(("lost", "won", "count"), [(0.01, 0.005, 500), (0.004, 0.001, 300), (0.08, 0.05, 100)])
def test_paired_interval_of_flips_covers_the_truth(
    lost: float, won: float, count: int, rng: np.random.Generator
) -> None:
    """2,000 simulated tests. In the second case 22 % of them see no flip, where Wald's interval is the point 0."""
    draws = rng.multinomial(count, [1 - lost - won, lost, won], size=2000)
    seen: dict[tuple[int, int, int], bool] = {}
    for same, down, up in map(tuple, draws.tolist()):
        if (same, down, up) not in seen:
            low, high = metrics.paired_interval(*outcomes(same, down, up, 0))
            seen[same, down, up] = low <= lost - won <= high
    covered = np.mean([seen[a, b, c] for a, b, c in draws.tolist()])
    assert 0.935 <= covered <= 0.995


@pytest.mark.parametrize("count", [8, 60])
def test_paired_interval_of_real_values_covers_the_truth(count: int, rng: np.random.Generator) -> None:
    """Skewed differences, where the plain percentile bootstrap falls below 90 %."""
    covered = 0
    for seed in range(150):
        difference = rng.gamma(2.0, 1.0, count)
        low, high = metrics.paired_interval(difference, np.zeros(count), seed=seed)
        covered += low <= 2.0 <= high
    assert covered / 150 >= 0.9


def test_paired_interval_of_real_values_matches_t_where_t_is_right(rng: np.random.Generator) -> None:
    before = rng.normal(5, 1, 400)
    after = before - rng.normal(0.3, 0.2, 400)
    expected = stats.ttest_rel(before, after).confidence_interval()
    found = metrics.paired_interval(before, after)
    assert found == pytest.approx((expected.low, expected.high), abs=0.1 * (expected.high - expected.low))
    assert found == metrics.paired_interval(before, after)
    assert found != metrics.paired_interval(before, after, seed=1)


def test_paired_interval_of_skewed_values_is_scipys_bca(rng: np.random.Generator) -> None:
    """Skewed enough that the plain percentile interval lies 8 % of its width off, and a wrong sign twice that."""
    values = rng.gamma(0.3, 1.0, 60)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=rng).confidence_interval
    width = theirs.high - theirs.low
    assert metrics.paired_interval(values, np.zeros(60)) == pytest.approx((theirs.low, theirs.high), abs=0.05 * width)


def test_paired_interval_never_has_zero_width(rng: np.random.Generator) -> None:
    before = rng.normal(size=50)
    low, high = metrics.paired_interval(before, before.copy())
    assert low < 0 < high
    assert high == pytest.approx(before.std() * metrics.proportion_interval(0, 50)[1])
    assert metrics.paired_interval(before, before.copy(), unit=2.0)[1] == pytest.approx(2 * high / before.std())


@pytest.mark.parametrize(
    ("before", "message"), [([], "no samples"), ([0.5], "two samples"), ([0.5, math.nan], "finite")]
)
def test_paired_interval_refuses(before: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.paired_interval(np.array(before), np.zeros(len(before)))


@settings(max_examples=50)
@given(st.floats(0.5, 0.999), st.integers(3, 200))
def test_t_quantile_is_close_to_scipys(confidence: float, freedom: int) -> None:
    z = float(stats.norm.ppf((1 + confidence) / 2))
    tolerance = 0.01 if freedom >= 10 else 0.3
    assert metrics._t_quantile(z, freedom) == pytest.approx(stats.t.ppf((1 + confidence) / 2, freedom), rel=tolerance)
