"""Files in integers of eight bits: exact weights, scales, what stays in floats, and answers near those of floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("litert_torch", reason="the tflite extra is not installed")

from smidgen.calibrate.tflite_ranges import observe
from smidgen.data import Dataset
from smidgen.export.tflite import to_tflite
from smidgen.export.tflite_int8 import quantized
from smidgen.export.tflite_static import calibrated
from smidgen.runtimes.litert import runner_of
from smidgen.runtimes.tflite_file import constant, names_of, operator_name, parse


class Net(nn.Module):
    """Every kind of layer with weights, a clamp, a residual, a concatenation, and an operator that stays in floats."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point, self.up = nn.Conv2d(8, 8, 1, bias=False), nn.ConvTranspose2d(16, 4, 2, 2)
        self.gate, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4 * 36, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).clamp(0, 1)
        y = x + self.point(self.depth(x).relu())
        y = nn.functional.max_pool2d(torch.cat([x, y], 1), 2)
        y = self.up(y)
        y = y * self.gate(y).sigmoid()
        return self.head(torch.sin(y).flatten(1)).softmax(1)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(64, 3, 6, 6)).astype("f4")


@pytest.fixture(scope="module")
def floats(network: nn.Module) -> bytes:
    return to_tflite(network, torch.zeros(1, 3, 6, 6), "pixels", ("scores",), columns=False)


def weights_of(content: bytes, kind: str) -> list[tuple[np.ndarray, Any]]:
    model = parse(content)
    tensors = model.subgraphs[0].tensors
    place = 1
    found = [o for o in model.subgraphs[0].operators if operator_name(model, o) == kind]
    return [(_constant(model, tensors[int(o.inputs[place])]), tensors[int(o.inputs[place])]) for o in found]


def _constant(model: Any, tensor: Any) -> np.ndarray:
    values = constant(model, tensor)
    assert values is not None
    return values


def kinds(content: bytes) -> dict[str, list[str]]:
    """Types of the first result of every operator, by the operator's name."""
    model, names = parse(content), names_of("TensorType")
    found: dict[str, list[str]] = {}
    for o in model.subgraphs[0].operators:
        found.setdefault(operator_name(model, o), []).append(names[model.subgraphs[0].tensors[int(o.outputs[0])].type])
    return found


def test_answers_are_near_those_of_floats_and_layers_are_integers(floats, inputs) -> None:
    content = calibrated(floats, Dataset.from_array(inputs))
    runner = runner_of(content)
    assert (runner.input_shape, runner.output_names, runner.input_dtype) == ((1, 3, 6, 6), ("scores",), np.float32)
    want, got = runner_of(floats).run(inputs)[0], runner.run(inputs)[0]
    assert np.abs(want - got).max() < 0.03
    assert np.square(want - got).sum() < 1e-3 * np.square(want - want.mean(0)).sum() + 1e-3
    found = kinds(content)
    for name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "ADD", "CONCATENATION", "MUL"):
        assert set(found[name]) == {"INT8"}, name
    assert found["LOGISTIC"] == ["INT8"]
    assert found["SIN"] == ["FLOAT32"]
    assert found["SOFTMAX"] == ["FLOAT32"], "probabilities keep their precision"
    assert "MINIMUM" not in found, "the clamp is where the integers end"
    assert "TRANSPOSE" not in found
    assert len(content) < 0.7 * len(floats)


def test_tied_tensors_have_one_scale(floats, inputs) -> None:
    model = parse(quantized(floats, observe(floats, Dataset.from_array(inputs)).ranges("minmax")))
    tensors = model.subgraphs[0].tensors
    for o in model.subgraphs[0].operators:
        if operator_name(model, o) in ("CONCATENATION", "MAX_POOL_2D", "RESHAPE"):
            ends = [tensors[int(i)] for i in [*o.inputs, *o.outputs]]
            scales = {float(t.quantization.scale[0]) for t in ends if names_of("TensorType")[t.type] == "INT8"}
            assert len(scales) <= 1


@pytest.mark.parametrize(("levels", "kind"), [(127, "INT8"), (7, "INT4")])
def test_given_integers_are_in_the_file_exactly(levels: int, kind: str) -> None:
    """Also where the largest of a row is far below what nearest rounding would make of it, or a row is empty."""
    rng = np.random.default_rng(1)
    dense = rng.integers(-levels, levels + 1, (6, 20))
    dense[0] = rng.integers(-2, 3, 20)
    dense[3] = 0
    filters = rng.integers(-90, 91, (4, 3, 3, 3))
    filters[2] //= 30
    scale = (rng.random(6) + 0.5).astype("f4")
    first, last = nn.Conv2d(3, 4, 3), nn.Linear(20, 6)
    middle = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 20), nn.ReLU())
    network = nn.Sequential(first, middle, last)
    with torch.no_grad():
        first.weight.copy_(torch.from_numpy(filters / 50))
        last.weight.copy_(torch.from_numpy(dense * scale[:, None] / levels))
    x = rng.normal(size=(32, 3, 8, 8)).astype("f4")
    floats = to_tflite(network, torch.from_numpy(x), columns=False)
    content = calibrated(floats, Dataset.from_array(x), [dense, filters])
    ((stored, tensor),) = weights_of(content, "CONV_2D")
    assert np.array_equal(stored.transpose(0, 3, 1, 2), filters)
    np.testing.assert_allclose(tensor.quantization.scale, 0.02, rtol=1e-5)
    assert len(tensor.quantization.scale) == 1, "rows of one scale say it once"
    _, (stored, tensor) = weights_of(content, "FULLY_CONNECTED")
    assert np.array_equal(stored, dense)
    assert names_of("TensorType")[tensor.type] == kind
    np.testing.assert_allclose(np.delete(tensor.quantization.scale, 3), np.delete(scale / levels, 3), rtol=1e-5)
    with torch.no_grad():
        wanted = network(torch.from_numpy(x)).numpy()
    assert np.square(runner_of(content).run(x)[0] - wanted).mean() < 3e-3 * np.square(wanted).mean()


def test_a_bias_far_beyond_the_weights_keeps_its_value() -> None:
    network = nn.Linear(4, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, -1.0, 0.5, 0.0], [1e-12, 0.0, 0.0, 0.0]]))
        network.bias.copy_(torch.tensor([0.0, 1000.0]))
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("f4")
    got = runner_of(calibrated(to_tflite(network, torch.from_numpy(x)), Dataset.from_array(x))).run(x)[0]
    assert np.abs(got[:, 1] - 1000).max() < 5


def test_a_layer_kept_in_floats_answers_as_it_did(floats, inputs) -> None:
    data = Dataset.from_array(inputs)
    ranges = observe(floats, data).ranges("minmax")
    names = [operator_name(parse(floats), o) for o in parse(floats).subgraphs[0].operators]
    content = quantized(floats, ranges, floats={n for n, name in enumerate(names) if name != "CONV_2D"})
    found = kinds(content)
    assert found["FULLY_CONNECTED"] == ["FLOAT32"]
    assert set(found["CONV_2D"]) == {"INT8"}
    nothing = quantized(floats, ranges, floats=set(range(len(names))))
    np.testing.assert_allclose(runner_of(nothing).run(inputs)[0], runner_of(floats).run(inputs)[0], atol=1e-6)
