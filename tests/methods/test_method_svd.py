"""svd: the closed form against other roads to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smidgen.errors import Refusal
from smidgen.forms import Dense, Geometry, LowRank, dense, hollow, params, stages
from smidgen.methods.svd import METHOD
from smidgen.planning.candidates import weights_only
from smidgen.site import Curvature, Moment, Site, grouped

EXACT = METHOD.with_settings(damp=0.0)


def linear(out=14, inp=20, seed=0):
    weight = np.random.default_rng(seed).normal(size=(out, inp)).astype("f4")
    return Site("fc", Geometry("linear", inp, out), weight)


def moment(n, seed, groups=1):
    x = np.random.default_rng(seed).normal(size=(groups, 4 * n, n)) * np.geomspace(0.1, 5.0, n)
    return torch.from_numpy(np.einsum("gkn,gkm->gnm", x, x) / (4 * n))


def root(m):
    values, vectors = np.linalg.eigh(m)
    return (vectors * np.sqrt(values)) @ vectors.T


def test_without_data_it_is_the_truncated_svd():
    site = linear()
    u, s, vt = np.linalg.svd(site.weight.astype("f8"), full_matrices=False)
    family = METHOD.family(site, Curvature())
    for rank in family.ranks:
        assert np.allclose(dense(family.form(rank)), (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-5)
        assert family.losses[rank - 1] == pytest.approx(0.5 * (s[rank:] ** 2).sum(), rel=1e-9)


def test_no_data_loss_is_the_relative_squared_error():
    site = linear()
    s = np.linalg.svd(site.weight.astype("f8"), compute_uv=False)
    losses = METHOD.family(site, weights_only(site)).losses
    assert losses[2] == pytest.approx((s[3:] ** 2).sum() / (s**2).sum(), rel=1e-6)


def test_identity_curvature_changes_nothing():
    site = linear()
    eye = Curvature(Moment(matrix=torch.eye(20)[None]), Moment(matrix=torch.eye(14)[None]), "calibration", 10)
    plain, same = METHOD.family(site, Curvature()), EXACT.family(site, eye)
    assert same.losses == pytest.approx(plain.losses, rel=1e-6)
    for rank in plain.ranks:
        assert np.allclose(dense(plain.form(rank)), dense(same.form(rank)), atol=1e-5)


@pytest.mark.parametrize("with_g", [False, True])
def test_with_curvature_it_is_the_whitened_svd(with_g):
    """G^½ W_r A^½ is the truncated SVD of G^½ W A^½."""
    site, a, g = linear(), moment(20, 1), moment(14, 2)
    curvature = Curvature(Moment(matrix=a), Moment(matrix=g) if with_g else Moment(), "calibration", 80)
    left, right = (root(g[0].numpy()) if with_g else np.eye(14)), root(a[0].numpy())
    u, s, vt = np.linalg.svd(left @ site.weight.astype("f8") @ right)
    family = EXACT.family(site, curvature)
    for rank in (1, 4, family.ranks[-1]):
        best = np.linalg.inv(left) @ (u[:, :rank] * s[:rank]) @ vt[:rank] @ np.linalg.inv(right)
        assert np.allclose(dense(family.form(rank)), best, atol=2e-4)
        assert family.losses[rank - 1] == pytest.approx(0.5 * (s[rank:] ** 2).sum(), rel=1e-5)


def test_it_beats_the_plain_svd_in_the_metric_and_loses_without():
    site = linear()
    curvature = Curvature(Moment(matrix=moment(20, 1)), Moment(matrix=moment(14, 2)), "calibration", 80)
    aware, plain = METHOD.family(site, curvature), METHOD.family(site, Curvature())

    def error(family, rank, metric):
        return metric.loss(torch.from_numpy(site.weight.astype("f8") - dense(family.form(rank)).astype("f8"))[None])

    for rank in (1, 3, 6):
        assert error(aware, rank, curvature) < 0.8 * error(plain, rank, curvature)
        assert error(plain, rank, Curvature()) < error(aware, rank, Curvature())


def test_no_other_matrix_of_the_rank_is_better():
    """Gradient descent from the solution, over both factors, finds nothing below the predicted loss."""
    site = linear(8, 10)
    curvature = Curvature(Moment(matrix=moment(10, 1)), Moment(matrix=moment(8, 2)), "calibration", 80)
    family = EXACT.family(site, curvature)
    form = family.form(2)
    assert isinstance(form, LowRank)
    a, g, w = curvature.inputs.matrix[0], curvature.outputs.matrix[0], torch.from_numpy(site.weight).double()
    for seed in range(3):
        noise = torch.Generator().manual_seed(seed)
        u, v = (torch.from_numpy(dense(part)).double() for part in (form.u, form.v))
        u = (u + 0.3 * torch.randn(u.shape, generator=noise, dtype=u.dtype)).requires_grad_()
        v = (v + 0.3 * torch.randn(v.shape, generator=noise, dtype=v.dtype)).requires_grad_()
        optimiser = torch.optim.LBFGS([u, v], max_iter=200, line_search_fn="strong_wolfe")

        def loss(u=u, v=v):
            change = w - u @ v
            return 0.5 * torch.trace(g @ change @ a @ change.T)

        def closure(loss=loss, optimiser=optimiser):
            optimiser.zero_grad()
            value = loss()
            value.backward()
            return value

        optimiser.step(closure)
        assert loss().item() >= family.losses[1] * (1 - 1e-6)


@pytest.mark.parametrize("damp", [0.01, 0.5])
def test_the_loss_is_told_in_the_undamped_metric(damp):
    """As every method's: damping only serves the inverse, and does not make this method look worse than others."""
    site = linear()
    curvature = Curvature(Moment(matrix=moment(20, 1)), Moment(matrix=moment(14, 2)), "calibration", 80)
    family = METHOD.with_settings(damp=damp).family(site, curvature)
    for rank in family.ranks:
        change = torch.from_numpy(site.weight.astype("f8") - dense(family.form(rank)).astype("f8"))[None]
        assert family.losses[rank - 1] == pytest.approx(curvature.loss(change), rel=1e-4)


