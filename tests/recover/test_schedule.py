"""Gradual pruning in a training loop: the published curve, masks that outlive the optimizer, a clean network after."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from smidgen.errors import PlanError
from smidgen.recover.schedule import Pruner, Schedule


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))


@pytest.mark.parametrize("kind", ["cubic", "iterative", "one-shot"])
def test_it_rises_from_the_first_to_the_last(kind):
    plan = Schedule(0.9, start=5, every=3, times=6, initial=0.1, kind=kind)
    shares = [plan.at(step) for step in range(60)]
    assert all(b >= a for a, b in itertools.pairwise(shares))
    assert shares[4] == 0.1
    assert shares[5 + 18] == pytest.approx(0.9)
    assert shares[-1] == pytest.approx(0.9)
    if kind == "cubic":
        assert shares[5 + 9] == pytest.approx(0.9 + (0.1 - 0.9) * 0.5**3)
    if kind == "iterative":
        assert shares[5 + 9] == pytest.approx(0.5)
    if kind == "one-shot":
        assert shares[5] == 0.9


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_what_is_gone_stays_gone_under_momentum(optimizer):
    net = network()
    made = {
        "sgd": lambda: torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=1e-3),
        "adam": lambda: torch.optim.Adam(net.parameters(), 1e-2),
    }[optimizer]()
    pruner = Pruner(net, Schedule(0.8, start=2, every=2, times=5))
    x, y = torch.randn(32, 1, 8, 8), torch.arange(32) % 10
    before, last = [], 0.0
    for step in range(20):
        made.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        made.step()
        reached = pruner.step()
        assert reached >= last
        assert reached == pytest.approx(pruner.schedule.at(step), abs=1 / 1000)
        for weight, mask in zip(pruner.weights, pruner.masks, strict=True):
            assert bool((weight[~mask] == 0).all())
        for old, mask in zip(before, pruner.masks, strict=False):
            assert not bool((mask & ~old).any()), "a weight came back"
        before, last = [mask.clone() for mask in pruner.masks], reached
    count = sum(weight.numel() for weight in pruner.weights)
    assert sum(int((weight == 0).sum()) for weight in pruner.weights) == round(0.8 * count)
    assert set(net.state_dict()) == set(network().state_dict()), "nothing is left in the network"


def test_the_smallest_go_and_protected_layers_stay():
    net = network()
    sizes = net[3].weight.detach().abs().flatten().clone()
    pruner = Pruner(net, Schedule(0.5, kind="one-shot"), protect=["0"])
    assert pruner.step() == 0.5
    assert bool((net[0].weight != 0).all())
    kept = (net[3].weight != 0).flatten()
    assert float(sizes[kept].min()) >= float(sizes[~kept].max())


def test_it_goes_on_where_it_was():
    net = network()
    one = Pruner(net, Schedule(0.6, every=1, times=4))
    one.step()
    one.step()
    other = Pruner(net, Schedule(0.6, every=1, times=4))
    other.load_state_dict(one.state_dict())
    assert one.step() == other.step()
    with pytest.raises(PlanError, match="another network"):
        Pruner(nn.Linear(3, 3), Schedule(0.5)).load_state_dict(one.state_dict())


@pytest.mark.parametrize(
    "wrong",
    [
        {"final": 1.0},
        {"final": 0.0},
        {"final": float("nan")},
        {"final": 0.5, "initial": 0.6},
        {"final": 0.5, "every": 0},
    ],
)
def test_what_cannot_be_is_told(wrong):
    with pytest.raises(PlanError, match="schedule: "):
        Schedule(**wrong)


def test_layers_that_are_not_there_are_told():
    with pytest.raises(PlanError, match="no layer is called 'head'"):
        Pruner(network(), Schedule(0.5), protect=["head"])
    with pytest.raises(PlanError, match="no layer to prune"):
        Pruner(nn.ReLU(), Schedule(0.5))
