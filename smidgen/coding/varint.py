"""Integers of few bytes: seven bits a byte, low first, and signs folded in (0, −1, 1, −2, … → 0, 1, 2, 3, …)."""

from __future__ import annotations

from smidgen.errors import LoadError

# 64-bit values at most: ten bytes of seven bits.
_LONGEST = 10


def write_varint(value: int) -> bytes:
    """Bytes of a number that is not negative.

    >>> write_varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at` and where it ends.

    Raises:
        LoadError: the data end first, or the number is longer than 64 bits.

    >>> read_varint(bytes.fromhex("ac02"), 0)
    (300, 2)
    """
    value = 0
    for shift in range(_LONGEST):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at
    raise LoadError("stream: a number is cut short; fetch the file again")


def fold(value: int) -> int:
    """A signed number as one that is not negative.

    >>> [fold(v) for v in (0, -1, 1, -2)]
    [0, 1, 2, 3]
    """
    return -2 * value - 1 if value < 0 else 2 * value


def unfold(value: int) -> int:
    """Inverse of `fold`."""
    return -(value + 1 >> 1) if value & 1 else value >> 1
