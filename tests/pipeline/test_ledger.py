"""The byte ledger of real runs, and the limit on activations."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from smidgen.budget import Budget
from smidgen.errors import BudgetError
from smidgen.measure.activations import peak_activation_bytes
from smidgen.pipeline import compress
from smidgen.pipeline.ledger import _grown, parse_limit


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 4))


@pytest.fixture(scope="module")
def result():
    return compress(network(), example=torch.zeros(1, 64), budget=Budget(ratio=3), target=("onnx-w8", "onnx"))


def test_the_bytes_of_layers_are_those_of_the_files(result) -> None:
    ledger = result.record["ledger"]
    assert list(ledger["files"]) == ["original", "onnx-w8", "onnx", "archive"]
    for name, path in result.files.items():
        assert ledger["files"][name]["nbytes"] == path.stat().st_size
        assert 0 < ledger["files"][name]["zipped_nbytes"] <= path.stat().st_size + 100
    for name in ("onnx-w8", "onnx"):
        stored = onnx.load(result.files[name]).graph.initializer
        told = sum(layer["files"][name]["nbytes"] for layer in ledger["layers"])
        assert told == sum(len(each.raw_data) for each in stored)
    original = [layer["files"]["original"]["nbytes"] for layer in ledger["layers"]]
    assert original == [4 * (64 * 128 + 128), 4 * (128 * 96 + 96), 4 * (96 * 4 + 4)]
    assert ledger["grew"] == []


def test_w8_takes_a_quarter_on_disk_and_as_much_in_memory(result) -> None:
    for layer in result.record["ledger"]["layers"]:
        small, floats = layer["files"]["onnx-w8"], layer["files"]["onnx"]
        assert small["memory_nbytes"] == floats["memory_nbytes"] == floats["nbytes"]
        if "quantized" in str(layer) or small["nbytes"] < floats["nbytes"]:
            assert small["nbytes"] < 0.4 * floats["nbytes"]


def test_the_record_survives_json_and_the_table_shows_it(result) -> None:
    assert json.loads(json.dumps(result.record)) == result.record
    table = result.table()
    assert "Bytes: stored (zipped)" in table
    assert "activations at their peak" in table


def test_activations_within_the_limit_and_beyond_it(result) -> None:
    peak = peak_activation_bytes(result.files["onnx-w8"])
    assert peak == result.record["ledger"]["files"]["onnx-w8"]["peak_activation_bytes"]
    told = {"example": torch.zeros(1, 64), "budget": Budget(ratio=3), "target": "onnx-w8"}
    assert compress(network(), **told, max_ram=peak).met
    beyond = compress(network(), **told, max_ram=f"{peak - 1} B")
    assert not beyond.met
    assert beyond.record["budget"]["met"] is False
    note = beyond.record["budget"]["note"]
    peaks = beyond.record["ledger"]["files"]["onnx-w8"]["peak"]["tensors"]
    assert "activations take" in note
    for name, _ in peaks[:2]:
        assert f"'{name}'" in note
    assert beyond.record["ledger"]["max_ram"] == peak - 1


@pytest.mark.parametrize("wrong", ["", "much", 0, -3, "3 kilo", True])
def test_a_limit_that_is_no_size(wrong) -> None:
    with pytest.raises(BudgetError, match="max_ram"):
        compress(network(), example=torch.zeros(1, 64), max_ram=wrong)
    with pytest.raises(BudgetError, match="max_ram"):
        parse_limit("max_ram", wrong)


def test_a_stage_that_made_the_file_grow_is_told() -> None:
    files = {
        "original": {"nbytes": 1000},
        "onnx-w8": {"nbytes": 950},
        "onnx": {"nbytes": 900},
        "archive": {"nbytes": 1},
    }
    assert _grown(files) == ["onnx-w8 is 50 B larger than onnx"]
    assert _grown({"original": {"nbytes": 10}, "onnx": {"nbytes": 2010}}) == ["onnx is 2.0 kB larger than original"]
    assert np.all([not _grown({"original": {"nbytes": 10}, "archive": {"nbytes": 90}})])
