"""Fast convolutions where milliseconds are budgeted: taken before anything that loses, replayed, and never archived."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import smidgen
import smidgen.pipeline.times as times
from smidgen import Budget
from smidgen.forms.fastconv import ALGORITHMS
from smidgen.measure.latency import Latency
from smidgen.pipeline import apply, compress
from smidgen.runtimes.opening import open_file

FAST = 0.25  # of the direct layer's time, by the clock of these tests


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    ).eval()  # fmt: skip


def convolutions(path) -> int:
    return sum(node.op_type == "Conv" for node in onnx.load(path).graph.node)


@pytest.fixture
def clock(monkeypatch):
    """A layer takes 1 ms, a fast one a quarter, a chain of several as long as the layer; files what their layers do."""

    def layers(layer, chains, shape, threads, seconds):
        fast = {name: FAST if b"fast" in file else 1.0 for name, file in chains.items()}
        return 1.0, fast

    def files(original, path, one, threads, times=1):
        graph = onnx.load(path).graph if path.suffix == ".onnx" else onnx.GraphProto()
        fast = sum(each.name.endswith(".kernel") for each in graph.initializer)
        ms = 3 - fast + fast * FAST
        return Latency(3.0, 3.0, 3.0, 9, 1.0), Latency(ms, ms, ms, 9, 3.0 / ms)

    monkeypatch.setattr(
        "smidgen.pipeline.running.with_times", lambda o, t, p: times.with_times(o, t, p, times.TimeTable(None))
    )
    monkeypatch.setattr(times, "time_chains", layers)
    for place in ("pipeline.fast_files", "pipeline.workshop", "report.record"):
        monkeypatch.setattr(f"smidgen.{place}.compare_speed", files)


@pytest.mark.usefixtures("clock")
def test_what_loses_nothing_is_taken_where_its_kernels_fit(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 3, 12, 12)).astype("f4")
    result = compress(network(), x, budget=Budget(speedup=2), max_flash="1 MB", threads=1)
    assert result.met
    assert sum(layer["form"] in ALGORITHMS for layer in result.record["layers"]) >= 2
    assert result.plan.loss == 0.0
    file = result.files["onnx"]
    assert convolutions(file) <= 1
    assert result.record["original"]["nbytes"] < file.stat().st_size < 1e6
    assert result.record["files"]["onnx"]["kl"] < 1e-6
    # An archive is for storing: it holds the weights, not the larger kernels.
    (tmp_path / "opened.onnx").write_bytes(smidgen.unpack(result.files["archive"]))
    assert convolutions(tmp_path / "opened.onnx") == 3
    again = apply(network(), result.plan.to_json(), x, threads=1)
    assert again.files["onnx"].read_bytes() == file.read_bytes()


@pytest.mark.usefixtures("clock")
def test_a_file_never_grows_beyond_the_original_unasked():
    x = np.random.default_rng(0).normal(size=(60, 3, 12, 12)).astype("f4")
    result = compress(network(), x, budget=Budget(speedup=1.2), threads=1)
    assert result.record["files"]["onnx"]["nbytes"] <= result.record["original"]["nbytes"]
    assert "larger" not in (result.record["budget"]["note"] or "")
    # One kernel grows; another layer gives the bytes for it.
    assert any(layer["form"] in ALGORITHMS for layer in result.record["layers"])


@pytest.mark.usefixtures("clock")
def test_the_file_answers_as_the_module():
    x = np.random.default_rng(0).normal(size=(60, 3, 12, 12)).astype("f4")
    result = compress(network(), x, budget=Budget(speedup=3.9), max_flash="1 MB", threads=1)
    assert convolutions(result.files["onnx"]) == 0
    with torch.no_grad():
        wanted = result.model(torch.from_numpy(x[:1])).numpy()
    with open_file(result.files["onnx"], 1) as runner:
        np.testing.assert_allclose(runner.run(x[:1])[0], wanted, atol=1e-4)


@pytest.mark.usefixtures("clock")
def test_bytes_alone_never_buy_them():
    result = compress(network(), example=torch.zeros(1, 3, 12, 12), budget=Budget(ratio=1.5), threads=1)
    assert all(layer["method"] not in ALGORITHMS for layer in result.record["layers"])
