"""Hostile archives: whatever was done to them, a LoadError or the very bytes that were packed, and soon."""

from __future__ import annotations

import contextlib
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from smidgen.coding import is_compiled, unpack_bytes
from smidgen.coding.varint import write_varint
from smidgen.errors import LoadError
from smidgen.export.archive import Packed, describe_archive, pack_archive, unpack_archive
from smidgen.export.archive_format import STREAMS, join, split
from smidgen.export.archive_primer import primer

pytestmark = pytest.mark.skipif(not is_compiled(), reason="ten thousand archives are too many for the plain coder")
LIMIT = 100_000  # bytes; many times the model
SECONDS = 1.0  # of one archive, of milliseconds that it takes


class Case:
    """A packed model, taken apart."""

    def __init__(self, model: bytes, packed: dict[str, Packed]) -> None:
        self.model, self.data = model, pack_archive(model, packed)
        self.header, self.streams = split(self.data, LIMIT)
        self.text = unpack_bytes(self.streams["graph"], self.header.graph_nbytes, primer=primer())

    def joined(self, **changed: bytes) -> bytes:
        """The archive with other streams, every checksum right."""
        return join(self.header.graph_nbytes, self.header.checksum, {**self.streams, **changed})

    def stored(self, text: bytes) -> bytes:
        """The archive with other records and graph, which are stored as they are: no time goes into decoding them."""
        return join(len(text), self.header.checksum, {**self.streams, "graph": b"\0" + text})


@pytest.fixture(scope="module")
def case(small: tuple[bytes, dict[str, Packed]]) -> Case:
    return Case(*small)


def mutated(data: bytes, source: np.random.Generator) -> bytes:
    """One of: bits flipped, cut, longer, noise inserted, a stretch copied elsewhere or taken out, numbers made huge."""
    broken, at = bytearray(data), int(source.integers(len(data)))
    size = int(source.integers(1, 30))
    match int(source.integers(7)):
        case 0:
            for _ in range(int(source.integers(1, 4))):
                broken[int(source.integers(len(broken)))] ^= 1 << int(source.integers(8))
        case 1:
            del broken[at:]
        case 2:
            broken += source.bytes(size)
        case 3:
            broken[at:at] = source.bytes(size)
        case 4:
            to = int(source.integers(len(data)))
            broken[to : to + int(source.integers(size + 1))] = data[at : at + size]
        case 5:
            del broken[at : at + size]
        case _:
            broken[at : at + 1] = varint(source)
    return bytes(broken)


def varint(source: np.random.Generator) -> bytes:
    """A number of any size up to beyond 64 bits."""
    return write_varint(int(source.integers(1 << 62)) >> int(source.integers(62)) << int(source.integers(6)))


def files(case: Case, source: np.random.Generator) -> Iterator[bytes]:
    """The file, anything done to it."""
    while True:
        yield mutated(case.data, source)


def headers(case: Case, source: np.random.Generator) -> Iterator[bytes]:
    """Sizes, streams and checksums of the header made up, its own checksum right."""
    names = [name for name in STREAMS if name in case.streams]
    while True:
        present = sum(1 << number for number, name in enumerate(STREAMS) if name in names)
        numbers = [case.header.graph_nbytes, *(len(case.streams[name]) for name in names)]
        checksums = [case.header.checksum, *(zlib.crc32(case.streams[name]) for name in names)]
        for _ in range(int(source.integers(1, 3))):
            which = int(source.integers(len(numbers) + 2))
            if which < len(numbers):
                numbers[which] += int(source.integers(-3, 4)) if source.integers(2) else int(source.integers(1 << 40))
            elif which == len(numbers):
                present = int(source.integers(256))
            else:
                checksums[int(source.integers(len(checksums)))] ^= 1 << int(source.integers(32))
        start = case.data[:5] + bytes([present]) + b"".join(write_varint(max(0, number)) for number in numbers)
        start += b"".join(checksum.to_bytes(4, "little") for checksum in checksums)
        start = mutated(start, source) if source.integers(4) == 0 else start
        yield start + zlib.crc32(start).to_bytes(4, "little") + b"".join(case.streams[name] for name in names)


