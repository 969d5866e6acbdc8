"""Bytes and floats: exact, small, bounded."""

from __future__ import annotations

import lzma
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import smidgen.coding.blobs as blobs
import smidgen.coding.floats as floats
from smidgen.coding import pack_bytes, pack_floats, unpack_bytes, unpack_floats
from smidgen.errors import LoadError

SLOW = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW
@given(data=st.binary(max_size=400), stride=st.integers(1, 255))
def test_any_bytes_come_back(compiled: None, data: bytes, stride: int) -> None:
    stream = pack_bytes(data, stride)
    assert len(stream) <= len(data) + 1
    assert unpack_bytes(stream, len(data)) == data


@pytest.mark.parametrize("method", [blobs.RAW, blobs.MODEL, blobs.LZMA, blobs.DEFLATE, blobs.BZIP2])
def test_every_method_is_read(compiled: None, monkeypatch: pytest.MonkeyPatch, method: int) -> None:
    text = b"weight bias scale zero_point " * 40
    monkeypatch.setattr(blobs, "min", lambda coded, key: next(c for c in coded if c[0] == method), raising=False)
    stream = pack_bytes(text)
    assert stream[0] == method
    assert unpack_bytes(stream, len(text)) == text
    for wrong in (stream[:-1], stream + b"\0"):
        with pytest.raises(LoadError):
            unpack_bytes(wrong, len(text))
    if method == blobs.MODEL:
        return  # its counts are the container's to keep
    for count in (len(text) - 1, len(text) + 1):
        with pytest.raises(LoadError):
            unpack_bytes(stream, count)


def test_model_beats_dictionaries_on_source(compiled: None) -> None:
    text = Path(blobs.__file__).read_bytes()
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 9}]
    others = zlib.compress(text, 9), lzma.compress(text, lzma.FORMAT_RAW, filters=filters)
    assert len(pack_bytes(text)) < 0.93 * min(map(len, others))


def test_a_primer_is_learnt_from(compiled: None) -> None:
    primer, text = b"Conv kernel_shape strides pads Relu " * 3, b"Relu Conv pads kernel_shape strides"
    stream = pack_bytes(text, primer=primer)
    assert len(stream) < 0.6 * len(pack_bytes(text))
    assert unpack_bytes(stream, len(text), primer=primer) == text


def test_a_bomb_is_stopped() -> None:
    stream = pack_bytes(bytes(10**6))
    with pytest.raises(LoadError):
        unpack_bytes(stream, 1000)
    with pytest.raises(LoadError, match="allowed"):
        unpack_bytes(stream, 10**6, limit=10**5)
    with pytest.raises(LoadError, match="allowed"):
        unpack_bytes(stream, 10**15)


@SLOW
@given(data=st.binary(max_size=256), dtype=st.sampled_from(["float16", "float32", "float64"]))
def test_any_floats_come_back_to_the_bit(compiled: None, data: bytes, dtype: str) -> None:
    size = np.dtype(dtype).itemsize
    values = np.frombuffer(data[: len(data) // size * size], dtype)
    stream = pack_floats(values)
    assert len(stream) <= values.nbytes + 2
    back = unpack_floats(stream, len(values), dtype)
    assert back.dtype == values.dtype
    assert back.tobytes() == values.tobytes()


def test_scales_cost_less_than_their_bytes(compiled: None) -> None:
    scales = np.exp(np.random.default_rng(0).normal(-4, 0.5, 256)).astype(np.float32)
    # Sign and exponent hold about 2 of their 9 bits; the mantissa all of its 23.
    assert len(pack_floats(scales)) < 0.83 * scales.nbytes


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_many_floats_are_split_as_their_first(compiled: None, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setattr(floats, "SAMPLE", 2000)
    values = np.random.default_rng(0).normal(0, 0.1, floats.SAMPLE + 1000).astype(dtype)
    stream, first = pack_floats(values), pack_floats(values[: floats.SAMPLE])
    assert stream[0] == first[0] > 0
    assert len(stream) < 0.95 * values.nbytes
    assert unpack_floats(stream, len(values), dtype).tobytes() == values.tobytes()


def test_wrong_floats_are_named() -> None:
    with pytest.raises(ValueError, match="int32"):
        pack_floats(np.zeros(3, np.int32))
    stream = pack_floats(np.random.default_rng(0).normal(0, 1, 3).astype(np.float32))
    for arguments in ((stream, 3, "int8"), (stream, 4, "float32"), (b"", 3, "float32"), (b"\x09", 3, "float32")):
        with pytest.raises(LoadError):
            unpack_floats(*arguments)
    with pytest.raises(LoadError, match="allowed"):
        unpack_floats(stream, 10**15, "float32")
    with pytest.raises(ValueError, match="stride"):
        pack_bytes(b"", 0)
