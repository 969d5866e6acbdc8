"""Students that learn from a teacher, labels or none, and the files they become."""

from __future__ import annotations

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from smidgen import Training, distil, prune, transfer
from smidgen.errors import DataError, SmidgenError, UserError
from smidgen.measure.latency import Latency
from smidgen.model.load import load_weights
from smidgen.model.replace import rebuild_network
from smidgen.recover import loop
from smidgen.recover.scoring import indistinct
from smidgen.report.training import Trained
from tests.pipeline.pictures import pictures


@pytest.fixture(autouse=True)
def _untimed_files(monkeypatch):
    """Nothing here depends on the clock."""
    latency = lambda *given: (Latency(1.0, 1.0, 1.0, 1, 1.0),) * 2  # noqa: E731 - one line for one value
    monkeypatch.setattr("smidgen.pipeline.measuring.compare_speed", latency)


def student(outputs: int = 4, seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(24, outputs),
    )  # fmt: skip


TRAINING = Training(epochs=25, batch=32, lr=1e-2)


def test_an_unlabelled_student_learns_its_teacher(trained, tmp_path):
    net, before = student(), copy.deepcopy(trained.state_dict())
    untouched = copy.deepcopy(net.state_dict())
    x, _ = pictures(500)
    result = distil(trained, net, x, test=pictures(300, 9), training=TRAINING)
    assert all(torch.equal(before[k], v) for k, v in trained.state_dict().items()), "the teacher was changed"
    assert all(torch.equal(untouched[k], v) for k, v in net.state_dict().items()), "the given student was changed"
    teacher, small = result.files["teacher"], result.files["student"]
    assert small.nbytes < teacher.nbytes
    assert small.test is not None
    assert small.test["agreement"] > 0.9
    assert small.test["lost"] < 10
    assert result.record["asked"]["mix"] == 1.0
    assert "student" in result.table()
    assert "× smaller" in result.verdict()
    place = result.save(tmp_path / "out")
    assert sorted(each.name for each in place.iterdir()) == [
        "model.onnx", "model.safetensors", "original.onnx", "result.json",
    ]  # fmt: skip
    fresh, _ = pictures(20, 5)
    with torch.no_grad():
        wanted = result.model(torch.from_numpy(fresh)).numpy()
    session = onnxruntime.InferenceSession(place / "model.onnx")
    np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: fresh})[0], wanted, atol=1e-4)
    again = student(seed=7)
    load_weights(again, place / "model.safetensors")  # as --weights would
    with torch.no_grad():
        np.testing.assert_allclose(again.eval()(torch.from_numpy(fresh)).numpy(), wanted, atol=1e-6)
        rebuilt = rebuild_network(student(seed=8), place / "model.safetensors").eval()
        np.testing.assert_allclose(rebuilt(torch.from_numpy(fresh)).numpy(), wanted, atol=1e-6)


def test_a_student_learns_from_what_is_not_held_back(trained):
    x, _ = pictures(100)
    result = distil(trained, student(), x, training=Training(epochs=1, batch=32, hold_back=5))
    roles = result.record["data"]
    assert [roles[role]["count"] for role in ("training", "selection", "test")] == [75, 5, 20]


def kept_last_of_as_good(result: Trained) -> bool:
    """Whether the last epoch was kept of those that the inputs held back cannot tell from the best, not the best."""
    fitted, count = result.record["fitted"], result.record["data"]["selection"]["count"]
    held = [epoch["held"] for epoch in fitted["history"]]
    low = min(held)
    as_good = [number for number, score in enumerate(held, 1) if score < low + indistinct(count)(low)]
    assert as_good[-1] > 1 + held.index(low), "nothing is shown by this training"
    return (fitted["best_epoch"], fitted["best"]) == (as_good[-1], held[as_good[-1] - 1])


