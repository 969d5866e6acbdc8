"""Opening written files and running arrays through them, on hand-made networks and real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as h
import pytest

from smidgen.errors import DataError, LoadError
from smidgen.runtimes.onnxruntime import _options, _weight_only, open_onnx, saturation
from smidgen.runtimes.opening import run_dataset

FLOAT = onnx.TensorProto.FLOAT


def write(
    path: Path, nodes: list[onnx.NodeProto], inputs: dict[str, list], outputs: list[str], kind: int = FLOAT
) -> Path:
    """A file of ``nodes`` between ``inputs`` with shapes and ``outputs`` without."""
    graph = h.make_graph(
        nodes,
        "made",
        [h.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [h.make_tensor_value_info(name, kind, None) for name in outputs],
    )
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def two_outputs(path: Path, batch: int | str) -> Path:
    nodes = [h.make_node("Neg", ["x"], ["minus"]), h.make_node("Abs", ["x"], ["size"])]
    return write(path, nodes, {"x": [batch, 3]}, ["minus", "size"])


def test_runner_tells_what_the_file_takes_and_gives(tmp_path: Path) -> None:
    runner = open_onnx(two_outputs(tmp_path / "free.onnx", "batch"))
    assert (runner.input_name, runner.input_shape, runner.input_dtype) == ("x", (None, 3), np.float32)
    assert runner.output_names == ("minus", "size")
    minus, size = runner.run(np.array([[-1, 0, 2]]))
    assert minus.dtype == np.float32
    assert minus.tolist() == [[1, 0, -2]]
    assert size.tolist() == [[1, 0, 2]]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_a_fixed_batch_takes_any_number_of_samples(tmp_path: Path, count: int) -> None:
    runner = open_onnx(two_outputs(tmp_path / "fixed.onnx", 3))
    x = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    minus, size = runner.run(x)
    assert runner.input_shape == (3, 3)
    assert np.array_equal(minus, -x)
    assert np.array_equal(size, abs(x))


def test_an_output_without_samples_cannot_be_cut(tmp_path: Path) -> None:
    node = h.make_node("ReduceMean", ["x"], ["mean"], keepdims=0)
    runner = open_onnx(write(tmp_path / "mean.onnx", [node], {"x": [2, 3]}, ["mean"]))
    assert runner.run(np.ones((2, 3)))[0] == 1
    with pytest.raises(DataError, match="multiple of 2 samples"):
        runner.run(np.ones((3, 3)))


def test_integer_inputs_are_cast(tmp_path: Path) -> None:
    path = write(
        tmp_path / "int.onnx", [h.make_node("Neg", ["x"], ["y"])], {"x": ["n", 2]}, ["y"], onnx.TensorProto.INT64
    )
    runner = open_onnx(path)
    assert runner.input_dtype == np.int64
    assert runner.run(np.array([[3.0, 4.0]]))[0].tolist() == [[-3, -4]]


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 1), (3,), (0, 3)])
def test_a_shape_that_does_not_fit_is_named(tmp_path: Path, shape: tuple[int, ...]) -> None:
    runner = open_onnx(two_outputs(tmp_path / "free.onnx", "batch"))
    with pytest.raises(DataError, match=r"takes \[n, 3\] with n ≥ 1, got \[") as caught:
        runner.run(np.zeros(shape))
    assert "\n" not in str(caught.value)


def test_a_fault_while_running_is_one_line(tmp_path: Path) -> None:
    shape = h.make_node("Constant", [], ["five"], value_ints=[5])
    node = h.make_node("Reshape", ["x", "five"], ["y"])
    runner = open_onnx(write(tmp_path / "reshape.onnx", [shape, node], {"x": ["n", 3]}, ["y"]))
    with pytest.raises(DataError, match=r"'reshape.onnx' fails on \[2, 3\]") as caught:
        runner.run(np.zeros((2, 3)))
    assert "\n" not in str(caught.value)


def test_what_cannot_be_opened(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rubbish = tmp_path / "rubbish.onnx"
    rubbish.write_bytes(b"not a network")
    unknown = write(tmp_path / "unknown.onnx", [h.make_node("Frobnicate", ["x"], ["y"])], {"x": [1]}, ["y"])
    two = write(tmp_path / "two.onnx", [h.make_node("Add", ["a", "b"], ["y"])], {"a": [1, 2], "b": [1, 2]}, ["y"])
    cases = {
        tmp_path / "none.onnx": "no file",
        rubbish: "cannot open",
        unknown: "cannot open",
        two: r"2 inputs \(a, b\)",
    }
    for path, message in cases.items():
        with pytest.raises(LoadError, match=message) as caught:
            open_onnx(path)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_closed_runner_says_so(tmp_path: Path) -> None:
    with open_onnx(two_outputs(tmp_path / "free.onnx", "batch")) as runner:
        pass
    runner.close()
    with pytest.raises(LoadError, match="closed"):
        runner.run(np.zeros((1, 3)))


def test_run_dataset_joins_uneven_batches(tmp_path: Path) -> None:
    runner = open_onnx(two_outputs(tmp_path / "fixed.onnx", 2))
    x = np.arange(15, dtype=np.float32).reshape(5, 3)
    minus, size = run_dataset(runner, (x[start : start + 3] for start in (0, 3)))
    assert np.array_equal(minus, -x)
    assert np.array_equal(size, x)
    with pytest.raises(DataError, match="nothing to run"):
        run_dataset(runner, [])


def test_real_networks_answer(data_dir: Path) -> None:
    lenet = open_onnx(data_dir / "models" / "lenet_mnist.onnx")
    assert lenet.input_shape == (None, 1, 28, 28)
    assert lenet.run(np.zeros((2, 1, 28, 28)))[0].shape == (2, 10)
    face = open_onnx(str(data_dir / "models" / "ultraface_rfb320.onnx"))
    x = np.random.default_rng(0).normal(size=(2, 3, 240, 320)).astype(np.float32)
    scores, boxes = face.run(x)
    assert (scores.shape, boxes.shape) == ((2, 4420, 2), (2, 4420, 4))
    assert np.array_equal(face.run(x[1:])[0][0], scores[1])


def test_integers_are_unpacked_on_opening_and_not_where_the_file_makes_some_itself(tmp_path: Path) -> None:
    """Which is told from the operators' names alone; the answers are the same either way."""
    weight = h.make_tensor("z", onnx.TensorProto.INT8, [3, 2], [1, 2, 3, 4, 5, -6])
    scale = h.make_tensor("s", FLOAT, [], [0.5])
    product = [h.make_node("DequantizeLinear", ["z", "s"], ["w"]), h.make_node("MatMul", ["v", "w"], ["y"])]
    rounded = [h.make_node("QuantizeLinear", ["x", "s"], ["q"]), h.make_node("DequantizeLinear", ["q", "s"], ["v"])]
    given, wanted = h.make_tensor_value_info("x", FLOAT, ["n", 3]), h.make_tensor_value_info("y", FLOAT, ["n", 2])
    for name, before, alone in (("some", rounded, False), ("none", [h.make_node("Relu", ["x"], ["v"])], True)):
        graph = h.make_graph([*before, *product], "made", [given], [wanted], [weight, scale])
        onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 19)], ir_version=9), str(tmp_path / name))
        runner = open_onnx(tmp_path / name)
        assert _weight_only(tmp_path / name) == alone
        assert runner.run(np.array([[1.0, 2.0, 0.5]]))[0].tolist() == [[4.75, 3.5]]


