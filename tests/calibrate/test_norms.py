"""Moments from BatchNorm statistics, held against those of the data that the statistics were taken from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from smidgen.calibrate.norms import WIDEST, Signal, curvature_of, norm_signals
from smidgen.export.prepare import prepare
from smidgen.forms import Geometry
from smidgen.methods import methods
from smidgen.model.load import load_network
from smidgen.planning.candidates import weights_only
from smidgen.site import Site


class Net(nn.Module):
    """Two branches, a sum, a concatenation, pooling, a flattened map: what signals run through."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.left, self.left_norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.after = nn.Conv2d(8, 6, 1)
        self.after_norm = nn.BatchNorm2d(6)
        self.wide = nn.Conv2d(14, 4, 1)
        self.wide_norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 4 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(self.norm(self.stem(x)))
        y = x + self.left_norm(self.left(x))
        z = nn.functional.relu6(self.after_norm(self.after(y)))
        w = torch.tanh(self.wide_norm(self.wide(torch.cat([z, y], 1))))
        return self.head(nn.functional.avg_pool2d(w, 2).flatten(1))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Statistics learned from 3,000 inputs, gains and shifts far from one and zero."""
    torch.manual_seed(0)
    net = Net()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.3, 2.0)
            nn.init.normal_(module.bias, 0.0, 0.7)
    with torch.no_grad():
        for seed in range(30):
            net(torch.randn(100, 3, 8, 8, generator=torch.Generator().manual_seed(seed)))
    return net.eval()


@pytest.fixture(scope="module")
def prepared(network):
    return prepare(load_network(network), torch.zeros(1, 3, 8, 8))


def true_moments(network, name):
    seen = []
    handle = network.get_submodule(name).register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
    with torch.no_grad():
        network(torch.randn(500, 3, 8, 8, generator=torch.Generator().manual_seed(99)))
    handle.remove()
    values = seen[0].reshape(500, -1, 16) if name == "head" else seen[0].flatten(2)
    return values.double().mean((0, 2)).numpy(), values.double().var((0, 2)).numpy()


@pytest.mark.parametrize(("name", "tolerance"), [("left", 0.15), ("after", 0.4), ("wide", 0.4)])
def test_what_norms_tell_is_near_what_the_data_give(network, prepared, name, tolerance):
    mean, variance = true_moments(network, name)
    told = prepared.signals[name]
    scale = np.sqrt(variance + mean**2)
    assert np.abs(told.mean - mean).max() < tolerance * scale.max()
    assert np.corrcoef(told.variance + told.mean**2, variance + mean**2)[0, 1] > 0.9


def test_the_first_layer_is_unknown_and_a_flattened_map_is_not(prepared):
    assert set(prepared.signals) == {"left", "after", "wide", "head"}
    head = next(site for site in prepared.sites if site.name == "head")
    curvature = curvature_of(head, prepared.signals["head"])
    assert curvature is not None
    assert curvature.source == "norm statistics"
    assert curvature.inputs.matrix.shape == (1, 64, 64)


def test_losing_everything_costs_one_as_without_statistics(prepared):
    for site in prepared.sites:
        if site.name in prepared.signals:
            curvature = curvature_of(site, prepared.signals[site.name])
            assert curvature.loss_as_stored(site.weight, site.geometry) == pytest.approx(1, rel=1e-4)


def test_a_truncation_under_the_statistics_answers_better_than_the_plain_one():
    """Half of the inputs hardly vary: a metric that knows it spends no rank on them."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(24, 32)).astype("f4")
    deviation = np.where(np.arange(32) < 16, 3.0, 0.01)
    site = Site("fc", Geometry("linear", 32, 24), weight)
    told = curvature_of(site, Signal(np.zeros(32), deviation**2))
    x = generator.normal(size=(2000, 32)) * deviation
    errors = []
    for curvature in (told, weights_only(site)):
        form = methods()["svd"].family(site, curvature).form(6)
        errors.append(np.square(x @ (weight - form.u.values @ form.v.values).T).mean())
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("geometry", [
    Geometry("linear", 7, 2), Geometry("conv", 12, 2, (3,), (1,), (1,), (1,), in_size=(4,), out_size=(4,)),
    Geometry("conv", 12 * WIDEST, 2, (1,), (1,), (0,), (1,), 2, in_size=(4,), out_size=(4,)),
])  # fmt: skip
def test_shapes_that_do_not_tell_the_channels_are_left_alone(geometry):
    shape = (2, geometry.in_channels // geometry.groups, *geometry.kernel)
    assert curvature_of(Site("x", geometry, np.ones(shape, "f4")), Signal(np.zeros(6), np.ones(6))) is None


def test_a_layer_too_wide_for_a_matrix_has_the_same_metric(monkeypatch):
    generator = np.random.default_rng(0)
    site = Site("fc", Geometry("linear", 12, 5), generator.normal(size=(5, 12)).astype("f4"))
    signal = Signal(generator.normal(size=6), generator.uniform(0.1, 2, 6))
    whole = curvature_of(site, signal)
    monkeypatch.setattr("smidgen.calibrate.norms.WIDEST", 11)
    wide = curvature_of(site, signal)
    assert wide.inputs.matrix is None
    assert wide.scale == pytest.approx(whole.scale, rel=1e-5)
    change = generator.normal(size=(5, 12)).astype("f4")
    assert wide.loss_as_stored(change, site.geometry) == pytest.approx(whole.loss_as_stored(change, site.geometry))
    forms = [methods()["svd"].family(site, curvature).form(2) for curvature in (whole, wide)]
    np.testing.assert_allclose(*(form.u.values @ form.v.values for form in forms), rtol=1e-3, atol=1e-4)


def test_dead_channels_and_a_dead_layer():
    site = Site("fc", Geometry("linear", 4, 2), np.ones((2, 4), "f4"))
    assert curvature_of(site, Signal(np.zeros(4), np.zeros(4))) is None
    assert curvature_of(site, Signal(np.zeros(4), np.array([0, 0, 0, 1.0]))) is not None


def test_unknown_nodes_end_what_is_known():
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("BatchNormalization", ["x", "g", "b", "m", "v"], ["n"]),
        helper.make_node("Transpose", ["n"], ["t"]),
        helper.make_node("Site", ["t"], ["s"], name="one", domain="smidgen"),
        helper.make_node("Site", ["n"], ["u"], name="two", domain="smidgen"),
    ]
    constants = [helper.make_tensor(n, TensorProto.FLOAT, [2], [1.0, -2.0]) for n in "gbmv"]
    found = norm_signals(helper.make_graph(nodes, "g", [], [], constants))
    assert list(found) == ["two"]
    assert found["two"].variance.tolist() == [1.0, 4.0]
