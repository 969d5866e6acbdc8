"""Probes: losses land on the true ones where they were measured, and on straight lines in the logarithms between."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from smidgen.calibrate.answers import true_loss
from smidgen.methods import methods
from smidgen.model.replace import with_forms
from smidgen.model.sites import find_sites
from smidgen.planning.candidates import gather
from smidgen.planning.probe import SHARES, probe
from smidgen.site import Stored


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(160, 200), nn.Tanh(), nn.Linear(200, 160), nn.Tanh(), nn.Linear(160, 3)).eval()


X = np.random.default_rng(0).normal(size=(64, 160)).astype("f4")


@pytest.fixture(scope="module")
def options(model):
    return gather(find_sites(model, torch.zeros(1, 160)), {}, {"svd": methods()["svd"]})


@pytest.fixture(scope="module")
def probed(model, options):
    return probe(model, options, [X[:40], X[40:]])


def true(model, option, i):
    """What the change costs on the inputs, measured by hand."""
    stored = {option.site.name: Stored(option.form(*option.labels[i]), option.site.bias)}
    with torch.no_grad():
        x = torch.from_numpy(X)
        return true_loss([[model(x)]], [[with_forms(model, [option.site], stored)(x)]])


def places(option):
    """The probed options: the largest with at most each share of the dense bytes, mild to strong."""
    return [max((size, i) for i, size in enumerate(option.sizes) if size <= s * option.sizes[0])[1] for s in SHARES]


def test_at_a_probe_the_loss_is_the_measured_one(model, options, probed):
    for before, after in zip(options[:2], probed[:2], strict=True):
        for i in places(before):
            assert after.losses[i] == pytest.approx(true(model, before, i), rel=1e-4)


def test_between_probes_it_is_a_straight_line_in_the_logarithms(options, probed):
    before, after = options[0], probed[0]
    mild, middle, strong = places(before)
    for a, b in ((mild, middle), (middle, strong)):
        between = [i for i in range(1, len(before.losses)) if before.losses[a] < before.losses[i] < before.losses[b]]
        assert between
        logs, ends = np.log(np.maximum(before.losses, 1e-30)), (np.log(after.losses[a]), np.log(after.losses[b]))
        for i in between:
            share = (logs[i] - logs[a]) / (logs[b] - logs[a])
            assert np.log(after.losses[i]) == pytest.approx(ends[0] + share * (ends[1] - ends[0]), rel=1e-9)


def test_beyond_the_first_and_the_last_it_is_in_proportion(options, probed):
    before, after = options[0], probed[0]
    mild, _, strong = places(before)
    ratio = after.losses / np.where(before.losses > 0, before.losses, 1.0)
    milder = [i for i in range(1, len(ratio)) if before.losses[i] < before.losses[mild]]
    stronger = [i for i in range(1, len(ratio)) if before.losses[i] > before.losses[strong]]
    assert milder
    assert stronger
    assert ratio[milder] == pytest.approx(ratio[mild], rel=1e-9)
    assert ratio[stronger] == pytest.approx(ratio[strong], rel=1e-9)
    assert after.worth / before.worth == pytest.approx(ratio[strong], rel=1e-9), "losing all is beyond the last probe"


def test_the_order_is_kept_and_what_costs_nothing_costs_nothing(options, probed):
    for before, after in zip(options, probed, strict=True):
        assert after.losses[0] == 0.0
        order = np.argsort(before.losses, kind="stable")
        assert (np.diff(after.losses[order]) >= 0).all()
        assert np.isfinite(after.losses).all()
        assert after.labels == before.labels
        assert np.array_equal(after.sizes, before.sizes)


def test_only_the_shape_of_the_prediction_matters_not_its_scale(model, options, probed):
    scaled = [replace(o, losses=1e-3 * o.losses, worth=1e-3 * o.worth) for o in options]
    for one, other in zip(probe(model, scaled, [X])[:2], probed[:2], strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-4)
        assert one.worth == pytest.approx(other.worth, rel=1e-4)


def test_a_site_with_nothing_to_choose_stays_as_it_is(model, options):
    bare = gather([o.site for o in options], {}, {})
    ticked = []
    assert all(a is b for a, b in zip(bare, probe(model, bare, [X], tick=ticked.append), strict=True))
    assert ticked == ["0", "2", "4"]


def test_the_network_is_not_changed(model, options):
    before = copy.deepcopy(model.state_dict())
    probe(model, options[:1], [X])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert type(model[0]) is nn.Linear
