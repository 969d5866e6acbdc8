"""Weight sharing: error feedback and moved values pay in the metric, whatever the layer is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smidgen.forms import dense
from smidgen.methods import sharings
from smidgen.numerics.cancellation import factorise, factorise_rows
from smidgen.numerics.kmeans import kmeans, rounded_values
from smidgen.numerics.rounding_groups import factorise_groups

SHARING = sharings()["kmeans"]


def moment(n, seed=0, groups=1):
    x = np.random.default_rng(seed).normal(size=(groups, 3 * n, n)) * np.geomspace(0.1, 3.0, n)
    x = x @ np.random.default_rng(seed + 1).normal(size=(n, n))  # columns that see each other
    return torch.from_numpy(x.swapaxes(1, 2) @ x / x.shape[1])


def loss(weight, form, matrix, rows):
    change = weight - torch.from_numpy(dense(form)).double().reshape(weight.shape)
    return float((((change @ matrix) * change).sum(2) * rows).sum())


@pytest.fixture
def case():
    weight = torch.from_numpy(np.random.default_rng(3).laplace(size=(1, 40, 30)))
    return weight, moment(30), torch.rand(1, 40, generator=torch.Generator().manual_seed(0)).double() + 0.1


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
def test_feedback_and_moved_values_lose_less(case, bits):
    weight, matrix, rows = case
    factors = [factorise(matrix[0], damp=0.0)]

    def of(**settings):
        return loss(weight, SHARING.with_settings(**settings).shared(weight, factors, rows, bits), matrix, rows)

    plain, once, moved = of(feedback=False), of(passes=1), of(passes=6)
    assert once < (0.97 if bits == 1 else 0.8) * plain
    assert moved <= once


def test_without_feedback_it_is_the_weighted_k_means(case):
    weight, matrix, rows = case
    paid = rows[:, :, None] * matrix.diagonal(dim1=1, dim2=2)[:, None]
    form = SHARING.with_settings(feedback=False).shared(weight, [factorise(matrix[0], damp=0.0)], rows, 3)
    assert form.values.tolist() == np.unique(rounded_values(kmeans(weight, 8, paid).numpy())).tolist()
    away = (weight.reshape(40, 30, 1) - torch.from_numpy(form.values)).abs()
    assert (torch.from_numpy(form.indices) == away.argmin(2)).all()


def test_a_row_that_counts_more_is_nearer():
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 2, 500))) * torch.tensor([[[1.0], [4.0]]])
    factors = [factorise(torch.eye(500))]
    errors = []
    for rows in ([1.0, 1.0], [100.0, 1.0]):
        form = SHARING.shared(weight, factors, torch.tensor([rows]).double(), 3)
        errors.append(float((weight[0, 0] - torch.from_numpy(dense(form))[0]).square().sum()))
    assert errors[1] < 0.5 * errors[0]


def test_groups_share_one_codebook():
    weight = torch.from_numpy(np.random.default_rng(1).normal(size=(6, 2, 9)))
    matrix, rows = moment(9, groups=6), torch.ones(6, 2).double()
    factors = factorise_groups(matrix, damp=0.0)
    fed, plain = (SHARING.with_settings(feedback=f).shared(weight, factors, rows, 3) for f in (True, False))
    assert fed.indices.shape == (12, 9)
    assert len(fed.values) == 8
    assert loss(weight, fed, matrix, rows) < loss(weight, plain, matrix, rows)
    # One group is the same as no groups.
    alone = SHARING.shared(weight[:1], factors[:1], rows[:1], 3)
    single = SHARING.shared(weight[:1], [factorise(matrix[0], damp=0.0)], rows[:1], 3)
    assert (alone.indices == single.indices).all()


def test_wide_layers_are_taken_in_blocks():
    x = torch.from_numpy(np.random.default_rng(2).normal(size=(20, 90)))
    weight, rows = torch.from_numpy(np.random.default_rng(4).normal(size=(1, 8, 90))), torch.ones(1, 8).double()
    factors = [factorise_rows(x, damp=0.01, width=40)]
    matrix = (x.T @ x)[None]
    fed, plain = (SHARING.with_settings(feedback=f).shared(weight, factors, rows, 2) for f in (True, False))
    assert loss(weight, fed, matrix, rows) < loss(weight, plain, matrix, rows)


def test_an_input_that_was_never_seen_keeps_its_weights_near():
    matrix = torch.eye(20).double()
    matrix[7, 7] = 0.0
    weight, rows = torch.from_numpy(np.random.default_rng(5).normal(size=(1, 30, 20))), torch.ones(1, 30).double()
    form = SHARING.shared(weight, [factorise(matrix)], rows, 5)
    away = (weight[0] - torch.from_numpy(dense(form))).abs()
    assert float(away[:, 7].max()) < 0.5


def test_few_values_are_kept_exactly():
    weight = torch.tensor([[[0.5, -0.25, 0.5], [0.0, 0.5, -0.25]]]).double()
    form = SHARING.shared(weight, [factorise(torch.eye(3))], torch.ones(1, 2).double(), 4)
    assert form.values.tolist() == [-0.25, 0.0, 0.5]
    assert (dense(form) == weight[0].numpy()).all()
    assert form.bits == 2
    assert form.centre == 1


@pytest.mark.parametrize("wrong", [{"bits": 9}, {"bits": -1}, {"passes": 0}, {"points": 10}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match="must be"):
        SHARING.with_settings(**wrong)
