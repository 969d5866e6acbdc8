"""Quantized weights ↔ bytes: every coder tried, the smallest stream kept, its method in the first byte.

    stream = method (1 byte) + payload;   size ≤ 7 bytes + ⌈count · ⌈log2(max − min + 1)⌉ / 8⌉ always

`pack_many` codes several tensors with one model that goes on learning from one to the next: on the twenty small layers
of ResNet-20 that saves one to two per cent. Counts and shapes are not stored: whoever unpacks states them, so a stream
alone can claim nothing.

A checksum is the container's to keep: an entropy code has no redundancy, so a flipped bit shows where the stream then
ends in the wrong place, and else gives other values of the right shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from jaxtyping import Int32

from smidgen.coding import kernel
from smidgen.coding.bitpack import pack_bits, unpack_bits
from smidgen.coding.huffman import decode_huffman, encode_huffman, huffman_bits
from smidgen.coding.runs import decode_runs, encode_runs
from smidgen.coding.varint import fold, read_varint, unfold, write_varint
from smidgen.errors import LoadError

CONSTANT, RAW, HUFFMAN, ADAPTIVE, RUNS = range(5)
METHODS = {"constant": CONSTANT, "raw": RAW, "huffman": HUFFMAN, "adaptive": ADAPTIVE, "runs": RUNS}
# Those used unless told otherwise; the adaptive coder is better at runs of zeros too, and older readers know all four.
CODERS = ("constant", "raw", "huffman", "adaptive")
Tensor: TypeAlias = Int32[np.ndarray, "..."]
# More values than any network this project is for; an unpacker with more to give says so.
MOST_VALUES = 1 << 28
# Learning rates of the mixture: the best on LeNet, between, and on ResNet-20.
RATES = (4, 12, 24, 40)
# Weights of a tensor on which its walk is chosen.
SAMPLE = 1 << 15


@dataclass(frozen=True)
class _Walk:
    """How the adaptive coder takes one tensor."""

    signs: bool = True
    transposed: bool = False

    def turn(self, tensor: np.ndarray) -> np.ndarray:
        return tensor.swapaxes(0, 1) if self.transposed and tensor.ndim > 1 else tensor

    def turned(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (shape[1], shape[0], *shape[2:]) if self.transposed and len(shape) > 1 else tuple(shape)


def pack(values: Int32[np.ndarray, "*shape"], methods: Sequence[str] = CODERS) -> bytes:
    """The smallest lossless stream of one tensor of integers.

    Args:
        values: of any shape; give a convolution's weight as out × in × height × width, whose places are contexts.
        methods: those that may be used (`METHODS`).

    Raises:
        ValueError: a method is unknown, or none given can code these values.

    >>> weights = np.array([[0, 1, 0], [0, -1, 2]], np.int32)
    >>> unpack(pack(weights), (2, 3)).tolist()
    [[0, 1, 0], [0, -1, 2]]
    >>> len(pack(np.zeros((1000, 1000), np.int32)))
    2
    """
    return pack_many([values], methods)


def unpack(data: bytes, shape: Sequence[int], limit: int = MOST_VALUES) -> Tensor:
    """Inverse of `pack`.

    Args:
        data: the stream.
        shape: of the tensor.
        limit: values allowed in it; nothing is allocated for more.

    Returns:
        int32 values of that shape.

    Raises:
        LoadError: the stream is damaged, or the shape is larger than the limit.
    """
    return unpack_many(data, [shape], limit)[0]


def pack_many(tensors: Sequence[Tensor], methods: Sequence[str] = CODERS) -> bytes:
    """The smallest lossless stream of several int32 tensors, coded by one model in this order.

    Raises:
        ValueError: a method is unknown, or none given can code these values.
    """
    unknown = set(methods) - set(METHODS)
    if unknown or not methods:
        raise ValueError(f"pack: methods={list(methods)} must be among {list(METHODS)}")
    count, (low, high) = sum(tensor.size for tensor in tensors), _ends(tensors)
    if "constant" in methods and low == high:
        return bytes([CONSTANT]) + write_varint(fold(low))
    best = _adaptive(tensors) if "adaptive" in methods else None
    # What cannot be as short is not tried: Huffman codes of ten million values take half a gigabyte to make.
    if "huffman" in methods and (best is None or huffman_bits(tensors) <= 8 * len(best)):
        table = encode_huffman(_joined(tensors))
        if table is not None and (best is None or len(table) < len(best)):
            best = bytes([HUFFMAN]) + table
    sparse = 2 * sum(np.count_nonzero(tensor) for tensor in tensors) <= count  # else a gap costs what its zeros do
    if "runs" in methods and (best is None or sparse) and (runs := encode_runs(_joined(tensors))) is not None:
        best = bytes([RUNS]) + runs if best is None or len(runs) + 1 < len(best) else best
    if "raw" in methods and (best is None or count * (high - low).bit_length() <= 8 * len(best)):
        raw = bytes([RAW]) + _raw(_joined(tensors), low, high)
        best = raw if best is None or len(raw) <= len(best) else best
    if best is None:
        raise ValueError(f"pack: none of {list(methods)} can code these {count} values; allow 'raw'")
    return best


def unpack_many(data: bytes, shapes: Sequence[Sequence[int]], limit: int = MOST_VALUES) -> list[Tensor]:
    """Inverse of `pack_many`.

    Raises:
        LoadError: the stream is damaged, or the shapes hold more values than the limit.
    """
    if any(side < 0 for shape in shapes for side in shape):
        raise LoadError(f"stream: a negative side in {[list(shape) for shape in shapes]}; fetch the file again")
    counts = [math.prod(shape) for shape in shapes]
    # Empty tensors too are bounded: a side of a terabyte beside a side of zero.
    if sum(counts) > limit or any(side > limit for shape in shapes for side in shape):
        raise LoadError(f"stream: {sum(counts)} values claimed, {limit} allowed; raise the limit if that is right")
    method = METHODS[method_of(data)]
    if method == ADAPTIVE:
        return _decode_adaptive(data, shapes)
    return _split(_decode_values(data, method, sum(counts)), shapes) if shapes else []


def method_of(data: bytes) -> str:
    """The name of the method a stream uses.

    Raises:
        LoadError: there is none.

    >>> method_of(pack(np.zeros(9, np.int32)))
    'constant'
    """
    if (
        not data
        or data[0] & 15 >= len(METHODS)
        or (data[0] >> 4 and data[0] & 15 != ADAPTIVE)
        or data[0] >> 4 >= len(RATES)
    ):
        raise LoadError("stream: no known coding method; fetch the file again, or a newer smidgen")
    return list(METHODS)[data[0] & 15]


def _joined(tensors: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int32), *[tensor.ravel() for tensor in tensors]])


def _ends(tensors: Sequence[np.ndarray]) -> tuple[int, int]:
    """The least and the greatest value; zeros where there is none."""
    filled = [tensor for tensor in tensors if tensor.size]
    if not filled:
        return 0, 0
    return min(int(tensor.min()) for tensor in filled), max(int(tensor.max()) for tensor in filled)


def _raw(values: np.ndarray, low: int, high: int) -> bytes:
    bits = (high - low).bit_length()
    offsets = (values.astype(np.int64) - low).astype(np.uint32)
    return write_varint(fold(low)) + bytes([bits]) + pack_bits(offsets, bits)


def _adaptive(tensors: Sequence[np.ndarray]) -> bytes:
    """Each tensor's walk and the rate of all are chosen on samples, one after another."""
    if not kernel.is_compiled():  # minutes instead of seconds, for one or two per cent
        return _encode(tensors, [_Walk()] * len(tensors), 1)
    samples = [_sample(tensor) for tensor in tensors]
    walks = [_walk(sample) for sample in samples]
    some = _first(samples)
    sizes = [len(_encode(samples[:some], walks[:some], rate)) for rate in range(len(RATES))]
    return _encode(tensors, walks, sizes.index(min(sizes)))


