"""Scales on the grid 2^(k / per_octave), computed to the same bits on every machine."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

# The last is for integers of a fixed width: a network whose weights lie on a grid already, as one that was quantized
# before, keeps them (16 an octave took MobileNetV2, whose file was one of int8, from a KL of 0.006 to 0.060).
PER_OCTAVE = (1, 2, 4, 8, 16, 1024)
# float32 ends at 2^±126; beyond it a scale would be infinite or lose bits.
LARGEST_EXPONENT = 126


def scales(exponents: np.ndarray, per_octave: int) -> np.ndarray:
    """2^(k / per_octave) in float32, for integer exponents k.

    The fractions of an octave are products of repeated square roots of two: the square root is exact to the last bit
    on every machine (IEEE 754), a power is not.

    Args:
        exponents: k, any shape.
        per_octave: one of `PER_OCTAVE`.

    Raises:
        ValueError: for another grid, or an exponent beyond float32.

    >>> scales(np.array([2, 3, -4]), 2).tolist()
    [2.0, 2.8284270763397217, 0.25]
    """
    if per_octave not in PER_OCTAVE:
        raise ValueError(f"scales: per_octave={per_octave!r} must be one of {PER_OCTAVE}")
    wide = np.asarray(exponents, dtype=np.int64)
    if wide.size and int(np.abs(wide).max()) > LARGEST_EXPONENT * per_octave:
        raise ValueError(f"scales: an exponent beyond ±{LARGEST_EXPONENT} octaves; the file or the weights are damaged")
    whole, part = np.divmod(wide, per_octave)
    return np.ldexp(_fractions(per_octave)[part], whole.astype(np.int32))


def nearest_exponents(values: np.ndarray, per_octave: int) -> np.ndarray:
    """k of the nearest 2^(k / per_octave); zeros and negatives give 0.

    >>> nearest_exponents(np.array([2.0, 0.5, 0.0]), 4).tolist()
    [4, -4, 0]
    """
    wide = np.asarray(values, dtype=np.float64)
    most = LARGEST_EXPONENT * per_octave
    exponents = np.round(per_octave * np.log2(np.where(wide > 0, wide, 1.0)))
    return np.clip(exponents, -most, most).astype(np.int32)


@cache
def _fractions(per_octave: int) -> np.ndarray:
    values = [1.0] * per_octave
    step, root = per_octave // 2, math.sqrt(2.0)
    while step:
        values = [value * (root if index & step else 1.0) for index, value in enumerate(values)]
        step, root = step // 2, math.sqrt(root)
    found = np.array(values, dtype=np.float32)
    found.flags.writeable = False
    return found
