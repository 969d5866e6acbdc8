"""Values of which eight bits cost too much return to floats where that is measured to help, with their weights int8."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("litert_torch", reason="the tflite extra is not installed")

from smidgen.calibrate.answers import true_losses
from smidgen.calibrate.tflite_ranges import observe
from smidgen.data import Dataset
from smidgen.export.tflite import to_tflite
from smidgen.export.tflite_int8 import quantized
from smidgen.export.tflite_static import HIGH, answers_of, calibrated
from smidgen.runtimes.tflite_file import constant, names_of, operator_name, parse


def integers_of(layer):
    """A layer's weight made multiples of integers, and these."""
    with torch.no_grad():
        rows = layer.weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (layer.weight.ndim - 1)) / 127
        integers = (layer.weight / rows).round()
        layer.weight.copy_(integers * rows)
    return integers.numpy().astype(np.int32)


@pytest.fixture(scope="module")
def uneven():
    """One value of the middle has a channel a thousand times the others, which alone are read."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.MaxPool2d(2), nn.Conv2d(8, 16, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 9, 10),
    ).eval()  # fmt: skip
    with torch.no_grad():
        net[2].weight[0] *= 2000
        net[4].weight[:, 0] = 0
        net[7].weight *= 20
    integers = [integers_of(net[i]) for i in (0, 2, 4, 7)]
    return to_tflite(net, torch.zeros(1, 3, 6, 6), columns=False), integers


@pytest.fixture(scope="module")
def data():
    return Dataset.from_array(np.random.default_rng(0).normal(size=(64, 3, 6, 6)).astype(np.float32))


def kinds(content):
    model, names = parse(content), names_of("TensorType")
    tensors = model.subgraphs[0].tensors
    return [
        (operator_name(model, o), names[tensors[int(o.inputs[0])].type], names[tensors[int(o.outputs[0])].type])
        for o in model.subgraphs[0].operators
    ]


def loss(content, floats, data):
    return float(true_losses(answers_of(floats, data, 1), answers_of(content, data, 1)).mean())


def test_the_value_that_costs_most_returns_to_floats(uneven, data):
    floats, integers = uneven
    plain = quantized(floats, observe(floats, data).ranges("mse"), integers)
    found = calibrated(floats, data, integers, held=data)
    assert loss(plain, floats, data) > HIGH
    assert loss(found, floats, data) < 0.2 * loss(plain, floats, data)
    layers = [kind for kind in kinds(found) if kind[0] in ("CONV_2D", "FULLY_CONNECTED")]
    assert ("CONV_2D", "FLOAT32", "FLOAT32") in layers
    assert ("CONV_2D", "INT8", "INT8") in layers


def test_its_weights_are_still_the_planners_integers(uneven, data):
    floats, integers = uneven
    found = parse(calibrated(floats, data, integers, held=data))
    held = [constant(found, tensor) for tensor in found.subgraphs[0].tensors]
    sums = sorted(int(np.abs(v.astype(int)).sum()) for v in held if v is not None and v.dtype == np.int8)
    assert sums == sorted(int(np.abs(each).sum()) for each in integers)
    assert not any(v is not None and v.dtype == np.float32 and v.ndim > 1 for v in held)


def test_nothing_returns_where_little_is_lost_nor_on_a_microcontroller(uneven, data):
    floats, integers = uneven
    layers = [k for k in kinds(calibrated(floats, data, integers, held=data, micro=True)) if k[0] == "CONV_2D"]
    assert set(layers) == {("CONV_2D", "INT8", "INT8")}
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten()).eval()
    even = calibrated(to_tflite(net, torch.zeros(1, 3, 6, 6), columns=False), data, held=data)
    assert {k for k in kinds(even) if k[0] == "CONV_2D"} == {("CONV_2D", "INT8", "INT8")}
