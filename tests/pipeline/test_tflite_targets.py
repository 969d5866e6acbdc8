"""tflite and tflite-int8 as a budget's target, from end to end: sizes that are kept, files that run and were scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import smidgen
from smidgen.cli import main
from smidgen.errors import DataError, LoadError
from smidgen.pipeline import apply, compress
from smidgen.runtimes import tflite_file
from smidgen.runtimes.opening import open_file

pytest.importorskip("litert_torch", reason="the tflite extra is not installed")


class Net(nn.Module):
    """A convolution, a depthwise one and dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.wide, self.head = nn.Linear(12 * 16, 64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.depth(torch.relu(self.stem(x)))), 2)
        return self.head(torch.relu(self.wide(x.flatten(1))))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(120, 3, 8, 8)).astype("f4")


@pytest.fixture(scope="module")
def small(network, inputs):
    budget = smidgen.Budget(ratio=4)
    return compress(network, [inputs], target=["tflite-int8", "tflite"], budget=budget, threads=1)


def test_the_budget_binds_the_file_of_integers(small):
    files, original = small.record["files"], small.record["original"]
    assert list(files) == ["tflite-int8", "tflite", "onnx", "archive"]
    assert small.met
    assert files["tflite-int8"]["path"] == "model.int8.tflite"
    assert files["tflite-int8"]["nbytes"] * 4 <= original["nbytes"]
    assert files["tflite-int8"]["nbytes"] == small.files["tflite-int8"].stat().st_size
    assert files["tflite-int8"]["agreement"] > 0.7
    assert files["tflite-int8"]["latency_ms"] > 0
    predicted, measured = small.record["predicted"]["nbytes"], small.record["measured"]["nbytes"]
    assert abs(predicted - measured) <= 0.15 * measured


def test_every_layer_holds_integers_and_is_counted(small):
    files = small.record["files"]
    assert {layer["bits"] for layer in small.record["layers"]} <= {4, 8}
    assert files["tflite-int8"]["params"] == files["tflite"]["params"] == files["onnx"]["params"]
    assert files["tflite-int8"]["macs"] == files["tflite"]["macs"] == files["onnx"]["macs"]


def test_floats_answer_as_the_module_and_integers_nearly(small, inputs):
    with torch.no_grad():
        want = small.model(torch.from_numpy(inputs)).numpy()
    size = np.square(want - want.mean(0)).mean()
    for name, share in (("tflite", 1e-6), ("tflite-int8", 0.02)):
        with open_file(small.files[name]) as runner:
            assert np.square(runner.run(inputs)[0] - want).mean() < share * size


def test_a_plan_makes_the_file_again(small, network, inputs):
    again = apply(network, small.plan.to_json(), [inputs], threads=1)
    assert again.files["tflite-int8"].read_bytes() == small.files["tflite-int8"].read_bytes()


def test_integers_need_inputs_and_floats_do_not(network):
    with pytest.raises(DataError, match="tflite-int8 needs inputs"):
        compress(network, example=torch.zeros(1, 3, 8, 8), target="tflite-int8")
    budget = smidgen.Budget(ratio=2)
    result = compress(network, example=torch.zeros(1, 3, 8, 8), target="tflite", budget=budget, threads=1)
    assert result.met
    assert result.record["files"]["tflite"]["nbytes"] * 2 <= result.record["original"]["nbytes"]


def test_a_missing_package_is_told_before_the_work(network, monkeypatch):
    monkeypatch.setattr(tflite_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r"pip install smidgen\[tflite\]"):
        compress(network, example=torch.zeros(1, 3, 8, 8), target="tflite")


def test_a_saved_file_is_scored_on_the_command_line(small, inputs, tmp_path, capsys):
    folder = small.save(tmp_path / "out")
    np.savez(tmp_path / "x.npz", x=inputs)
    asked = [str(folder / "model.int8.tflite"), "--against", str(folder / "model.onnx"), "--data"]
    assert main(["eval", *asked, str(tmp_path / "x.npz"), "-q", "--threads", "1"]) == 0
    assert "model.int8.tflite" in capsys.readouterr().out
