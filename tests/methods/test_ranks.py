"""How a rank is picked: by the price, by energy, by the noise or by hand, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from smidgen.errors import Refusal
from smidgen.forms import Geometry, Tucker2, dense, leaves, rank
from smidgen.methods import methods
from smidgen.site import Curvature, Site

CONV = Geometry("conv", 24, 32, (3, 3), (1, 1), (1, 1), (1, 1), 1, (8, 8), (8, 8))
LOW_RANK = ("svd", "spatial", "tucker2", "cp")


def noisy(inner=3, noise=0.01, seed=0):
    """A Tucker-2 kernel of ranks (inner, inner) under noise."""
    draw = np.random.default_rng(seed)
    out, core, inp = (
        draw.normal(size=(32, inner)),
        draw.normal(size=(inner, inner, 3, 3)),
        draw.normal(size=(inner, 24)),
    )
    kernel = np.einsum("tb,bayx,as->tsyx", out, core, inp) + noise * draw.normal(size=(32, 24, 3, 3))
    return Site("conv", CONV, kernel.astype("f4"))


def picked(name, site, **settings):
    family = methods()[name].with_settings(**settings).family(site, Curvature())
    assert len(family.ranks) == 1
    return family.form(family.ranks[0])


@pytest.mark.parametrize("name", LOW_RANK)
def test_a_rank_given_by_hand_is_taken(name):
    assert rank(picked(name, noisy(), ranks="fixed", rank=5)) == 5


def test_both_tucker_ranks_can_be_given():
    form = picked("tucker2", noisy(), ranks="fixed", rank=6, rank_in=4)
    assert [leaf.values.shape[0] for leaf in leaves(form)] == [4, 6, 32]


@pytest.mark.parametrize("name", LOW_RANK)
def test_a_rank_the_layer_does_not_have_is_refused(name):
    with pytest.raises(Refusal, match=f"{name}: rank.* (above what this layer has|would grow this layer)"):
        picked(name, noisy(), ranks="fixed", rank=5000)


def test_the_noise_tells_the_ranks():
    form = picked("tucker2", noisy(inner=4), ranks="vbmf")
    assert isinstance(form, Tucker2)
    assert [leaf.values.shape[0] for leaf in leaves(form)] == [4, 4, 32]
    site = noisy(inner=4)
    assert np.square(dense(form) - site.weight).sum() < 0.002 * np.square(site.weight).sum()
    assert rank(picked("svd", noisy(inner=4), ranks="vbmf")) == 4


@pytest.mark.parametrize("name", ["svd", "spatial", "tucker2"])
def test_a_layer_of_noise_has_no_rank(name):
    kernel = np.random.default_rng(0).normal(size=(32, 24, 3, 3)).astype("f4")
    with pytest.raises(Refusal, match="nothing but noise"):
        picked(name, Site("conv", CONV, kernel), ranks="vbmf")


def test_vbmf_says_nothing_of_cp():
    with pytest.raises(Refusal, match="cp: vbmf has no form of it"):
        picked("cp", noisy(), ranks="vbmf")


@pytest.mark.parametrize("name", LOW_RANK)
def test_more_energy_takes_more_rank_and_keeps_it(name):
    site = noisy(noise=0.3)
    forms = [picked(name, site, ranks="energy", energy=share) for share in (0.5, 0.8)]
    assert rank(forms[0]) < rank(forms[1])
    # Two truncations may each leave out the share: Tucker-2's bound is their sum.
    for form, share in zip(forms, (0.5, 0.8), strict=True):
        left = np.square(dense(form) - site.weight).sum() / np.square(site.weight).sum()
        assert left <= (2 if name == "tucker2" else 1) * (1 - share) + 1e-3


@pytest.mark.parametrize("name", LOW_RANK)
def test_ranks_are_multiples(name):
    family = methods()[name].with_settings(multiple=4).family(noisy(), Curvature())
    assert all(r % 4 == 0 for r in family.ranks)
    assert rank(picked(name, noisy(), ranks="fixed", rank=5, multiple=4)) == 8


def test_a_window_of_one_pixel_is_no_kernel():
    one = CONV.with_(kernel=(1, 1), padding=(0, 0))
    site = Site("conv", one, np.ones((32, 24, 1, 1), np.float32))
    for name in ("spatial", "tucker2", "cp"):
        with pytest.raises(Refusal, match=f"{name}: a 1x1 window is a matrix; use svd"):
            methods()[name].family(site, Curvature())
    thin = Site("conv", CONV.with_(kernel=(3, 1), padding=(1, 0)), np.ones((32, 24, 3, 1), np.float32))
    with pytest.raises(Refusal, match="3x1 has one axis alone"):
        methods()["spatial"].family(thin, Curvature())
