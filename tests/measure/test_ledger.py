"""Bytes of the layers of graphs that were written by hand."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from smidgen.errors import LoadError
from smidgen.measure.ledger import layer_weights, weigh, zipped_nbytes

FLOAT = onnx.TensorProto.FLOAT


def written(path: Path, nodes: list[onnx.NodeProto], **weights: np.ndarray) -> Path:
    ends = [helper.make_tensor_value_info(name, FLOAT, ["n", 4]) for name in "xy"]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    model = helper.make_model(helper.make_graph(nodes, "hand", ends[:1], ends[1:], stored))
    path.write_bytes(model.SerializeToString())
    return path


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_zipped_bytes_are_those_of_one_stream(parts: list[bytes]) -> None:
    weight = weigh(parts, 7)
    assert weight.nbytes == len(b"".join(parts))
    assert weight.zipped_nbytes == len(zlib.compress(b"".join(parts), 6))
    assert weight.memory_nbytes == 28


def test_a_file_zipped(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(3_000_000))
    assert zipped_nbytes(tmp_path / "zeros") == len(zlib.compress(bytes(3_000_000), 6))


def test_factors_and_biases_belong_to_their_layer(tmp_path: Path) -> None:
    floats = np.zeros((4, 4), np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "a.0.weight"], ["t"]),
        helper.make_node("MatMul", ["t", "a.1.weight"], ["y"]),
    ]
    path = written(
        tmp_path / "f.onnx", nodes,
        **{"a.0.weight": floats, "a.1.weight": floats, "a.1.bias": floats[0], "a.b.weight": floats, "other": floats},
    )  # fmt: skip
    held = layer_weights(path, ["a", "b"])
    assert list(held) == ["a"]
    assert (held["a"].nbytes, held["a"].memory_nbytes) == (4 * 36, 4 * 36)
    assert held["a"].zipped_nbytes < 30


def test_scales_and_codebooks_are_the_layer_s_and_integers_stand_for_floats(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["a.weight", "0~s"], ["0~w"], axis=0),
        helper.make_node("MatMul", ["x", "0~w"], ["t"]),
        helper.make_node("Gather", ["1~c", "b.weight"], ["1~w"]), helper.make_node("MatMul", ["t", "1~w"], ["y"]),
    ]  # fmt: skip
    path = written(
        tmp_path / "i.onnx", nodes,
        **{"a.weight": np.zeros((4, 4), np.int8), "0~s": np.zeros(4, np.float32),
           "b.weight": np.zeros((4, 4), np.uint8), "1~c": np.zeros(8, np.float32)},
    )  # fmt: skip
    held = layer_weights(path, ["a", "b"])
    assert (held["a"].nbytes, held["a"].memory_nbytes) == (16 + 16, 64)
    assert (held["b"].nbytes, held["b"].memory_nbytes) == (16 + 32, 64)


def test_what_the_input_is_read_with_belongs_to_none(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["x", "s"], ["t"]), helper.make_node("Mul", ["t", "a.weight"], ["y"])]
    path = written(tmp_path / "m.onnx", nodes, **{"s": np.zeros(4, np.float32), "a.weight": np.zeros(4, np.float32)})
    assert layer_weights(path, ["a"])["a"].nbytes == 16


def test_a_file_that_is_not_onnx(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no network")
    with pytest.raises(LoadError, match=r"no\.onnx"):
        layer_weights(tmp_path / "no.onnx", ["a"])
