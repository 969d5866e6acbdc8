"""Networks that learn other classes: what learns when, and the files they become."""

from __future__ import annotations

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from smidgen import Training, compress, transfer
from smidgen.errors import DataError, UserError
from smidgen.export.onnx import write
from smidgen.export.prepare import prepare
from smidgen.measure.latency import Latency
from smidgen.model.load import load_network
from smidgen.site import untouched
from tests.pipeline.pictures import pictures


@pytest.fixture(autouse=True)
def _untimed_files(monkeypatch):
    """Nothing here depends on the clock."""
    latency = lambda *given: (Latency(1.0, 1.0, 1.0, 1, 1.0),) * 2  # noqa: E731 - one line for one value
    monkeypatch.setattr("smidgen.pipeline.measuring.compare_speed", latency)


def halves(count: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The pictures in two classes instead of four."""
    x, y = pictures(count, seed)
    return x, y % 2


TRAINING = Training(epochs=4, batch=32, lr=3e-3)


def test_other_classes_are_learned_and_the_file_compresses(trained, tmp_path):
    before = copy.deepcopy(trained.state_dict())
    result = transfer(trained, halves(), test=halves(200, 5), training=TRAINING)
    assert all(torch.equal(before[k], v) for k, v in trained.state_dict().items()), "the given network was changed"
    assert result.record["asked"]["classes"] == 2
    assert result.files["original"].test is None, "it answers another question"
    test = result.files["transferred"].test
    assert set(test) == {"metric", "score"}
    assert test["score"] > 0.9
    assert "accuracy" in result.verdict()
    place = result.save(tmp_path / "out")
    x, _ = halves(20, 7)
    session = onnxruntime.InferenceSession(place / "model.onnx")
    with torch.no_grad():
        wanted = result.model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: x})[0], wanted, atol=1e-4)
    assert wanted.shape == (20, 2)
    again = transfer(trained, halves(), test=halves(200, 5), training=TRAINING)
    assert again.record["fitted"]["history"] == result.record["fitted"]["history"]
    assert result.record["kept"] == "all"
    smaller = compress(place / "model.onnx", halves(), test=halves(200, 5))
    assert smaller.files["onnx"].stat().st_size < (place / "model.onnx").stat().st_size


def test_the_body_stays_while_the_new_layer_learns(trained):
    result = transfer(trained, halves(), training=TRAINING, body_rate=0.0)
    head = result.record["asked"]["head"]
    kept = {name for name in trained.state_dict() if not name.startswith(f"{head}.")}
    old, new = trained.state_dict(), result.model.state_dict()
    assert kept
    assert all(torch.equal(old[name], new[name]) for name in kept), "statistics of norms too"
    assert result.record["fitted"]["epochs"] == 3


def test_without_freezing_all_learn_at_once(trained):
    training = Training(epochs=1, batch=32, augment=("mixup",))  # labels are shares of classes then
    result = transfer(trained, halves(), training=training, freeze_epochs=0)
    assert result.record["head"] is None
    old, new = trained.state_dict(), result.model.state_dict()
    assert any(not torch.equal(old[name], new[name]) for name in old if old[name].shape == new[name].shape)


def test_a_killed_run_ends_in_the_same_network(trained, tmp_path):
    whole = transfer(trained, halves(), training=TRAINING)
    place, told = tmp_path / "run.ckpt", []

    def kill(stage: str, done: int, total: int) -> None:
        told.append(stage)
        if stage.startswith("all layers") and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transfer(trained, halves(), training=TRAINING, checkpoint=place, progress=kill)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["run.ckpt", "run.ckpt.head"]
    resumed = transfer(trained, halves(), training=TRAINING, checkpoint=place)
    pairs = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class AnySize(nn.Module):
    """Pictures of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def test_an_onnx_file_learns_from_images_of_another_size(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "any.onnx"
    prepared = prepare(load_network(AnySize()), torch.zeros(1, 2, 20, 20))
    write(prepared.base, prepared.sites, {site.name: untouched(site) for site in prepared.sites}, path)
    result = transfer(path, halves(200), training=Training(epochs=1, batch=32))
    assert result.model(torch.from_numpy(halves(3)[0])).shape == (3, 2)
    assert result.files["original"].macs < 20 * 20 * 9 * 16, "counted at the images' size"


def test_mistakes_are_told_before_the_training(trained):
    x, y = halves(100)
    with pytest.raises(DataError, match="learns from labels"):
        transfer(trained, x)
    with pytest.raises(DataError, match=r"outside 0\.\.1"):
        transfer(trained, (x, y * 3), classes=2)
    with pytest.raises(DataError, match="1 classes are too few"):
        transfer(trained, (x, y * 0))
    with pytest.raises(DataError, match="fewer than a batch"):
        transfer(trained, (x, y))
    with pytest.raises(UserError, match="freeze_epochs=-1"):
        transfer(trained, (x, y), freeze_epochs=-1)
    with pytest.raises(UserError, match="not both 0"):
        transfer(trained, (x, y), freeze_epochs=0, body_rate=0.0)
    with pytest.raises(DataError, match="does not run on these inputs"):
        transfer(trained, (x[:, :1], y))
