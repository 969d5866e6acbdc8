"""Streams of integer tensors: exact, small, bounded, chosen by size."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.numpy import load_file

from smidgen.coding import method_of, pack, pack_many, unpack, unpack_many
from smidgen.coding.streams import METHODS
from smidgen.errors import LoadError

SLOW = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIZES = st.one_of(st.integers(-2, 2), st.integers(-200, 200), st.integers(-(2**31), 2**31 - 1))
TENSORS = npst.arrays(np.int32, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7), elements=SIZES)


def entropy_bytes(values: np.ndarray) -> float:
    """Order-0 entropy with the histogram for nothing: what no static code beats."""
    _, counts = np.unique(values, return_counts=True)
    return float(-(counts * np.log2(counts / values.size)).sum() / 8)


def raw_bytes(values: np.ndarray) -> int:
    span = int(values.max()) - int(values.min()) if values.size else 0
    return -(-values.size * span.bit_length() // 8)


def laplace(shape: tuple[int, ...], scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return np.rint(np.random.default_rng(seed).laplace(0, scale, shape)).astype(np.int32)


@SLOW
@given(tensor=TENSORS)
def test_any_tensor_comes_back(compiled: None, tensor: np.ndarray) -> None:
    stream = pack(tensor)
    back = unpack(stream, tensor.shape)
    assert back.dtype == np.int32
    assert back.shape == tensor.shape
    assert np.array_equal(back, tensor)
    assert len(stream) <= raw_bytes(tensor) + 7


@SLOW
@given(tensor=TENSORS, method=st.sampled_from(["raw", "huffman", "adaptive"]))
def test_every_method_alone_is_exact(compiled: None, tensor: np.ndarray, method: str) -> None:
    if method == "huffman" and not tensor.size:
        with pytest.raises(ValueError, match="allow 'raw'"):
            pack(tensor, [method])
        return
    stream = pack(tensor, [method])
    assert method_of(stream) == method
    assert np.array_equal(unpack(stream, tensor.shape), tensor)


@SLOW
@given(tensors=st.lists(TENSORS, max_size=4))
def test_many_tensors_come_back_in_order(compiled: None, tensors: list[np.ndarray]) -> None:
    back = unpack_many(pack_many(tensors), [tensor.shape for tensor in tensors])
    assert [each.tolist() for each in back] == [tensor.tolist() for tensor in tensors]


def test_plain_twin_packs_the_same_bytes(either: str) -> None:
    tensors = [laplace((4, 3, 3, 3)), laplace((30, 8), 0.3), laplace((7,), 9.0)]
    stream = pack_many(tensors)
    assert hash_of(stream) == "85facaffa20738f9"
    back = unpack_many(stream, [tensor.shape for tensor in tensors])
    assert all(np.array_equal(a, b) for a, b in zip(back, tensors, strict=True))


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def test_constants_cost_next_to_nothing() -> None:
    assert len(pack(np.zeros((3000, 3000), np.int32))) == 2
    assert unpack(pack(np.full((2, 2), -(2**31), np.int32)), (2, 2)).tolist() == [[-(2**31)] * 2] * 2
    assert unpack(pack(np.zeros((0, 5), np.int32)), (0, 5)).shape == (0, 5)


def test_noise_is_packed_raw(compiled: None) -> None:
    noise = np.random.default_rng(0).integers(-(2**31), 2**31, 500, dtype=np.int32)
    assert method_of(pack(noise)) == "raw"


@pytest.mark.parametrize(("name", "shape"), [("rows", (256, 1)), ("columns", (1, 256)), ("both", (256, 256))])
def test_scales_are_learnt(compiled: None, name: str, shape: tuple[int, int]) -> None:
    source = np.random.default_rng(1)
    scales = np.exp(source.normal(0, 1.0, (shape[0], 1)) + source.normal(0, 1.0, (1, shape[1])))
    values = np.rint(source.laplace(0, 1.0, (256, 256)) * scales).astype(np.int32)
    known = sum(
        laplace_bits(scale, values[i, j]) for (i, j), scale in np.ndenumerate(np.broadcast_to(scales, (256, 256)))
    )
    # Within 4 % of a coder that is told every scale, well below one that knows only the histogram.
    assert len(pack(values)) < 1.04 * known / 8
    assert len(pack(values)) < 0.97 * entropy_bytes(values)


def laplace_bits(scale: float, value: int) -> float:
    ratio = math.exp(-0.5 / scale)
    size = abs(int(value))
    return (
        -math.log2(1 - ratio)
        if size == 0
        else -math.log2((ratio - ratio**3) / 2) + 2 * (size - 1) * 0.5 / scale / math.log(2)
    )


def test_one_kind_of_value_costs_its_entropy(compiled: None) -> None:
    values = laplace((400, 500), 0.8)
    assert len(pack(values)) < 1.003 * entropy_bytes(values)


def test_smooth_kernels_cost_less(compiled: None) -> None:
    source = np.random.default_rng(2)
    noise = source.normal(0, 3.0, (64, 32, 7, 7))
    smooth = noise[..., 2:, 2:] + noise[..., 1:-1, 2:] + noise[..., 2:, 1:-1] + noise[..., 1:-1, 1:-1]
    values = np.rint(smooth).astype(np.int32)
    assert len(pack(values)) < 0.95 * entropy_bytes(values)


def test_huffman_is_near_entropy() -> None:
    values = laplace((300, 700), 2.0)
    assert len(pack(values, ["huffman"])) < 1.04 * entropy_bytes(values)


@pytest.mark.parametrize(("net", "gain"), [("lenet_mnist", 1.002), ("resnet20_cifar10_jpegft", 0.90)])
def test_real_weights_cost_less_than_their_histogram(compiled: None, data_dir: Path, net: str, gain: float) -> None:
    # Measured 1.0005 and 0.87 at two bits a weight: LeNet's weights are alike, and the histogram is not free.
    layers = [each for each in load_file(data_dir / "models" / f"{net}.safetensors").values() if each.ndim > 1]
    tensors = [np.rint(each / each.std()).astype(np.int32) for each in layers]
    assert len(pack_many(tensors)) < gain * sum(map(entropy_bytes, tensors))


def test_limits_hold_before_anything_is_allocated() -> None:
    zeros = pack(np.zeros(4, np.int32))
    for shape in ((2**20, 2**20), (2**62, 4), (2**60, 0), (5,)):
        with pytest.raises(LoadError, match="allowed"):
            unpack(zeros, shape, limit=4)
    with pytest.raises(LoadError, match="negative"):
        unpack(zeros, (-1, 4))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="zip"):
        pack(np.zeros(3, np.int32), ["zip"])
    with pytest.raises(ValueError, match="methods"):
        pack(np.zeros(3, np.int32), [])
    with pytest.raises(LoadError, match="method"):
        method_of(b"\x09")
    assert set(METHODS) == {"constant", "raw", "huffman", "adaptive", "runs"}
