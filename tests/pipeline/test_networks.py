"""Networks of many kinds from end to end: ONNX files, several outputs, one layer, answers that are no scores."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import smidgen
from smidgen import Budget
from smidgen.errors import LoadError
from smidgen.pipeline import compress
from smidgen.runtimes.onnxruntime import open_onnx
from tests.pipeline.pictures import nbytes, pictures


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.boxes, self.scores = nn.Linear(20, 64), nn.Linear(64, 8), nn.Linear(64, 3)

    def forward(self, x):
        y = self.body(x).relu()
        return self.boxes(y), self.scores(y).softmax(1)


def test_several_outputs_are_judged_by_their_error():
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(80, 20)).astype("f4")
    result = compress(TwoHeads(), x, budget=Budget(tradeoff=0.4))
    entry = result.record["files"]["onnx"]
    assert entry["accuracy"] is None
    assert len(entry["output_error"]) == 2
    assert entry["loss_points"] is not None
    assert [y.shape for y in result.model(torch.from_numpy(x[:2]))] == [(2, 8), (2, 3)]


def test_an_onnx_file_goes_in(default, trained, tmp_path):
    """What smidgen wrote is read again, and a file is never made larger."""
    path = default.save(tmp_path) / "model.onnx"
    result = compress(path, pictures(), budget=Budget(tradeoff=0.0))
    assert nbytes(result) <= path.stat().st_size
    assert result.record["original"]["nbytes"] == path.stat().st_size


def test_a_lean_original_is_kept_rather_than_outgrown(tmp_path):
    """Weights in half precision: our float file would be larger, compressed or not."""
    helper, rng, kind = onnx.helper, np.random.default_rng(0), onnx.TensorProto
    nodes, tensors, value = [], [], "x"
    for i in range(2):
        tensors.append(onnx.numpy_helper.from_array((rng.normal(size=(64, 64)) / 8).astype("f2"), f"w{i}"))
        nodes.append(helper.make_node("Cast", [f"w{i}"], [f"c{i}"], to=kind.FLOAT))
        nodes.append(helper.make_node("MatMul", [value, f"c{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [f"r{i}"]))
        value = f"r{i}"
    ends = [helper.make_tensor_value_info(name, kind.FLOAT, ["n", 64]) for name in ("x", value)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    path = tmp_path / "half.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    x = rng.normal(size=(60, 64)).astype("f4")
    result = compress(path, x, budget=Budget(tradeoff=0.2))
    assert nbytes(result) <= path.stat().st_size
    assert "original is kept" in result.record["budget"]["note"]
    assert {layer["form"] for layer in result.record["layers"]} == {"dense"}
    with open_onnx(next(iter(result.files.values()))) as runner, torch.no_grad():
        assert np.allclose(runner.run(x)[0], result.model(torch.from_numpy(x)).numpy(), atol=1e-3)


def test_networks_with_nothing_to_compress_come_back_whole():
    result = compress(nn.Sequential(nn.Linear(3, 2)), np.random.default_rng(0).normal(size=(30, 3)).astype("f4"))
    assert [layer["form"] for layer in result.record["layers"]] == ["dense"]
    assert result.record["layers"][0]["reason"]
    assert nbytes(result) <= result.record["original"]["nbytes"]


def test_a_single_layer_is_a_network_too(tmp_path):
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    result = compress(layer, torch.randn(60, 64), budget=Budget(ratio=2))
    assert result.met
    assert [(entry["name"], entry["form"]) for entry in result.record["layers"]] == [("0", "low-rank")]
    x = torch.randn(3, 64)
    again = smidgen.rebuild_network(layer, result.save(tmp_path) / "model.safetensors")
    assert torch.equal(again(x), result.model(x))
    assert isinstance(layer, nn.Linear)


class Answers(nn.Module):
    """A network that answers in a way of its own."""

    def __init__(self, way):
        super().__init__()
        self.body, self.head, self.way = nn.Linear(30, 40), nn.Linear(40, 20), way

    def forward(self, x):
        return self.way(self.head(self.body(x).relu()))


@pytest.mark.parametrize(
    ("way", "words"),
    [
        (lambda y: {"scores": y}, "returns a value of type dict; make forward return a tensor"),
        (lambda y: (y, (y, y)), "returns a value of type tuple in a tuple; "),
        (lambda y: [y, None], "returns a value of type NoneType in a list; "),
        (lambda y: (), "returns nothing; "),
        (lambda y: y.argmax(1), "no output has a gradient .*; return the scores, or leave the data out"),
        (lambda y: y.argmax(1, keepdim=True), "no output has a gradient"),
    ],
    ids=["dict", "nested", "none", "empty", "class numbers", "class numbers in a column"],
)
def test_answers_that_cannot_be_calibrated_are_told_in_one_line(way, words):
    x = np.random.default_rng(0).normal(size=(40, 30)).astype("f4")
    for data in (x, (x, np.arange(40) % 20)):
        with pytest.raises(LoadError, match=words) as caught:
            compress(Answers(way), data)
        assert "\n" not in str(caught.value)


def test_class_numbers_are_enough_without_data():
    torch.manual_seed(0)
    result = compress(Answers(lambda y: y.argmax(1)), example=torch.zeros(1, 30), budget=Budget(ratio=2))
    assert result.met
    assert result.model(torch.zeros(3, 30)).shape == (3,)
