"""Spatial SVD: exact cases, the metric against the plain fit, curves, both orders, broken inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d

from smidgen.errors import Refusal
from smidgen.numerics.multilinear import metric_loss
from smidgen.numerics.spatial import SpatialFit, spatial_curve, spatial_rank


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def positive(side: int, seed: int = 0, dead: int = 0) -> Tensor:
    half = normal(side, side + 3, seed=seed)
    half[side - dead :] = 0.0
    return half @ half.T / side


def low_rank(out: int, inp: int, kernel: tuple[int, int], rank: int) -> Tensor:
    return torch.einsum("trx,rsy->tsyx", normal(out, rank, kernel[1], seed=1), normal(rank, inp, kernel[0], seed=2))


def turned(moment: Tensor, inp: int, y: int, x: int) -> Tensor:
    """The moment of the transposed image."""
    return moment.reshape(inp, y, x, inp, y, x).permute(0, 2, 1, 3, 5, 4).reshape(moment.shape)


def change(weight: Tensor, fit: SpatialFit) -> Tensor:
    return (weight - fit.full()).flatten(1)


@pytest.mark.parametrize("kernel", [(3, 3), (5, 3), (2, 4), (1, 3)])
@pytest.mark.parametrize("seen", [False, True])
def test_a_kernel_of_the_rank_is_recovered(kernel: tuple[int, int], seen: bool) -> None:
    weight = low_rank(9, 8, kernel, 3)
    metric = {"inputs": positive(weight[0].numel(), 3), "outputs": positive(9, 4)} if seen else {}
    fit = spatial_curve(weight, [3], **metric)[0]
    torch.testing.assert_close(fit.full(), weight, rtol=1e-5, atol=1e-5)
    assert (fit.rank, fit.first.shape, fit.second.shape) == (3, (3, 8, kernel[0]), (9, 3, kernel[1]))


@pytest.mark.parametrize("vertical_first", [True, False])
@pytest.mark.parametrize("seen", [False, True])
def test_the_full_rank_loses_nothing(vertical_first: bool, seen: bool) -> None:
    weight = normal(6, 4, 3, 5)
    rank = spatial_rank(weight.shape, vertical_first=vertical_first)
    assert rank == (12 if vertical_first else 18)
    metric = {"inputs": positive(60, 3), "outputs": positive(6, 4)} if seen else {}
    fit = spatial_curve(weight, [rank], vertical_first=vertical_first, **metric)[0]
    assert fit.loss < 1e-9 * metric_loss(weight.flatten(1), *metric.values())


@pytest.mark.parametrize("vertical_first", [True, False])
def test_the_plain_fit_is_the_svd_of_the_reshaped_kernel(vertical_first: bool) -> None:
    weight = normal(6, 5, 3, 4)
    axes = (1, 2, 0, 3) if vertical_first else (1, 3, 0, 2)
    matrix = weight.permute(axes).flatten(0, 1).flatten(1)
    spectrum = torch.linalg.svdvals(matrix).square()
    ranks = [1, 4, 9, 14]
    for rank, fit in zip(ranks, spatial_curve(weight, ranks, vertical_first=vertical_first), strict=True):
        assert fit.loss == pytest.approx(0.5 * float(spectrum[rank:].sum()))
        assert fit.converged


def test_with_the_outputs_alone_it_is_the_svd_after_their_root() -> None:
    weight, outputs = normal(6, 5, 3, 4), positive(6)
    values, vectors = torch.linalg.eigh(outputs)
    half = (vectors * values.sqrt()) @ vectors.T
    matrix = torch.tensordot(half, weight, 1).permute(1, 2, 0, 3).flatten(0, 1).flatten(1)
    spectrum = torch.linalg.svdvals(matrix).square()
    assert spatial_curve(weight, [4], outputs=outputs)[0].loss == pytest.approx(0.5 * float(spectrum[4:].sum()))


def test_a_moment_that_is_a_product_has_a_closed_form() -> None:
    # A on (s, y) times A on x: the SVD of the whitened matrix, which no sweep can better.
    channels, taps = positive(15, 1), positive(4, 2)
    weight, inputs = normal(6, 5, 3, 4), torch.kron(channels, taps)
    fits = [spatial_curve(weight, [4], inputs=inputs, sweeps=sweeps)[0] for sweeps in (0, 10)]
    halves = []
    for moment in (channels, taps):
        values, vectors = torch.linalg.eigh(moment)
        halves.append((vectors * values.sqrt()) @ vectors.T)
    whitened = halves[0] @ weight.reshape(6, 15, 4) @ halves[1]
    spectrum = torch.linalg.svdvals(whitened.transpose(0, 1).flatten(1)).square()
    for fit in fits:
        assert fit.loss == pytest.approx(0.5 * float(spectrum[4:].sum()), rel=1e-6)


def test_the_pair_of_convolutions_is_the_kernel() -> None:
    weight, image = normal(6, 4, 3, 5), normal(2, 4, 9, 9, seed=5)
    for vertical_first in (True, False):
        fit = spatial_curve(weight, [7], vertical_first=vertical_first)[0]
        axis = 3 if vertical_first else 2
        middle = conv2d(image, fit.first.unsqueeze(axis))
        torch.testing.assert_close(
            conv2d(middle, fit.second.unsqueeze(5 - axis)), conv2d(image, fit.full()), rtol=1e-9, atol=1e-9
        )


def test_the_other_order_is_the_transposed_kernel() -> None:
    weight, inputs, outputs = normal(6, 4, 3, 5), positive(60, 1), positive(6, 2)
    one = spatial_curve(weight, [3, 6], inputs=inputs, outputs=outputs, vertical_first=False)
    moment = turned(inputs, 4, 3, 5)
    other = spatial_curve(weight.transpose(2, 3), [3, 6], inputs=moment, outputs=outputs)
    for a, b in zip(one, other, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-9)
        torch.testing.assert_close(a.full(), b.full().transpose(2, 3))


@given(
    out=st.integers(1, 7), inp=st.integers(1, 6), kernel=st.sampled_from([(3, 3), (1, 4), (2, 1), (2, 3)]),
    seed=st.integers(0, 50), dead=st.integers(0, 3), share=st.floats(0.1, 0.9), vertical_first=st.booleans(),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_the_metric_never_loses_to_the_plain_fit(
    out: int, inp: int, kernel: tuple[int, int], seed: int, dead: int, share: float, vertical_first: bool
) -> None:
    weight = normal(out, inp, *kernel, seed=seed)
    n = weight[0].numel()
    metric = positive(n, seed + 1, dead=min(dead, n - 1)), positive(out, seed + 2)
    rank = max(1, int(share * spatial_rank(weight.shape, vertical_first=vertical_first)))
    plain = spatial_curve(weight, [rank], vertical_first=vertical_first)[0]
    fit = spatial_curve(weight, [rank], inputs=metric[0], outputs=metric[1], vertical_first=vertical_first)[0]
    slack = 1e-8 * metric_loss(weight.flatten(1), *metric)
    assert fit.loss <= metric_loss(change(weight, plain), *metric) + slack
    assert fit.loss == pytest.approx(metric_loss(change(weight, fit), *metric), rel=1e-6, abs=slack)


@given(ranks=st.sets(st.integers(1, 15), min_size=1, max_size=6).map(sorted), seed=st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_more_rank_never_loses_more(ranks: list[int], seed: int) -> None:
    weight = normal(6, 5, 3, 3, seed=seed)
    fits = spatial_curve(weight, ranks, inputs=positive(45, seed + 1), outputs=positive(6, seed + 2), sweeps=2)
    losses = [fit.loss for fit in fits]
    assert losses == sorted(losses, reverse=True)
    assert [fit.rank for fit in fits] == ranks


def test_sweeps_lower_the_loss_and_stop() -> None:
    weight, metric = normal(12, 8, 3, 3), {"inputs": positive(72, 1), "outputs": positive(12, 2)}
    fits = [spatial_curve(weight, [6], sweeps=sweeps, **metric)[0] for sweeps in (0, 1, 3, 200)]
    losses = [fit.loss for fit in fits]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.99 * losses[0]
    assert not fits[0].converged
    assert fits[-1].converged
    assert fits[-1].sweeps < 200


def test_filters_fall_in_what_they_carry_and_share_it_evenly() -> None:
    fit = spatial_curve(normal(12, 8, 3, 3), [6])[0]
    first, second = fit.first.flatten(1).norm(dim=1), fit.second.norm(dim=(0, 2))
    torch.testing.assert_close(first, second)
    assert bool((first.diff() <= 1e-9).all())


def test_it_is_deterministic_keeps_the_dtype_and_the_input() -> None:
    weight = normal(8, 6, 3, 3, dtype=torch.float32)
    before, moment = weight.clone(), positive(54).to(torch.float32)
    one, other = (spatial_curve(weight, [4], inputs=moment)[0] for _ in range(2))
    assert torch.equal(weight, before)
    assert torch.equal(one.first, other.first)
    assert torch.equal(one.second, other.second)
    assert one.first.dtype == torch.float32


def test_zeros_and_moments_of_zeros_stay_finite() -> None:
    fit = spatial_curve(torch.zeros(4, 3, 3, 3), [2], inputs=positive(27).to(torch.float32))[0]
    assert fit.loss == 0.0
    assert not fit.full().any()
    fit = spatial_curve(normal(4, 3, 3, 3), [2], inputs=torch.zeros(27, 27), outputs=torch.zeros(4, 4))[0]
    assert fit.loss == 0.0
    assert bool(torch.isfinite(fit.full()).all())


def test_bad_inputs_say_what_is_wrong() -> None:
    weight = normal(4, 3, 3, 3)
    for bad in ([0], [10], [2, 2], [3, 1]):
        with pytest.raises(ValueError, match="must rise strictly within 1 … 9"):
            spatial_curve(weight, bad)
    with pytest.raises(Refusal, match="nan or inf"):
        spatial_curve(weight / 0, [1])
    for shape in ((4, 3), (4, 3, 3), (4, 3, 3, 3, 3)):
        with pytest.raises(Refusal, match="has not two axes"):
            spatial_curve(normal(*shape), [1])
    with pytest.raises(ValueError, match="must be"):
        spatial_curve(weight, [1], outputs=positive(3))
