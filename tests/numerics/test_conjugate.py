"""Conjugate gradients: exact ends, descent at every step, nothing to do."""

from __future__ import annotations

import torch
from torch import Tensor

from smidgen.numerics.conjugate import conjugate_gradients


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(side: int) -> Tensor:
    half = normal(side, side + 3)
    return half @ half.T / side


def test_conjugate_gradients_end_after_as_many_steps_as_unknowns() -> None:
    matrix, right = positive(6), normal(6, seed=3)
    found = conjugate_gradients(lambda x: matrix @ x, right, normal(6, seed=4), lambda x: x, tolerance=1e-12, steps=8)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, right), rtol=1e-6, atol=1e-8)
    exact = torch.linalg.inv(matrix)
    once = conjugate_gradients(lambda x: matrix @ x, right, normal(6, seed=4), lambda x: exact @ x, steps=1)
    torch.testing.assert_close(once, torch.linalg.solve(matrix, right))


def test_conjugate_gradients_stay_where_nothing_is_left() -> None:
    found = conjugate_gradients(lambda x: 0.0 * x, torch.zeros(3), torch.ones(3), lambda x: x)
    assert found.tolist() == [1.0, 1.0, 1.0]


def test_every_step_descends() -> None:
    matrix, right = positive(12), normal(12, seed=3)

    def objective(x: Tensor) -> float:
        return float(x @ matrix @ x / 2 - right @ x)

    def after(steps: int) -> Tensor:
        start = normal(12, seed=4)
        return conjugate_gradients(lambda x: matrix @ x, right, start, lambda x: x, tolerance=0.0, steps=steps)

    ends = [objective(after(steps)) for steps in range(12)]
    assert ends == sorted(ends, reverse=True)
