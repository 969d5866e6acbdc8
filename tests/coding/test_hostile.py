"""Hostile streams: whatever is done to them, a LoadError or values of the right shape, soon and within the limit."""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from smidgen.coding import pack, pack_bytes, pack_floats, unpack, unpack_bytes, unpack_floats
from smidgen.errors import LoadError

SHAPE = (12, 4, 3, 3)
MUTATIONS = 2500
Decoder = Callable[[bytes], int]


def tensor() -> np.ndarray:
    return np.rint(np.random.default_rng(0).laplace(0, 1.2, SHAPE)).astype(np.int32)


def mutated(data: bytes, source: np.random.Generator) -> bytes:
    """One of: bits flipped, cut, longer, a stretch overwritten, swapped with noise, repeated."""
    kind, broken = int(source.integers(6)), bytearray(data)
    at = int(source.integers(len(broken)))
    if kind == 0:
        for _ in range(int(source.integers(1, 4))):
            broken[int(source.integers(len(broken)))] ^= 1 << int(source.integers(8))
    elif kind == 1:
        del broken[at:]
    elif kind == 2:
        broken += source.bytes(int(source.integers(1, 40)))
    elif kind == 3:
        broken[at : at + 8] = bytes([int(source.choice([0, 1, 127, 128, 255]))]) * 8
    elif kind == 4:
        # The head decides the most.
        broken[: at % 6 + 1] = source.bytes(at % 6 + 1)
    else:
        broken[at:at] = broken[: int(source.integers(1, 20))]
    return bytes(broken)


def streams() -> dict[str, tuple[bytes, Decoder]]:
    values = tensor()
    text = b"Conv BatchNormalization Relu MaxPool Gemm " * 12
    floats = values.ravel()[:100].astype(np.float32) / 7
    made: dict[str, tuple[bytes, Decoder]] = {
        method: (pack(values, [method]), lambda data: unpack(data, SHAPE, limit=500).size)
        for method in ("raw", "huffman", "adaptive", "runs")
    }
    made["constant"] = (pack(np.ones(SHAPE, np.int32)), lambda data: unpack(data, SHAPE, limit=500).size)
    made["bytes"] = (pack_bytes(text), lambda data: len(unpack_bytes(data, len(text), limit=1000)))
    made["floats"] = (pack_floats(floats), lambda data: unpack_floats(data, 100, "float32", limit=100).size)
    return made


@pytest.mark.parametrize("name", ["raw", "huffman", "adaptive", "runs", "constant", "bytes", "floats"])
def test_mutations_neither_crash_nor_hang(compiled: None, name: str) -> None:
    stream, decode = streams()[name]
    whole, source = decode(stream), np.random.default_rng(7)
    refused = 0
    for _ in range(MUTATIONS):
        start = time.process_time()
        try:
            assert decode(mutated(stream, source)) == whole
        except LoadError:
            refused += 1
        assert time.process_time() - start < 2.0
    assert refused > MUTATIONS // 5


def test_mutations_neither_crash_nor_hang_the_plain_twin(plain: None) -> None:
    values = tensor()[:2]
    stream, source = pack(values, ["adaptive"]), np.random.default_rng(8)
    for _ in range(150):
        with contextlib.suppress(LoadError):
            assert unpack(mutated(stream, source), values.shape).shape == values.shape


@pytest.mark.parametrize("method", ["raw", "huffman", "adaptive"])
def test_every_cut_is_refused(compiled: None, method: str) -> None:
    stream = pack(tensor(), [method])
    # The adaptive code has no redundancy: a few bytes less may be the code of other values (a checksum's business).
    for length in range(len(stream) - (4 if method == "adaptive" else 0)):
        with pytest.raises(LoadError):
            unpack(stream[:length], SHAPE)


@pytest.mark.parametrize("head", range(6))
def test_memory_stays_within_the_limit(compiled: None, head: int) -> None:
    source = np.random.default_rng(head)
    tracemalloc.start()
    for _ in range(50):
        with contextlib.suppress(LoadError):
            unpack(bytes([head]) + source.bytes(60), (1000, 1000), limit=1_000_000)
        with contextlib.suppress(LoadError):
            unpack_bytes(bytes([head]) + source.bytes(60), 1_000_000, limit=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A million int32 values, and the buffers of a decoder.
    assert peak < 60e6
