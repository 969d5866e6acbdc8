"""Cook-Toom transforms: m outputs of a filter of r taps with m + r − 1 multiplications instead of m · r.

    y = Aᵀ [(G g) ⊙ (Bᵀ d)],    y_o = Σ_q g_q d_{o+q},    d of m + r − 1 inputs                                    (1)

Toom and Cook multiply two polynomials by their values at m + r − 1 points and interpolate. Transposed, the product
with g becomes the filter (1): with V_k the values of k coefficients at the points, A = V_m, G = V_r, Bᵀ = V_{m+r−1}⁻ᵀ.
One point is infinity, where a polynomial's value is its leading coefficient. Two-dimensional kernels take (1) along
each axis.

Lavin and Gray, "Fast algorithms for convolutional neural networks", arXiv:1509.09308; the construction from points as
in Blahut, "Fast Algorithms for Signal Processing", 2010, chapter 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import prod

import numpy as np

# Small numbers whose powers stay small: what the outputs lose to rounding grows with them (arXiv:1803.10986, table 2).
POINTS = tuple(Fraction(p) for p in (0, 1, -1, 2, -2, "1/2", "-1/2", 4, -4, "1/4", "-1/4"))

Rows = tuple[tuple[Fraction, ...], ...]


@dataclass(frozen=True)
class Transforms:
    """The three matrices of (1), exact.

    Args:
        inputs: Bᵀ, [m+r−1, m+r−1].
        kernel: G, [m+r−1, r].
        outputs: Aᵀ, [m, m+r−1].
    """

    inputs: Rows
    kernel: Rows
    outputs: Rows

    @property
    def points(self) -> int:
        """Multiplications, m + r − 1."""
        return len(self.inputs)


def cook_toom(outputs: int, taps: int) -> Transforms:
    """The transforms of F(m, r).

    Args:
        outputs: m, computed together.
        taps: r, of the filter.

    Returns:
        Exact matrices; those of F(2, 3) and F(4, 3) are Lavin and Gray's, up to signs that cancel.

    Raises:
        ValueError: m or r below 1, or more points needed than there are.

    Paper: arXiv:1509.09308.

    >>> found = cook_toom(2, 3)
    >>> [[str(v) for v in row] for row in found.kernel]
    [['-1', '0', '0'], ['1/2', '1/2', '1/2'], ['1/2', '-1/2', '1/2'], ['0', '0', '1']]
    >>> [[int(v) for v in row] for row in found.inputs]
    [[-1, 0, 1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]]
    """
    count = outputs + taps - 1
    if outputs < 1 or taps < 1 or count - 1 > len(POINTS):
        raise ValueError(f"winograd: F({outputs}, {taps}) needs {count} points of 1 … {len(POINTS) + 1}")
    points = POINTS[: count - 1]
    interpolate = _inverse(_values(points, count))
    # Moved from the inverse into G, so that what every input is multiplied by holds no fractions where it can.
    scales = [prod((p - q for q in points if q != p), start=Fraction(1)) for p in points] + [Fraction(1)]
    return Transforms(
        tuple(tuple(row[i] * scale for row in interpolate) for i, scale in enumerate(scales)),
        tuple(tuple(v / scale for v in row) for row, scale in zip(_values(points, taps), scales, strict=True)),
        tuple(zip(*_values(points, outputs), strict=True)),
    )


def floats(rows: Rows) -> np.ndarray:
    """A matrix in float64.

    >>> floats(cook_toom(1, 1).inputs).tolist()
    [[1.0]]
    """
    return np.array([[float(v) for v in row] for row in rows])


def _values(points: tuple[Fraction, ...], coefficients: int) -> list[list[Fraction]]:
    """Values of x⁰ … at the points; at infinity that of the leading coefficient."""
    finite = [[p**power for power in range(coefficients)] for p in points]
    return [*finite, [Fraction(power == coefficients - 1) for power in range(coefficients)]]


def _inverse(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    """Gauss and Jordan, exact."""
    size = len(matrix)
    rows = [[*row, *(Fraction(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next(i for i in range(column, size) if rows[i][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [v / rows[column][column] for v in rows[column]]
        for i in range(size):
            if i != column and rows[i][column]:
                factor = rows[i][column]
                rows[i] = [v - factor * w for v, w in zip(rows[i], rows[column], strict=True)]
    return [row[size:] for row in rows]
