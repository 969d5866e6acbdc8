"""What a run leaves behind: the record, the files, a network that trains on."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import smidgen
from smidgen.errors import OutputError
from smidgen.runtimes.onnxruntime import open_onnx
from tests.pipeline.pictures import Net, nbytes, pictures
from tests.promise import SAVED, assert_whole


def test_the_record_has_every_field_of_the_promise(default):
    record = default.record
    assert_whole(record)
    assert (record["mode"], record["seed"], record["target"]) == ("calibration", 1, "onnx")
    assert record["seconds"] > 0
    assert record["peak_rss_bytes"] > 10**7
    for entry in (record["original"], record["files"]["onnx"]):
        assert 0 <= entry["accuracy"] <= 1
    assert record["original"]["accuracy"] > 0.9
    assert sum(role["count"] for role in record["data"].values()) <= 160
    for layer in record["layers"]:
        assert (layer["rank"] is None) == (layer["form"] == "dense")
        assert layer["form"] != "dense" or layer["reason"]
    assert [layer["name"] for layer in record["layers"]] == ["stem", "body", "hidden", "head"]


def test_the_written_file_is_what_was_measured(default):
    entry, path = default.record["files"]["onnx"], default.files["onnx"]
    assert path.stat().st_size == entry["nbytes"]
    weights = sum(int(np.prod(t.dims)) for t in onnx.load(path).graph.initializer if t.data_type == 1)
    assert weights == entry["params"] == sum(p.numel() for p in default.model.parameters())
    x, _ = pictures(7, seed=5)
    with open_onnx(path) as runner, torch.no_grad():
        assert np.allclose(runner.run(x)[0], default.model(torch.from_numpy(x)).numpy(), atol=1e-3)


def test_saving_writes_five_files_and_the_original_of_a_module(default, tmp_path):
    saved = sorted([*SAVED, "original.onnx"])
    out = default.save(tmp_path / "new" / "out")
    assert sorted(p.name for p in out.iterdir()) == saved
    assert (out / "original.onnx").stat().st_size == default.record["original"]["nbytes"]
    assert (out / "model.onnx").stat().st_size == nbytes(default)
    stored = json.loads((out / "result.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert stored["layers"] == default.record["layers"]
    default.save(out)
    assert sorted(p.name for p in out.iterdir()) == saved, "saving again replaces"


def test_a_saved_network_is_rebuilt_by_the_users_class_and_trains(default, tmp_path):
    out = default.save(tmp_path)
    again = smidgen.rebuild_network(Net(), out / "model.safetensors").eval()
    x, y = (torch.from_numpy(part) for part in pictures(16, seed=5))
    assert torch.equal(again(x), default.model(x))
    nn.functional.cross_entropy(again.train()(x), y).backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in again.parameters())


def test_a_folder_that_cannot_be_written_is_told(default, tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputError, match="cannot write") as caught:
            default.save(place)
        assert "\n" not in str(caught.value)


def test_a_save_that_fails_leaves_nothing_half_written(default, tmp_path, monkeypatch):
    def full(source, target):
        with open(target, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OutputError, match="No space left"):
        default.save(tmp_path)
    assert list(tmp_path.iterdir()) == []
