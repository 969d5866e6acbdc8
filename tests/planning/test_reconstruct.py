"""Refits of a changed network: what they find, and that they never make it worse."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
import torch
from torch import fx, nn

from smidgen.model.aims import find_aims
from smidgen.model.downsample import Change, apply_change, find_changes
from smidgen.model.sites import find_sites
from smidgen.planning.reconstruct import reconstruct, solve


def rows(seed, k=2000, n=6, out=3):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(1, k, n, generator=generator)
    weight, bias = torch.randn(1, out, n, generator=generator), torch.randn(1, out, generator=generator)
    return z, weight, bias


def test_a_linear_relation_is_found():
    z, weight, bias = rows(0)
    found, offset = solve(z, z @ weight.mT + bias[:, None], (-inf, inf), torch.zeros_like(weight))
    torch.testing.assert_close(found, weight, atol=5e-3, rtol=0)
    torch.testing.assert_close(offset, bias, atol=5e-3, rtol=0)


def test_values_that_are_cut_off_do_not_count():
    """Plain least squares on what is left after the cut is far off; one-sided it comes near."""
    z, weight, bias = rows(1)
    cut = (z @ weight.mT + bias[:, None]).clamp(0, 1)
    sided, offset = solve(z, cut, (0.0, 1.0), torch.zeros_like(weight))
    plain, level = solve(z, cut, (-inf, inf), torch.zeros_like(weight))
    missed = (z @ sided.mT + offset[:, None]).clamp(0, 1) - cut
    as_before = (z @ plain.mT + level[:, None]).clamp(0, 1) - cut
    assert missed.square().mean() < 0.25 * as_before.square().mean()


def test_where_the_weight_must_not_move_the_bias_does():
    z, weight, bias = rows(2)
    start = weight + 0.1
    found, offset = solve(z, z @ weight.mT + bias[:, None], (-inf, inf), start, moved=False)
    assert torch.equal(found, start)
    torch.testing.assert_close(offset, bias - 0.1 * z.mean(1).sum(), atol=1e-4, rtol=0)


def test_noise_leaves_the_weight_at_its_start():
    z, weight, _ = rows(3, k=40, n=30)
    noise = torch.randn(1, 40, 3, generator=torch.Generator().manual_seed(4))
    found, _ = solve(z, noise + z @ weight.mT, (-inf, inf), weight)
    assert (found - weight).norm() < 0.5 * weight.norm()


@pytest.fixture
def net():
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 4),
    )  # fmt: skip
    return fx.symbolic_trace(layers).eval()


@pytest.fixture
def inputs():
    return np.random.default_rng(0).normal(size=(192, 2, 16, 16)).astype("f4")


def test_a_refit_comes_nearer_to_the_original_on_other_inputs(net, inputs):
    batches, other, unseen = [inputs[:64], inputs[64:128]], *map(torch.from_numpy, (inputs[128:160], inputs[160:]))
    before = {k: v.clone() for k, v in net.state_dict().items()}

    def loss(model):
        with torch.no_grad():
            return float((model(other) - net(other)).square().mean())

    for change in find_changes(net, torch.from_numpy(inputs[:1]))[0]:
        changed = apply_change(net, change, torch.from_numpy(inputs[:1]))
        start = {k: v.clone() for k, v in changed.state_dict().items()}
        sites = find_sites(changed, torch.from_numpy(inputs[:1]))
        small, least = reconstruct(net, changed, find_aims(net, changed), sites, batches, loss)
        assert least == pytest.approx(loss(small)), change
        assert least < 0.8 * loss(changed), change
        with torch.no_grad():
            errors = [float((model(unseen) - net(unseen)).square().mean()) for model in (small, changed)]
        assert errors[0] < errors[1], change
        assert all(torch.equal(v, start[k]) for k, v in changed.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_loss_that_never_falls_keeps_the_start(net, inputs):
    x = torch.from_numpy(inputs[:1])
    changed = apply_change(net, Change("pooling", "_0", "_2"), x)
    same, _ = reconstruct(
        net, changed, find_aims(net, changed), find_sites(changed, x), [inputs[:64]], lambda model: 1.0
    )
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), changed.parameters(), strict=True))