def records(case: Case, source: np.random.Generator) -> Iterator[bytes]:
    """Records and graph, anything done to them, every checksum right; mostly the records, which come first."""
    while True:
        head = int(source.integers(1, 130)) if source.integers(4) else len(case.text)
        text = mutated(case.text[:head], source) + case.text[head:]
        yield case.stored(mutated(text, source) if source.integers(3) == 0 else text)


def streams(case: Case, source: np.random.Generator) -> Iterator[bytes]:
    """Any stream but the graph, anything done to it, every checksum right."""
    names = [name for name in case.streams if name != "graph"]
    plain = case.stored(case.text)
    _, there = split(plain, LIMIT)
    while True:
        name = names[int(source.integers(len(names)))]
        other = there[names[int(source.integers(len(names)))]]
        broken = other if source.integers(8) == 0 else mutated(there[name], source)
        yield join(len(case.text), case.header.checksum, {**there, name: broken})


def graphs(case: Case, source: np.random.Generator) -> Iterator[bytes]:
    """The graph's own stream, anything done to it, every checksum right."""
    while True:
        yield case.joined(graph=mutated(case.streams["graph"], source))


KINDS: dict[str, tuple[Callable[[Case, np.random.Generator], Iterator[bytes]], int]] = {
    "files": (files, 4000),
    "headers": (headers, 2000),
    "records": (records, 4000),
    "streams": (streams, 1500),
    "graphs": (graphs, 500),
}


@pytest.mark.parametrize("kind", KINDS)
def test_mutations_never_crash_hang_or_give_another_network(case: Case, kind: str) -> None:
    make, count = KINDS[kind]
    refused, lines, source = 0, set[int](), np.random.default_rng(len(kind))
    for broken, _ in zip(make(case, source), range(count), strict=False):
        start = time.process_time()
        try:
            # The model's own checksum stands in the header, so whatever comes out is the model.
            assert unpack_archive(broken, LIMIT) == case.model
        except LoadError as error:
            refused += 1
            lines.add(str(error).count("\n"))
        assert time.process_time() - start < SECONDS
    assert refused > 0.8 * count
    assert lines == {0}


@pytest.mark.parametrize("kind", KINDS)
def test_mutations_take_little_memory(case: Case, kind: str) -> None:
    make, source = KINDS[kind][0], np.random.default_rng(99)
    tracemalloc.start()
    try:
        for broken, _ in zip(make(case, source), range(100), strict=False):
            for reader in (unpack_archive, describe_archive):
                with contextlib.suppress(LoadError):
                    reader(broken, LIMIT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * LIMIT


def test_every_cut_and_every_flipped_byte_is_refused(case: Case) -> None:
    for at in range(len(case.data)):
        with pytest.raises(LoadError):
            unpack_archive(case.data[:at], LIMIT)
        with pytest.raises(LoadError):
            unpack_archive(case.data[:at] + bytes([case.data[at] ^ 0xA5]) + case.data[at + 1 :], LIMIT)


@pytest.mark.parametrize("method", range(5))
def test_a_terabyte_is_only_claimed(case: Case, method: int) -> None:
    """The largest sizes that the header, a record or a stream can name, in files of a hundred bytes."""
    huge = write_varint(10**12)
    tensor = b"\x01\x03\x00\x01" + huge + b"\x00"
    bombs = [
        join(10**12, 0, {"graph": bytes([method]) + bytes(60)}),
        join(len(tensor), 0, {"graph": b"\0" + tensor, "integers": b"\x00\x00", "exponents": b"\x00\x00\x00"}),
    ]
    tracemalloc.start()
    try:
        for bomb in bombs:
            with pytest.raises(LoadError, match="allowed"):
                unpack_archive(bomb)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
