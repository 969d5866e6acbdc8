"""Mostly zeros: how far apart the others lie, and what they are, each with a Huffman code of its own.

    0 0 0 5 0 −7 0 0   →   gaps 3 1 (zeros before each value), values 5 −7

A run of zeros takes one short code instead of one bit a zero. A gap longer than a code may say is a filler, `LONGEST`
zeros with no value, and the gap that is left. After the sparse storage of Deep Compression (Han et al. 2016,
arXiv:1510.00149, section 2), which fills up with zeros of the values.

Layout: varint number of gaps; varint bytes of the gaps; the gaps; the values, both as in `smidgen.coding.huffman`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32

from smidgen.coding.huffman import decode_huffman, encode_huffman
from smidgen.coding.varint import read_varint, write_varint
from smidgen.errors import LoadError

LONGEST = 255  # zeros a filler stands for


def encode_runs(values: Int32[np.ndarray, " count"]) -> bytes | None:
    """Code values; None where none is other than zero, or where they are of too many kinds.

    >>> data = encode_runs(np.array([0, 0, 0, 5, 0, -7, 0, 0], np.int32))
    >>> decode_runs(data, 8).tolist()
    [0, 0, 0, 5, 0, -7, 0, 0]
    """
    places = np.flatnonzero(values)
    if not len(places):
        return None
    gaps = np.diff(places, prepend=-1) - 1
    fillers, rest = gaps // LONGEST, gaps % LONGEST
    ends = np.cumsum(fillers + 1) - 1  # where each value's own gap stands among the fillers
    told = np.full(int(ends[-1]) + 1, LONGEST, np.int32)
    told[ends] = rest
    coded = encode_huffman(values[places])
    between = encode_huffman(told)
    if coded is None or between is None:
        return None
    return write_varint(len(told)) + write_varint(len(between)) + between + coded


def decode_runs(data: bytes, count: int) -> Int32[np.ndarray, " count"]:
    """Inverse of `encode_runs`.

    Raises:
        LoadError: no encoder writes this stream.
    """
    number, at = read_varint(data, 0)
    size, at = read_varint(data, at)
    if not 0 < number <= 2 * count or at + size > len(data):
        raise LoadError(f"runs: {number} gaps in {count} values; fetch the file again")
    told = decode_huffman(data[at : at + size], number).astype(np.int64)
    if int(told.min()) < 0 or int(told.max()) > LONGEST or told[-1] == LONGEST:
        raise LoadError("runs: a gap that there is none of; fetch the file again")
    steps = np.where(told == LONGEST, LONGEST, told + 1)
    places = np.cumsum(steps)[told != LONGEST] - 1
    if int(places[-1]) >= count:
        raise LoadError(f"runs: values beyond the {count} there are; fetch the file again")
    values = np.zeros(count, np.int32)
    values[places] = decode_huffman(data[at + size :], len(places))
    return values
