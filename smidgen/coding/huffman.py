"""Static canonical Huffman codes of at most fifteen bits, in lanes that numpy decodes in lockstep.

    minimise Σ_s count_s · length_s   with   Σ_s 2^−length_s ≤ 1,  length_s ≤ 15      (package-merge)

Package-merge: Larmore and Hirschberg, "A fast algorithm for optimal length-limited Huffman codes", J. ACM 37 (1990),
doi:10.1145/79147.79150. Symbol i goes to lane i mod L; every lane is a bit stream of its own, so one step of numpy
decodes L symbols: some ten million a second, with no compiler.

Layout: varint number of symbols; the first symbol folded, then the gaps, as varints; lengths of 4 bits; the bytes of
each lane as varints; the lanes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64

from smidgen.coding.bitpack import pack_bits, unpack_bits
from smidgen.coding.varint import fold, read_varint, unfold, write_varint
from smidgen.errors import LoadError

LONGEST = 15
# More kinds of symbols than this make a table larger than what it saves on any weight seen.
MOST_SYMBOLS = 4096
# A lane costs two or three bytes: under half a per cent of 2048 symbols of two bits.
_LANE = 2048
_MOST_LANES = 2048
_COUNTED = 1 << 20  # values counted at a time


def encode_huffman(values: Int32[np.ndarray, " count"]) -> bytes | None:
    """Code values; None where they are empty or of more than 4096 kinds.

    >>> data = encode_huffman(np.array([0, 0, 0, 5, 0, -7, 0, 0], np.int32))
    >>> decode_huffman(data, 8).tolist()
    [0, 0, 0, 5, 0, -7, 0, 0]
    """
    symbols, indices, counts = np.unique(values, return_inverse=True, return_counts=True)
    if not 0 < len(symbols) <= MOST_SYMBOLS:
        return None
    lengths = code_lengths(counts)
    header = [write_varint(len(symbols)), write_varint(fold(int(symbols[0])))]
    header += [write_varint(int(gap)) for gap in np.diff(symbols.astype(np.int64))]
    lanes = _lanes(values.size)
    sizes, body = _pack_lanes(_codes(lengths)[indices], lengths[indices], lanes)
    header += [pack_bits(lengths.astype(np.uint32), 4), *[write_varint(int(size)) for size in sizes]]
    return b"".join(header) + body


def huffman_bits(tensors: Sequence[Int32[np.ndarray, ...]]) -> float:
    """Bits of the code values alone, without their table; infinite where `encode_huffman` has none.

    >>> huffman_bits([np.array([0, 0, 0, 5], np.int32), np.array([[0, -7, 0, 0]], np.int32)])
    10.0
    """
    counts: dict[int, int] = {}
    for tensor in tensors:
        values = tensor.ravel()
        for at in range(0, values.size, _COUNTED):
            symbols, found = np.unique(values[at : at + _COUNTED], return_counts=True)
            for symbol, count in zip(symbols.tolist(), found.tolist(), strict=True):
                counts[symbol] = counts.get(symbol, 0) + count
            if len(counts) > MOST_SYMBOLS:
                return math.inf
    numbers = np.array(list(counts.values()), np.int64)
    return float((numbers * code_lengths(numbers)).sum()) if counts else math.inf


def decode_huffman(data: bytes, count: int) -> Int32[np.ndarray, " count"]:
    """Inverse of `encode_huffman`.

    Raises:
        LoadError: no encoder writes this stream.
    """
    if count < 1:
        raise LoadError("huffman: a stream of no values; fetch the file again")
    symbols, lengths, at = _read_table(data)
    lanes = _lanes(count)
    sizes = np.zeros(lanes, np.int64)
    for lane in range(lanes):
        size, at = read_varint(data, at)
        sizes[lane] = min(size, len(data))
    if at + int(sizes.sum()) != len(data):
        raise LoadError("huffman: lanes do not fill the stream; fetch the file again")
    starts = (at + np.concatenate([[0], np.cumsum(sizes)[:-1]])) * 8
    indices, ends = _decode_lanes(data, lengths, starts, count)
    if not np.array_equal((ends + 7) // 8 * 8, starts + sizes * 8):
        raise LoadError("huffman: a lane does not end where its values do; fetch the file again")
    return symbols[indices]


def code_lengths(counts: Int64[np.ndarray, " symbols"]) -> Int64[np.ndarray, " symbols"]:
    """Lengths of the best prefix code of at most 15 bits, for counts above zero.

    >>> code_lengths(np.array([8, 4, 2, 1, 1])).tolist()
    [1, 2, 3, 4, 4]
    """
    if len(counts) == 1:
        return np.ones(1, np.int64)
    order = np.argsort(counts, kind="stable")
    leaves = [_Package(int(counts[symbol]), symbol=int(symbol)) for symbol in order]
    packages = leaves
    for _ in range(LONGEST - 1):
        pairs = zip(packages[::2], packages[1::2], strict=False)
        merged = [_Package(left.weight + right.weight, (left, right)) for left, right in pairs]
        packages = sorted([*leaves, *merged], key=lambda package: package.weight)
    lengths = np.zeros(len(counts), np.int64)
    stack = packages[: 2 * len(counts) - 2]
    while stack:
        package = stack.pop()
        stack.extend(package.inside)
        if not package.inside:
            lengths[package.symbol] += 1
    return lengths


@dataclass(frozen=True, slots=True)
class _Package:
    """A symbol, or two packages that go one bit deeper together."""

    weight: int
    inside: tuple[_Package, ...] = ()
    symbol: int = -1


def _codes(lengths: np.ndarray) -> np.ndarray:
    """Canonical codes: by length, then by symbol."""
    codes = np.zeros(len(lengths), np.int64)
    code = previous = 0
    for symbol in np.argsort(lengths, kind="stable").tolist():
        length = int(lengths[symbol])
        code <<= length - previous
        codes[symbol], previous = code, length
        code += 1
    return codes


def _lanes(count: int) -> int:
    return max(1, min(_MOST_LANES, count // _LANE))


def _pack_lanes(codes: np.ndarray, lengths: np.ndarray, lanes: int) -> tuple[np.ndarray, bytes]:
    """Bytes of each lane, and all of them joined."""
    sizes, parts = np.zeros(lanes, np.int64), []
    for lane in range(lanes):
        width = lengths[lane::lanes]
        ends = np.cumsum(width)
        owner = np.repeat(np.arange(len(width)), width)
        shift = ends[owner] - 1 - np.arange(len(owner))
        packed = np.packbits((codes[lane::lanes][owner] >> shift & 1).astype(np.uint8))
        sizes[lane] = packed.size
        parts.append(packed.tobytes())
    return sizes, b"".join(parts)


def _read_table(data: bytes) -> tuple[np.ndarray, np.ndarray, int]:
    """Symbols, code lengths and where the table ends."""
    number, at = read_varint(data, 0)
    if not 0 < number <= MOST_SYMBOLS:
        raise LoadError(f"huffman: {number} symbols are not in 1 … {MOST_SYMBOLS}; fetch the file again")
    folded, at = read_varint(data, at)
    symbol = unfold(folded)
    symbols = [symbol]
    for _ in range(number - 1):
        gap, at = read_varint(data, at)
        symbol += gap
        symbols.append(symbol)
    if symbols[0] < -(1 << 31) or symbol >= 1 << 31 or len(set(symbols)) < number:
        raise LoadError("huffman: symbols beyond 32 bits or twice the same; fetch the file again")
    end = at + (number + 1) // 2
    lengths = unpack_bits(data[at:end], 4, number).astype(np.int64)
    whole = int((1 << (LONGEST - lengths)).sum())
    if lengths.min() < 1 or whole != (1 << LONGEST - 1 if number == 1 else 1 << LONGEST):
        raise LoadError("huffman: lengths that make no prefix code; fetch the file again")
    return np.array(symbols, np.int32), lengths, end


def _decode_lanes(data: bytes, lengths: np.ndarray, starts: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Symbol numbers in order, and the bit where each lane ends."""
    table = np.zeros(1 << LONGEST, np.int64)
    used = np.full(1 << LONGEST, LONGEST, np.int64)
    for symbol, (code, length) in enumerate(zip(_codes(lengths).tolist(), lengths.tolist(), strict=True)):
        span = slice(code << LONGEST - length, code + 1 << LONGEST - length)
        table[span], used[span] = symbol, length
    lanes, last = len(starts), 8 * len(data)
    padded = np.concatenate([np.frombuffer(data, np.uint8), np.zeros(3, np.uint8)]).astype(np.int64)
    windows = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]
    places, out = starts.copy(), np.zeros(-(-count // lanes) * lanes, np.int32)
    for step in range(0, count, lanes):
        active = min(lanes, count - step)
        at = places[:active]
        bits = windows[at >> 3] >> 9 - (at & 7) & (1 << LONGEST) - 1
        out[step : step + active] = table[bits]
        # A hostile lane runs on into the next ones' bits, and at the end stands still there.
        places[:active] = np.minimum(at + used[bits], last)
    return out[:count], places
