"""Tensors of floats with many zeros in an archive: a coded mask, and the values that are not zero.

Any tensor takes part, whoever made its zeros. The mask is an integer of 0 or 1 a value, coded by the model that codes
weights, which learns of rows and columns that are emptier than others. Only +0.0 counts as zero, so the bits come back.
Numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from smidgen.coding import CODERS, pack_many, unpack_many
from smidgen.errors import LoadError

# Values from which a mask pays for its record, and the share of them that must be zero.
SMALLEST, LEAST_SHARE = 256, 1 / 8


def split_zeros(raw: bytes, nbytes: int) -> tuple[np.ndarray, bytes] | None:
    """Which values are there, and those alone; None where too few are zero.

    Args:
        raw: values one after another.
        nbytes: of one of them.

    >>> there, values = split_zeros(np.array([0, 0, 1.5] * 100, "<f4").tobytes(), 4)
    >>> there[:3].tolist(), len(values)
    ([False, False, True], 400)
    """
    items = np.frombuffer(raw, f"<u{nbytes}")
    if len(items) < SMALLEST:
        return None
    there = items != 0
    if len(items) - int(there.sum()) < LEAST_SHARE * len(items):
        return None
    return there, items[there].tobytes()


def join_zeros(there: np.ndarray, values: bytes, nbytes: int) -> bytes:
    """Inverse of `split_zeros`.

    >>> join_zeros(np.array([False, True]), b"ab", 2)
    b'\\x00\\x00ab'
    """
    items = np.zeros(there.size, f"<u{nbytes}")
    items[there.ravel()] = np.frombuffer(values, f"<u{nbytes}")
    return items.tobytes()


def pack_masks(masks: Sequence[np.ndarray], coders: Sequence[str] = CODERS) -> bytes:
    """Masks of 0 and 1, one after another."""
    return pack_many([mask.astype(np.int32) for mask in masks], coders)


def unpack_masks(data: bytes, shapes: Sequence[tuple[int, ...]], counts: Sequence[int], limit: int) -> list[np.ndarray]:
    """Inverse of `pack_masks`.

    Args:
        data: the stream.
        shapes: of the masks.
        counts: of the values that each says are there.
        limit: values allowed in all of them.

    Raises:
        LoadError: the stream is damaged, or is not of masks of so many values.
    """
    found = unpack_many(data, shapes, limit)
    for mask, count in zip(found, counts, strict=True):
        if (mask.size and not 0 <= int(mask.min()) <= int(mask.max()) <= 1) or int(mask.sum()) != count:
            raise LoadError(f"archive: a mask of {mask.size} values is damaged; fetch the file again")
    return [mask.astype(bool) for mask in found]
