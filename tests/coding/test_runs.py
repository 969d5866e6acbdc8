"""Runs of zeros and values, each with a Huffman code: what goes in comes out, and zeros cost next to nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smidgen.coding import pack, unpack
from smidgen.coding.runs import LONGEST, decode_runs, encode_runs
from smidgen.errors import LoadError


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3 * LONGEST), st.integers(-9, 9)), min_size=1, max_size=30), st.integers(0, 9))
def test_what_goes_in_comes_out(pieces, rest):
    values = np.array([v for gap, value in pieces for v in [*[0] * gap, value]] + [0] * rest, np.int32)
    data = encode_runs(values)
    if not values.any():
        assert data is None
        return
    assert data is not None
    assert decode_runs(data, len(values)).tolist() == values.tolist()


def test_one_stream_among_the_others():
    values = np.zeros((40, 50), np.int32)
    values[3, 7], values[20, 1] = 5, -2
    data = pack(values, ["runs"])
    assert len(data) < 30
    assert np.array_equal(unpack(data, (40, 50)), values)
    with pytest.raises(ValueError, match="none of"):
        pack(np.zeros(5, np.int32), ["runs"])


def test_nine_zeros_in_ten_take_half_a_bit_each():
    rng = np.random.default_rng(0)
    values = np.where(rng.random(50_000) < 0.1, rng.integers(-15, 16, 50_000), 0).astype(np.int32)
    bits = 8 * len(pack(values, ["runs"])) / values.size
    assert bits < 1.02 * (0.469 + 0.1 * np.log2(31)) + 0.03
    assert len(pack(values, ["runs"])) < len(pack(values, ["huffman"]))


def test_damage_is_told():
    data = encode_runs(np.array([0, 3, 0, 0, 4], np.int32))
    assert data is not None
    for broken in (data[:-1], data + b"\0", b"\x7f" + data[1:], data[:1] + b"\x7f" + data[2:]):
        with pytest.raises(LoadError):
            decode_runs(broken, 5)
    with pytest.raises(LoadError, match="beyond"):
        decode_runs(data, 4)
