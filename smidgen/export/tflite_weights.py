"""Weights in TFLite's order and in torch's, and the integers behind a weight of floats."""

from __future__ import annotations

import numpy as np

EXACT = 1e-3  # of a step, by which a multiple of integers may differ from them: what float32 leaves


def rows_of(values: np.ndarray, name: str) -> np.ndarray:
    """A weight as TFLite stores it, as rows ``[out, in · kernel]`` in torch's order."""
    if values.ndim != 4:
        return values.reshape(len(values), -1)
    # [out, h, w, in], depthwise [1, h, w, out]
    turned = values.transpose(3, 0, 1, 2) if name == "DEPTHWISE_CONV_2D" else values.transpose(0, 3, 1, 2)
    return turned.reshape(len(turned), -1)


def stored_as(rows: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """The inverse of `rows_of`."""
    if len(shape) != 4:
        return rows.reshape(shape)
    if name == "DEPTHWISE_CONV_2D":
        return rows.reshape(shape[3], *shape[:3]).transpose(1, 2, 3, 0)
    return rows.reshape(shape[0], shape[3], *shape[1:3]).transpose(0, 2, 3, 1)


def multiples(rows: np.ndarray, integers: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The scales that make rows of integers the given rows, or None where no scales do.

    Args:
        rows: floats ``[out, n]``.
        integers: ``[out, n]``.

    Returns:
        The integers as int8, negated where a row of them is a negative multiple, and the scales, all positive.

    >>> integers = np.array([[1, -2], [0, 3]])
    >>> stored, scale = multiples(np.array([[0.5, -1.0], [0.0, -0.75]], np.float32), integers)
    >>> stored.tolist(), scale.tolist()
    ([[1, -2], [0, -3]], [0.5, 0.25])
    >>> multiples(np.array([[0.5, -1.1], [0.0, -0.75]]), integers) is None
    True
    """
    z, w = integers.astype(np.float64), rows.astype(np.float64)
    energy = np.square(z).sum(1)
    scale = (w * z).sum(1) / np.where(energy > 0, energy, 1.0)
    fits = np.abs(w - scale[:, None] * z) <= EXACT * np.abs(scale)[:, None] + (energy == 0)[:, None] * 1e-12
    if not fits.all() or np.abs(integers).max(initial=0) > 127:
        return None
    size = np.abs(scale)
    size = np.where(size > 0, size, size.max(initial=0.0) or 1.0)
    return (integers * np.where(scale < 0, -1, 1)[:, None]).astype(np.int8), size
