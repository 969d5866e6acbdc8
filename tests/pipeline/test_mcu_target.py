"""mcu as a budget's target, from end to end: flash, arena, limits on both, C sources, and scores in TFLite Micro."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import smidgen
from smidgen.cli import main
from smidgen.data import Preprocess, open_data
from smidgen.errors import BudgetError, DataError, LoadError
from smidgen.pipeline import apply, compress
from smidgen.pipeline.bundle import runnable_files
from smidgen.runtimes import micro
from smidgen.runtimes.micro import MicroRunner, arena_nbytes
from smidgen.runtimes.opening import open_file
from tests.promise import assert_whole

pytest.importorskip("litert_torch", reason="the tflite extra is not installed")
pytest.importorskip("tflite_micro", reason="the mcu extra is not installed")


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(192, 64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10)).eval()


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(120, 3, 8, 8)).astype("f4")


@pytest.fixture(scope="module")
def small(inputs):
    return compress(network(), [inputs], target="mcu", max_flash="15 kB", max_ram="64 KiB", threads=1)


def test_flash_is_the_budget_where_none_is_given(small):
    assert small.met
    assert small.record["budget"]["kind"] == "size"
    entry = small.record["files"]["mcu"]
    assert entry["path"] == "model.mcu.tflite"
    assert entry["nbytes"] == small.files["mcu"].stat().st_size <= 15_000
    assert entry["agreement"] > 0.7
    assert {layer["bits"] for layer in small.record["layers"]} == {8}
    predicted, measured = small.record["predicted"]["nbytes"], small.record["measured"]["nbytes"]
    assert abs(predicted - measured) <= 0.2 * measured


def test_flash_and_arena_are_told_and_no_time(small):
    told = small.record["ledger"]["files"]["mcu"]
    assert told["flash_bytes"] == small.files["mcu"].stat().st_size
    assert told["arena_bytes"] == arena_nbytes(small.files["mcu"])
    assert told["peak_activation_bytes"] < told["arena_bytes"] < told["peak_activation_bytes"] + 8192
    # The input and what the convolution makes of it, a byte each.
    assert told["peak_activation_bytes"] == 64 * (3 + 12)
    entry = small.record["files"]["mcu"]
    assert entry["latency_ms"] is None
    assert "microcontroller" in entry["why"]["latency_ms"]
    assert_whole(small.record)
    assert "arena of TensorFlow Lite Micro" in small.table()


def test_it_was_scored_in_tflite_micro_and_answers_as_the_module(small, inputs):
    with open_file(small.files["mcu"]) as runner, torch.no_grad():
        assert isinstance(runner, MicroRunner)
        want = small.model(torch.from_numpy(inputs)).numpy()
        assert np.square(runner.run(inputs)[0] - want).mean() < 0.02 * np.square(want - want.mean(0)).mean()


def test_what_is_beyond_a_limit_is_told_with_the_numbers(inputs):
    budget = smidgen.Budget(tradeoff=0)
    result = compress(network(), [inputs], target="mcu", budget=budget, max_flash=9000, max_ram=1000, threads=1)
    assert not result.met
    note = result.record["budget"]["note"]
    told = result.record["ledger"]
    assert "of flash; asked was 9.0 kB" in note
    assert "the arena takes" in note
    assert "asked was 1.0 kB" in note
    assert "CONV_2D" in note
    assert (told["max_flash"], told["max_ram"]) == (9000, 1000)


def test_c_sources_are_saved_beside_the_file_and_neither_page_nor_bundle_takes_it(small, tmp_path):
    folder = small.save(tmp_path / "out")
    content = (folder / "model.mcu.tflite").read_bytes()
    source, header = (folder / "model_mcu.cc").read_text(), (folder / "model_mcu.h").read_text()
    assert f"model_mcu_len = {len(content)};" in source
    assert f"ARENA_NBYTES {small.record['ledger']['files']['mcu']['arena_bytes']}\n" in header
    assert "MicroMutableOpResolver<" in header
    found, left_out = runnable_files(folder, None)
    assert "mcu" in left_out
    assert "mcu" not in found


def test_a_plan_makes_the_file_again(small, inputs):
    again = apply(network(), small.plan.to_json(), [inputs], threads=1)
    assert again.files["mcu"].read_bytes() == small.files["mcu"].read_bytes()


def test_what_cannot_be_asked(inputs, monkeypatch):
    with pytest.raises(DataError, match="mcu needs inputs"):
        compress(network(), example=torch.zeros(1, 3, 8, 8), target="mcu")
    with pytest.raises(BudgetError, match="max_flash"):
        compress(network(), [inputs], target="mcu", max_flash="much")
    with pytest.raises(BudgetError, match="latency cannot be asked of mcu"):
        compress(network(), [inputs], target="mcu", budget=smidgen.Budget(latency="5 ms"))
    monkeypatch.setattr(micro.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r"pip install smidgen\[mcu\]"):
        compress(network(), [inputs], target="mcu")


# From the data's description: how a network takes its images, and the largest loss in points of accuracy.
REAL = {
    "resnet8": ("resnet8_cifar10_mlperftiny.onnx", "cifar10_jpeg.npz", Preprocess(scale=1.0), 1.0),
    "cats-dogs": ("ai85cd_catsdogs.onnx", "cats_dogs_128.npz", Preprocess(scale=1 / 128, mean=(1.0,)), 1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_networks_keep_their_accuracy(name, data_dir: Path):
    model, data, preprocess, most = REAL[name]
    source, rng = data_dir / data, np.random.default_rng(0)
    train, test = (open_data(source, split=split, preprocess=preprocess) for split in ("train", "test"))
    train, test = (each.take(rng.permutation(len(each))[:120]) for each in (train, test))
    result = compress(
        data_dir / "models" / model, train, test=test, target="mcu", budget=smidgen.Budget(tradeoff=0), threads=1
    )
    entry, told = result.record["files"]["mcu"], result.record["ledger"]["files"]["mcu"]
    assert entry["nbytes"] <= 0.32 * result.record["original"]["nbytes"]
    assert entry["agreement"] >= 0.95
    assert entry["loss_points"] <= most + 2 * 100 / len(test) ** 0.5 * 0.25
    assert told["arena_bytes"] > told["peak_activation_bytes"]


@pytest.mark.slow
def test_the_command_line_tells_what_is_beyond_the_limits(small, inputs, tmp_path: Path, capsys):
    net = str(small.save(tmp_path / "first") / "original.onnx")
    np.savez(tmp_path / "x.npz", x=inputs)
    asked = [net, "--data", str(tmp_path / "x.npz"), "--target", "mcu", "--threads", "1"]
    out = tmp_path / "out"
    assert main(["compress", *asked, "--max-flash", "15kB", "--max-ram", "1KiB", "-o", str(out), "-q", "--json"]) == 3
    told, complaint = capsys.readouterr()
    assert json.loads(told)["ledger"]["max_flash"] == 15_000
    assert "the arena takes" in complaint
    assert (out / "model_mcu.cc").is_file()
    file = str(out / "model.mcu.tflite")
    assert main(["eval", file, "--against", net, "--data", str(tmp_path / "x.npz"), "-q"]) == 0