def noisy(count: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = pictures(count)
    return x + 2 * np.random.default_rng(0).standard_normal(x.shape).astype(np.float32), y


def test_of_epochs_that_few_images_cannot_tell_apart_the_last_is_kept(trained):
    training = Training(epochs=12, batch=16, lr=2e-2, schedule="constant")
    assert kept_last_of_as_good(distil(trained, student(), noisy(100), training=training))
    assert kept_last_of_as_good(transfer(trained, noisy(100), training=training))


def test_labels_serve_where_there_are_some(trained):
    result = distil(trained, student(), pictures(500), training=TRAINING, features=0.1)
    assert result.record["asked"] == {"temperature": 4.0, "mix": 0.9, "features": 0.1}
    test = result.files["student"].test
    assert test is not None
    assert test["metric"] == "accuracy"
    assert test["score"] > 0.8
    alone = distil(trained, student(), pictures(500), training=TRAINING, mix=0.0)
    assert alone.files["student"].test["score"] > 0.5


def test_a_pruned_network_learns_its_losses_back(trained, tmp_path):
    x = pictures(500)
    place = prune(trained, x, macs="25%", multiple=1, refit=False).save(tmp_path / "pruned")
    result = distil(trained, place / "model.onnx", x, training=Training(epochs=15, batch=32, lr=3e-3))
    history = result.record["fitted"]["history"]
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert result.files["student"].macs <= 0.25 * result.files["teacher"].macs
    assert result.files["student"].test["agreement"] > 0.9


def test_values_are_learned_too():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 1))
    small = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    x = np.random.default_rng(0).normal(size=(600, 5)).astype("f4")
    result = distil(teacher, small, x, training=Training(epochs=40, batch=32, lr=1e-2))
    assert result.files["student"].test["metric"] == "normalised error"
    assert result.files["student"].test["lost"] < 5
    labelled = distil(teacher, small, (x, np.arange(600)), training=Training(epochs=1, batch=32))
    assert labelled.record["asked"]["mix"] == 1.0, "labels are no aims of such a network"


def test_a_killed_run_ends_in_the_same_network(trained, tmp_path, monkeypatch):
    x, training = pictures(200), Training(epochs=4, batch=32, augment=("shift1", "mixup"))
    whole = distil(trained, student(), x, training=training)
    place = tmp_path / "run.ckpt"
    step = loop._Run._step

    def killed(self):
        if self.books.epoch == 2 and self.books.step == 1:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(loop._Run, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        distil(trained, student(), x, training=training, checkpoint=place)
    monkeypatch.setattr(loop._Run, "_step", step)
    resumed = distil(trained, student(), x, training=training, checkpoint=place)
    pairs = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    other = copy.deepcopy(trained)
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    with pytest.raises(DataError, match="made with teacher="):
        distil(other, student(), x, training=training, checkpoint=place)


def test_the_search_keeps_what_did_best(trained, tmp_path):
    pytest.importorskip("optuna", reason="the search needs Optuna: pip install 'smidgen[train]'")
    told, place = [], tmp_path / "run.ckpt"
    given = {"training": Training(epochs=4, batch=32), "search": 3, "checkpoint": place}
    result = distil(trained, student(), pictures(200), **given, progress=lambda stage, at, total: told.append(stage))
    trials = result.record["search"]
    assert len(trials) == 3
    assert (trials[0]["temperature"], trials[0]["mix"], trials[0]["lr"]) == (4.0, 0.9, 1e-3)
    best = min(trials, key=lambda one: one["score"])
    assert result.record["asked"]["temperature"] == best["temperature"]
    assert result.record["training"]["lr"] == best["lr"]
    assert [each.name for each in tmp_path.iterdir()] == ["run.ckpt"]
    assert any(stage.startswith("trial 2 of 3") for stage in told)
    again = distil(trained, student(), pictures(200), training=Training(epochs=4, batch=32), search=3)
    assert again.record["search"] == trials


def test_mistakes_are_told_before_the_training(trained, tmp_path):
    x = pictures(100)
    with pytest.raises(DataError, match=r"\[3\] for each input and the teacher with \[4\]"):
        distil(trained, student(3), x)
    with pytest.raises(DataError, match="fewer than a batch of 128"):
        distil(trained, student(), x)
    with pytest.raises(DataError, match="the original's answers are enough"):
        distil(trained, student(), x[0], mix=0.5)
    with pytest.raises(UserError, match="temperature=0"):
        distil(trained, student(), x, temperature=0.0)
    with pytest.raises(DataError, match=r"outside 0\.\.3"):
        distil(trained, student(), (x[0], x[1] + 9), training=TRAINING)
    with pytest.raises(UserError, match="exploded in the first epoch"):
        distil(trained, student(), x[0], training=Training(epochs=2, batch=16, lr=1e30))
    (tmp_path / "run.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(SmidgenError, match="cannot be read"):
        distil(trained, student(), x, training=TRAINING, checkpoint=tmp_path / "run.ckpt")
    assert (tmp_path / "run.ckpt").read_bytes() == b"no checkpoint"
