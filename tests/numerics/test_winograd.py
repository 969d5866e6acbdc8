"""Cook-Toom transforms: the published matrices, exactness over fractions, limits."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smidgen.numerics.winograd import POINTS, cook_toom, floats

# Lavin and Gray, arXiv:1509.09308, section 4.1 and 4.2: Bᵀ and Aᵀ; rows may differ in sign together with G's.
LAVIN = {
    2: ([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], [[1, 1, 1, 0], [0, 1, -1, -1]]),
    4: (
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    ),
}


@pytest.mark.parametrize("outputs", [2, 4])
def test_the_published_transforms_up_to_signs(outputs: int) -> None:
    found = cook_toom(outputs, 3)
    inputs, back = (np.array(matrix) for matrix in LAVIN[outputs])
    np.testing.assert_array_equal(np.abs(floats(found.inputs)), np.abs(inputs))
    np.testing.assert_array_equal(np.abs(floats(found.outputs)), np.abs(back))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
def test_a_filter_comes_out_exactly(outputs: int, taps: int, seed: int) -> None:
    found = cook_toom(outputs, taps)
    draw = np.random.default_rng(seed).integers(-9, 10, size=outputs + 2 * taps - 1).tolist()
    g, d = [Fraction(v) for v in draw[:taps]], [Fraction(v) for v in draw[taps:]]

    def times(matrix: tuple[tuple[Fraction, ...], ...], vector: list[Fraction]) -> list[Fraction]:
        return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]

    product = [a * b for a, b in zip(times(found.kernel, g), times(found.inputs, d), strict=True)]
    assert found.points == outputs + taps - 1
    assert times(found.outputs, product) == [sum(g[q] * d[o + q] for q in range(taps)) for o in range(outputs)]


@pytest.mark.parametrize(("outputs", "taps"), [(0, 3), (2, 0), (len(POINTS), 3)])
def test_limits_are_told(outputs: int, taps: int) -> None:
    with pytest.raises(ValueError, match=rf"F\({outputs}, {taps}\) needs"):
        cook_toom(outputs, taps)
