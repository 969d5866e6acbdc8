"""The compiled kernel and its plain twin: the same bytes, the same values, the same refusals."""

from __future__ import annotations

import hashlib
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from smidgen.coding import kernel
from smidgen.coding.tables import tables
from smidgen.errors import LoadError

SLOW = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
WHOLE = st.integers(-(2**31), 2**31 - 1)
SIZES = st.one_of(st.integers(-2, 2), st.integers(-40, 40), WHOLE)
TENSORS = npst.arrays(np.int32, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6), elements=SIZES)


def weights(shape: tuple[int, ...], scale: float, seed: int = 0) -> np.ndarray:
    """Rounded Laplace variables whose rows differ in scale."""
    source = np.random.default_rng(seed)
    rows = np.exp(source.normal(0, 0.7, (shape[0],) + (1,) * (len(shape) - 1)))
    return np.rint(source.laplace(0, scale, shape) * rows).astype(np.int32)


def test_tables_are_these_on_every_machine() -> None:
    # A changed table makes every file written before unreadable.
    assert hashlib.sha256(tables().astype("<i4").tobytes()).hexdigest()[:16] == "e5c133475b53efb6"


def test_streams_are_these_on_every_machine(either: str) -> None:
    values = weights((6, 4, 3, 3), 1.5)
    stream = kernel.encode_weights(values.ravel(), [kernel.geometry(values.shape)], rate=12)
    text = kernel.encode_text(b"".join(b"conv%d.weight " % i for i in range(30)), 1)
    assert hashlib.sha256(stream).hexdigest()[:16] == "92ff8f2e441a13d6"
    assert hashlib.sha256(text).hexdigest()[:16] == "77e45ca445b6db18"


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("scale", [0.2, 1.0, 6.0, 1e4])
@pytest.mark.parametrize("shape", [(9, 40), (5, 7, 3, 3), (1, 300), (300, 1), (8, 1, 5, 5)])
def test_twins_write_and_read_alike(
    built: ModuleType, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], scale: float, signs: bool
) -> None:
    values, geometry = weights(shape, scale).ravel(), [kernel.geometry(shape, signs=signs)]
    streams = []
    for twin in (built, None):
        monkeypatch.setattr(kernel, "_compiled", twin)
        streams.append(kernel.encode_weights(values, geometry, rate=24))
        assert np.array_equal(kernel.decode_weights(streams[0], geometry, rate=24), values)
    assert streams[0] == streams[1]


@SLOW
@given(
    tensors=st.lists(TENSORS, max_size=3),
    signs=st.lists(st.booleans(), min_size=3, max_size=3),
    rate=st.integers(0, 255),
)
def test_any_tensors_come_back_from_both(
    built: ModuleType, monkeypatch: pytest.MonkeyPatch, tensors: list[np.ndarray], signs: list[bool], rate: int
) -> None:
    values = np.concatenate([np.zeros(0, np.int32), *[tensor.ravel() for tensor in tensors]])
    shapes = [kernel.geometry(tensor.shape, signs=flag) for tensor, flag in zip(tensors, signs, strict=False)]
    streams = []
    for twin in (built, None):
        monkeypatch.setattr(kernel, "_compiled", twin)
        streams.append(kernel.encode_weights(values, shapes, rate=rate))
        assert np.array_equal(kernel.decode_weights(streams[-1], shapes, rate=rate), values)
    assert streams[0] == streams[1]


@SLOW
@given(
    data=st.one_of(st.binary(max_size=200), st.text(max_size=80).map(str.encode)),
    stride=st.integers(1, 9),
    primer=st.binary(max_size=40),
)
def test_any_bytes_come_back_from_both(
    built: ModuleType, monkeypatch: pytest.MonkeyPatch, data: bytes, stride: int, primer: bytes
) -> None:
    streams = []
    for twin in (built, None):
        monkeypatch.setattr(kernel, "_compiled", twin)
        streams.append(kernel.encode_text(data, stride, primer))
        assert kernel.decode_text(streams[-1], len(data), stride, primer) == data
    assert streams[0] == streams[1]


def test_twins_refuse_alike(built: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    values = weights((6, 30), 1.0).ravel()
    geometry = [kernel.Shape(6, 30)]
    stream = bytearray(kernel.encode_weights(values, geometry, rate=12))
    source = np.random.default_rng(0)
    for _ in range(40):
        broken = stream.copy()
        broken[source.integers(len(broken))] ^= 1 << int(source.integers(8))
        answers = []
        for twin in (built, None):
            monkeypatch.setattr(kernel, "_compiled", twin)
            try:
                answers.append(kernel.decode_weights(bytes(broken), geometry, rate=12).tolist())
            except LoadError:
                answers.append(None)
        assert answers[0] == answers[1]


@pytest.mark.parametrize("change", ["cut", "longer", "empty"])
def test_streams_of_another_length_are_refused(either: str, change: str) -> None:
    values = weights((6, 30), 1.0).ravel()
    stream = kernel.encode_weights(values, [kernel.Shape(6, 30)], rate=12)
    text = kernel.encode_text(values.tobytes(), 4)
    alter = {
        "cut": lambda data: data[:-12],
        "longer": lambda data: data + b"\0",
        "empty": lambda data: b"",
    }[change]
    with pytest.raises(LoadError, match="damaged"):
        kernel.decode_weights(alter(stream), [kernel.Shape(6, 30)], rate=12)
    with pytest.raises(LoadError, match="damaged"):
        kernel.decode_text(alter(text), values.nbytes, 4)


def test_kernel_refuses_impossible_arguments(built: ModuleType) -> None:
    shape = np.array([[2, 2, 1, 1, 1]], np.int64)
    four = np.zeros(4, np.int32)
    for arguments in (
        (tables()[:-1], four, shape, 12),
        (tables(), four[:3], shape, 12),
        (tables(), four, np.array([[-1, 4, 1, 1, 1]], np.int64), 12),
        (tables(), four, np.array([[2, 2, 0, 1, 1]], np.int64), 12),
        (tables(), four, np.array([[2**62, 2**62, 1, 1, 1]], np.int64), 12),
        (tables(), four, shape.ravel()[:3], 12),
        (tables(), four, shape, 256),
    ):
        with pytest.raises(ValueError, match="kernel"):
            built.encode_weights(*arguments)
    with pytest.raises(ValueError, match="kernel"):
        built.encode_bytes(tables(), b"four", 4, 1, bytes(2**20 + 1))
    for count, stride in ((-1, 1), (4, 0), (3, 1), (2**40, 1)):
        with pytest.raises(ValueError, match="kernel"):
            built.encode_bytes(tables(), b"four", count, stride, b"")


def test_kernel_runs_without_the_lock_and_twice(compiled: None) -> None:
    values = weights((50, 50), 1.0).ravel()
    first, second = (kernel.encode_weights(values, [kernel.Shape(50, 50)], rate=12) for _ in range(2))
    assert first == second
