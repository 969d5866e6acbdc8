"""Every change of a trained network, written, measured, and the best of them."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from smidgen import downsample
from smidgen.errors import DataError, UserError
from smidgen.measure.latency import Latency
from smidgen.model.load import load_network
from tests.pipeline.pictures import pictures

MODULE = "smidgen.pipeline.downsample"


@pytest.fixture(autouse=True)
def _untimed_files(monkeypatch):
    """Nothing here depends on the clock."""
    monkeypatch.setattr(
        "smidgen.pipeline.measuring.compare_speed", lambda *given: (Latency(1.0, 1.0, 1.0, 1, 1.0),) * 2
    )


@pytest.fixture(scope="module")
def found(trained):
    before = copy.deepcopy(trained.state_dict())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smidgen.pipeline.measuring.compare_speed", lambda *given: (Latency(1.0, 1.0, 1.0, 1, 1.0),) * 2)
        result = downsample(trained, pictures(), max_drop="30%", test=pictures(80, 3), seed=1)
    assert all(torch.equal(before[k], v) for k, v in trained.state_dict().items()), "the given network was changed"
    return result


def test_every_row_is_measured_or_says_why_not(found):
    assert not found.rows[0].changes
    for row in found.rows:
        assert (row.measured is None) == (row.reason is not None)
    assert {row.changes[0].partition(":")[0] for row in found.rows[1:]} == {"resolution", "stride"}
    assert sum(row.chosen for row in found.rows) == 1


def test_the_chosen_network_does_less_and_loses_little(found):
    first, best = found.rows[0].measured, found.chosen.measured
    assert best.macs < first.macs
    assert best.activation_bytes <= first.activation_bytes
    assert best.points + best.points_error <= 30
    alone = [r.measured for r in found.rows if r.measured and r.measured.points + r.measured.points_error <= 30]
    assert best.macs == min(one.macs for one in alone)


def test_the_written_file_answers_as_the_network(found, tmp_path):
    path = found.save(tmp_path / "out") / "model.onnx"
    onnx.checker.check_model(onnx.load(path))
    x, y = pictures(80, 3)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (answers,) = session.run(None, {"input": x})
    with torch.no_grad():
        np.testing.assert_allclose(answers, found.model(torch.from_numpy(x)).numpy(), atol=1e-4)
    assert (answers.argmax(1) == y).mean() == pytest.approx(found.chosen.measured.test["score"])
    assert load_network(path).input_shape == (None, 2, 8, 8)


def test_the_record_is_plain_and_the_table_names_every_row(found):
    assert found.record["max_drop"] == 30
    assert len(found.record["rows"]) == len(found.rows)
    assert found.record["data"].keys() == {"calibration", "selection", "test"}
    text = found.table().replace("\n", " ")
    assert "← chosen" in text
    assert text.count("not possible") == sum(row.reason is not None for row in found.rows)
    assert "chosen:" in found.verdict()


def test_a_network_that_loses_too_much_is_left_as_it_is(trained):
    result = downsample(trained, pictures(), max_drop=1e-6, refit=False, seed=1)
    if result.chosen.changes:  # nothing was lost at all
        assert result.chosen.measured.points == 0
        return
    assert result.chosen.measured.macs == result.rows[0].measured.macs
    assert "the original is kept" in result.verdict()


def test_the_same_seed_gives_the_same_file(trained, found):
    again = downsample(trained, pictures(), max_drop="30%", test=pictures(80, 3), seed=1)
    assert again.file.read_bytes() == found.file.read_bytes()


def test_what_saves_nothing_is_refused():
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Conv2d(4, 4, 1))
    net = torch.nn.Sequential(*layers, torch.nn.MaxPool2d(2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    inputs = np.random.default_rng(0).normal(size=(40, 2, 16, 16)).astype("f4")
    result = downsample(net, inputs, max_drop=50, refit=False)
    reasons = {row.changes[0]: row.reason for row in result.rows if row.reason is not None}
    assert set(reasons.values()) == {"it saves no multiplications"}
    # behind the last pooling no layer is left to gain by it; one tap on four places is four taps on one
    assert list(reasons) == [
        "resolution: half from max_pool2d_1 on", "pooling: _3 takes max_pool2d_1 in, wider kernel",
    ]  # fmt: skip
    first = result.rows[0].measured.macs
    assert all(row.measured.macs < first for row in result.rows[1:] if row.measured)


def test_what_is_wrong_is_told(trained):
    with pytest.raises(DataError, match="give --data"):
        downsample(trained, None)
    with pytest.raises(UserError, match="max_drop"):
        downsample(trained, pictures(), max_drop="x")
    with pytest.raises(UserError, match="no map"):
        downsample(torch.nn.Linear(4, 2), np.random.default_rng(0).normal(size=(20, 4)).astype("f4"))
