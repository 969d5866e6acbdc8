"""Where a network can downsample earlier, and the networks that come out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from smidgen.errors import Refusal
from smidgen.model.aims import find_aims
from smidgen.model.downsample import Change, apply_change, find_changes
from smidgen.model.graph import run_nodes
from smidgen.model.load import load_network


class Net(nn.Module):
    """Two poolings, one behind an activation, and a dense head; odd sizes on the way."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.fc = nn.Linear(6 * 5 * 4, 3)

    def forward(self, x):
        x = F.avg_pool2d(self.conv1(x), 2, 2, 0, False, True)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2, 2)
        return self.fc(torch.flatten(x, 1))


class Residual(nn.Module):
    """A shortcut that reads what the strided convolution reads."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.short, self.head = nn.Conv2d(4, 4, 1, stride=2), nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.head(torch.mean(F.relu(torch.add(self.body(x), self.short(x))), [2, 3]))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return fx.symbolic_trace(Net()).eval()


@pytest.fixture
def example():
    return torch.randn(1, 2, 20, 17, generator=torch.Generator().manual_seed(0))


def test_every_kind_is_found_and_runs(net, example):
    found, refused = find_changes(net, example)
    assert {change.kind for change in found} == {"resolution", "stride", "pooling"}
    assert not refused
    for change in found:
        small = apply_change(net, change, example)
        assert small(example.repeat(3, 1, 1, 1)).shape == (3, 3), change


def test_the_given_network_is_not_modified(net, example):
    before, code = {k: v.clone() for k, v in net.state_dict().items()}, net.code
    for change in find_changes(net, example)[0]:
        apply_change(net, change, example)
    assert net.code == code
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_an_average_pooling_without_activation_is_taken_in_exactly(net, example):
    small = apply_change(net, Change("pooling", "conv1", "avg_pool2d", wide=True), example)
    torch.testing.assert_close(small(example), net(example), atol=1e-5, rtol=1e-5)
    assert "avg_pool2d" not in {node.name for node in small.graph.nodes}


def test_a_lower_resolution_shrinks_the_dense_layer(net, example):
    small = apply_change(net, Change("resolution", "x"), example)
    assert small.fc.in_features == 6 * 2 * 2 < net.fc.in_features
    assert run_nodes(small, example)["conv1"].shape[2:] == (10, 9)


def test_a_lower_resolution_is_exact_on_blocks_before_an_average_over_all():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 4, 5, padding=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    net, blocks = fx.symbolic_trace(layers).eval(), F.interpolate(torch.randn(2, 2, 6, 6), scale_factor=2)
    small = apply_change(net, Change("resolution", "input_1"), blocks[:1])
    torch.testing.assert_close(small(blocks), net(blocks), atol=1e-5, rtol=1e-5)
    assert small.get_submodule("0").kernel_size == (3, 3)


def test_a_moved_stride_leaves_no_pooling_and_rejoins(net, example):
    change = Change("stride", "conv1", "max_pool2d")
    small = apply_change(net, change, example)
    assert small.conv1.stride == (2, 2)
    assert "max_pool2d" not in {node.name for node in small.graph.nodes}
    assert run_nodes(small, example)["relu"].shape == run_nodes(net, example)["max_pool2d"].shape


def test_changes_go_together(net, example):
    both = apply_change(net, Change("pooling", "conv1", "avg_pool2d"), example)
    both = apply_change(both, Change("pooling", "conv2", "max_pool2d", wide=True), example)
    assert both(example).shape == (1, 3)
    with pytest.raises(Refusal, match="'max_pool2d' is not there"):
        apply_change(both, Change("stride", "conv1", "max_pool2d"), example)


def test_a_shortcut_refuses_a_moved_stride_but_not_a_lower_resolution():
    net, example = fx.symbolic_trace(Residual()).eval(), torch.randn(1, 2, 16, 16)
    found, refused = find_changes(net, example)
    assert Change("resolution", "x") in found
    assert all("needs the larger map" in reason for change, reason in refused.items() if change.kind == "stride")
    assert any(change.kind == "stride" for change in refused)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([nn.Conv2d(2, 3, 3)], "answer is itself a map"),
        ([nn.Conv2d(2, 3, 3), nn.Softmax(2), nn.Flatten(), nn.Linear(588, 2)], "may not do the same"),
        ([nn.Conv2d(2, 3, 3), nn.Flatten(), nn.LayerNorm(588), nn.Linear(588, 2)], "no dense layer"),
    ],
    ids=["map", "softmax", "norm"],
)
def test_refusals_carry_their_reason(layers, reason):
    net, example = fx.symbolic_trace(nn.Sequential(*layers)).eval(), torch.randn(1, 2, 16, 16)
    with pytest.raises(Refusal, match=reason):
        apply_change(net, Change("resolution", "input_1"), example)


def test_a_map_that_is_small_already_is_refused(net):
    tiny = fx.symbolic_trace(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1)))
    with pytest.raises(Refusal, match="4×4"):
        apply_change(tiny, Change("resolution", "input_1"), torch.zeros(1, 2, 3, 3))


def test_a_layer_that_runs_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x):
            return torch.mean(self.conv(self.conv(x)), [2, 3])

    with pytest.raises(Refusal, match="several times"):
        apply_change(fx.symbolic_trace(Twice()), Change("resolution", "x"), torch.zeros(1, 2, 8, 8))


def test_aims_are_behind_the_pooling_that_went(net, example):
    small = apply_change(net, Change("pooling", "conv2", "max_pool2d"), example)
    aims = find_aims(net, small)
    assert [(aim.layer, aim.node, aim.low) for aim in aims] == [
        ("conv2", "max_pool2d", 0.0), ("fc", "fc", -float("inf")),
    ]  # fmt: skip


def test_layers_a_change_does_not_reach_have_no_aim():
    net, example = fx.symbolic_trace(Residual()).eval(), torch.randn(1, 2, 16, 16)
    assert find_aims(net, net) == []
    small = apply_change(net, Change("resolution", "relu_1"), example)
    assert [aim.layer for aim in find_aims(net, small)] == ["head"]


@pytest.mark.parametrize(
    ("name", "shape", "kinds"),
    [
        ("ai85cd_catsdogs", (3, 128, 128), {"resolution", "stride", "pooling"}),
        ("resnet8_cifar10_mlperftiny", (3, 32, 32), {"resolution"}),
        ("squeezenet1_1_imagenet", (3, 227, 227), {"resolution", "stride", "pooling"}),
    ],
)
def test_real_networks_run_with_every_change_that_is_found(data_dir, name, shape, kinds):
    net, example = load_network(data_dir / "models" / f"{name}.onnx").module, torch.randn(1, *shape)
    found, refused = find_changes(net, example)
    assert {change.kind for change in found} == kinds
    assert all(refused.values())
    for change in found[::3]:
        small = apply_change(net, change, example)
        with torch.no_grad():
            assert small(example).shape == net(example).shape, change
