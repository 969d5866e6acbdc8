"""EVBMF: known rank and noise, the published formulas, invariances, broken inputs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.numerics.vbmf import energy_rank, evbmf, evbmf_rank, free_energy, tucker2_ranks


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noisy(rows: int, columns: int, rank: int, deviation: float, seed: int = 0) -> Tensor:
    signal = normal(rows, rank, seed=seed) @ normal(rank, columns, seed=seed + 1)
    return signal + deviation * normal(rows, columns, seed=seed + 2)


def orthogonal(side: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(side, side, seed=seed)).Q


@pytest.mark.parametrize("shape", [(40, 40), (30, 200), (200, 30), (64, 576), (10, 3000)])
@pytest.mark.parametrize("rank", [1, 5])
@pytest.mark.parametrize("deviation", [0.01, 0.5])
def test_known_rank_and_noise_are_found(shape: tuple[int, int], rank: int, deviation: float) -> None:
    found = evbmf(noisy(*shape, rank, deviation))
    assert found.rank == rank
    # The estimate's own deviation is about √(2/entries) of σ², and the signal eats rank·(L + M) of the entries.
    assert found.noise_variance == pytest.approx(deviation**2, rel=0.15)
    assert (found.u.shape, found.s.shape, found.vh.shape) == ((shape[0], rank), (rank,), (rank, shape[1]))


@pytest.mark.parametrize("shape", [(40, 40), (30, 200), (200, 30), (1, 50)])
def test_pure_noise_has_rank_zero(shape: tuple[int, int]) -> None:
    for seed in range(5):
        found = evbmf(3 * normal(*shape, seed=seed))
        assert found.rank == 0
        assert found.s.numel() == 0
        assert found.noise_variance == pytest.approx(float((3 * normal(*shape, seed=seed)).square().mean()))


def test_the_part_kept_is_nearer_to_the_signal_than_the_matrix_or_its_svd() -> None:
    signal = normal(40, 3) @ normal(3, 120, seed=1)
    matrix = signal + 2.0 * normal(40, 120, seed=2)
    found = evbmf(matrix)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    errors = [
        float((each - signal).norm()) for each in ((found.u * found.s) @ found.vh, (u[:, :3] * s[:3]) @ vh[:3], matrix)
    ]
    assert errors == sorted(errors)


def test_shrinkage_and_threshold_by_hand() -> None:
    # L = M = 1·2: α = 1, τ̲ solves ln(1 + τ)/τ = ½ (2.51286…), x̲ = (1 + τ̲)(1 + 1/τ̲) = 4.91081…
    tau = 2.5128624172523394
    threshold = math.sqrt(2 * (1 + tau) * (1 + 1 / tau))
    above, below = (torch.diag(torch.tensor([each, 0.0], dtype=torch.float64)) for each in (1 + 1e-6, 1 - 1e-6))
    assert evbmf(threshold * above, 1.0).rank == 1
    assert evbmf(threshold * below, 1.0).rank == 0
    # s = 4, L = M = 2, σ² = 1: 1 − 4/16 = ¾, √(9/16 − 4·4/256) = √½, ŝ = 2 (¾ + √½)
    found = evbmf(torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64)), 1.0)
    assert found.s.tolist() == pytest.approx([2 * (0.75 + math.sqrt(0.5))])
    assert found.noise_variance == 1.0


def test_the_root_is_near_the_published_approximation() -> None:
    # τ̲ ≈ 2.5129 √α, exact at α = 1.
    for rows, columns in ((50, 50), (50, 100), (50, 1000)):
        alpha = rows / columns
        tau = 2.5129 * math.sqrt(alpha)
        published = math.sqrt(columns * (1 + tau) * (1 + alpha / tau))
        grid = torch.linspace(0.97 * published, 1.03 * published, 200, dtype=torch.float64)
        for value, kept in ((grid[0], 0), (grid[-1], 1)):
            matrix = torch.zeros(rows, columns, dtype=torch.float64)
            matrix[0, 0] = value
            assert evbmf_rank(matrix, 1.0) == kept


@given(
    rows=st.integers(2, 25), columns=st.integers(2, 25), rank=st.integers(0, 6), deviation=st.floats(0.01, 3.0),
    seed=st.integers(0, 20),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_no_noise_variance_on_a_grid_has_less_free_energy(
    rows: int, columns: int, rank: int, deviation: float, seed: int
) -> None:
    matrix = noisy(rows, columns, rank, deviation, seed)
    found = evbmf(matrix)
    values = torch.linalg.svdvals(matrix)
    upper = float(values.square().mean()) / max(rows, columns)
    lowest = free_energy(values, max(rows, columns), found.noise_variance)
    for share in torch.logspace(-2.5, 0, 300, dtype=torch.float64).tolist():
        assert lowest <= free_energy(values, max(rows, columns), share * upper) + 1e-9 * abs(lowest)


@given(rows=st.integers(2, 20), columns=st.integers(2, 20), scale=st.floats(1e-12, 1e12), seed=st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_scale_transpose_and_rotation_change_nothing_else(rows: int, columns: int, scale: float, seed: int) -> None:
    matrix = noisy(rows, columns, 2, 0.1, seed)
    found = evbmf(matrix)
    turned = orthogonal(rows, seed) @ matrix @ orthogonal(columns, seed + 1)
    for other, factor in ((matrix * scale, scale), (matrix.T, 1.0), (turned, 1.0)):
        again = evbmf(other)
        assert again.rank == found.rank == evbmf_rank(other)
        torch.testing.assert_close(again.s, found.s * factor, rtol=1e-6, atol=0.0)
        assert again.noise_variance == pytest.approx(found.noise_variance * factor**2, rel=1e-5)


def test_transposing_swaps_the_factors() -> None:
    matrix = noisy(12, 30, 2, 0.1)
    one, other = evbmf(matrix), evbmf(matrix.T)
    torch.testing.assert_close((one.u * one.s) @ one.vh, ((other.u * other.s) @ other.vh).T)


def test_an_exact_matrix_keeps_its_rank_and_has_no_noise() -> None:
    for shape in ((20, 50), (50, 20), (20, 20)):
        found = evbmf(noisy(*shape, 4, 0.0))
        assert found.rank == 4
        assert found.noise_variance < 1e-25


def test_zeros_have_rank_zero() -> None:
    found = evbmf(torch.zeros(4, 7))
    assert (found.rank, found.noise_variance, found.u.shape) == (0, 0.0, (4, 0))
    assert found.u.dtype == torch.float32
    assert evbmf(torch.zeros(4, 7), 2.0).noise_variance == 2.0


def test_without_noise_nothing_is_shrunk() -> None:
    found = evbmf(torch.diag(torch.tensor([3.0, 1.0, 0.0])), 0.0)
    assert found.rank == 2
    assert found.s.tolist() == [3.0, 1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_matrix_that_is_not_finite_is_refused(bad: float) -> None:
    matrix = torch.ones(3, 4)
    matrix[1, 1] = bad
    for decompose in (evbmf, evbmf_rank):
        with pytest.raises(Refusal, match="nan or inf"):
            decompose(matrix)
    with pytest.raises(Refusal, match="empty"):
        evbmf(torch.ones(0, 4))


def test_a_bad_noise_variance_is_an_error() -> None:
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="noise_variance"):
            evbmf(torch.ones(2, 2), bad)
        with pytest.raises(ValueError, match="noise_variance"):
            evbmf_rank(torch.ones(2, 2), bad)


@pytest.mark.parametrize("kernel", [(3, 3), (5,), (3, 3, 3)])
def test_tucker_ranks_of_a_noisy_core(kernel: tuple[int, ...]) -> None:
    core = normal(6, 4, *kernel)
    weight = torch.einsum("ob,ba...,ai->oi...", normal(40, 6, seed=1), core, normal(4, 32, seed=2))
    weight = weight + 0.05 * normal(*weight.shape, seed=3)
    assert tucker2_ranks(weight) == (4, 6)


def test_energy_rank_by_hand() -> None:
    values = torch.tensor([2.0, 1.0, 1.0, 0.0])  # energies 4, 1, 1, 0
    assert [energy_rank(values, share) for share in (0.5, 4 / 6, 0.7, 5 / 6 + 1e-6, 1.0)] == [1, 1, 2, 3, 3]
    assert energy_rank(torch.zeros(3), 0.9) == 0
    assert energy_rank(1e-30 * values, 1.0) == 3
    for bad in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="share"):
            energy_rank(values, bad)
    with pytest.raises(Refusal, match="nan or inf"):
        energy_rank(torch.tensor([math.nan]), 0.5)
