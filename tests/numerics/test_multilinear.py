"""The shared solver: closed-form halves, conjugate gradients, the metric."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.numerics.multilinear import (
    Problem,
    Split,
    check,
    extended,
    metric_loss,
    orthonormal,
    posed,
    solve_inner,
    solve_outer,
    swept,
    whitened,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(side: int, seed: int = 0) -> Tensor:
    half = normal(side, side + 3, seed=seed)
    return half @ half.T / side


def problem(out: int = 7, c: int = 5, k: int = 3, seed: int = 0) -> Problem:
    moment = positive(c * k, seed + 1).reshape(c, k, c, k)
    return posed(normal(out, c, k, seed=seed), moment, positive(out, seed + 2))


def kernel(split: Split) -> Tensor:
    whole = split.core if split.outer is None else torch.tensordot(split.outer, split.core, 1)
    return torch.einsum("tak,ac->tck", whole, split.inner)


def loss(split: Split, seed: int = 0, k: int = 3) -> Tensor:
    """As the metric's definition has it, differentiable."""
    out, c = split.core.shape[0] if split.outer is None else len(split.outer), split.inner.shape[1]
    change = (normal(out, c, k, seed=seed) - kernel(split)).reshape(out, c * k)
    return 0.5 * torch.trace(positive(out, seed + 2) @ change @ positive(c * k, seed + 1) @ change.T)


def test_the_metric_by_hand() -> None:
    change = torch.tensor([[1.0, 2.0]])
    assert metric_loss(change) == 2.5
    assert metric_loss(change, torch.diag(torch.tensor([2.0, 3.0]))) == 7.0
    assert metric_loss(change, None, torch.tensor([[4.0]])) == 10.0


@pytest.mark.parametrize("rank", [None, 2])
def test_the_outer_half_states_its_loss_and_no_nearby_one_is_lower(rank: int | None) -> None:
    split = solve_outer(problem(), normal(2, 5, seed=9), rank)
    assert split.loss == pytest.approx(float(loss(split)), rel=1e-8)
    core = split.core.clone().requires_grad_()
    outer = None if split.outer is None else split.outer.clone().requires_grad_()
    wanted = [core] if outer is None else [core, outer]
    for gradient in torch.autograd.grad(loss(Split(split.inner, core, outer, 0.0)), wanted):
        assert float(gradient.abs().max()) < 1e-7


def test_the_outer_half_is_the_best_of_its_rank() -> None:
    # With F square nothing is narrowed: then it is the SVD of G^½ W A^½.
    given_, split = problem(), solve_outer(problem(), normal(5, 5, seed=9), 2)
    values, vectors = torch.linalg.eigh(positive(15, 1))
    half = (vectors * values.sqrt()) @ vectors.T
    assert given_.root is not None
    spectrum = torch.linalg.svdvals(given_.root @ normal(7, 15) @ half)
    assert split.loss == pytest.approx(0.5 * float(spectrum[2:].square().sum()), rel=1e-7)


def test_the_inner_half_is_where_the_gradient_vanishes() -> None:
    given_, split = problem(), solve_outer(problem(), normal(2, 5, seed=9), 3)
    found = split
    for _ in range(60):
        found = Split(solve_inner(given_, found), split.core, split.outer, 0.0)
    inner = found.inner.clone().requires_grad_()
    gradient = torch.autograd.grad(loss(Split(inner, split.core, split.outer, 0.0)), inner)[0]
    assert float(gradient.abs().max()) < 1e-6
    assert float(loss(found)) < split.loss


@given(out=st.integers(1, 6), c=st.integers(1, 6), k=st.integers(1, 4), seed=st.integers(0, 50), rank=st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_sweeps_only_ever_lower_the_loss(out: int, c: int, k: int, seed: int, rank: int) -> None:
    given_ = problem(out, c, k, seed)
    rows, wanted = min(rank, c), min(rank, out)
    start = solve_outer(given_, orthonormal(given_, normal(rows, c, seed=seed)), wanted)
    losses = [start.loss] + [swept(given_, start, wanted, each, 0.0).loss for each in (1, 2, 4, 8)]
    assert losses == sorted(losses, reverse=True)
    best = swept(given_, start, wanted, 8, 0.0)
    # Near zero both are rounding of the energy.
    assert best.loss == pytest.approx(float(loss(best, seed, k)), rel=1e-6, abs=1e-8 * given_.energy)


def test_orthonormal_keeps_the_span() -> None:
    given_, inner = problem(), normal(2, 5, seed=4)
    turned = orthonormal(given_, inner)
    assert given_.channels is not None
    half = turned @ given_.channels
    torch.testing.assert_close(half @ half.T, torch.eye(2, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.linalg.lstsq(turned.T, inner.T).solution.T @ turned, inner)


def test_extending_keeps_the_rows_and_adds_new_ones() -> None:
    given_, inner = problem(), normal(2, 5, seed=4)
    tensor = whitened(given_)
    more = extended(given_, torch.einsum("tck,tdk->cd", tensor, tensor), inner, 4)
    assert torch.equal(more[:2], inner)
    assert int(torch.linalg.matrix_rank(more)) == 4
    assert solve_outer(given_, more, None).loss < solve_outer(given_, inner, None).loss


def test_shares_of_a_product_are_found_exactly() -> None:
    channels, taps = positive(5, 1), positive(3, 2)
    given_ = posed(normal(4, 5, 3), torch.einsum("cd,kl->ckdl", channels, taps), None)
    assert given_.channels is not None
    assert given_.taps is not None
    product = torch.kron(given_.channels @ given_.channels, given_.taps @ given_.taps)
    torch.testing.assert_close(product, torch.kron(channels, taps), rtol=1e-6, atol=1e-8)
    # Then the distance between whitened tensors is the metric.
    assert 0.5 * float(whitened(given_).square().sum()) == pytest.approx(given_.energy / 2, rel=1e-6)


def test_what_cannot_be_decomposed_is_refused() -> None:
    weight, bad = normal(4, 3, 3, 3), torch.full((27, 27), math.nan, dtype=torch.float64)
    check("tucker", weight, positive(27), positive(4))
    with pytest.raises(Refusal, match="tucker: the kernel holds nan or inf"):
        check("tucker", weight / 0, None, None)
    with pytest.raises(Refusal, match="the inputs' moment holds nan or inf"):
        check("tucker", weight, bad, None)
    with pytest.raises(Refusal, match="the outputs' moment holds nan or inf"):
        check("tucker", weight, None, bad[:4, :4])
    with pytest.raises(Refusal, match="empty"):
        check("tucker", weight[:, :0], None, None)
    with pytest.raises(ValueError, match=r"inputs \[9, 9\] must be \[27, 27\]"):
        check("tucker", weight, positive(9), None)
    with pytest.raises(ValueError, match=r"outputs \[3, 3\] must be \[4, 4\]"):
        check("tucker", weight, None, positive(3))
