"""Tucker-2: exact cases, the metric against the plain fit, curves, broken inputs."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.numerics.multilinear import metric_loss
from smidgen.numerics.tucker import Tucker2Fit, tucker2_curve


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def positive(side: int, seed: int = 0, dead: int = 0) -> Tensor:
    half = normal(side, side + 3, seed=seed)
    half[side - dead :] = 0.0
    return half @ half.T / side


def low_rank(out: int, inp: int, kernel: tuple[int, ...], ranks: tuple[int, int]) -> Tensor:
    core = normal(ranks[1], ranks[0], *kernel)
    return torch.einsum("tb,ba...,as->ts...", normal(out, ranks[1], seed=1), core, normal(ranks[0], inp, seed=2))


def change(weight: Tensor, fit: Tucker2Fit) -> Tensor:
    return (weight - fit.full()).flatten(1)


@pytest.mark.parametrize("kernel", [(3, 3), (5,), (1, 3), (2, 3, 2)])
@pytest.mark.parametrize("seen", [False, True])
def test_a_kernel_of_the_ranks_is_recovered(kernel: tuple[int, ...], seen: bool) -> None:
    weight = low_rank(9, 8, kernel, (2, 4))
    n = weight[0].numel()
    metric = {"inputs": positive(n, 3), "outputs": positive(9, 4)} if seen else {}
    fit = tucker2_curve(weight, [(2, 4)], **metric)[0]
    torch.testing.assert_close(fit.full(), weight, rtol=1e-5, atol=1e-5)
    assert fit.ranks == (2, 4)
    assert (fit.inp.shape, fit.core.shape, fit.out.shape) == ((2, 8), (4, 2, *kernel), (9, 4))


@pytest.mark.parametrize("seen", [False, True])
def test_full_ranks_lose_nothing(seen: bool) -> None:
    weight = normal(6, 5, 3, 3)
    metric = {"inputs": positive(45, 3), "outputs": positive(6, 4)} if seen else {}
    fit = tucker2_curve(weight, [(5, 6)], **metric)[0]
    assert fit.loss < 1e-9 * metric_loss(weight.flatten(1), *metric.values())
    torch.testing.assert_close(fit.full(), weight, rtol=1e-5, atol=1e-6)


def test_one_free_rank_is_a_plain_svd() -> None:
    weight = normal(6, 5, 3, 3)
    spectrum = torch.linalg.svdvals(weight.flatten(1)).square()
    unfolded = torch.linalg.svdvals(weight.transpose(0, 1).flatten(1)).square()
    assert tucker2_curve(weight, [(5, 2)])[0].loss == pytest.approx(0.5 * float(spectrum[2:].sum()))
    assert tucker2_curve(weight, [(2, 6)])[0].loss == pytest.approx(0.5 * float(unfolded[2:].sum()))


def test_it_lies_between_the_bounds_of_hosvd() -> None:
    # Each unfolding's tail is a lower bound, their sum an upper one (De Lathauwer, De Moor and Vandewalle 2000).
    weight = normal(12, 10, 3, 3)
    tails = [
        0.5 * float(torch.linalg.svdvals(each.flatten(1)).square()[4:].sum())
        for each in (weight, weight.transpose(0, 1))
    ]
    assert max(tails) <= tucker2_curve(weight, [(4, 4)])[0].loss <= sum(tails)


@given(
    out=st.integers(1, 7), inp=st.integers(1, 6), kernel=st.sampled_from([(3, 3), (4,), (1, 2), (2, 2, 2)]),
    seed=st.integers(0, 50), dead=st.integers(0, 3), share=st.floats(0.2, 0.9),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_the_metric_never_loses_to_the_plain_fit(
    out: int, inp: int, kernel: tuple[int, ...], seed: int, dead: int, share: float
) -> None:
    weight = normal(out, inp, *kernel, seed=seed)
    n = weight[0].numel()
    metric = positive(n, seed + 1, dead=min(dead, n - 1)), positive(out, seed + 2)
    pair = (math.ceil(share * inp), math.ceil(share * out))
    plain = tucker2_curve(weight, [pair])[0]
    fit = tucker2_curve(weight, [pair], inputs=metric[0], outputs=metric[1])[0]
    slack = 1e-8 * metric_loss(weight.flatten(1), *metric)
    assert fit.loss <= metric_loss(change(weight, plain), *metric) + slack
    assert fit.loss == pytest.approx(metric_loss(change(weight, fit), *metric), rel=1e-6, abs=slack)


@given(pairs=st.sets(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=6), seed=st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_larger_ranks_never_lose_more(pairs: set[tuple[int, int]], seed: int) -> None:
    ranks = list(pairs)
    weight = normal(6, 5, 3, 3, seed=seed)
    fits = tucker2_curve(weight, ranks, inputs=positive(45, seed + 1), outputs=positive(6, seed + 2), sweeps=2)
    assert [fit.ranks for fit in fits] == ranks
    for one, other in product(fits, fits):
        if one.ranks[0] <= other.ranks[0] and one.ranks[1] <= other.ranks[1]:
            assert other.loss <= one.loss


def test_sweeps_lower_the_loss_and_stop() -> None:
    weight, metric = normal(12, 8, 3, 3), {"inputs": positive(72, 1), "outputs": positive(12, 2)}
    fits = [tucker2_curve(weight, [(3, 4)], sweeps=sweeps, **metric)[0] for sweeps in (0, 1, 3, 200)]
    losses = [fit.loss for fit in fits]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.99 * losses[0]
    assert not fits[0].converged
    assert fits[-1].converged
    assert fits[-1].sweeps < 200


def test_ranks_fall_in_what_they_carry_and_the_core_holds_the_scale() -> None:
    weight = normal(12, 8, 3, 3)
    fit = tucker2_curve(weight, [(4, 5)])[0]
    for axis, (factor, norms) in enumerate(((fit.out, fit.out.norm(dim=0)), (fit.inp, fit.inp.norm(dim=1)))):
        torch.testing.assert_close(norms, torch.ones_like(norms), msg=str(factor.shape))
        carried = fit.core.movedim(axis, 0).flatten(1).square().sum(dim=1)
        assert bool((carried.diff() <= 1e-9).all())


def test_it_is_deterministic_keeps_the_dtype_and_the_input() -> None:
    weight = normal(8, 6, 3, 3, dtype=torch.float32)
    before, moment = weight.clone(), positive(54).to(torch.float32)
    one, other = (tucker2_curve(weight, [(2, 3)], inputs=moment)[0] for _ in range(2))
    assert torch.equal(weight, before)
    for name in ("inp", "core", "out"):
        assert torch.equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == torch.float32


def test_zeros_give_zeros() -> None:
    fit = tucker2_curve(torch.zeros(4, 3, 3, 3), [(2, 2)], inputs=positive(27).to(torch.float32))[0]
    assert fit.loss == 0.0
    assert not fit.full().any()


def test_a_moment_of_zeros_costs_nothing_and_stays_finite() -> None:
    fit = tucker2_curve(normal(4, 3, 3), [(2, 2)], inputs=torch.zeros(9, 9), outputs=torch.zeros(4, 4))[0]
    assert fit.loss == 0.0
    assert bool(torch.isfinite(fit.full()).all())


def test_bad_inputs_say_what_is_wrong() -> None:
    weight = normal(4, 3, 3, 3)
    for bad in ((0, 2), (2, 0), (4, 4), (3, 5)):
        with pytest.raises(ValueError, match=r"must lie within 1 … \(3, 4\)"):
            tucker2_curve(weight, [(1, 1), bad])
    with pytest.raises(Refusal, match="nan or inf"):
        tucker2_curve(weight / 0, [(1, 1)])
    with pytest.raises(Refusal, match="no kernel axis"):
        tucker2_curve(normal(4, 3), [(1, 1)])
    with pytest.raises(ValueError, match="must be"):
        tucker2_curve(weight, [(1, 1)], inputs=positive(3))
