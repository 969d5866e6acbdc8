"""Scores and losses of made-up answers whose right values are known."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

from smidgen.errors import DataError, UserError
from smidgen.measure.scores import Judge, load_metric, score
from smidgen.measure.user_metric import metric_name
from smidgen.numerics import metrics
from smidgen.runtimes.onnxruntime import open_onnx
from smidgen.runtimes.opening import run_dataset


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def one_hot(labels: np.ndarray, size: int) -> np.ndarray:
    return 4 * np.eye(size, dtype=np.float32)[labels]


def test_a_classifier_with_labels(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 10, 200).astype(np.uint8)
    original = one_hot(labels, 10)
    broken = original.copy()
    broken[:20] = -broken[:20]
    judge = Judge((original,), ("logits",), labels)
    found = judge.judge((broken,))
    assert judge.measures == "accuracy"
    assert (found.accuracy, found.agreement, found.count) == (0.9, 0.9, 200)
    assert found.accuracy_interval == metrics.proportion_interval(180, 200)
    assert found.kl == pytest.approx(metrics.kl_divergence(original, broken).mean())
    assert found.output_error == {"logits": pytest.approx(metrics.normalised_error(original, broken).mean())}
    assert set(found.why) == {"roc_auc"}
    loss = judge.loss((broken,))
    assert (loss.points, loss.metric) == (pytest.approx(10), "accuracy")
    right = np.ones(200)
    expected = metrics.paired_interval(right, np.arange(200) >= 20)
    assert (loss.low, loss.high) == pytest.approx((100 * expected[0], 100 * expected[1]))


def test_the_standard_error_is_paired_and_zero_where_nothing_differs(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 4, 400)
    original = one_hot(labels, 4)
    original[:40] = -original[:40]  # 40 wrong
    other = original.copy()
    other[:10] = -other[:10]  # 10 put right
    other[40:50] = -other[40:50]  # 10 lost
    for given, share in ((labels, 20 / 400), (None, 20 / 400)):
        judge = Judge((original,), ("y",), given)
        loss = judge.loss((other,))
        mean = loss.points / 100
        assert loss.error == pytest.approx(100 * math.sqrt((share - mean**2) / 400))
        assert judge.loss((original,)).error == 0.0
    values = rng.normal(size=(50, 3))
    judge = Judge((values, values), ("a", "b"))
    loss = judge.loss((values + 0.1 * rng.normal(size=values.shape), values))
    assert 0 < loss.error < loss.points
    assert loss.error == pytest.approx((loss.high - loss.low) / 3.92, rel=0.2)
    assert judge.loss((values, values)).error == 0.0


def test_the_standard_error_of_a_metric_is_that_of_its_resamples(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 4, 400)
    original = one_hot(labels, 4)
    other = original.copy()
    other[:20] = -other[:20]
    judge = Judge((original,), ("y",), labels, lambda outputs, labels: float((outputs.argmax(1) == labels).mean()))
    expected = 100 * math.sqrt(0.05 * 0.95 / 400)
    assert judge.loss((other,)).error == pytest.approx(expected, rel=0.25)
    assert judge.loss((original,)).error == 0.0


def test_a_better_file_has_a_negative_loss(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, 50)
    right, wrong = one_hot(labels, 3), one_hot((labels + 1) % 3, 3)
    loss = Judge((wrong,), ("y",), labels).loss((right,))
    assert loss.points == -100
    assert loss.low == pytest.approx(-100)
    # One sample kept wrong instead of put right moves the loss by two flips.
    assert loss.high == pytest.approx(-100 + 200 * metrics.proportion_interval(0, 50)[1])


def test_the_baseline_says_what_it_cannot_be_compared_with() -> None:
    labels = np.array([0, 1, 1, 0])
    found = Judge((one_hot(labels, 2),), ("y",), labels).baseline()
    assert (found.accuracy, found.roc_auc) == (1, 1)
    assert (found.agreement, found.kl, found.output_error, found.top5) == (None, None, None, None)
    assert set(found.why) == {"agreement", "kl", "output_error", "top5"}
    assert "nothing to compare" in found.why["kl"]


def test_without_labels_agreement_is_the_measure(rng: np.random.Generator) -> None:
    original = rng.normal(size=(100, 4))
    changed = original.copy()
    changed[:3] = -changed[:3]
    judge = Judge((original,), ("y",))
    found, loss = judge.judge((changed,)), judge.loss((changed,))
    assert found.why["accuracy"] == found.why["top5"] == "no labels"
    assert (found.agreement, loss.points, loss.metric) == (0.97, pytest.approx(3), "agreement")
    assert 0 < loss.low < 3 < loss.high
    same = judge.loss((original,))
    assert (same.points, same.low) == (0, 0)
    assert same.high == pytest.approx(100 * metrics.proportion_interval(0, 100)[1])


def test_trailing_axes_of_one_are_dropped(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 6, 30)
    flat = rng.normal(size=(30, 6))
    found = score((flat.reshape(30, 6, 1, 1),), reference=None, labels=labels, output_names=["y"])
    assert found.accuracy == metrics.accuracy(flat, labels)
    assert found.top5 == metrics.topk(flat, labels, 5)


def test_two_classes_have_an_roc_auc(rng: np.random.Generator) -> None:
    logits, labels = rng.normal(size=(60, 2)), rng.integers(0, 2, 60)
    found = score((logits,), reference=None, labels=labels, output_names=["y"])
    assert found.roc_auc == metrics.roc_auc(logits[:, 1] - logits[:, 0], labels)
    one_class = score((logits,), reference=None, labels=np.zeros(60, int), output_names=["y"])
    assert one_class.roc_auc is None
    assert "both classes" in one_class.why["roc_auc"]


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 1, 1)])
def test_one_value_a_sample_is_read_as_the_logit_of_class_one(shape: tuple[int, ...]) -> None:
    values, labels = np.array([-2.0, 3.0, 0.5, -1.0]), np.array([0, 1, 0, 1])
    judge = Judge((values.reshape(shape),), ("y",), labels)
    found = judge.baseline()
    assert (judge.measures, found.accuracy) == ("accuracy", 0.5)
    assert found.roc_auc == metrics.roc_auc(values, labels)
    moved = judge.judge(((values + 1.5).reshape(shape),))
    assert moved.agreement == 0.75
    before, after = 1 / (1 + np.exp(-values)), 1 / (1 + np.exp(-values - 1.5))
    bernoulli = before * np.log(before / after) + (1 - before) * np.log((1 - before) / (1 - after))
    assert moved.kl == pytest.approx(bernoulli.mean())


def test_one_probability_a_sample_is_split_at_a_half() -> None:
    values, labels = np.array([[0.2], [0.9], [0.4]]), np.array([0, 1, 1])
    judge = Judge((values,), ("y",), labels)
    assert judge.baseline().accuracy == pytest.approx(2 / 3)
    # 1.1 is outside [0, 1], yet the original says how it is to be read.
    assert judge.judge((np.array([[0.2], [1.1], [0.6]]),)).accuracy == 1


def test_a_regression_is_judged_by_its_error(rng: np.random.Generator) -> None:
    ages = rng.normal(40, 10, size=(80, 1))
    judge = Judge((ages,), ("age",), ages[:, 0])
    assert judge.measures == "normalised error"
    noisy = ages + rng.normal(0, 1, size=(80, 1))
    found, loss = judge.judge((noisy,)), judge.loss((noisy,))
    assert found.output_error is not None
    assert loss.points == pytest.approx(100 * found.output_error["age"])
    assert 0 < loss.low < loss.points < loss.high < 3
    assert "[n, 1] is no list of classes" in found.why["accuracy"]


def test_a_detector_is_judged_by_the_error_of_each_output(rng: np.random.Generator) -> None:
    scores, boxes = rng.normal(size=(20, 6, 2)), rng.normal(size=(20, 6, 4))
    judge = Judge((scores, boxes), ("scores", "boxes"))
    found = judge.judge((scores, boxes + 0.1))
    assert found.output_error is not None
    assert found.output_error["scores"] == 0
    assert found.output_error["boxes"] == pytest.approx(0.01 / boxes.var(axis=0).mean())
    assert judge.loss((scores, boxes + 0.1)).points == pytest.approx(50 * found.output_error["boxes"])
    assert "2 outputs" in found.why["agreement"]
    same = judge.loss((scores, boxes))
    assert (same.points, same.low) == (0, 0)
    assert same.high > 0


def test_one_sample_still_has_an_interval(rng: np.random.Generator) -> None:
    outputs = (rng.normal(size=(1, 3, 4, 4)),)
    loss = Judge(outputs, ("map",)).loss((outputs[0] * 1.1,))
    assert 0 <= loss.low <= loss.points < loss.high < 100


def test_integer_outputs_are_measured_too() -> None:
    outputs = (np.array([[[1, 2]], [[3, 4]]]),)
    assert Judge(outputs, ("map",)).judge((outputs[0] + 1,)).output_error == {"map": 1.0}


def test_nan_is_wrong_and_said() -> None:
    labels = np.array([0, 1])
    original = one_hot(labels, 2)
    broken = original.copy()
    broken[0, 1] = np.nan
    judge = Judge((original,), ("y",), labels)
    found = judge.judge((broken,))
    assert (found.accuracy, found.agreement) == (0.5, 0.5)
    assert found.kl is found.roc_auc is found.output_error is None
    assert {found.why[name] for name in ("kl", "output_error")} == {"an output has NaN or infinity"}
    assert judge.loss((broken,)).points == 50
    shown = np.ones((2, 3, 3))
    assert Judge((shown,), ("map",)).loss((shown * np.nan,)).points == math.inf


def test_scores_become_json() -> None:
    labels = np.array([0, 1], np.int64)
    found = Judge((one_hot(labels, 2),), ("y",), labels).judge((one_hot(labels, 2),)).as_dict()
    again = json.loads(json.dumps(found))
    assert (again["accuracy"], again["metric"], again["output_error"]) == (1.0, None, {"y": 0.0})
    assert set(again["why"]) == {"top5"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 3]), "a label is 3, the network has classes 0…2"),
        (np.array([0, -1]), "a label is -1"),
        (np.array([0, 0.5]), r"a label is 0\.5"),
        (np.array([[0], [1]]), r"shape \[2, 1\]"),
        (np.array(["cat", "dog"]), "type <U3"),
        (np.array([0, 1, 2]), "3 labels for 2 samples"),
    ],
)
def test_labels_that_do_not_fit(labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Judge((np.zeros((2, 3)),), ("y",), labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ((np.zeros((2, 4)),), r"'y' has shape \[2, 4\], the original's \[2, 3\]"),
        ((np.zeros((2, 3)), np.zeros((2, 3))), r"2 outputs for the names \['y'\]"),
        ((np.zeros((0, 3)),), r"hold \[0\] samples"),
        ((np.zeros(()),), "a lone number"),
    ],
)
def test_outputs_that_do_not_fit(outputs: tuple[np.ndarray, ...], message: str) -> None:
    judge = Judge((np.zeros((2, 3)),), ("y",))
    for asked in (judge.judge, judge.loss):
        with pytest.raises(DataError, match=message):
            asked(outputs)


def half_right(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy by another name."""
    return float((outputs.argmax(axis=1) == labels).mean())


