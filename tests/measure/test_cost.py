"""Parameters and MACs of hand-made files against sums done by hand, and of published networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as h
import pytest
from onnx import numpy_helper

from smidgen.errors import LoadError
from smidgen.measure.cost import onnx_cost

FLOAT = onnx.TensorProto.FLOAT


def write(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    shape: list[int | str],
    opset: int = 17,
    functions: list[onnx.FunctionProto] | None = None,
) -> Path:
    graph = h.make_graph(
        nodes,
        "made",
        [h.make_tensor_value_info("x", FLOAT, shape)],
        [h.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [h.make_opsetid("", opset), h.make_opsetid("com.microsoft", 1), h.make_opsetid("mine", 1)]
    onnx.save(h.make_model(graph, opset_imports=opsets, functions=functions or []), str(path))
    return path


def floats(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("kind", "given", "weight", "attributes", "macs"),
    [
        ("Conv", ["n", 3, 8, 8], (16, 3, 3, 3), {"pads": [1] * 4}, 16 * 8 * 8 * 27),
        ("Conv", ["n", 3, 8, 8], (16, 3, 3, 3), {"strides": [2, 2]}, 16 * 3 * 3 * 27),
        ("Conv", ["n", 16, 8, 8], (16, 1, 3, 3), {"group": 16, "pads": [1] * 4}, 16 * 8 * 8 * 9),
        ("Conv", ["n", 8, 4, 4], (12, 2, 1, 1), {"group": 4}, 12 * 4 * 4 * 2),
        ("Conv", [5, 8, 20], (4, 8, 3), {}, 4 * 18 * 24),
        ("ConvTranspose", ["n", 8, 4, 4], (8, 6, 2, 2), {"strides": [2, 2]}, 8 * 4 * 4 * 6 * 4),
        ("ConvTranspose", ["n", 8, 4, 4], (8, 3, 2, 2), {"strides": [2, 2], "group": 2}, 8 * 4 * 4 * 3 * 4),
        ("Gemm", ["n", 20], (10, 20), {"transB": 1}, 200),
        ("Gemm", ["n", 20], (20, 10), {}, 200),
        ("MatMul", ["n", 7, 20], (20, 10), {}, 7 * 200),
    ],
)
def test_one_operator(
    tmp_path: Path, kind: str, given: list[int | str], weight: tuple[int, ...], attributes: dict, macs: int
) -> None:
    node = h.make_node(kind, ["x", "w"], ["y"], **attributes)
    assert onnx_cost(write(tmp_path / "a.onnx", [node], {"w": floats(*weight)}, given)) == (np.prod(weight), macs)


def test_shape_constants_are_no_parameters_and_biases_are(tmp_path: Path) -> None:
    nodes = [
        h.make_node("Reshape", ["x", "shape"], ["flat"]),
        h.make_node("Gemm", ["flat", "w", "b"], ["z"]),
        h.make_node("Constant", [], ["six"], value=numpy_helper.from_array(np.array(6, np.float32))),
        h.make_node("Min", ["z", "six"], ["y"]),
    ]
    weights = {"shape": np.array([-1, 12]), "w": floats(12, 5), "b": floats(5)}
    assert onnx_cost(write(tmp_path / "a.onnx", nodes, weights, ["n", 3, 2, 2])) == (65, 60)


def test_a_shared_weight_is_stored_once_and_used_twice(tmp_path: Path) -> None:
    nodes = [h.make_node("MatMul", ["x", "w"], ["z"]), h.make_node("MatMul", ["z", "w"], ["y"])]
    assert onnx_cost(write(tmp_path / "a.onnx", nodes, {"w": floats(4, 4)}, ["n", 4])) == (16, 32)


def test_a_weight_in_a_constant_node_counts(tmp_path: Path) -> None:
    nodes = [
        h.make_node("Constant", [], ["w"], value=numpy_helper.from_array(floats(4, 40))),
        h.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    assert onnx_cost(write(tmp_path / "a.onnx", nodes, {}, ["n", 4])) == (160, 160)


def test_quantized_weights_count_like_the_floats_they_stand_for(tmp_path: Path) -> None:
    nodes = [
        h.make_node("QuantizeLinear", ["x", "sx", "zx"], ["qx"]),
        h.make_node("DequantizeLinear", ["qx", "sx", "zx"], ["dx"]),
        h.make_node("DequantizeLinear", ["qw", "sw", "zw"], ["w"], axis=0),
        h.make_node("Conv", ["dx", "w"], ["y"]),
    ]
    weights = {
        "sx": np.float32(0.1) * floats(),
        "zx": np.array(3, np.uint8),
        "qw": np.ones((4, 3, 3, 3), np.int8),
        "sw": floats(4),
        "zw": np.zeros(4, np.int8),
    }
    assert onnx_cost(write(tmp_path / "a.onnx", nodes, weights, ["n", 3, 6, 6])) == (108, 4 * 4 * 4 * 27)


def test_integer_and_packed_products_count(tmp_path: Path) -> None:
    nodes = [
        h.make_node(
            "MatMulNBits", ["x", "packed", "s"], ["z"], domain="com.microsoft", K=32, N=6, bits=4, block_size=32
        ),
        h.make_node("MatMul", ["z", "w"], ["y"]),
    ]
    weights = {"packed": np.zeros((6, 1, 16), np.uint8), "s": floats(6), "w": floats(6, 2)}
    assert onnx_cost(write(tmp_path / "a.onnx", nodes, weights, ["n", 5, 32])) == (192 + 12, 5 * (192 + 12))
    nodes = [
        h.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        h.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
        h.make_node("Cast", ["i"], ["y"], to=FLOAT),
    ]
    weights = {"s": floats(), "z": np.array(0, np.uint8), "w": np.zeros((8, 3), np.int8)}
    assert onnx_cost(write(tmp_path / "b.onnx", nodes, weights, ["n", 8])) == (24, 24)


def test_shapes_behind_computed_pads_are_found(tmp_path: Path) -> None:
    """The padding is a sum of two constants: shape inference alone loses the shape there."""
    nodes = [
        h.make_node("Mul", ["half", "two"], ["pads"]),
        h.make_node("Pad", ["x", "pads"], ["wide"]),
        h.make_node("Conv", ["wide", "w"], ["y"]),
    ]
    weights = {"half": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "two": np.array([2]), "w": floats(2, 3, 3, 3)}
    assert onnx_cost(write(tmp_path / "a.onnx", nodes, weights, ["n", 3, 4, 4])) == (54, 2 * 6 * 6 * 27)


def test_unknown_sizes_give_parameters_without_macs(tmp_path: Path) -> None:
    node = h.make_node("Conv", ["x", "w"], ["y"])
    assert onnx_cost(write(tmp_path / "a.onnx", [node], {"w": floats(2, 3, 1, 1)}, ["n", 3, "h", "w"])) == (6, None)


def test_local_functions_are_opened(tmp_path: Path) -> None:
    body = [h.make_node("MatMul", ["a", "b"], ["c"])]
    function = h.make_function("mine", "Product", ["a", "b"], ["c"], body, [h.make_opsetid("", 17)])
    node = h.make_node("Product", ["x", "w"], ["y"], domain="mine")
    path = write(tmp_path / "a.onnx", [node], {"w": floats(4, 5)}, ["n", 4], functions=[function])
    assert onnx_cost(path) == (20, 20)


def test_a_loop_or_branch_has_no_fixed_cost(tmp_path: Path) -> None:
    branch = h.make_graph(
        [h.make_node("MatMul", ["x", "w"], ["b"])], "branch", [], [h.make_tensor_value_info("b", FLOAT, None)]
    )
    node = h.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    path = write(tmp_path / "a.onnx", [node], {"yes": np.array(True), "w": floats(4, 5)}, ["n", 4])
    assert onnx_cost(path) == (20, None)


def test_what_is_no_onnx_file(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"not a network")
    for name in ("a.onnx", "none.onnx"):
        with pytest.raises(LoadError, match=name) as caught:
            onnx_cost(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        # arXiv:1801.04381, table 4: 300 M MACs; arXiv:1512.03385: ResNet-20 has 0.27 M parameters and 40.6 M MACs.
        ("mobilenet_v2_1.0_224_imagenet", 3.49e6, 300.8e6),
        ("resnet20_cifar10_jpegft", 0.269e6, 40.55e6),
        # SqueezeNet 1.1 at 227 pixels; at 224 its authors' figure is 352 M.
        ("squeezenet1_1_imagenet", 1.235e6, 387.7e6),
    ],
)
def test_published_networks(data_dir: Path, name: str, params: float, macs: float) -> None:
    assert onnx_cost(data_dir / "models" / f"{name}.onnx") == (
        pytest.approx(params, rel=0.002),
        pytest.approx(macs, rel=0.002),
    )


def test_lenet_by_hand(data_dir: Path) -> None:
    weights = 20 * 25 + 50 * 20 * 25 + 320 * 2450 + 10 * 320
    biases = 20 + 50 + 320 + 10
    macs = 28 * 28 * 20 * 25 + 14 * 14 * 50 * 20 * 25 + 320 * 2450 + 10 * 320
    assert onnx_cost(data_dir / "models" / "lenet_mnist.onnx") == (weights + biases, macs)


def test_a_fixed_batch_costs_the_same(data_dir: Path, tmp_path: Path) -> None:
    model = onnx.load(str(data_dir / "models" / "resnet8_cifar10_mlperftiny.onnx"))
    free = onnx_cost(data_dir / "models" / "resnet8_cifar10_mlperftiny.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 8
    onnx.save(onnx.shape_inference.infer_shapes(model), str(tmp_path / "eight.onnx"))
    assert onnx_cost(tmp_path / "eight.onnx") == free
