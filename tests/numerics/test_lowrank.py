"""Truncated SVDs and roots of second moments: known answers, laws, broken inputs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.numerics import lowrank
from smidgen.numerics.lowrank import Method, cholesky_damped, spectral_factor, svd_truncated


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def falling(rows: int, columns: int, power: float = 1.0) -> tuple[Tensor, Tensor]:
    """A matrix with singular values 1/k^power, and those values."""
    short = min(rows, columns)
    values = torch.arange(1, short + 1, dtype=torch.float64) ** -power
    left, right = (torch.linalg.qr(normal(side, short, seed=side)).Q for side in (rows, columns))
    return left * values @ right.T, values


@pytest.mark.parametrize("method", ["full", "randomized"])
def test_a_known_spectrum_comes_back(method: Method) -> None:
    matrix, values = falling(60, 40)
    u, s, vh = svd_truncated(matrix, 40, method=method)
    torch.testing.assert_close(s, values)
    torch.testing.assert_close(u * s @ vh, matrix)


@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    rank=st.one_of(st.none(), st.integers(1, 15)),
    method=st.sampled_from(["auto", "full", "randomized"]),
)
@settings(max_examples=80, deadline=None)
def test_factors_are_orthonormal_ordered_signed_and_of_the_rank(
    rows: int, columns: int, rank: int | None, method: Method
) -> None:
    matrix = normal(rows, columns, seed=rows * 20 + columns)
    u, s, vh = svd_truncated(matrix, rank, method=method)
    keep = min(rows, columns) if rank is None else min(rank, rows, columns)
    assert (u.shape, s.shape, vh.shape) == ((rows, keep), (keep,), (keep, columns))
    unit = torch.eye(keep, dtype=torch.float64)
    torch.testing.assert_close(u.T @ u, unit)
    torch.testing.assert_close(vh @ vh.T, unit)
    assert bool((s.diff() <= 1e-12).all())
    assert bool((s >= 0).all())
    assert bool((u.gather(0, u.abs().argmax(dim=0, keepdim=True)) > 0).all())


def test_error_is_the_tail_of_the_spectrum() -> None:
    matrix, values = falling(30, 50)
    u, s, vh = svd_truncated(matrix, 10, method="full")
    assert float((matrix - u * s @ vh).square().sum()) == pytest.approx(float(values[10:].square().sum()))


def test_sampling_is_within_a_percent_of_the_best() -> None:
    matrix, values = falling(300, 200)
    u, s, vh = svd_truncated(matrix, 20, method="randomized")
    best = float(values[20:].square().sum())
    assert best <= float((matrix - u * s @ vh).square().sum()) <= 1.01 * best
    worse = svd_truncated(matrix, 20, method="randomized", power_iterations=0, oversample=0)
    assert float((matrix - worse[0] * worse[1] @ worse[2]).square().sum()) > 1.05 * best


def test_auto_samples_only_small_ranks_of_large_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    sample = lowrank._randomized

    def spy(matrix: Tensor, *rest: int) -> tuple[Tensor, Tensor, Tensor]:
        asked.append(tuple(matrix.shape))
        return sample(matrix, *rest)

    monkeypatch.setattr(lowrank, "_randomized", spy)
    svd_truncated(normal(600, 520), 20)
    svd_truncated(normal(600, 520), 300)
    svd_truncated(normal(100, 80), 2)
    svd_truncated(normal(600, 100), 2)
    assert asked == [(600, 520)]


def test_same_seed_same_sample() -> None:
    matrix = normal(80, 60)
    first, again, other = (svd_truncated(matrix, 5, method="randomized", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_the_sign_does_not_depend_on_the_path() -> None:
    matrix, _ = falling(50, 40)
    full, sampled = (svd_truncated(matrix, 3, method=method) for method in ("full", "randomized"))
    torch.testing.assert_close(full[0], sampled[0], rtol=1e-3, atol=1e-3)


def test_a_failed_svd_is_tried_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    real, tried = torch.linalg.svd, []

    def stubborn(matrix: Tensor, full_matrices: bool) -> tuple[Tensor, Tensor, Tensor]:
        tried.append(matrix.dtype)
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("did not converge")  # pyright: ignore[reportPrivateImportUsage]
        return real(matrix, full_matrices=full_matrices)

    monkeypatch.setattr(torch.linalg, "svd", stubborn)
    _, s, _ = svd_truncated(torch.diag(torch.tensor([1.0, 5.0])))
    assert tried == [torch.float32, torch.float64]
    assert s.tolist() == [5.0, 1.0]
    assert s.dtype == torch.float32


def test_zeros_and_half_precision_pass() -> None:
    assert svd_truncated(torch.zeros(4, 3))[1].tolist() == [0.0, 0.0, 0.0]
    assert svd_truncated(torch.eye(3, dtype=torch.float16))[1].dtype == torch.float32


def test_bad_matrices_and_ranks_are_errors() -> None:
    with pytest.raises(ValueError, match="rank=0"):
        svd_truncated(torch.eye(3), 0)
    with pytest.raises(Refusal, match="nan or inf"):
        svd_truncated(torch.full((2, 2), math.nan))


@given(size=st.integers(1, 8), rank=st.integers(0, 8), damp=st.sampled_from([0.0, 1e-6, 0.01, 1.0]))
@settings(max_examples=60, deadline=None)
def test_roots_square_to_the_damped_moment(size: int, rank: int, damp: float) -> None:
    half = normal(size, min(rank, size), seed=size * 10 + rank)
    moment = half @ half.T
    root, inverse = spectral_factor(moment, damp)
    unit = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(root, root.T)
    if rank == 0:
        torch.testing.assert_close(root, unit)
        torch.testing.assert_close(inverse, unit)
        return
    torch.testing.assert_close(root @ root, moment + damp * moment.diagonal().mean() * unit, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(root @ inverse @ root, root, rtol=1e-5, atol=1e-5)
    if damp:
        torch.testing.assert_close(root @ inverse, unit, rtol=1e-6, atol=1e-6)


def test_root_by_hand() -> None:
    # [[5, 4], [4, 5]] has eigenvalues 9 and 1 on the diagonals; its root is [[2, 1], [1, 2]].
    root, inverse = spectral_factor(torch.tensor([[5.0, 4.0], [4.0, 5.0]]), damp=0.0)
    torch.testing.assert_close(root, torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    torch.testing.assert_close(inverse, torch.tensor([[2.0, -1.0], [-1.0, 2.0]]) / 3)


def test_a_dead_input_is_damped_alone() -> None:
    root, inverse = spectral_factor(torch.diag(torch.tensor([4.0, 0.0])), damp=0.5)  # δ = 1
    torch.testing.assert_close(root.diagonal(), torch.tensor([math.sqrt(5.0), 1.0]))
    torch.testing.assert_close(inverse.diagonal(), torch.tensor([1 / math.sqrt(5.0), 1.0]))
    unseen = spectral_factor(torch.diag(torch.tensor([4.0, 0.0])), damp=0.0)[1]
    assert unseen.tolist() == [[0.5, 0.0], [0.0, 0.0]]


def test_a_slightly_negative_eigenvalue_counts_as_zero() -> None:
    root, inverse = spectral_factor(torch.diag(torch.tensor([1.0, -1e-9], dtype=torch.float64)), damp=0.0)
    assert root[1, 1] == 0.0
    assert inverse[1, 1] == 0.0


@given(size=st.integers(1, 8), damp=st.sampled_from([1e-6, 0.01, 1.0]))
@settings(max_examples=30, deadline=None)
def test_cholesky_of_the_damped_moment(size: int, damp: float) -> None:
    half = normal(size, size + 2, seed=size)
    moment = half @ half.T
    lower = cholesky_damped(moment, damp)
    assert torch.equal(lower, lower.tril())
    expected = moment + damp * moment.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(lower @ lower.T, expected)


def test_damping_rises_until_a_factor_exists() -> None:
    moment = torch.diag(torch.tensor([1.0, -0.5], dtype=torch.float64))  # mean |diagonal| 0.75
    lower = cholesky_damped(moment, damp=0.01)
    # 0.01·0.75 and 0.1·0.75 leave −0.5 negative, 1·0.75 does not.
    torch.testing.assert_close(lower @ lower.T, torch.diag(torch.tensor([1.75, 0.25], dtype=torch.float64)))


def test_cholesky_of_singular_and_zero_moments() -> None:
    lower = cholesky_damped(torch.ones(3, 3), damp=0.0)
    torch.testing.assert_close(lower @ lower.T, torch.ones(3, 3))
    assert torch.equal(cholesky_damped(torch.zeros(2, 2)), torch.eye(2))


@pytest.mark.parametrize("decompose", [spectral_factor, cholesky_damped])
def test_bad_moments_and_damping_are_errors(decompose: object) -> None:
    assert callable(decompose)
    with pytest.raises(ValueError, match="must not be negative"):
        decompose(torch.eye(2), -0.1)
    with pytest.raises(Refusal, match="nan or inf"):
        decompose(torch.full((2, 2), math.inf))


def test_a_moment_far_from_positive_is_refused() -> None:
    with pytest.raises(Refusal, match="positive semi-definite"):
        cholesky_damped(torch.tensor([[0.0, 1e30], [1e30, 1e-30]], dtype=torch.float64))
