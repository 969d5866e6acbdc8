"""What a weight will cost: the adaptive coder's rate as a table, for rounding that weighs bits against error.

    e_ij = row mean · column mean / overall mean of |w|;   class = four an octave of e   (as in contexts.py)
    bits(w, class) = −log2 P(|w| | class) + [w ≠ 0],   P from counts in the class smoothed towards Laplace's of that e

The coder learns e and P while it goes; this table knows them beforehand, from a first rounding, and stays fixed, so it
is a function of value and class alone: what an alternative rounding of one weight would cost, all others left as they
are. Floats are fine here: nothing of it is ever decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int, Int64

# Weights whose worth the prior has in each class.
_PRIOR_WORTH = 32.0
# Scales below 2^-12 and above 2^20, four an octave: as in tables.py.
_LOWEST, _CLASSES = -48, 128
# Largest size with an entry of its own; larger ones grow by the Laplace tail's bits a step.
_MOST_SIZES = 64


@dataclass(frozen=True)
class CostModel:
    """Bits of a weight by its class.

    classes: of every weight of the matrix that was first rounded.
    table: bits of |w| = 0, 1, 2, …, sign included; classes × sizes.
    slope: bits of every step beyond the table's last size, a class.
    """

    classes: Int64[np.ndarray, "rows columns"]
    table: Float64[np.ndarray, "classes sizes"]
    slope: Float64[np.ndarray, " classes"]

    def bits(
        self, values: Int[np.ndarray, "*shape"], classes: Int[np.ndarray, "*shape"]
    ) -> Float64[np.ndarray, "*shape"]:
        """Bits of each value in its class.

        >>> model = cost_model(np.array([[0, 0, 0, 1], [0, -1, 0, 0]]))
        >>> zero, one, many = model.bits(np.array([0, 1, 9]), model.classes[0, :3])
        >>> bool(zero < one < many)
        True
        """
        last = self.table.shape[1] - 1
        sizes = np.abs(values.astype(np.int64))
        inside = np.minimum(sizes, last)
        return self.table[classes, inside] + (sizes - inside) * self.slope[classes]


def cost_model(values: Int[np.ndarray, "rows columns"], *, even: bool = False) -> CostModel:
    """The rate of weights like these.

    Args:
        values: a first rounding of the matrix.
        even: one scale for all of them, as for a bias, whose rows and columns are single values.

    Returns:
        a table over classes of scale, and the class of every weight.

    >>> cost_model(np.zeros((2, 2), np.int32)).classes.shape
    (2, 2)
    """
    sizes = np.abs(values.astype(np.int64))
    overall = sizes.mean() if sizes.size else 0.0
    # Half a count in each mean: a row of zeros may still take a one.
    rows = (sizes.sum(axis=1) + 0.5) / (sizes.shape[1] + 1)
    columns = (sizes.sum(axis=0) + 0.5) / (sizes.shape[0] + 1)
    overall = max(overall, 0.5 / (sizes.size + 1))
    scale = np.full(sizes.shape, overall) if even else np.outer(rows, columns) / overall
    classes = np.clip(np.floor(4 * np.log2(scale)).astype(np.int64) - _LOWEST, 0, _CLASSES - 1)
    most = min(int(sizes.max(initial=0)) + 1, _MOST_SIZES)
    chances, slope = _laplace(most)
    places = classes * (most + 2) + np.minimum(sizes, most + 1)
    counts = np.bincount(places.ravel(), minlength=_CLASSES * (most + 2)).reshape(_CLASSES, most + 2)
    mixed = counts + _PRIOR_WORTH * chances
    table = -np.log2(mixed[:, :-1] / mixed.sum(axis=1, keepdims=True))
    table[:, 1:] += 1.0
    return CostModel(classes, table, slope)


def _laplace(most: int) -> tuple[np.ndarray, np.ndarray]:
    """Chances of |w| = 0 … most and beyond, by class, and the tail's bits a step.

    P(|w| ≥ k) = t·ρ^(k−1) with ρ = t² and mean t/(1 − t²): a Laplace variable rounded to nearest.
    """
    mean = 2.0 ** ((np.arange(_CLASSES) + _LOWEST + 0.5) / 4)[:, None]
    first = 2 * mean / (np.sqrt(1 + 4 * mean * mean) + 1)
    at_least = np.concatenate([np.ones_like(first), first ** (2 * np.arange(most + 1) + 1)], axis=1)
    chances = np.maximum(np.append(-np.diff(at_least, axis=1), at_least[:, -1:], axis=1), 1e-9)
    return chances, np.minimum(-2 * np.log2(first[:, 0]), 40.0)
