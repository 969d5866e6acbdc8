"""TensorFlow Lite Micro: the answers of LiteRT, the arena, and files that it cannot run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smidgen.errors import DataError, LoadError
from smidgen.runtimes import micro, tflite_file
from smidgen.runtimes.litert import runner_of
from smidgen.runtimes.micro import MICRO_END, arena_nbytes, open_micro
from smidgen.runtimes.opening import Runner, open_file, run_dataset
from smidgen.runtimes.tflite_file import number_of, serialise

pytest.importorskip("ai_edge_litert", reason="the tflite extra is not installed")
pytest.importorskip("tflite_micro", reason="the mcu extra is not installed")


def chain(name: str, count: int = 1, shape: tuple[int, ...] = (1, 3)) -> bytes:
    """x → operator → … → y, of integers with another scale at each end."""
    s = tflite_file.schema()
    tensors: list[Any] = []
    for n in range(count + 1):
        last = n == count
        tensor = s.TensorT(shape=list(shape), type=number_of("TensorType", "INT8"), name="y" if last else "x")
        tensor.quantization = s.QuantizationParametersT(scale=[0.25 if last else 0.5], zeroPoint=[-3 if last else 10])
        tensors.append(tensor)
    code = number_of("BuiltinOperator", name)
    operators = [s.OperatorT(inputs=[n], outputs=[n + 1]) for n in range(count)]
    graph = s.SubGraphT(tensors=tensors, inputs=[0], outputs=[count], operators=operators)
    codes = [s.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=min(code, 127), version=2)]
    return serialise(s.ModelT(version=3, subgraphs=[graph], operatorCodes=codes, buffers=[s.BufferT()]))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / f"net{MICRO_END}"
    path.write_bytes(chain("QUANTIZE"))
    return path


def test_the_end_of_a_name_says_which_interpreter(file: Path, tmp_path: Path) -> None:
    with open_file(file) as runner:
        assert isinstance(runner, Runner)
        assert isinstance(runner, micro.MicroRunner)
        assert (runner.input_shape, runner.output_names, runner.input_dtype) == ((1, 3), ("y",), np.float32)
    (tmp_path / "net.tflite").write_bytes(file.read_bytes())
    assert not isinstance(open_file(tmp_path / "net.tflite"), micro.MicroRunner)


def test_integers_at_the_ends_are_made_of_floats_and_turned_back_as_litert_does(file: Path) -> None:
    x = np.array([[1.0, 1.26, -2.0], [1000.0, -1000.0, 0.0]], "f4")
    with open_micro(file) as runner:
        # Steps of a half, -128 to 127 with zero at 10; then steps of a quarter with zero at -3.
        assert runner.run(x)[0].tolist() == [[1.0, 1.5, -2.0], [32.5, -31.25, 0.0]]
        assert np.array_equal(run_dataset(runner, [x, x[:1]])[0][:2], runner_of(file.read_bytes()).run(x)[0])


def test_the_arena_holds_two_activations_at_once_and_what_is_kept_of_operators(tmp_path: Path) -> None:
    """A chain needs two buffers however long it is; each further operator adds its own bookkeeping."""
    sizes = {}
    for count, width in ((2, 1024), (2, 4096), (6, 4096)):
        path = tmp_path / f"{count}-{width}{MICRO_END}"
        path.write_bytes(chain("QUANTIZE", count, (1, width)))
        sizes[count, width] = arena_nbytes(path)
    assert sizes[2, 4096] - sizes[2, 1024] == 2 * (4096 - 1024)
    assert 0 < sizes[6, 4096] - sizes[2, 4096] < 4 * 1024


def test_shapes_that_do_not_fit_and_a_closed_file_are_told(file: Path) -> None:
    runner = open_micro(file)
    for shape in [(2, 4), (0, 3), (3,)]:
        with pytest.raises(DataError, match=r"takes \[n, 3\]"):
            runner.run(np.zeros(shape, "f4"))
    runner.close()
    runner.close()
    with pytest.raises(LoadError, match="closed"):
        runner.run(np.zeros((1, 3), "f4"))


def test_an_operator_that_it_lacks_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / f"net{MICRO_END}"
    path.write_bytes(chain("GELU"))
    with pytest.raises(LoadError, match=r"cannot run .*GELU") as caught:
        open_micro(path)
    assert "\n" not in str(caught.value)


def test_files_that_no_microcontroller_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"net{MICRO_END}"
    with pytest.raises(LoadError, match="no file"):
        open_micro(path)
    path.write_bytes(b"not a network")
    with pytest.raises(LoadError, match="is not a TFLite file"):
        open_micro(path)
    path.write_bytes(chain("QUANTIZE", shape=(2, 3)))
    with pytest.raises(LoadError, match="one sample at a time"):
        open_micro(path)
    path.write_bytes(chain("QUANTIZE", shape=(1, 1 << 30)))
    with pytest.raises(LoadError, match="no microcontroller has it"):
        open_micro(path)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_ends_the_interpreter_is_one_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An arena too small for what the interpreter keeps is a segmentation fault in it."""
    monkeypatch.setattr(micro, "_ROOM", 400)
    monkeypatch.setattr(micro, "_LOOSE", 0)
    monkeypatch.setattr(micro, "_ARENAS", {})
    monkeypatch.setattr(micro, "_room", lambda model, path: 400)
    with pytest.raises(LoadError, match=r"crashes on|cannot run") as caught:
        open_micro(file)
    assert "\n" not in str(caught.value)


def test_a_missing_package_names_the_command(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r"pip install smidgen\[mcu\]"):
        open_micro(file)
