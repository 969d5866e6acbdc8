"""Shared weights in an archive: the values of all codebooks as floats, indices as integers about the likeliest one.

The model that codes integers expects small ones around zero, of both signs. So each index is stored less the index of
the value nearest to zero, which a reader finds in the codebook itself. Numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from smidgen.coding import pack_floats, unpack_floats
from smidgen.errors import LoadError
from smidgen.forms import Codebook

MOST_VALUES = 256  # an index is a byte


def centred(form: Codebook) -> np.ndarray:
    """Each index less that of the value nearest to zero, int32.

    >>> centred(Codebook(np.array([[0, 2]], np.uint8), np.array([-1.0, 0.0, 1.0], np.float32))).tolist()
    [[-1, 1]]
    """
    return form.indices.astype(np.int32) - form.centre


def codebook_of(integers: np.ndarray, values: np.ndarray) -> Codebook:
    """Inverse of `centred`.

    Raises:
        LoadError: an integer names no value.

    >>> codebook_of(np.array([[-1, 1]]), np.array([-1.0, 0.0, 1.0], np.float32)).indices.tolist()
    [[0, 2]]
    """
    indices = integers.astype(np.int64) + Codebook(np.zeros(0, np.uint8), values).centre
    if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < len(values):
        raise LoadError(f"archive: an index outside a codebook of {len(values)} values; fetch the file again")
    return Codebook(indices.astype(np.uint8), values)


def pack_codebooks(books: Sequence[np.ndarray]) -> bytes:
    """The values of all codebooks, one after another."""
    return pack_floats(np.concatenate(books).astype(np.float32))


def unpack_codebooks(data: bytes, sizes: Sequence[int], limit: int) -> list[np.ndarray]:
    """Inverse of `pack_codebooks`.

    Raises:
        LoadError: the stream is damaged.
    """
    values = unpack_floats(data, sum(sizes), "float32", limit)
    return np.split(values, np.cumsum(sizes)[:-1])
