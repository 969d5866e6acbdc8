"""ExecuTorch programs answer as the network they were written from, and hold the integers that they were given."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from smidgen.data import Dataset
from smidgen.errors import LoadError, VerificationError

pytest.importorskip("executorch", reason="the executorch extra is not installed")

from smidgen.export import executorch
from smidgen.export.executorch import INT8_TOLERANCE, TOLERANCE, to_executorch, to_executorch_int8
from smidgen.export.executorch_check import check_answers
from smidgen.runtimes import executorch as runtime
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


@pytest.fixture(scope="module")
def program(network: nn.Module, inputs: np.ndarray) -> bytes:
    return to_executorch(network, torch.from_numpy(inputs))


def answers(network: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(x)).numpy()


def test_floats_answer_as_the_network(network, inputs, program):
    np.testing.assert_allclose(runner_of(program).run(inputs)[0], answers(network, inputs), atol=1e-5)


def test_an_example_with_its_channels_last_in_memory_makes_the_same_program(network, inputs, program):
    """As images come, [height, width, colour]; the axes' order would go into the program and not be told."""
    turned = np.ascontiguousarray(inputs.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert np.array_equal(turned, inputs)
    assert not turned[:1].flags.c_contiguous
    content = to_executorch(network, torch.from_numpy(turned))
    assert runner_of(content).axes == (0, 1, 2, 3)
    assert content == program


def test_weights_with_their_channels_last_in_memory_answer_as_the_network(network, inputs):
    turned = copy.deepcopy(network).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    before = {name: (value.clone(), value.stride()) for name, value in turned.state_dict().items()}
    content = to_executorch(turned, torch.from_numpy(inputs))
    np.testing.assert_allclose(runner_of(content).run(inputs)[0], answers(network, inputs), atol=1e-5)
    for name, value in turned.state_dict().items():  # not changed
        assert torch.equal(value, before[name][0])
        assert value.stride() == before[name][1]


class Padded(nn.Module):
    """What MobileNetV2 is made of: windows padded on one side, depthwise, activations cut at six, a mean at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 2, groups=8)
        self.point, self.head = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 7, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.clamp(self.stem(nn.functional.pad(x, [0, 1, 0, 1])), 0.0, 6.0)
        x = torch.clamp(self.depth(nn.functional.pad(x, [0, 1, 0, 1])), 0.0, 6.0)
        return self.head(torch.clamp(self.point(x), 0.0, 6.0).mean([2, 3], True)).flatten(1)


def test_a_mobile_network_answers_as_in_torch():
    torch.manual_seed(1)
    net, x = Padded().eval(), np.random.default_rng(1).normal(size=(24, 3, 18, 18)).astype("f4")
    images = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    want = answers(net, x)
    got = runner_of(to_executorch(net, torch.from_numpy(images))).run(images)[0]
    np.testing.assert_allclose(got, want, atol=1e-5)
    rounded = runner_of(to_executorch_int8(net, torch.from_numpy(images), Dataset.from_array(images))).run(x)[0]
    assert np.linalg.norm(rounded - want) < 0.05 * np.linalg.norm(want)


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


def test_a_convolution_that_is_used_twice_is_rounded_twice(network, inputs):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(self.layer(x)) * torch.tanh(self.layer(x))

    torch.manual_seed(0)
    net = Twice().eval()
    got = runner_of(to_executorch_int8(net, torch.from_numpy(inputs), Dataset.from_array(inputs))).run(inputs)[0]
    want = answers(net, inputs)
    assert np.linalg.norm(got - want) < 0.05 * np.linalg.norm(want)


@pytest.mark.parametrize(
    ("operation", "named"),
    [(lambda x: x.sort(1)[0], "sort"), (lambda x: x.cumprod(1), "cumprod"), (lambda x: x.lgamma(), "lgamma")],
)
def test_an_operator_that_is_not_there_is_named_with_its_layer(operation, named, inputs, capfd):
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return operation(x)

    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), Odd())).eval()
    with pytest.raises(LoadError, match=rf"no operator for aten\.{named} of layer '1\.1'") as caught:
        to_executorch(net, torch.from_numpy(inputs))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_program_that_does_not_run_is_told():
    net = nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Conv3d(3, 4, (1, 3, 3))).eval()
    with pytest.raises(LoadError, match=r"does not run the written program \(.*aten::convolution"):
        to_executorch(net, torch.zeros(1, 3, 8, 8))


def test_a_program_of_another_network_is_refused(network, inputs, program):
    torch.manual_seed(5)
    other, x = Net().eval(), torch.from_numpy(inputs[:4])
    check_answers(program, network, x, TOLERANCE, [])
    for tolerance in (TOLERANCE, INT8_TOLERANCE):
        with pytest.raises(VerificationError, match="differs from the network"):
            check_answers(program, other, x, tolerance, [])


@pytest.mark.parametrize("integers", [False, True])
def test_a_program_that_reads_its_input_in_another_order_is_refused(inputs, integers, monkeypatch):
    """MobileNetV2's did, made from an example with its channels last and run by a runtime that does not tell."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Flatten(), nn.Linear(288, 4, bias=False)).eval(), inputs
    monkeypatch.setattr(executorch, "_first", lambda given: given[:1].to(memory_format=torch.channels_last))
    monkeypatch.setattr(runtime, "_axes", lambda content, count: tuple(range(count)))
    write = partial(to_executorch_int8, inputs=Dataset.from_array(x)) if integers else to_executorch
    with pytest.raises(VerificationError, match="differs from the network"):
        write(net, torch.from_numpy(x))


def test_what_cannot_be_lowered_is_one_line(capfd):
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(LoadError, match="cannot become an ExecuTorch program") as caught:
        to_executorch(Odd(), torch.ones(1, 3))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
