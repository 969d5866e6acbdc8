"""Estimated energy of graphs whose multiplications can be counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from smidgen.errors import LoadError
from smidgen.measure.energy import SOURCE, onnx_energy

FLOAT = onnx.TensorProto.FLOAT
MACS = 32 * 8


def written(path: Path, nodes: list[onnx.NodeProto], **weights: np.ndarray) -> Path:
    graph = helper.make_graph(
        nodes, "hand", [helper.make_tensor_value_info("x", FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


SCALES = {"s": np.float32(0.1), "z": np.int8(0)}
LINEAR = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"])


def test_floats_pay_for_float_products_and_four_bytes_a_weight(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    energy = onnx_energy(written(tmp_path / "f.onnx", nodes, w=np.zeros((32, 8), np.float32)))
    assert energy is not None
    assert energy.compute_joules == pytest.approx(MACS * 4.6e-12)
    assert energy.memory_joules == pytest.approx(4 * MACS * 1.95e-9 / 8)
    assert energy.as_dict()["joules"] == energy.compute_joules + energy.memory_joules
    assert energy.as_dict()["source"] == SOURCE
    assert "estimate" in SOURCE


def test_integer_weights_alone_are_multiplied_as_floats(tmp_path: Path) -> None:
    nodes = [LINEAR, helper.make_node("MatMul", ["x", "w"], ["y"])]
    energy = onnx_energy(written(tmp_path / "w8.onnx", nodes, q=np.zeros((32, 8), np.int8), **SCALES))
    assert energy is not None
    assert energy.compute_joules == pytest.approx(MACS * 4.6e-12)
    assert energy.memory_joules == pytest.approx((MACS + 5) * 1.95e-9 / 8)


def test_integer_inputs_are_multiplied_as_integers(tmp_path: Path) -> None:
    nodes = [
        LINEAR, helper.make_node("QuantizeLinear", ["x", "s", "z"], ["a"]),
        helper.make_node("DequantizeLinear", ["a", "s", "z"], ["b"]), helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]  # fmt: skip
    energy = onnx_energy(written(tmp_path / "int8.onnx", nodes, q=np.zeros((32, 8), np.int8), **SCALES))
    assert energy is not None
    assert energy.compute_joules == pytest.approx(MACS * 0.3e-12)


def test_a_file_that_is_not_onnx(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no network")
    with pytest.raises(LoadError, match=r"no\.onnx"):
        onnx_energy(tmp_path / "no.onnx")
