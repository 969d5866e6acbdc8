"""ONNX files that are wrong, or ask for too much: an error that names the place, in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from smidgen.errors import LoadError, UnsupportedOperator
from smidgen.model.onnx import import_model, load_onnx
from tests.model.onnx_graphs import model_of, random, stored, value


def relu_model(**changes):
    model = model_of([helper.make_node("Relu", ["x"], ["y"], name="act")], [value("x", ["N", 2])], [value("y", None)])
    for name, change in changes.items():
        getattr(model, name).CopyFrom(change)
    return model


def gemm_model(weight):
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)]
    return model_of(nodes, [value("x", ["N", 2])], [value("y", None)], [weight])


@pytest.mark.parametrize("content", [b"", b"not a network", b"\x08\x07", b"\xff" * 100, bytes(1000)])
def test_files_that_are_not_onnx(content, tmp_path: Path):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(LoadError) as raised:
        load_onnx(path)
    assert "\n" not in str(raised.value)


def test_paths_that_are_no_file(tmp_path: Path):
    for path in (tmp_path, tmp_path / "none.onnx", "\0"):
        with pytest.raises(LoadError):
            load_onnx(path)


def test_a_file_over_the_limit_is_not_read(tmp_path: Path):
    path = tmp_path / "m.onnx"
    path.write_bytes(relu_model().SerializeToString())
    with pytest.raises(LoadError, match="max_bytes"):
        load_onnx(path, max_bytes=10)


def test_every_unsupported_operator_is_named_at_once():
    nodes = [
        helper.make_node("Loop", ["x"], ["a"], name="l"),
        helper.make_node("Magic", ["a"], ["b"], domain="com.acme"),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    with pytest.raises(UnsupportedOperator) as raised:
        import_model(model_of(nodes, [value("x", [1])], [value("y", None)]))
    message = str(raised.value)
    assert all(word in message for word in ("'Loop'", "'Magic'", "com.acme", "opset 17", "supported_operators()"))


@pytest.mark.parametrize("version", [1, 6, 99])
def test_opsets_out_of_range(version):
    with pytest.raises(LoadError, match="opset"):
        import_model(
            model_of([helper.make_node("Relu", ["x"], ["y"])], [value("x", [1])], [value("y", None)], (), version)
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(bad):
    with pytest.raises(LoadError, match="'w'"):
        import_model(gemm_model(stored("w", np.array([[1.0, bad]], np.float32))))


@pytest.mark.parametrize(
    "change",
    [
        {"dims": [1 << 40, 1 << 40]},
        {"dims": [-1, 2]},
        {"dims": [2, 2]},
        {"raw_data": b"\0" * 7},
        {"data_type": TensorProto.STRING},
        {"data_type": 99},
    ],
)
def test_stored_tensors_must_fit_their_dims(change):
    weight = stored("w", np.ones((1, 2), np.float32))
    for name, new in change.items():
        if name == "dims":
            weight.dims[:] = new
        else:
            setattr(weight, name, new)
    with pytest.raises(LoadError, match="'w'"):
        import_model(gemm_model(weight))


def external_model(location, offset="0", length="8"):
    weight = TensorProto(name="w", dims=[1, 2], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, text in (("location", location), ("offset", offset), ("length", length)):
        weight.external_data.add(key=key, value=text)
    return gemm_model(weight)


def test_external_data_beside_the_model(tmp_path: Path):
    (tmp_path / "w.bin").write_bytes(b"\0" * 4 + np.array([3, 4], np.float32).tobytes())
    (tmp_path / "m.onnx").write_bytes(external_model("w.bin", "4").SerializeToString())
    loaded = load_onnx(tmp_path / "m.onnx")
    assert loaded.module(torch.ones(1, 2)).item() == 7


@pytest.mark.parametrize(
    ("location", "offset", "length"),
    [
        ("../w.bin", "0", "8"),
        ("/etc/passwd", "0", "8"),
        ("a/../../w.bin", "0", "8"),
        ("link", "0", "8"),
        ("sub/w.bin", "0", "8"),
        ("none.bin", "0", "8"),
        ("", "0", "8"),
        ("here.bin", "4", "8"),
        ("here.bin", "-4", "8"),
        ("here.bin", "0", "99999999999999999999"),
        ("here.bin", "x", "8"),
    ],
)
def test_external_data_elsewhere_are_refused(location, offset, length, tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(8))
    (folder / "here.bin").write_bytes(bytes(8))
    (folder / "link").symlink_to(tmp_path / "w.bin")
    (folder / "sub").symlink_to(tmp_path)
    (folder / "m.onnx").write_bytes(external_model(location, offset, length).SerializeToString())
    with pytest.raises(LoadError, match="'w'"):
        load_onnx(folder / "m.onnx")


def test_external_data_without_a_folder_are_refused():
    with pytest.raises(LoadError, match="'w'"):
        import_model(external_model("w.bin"))


HUGE = 1 << 40


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Relu", ["nowhere"], ["y"]),
        helper.make_node("Relu", ["y"], ["y"]),
        helper.make_node("Relu", ["x"], ["x"]),
        helper.make_node("Relu", ["x", "x"], ["y"]),
        helper.make_node("Relu", [], ["y"]),
        helper.make_node("Relu", ["x"], ["y"], alpha=1.0),
        helper.make_node("LeakyRelu", ["x"], ["y"], alpha=1),
        helper.make_node("Add", ["x", "k"], ["y"]),
        helper.make_node("Concat", ["x"], ["y"]),
        helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[0, 1]),
        helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[0, 2]),
        helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], pads=[HUGE] * 4),
        helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[1 << 20, 1 << 20], pads=[1 << 20] * 4),
        helper.make_node("Tile", ["x", "huge"], ["y"]),
        helper.make_node("Expand", ["x", "huge"], ["y"]),
        helper.make_node("Reshape", ["x", "huge"], ["y"]),
        helper.make_node("Pad", ["x", "hugepads"], ["y"]),
        helper.make_node("Pad", ["x", "hugepads"], ["y"], mode="edge"),
        helper.make_node("ConstantOfShape", ["huge"], ["y"]),
        helper.make_node("Range", ["zero", "big", "one"], ["y"]),
        helper.make_node("OneHot", ["k", "big", "pair"], ["y"]),
        helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="cubic", antialias=1),
        helper.make_node("Transpose", ["x"], ["y"], perm=[0, 0, 1, 2]),
        helper.make_node("Gather", ["x", "big"], ["y"]),
        helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=0),
        helper.make_node("LRN", ["x"], ["y"], size=HUGE),
        helper.make_node("HannWindow", ["big"], ["y"]),
        helper.make_node("Cast", ["x"], ["y"], to=99),
        helper.make_node("Unsqueeze", ["x", "big"], ["y"]),
    ],
    ids=lambda node: node.op_type,
)
def test_nodes_that_are_wrong_or_ask_for_too_much(node):
    initializers = [
        stored("k", np.array([1])),
        stored("huge", np.array([HUGE, 1, HUGE, 1])),
        stored("hugepads", np.array([0, 0, 0, 0, HUGE, 0, 0, HUGE])),
        stored("zero", np.array(0)),
        stored("one", np.array(1)),
        stored("big", np.array(HUGE)),
        stored("pair", np.array([0.0, 1.0], np.float32)),
        stored("scales", np.array([1, 1, 1e7, 1e7], np.float32)),
    ]
    model = model_of([node], [value("x", ["N", 2, 4, 4])], [value("y", None)], initializers, opset=18)
    with pytest.raises(LoadError) as raised:
        import_model(model)
    assert "\n" not in str(raised.value)


def test_a_failing_node_is_named_with_its_operator_and_opset():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="head")]
    model = model_of(nodes, [value("x", ["N", 3])], [value("y", None)], [stored("w", random(4, 5))])
    with pytest.raises(LoadError, match=r"node 'head' \(MatMul, opset 17\).*export the model again"):
        import_model(model)