def test_a_metric_of_ones_own_replaces_accuracy(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 4, 150)
    original = one_hot(labels, 4)
    broken = original.copy()
    broken[:15] *= -1
    judge = Judge((original,), ("y",), labels, half_right)
    found, loss = judge.judge((broken,)), judge.loss((broken,))
    assert (found.metric, found.metric_name, found.accuracy) == (0.9, "half_right", None)
    assert found.why["accuracy"] == "judged by your metric 'half_right'"
    assert (judge.measures, loss.metric) == ("half_right", "half_right")
    by_accuracy = Judge((original,), ("y",), labels).loss((broken,))
    assert loss.points == pytest.approx(by_accuracy.points)
    assert (loss.low, loss.high) == pytest.approx((by_accuracy.low, by_accuracy.high), abs=2)
    assert loss == Judge((original,), ("y",), labels, half_right).loss((broken,))
    same = judge.loss((original,))
    assert same.low < 0 == same.points < same.high


def test_a_metric_gets_all_outputs_and_any_labels(rng: np.random.Generator) -> None:
    outputs = (rng.normal(size=(9, 2, 2)), rng.normal(size=(9, 3)))
    labels = rng.normal(size=(9, 5))
    seen = []

    def spy(given: tuple[np.ndarray, ...], truth: np.ndarray) -> float:
        seen.append((len(given), truth.shape))
        return 1

    assert Judge(outputs, ("a", "b"), labels, spy).baseline().metric == 1.0
    assert seen == [(2, (9, 5))]


