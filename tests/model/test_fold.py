"""Folding BatchNorm: exact where it is folded, and left where it is more than a scale for each output."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smidgen.export.onnx import export_base
from smidgen.model.fold import fold_norms
from smidgen.model.sites import find_sites

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def lively(model):
    """Statistics and gains away from their defaults."""
    noise = torch.Generator().manual_seed(0)
    for m in model.modules():
        if isinstance(m, NORMS) and m.affine:
            with torch.no_grad():
                m.weight.copy_(torch.rand(m.weight.shape, generator=noise) * 2 - 0.5)
                m.bias.copy_(torch.randn(m.bias.shape, generator=noise))
                m.running_mean.copy_(torch.randn(m.bias.shape, generator=noise))
                m.running_var.copy_(torch.rand(m.bias.shape, generator=noise) + 0.05)
    return model.eval()


def prepared(model, *shape):
    """The network with what the graph shows to be foldable folded, and the largest difference of its answers."""
    model = lively(model)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    before = copy.deepcopy(model.state_dict())
    pairs = export_base(model, find_sites(model, x[:1]), x[:1]).norms
    module, folded = fold_norms(model, pairs)
    assert {norm for _, norm in folded} <= {n for n, m in module.named_modules() if type(m) is nn.Identity}
    with torch.no_grad():
        worst = float((module(x) - model(x)).abs().max())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()), "the original was changed"
    return module, worst


def norms(model):
    return [m for m in model.modules() if isinstance(m, NORMS)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        (lambda b: [nn.Linear(5, 6, bias=b), nn.BatchNorm1d(6)], (5,)),
        (lambda b: [nn.Conv1d(5, 6, 3, bias=b), nn.BatchNorm1d(6)], (5, 8)),
        (lambda b: [nn.Conv2d(4, 6, 3, groups=2, stride=2, bias=b), nn.BatchNorm2d(6)], (4, 8, 8)),
    ],
    ids=["linear", "conv1d", "conv2d"],
)
def test_folding_is_exact_and_complete(layers, shape, bias):
    module, worst = prepared(nn.Sequential(*layers(bias), nn.ReLU()), *shape)
    assert worst < 1e-5
    assert not norms(module)
    assert module[0].bias is not None


def test_a_norm_before_its_layer_stays():
    module, worst = prepared(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)), 3, 5, 5)
    assert worst < 1e-5
    assert len(norms(module)) == 1


def test_a_norm_whose_layer_is_read_twice_stays():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            y = self.layer(x)
            return y + self.norm(y)

    module, worst = prepared(Both(), 4)
    assert worst < 1e-5
    assert len(norms(module)) == 1


@pytest.mark.parametrize("features", [5, 6])
def test_a_norm_over_positions_stays(features):
    """After a dense layer over 5 positions BatchNorm1d's channels are the positions, of equal number or not."""
    model = nn.Sequential(nn.Linear(8, features), nn.BatchNorm1d(5), nn.Flatten(), nn.Linear(5 * features, 3))
    module, worst = prepared(model, 5, 8)
    assert worst < 1e-5
    assert len(norms(module)) == 1


def test_a_norm_that_runs_twice_stays():
    class Reused(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(self.b(self.norm(self.a(x)).relu()))

    module, worst = prepared(Reused(), 4)
    assert worst < 1e-5
    assert len(norms(module)) == 1


def test_a_norm_that_does_more_stays():
    class Activated(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x).relu()

    module, worst = prepared(nn.Sequential(nn.Linear(4, 4), Activated(4), nn.Linear(4, 2)), 4)
    assert worst < 1e-5
    assert len(norms(module)) == 1


def test_a_norm_by_function_stays():
    class ByFunction(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.gain = nn.Linear(4, 4), nn.ParameterDict({"weight": torch.rand(4), "bias": torch.rand(4)})
            self.register_buffer("mean", torch.rand(4))
            self.register_buffer("var", torch.rand(4) + 0.1)

        def forward(self, x):
            return F.batch_norm(self.layer(x), self.mean, self.var, self.gain["weight"], self.gain["bias"])

    assert prepared(ByFunction(), 4)[1] < 1e-5


def test_norms_without_statistics_or_gain_stay():
    for norm in (nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4, track_running_stats=False)):
        model = nn.Sequential(nn.Linear(4, 4), norm).eval()
        assert fold_norms(model, [("0", "1")])[1] == ()


def test_a_chain_of_norms_loses_only_the_first():
    module, worst = prepared(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)), 4)
    assert worst < 1e-5
    assert len(norms(module)) == 1


def test_a_norm_of_two_names_is_folded_under_both():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
            self.same = self.norm

        def forward(self, x):
            return self.same(self.layer(x))

    module, worst = prepared(Named(), 4)
    assert worst < 1e-5
    assert not norms(module)
