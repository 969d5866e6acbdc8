"""The archive as a budget's target, from end to end: sizes that are kept, files that unpack to what was measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import smidgen
from smidgen.forms import Quantized, leaves
from smidgen.pipeline import apply, compress
from smidgen.runtimes.onnxruntime import open_onnx


class Net(nn.Module):
    """A convolution, a depthwise one, a dense layer: all that has a rounding of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.point = nn.Conv2d(12, 20, 1, bias=False)
        self.head = nn.Linear(20 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.point(x)).flatten(1))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(160, 3, 4, 4)).astype("f4")


@pytest.fixture(scope="module")
def small(network, inputs):
    return compress(network, [inputs], target="archive", budget=smidgen.Budget(ratio=5), threads=1)


def test_the_budget_binds_the_archive(small):
    files = small.record["files"]
    assert list(files) == ["archive", "onnx"]
    assert small.met
    assert small.record["target"] == "archive"
    assert files["archive"]["nbytes"] * 5 <= small.record["original"]["nbytes"]
    assert files["archive"]["nbytes"] == small.files["archive"].stat().st_size
    assert files["archive"]["agreement"] > 0.8


def test_what_it_unpacks_to_answers_to_the_bit_as_the_file_beside_it(small, inputs, tmp_path):
    folder = small.save(tmp_path / "out")
    unpacked = tmp_path / "unpacked.onnx"
    unpacked.write_bytes(smidgen.unpack(folder / "model.smidgen"))
    assert unpacked.stat().st_size < (folder / "model.onnx").stat().st_size  # its weights have short names
    answers = []
    for path in (unpacked, folder / "model.onnx"):
        with open_onnx(path) as runner:
            answers.append(runner.run(inputs[:9])[0])
    assert np.array_equal(*answers)


def test_the_model_and_the_file_answer_alike(small, inputs):
    with open_onnx(small.files["onnx"]) as runner, torch.no_grad():
        assert np.allclose(runner.run(inputs[:9])[0], small.model(torch.from_numpy(inputs[:9])).numpy(), atol=1e-4)


def test_every_layer_is_integers_and_says_what_it_costs(small):
    for stored in small.stored.values():
        assert all(isinstance(leaf, Quantized) for leaf in leaves(stored.form))
        assert stored.bias is None or stored.bias_form is not None
    for layer in small.record["layers"]:
        assert "quantized" in layer["form"]
        assert layer["step"] > 0
        assert layer["nbytes_after"] < layer["nbytes_before"]


def test_prediction_and_measurement_stand_side_by_side(small):
    predicted, measured = small.record["predicted"], small.record["measured"]
    assert predicted["loss"] > 0
    assert measured["loss"] > 0
    assert 0.5 < predicted["nbytes"] / measured["nbytes"] < 2


def test_a_plan_of_integers_can_be_replayed(small, network, inputs):
    again = apply(network, small.plan.to_json(), [inputs], threads=1)
    assert again.files["archive"].read_bytes() == small.files["archive"].read_bytes()


def test_without_data_integers_come_from_the_weights_alone(network):
    result = compress(
        network, example=torch.zeros(1, 3, 4, 4), target="archive", budget=smidgen.Budget(ratio=4), threads=1
    )
    assert result.record["mode"] == "no data"
    assert result.met
    assert all(isinstance(leaf, Quantized) for s in result.stored.values() for leaf in leaves(s.form))


def test_one_calibration_sample_and_constant_inputs_are_enough(network):
    constant = np.broadcast_to(np.arange(3, dtype=np.float32)[:, None, None, None], (3, 3, 4, 4))
    for x in (constant, np.random.default_rng(0).normal(size=(3, 3, 4, 4)).astype("f4")):
        result = compress(network, [x], target="archive", budget=smidgen.Budget(ratio=4), threads=1)
        assert np.isfinite(result.record["files"]["archive"]["kl"] or 0.0)
