"""Prices of channels: what a refit without them really costs, and which go first."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smidgen.errors import UserError
from smidgen.forms import Geometry
from smidgen.methods.channels import CRITERIA, Evidence
from smidgen.planning.channel_readers import RIDGE, compensated, readers_of
from smidgen.planning.channels import ByCurvature, ByScore, choose, evidence_of
from smidgen.site import ChannelLayer, Channels, Curvature, Moment, Site


def two_layers(units=6, taps=4, seed=0):
    """A layer that makes channels and a convolution of some taps that reads them, with a curvature."""
    rng = np.random.default_rng(seed)
    first = Site("a", Geometry("linear", 3, units), rng.normal(size=(units, 3)).astype("f4"), np.zeros(units, "f4"))
    g = Geometry("conv", units, 5, (taps,), (1,), (0,), (1,), in_size=(9,), out_size=(10 - taps,))
    second = Site("b", g, rng.normal(size=(5, units, taps)).astype("f4"), rng.normal(size=5).astype("f4"))
    x = rng.normal(size=(200, units * taps)) @ rng.normal(size=(units * taps, units * taps)) + 1.0
    a = torch.as_tensor(g.positions * x.T @ x / len(x))[None].float()
    mean = torch.as_tensor(x.mean(0))[None].float()
    root = torch.as_tensor(rng.normal(size=(5, 5))).float()
    curvature = Curvature(Moment(matrix=a, mean=mean), Moment(matrix=(root @ root.T)[None]), "calibration", 200)
    here = np.arange(units)
    layers = (
        ChannelLayer("a", np.full(3, -1), here, positions=9),
        ChannelLayer("b", here, np.full(5, -1), taps=taps, positions=g.positions),
    )
    channels = Channels(units, layers, (here,), ((0,),), {"b": "they are the network's outputs"})
    return channels, {"a": first, "b": second}, {"b": curvature}, x


def best_refit(site, curvature, x, kept):
    """Least ½ tr(G ΔW C ΔWᵀ) over the columns that are kept, C the covariance with its ridge."""
    g = site.geometry
    c = g.positions * np.cov(x.T, bias=True)
    c += np.diag(RIDGE * np.diag(c))
    w = site.matrix.astype(float)
    columns = np.repeat(kept, g.kernel[0])
    new = np.zeros_like(w)
    new[:, columns] = w @ c[:, columns] @ np.linalg.inv(c[np.ix_(columns, columns)])
    change = new - w
    return 0.5 * np.trace(curvature.outputs.matrix[0].numpy() @ change @ c @ change.T), new


def test_the_price_of_channels_is_what_the_best_refit_loses():
    channels, sites, curvatures, x = two_layers()
    readers = readers_of(channels, sites, curvatures)
    pricer = ByCurvature(channels, readers)
    for unit, cost in enumerate(readers[0].costs(range(channels.count))):
        kept = np.arange(channels.count) != unit
        assert cost == pytest.approx(best_refit(sites["b"], curvatures["b"], x, kept)[0], rel=1e-3)
    block = pricer.block(0, 3, np.ones(6, dtype=bool))
    kept = ~np.isin(np.arange(6), block.units)
    loss, weight = best_refit(sites["b"], curvatures["b"], x, kept)
    assert block.cost == pytest.approx(loss, rel=1e-3)
    assert pricer.bound(0, 3, np.ones(6, dtype=bool)).cost <= block.cost
    # The layer as it is told has that weight, and a bias that keeps its mean.
    told, bias = compensated(block.after.values())["b"]
    np.testing.assert_allclose(told.reshape(5, -1), weight, atol=1e-3)
    before = sites["b"].matrix @ x.mean(0) + sites["b"].bias
    np.testing.assert_allclose(told.reshape(5, -1) @ x.mean(0) + bias, before, atol=1e-2)
    # Blocks priced do not change the pricer.
    assert pricer.block(0, 3, np.ones(6, dtype=bool)).cost == block.cost


def test_of_two_equal_channels_only_the_first_is_free():
    channels, sites, curvatures, x = two_layers(taps=1)
    x[:, 5] = x[:, 2]
    a = torch.as_tensor(sites["b"].geometry.positions * x.T @ x / len(x))[None].float()
    curvature = Curvature(Moment(matrix=a, mean=torch.as_tensor(x.mean(0))[None].float()), curvatures["b"].outputs,
                          "calibration", 200)  # fmt: skip
    (reader,) = readers_of(channels, sites, {"b": curvature})
    alone = reader.costs(range(6))
    assert set(np.argsort(alone)[:2].tolist()) == {2, 5}
    reader.remove(2)
    again = reader.costs(range(6))
    assert again[5] > 5 * alone[5]
    assert again[2] == 0


def test_counts_become_multiples_and_no_layer_is_emptied():
    channels, sites, curvatures, _ = two_layers(units=20)
    for multiple, left in ((8, 8), (3, 9), (1, 10)):
        pricer = ByCurvature(channels, readers_of(channels, sites, curvatures))
        keep, steps = choose(channels, pricer, 0.51, multiple=multiple)
        assert keep.sum() == left
        assert channels.macs(keep) == steps[-1].left
    pricer = ByCurvature(channels, readers_of(channels, sites, curvatures))
    with pytest.raises(UserError, match=r"no layer may be emptied, and 40\.0 % are left at least"):
        choose(channels, pricer, 0.1, multiple=8)


def test_a_choice_can_go_on():
    channels, sites, curvatures, _ = two_layers(units=20)
    pricer = ByCurvature(channels, readers_of(channels, sites, curvatures))
    first, _ = choose(channels, pricer, 0.8, multiple=2)
    then, _ = choose(channels, pricer, 0.4, multiple=2, begin=first)
    whole, _ = choose(channels, ByCurvature(channels, readers_of(channels, sites, curvatures)), 0.4, multiple=2)
    assert then.tolist() == whole.tolist()
    assert not (then & ~first).any()


def test_other_criteria_take_the_lowest_first():
    channels, sites, _, _ = two_layers(units=8)
    keep, _ = choose(channels, ByScore(channels, CRITERIA["l1"], evidence_of(channels, sites, {}, {})), 0.5, multiple=1)
    sizes = np.abs(sites["a"].weight).sum(1)
    assert set(np.flatnonzero(keep).tolist()) == set(np.argsort(sizes)[4:].tolist())


def test_scores_of_known_filters():
    w = np.array([[3.0, 4.0], [-6.0, -8.0], [0.0, 1.0], [0.3, 0.0]])
    known = Evidence(
        (w,),
        (float(np.linalg.norm(w, axis=1).mean()),),
        (np.array([0.1, 0.0, 2.0, 1.0]),),
        (np.array([0.9, 1.0, 0.0, 0.5]),),
        (np.ones(4), np.arange(4.0)),
        (np.array([1.0, 0.2, 3.0, 2.0]),),
    )
    told = {name: one.score(known) for name, one in CRITERIA.items() if one.score is not None}
    assert told["l1"].tolist() == [7, 14, 1, 0.3]
    np.testing.assert_allclose(told["l2"], [5, 10, 1, 0.3])
    np.testing.assert_allclose(told["magnitude"], np.array([5, 10, 1, 0.3]) / 4.075)
    assert told["activation"].tolist() == [0.1, 0, 2, 1]
    np.testing.assert_allclose(told["apoz"], [0.1, 0, 1, 0.5])
    np.testing.assert_allclose(told["cosine"], [0, 0, 0.2, 0.4], atol=1e-12)
    assert told["median"][3] == pytest.approx(np.hypot(2.7, 4) + np.hypot(6.3, 8) + np.hypot(0.3, 1))
    assert told["taylor"].tolist() == [1, 2, 3, 4]
    assert told["batchnorm"].tolist() == [1, 0.2, 3, 2]
    centred = Evidence(filters=(np.array([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0], [1.0, -2.0, 1.0]]),))
    np.testing.assert_allclose(CRITERIA["correlation"].score(centred), [0, 0, 1], atol=1e-12)
