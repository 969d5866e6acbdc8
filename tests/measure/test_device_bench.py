"""The script that travels with a bundle, piece by piece."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smidgen.measure.device import bench
from smidgen.measure.device.bench import Counters, compare, grid_step, quantized, unquantized

GENERATOR = np.random.default_rng(0)


def test_it_needs_numpy_alone_and_an_old_python() -> None:
    tree = ast.parse(Path(bench.__file__).read_text(encoding="utf-8"), feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) == {"numpy"}


@given(st.integers(0, 2**31), st.floats(1e-4, 10), st.integers(0, 255))
def test_the_step_of_eight_bit_outputs_is_found(seed: int, scale: float, zero: int) -> None:
    q = np.random.default_rng(seed).integers(0, 256, (16, 10))
    values = (q - zero).astype(np.float32) * np.float32(scale)
    step = grid_step(values)
    assert step is not None
    assert step == pytest.approx(np.gcd.reduce(np.diff(np.unique(q))) * scale, rel=1e-3)


@given(st.integers(0, 2**31))
def test_floats_have_no_step(seed: int) -> None:
    assert grid_step(np.random.default_rng(seed).normal(size=(16, 10)).astype(np.float32)) is None


def test_floats_agree_to_four_digits() -> None:
    want = GENERATOR.normal(size=(16, 10)).astype(np.float32)
    size = np.abs(want).max()
    near, far = want.copy(), want.copy()
    near[3, 4] += 0.9e-4 * size
    far[3, 4] += 1.2e-4 * size
    assert compare([near], [want])["agree"]
    told = compare([far], [want])
    assert not told["agree"]
    assert told["max_rel_error"] == pytest.approx(1.2e-4, rel=0.01)
    assert told["step"] is None


def quantized_outputs() -> np.ndarray:
    """Answers of 200 inputs on a grid of 0.25, the largest one far ahead."""
    q = GENERATOR.integers(-100, 90, (200, 10))
    q[np.arange(200), np.arange(200) % 10] = 110
    return (q * 0.25).astype(np.float32)


def test_integers_agree_within_one_step() -> None:
    want = quantized_outputs()
    one = want + 0.25 * GENERATOR.integers(-1, 2, want.shape).astype(np.float32)
    told = compare([one], [want])
    assert (told["agree"], told["step"], told["within_one_step"], told["same_answers"]) == (True, 0.25, 1.0, 1.0)
    few, many = want.copy(), want.copy()
    few.reshape(-1)[1:3] += 0.5  # 2 of 2,000
    many.reshape(-1)[1:4] += 0.5
    assert compare([few], [want])["agree"]
    assert not compare([many], [want])["agree"]


def test_another_answer_never_agrees() -> None:
    want = quantized_outputs()
    want[0, :2] = 27.5, 27.25
    got = want.copy()
    got[0, :2] = 27.25, 27.5  # one step each
    told = compare([got], [want])
    assert told["within_one_step"] == 1
    assert told["same_answers"] < 1
    assert not told["agree"]


def test_shapes_class_numbers_and_nan_are_told() -> None:
    assert not compare([np.zeros((2, 3))], [np.zeros((2, 4))])["agree"]
    assert not compare([np.full((2, 3), np.nan)], [np.zeros((2, 3))])["agree"]
    assert not compare([], [np.zeros((2, 3))])["agree"]
    assert not compare([np.array([1, 2])], [np.array([1, 3])])["agree"]
    assert compare([np.array([1, 2])], [np.array([1, 2])])["agree"]


def test_integer_inputs_and_outputs_go_by_the_file_s_scale() -> None:
    details: dict[str, Any] = {"dtype": np.int8, "quantization": (0.5, -3)}
    x = np.array([0.0, 1.0, -200.0, 200.0], np.float32)
    q = quantized(x, details)
    assert (q.dtype, q.tolist()) == (np.int8, [-3, -1, -128, 127])
    assert unquantized(q, details).tolist() == [0.0, 1.0, -62.5, 65.0]
    floats: dict[str, Any] = {"dtype": np.float32, "quantization": (0.0, 0)}
    assert quantized(x, floats) is x


def tflite_relu(path: Path, scale: float, zero: int) -> Path:
    """A TFLite file of one ReLU on int8 maps [1, 2, 2, 3], channels last."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="LiteRT is not installed")
    flatbuffers = pytest.importorskip("flatbuffers")

    def tensor(name: str) -> Any:
        grid = schema.QuantizationParametersT()
        grid.scale, grid.zeroPoint = [scale], [zero]
        made = schema.TensorT()
        made.name, made.shape, made.type, made.quantization = name, [1, 2, 2, 3], schema.TensorType.INT8, grid
        return made

    code, operator, graph, model = (
        schema.OperatorCodeT(), schema.OperatorT(), schema.SubGraphT(), schema.ModelT()
    )  # fmt: skip
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RELU
    operator.inputs, operator.outputs = [0], [1]
    graph.tensors, graph.inputs, graph.outputs, graph.operators = [tensor("x"), tensor("y")], [0], [1], [operator]
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(256)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


@pytest.mark.filterwarnings("ignore")  # of the runtime's
def test_a_tflite_file_of_integers_takes_and_gives_floats(tmp_path: Path) -> None:
    run = bench.open_tflite(tflite_relu(tmp_path / "relu.tflite", 0.5, -3), 1, True)
    x = GENERATOR.normal(size=(1, 3, 2, 2)).astype(np.float32) * 9
    (y,) = run(x)
    assert y.shape == (1, 2, 2, 3)
    np.testing.assert_allclose(y, np.maximum(np.round(np.moveaxis(x, 1, -1) * 2) / 2, 0))
    assert compare([y], [y])["step"] == 0.5


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    for name, label, value in (("rapl:0", "package-0", 900), ("rapl:0:0", "core", 5), ("rapl:1", "package-1", 10)):
        zone = tmp_path / name
        zone.mkdir()
        (zone / "name").write_text(label + "\n")
        (zone / "energy_uj").write_text(f"{value}\n")
        (zone / "max_energy_range_uj").write_text("999\n")
    return tmp_path


def test_joules_are_those_of_all_packages_also_where_a_counter_wraps(powercap: Path) -> None:
    counters = Counters(powercap)
    before = counters.read()
    assert (before, counters.reason) == ([900, 10], None)
    (powercap / "rapl:0" / "energy_uj").write_text("100")  # 200 µJ on: 900 … 999, 0 … 100
    (powercap / "rapl:1" / "energy_uj").write_text("60")
    assert counters.joules(before, counters.read()) == pytest.approx(250e-6)


def test_joules_are_a_share_of_the_calls(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "JOULE_SECONDS", 0.0)
    used = iter(range(900, 980, 10))

    def run(x: np.ndarray) -> list[np.ndarray]:
        (powercap / "rapl:0" / "energy_uj").write_text(str(next(used) + 10))
        return [x]

    assert Counters(powercap).measure(run, np.zeros(1)) == pytest.approx(10e-6)


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "none"):
        counters = Counters(root)
        assert not counters.files
        assert counters.reason == "this machine has no energy counters"
