"""Pruned weights in ONNX files, opened by ONNX Runtime: the bits of the dense file, in fewer bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from smidgen.export.onnx_masked import masked_weight
from smidgen.forms import Codebook, Dense, Form, Masked, dense
from smidgen.runtimes.onnxruntime import open_onnx

BOOK = np.array([-1.5, -0.5, 0.0, 0.25, 2.0], np.float32)


def pruned(shape: tuple[int, ...], share: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < share, 0, rng.normal(size=shape)).astype("f4")


def read(path: Path, form: Form, shape: tuple[int, ...], turned: bool) -> tuple[bytes, onnx.ModelProto]:
    """The weight as the runtime makes it: that plus a scalar input of zero."""
    stored = shape[::-1] if turned else shape
    graph = helper.make_graph(
        [], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, stored)],
    )  # fmt: skip
    nodes = masked_weight(graph, form, dense(form).reshape(shape), "fc.weight", turned=turned)
    assert nodes
    graph.node.extend([*nodes, helper.make_node("Add", [nodes[-1].output[0], "x"], ["y"])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    with open_onnx(path) as runner:
        return runner.run(np.zeros(1, "f4"))[0].tobytes(), model


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", [(13, 31), (16, 64)])
def test_floats_come_back_to_the_bit(tmp_path, shape, turned):
    values = pruned(shape, 0.7)
    found, model = read(tmp_path / "a.onnx", Masked(values), shape, turned)
    assert found == np.ascontiguousarray(values.T if turned else values).tobytes()
    stored = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    assert stored["fc.mask"].nbytes == -(-values.size // 8)
    assert stored["fc.weight"].size == np.count_nonzero(values) + 1


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_codebooks_come_back_to_the_bit(tmp_path, share, turned):
    rng = np.random.default_rng(1)
    shape = (30, 70)
    indices = np.where(rng.random(shape) < share, 2, rng.integers(0, 5, shape)).astype(np.uint8)
    form = Codebook(indices, BOOK)
    found, model = read(tmp_path / "a.onnx", form, shape, turned)
    values = BOOK[indices]
    assert found == np.ascontiguousarray(values.T if turned else values).tobytes()
    stored = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    assert stored["fc.weight"].nbytes == -(-3 * (np.count_nonzero(values) + 1) // 8)


def test_a_convolution_comes_back_to_the_bit(tmp_path):
    values = pruned((8, 4, 3, 3), 0.8)
    found, _ = read(tmp_path / "a.onnx", Masked(values), values.shape, False)
    assert found == values.tobytes()


def test_where_a_mask_saves_nothing_there_is_none():
    graph = onnx.GraphProto()
    assert masked_weight(graph, Dense(pruned((40, 40), 0.0)), pruned((40, 40), 0.0), "w.weight", turned=False) == []
    assert masked_weight(graph, Masked(pruned((4, 4), 0.9)), pruned((4, 4), 0.9), "w.weight", turned=False) == []
    assert not graph.initializer