def test_rows_of_a_wide_layer_serve_as_its_moment():
    site = linear()
    rows = torch.from_numpy(np.random.default_rng(3).normal(size=(1, 40, 20)))
    whole = Curvature(Moment(matrix=rows.mT @ rows), Moment(), "calibration", 40)
    sketched = Curvature(Moment(rows=rows), Moment(), "calibration", 40)
    first, second = METHOD.family(site, whole), METHOD.family(site, sketched)
    assert first.losses == pytest.approx(second.losses, rel=1e-6)
    assert np.allclose(dense(first.form(4)), dense(second.form(4)), atol=1e-4)


def test_groups_are_split_one_by_one():
    g = Geometry("conv", 12, 9, (3, 3), (1, 1), (1, 1), (1, 1), 3, (5, 5), (5, 5))
    weight = np.random.default_rng(0).normal(size=(9, 4, 3, 3)).astype("f4")
    a, out = moment(36, 1, groups=3), moment(3, 2, groups=3)
    family = EXACT.family(Site("c", g, weight), Curvature(Moment(matrix=a), Moment(matrix=out), "calibration", 9))
    full = grouped(dense(family.form(2)), 3)
    total = 0.0
    for i in range(3):
        part = Site("fc", Geometry("linear", 36, 3), grouped(weight, 3)[i])
        one = Curvature(Moment(matrix=a[i : i + 1]), Moment(matrix=out[i : i + 1]), "calibration", 9)
        alone = EXACT.family(part, one)
        assert np.allclose(full[i], dense(alone.form(2)), atol=1e-4)
        total += alone.losses[1]
    assert family.losses[1] == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("groups", [1, 2])
def test_three_factors_are_the_same_weight_in_three_layers(groups):
    g = Geometry("conv", 12, 20, (3, 3), (1, 1), (1, 1), (1, 1), groups, (5, 5), (5, 5))
    site = Site("c", g, np.random.default_rng(0).normal(size=(20, 12 // groups, 3, 3)).astype("f4"))
    curvature = Curvature(Moment(matrix=moment(g.columns, 1, groups)), Moment(matrix=moment(20 // groups, 2, groups)))
    two, three = METHOD.family(site, curvature), METHOD.with_settings(factors=3).family(site, curvature)
    assert np.allclose(dense(two.form(3)), dense(three.form(3)), atol=1e-4)
    assert len(stages(three.form(3), g)) == 3
    assert three.ranks[-1] < two.ranks[-1]


@settings(max_examples=60, deadline=None)
@given(out=st.integers(1, 40), inp=st.integers(1, 40), factors=st.sampled_from([2, 3]))
def test_the_largest_rank_is_the_last_that_saves_weights(out, inp, factors):
    def weights(rank):
        return rank * (out + inp) + (rank * rank if factors == 3 else 0)

    site = Site("fc", Geometry("linear", inp, out), np.ones((out, inp), "f4"))
    method = METHOD.with_settings(factors=factors)
    if weights(1) >= out * inp:
        with pytest.raises(Refusal, match="every rank would grow"):
            method.family(site, Curvature())
        return
    most = method.family(site, Curvature()).ranks[-1]
    core = Dense(hollow(most, most)) if factors == 3 else None
    form = LowRank(v=Dense(hollow(most, inp)), u=Dense(hollow(out, most)), core=core)
    assert params(form, site.geometry) == weights(most) < out * inp
    assert weights(most + 1) >= out * inp or most == min(out, inp)


def test_both_factors_are_of_one_size():
    """Neither factor is left with tiny or huge rows, whatever the scale of the curvature."""
    curvature = Curvature(Moment(matrix=1e6 * moment(20, 1)), Moment(matrix=1e-6 * moment(14, 2)), "calibration", 80)
    form = METHOD.family(linear(), curvature).form(5)
    assert isinstance(form, LowRank)
    u, v = np.linalg.norm(dense(form.u), axis=0), np.linalg.norm(dense(form.v), axis=1)
    assert np.allclose(u, v, rtol=1e-3)


def test_a_weight_of_low_rank_is_found_exactly():
    rng = np.random.default_rng(0)
    site = Site("fc", Geometry("linear", 20, 14), (rng.normal(size=(14, 3)) @ rng.normal(size=(3, 20))).astype("f4"))
    family = METHOD.family(site, Curvature(Moment(matrix=moment(20, 1)), Moment(matrix=moment(14, 2))))
    assert np.allclose(dense(family.form(3)), site.weight, atol=1e-4)
    assert family.losses[2] < 1e-9 * family.losses[0]
