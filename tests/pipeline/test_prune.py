"""Networks cut and refitted: nothing is lost where nothing was needed, and the file answers as the network."""

from __future__ import annotations

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from smidgen import prune
from smidgen.data import Dataset
from smidgen.errors import BudgetError, DataError, LoadError, UserError
from smidgen.measure.latency import Latency
from smidgen.methods.channels import CRITERIA
from smidgen.pipeline.prune import parse_share
from tests.pipeline.pictures import pictures

MODULE = "smidgen.pipeline.measuring"


@pytest.fixture(autouse=True)
def _untimed_files(monkeypatch):
    """Nothing here depends on the clock."""
    monkeypatch.setattr(f"{MODULE}.compare_speed", lambda *given: (Latency(1.0, 1.0, 1.0, 1, 1.0),) * 2)


def spare():
    """Twelve channels of which four are dead and four double others, in front of a convolution and of a dense layer."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 4),
    )  # fmt: skip
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight[4:8], layer.bias[4:8] = 0.0, torch.tensor([-1.0, 0.5, 0.0, -2.0])
            layer.weight[8:], layer.bias[8:] = 1.5 * layer.weight[:4], 1.5 * layer.bias[:4]
    return net


def answers(result, x, tmp_path):
    session = onnxruntime.InferenceSession(result.save(tmp_path / "out") / "model.onnx")
    (given,) = session.run(None, {session.get_inputs()[0].name: x})
    with torch.no_grad():
        np.testing.assert_allclose(given, result.model(torch.from_numpy(x)).numpy(), atol=1e-4)
    return given


def test_dead_and_doubled_channels_go_and_nothing_is_lost(tmp_path):
    net, (x, _) = spare(), pictures(400)
    before = copy.deepcopy(net.state_dict())
    result = prune(net, x, macs="20%", multiple=4)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items()), "the given network was changed"
    assert [row.after for row in result.layers] == [4, 4, 4]
    fresh, _ = pictures(50, 7)
    with torch.no_grad():
        wanted = net(torch.from_numpy(fresh)).numpy()
    given = answers(result, fresh, tmp_path)
    assert np.abs(given - wanted).max() < 0.03 * np.abs(wanted).max()
    plain = prune(net, x, macs="20%", multiple=4, criterion="l1", refit=False)
    assert plain.record["measured_loss"] > 10 * result.record["measured_loss"]


def test_half_of_a_trained_network_keeps_its_answers(trained, tmp_path):
    result = prune(trained, pictures(320), macs="50%", multiple=4, test=pictures(160, 5))
    assert result.smaller.macs <= 0.5 * result.original.macs
    assert result.smaller.test["lost"] < 5
    assert all(row.after % 4 == 0 for row in result.layers)
    x, y = pictures(160, 5)
    assert (answers(result, x, tmp_path).argmax(1) == y).mean() == pytest.approx(result.smaller.test["score"])
    assert "left alone because" in result.table()
    assert "of the multiplications" in result.verdict()
    assert (tmp_path / "out" / "original.onnx").is_file()
    again = prune(trained, pictures(320), macs="50%", multiple=4, test=pictures(160, 5))
    assert again.file.read_bytes() == result.file.read_bytes()


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_cuts_what_it_is_asked_for(trained, name):
    result = prune(trained, pictures(), macs=0.6, criterion=name, multiple=2, refit=False)
    assert 0.2 < result.smaller.macs / result.original.macs <= 0.6
    assert result.record["asked"]["criterion"] == name


def test_without_data_the_weights_tell(trained):
    result = prune(trained, macs="50%", multiple=4, example=torch.zeros(1, 2, 8, 8))
    assert result.smaller.macs <= 0.5 * result.original.macs
    assert result.record["measured_loss"] is None


def test_weights_can_be_asked_for_and_layers_protected(trained):
    result = prune(trained, pictures(), params="40%", multiple=4, protect=["stem", "bod*"], refit=False)
    counts = {row.name: (row.before, row.after, row.reason) for row in result.layers}
    assert counts["stem"] == (12, 12, "it is protected")
    assert counts["body"] == (24, 24, "it is protected")
    assert counts["hidden"][1] < 48
    assert result.smaller.params <= 0.42 * result.original.params


def test_a_bias_that_was_not_there_is_written():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16, bias=False), nn.Sigmoid(), nn.Linear(16, 3, bias=False))
    result = prune(net, torch.rand(200, 5, 6).numpy(), macs="50%", multiple=4)
    assert result.layers[0].after <= 8
    assert result.record["measured_loss"] < 0.1


@pytest.mark.parametrize("given", [0, 1, -0.5, "nan", "0%", "100%", "-3%", "half", float("nan"), float("inf")])
def test_a_share_that_is_none_is_refused(given):
    with pytest.raises(BudgetError, match="is no share"):
        parse_share("macs", given)


def test_what_is_wrong_is_told(trained):
    with pytest.raises(BudgetError, match="--macs 50% or --params 50%"):
        prune(trained, pictures())
    with pytest.raises(BudgetError, match="--macs 50% or --params 50%"):
        prune(trained, pictures(), macs=0.5, params=0.5)
    with pytest.raises(UserError, match="no criterion 'tailor'; did you mean 'taylor'"):
        prune(trained, pictures(), macs=0.5, criterion="tailor")
    with pytest.raises(UserError, match="no layer 'boddy' to protect; near: body"):
        prune(trained, pictures(), macs=0.5, protect=["boddy"])
    with pytest.raises(UserError, match="multiples of 0"):
        prune(trained, pictures(), macs=0.5, multiple=0)
    with pytest.raises(UserError, match="no layer may be emptied"):
        prune(trained, pictures(), macs=0.01)
    with pytest.raises(DataError, match="'apoz' needs inputs"):
        prune(trained, macs=0.5, criterion="apoz", example=torch.zeros(1, 2, 8, 8))
    x = torch.randn(20, 6).numpy()
    with pytest.raises(UserError, match="'batchnorm' needs BatchNorms"):
        prune(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), x, macs=0.5, criterion="batchnorm")
    with pytest.raises(UserError, match="no channel of this network can be cut: they are the network's outputs"):
        prune(nn.Linear(6, 3), x, macs=0.5)


def test_operators_that_cannot_be_followed_leave_layers_alone():
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x):
            return self.c(self.b(torch.topk(self.a(x), 16).values).relu())

    result = prune(Sorted(), torch.randn(60, 6).numpy(), macs="80%")
    assert result.layers[0].reason == "they reach the operator TopK, which is not followed"
    assert (result.layers[0].after, result.layers[1].after) == (16, 8)


@pytest.mark.slow
def test_lenet_at_half_its_multiplications(data_dir):
    from smidgen.data import open_data

    images = open_data(data_dir / "mnist" / "train-images-idx3-ubyte.gz")
    order = np.random.default_rng(0).permutation(len(images))
    data = Dataset.from_array(np.asarray(images.take(order[:600])))
    test = images.take(order[1000:3000])
    file = data_dir / "models" / "lenet_mnist.onnx"
    ours = prune(file, data, macs="50%", test=test, threads=1)
    plain = prune(file, data, macs="50%", test=test, threads=1, criterion="l1", refit=False)
    assert ours.smaller.macs <= 0.5 * ours.original.macs
    assert ours.smaller.test["lost"] < 1.5
    assert plain.smaller.test["lost"] > ours.smaller.test["lost"] + 3


def test_a_damaged_file_is_told(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(LoadError):
        prune(tmp_path / "broken.onnx", macs=0.5)
