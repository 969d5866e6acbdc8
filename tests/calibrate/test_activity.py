"""What channels do, against a calculation by hand."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from smidgen.calibrate.activity import collect_activity
from smidgen.model.sites import find_sites


def test_a_channel_is_worth_what_the_loss_loses_without_it():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 5)).eval()
    x = np.random.default_rng(0).normal(size=(40, 2, 8, 8)).astype("f4")
    found = collect_activity(net, find_sites(net, torch.from_numpy(x[:1])), [x[:25], x[25:]])
    with torch.no_grad():
        maps = net[:2](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found["2"].size, np.abs(maps).mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found["2"].zeros, (maps == 0).mean((0, 2, 3)), rtol=1e-5)
    assert found["4"].size.shape == (64,)
    # ½ E[(Σ a·g)²] is the Fisher's price of taking the channel away: KL to second order, here at a small share of it.
    for channel in range(3):
        with torch.no_grad():
            less = torch.from_numpy(maps.copy())
            less[:, channel] *= 0.9
            whole, cut = (net[2:](m).double().log_softmax(1) for m in (torch.from_numpy(maps), less))
            kl = (whole.exp() * (whole - cut)).sum(1).mean()
        assert 0.5 < found["2"].taylor[channel] * 0.01 / float(kl) < 2
    assert all(p.grad is None for p in net.parameters())
