"""λ in the course of a training: rising, steered to a size, steered by a drop, and kept over an interruption."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from smidgen.errors import PlanError
from smidgen.recover.entropy import Entropy
from smidgen.recover.price import Price


def problem(seed=0):
    """A regression that each bit more makes a little better; a network, inputs and answers."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 4))
    x = torch.randn(512, 40)
    return net, x, (x @ torch.randn(40, 30) / 6).tanh() @ torch.randn(30, 4)


def trained(steps=1500, **asked):
    net, x, y = problem()
    coded = Entropy(net)
    rates = [0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]
    price = Price(coded, steps, rates=rates, **asked)
    optimizer = torch.optim.Adam([{"params": g["params"]} for g in coded.groups()], lr=3e-3)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean() + price.now / 8 * coded.rate()
        loss.backward()
        optimizer.step()
        plan.step()
        price.step()
    return coded, price, float((net(x) - y).square().mean().detach())


@pytest.mark.parametrize("size", [300, 500, 1000])
def test_a_size_is_reached_and_not_far_undercut(size):
    coded, price, _ = trained(size=size, beside=40)
    assert 0.95 * size <= coded.nbytes() + 40 <= size
    assert price.measure() == coded.nbytes() + 40


def test_late_errors_are_steered_against_as_much_more_as_the_rate_is_lower():
    size = round(0.97 * Entropy(problem()[0]).nbytes())
    falling = [0.2, *[1.0] * 60, *[0.25] * 39]  # the first one is a rate that is still to rise
    prices = [Price(Entropy(problem()[0]), 100, size=size, rates=rates) for rates in (falling, None)]
    moved = []
    for _ in range(100):
        before = [price.books.integral for price in prices]
        for price in prices:
            price.step()
        moved.append([price.books.integral - at for price, at in zip(prices, before, strict=True)])
    early, late = moved[19], moved[79]
    assert early[0] == early[1] > 0
    assert late[0] == pytest.approx(4 * late[1])


def test_more_bytes_are_a_smaller_error():
    errors = [trained(size=size)[2] for size in (300, 900)]
    assert errors[1] < 0.8 * errors[0]


def test_a_given_price_rises_to_itself():
    price = Price(Entropy(nn.Sequential(nn.Linear(3, 2))), 100, price=2e-5, ramp=0.4)
    seen = []
    for _ in range(100):
        price.step()
        seen.append(price.now)
    assert seen[19] == pytest.approx(1e-5)
    assert seen[39:] == [2e-5] * 61


def test_a_drop_steers_up_and_down():
    price = Price(Entropy(nn.Sequential(nn.Linear(3, 2))), 100, most_points=1.0)
    seen = [price.now]
    for points in (0.0, 0.2, 3.0, 3.0):
        for _ in range(10):
            price.step()
        price.dropped(points)
        seen.append(price.now)
    assert seen[0] < seen[1] < seen[2]
    assert seen[2] > seen[3] > seen[4]


def test_it_goes_on_as_if_it_had_not_stopped():
    def steered():
        net, _, _ = problem()
        return Price(Entropy(net), 400, size=600)

    whole, first = steered(), steered()
    for _ in range(200):
        whole.step()
    for _ in range(90):
        first.step()
    second = steered()
    second.load_state_dict(first.state_dict())
    for _ in range(110):
        second.step()
    assert second.now == whole.now
    assert second.state_dict() == whole.state_dict()


def test_fewer_bytes_than_the_graph_are_refused():
    with pytest.raises(PlanError, match="the graph alone takes 300"):
        Price(Entropy(nn.Sequential(nn.Linear(3, 2))), 100, size=200, beside=300)
