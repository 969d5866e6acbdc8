"""Zeros of float tensors in archives: whoever made them, they cost next to nothing and the bits come back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from smidgen.errors import LoadError
from smidgen.export.archive import describe_archive, pack_archive, unpack_archive
from smidgen.export.archive_format import join, split
from smidgen.export.archive_masks import join_zeros, pack_masks, split_zeros, unpack_masks


def model_of(*arrays: np.ndarray) -> bytes:
    weights = [numpy_helper.from_array(each, f"w{i}") for i, each in enumerate(arrays)]
    return helper.make_model(helper.make_graph([], "g", [], [], weights)).SerializeToString()


def pruned(share: float, shape=(60, 50), dtype="f4") -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.where(rng.random(shape) < share, 0, rng.normal(size=shape)).astype(dtype)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_pruned_tensors_come_back_and_are_small(dtype):
    values, whole = pruned(0.9, dtype=dtype), pruned(0.0, dtype=dtype)
    data = pack_archive(model_of(values, whole), {})
    assert unpack_archive(data) == model_of(values, whole)
    assert data[4] == 3
    assert "masks" in describe_archive(data).streams
    survivors = np.count_nonzero(values) * values.itemsize
    entropy = 0.469 * values.size / 8
    assert len(pack_archive(model_of(values), {})) < survivors + 1.1 * entropy + 150


def test_a_file_without_zeros_is_of_the_version_that_older_readers_know():
    assert pack_archive(model_of(pruned(0.0)), {})[4] == 1
    assert pack_archive(model_of(np.zeros(40, "f4")), {})[4] == 1, "too small for a mask"
    assert pack_archive(model_of(pruned(0.05)), {})[4] == 1


def test_a_tensor_of_zeros_alone():
    model = model_of(np.zeros((40, 40), "f4"))
    assert unpack_archive(pack_archive(model, {})) == model


def test_zeros_of_either_sign_and_odd_values_keep_their_bits():
    values = pruned(0.5)
    values[::7] *= -0.0
    values[0, :3] = [np.nan, np.inf, -np.inf]
    model = model_of(values)
    assert unpack_archive(pack_archive(model, {})) == model


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 900), st.floats(0, 1), st.sampled_from([2, 4, 8]))
def test_splitting_and_joining(count, share, nbytes):
    raw = np.where(np.random.default_rng(count).random(count) < share, 0, 7).astype(f"<u{nbytes}").tobytes()
    parts = split_zeros(raw, nbytes)
    assert parts is None or join_zeros(*parts, nbytes) == raw


def test_a_damaged_mask_is_told():
    data = pack_archive(model_of(pruned(0.9)), {})
    header, streams = split(data, 1 << 20)
    other = pack_masks([np.eye(60, 50) > 0])
    with pytest.raises(LoadError, match="mask"):
        unpack_archive(join(header.graph_nbytes, header.checksum, {**streams, "masks": other}))
    less = {name: stream for name, stream in streams.items() if name != "masks"}
    with pytest.raises(LoadError, match="streams"):
        unpack_archive(join(header.graph_nbytes, header.checksum, less))
    with pytest.raises(LoadError, match="damaged"):
        unpack_masks(pack_masks([np.ones((3, 3)) * 2]), [(3, 3)], [18], 100)