def _sample(tensor: np.ndarray) -> np.ndarray:
    """The first rows of a tensor, and of very long rows the first weights."""
    if tensor.size <= SAMPLE or tensor.ndim < 2:
        return tensor[:SAMPLE] if tensor.ndim == 1 else tensor
    rows = tensor[: max(8, SAMPLE // (tensor.size // len(tensor)))]
    return rows if rows.size <= 2 * SAMPLE else rows[:, : max(8, rows.shape[1] * SAMPLE // rows.size)]


def _first(samples: Sequence[np.ndarray]) -> int:
    """How many of the samples reach the size of two, all if they do not."""
    total = 0
    for number, sample in enumerate(samples):
        total += sample.size
        if total >= 2 * SAMPLE:
            return number + 1
    return len(samples)


def _walk(sample: np.ndarray) -> _Walk:
    best, smallest = _Walk(), len(_encode([sample], [_Walk()], 1))
    changes: list[dict[str, bool]] = [{"signs": False}]
    if sample.ndim > 1 and min(sample.shape[:2]) > 1:
        changes.append({"transposed": True})
    for change in changes:
        tried = replace(best, **change)
        size = len(_encode([sample], [tried], 1))
        if size < smallest:
            best, smallest = tried, size
    return best


def _encode(tensors: Sequence[np.ndarray], walks: Sequence[_Walk], rate: int) -> bytes:
    """Tag, rate, two bits a tensor, then the adaptive code of all."""
    turned = [walk.turn(tensor) for walk, tensor in zip(walks, tensors, strict=True)]
    shapes = [kernel.geometry(tensor.shape, signs=walk.signs) for walk, tensor in zip(walks, turned, strict=True)]
    flags = np.array([int(walk.signs) | int(walk.transposed) << 1 for walk in walks], np.uint32)
    stream = kernel.encode_weights(_joined(turned), shapes, rate=RATES[rate])
    return bytes([ADAPTIVE + 16 * rate]) + pack_bits(flags, 2) + stream


def _decode_adaptive(data: bytes, shapes: Sequence[Sequence[int]]) -> list[np.ndarray]:
    at = 1 + -(-len(shapes) // 4)
    flags = unpack_bits(data[1:at], 2, len(shapes)).tolist()
    walks = [_Walk(bool(flag & 1), bool(flag & 2)) for flag in flags]
    turned = [walk.turned(shape) for walk, shape in zip(walks, shapes, strict=True)]
    geometries = [kernel.geometry(shape, signs=walk.signs) for walk, shape in zip(walks, turned, strict=True)]
    values = kernel.decode_weights(data[at:], geometries, rate=RATES[data[0] >> 4])
    tensors = _split(values, turned)
    return [walk.turn(tensor).copy() for walk, tensor in zip(walks, tensors, strict=True)]


def _split(values: np.ndarray, shapes: Sequence[Sequence[int]]) -> list[np.ndarray]:
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(values, ends[:-1]), shapes, strict=True)]


def _decode_values(data: bytes, method: int, count: int) -> np.ndarray:
    if method == HUFFMAN:
        return decode_huffman(data[1:], count)
    if method == RUNS:
        return decode_runs(data[1:], count)
    folded, at = read_varint(data, 1)
    low = unfold(folded)
    if not -(1 << 31) <= low < 1 << 31:
        raise LoadError(f"stream: {low} is beyond 32 bits; fetch the file again")
    if method == CONSTANT:
        if at != len(data):
            raise LoadError(f"stream: {len(data) - at} bytes too many; fetch the file again")
        return np.full(count, low, np.int32)
    if at >= len(data) or data[at] > 32:
        raise LoadError("stream: an impossible width of bits; fetch the file again")
    values = unpack_bits(data[at + 1 :], data[at], count).astype(np.int64) + low
    if values.size and int(values.max()) >= 1 << 31:
        raise LoadError("stream: values beyond 32 bits; fetch the file again")
    return values.astype(np.int32)
