"""Opening TFLite files and running arrays through them: floats, integers at the ends, and files that are damaged."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from smidgen.errors import DataError, LoadError

pytest.importorskip("litert_torch", reason="the tflite extra is not installed")

from smidgen.export.tflite import to_tflite
from smidgen.runtimes import tflite_file
from smidgen.runtimes.litert import open_tflite, runner_of
from smidgen.runtimes.opening import Runner, open_file, run_dataset
from smidgen.runtimes.tflite_file import number_of, parse, serialise

HEADS = ("scores", "features")


class Net(nn.Module):
    """Two outputs of a depthwise and a plain convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.point, self.head = nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(6, 8, 1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.point(self.depth(x).relu()).relu().mean((2, 3))
        return self.head(features), features


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def content(network: nn.Module) -> bytes:
    return to_tflite(network, torch.zeros(2, 3, 9, 7), "pixels", HEADS)


@pytest.fixture
def file(content: bytes, tmp_path: Path) -> Path:
    (tmp_path / "net.tflite").write_bytes(content)
    return tmp_path / "net.tflite"


def test_runner_tells_what_the_file_takes_and_gives(file: Path) -> None:
    with open_file(file) as runner:
        assert isinstance(runner, Runner)
        assert runner.input_shape == (1, 3, 9, 7), "channels first, as the network takes them"
        assert (runner.input_dtype, runner.output_names) == (np.float32, HEADS)
        assert tuple(runner._interpreter[0].get_input_details()[0]["shape"]) == (1, 9, 7, 3)  # type: ignore[attr-defined]


def test_any_number_of_samples_answers_as_the_network(file: Path, network: nn.Module) -> None:
    x = np.random.default_rng(0).normal(size=(5, 3, 9, 7)).astype("f4")
    with open_tflite(file) as runner, torch.no_grad():
        together = runner.run(x)
        parts = run_dataset(runner, [x[:2], x[2:].astype("f8")])
        for got, part, want in zip(together, parts, network(torch.from_numpy(x)), strict=True):
            np.testing.assert_allclose(got, want.numpy(), atol=1e-5)
            assert np.array_equal(got, part)


def test_shapes_that_do_not_fit_and_a_closed_file_are_told(file: Path) -> None:
    runner = open_tflite(file)
    for shape in [(2, 9, 7, 3), (0, 3, 9, 7), (3, 9, 7)]:
        with pytest.raises(DataError, match=r"takes \[n, 3, 9, 7\]"):
            runner.run(np.zeros(shape, "f4"))
    runner.close()
    runner.close()
    with pytest.raises(LoadError, match="closed"):
        runner.run(np.zeros((1, 3, 9, 7), "f4"))


def integers_at_the_ends() -> bytes:
    """y = x, of integers with another scale at each end: one QUANTIZE."""
    s = tflite_file.schema()
    tensors = []
    for name, scale, zero in (("x", 0.5, 10), ("y", 0.25, -3)):
        tensor = s.TensorT(shape=[1, 3], type=number_of("TensorType", "INT8"), name=name)
        tensor.quantization = s.QuantizationParametersT(scale=[scale], zeroPoint=[zero])
        tensors.append(tensor)
    code = number_of("BuiltinOperator", "QUANTIZE")
    graph = s.SubGraphT(tensors=tensors, inputs=[0], outputs=[1], operators=[s.OperatorT(inputs=[0], outputs=[1])])
    codes = [s.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code, version=2)]
    return serialise(s.ModelT(version=3, subgraphs=[graph], operatorCodes=codes, buffers=[s.BufferT()]))


def test_integers_at_the_ends_are_made_of_floats_and_turned_back() -> None:
    runner = runner_of(integers_at_the_ends())
    assert runner.input_dtype == np.float32
    x = np.array([[1.0, 1.26, -2.0], [1000.0, -1000.0, 0.0]], "f4")
    # Steps of a half, -128 to 127 with zero at 10; then steps of a quarter with zero at -3.
    assert runner.run(x)[0].tolist() == [[1.0, 1.5, -2.0], [32.5, -31.25, 0.0]]


def test_a_file_that_is_damaged_is_told_and_does_not_end_the_process(content: bytes) -> None:
    rng = np.random.default_rng(0)
    for cut in (0, 3, 8, 40, len(content) // 2, len(content) - 5):
        with pytest.raises(LoadError):
            parse(content[:cut])
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(8, len(damaged), rng.integers(1, 9)):
            damaged[place] = rng.integers(256)
        with contextlib.suppress(LoadError):
            assert len(serialise(parse(bytes(damaged)))) < 2 * len(content)


def test_a_file_that_ends_litert_is_tried_elsewhere_first(content: bytes, tmp_path: Path) -> None:
    """A depthwise convolution without its bias is a segmentation fault in LiteRT 2.3."""
    model = parse(content)
    name = number_of("BuiltinOperator", "DEPTHWISE_CONV_2D")
    (depthwise,) = [o for o in model.subgraphs[0].operators if model.operatorCodes[o.opcodeIndex].builtinCode == name]
    depthwise.inputs = depthwise.inputs[:2]
    path = tmp_path / "crash.tflite"
    path.write_bytes(serialise(model))
    tflite_file.SOUND.clear()  # as of a file from elsewhere
    with pytest.raises(LoadError, match=r"crashes on|cannot open") as caught:
        open_tflite(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_tflite_file_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "text.tflite"
    with pytest.raises(LoadError, match="no file"):
        open_tflite(path)
    path.write_text("not a network")
    with pytest.raises(LoadError, match="is not a TFLite file"):
        open_tflite(path)
    assert capfd.readouterr() == ("", "")


def test_a_missing_package_names_the_command(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflite_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r"pip install smidgen\[tflite\]"):
        open_tflite(file)


def test_what_is_written_is_read_back_alike(content: bytes) -> None:
    assert serialise(parse(content)) == content