def test_a_metric_that_needs_both_classes_survives_resampling() -> None:
    labels = np.array([0] * 12 + [1] * 2)
    values = labels + np.linspace(0, 1.2, 14)

    def auc(given: np.ndarray, truth: np.ndarray) -> float:
        return metrics.roc_auc(given[:, 0], truth)

    loss = Judge((values[:, None],), ("y",), labels, auc).loss((values[::-1, None].copy(),))
    assert loss.points > 50
    assert loss.low <= loss.points <= loss.high


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('x')", "'mine' raised KeyError: 'x'"),
        ("return float('nan')", "'mine' gave nan on 2 samples"),
        ("return None", "'mine' raised TypeError"),
        ("return outputs", "'mine' raised TypeError"),
    ],
)
def test_a_metric_that_fails_is_told_in_one_line(tmp_path: Path, body: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"def mine(outputs, labels):\n    {body}\n")
    metric = load_metric(f"{path}:mine")
    assert metric_name(metric) == "mine"
    with pytest.raises(UserError, match=message) as caught:
        Judge((np.zeros((2, 3)),), ("y",), None, metric).baseline()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "asked", "message"),
    [
        ("x = 1", "x", "has no function 'x'"),
        ("x = 1", "f", "has no function 'f'"),
        ("import nowhere_to_be_found", "f", "fails when loaded: ModuleNotFoundError"),
        ("def (", "f", "fails when loaded: SyntaxError"),
        (None, "f", "no file"),
        ("x = 1", "", "names no function"),
    ],
)
def test_a_metric_that_cannot_be_loaded(tmp_path: Path, content: str | None, asked: str, message: str) -> None:
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_metric(f"{path}:{asked}")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_real_network_scores_what_its_file_is_known_for(data_dir: Path) -> None:
    """LeNet has 99.21 % on the 10,000 MNIST test digits; the same digits dimmed are answered a little worse."""
    digits, labels = mnist_test(data_dir / "mnist")
    runner = open_onnx(data_dir / "models" / "lenet_mnist.onnx")
    outputs, dimmed = (run_dataset(runner, np.split(x, 10)) for x in (digits, digits * 0.2))
    judge = Judge(outputs, runner.output_names, labels)
    assert judge.baseline().accuracy == pytest.approx(0.9921)
    found, loss = judge.judge(dimmed), judge.loss(dimmed)
    assert found.accuracy is not None
    assert loss.points == pytest.approx(99.21 - 100 * found.accuracy)
    assert loss.low < loss.points < loss.high < loss.low + 1


def mnist_test(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The test digits [10000, 1, 28, 28] as 0…255 and their labels."""
    raw = {}
    for part, header in (("images-idx3", 16), ("labels-idx1", 8)):
        file = next(path for path in folder.glob("*.gz") if path.name.startswith("t10k") and part[:6] in path.name)
        raw[part] = np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=header)
    return raw["images-idx3"].reshape(-1, 1, 28, 28).astype(np.float32), raw["labels-idx1"]
