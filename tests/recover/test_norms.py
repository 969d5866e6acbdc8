"""BatchNorms re-estimated: the plain average of one pass, and everything else as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from smidgen.errors import DataError
from smidgen.recover.norms import reestimate


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
                         nn.Linear(3 * 16, 4), nn.BatchNorm1d(4))  # fmt: skip


def test_it_is_the_plain_average_over_the_batches():
    net = network().train()
    batches = [torch.randn(8, 1, 6, 6) + i for i in range(3)]
    net(10 + torch.randn(8, 1, 6, 6))  # statistics of other inputs, to be forgotten
    weights = {name: value.clone() for name, value in net.named_parameters()}
    assert reestimate(net, batches) == 2
    with torch.no_grad():
        seen = [net[0](batch) for batch in batches]
    mean = torch.stack([each.mean((0, 2, 3)) for each in seen]).mean(0)
    variance = torch.stack([each.transpose(0, 1).flatten(1).var(1) for each in seen]).mean(0)
    torch.testing.assert_close(net[1].running_mean, mean)
    torch.testing.assert_close(net[1].running_var, variance)
    assert all(torch.equal(value, weights[name]) for name, value in net.named_parameters())
    assert all(module.training for module in net.modules())
    assert net[1].momentum == 0.1


def test_modes_stay_as_they_were():
    net = network().eval()
    net[0].train()
    reestimate(net, [torch.randn(4, 1, 6, 6)])
    assert [module.training for module in net] == [True, *[False] * 6]


def test_without_norms_there_is_nothing_to_do():
    assert reestimate(nn.Linear(2, 2), []) == 0


def test_without_inputs_nothing_changes():
    net = network().train()
    net(torch.randn(8, 1, 6, 6))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(DataError, match="no inputs"):
        reestimate(net, [])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
