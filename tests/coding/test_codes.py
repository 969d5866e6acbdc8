"""Bit packing, Huffman codes and varints: known answers and laws."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smidgen.coding.bitpack import pack_bits, unpack_bits
from smidgen.coding.huffman import LONGEST, code_lengths, decode_huffman, encode_huffman
from smidgen.coding.varint import fold, read_varint, unfold, write_varint
from smidgen.errors import LoadError


@given(bits=st.integers(0, 32), data=st.data())
def test_bits_come_back(bits: int, data: st.DataObject) -> None:
    values = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40)), np.uint32)
    packed = pack_bits(values, bits)
    assert len(packed) == -(-len(values) * bits // 8)
    assert np.array_equal(unpack_bits(packed, bits, len(values)), values)


@pytest.mark.parametrize("bits", [1, 3, 7, 17])
def test_bits_come_back_from_more_than_one_part(bits: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**bits, 600_001, dtype=np.uint32)
    assert np.array_equal(unpack_bits(pack_bits(values, bits), bits, len(values)), values)


def test_bits_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="more than 2 bits"):
        pack_bits(np.array([4], np.uint32), 2)
    for width in (-1, 33):
        with pytest.raises(ValueError, match="width"):
            pack_bits(np.array([0], np.uint32), width)
    for data, count in ((b"", 1), (b"\0\0", 2), (b"\0", 10**15), (b"", -1)):
        with pytest.raises(LoadError, match="hold"):
            unpack_bits(data, 3, count)
    with pytest.raises(LoadError, match="zeros"):
        unpack_bits(b"\x01", 3, 1)


@given(st.integers(-(2**62), 2**62))
def test_numbers_come_back(value: int) -> None:
    data = write_varint(fold(value))
    number, end = read_varint(data, 0)
    assert (unfold(number), end) == (value, len(data))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 11])
def test_numbers_cut_short_are_refused(data: bytes) -> None:
    with pytest.raises(LoadError, match="cut short"):
        read_varint(data, 0)


@settings(deadline=None)
@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=300))
def test_lengths_make_a_full_code(counts: list[int]) -> None:
    lengths = code_lengths(np.array(counts))
    whole = sum(2.0 ** -int(length) for length in lengths)
    assert whole == (0.5 if len(counts) == 1 else 1.0)
    assert lengths.max() <= LONGEST


def test_lengths_are_the_best_where_unlimited() -> None:
    # Huffman's own tree on a skewed source costs 2.24 bits a symbol.
    counts = np.array([38, 19, 15, 15, 13])
    assert int((counts * code_lengths(counts)).sum()) == 224


def test_lengths_are_held_at_fifteen() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 30:
        fibonacci.append(sum(fibonacci[-2:]))
    assert code_lengths(np.array(fibonacci)).max() == LONGEST


@pytest.mark.parametrize("count", [1, 2, 2047, 4097, 50_000])
@pytest.mark.parametrize("scale", [0.0, 0.3, 3.0, 300.0])
def test_huffman_comes_back(count: int, scale: float) -> None:
    values = np.rint(np.random.default_rng(count).laplace(0, scale, count)).astype(np.int32)
    data = encode_huffman(values)
    assert data is not None
    assert np.array_equal(decode_huffman(data, count), values)


def test_huffman_declines_what_it_cannot_code() -> None:
    assert encode_huffman(np.zeros(0, np.int32)) is None
    assert encode_huffman(np.arange(5000, dtype=np.int32)) is None


def test_huffman_decodes_a_million_symbols_a_second() -> None:
    values = np.rint(np.random.default_rng(0).laplace(0, 2, 2_000_000)).astype(np.int32)
    data = encode_huffman(values)
    assert data is not None
    start = time.process_time()
    decode_huffman(data, values.size)
    # Some ten million here; the test leaves room for a slow machine.
    assert values.size / (time.process_time() - start) > 1e6
