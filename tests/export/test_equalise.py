"""Equalisation: the same function, channels of one size, and fewer nats lost where their sizes differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from smidgen.export.equalise import equalised
from smidgen.export.onnx import write
from smidgen.export.prepare import prepare
from smidgen.model.load import load_network
from smidgen.pipeline.equalise import better_equalised
from smidgen.pipeline.task import open_task
from smidgen.runtimes.onnxruntime import open_onnx
from smidgen.site import untouched


class Net(nn.Module):
    """A depthwise layer between two others, groups, a sum, a join, and a dense layer behind flattened maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point, self.groups = nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(16, 12, 1, groups=2)
        self.slope, self.head = nn.PReLU(12), nn.Linear(12 * 9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        y = x + self.point(torch.relu(self.depth(x)))
        y = self.slope(self.groups(torch.cat([y, x], 1)))
        return self.head(nn.functional.max_pool2d(y, 2).flatten(1))


@pytest.fixture(scope="module")
def uneven() -> nn.Module:
    """Channels whose sizes differ by up to a thousand times, as folded BatchNorms leave them."""
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        sizes = 10.0 ** torch.linspace(-1.5, 1.5, 8)
        for layer in (net.stem, net.depth):
            layer.weight.mul_(sizes.reshape(-1, 1, 1, 1))
            layer.bias.mul_(sizes)
        net.point.weight.mul_(sizes.reshape(-1, 1, 1, 1) / sizes.reshape(1, -1, 1, 1))
        net.groups.weight.div_(sizes.reshape(1, -1, 1, 1))
        net.depth.weight.div_(sizes.reshape(-1, 1, 1, 1))
    return net


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(160, 3, 6, 6)).astype(np.float32)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_function_is_the_same_in_torch_and_in_the_file(uneven, inputs, share, tmp_path):
    ready = prepare(load_network(uneven), torch.zeros(1, 3, 6, 6))
    changed = equalised(ready, [inputs], share)
    assert changed is not None
    x = torch.from_numpy(inputs)
    before, after = ready.module(x).detach(), changed.module(x).detach()
    most = float(before.abs().max())
    assert float((after - before).abs().max()) <= 1e-5 * most
    write(changed.base, changed.sites, {s.name: untouched(s) for s in changed.sites}, tmp_path / "m.onnx")
    with open_onnx(tmp_path / "m.onnx") as runner:
        assert np.abs(runner.run(inputs)[0] - before.numpy()).max() <= 1e-5 * most
    moved = [a.name for a, b in zip(changed.sites, ready.sites, strict=True) if (a.weight != b.weight).any()]
    assert moved == ["stem", "depth", "point", "groups", "head"]


def test_with_the_whole_share_all_channels_have_one_size(inputs):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():
        net[0].weight.mul_(2.0 ** torch.arange(-2.0, 2.0, 0.5).reshape(-1, 1, 1, 1))
    changed = equalised(prepare(load_network(net), torch.zeros(1, 3, 6, 6)), [inputs], 1.0)
    assert changed is not None
    with torch.no_grad():
        seen = changed.module[:2](torch.from_numpy(inputs)).amax((0, 2, 3))  # type: ignore[index]
    assert seen.numpy() == pytest.approx(1.0, abs=1e-5)


def test_a_network_whose_channels_are_all_held_is_left_alone(inputs):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 4, 1)).eval()
    assert equalised(prepare(load_network(net), torch.zeros(1, 3, 6, 6)), [inputs], 0.5) is None


def test_it_is_taken_where_integers_then_lose_less_and_only_for_them(uneven, inputs):
    task = open_task(uneven, [inputs], [inputs[:8]], None, None, None, 1, "cpu", 0)
    assert better_equalised(task, "onnx") is task
    better = better_equalised(task, "onnx-int8")
    assert better.equalised in (0.5, 1.0)
    assert task.equalised is None
    assert better.prepared.module is better.network.module
