"""Integers of b bits, back to back, the most significant bit first."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt32

from smidgen.errors import LoadError

# Values whose bits are unfolded at once: a multiple of 8, so that each part but the last ends on a byte.
_PART = 1 << 18


def pack_bits(values: UInt32[np.ndarray, " count"], bits: int) -> bytes:
    """⌈count · bits / 8⌉ bytes; the last one ends in zeros.

    Args:
        values: below 2^bits.
        bits: of one value, 0 to 32 (0: nothing is written).

    Raises:
        ValueError: the width is impossible, or a value does not fit.

    >>> pack_bits(np.array([1, 2, 3], np.uint32), 3).hex()
    '2980'
    """
    _check_width(bits)
    if values.size and int(values.max()) >> bits:
        raise ValueError(f"pack_bits: {int(values.max())} needs more than {bits} bits")
    return b"".join(_pack_part(values[at : at + _PART], bits) for at in range(0, values.size, _PART)) if bits else b""


def unpack_bits(data: bytes, bits: int, count: int) -> UInt32[np.ndarray, " count"]:
    """Inverse of `pack_bits`.

    Raises:
        LoadError: the data are longer or shorter than `count` values, or their last bits are not zero.
        ValueError: the width is impossible.

    >>> unpack_bits(bytes.fromhex("2980"), 3, 3).tolist()
    [1, 2, 3]
    """
    _check_width(bits)
    if count < 0 or len(data) != -(-count * bits // 8):
        raise LoadError(f"bits: {len(data)} bytes do not hold {count} values of {bits} bits; fetch the file again")
    values = np.zeros(count, np.uint32)
    whole = np.frombuffer(data, np.uint8)
    for at in range(0, count if bits else 0, _PART):
        part = whole[at * bits // 8 : -(-min(at + _PART, count) * bits // 8)]
        values[at : at + _PART] = _unpack_part(part, bits, min(_PART, count - at))
    spare = -count * bits % 8
    if spare and data[-1] & (1 << spare) - 1:
        raise LoadError("bits: the last byte does not end in zeros; fetch the file again")
    return values


def _check_width(bits: int) -> None:
    if not 0 <= bits <= 32:
        raise ValueError(f"bits: a width of {bits} is not in 0 … 32")


def _pack_part(values: np.ndarray, bits: int) -> bytes:
    unfolded = np.unpackbits(values.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)
    return np.packbits(unfolded[:, 32 - bits :]).tobytes()


def _unpack_part(part: np.ndarray, bits: int, count: int) -> np.ndarray:
    unfolded = np.zeros((count, 32), np.uint8)
    unfolded[:, 32 - bits :] = np.unpackbits(part, count=count * bits).reshape(count, bits)
    return np.packbits(unfolded, axis=1).view(">u4").ravel()
