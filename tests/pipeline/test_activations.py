"""Activations rounded while a network trains: as the written file rounds them, to the step."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from smidgen.calibrate.ranges import Range
from smidgen.errors import PlanError
from smidgen.export.static import write_static
from smidgen.forms import Dense, LowRank, Quantized
from smidgen.pipeline import compress
from smidgen.pipeline.activations import rounded_forward
from smidgen.pipeline.task import open_task
from smidgen.planning.widths import in_integers
from smidgen.recover.activations import Rounding
from smidgen.recover.trainable import trainable
from smidgen.recover.training import Training
from smidgen.site import Stored, untouched
from tests.pipeline.pictures import CLASSES, pictures

TARGET = "onnx-int8"


class Joins(nn.Module):
    """A shortcut, an uneven padding, a mean and a dense layer along an axis that is not the first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 12, 3, stride=2)
        self.mixed = nn.Linear(4, 4)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.body(x)).relu()
        x = self.down(nn.functional.pad(x, (0, 1, 0, 1))).relu()
        return self.head(self.mixed(x).mean((2, 3)))


@pytest.fixture(scope="module")
def joins():
    torch.manual_seed(0)
    return Joins().eval()


def in_int8(site):
    """Dense in eight bits; the widest layer in two factors of eight bits."""
    start = untouched(site)
    if site.name == "down":
        u, s, v = np.linalg.svd(site.weight.reshape(12, -1), full_matrices=False)
        wide = LowRank(Dense((s[:6, None] * v[:6]).reshape(6, 8, 3, 3)), Dense(u[:, :6].reshape(12, 6)))
        start = Stored(wide, site.bias)
    return in_integers(site, start, TARGET)


def test_what_is_trained_is_what_the_file_computes(joins, tmp_path):
    task = open_task(joins, pictures(200), None, None, None, None, 1, "cpu", 0)
    stored = {site.name: in_int8(site) for site in task.prepared.sites}
    assert all(isinstance(form, Quantized | LowRank) for form in (one.form for one in stored.values()))
    net = trainable(joins, task.prepared.sites, stored, target=TARGET)
    forward, found = rounded_forward(task, stored, net)
    write_static(task.prepared, stored, tmp_path / "out.onnx", task.roles.calibration, None, 1, found)
    x = pictures(64, seed=9)[0]
    # Node by node: a processor without VNNI cuts off sums of u8 · s8 beyond 16 bits where the runtime fuses them.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", options)
    (written,) = session.run(None, {session.get_inputs()[0].name: x})
    with torch.no_grad():
        ours, floats = (each(torch.from_numpy(x)).numpy() for each in (forward, net))
    # What lies between two steps may fall to either: a step of an activation here and there.
    apart, rounded = np.abs(ours - written), np.abs(floats - written)
    assert apart.mean() < 0.2 * rounded.mean()
    assert np.median(apart) < 0.01 * np.median(rounded)


def test_gradients_reach_every_layer_and_nothing_else(joins):
    task = open_task(joins, pictures(120), None, None, None, None, 1, "cpu", 0)
    stored = {site.name: in_int8(site) for site in task.prepared.sites}
    net = trainable(joins, task.prepared.sites, stored, target=TARGET)
    forward, _ = rounded_forward(task, stored, net)
    forward(torch.from_numpy(pictures(8)[0])).square().sum().backward()
    for name, each in net.named_parameters():
        if each.requires_grad:
            assert each.grad is not None, name
            assert each.grad.abs().sum() > 0, name


def test_the_file_has_the_ranges_that_it_was_trained_with(trained):
    """Those of the network as it was, not of what it became."""
    x, _ = pictures(400)
    noisy = x + 0.8 * np.random.default_rng(7).standard_normal(x.shape).astype(np.float32)
    given = {"target": TARGET, "settings": {"svd": {"ranks": "fixed", "rank": 1}}, "threads": 1, "seed": 1}
    training = Training(epochs=4, batch=16, lr=2e-3)
    result = compress(trained, noisy, train=training, round_activations=True, **given)
    told = result.record["training"]
    assert told["round_activations"]
    assert told["kept"], told["why"]
    assert told["after"]["loss"] < told["before"]["loss"]
    plain = compress(trained, noisy, **given)
    assert _steps(result.files[TARGET]) == _steps(plain.files[TARGET])


def _steps(path) -> list[float]:
    """Scales of the activations, in the graph's order."""
    import onnx

    graph = onnx.load(path).graph
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    return [float(stored[n.input[1]]) for n in graph.node if n.op_type == "QuantizeLinear"]


def test_clipped_values_have_no_gradient():
    x = torch.tensor([-3.0, -0.9, 0.0, 0.9, 3.0], requires_grad=True)
    y = Rounding(Range(-1.0, 1.0))(x)
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    assert (y - x.clamp(-1, 1)).abs().max() <= 0.5 * 2 / 255 + 1e-6
    assert y[2] == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"target": "archive"}, "a file of archive computes in floats; give target onnx-int8"),
        ({"target": TARGET, "train": None}, "give --train"),
        ({"recipe": "deep-compression"}, "says round_activations itself"),
    ],
)
def test_what_cannot_be_is_told(trained, given, told):
    asked = {"train": Training(batch=8), "threads": 1, "round_activations": True, **given}
    with pytest.raises(PlanError, match=told):
        compress(trained, pictures(), **asked)
