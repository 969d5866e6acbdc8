"""Short names: the same answers in fewer bytes, inputs and outputs named as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from smidgen.export.onnx_strip import shortened, strip
from smidgen.runtimes.onnxruntime import open_onnx


def test_names_of_weights_stay_unless_short_ones_are_wanted(tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["a", "first.weight"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "second.weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["b"]),
    ]
    shapes = {"first.weight": (3, 5), "second.weight": (5, 2), "bias": (2,)}
    tensors = [numpy_helper.from_array(source.normal(size=s).astype("f4"), name) for name, s in shapes.items()]
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, d]) for n, d in (("a", 3), ("b", 2))]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)

    kept, short = strip(proto), strip(proto, names="short")
    assert [tensor.name for tensor in kept.graph.initializer] == list(shapes)
    # In the order of their first use, past the names of input and output.
    assert [tensor.name for tensor in short.graph.initializer] == ["c", "f", "h"]
    assert [list(node.input) for node in short.graph.node] == [["a", "c"], ["d"], ["e", "f"], ["g", "h"]]
    assert short.ByteSize() < kept.ByteSize() < proto.ByteSize()
    file, names = shortened(kept.SerializeToString())
    assert file == short.SerializeToString()
    assert [names[name] for name in shapes] == ["c", "f", "h"]
    x, answers = source.normal(size=(1, 3)).astype("f4"), []
    for model in (proto, kept, short):
        onnx.save(model, tmp_path / "model.onnx")
        with open_onnx(tmp_path / "model.onnx") as runner:
            answers.append(runner.run(x)[0])
    assert answers[0].tolist() == answers[1].tolist() == answers[2].tolist()


@pytest.mark.parametrize("name", ["ai85cd_catsdogs", "resnet20_cifar10_jpegft"])
def test_real_networks_with_short_names_answer_alike(data_dir: Path, tmp_path: Path, name: str) -> None:
    proto = onnx.load(data_dir / "models" / f"{name}.onnx")
    short = strip(proto, names="short")
    assert [v.name for v in short.graph.output] == [v.name for v in proto.graph.output]
    assert short.ByteSize() < strip(proto).ByteSize()
    shape = [side.dim_value or 1 for side in proto.graph.input[0].type.tensor_type.shape.dim]
    x, answers = np.random.default_rng(0).normal(size=shape).astype("f4"), []
    for model in (proto, short):
        onnx.save(model, tmp_path / "model.onnx")
        with open_onnx(tmp_path / "model.onnx") as runner:
            answers.append(runner.run(x)[0])
    assert np.array_equal(*answers)