def test_unfused_a_file_of_integers_answers_exactly_on_any_processor(tmp_path: Path) -> None:
    """255·127 + 255·127 is past 16 bits, in which processors without VNNI add such products."""
    tensors = [
        h.make_tensor("w", onnx.TensorProto.INT8, [4, 8], [127] * 32), h.make_tensor("s", FLOAT, [], [1.0]),
        h.make_tensor("z", onnx.TensorProto.UINT8, [], [0]), h.make_tensor("t", FLOAT, [], [2000.0]),
    ]  # fmt: skip
    nodes = [
        h.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), h.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        h.make_node("DequantizeLinear", ["w", "s"], ["v"]), h.make_node("MatMul", ["d", "v"], ["p"]),
        h.make_node("QuantizeLinear", ["p", "t", "z"], ["r"]), h.make_node("DequantizeLinear", ["r", "t", "z"], ["y"]),
    ]  # fmt: skip
    given, wanted = h.make_tensor_value_info("x", FLOAT, ["n", 4]), h.make_tensor_value_info("y", FLOAT, ["n", 8])
    graph = h.make_graph(nodes, "products", [given], [wanted], tensors)
    path = tmp_path / "products.onnx"
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 19)], ir_version=9), str(path))
    x = np.full((1, 4), 255.0, np.float32)
    with open_onnx(path, fused=False) as runner:
        assert runner.run(x)[0].tolist() == [[130_000.0] * 8]  # 4·255·127 = 129,540, in steps of 2,000
    with open_onnx(path) as runner:
        off = float(np.abs(runner.run(x)[0] - 130_000.0).max()) / 130_000.0
    assert saturation(path, x) == pytest.approx(off)


def test_floats_never_saturate(data_dir: Path) -> None:
    x = np.random.default_rng(0).uniform(0, 255, (2, 1, 28, 28)).astype(np.float32)
    assert saturation(data_dir / "models" / "lenet_mnist.onnx", x) < 1e-5


def test_threads_do_not_spin_between_calls():
    # Files are timed in turns: what one leaves turning would be in another's time.
    assert _options(2).get_session_config_entry("session.force_spinning_stop") == "1"
