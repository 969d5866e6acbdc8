"""cp: exact where the kernel is of low rank, refitted in the input metric, counted and refused as documented."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smidgen.errors import PlanError, Refusal
from smidgen.forms import CP, Geometry, dense, params
from smidgen.methods import choose_methods, cp
from smidgen.methods.cp import METHOD, Settings
from smidgen.numerics.cp import refit_out
from smidgen.site import Curvature, Moment, Site

QUICK = METHOD.with_settings(points=4, iterations=15)
GEOMETRY = Geometry("conv", 10, 12, (3, 3), (1, 1), (1, 1), (1, 1), 1, (6, 6), (6, 6))


def random_site(seed=0, rank=None):
    rng = np.random.default_rng(seed)
    if rank is None:
        return Site("c", GEOMETRY, rng.normal(size=(12, 10, 3, 3)).astype("f4"))
    parts = [rng.normal(size=(n, rank)) for n in (12, 10, 3, 3)]
    return Site("c", GEOMETRY, np.einsum("tr,sr,yr,xr->tsyx", *parts).astype("f4"))


def moment(n, seed):
    x = np.random.default_rng(seed).normal(size=(4 * n, n)) * np.geomspace(0.1, 5.0, n)
    return torch.from_numpy(x.T @ x / len(x))[None]


def test_a_kernel_of_low_rank_is_found():
    family = METHOD.with_settings(points=6, iterations=60).family(random_site(rank=2), Curvature())
    share = family.losses[-1] / Curvature().loss(torch.from_numpy(random_site(rank=2).matrix).double()[None])
    assert share < 1e-4


def test_all_factors_are_fitted_in_the_metric():
    """Below the plain fit with its output factor refitted under A, which is as far as one factor alone can go."""
    site = random_site()
    curvature = Curvature(Moment(matrix=moment(90, 1)), Moment(matrix=moment(12, 2)), "calibration", 300)
    aware, plain = QUICK.family(site, curvature), QUICK.family(site, Curvature())
    assert aware.ranks == plain.ranks
    for rank, loss in zip(aware.ranks, aware.losses, strict=True):
        form = plain.form(rank)
        assert isinstance(form, CP)
        rows = np.einsum("rs,ry,rx->rsyx", *(dense(f) for f in (form.inp, *form.kernel))).reshape(-1, 90)
        basis, weight = torch.from_numpy(rows), torch.from_numpy(site.matrix)
        refitted = refit_out(weight, basis, moment(90, 1)[0].float())
        assert loss < 1.001 * curvature.loss((weight - refitted @ basis)[None].double())
    assert aware.losses[1] < 0.8 * curvature.loss_as_stored(site.weight - dense(plain.form(plain.ranks[1])), GEOMETRY)


def test_weights_are_counted_as_in_the_paper():
    family = QUICK.family(random_site(), Curvature())
    for rank in family.ranks:
        assert params(family.form(rank), GEOMETRY) == rank * (10 + 3 + 3 + 12)
    assert family.ranks[-1] * 28 <= 0.7 * 1080


def test_one_spatial_axis_gives_three_layers():
    g = Geometry("conv", 8, 12, (5,), (1,), (2,), (1,), 1, (16,), (16,))
    site = Site("c", g, np.random.default_rng(0).normal(size=(12, 8, 5)).astype("f4"))
    form = QUICK.family(site, Curvature()).form(QUICK.family(site, Curvature()).ranks[0])
    assert isinstance(form, CP)
    assert len(form.kernel) == 1


@pytest.mark.parametrize(
    ("geometry", "words"),
    [
        (Geometry("linear", 10, 10), "only convolutions"),
        (GEOMETRY.with_(kernel=(1, 1), padding=(0, 0)), "use svd"),
        (GEOMETRY.with_(groups=2), r"grouped convolutions are not split \(2 groups\)"),
        (GEOMETRY.with_(in_channels=1, out_channels=1), "every rank would grow"),
    ],
)
def test_refused_layers(geometry, words):
    shape = (geometry.out_channels, geometry.in_channels // geometry.groups, *geometry.kernel)
    with pytest.raises(Refusal, match=words):
        QUICK.family(Site("x", geometry, np.ones(shape, "f4")), Curvature())


def test_wide_kernels_get_no_more_terms_than_are_worth_their_time(monkeypatch):
    asked = []

    def fits(weight, ranks, **_):
        asked.append(list(ranks))
        raise Refusal("enough")

    monkeypatch.setattr(cp, "cp_metric_curve", fits)
    geometry = Geometry("conv", 32, 32, (31, 31), (1, 1), (15, 15), (1, 1), 1, (28, 28), (28, 28))
    site = Site("c", geometry, np.zeros((32, 32, 31, 31), "f4"))
    for method in (METHOD, METHOD.with_settings(ranks="fixed", rank=3000)):
        with pytest.raises(Refusal, match="enough"):
            method.family(site, Curvature())
    assert max(asked[0]) == 1024
    assert asked[1] == [3000], "who names a rank gets it"


def test_another_seed_may_differ_but_predicts_alike():
    first, second = (QUICK.family(random_site(), Curvature(), seed=s) for s in (0, 1))
    assert first.losses == pytest.approx(second.losses, rel=0.2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"points": 0},
        {"points": 2.5},
        {"points": 10**9},
        {"points": True},
        {"iterations": 0},
        {"iterations": "many"},
        {"max_share": 0.0},
        {"max_share": 1.5},
        {"max_share": float("nan")},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises((ValueError, TypeError)):
        Settings(**wrong)
    with pytest.raises(PlanError, match="its settings are") as caught:
        choose_methods("cp", {"cp": wrong})
    assert "\n" not in str(caught.value)
