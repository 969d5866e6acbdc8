"""ExecuTorch programs answer as the network they were written from, and hold the integers that they were given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from smidgen.data import Dataset
from smidgen.errors import LoadError

pytest.importorskip("executorch", reason="the executorch extra is not installed")

from smidgen.export.executorch import to_executorch, to_executorch_int8
from smidgen.runtimes.executorch import runner_of


class Net(nn.Module):
    """A residual block, a convolution of low rank and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.low = nn.Sequential(nn.Conv2d(8, 3, (3, 1), padding=(1, 0), bias=False), nn.Conv2d(3, 12, (1, 3)))
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.block(x))
        return self.head(torch.relu(self.low(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype("f4")


def answers(network: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(x)).numpy()


def test_floats_answer_as_the_network(network, inputs):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    content = to_executorch(network, torch.from_numpy(inputs))
    np.testing.assert_allclose(runner_of(content).run(inputs)[0], answers(network, inputs), atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_integers_answer_nearly_so(network, inputs):
    content = to_executorch_int8(network, torch.from_numpy(inputs), Dataset.from_array(inputs))
    want = answers(network, inputs)
    error = np.square(runner_of(content).run(inputs)[0] - want).mean()
    assert error < 1e-4 * np.square(want).mean(), "each value is of one in 255 steps, 1.5e-5"


def test_integers_that_were_chosen_are_in_the_file(inputs):
    """Not the nearest ones: rows whose largest is 40, of a scale that is no 127th of anything, and one of zeros."""
    rng = np.random.default_rng(1)
    integers = [rng.integers(-40, 41, (6, 3, 3, 3)), rng.integers(-40, 41, (5, 6))]
    integers[0][2] = 0
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    )
    for layer, each in zip((net[0], net[4]), integers, strict=True):
        scale = rng.uniform(1e-5, 1e-2, len(each)).astype("f4")  # also far below PT2E's least
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        layer.weight.data = torch.from_numpy(each.astype("f4") * scale.reshape(-1, *[1] * (each.ndim - 1)))
    content = to_executorch_int8(net.eval(), torch.from_numpy(inputs), Dataset.from_array(inputs), integers)
    dense = integers[1].astype(np.int8)
    assert np.ascontiguousarray(dense).tobytes() in content, "XNNPACK stores dense weights [out, in]"
    conv = integers[0].astype(np.int8).transpose(0, 2, 3, 1)
    assert np.ascontiguousarray(conv).tobytes() in content, "and kernels [out, h, w, in]"


def test_a_network_that_fixes_its_batch_is_calibrated_one_by_one(inputs):
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(192, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.reshape(1, 192))

    torch.manual_seed(0)
    net = Fixed().eval()
    content = to_executorch_int8(net, torch.from_numpy(inputs), Dataset.from_array(inputs[:8]))
    got = runner_of(content).run(inputs[:8])[0]
    want = np.concatenate([answers(net, inputs[n : n + 1]) for n in range(8)])
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()


def test_what_cannot_be_lowered_is_one_line(capfd):
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(LoadError, match="cannot become an ExecuTorch program") as caught:
        to_executorch(Odd(), torch.ones(1, 3))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
