"""A spot in a large dark image: looked for, cropped, answered, in one file; and what cannot be, told at once."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import smidgen
from smidgen.errors import BudgetError, DataError, UserError
from smidgen.measure.latency import Latency
from smidgen.runtimes.opening import open_file

SIDE = 48


@pytest.fixture(autouse=True)
def _untimed_files(monkeypatch):
    """Nothing here depends on the clock."""
    monkeypatch.setattr(
        "smidgen.pipeline.measuring.compare_speed", lambda *given: (Latency(1.0, 1.0, 1.0, 1, 1.0),) * 2
    )


class Brightest(nn.Module):
    """Which of two channels has the brightest pixel: known by construction, so nothing is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(2, 2, 9, padding=4)  # wide, so that a whole image is dear
        with torch.no_grad():
            self.same.weight.zero_()
            self.same.weight[:, :, 4, 4] = 4 * torch.eye(2)
            self.same.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.same(x)).amax((2, 3))


def spots(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images with a spot of 4×4 in one of two channels, the channel, and the box around it."""
    rng = np.random.default_rng(seed)
    x, labels = rng.uniform(0, 0.2, (count, 2, SIDE, SIDE)).astype(np.float32), rng.integers(0, 2, count)
    boxes = np.zeros((count, 3), np.float32)
    for i, channel in enumerate(labels):
        row, column = rng.integers(0, SIDE - 4, 2)
        x[i, channel, row : row + 4, column : column + 4] = 2.0
        boxes[i] = (column + 2) / SIDE * 2 - 1, (row + 2) / SIDE * 2 - 1, 12 / SIDE
    return x, labels, boxes


@pytest.fixture(scope="module")
def found():
    x, labels, boxes = spots(500, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smidgen.pipeline.measuring.compare_speed", lambda *given: (Latency(1.0, 1.0, 1.0, 1, 1.0),) * 2)
        return smidgen.glimpse(
            Brightest(), (torch.from_numpy(x), torch.from_numpy(labels)), 12, boxes=boxes,
            test=spots(60, 1)[:2], training=smidgen.Training(epochs=6, batch=25, lr=5e-3),
        )  # fmt: skip


def test_it_looks_where_the_spot_is_and_multiplies_less(found):
    told = found.record["glimpse"]
    assert told["warning"] is None
    assert told["selection"]["lost"] <= 0.5 + 1e-9
    assert told["test"]["expected_macs"] < 0.4 * told["macs"]["full"]
    assert sum(told["test"]["shares"]) == pytest.approx(1.0)
    x, _, boxes = spots(60, 1)
    with torch.no_grad():
        at = found.model.looks(torch.from_numpy(x)).box[:, :2].numpy()
    # A quarter of the image's half side: the crop of 12 pixels of 48 holds the spot.
    assert np.median(np.abs(at - boxes[:, :2]).max(1)) < 0.25


def test_the_file_answers_as_the_module_for_each_image(found, tmp_path):
    folder = found.save(tmp_path / "looks")
    x = torch.from_numpy(spots(40, 2)[0])
    with torch.no_grad():
        wanted, ends = found.model(x), found.model.ends(x)
    with open_file(folder / "model.onnx", 1) as runner:
        written = np.concatenate([runner.run(each[None].numpy())[0] for each in x])
    np.testing.assert_allclose(written, wanted.numpy(), atol=1e-3)
    assert len(ends) == 40
    record = json.loads((folder / "result.json").read_text())
    assert record["kind"] == "glimpse"
    assert record["glimpse"]["latency"]["inputs"] == 60


def quickly(**given):
    """Boxes given, a short training."""
    x, labels, boxes = spots(300, 0)
    return smidgen.glimpse(
        Brightest(), (torch.from_numpy(x), torch.from_numpy(labels)), 12, boxes=boxes, test=spots(40, 1)[:2],
        training=smidgen.Training(epochs=3, batch=25, lr=5e-3), **given,
    )  # fmt: skip


def test_its_stages_are_compressed_and_the_graph_computes_in_integers(found):
    small = quickly(target="onnx-int8")
    told, before = small.record["glimpse"], found.record["glimpse"]
    assert all(told["nbytes"][name] < 0.7 * nbytes for name, nbytes in before["nbytes"].items())
    whole = onnx.load(small.file)
    branches = [a.g for node in whole.graph.node for a in node.attribute if a.HasField("g")]
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in whole.graph.node}
    assert any(node.op_type == "QuantizeLinear" for branch in branches for node in branch.node)
    assert told["selection"]["lost"] <= 0.5 + 1e-9
    assert sum(told["test"]["shares"]) == pytest.approx(1.0)
    assert small.record["files"]["glimpse"]["nbytes"] < 0.7 * found.record["files"]["glimpse"]["nbytes"]


def test_without_fallback_there_is_a_tflite_file_without_branches(tmp_path):
    pytest.importorskip("litert_torch", reason="the tflite extra is not installed")
    result = quickly(target="tflite", fallback=False)
    folder = result.save(tmp_path / "looks")
    assert {"model.onnx", "model.tflite"} <= {path.name for path in folder.iterdir()}
    assert result.record["files"]["tflite"]["nbytes"] == (folder / "model.tflite").stat().st_size
    assert result.record["files"]["tflite"]["test"]["score"] > 0.5
    assert "tflite" in result.table()
    x = torch.from_numpy(spots(5, 2)[0])
    with torch.no_grad():
        wanted = result.model.looks(x).crop.numpy()
    with open_file(folder / "model.tflite", 1) as runner:
        np.testing.assert_allclose(runner.run(x.numpy())[0], wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"crop": 64}, UserError, "a crop of 64×64 is no part of images of 48×48"),
        ({"max_drop": -1.0}, UserError, "max_drop=-1 points cannot be lost"),
        (
            {"target": "archive"},
            BudgetError,
            "there is no file of 'archive' with branches; give one of onnx",
        ),
        ({"target": "tflite"}, BudgetError, "tflite has no branches, and floats alone; leave fallback and budget out"),
        ({"budget": smidgen.Budget(size="9 kB")}, BudgetError, "a size cannot be divided among its stages"),
        ({"boxes": np.zeros((3, 3))}, DataError, r"boxes of shape \[3, 3\] are not x, y and side of each of 40 inputs"),
        ({"training": smidgen.Training(epochs=1, batch=8, augment=("flip",))}, UserError, "flip would move"),
        ({"classifier": nn.Sequential(nn.Flatten(), nn.Linear(288, 5))}, UserError, "must answer with 2 scores"),
        ({"classifier": nn.Sequential(nn.Flatten(), nn.Linear(9, 2))}, UserError, "classifier does not run"),
    ],
)
def test_what_cannot_be_is_told(change, error, told):
    given = {"crop": 12, "training": smidgen.Training(epochs=1, batch=8), **change}
    with pytest.raises(error, match=told):
        smidgen.glimpse(Brightest(), spots(40, 0)[0], **given)


def test_vectors_are_no_images():
    with pytest.raises(DataError, match="are no images"):
        smidgen.glimpse(nn.Sequential(nn.Linear(8, 3)), np.random.default_rng(0).normal(size=(40, 8)).astype("f4"), 4)
