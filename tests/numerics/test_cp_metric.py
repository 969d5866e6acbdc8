"""CP in the metric: exact cases, the objective, the ridge against cancelling terms, broken inputs."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.numerics.cp import CPFactors, cp_als, cp_full
from smidgen.numerics.cp_metric import CPMetricFit, cp_metric, cp_metric_curve
from smidgen.numerics.multilinear import metric_loss


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def positive(side: int, seed: int = 0, dead: int = 0) -> Tensor:
    half = normal(side, side + 3, seed=seed)
    half[side - dead :] = 0.0
    return half @ half.T / side


def low_rank(shape: tuple[int, ...], rank: int) -> Tensor:
    out, inp, *kernel = [normal(length, rank, seed=axis) for axis, length in enumerate(shape)]
    return cp_full(CPFactors(out, inp, tuple(kernel)))


def border_rank() -> Tensor:
    """a⊗a⊗b + a⊗b⊗a + b⊗a⊗a: of rank 3, yet approached without end by diverging fits of rank 2."""
    tensor = torch.zeros(2, 2, 2, dtype=torch.float64)
    tensor[0, 0, 1] = tensor[0, 1, 0] = tensor[1, 0, 0] = 1.0
    return tensor


def every(factors: CPFactors) -> list[Tensor]:
    return [factors.out, factors.inp, *factors.kernel]


def objective(weight: Tensor, fit: CPMetricFit, ridge: float) -> float:
    sizes = torch.stack([each.square().sum(dim=0) for each in every(fit.factors)]).prod(dim=0)
    return math.log(fit.loss) + ridge * float(sizes.sum() / weight.square().sum())


@pytest.mark.parametrize("shape", [(9, 8, 3, 3), (7, 6, 5), (5, 4, 3, 2, 3)])
@pytest.mark.parametrize("seen", [False, True])
def test_a_kernel_of_the_rank_is_recovered(shape: tuple[int, ...], seen: bool) -> None:
    weight = low_rank(shape, 2)
    metric = {"inputs": positive(weight[0].numel(), 3), "outputs": positive(shape[0], 4)} if seen else {}
    fit = cp_metric_curve(weight, [2], iterations=500, sweeps=300, tolerance=1e-9, **metric)[0]
    torch.testing.assert_close(cp_full(fit.factors), weight, rtol=1e-3, atol=1e-3)
    assert [each.shape for each in every(fit.factors)] == [(length, 2) for length in shape]


@given(
    shape=st.lists(st.integers(1, 5), min_size=3, max_size=4).map(tuple), rank=st.integers(1, 5),
    seed=st.integers(0, 20), dead=st.integers(0, 3), ridge=st.sampled_from([0.0, 1e-2, 0.3]),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_sweeps_only_ever_lower_the_objective(
    shape: tuple[int, ...], rank: int, seed: int, dead: int, ridge: float
) -> None:
    weight = normal(*shape, seed=seed)
    n = weight[0].numel()
    metric = {"inputs": positive(n, seed + 1, min(dead, n - 1)), "outputs": positive(shape[0], seed + 2)}
    start = cp_als(weight, rank, iterations=5).factors
    energy = metric_loss(weight.flatten(1), metric["inputs"], metric["outputs"])
    fits = [cp_metric(weight, start, sweeps=sweeps, tolerance=0.0, ridge=ridge, **metric) for sweeps in (0, 1, 2, 4)]
    for fit in fits:
        change = (weight - cp_full(fit.factors)).flatten(1)
        assert fit.loss == pytest.approx(metric_loss(change, *metric.values()))
    if fits[-1].loss > 1e-10 * energy:  # below that it is rounding
        objectives = [objective(weight, fit, ridge) for fit in fits]
        assert all(after <= before + 1e-9 for before, after in pairwise(objectives))


def test_every_update_is_where_the_gradient_vanishes() -> None:
    weight, inputs, outputs = normal(5, 4, 3, 3), positive(36, 1), positive(5, 2)
    fit = cp_metric_curve(weight, [3], inputs=inputs, outputs=outputs, sweeps=1000, tolerance=1e-13, ridge=0.01)[0]
    leaves = [each.clone().requires_grad_() for each in every(fit.factors)]
    change = (weight - torch.einsum("tr,sr,yr,xr->tsyx", *leaves)).flatten(1)
    loss = torch.trace(outputs @ change @ inputs @ change.T)
    sizes = torch.stack([each.square().sum(dim=0) for each in leaves]).prod(dim=0).sum()
    total = torch.log(loss) + 0.01 * sizes / weight.square().sum()
    for gradient in torch.autograd.grad(total, leaves):
        assert float(gradient.abs().max()) < 1e-4


def test_it_gains_on_the_plain_fit_with_a_refit() -> None:
    weight, inputs, outputs = normal(12, 8, 3, 3), positive(72, 1), positive(12, 2)
    plain = cp_als(weight, 10)
    change = (weight - cp_full(plain.factors)).flatten(1)
    fits = [cp_metric(weight, plain.factors, inputs=inputs, outputs=outputs, sweeps=sweeps) for sweeps in (0, 8)]
    assert fits[0].loss == pytest.approx(metric_loss(change, inputs, outputs))
    assert fits[0].degeneracy == pytest.approx(plain.degeneracy, rel=1e-6)
    assert fits[1].loss < 0.8 * fits[0].loss


def test_the_better_start_goes_on() -> None:
    weight, inputs, outputs = normal(12, 8, 3, 3), positive(72, 1), positive(12, 2)
    metric = {"inputs": inputs, "outputs": outputs, "sweeps": 8}
    both = cp_metric_curve(weight, [3, 9], iterations=20, **metric)
    for rank, fit in zip((3, 9), both, strict=True):
        assert fit.factors.rank == rank
        assert fit.sweeps <= 8
        alone = cp_metric(weight, cp_als(weight, rank, iterations=20).factors, **metric)
        assert fit.loss < 1.2 * alone.loss


def test_the_ridge_holds_a_diverging_fit_back() -> None:
    weight = border_rank()
    metric = {"inputs": positive(4, 1), "outputs": positive(2, 2)}
    loose, held = (
        cp_metric_curve(weight, [2], iterations=50, sweeps=50, tolerance=1e-9, ridge=ridge, **metric)[0]
        for ridge in (0.0, 1.0)
    )
    assert held.degeneracy < 0.9 * loose.degeneracy
    assert not held.degenerate


def test_it_is_deterministic_keeps_the_dtype_and_the_input() -> None:
    weight, moment = normal(8, 6, 3, 3, dtype=torch.float32), positive(54).to(torch.float32)
    before = weight.clone()
    one, other = (cp_metric_curve(weight, [4], inputs=moment, sweeps=2)[0].factors for _ in range(2))
    assert torch.equal(weight, before)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(every(one), every(other), strict=True))


def test_zeros_and_moments_of_zeros_stay_finite() -> None:
    fit = cp_metric_curve(torch.zeros(4, 3, 3), [2], inputs=positive(9).to(torch.float32))[0]
    assert (fit.loss, fit.degeneracy) == (0.0, 0.0)
    fit = cp_metric_curve(normal(4, 3, 3), [2], inputs=torch.zeros(9, 9), outputs=torch.zeros(4, 4))[0]
    assert fit.loss == 0.0
    assert bool(torch.isfinite(cp_full(fit.factors)).all())


def test_bad_inputs_say_what_is_wrong() -> None:
    weight = normal(4, 3, 3)
    with pytest.raises(Refusal, match="nan or inf"):
        cp_metric_curve(weight / 0, [1])
    with pytest.raises(Refusal, match="no kernel axis"):
        cp_metric_curve(normal(4, 3), [1])
    with pytest.raises(ValueError, match="rise strictly"):
        cp_metric_curve(weight, [2, 2])
    with pytest.raises(ValueError, match="at least 1"):
        cp_metric_curve(weight, [0])
    with pytest.raises(ValueError, match="must be"):
        cp_metric(weight, cp_als(weight, 1).factors, inputs=positive(3))
