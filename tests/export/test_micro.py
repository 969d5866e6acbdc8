"""Files for microcontrollers: integers throughout, the operators that there are, and C sources that hold the file."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("litert_torch", reason="the tflite extra is not installed")
pytest.importorskip("tflite_micro", reason="the mcu extra is not installed")

from smidgen.data import Dataset
from smidgen.errors import LoadError
from smidgen.export.micro import OPERATORS, c_sources, check_operators, for_micro
from smidgen.export.tflite import to_tflite
from smidgen.export.tflite_static import calibrated
from smidgen.runtimes.litert import runner_of
from smidgen.runtimes.micro import open_micro
from smidgen.runtimes.tflite_file import as_floats, as_stored, end_names, names_of, number_of, operator_name, parse


class Net(nn.Module):
    """Every kind of layer with weights, a residual, a concatenation, a dense layer of few values and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point, self.up = nn.Conv2d(8, 8, 1, bias=False), nn.ConvTranspose2d(16, 4, 2, 2)
        self.gate, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4 * 36, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        y = x + self.point(self.depth(x).relu())
        y = nn.functional.max_pool2d(torch.cat([x, y], 1), 2)
        y = self.up(y)
        return self.head((y * self.gate(y).sigmoid()).flatten(1)).softmax(1)


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(64, 3, 6, 6)).astype("f4")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    made = Net().eval()
    with torch.no_grad():  # integers of four bits would do
        made.head.weight.copy_(torch.randint(-7, 8, made.head.weight.shape) / 7)
    return made


@pytest.fixture(scope="module")
def floats(network: nn.Module) -> bytes:
    return to_tflite(network, torch.zeros(1, 3, 6, 6), "pixels", ("scores",), columns=False)


@pytest.fixture(scope="module")
def content(floats: bytes, network: nn.Module, inputs: np.ndarray) -> bytes:
    integers = [np.round(network.head.weight.detach().numpy() * 7).astype(int)]  # type: ignore[union-attr]
    return for_micro(calibrated(floats, Dataset.from_array(inputs), integers, micro=True))


def test_all_that_is_computed_is_integers_of_eight_bits(content: bytes) -> None:
    model = parse(content)
    (graph,) = model.subgraphs
    used = [operator_name(model, o) for o in graph.operators]
    assert set(used) <= OPERATORS.keys()
    assert "QUANTIZE" not in used
    assert "DEQUANTIZE" not in used
    assert used[-1] == "SOFTMAX"
    computed = [int(i) for o in graph.operators for i in o.outputs]
    types = {names_of("TensorType")[graph.tensors[i].type] for i in [*computed, *graph.inputs]}
    assert types == {"INT8"}
    assert "INT4" not in {names_of("TensorType")[tensor.type] for tensor in graph.tensors}
    assert end_names(model) == (("pixels",), ("scores",))


def reference(content: bytes, inputs: np.ndarray) -> np.ndarray:
    """Answers of LiteRT's plain kernels, without XNNPACK, which rounds otherwise."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = Interpreter(model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    plain.allocate_tensors()
    (taken,), (given,) = plain.get_input_details(), plain.get_output_details()
    found = []
    for x in np.moveaxis(inputs, 1, -1):
        plain.set_tensor(taken["index"], as_stored(x[None], taken))
        plain.invoke()
        found.append(as_floats(plain.get_tensor(given["index"]), given))
    return np.concatenate(found)


def test_it_answers_as_litert_and_nearly_as_the_floats(
    content: bytes, network: nn.Module, inputs: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "net.mcu.tflite"
    path.write_bytes(content)
    with open_micro(path) as runner:
        assert runner.input_shape == (1, 3, 6, 6)
        got = runner.run(inputs)[0]
    step = 1 / 256  # of a softmax
    difference = np.abs(got - reference(content, inputs))
    assert difference.max() <= step
    assert np.mean(difference == 0) >= 0.95
    assert np.abs(got - runner_of(content).run(inputs)[0]).max() <= 4 * step
    with torch.no_grad():
        assert np.abs(got - network(torch.from_numpy(inputs)).numpy()).max() < 0.05


def test_ends_that_are_floats_too_stay_as_they_are(inputs: np.ndarray, tmp_path: Path) -> None:
    class Sine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(self.conv(x)) + torch.sin(x)

    network = Sine().eval()
    floats = to_tflite(network, torch.from_numpy(inputs), columns=False)
    content = for_micro(calibrated(floats, Dataset.from_array(inputs), micro=True))
    model = parse(content)
    assert model.subgraphs[0].tensors[int(model.subgraphs[0].inputs[0])].type == number_of("TensorType", "FLOAT32")
    path = tmp_path / "net.mcu.tflite"
    path.write_bytes(content)
    with open_micro(path) as runner, torch.no_grad():
        assert np.abs(runner.run(inputs)[0] - network(torch.from_numpy(inputs)).numpy()).max() < 0.2


def test_an_operator_that_is_missing_names_its_layer() -> None:
    class Power(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.pow(x.abs() + 1, 1.7)

    x = torch.zeros(1, 3, 6, 6)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Power()).eval()
    with pytest.raises(LoadError, match=r"TensorFlow Lite Micro has no operator POW of layer '1'"):
        check_operators(to_tflite(network, x, columns=False), network, x)
    fine = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    check_operators(to_tflite(fine, x, columns=False), fine, x)


def test_c_sources_hold_the_file(content: bytes) -> None:
    sources = c_sources(content, 4321)
    assert list(sources) == ["model_mcu.h", "model_mcu.cc"]
    header, source = (each.decode() for each in sources.values())
    body = source.partition("{")[2].partition("}")[0]
    assert bytes(int(each, 16) for each in re.findall(r"0x[0-9a-f]{2}", body)) == content
    assert f"model_mcu_len = {len(content)};" in source
    assert "ARENA_NBYTES 4321" in header
    assert "Input pixels: int8 [1, 6, 6, 3], x = " in header
    assert "Output scores: int8 [1, 5], x = 0.00390625 * (q - (-128))" in header
    assert "AddTransposeConv();" in header


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_c_sources_compile_to_an_aligned_constant(content: bytes, tmp_path: Path) -> None:
    for name, each in c_sources(content, 4321).items():
        (tmp_path / name).write_bytes(each)
    (tmp_path / "main.cc").write_text("""
#include <cstdint>
#include <cstdio>
#include "model_mcu.h"
int main() {
  unsigned sum = 0;
  for (unsigned i = 0; i < model_mcu_len; ++i) sum = sum * 31 + model_mcu[i];
  std::printf("%u %u %d", model_mcu_len, sum, static_cast<int>(reinterpret_cast<std::uintptr_t>(model_mcu) % 16));
}
""")
    built = ["g++", "-Wall", "-Wextra", "-Werror", "-std=c++17", "main.cc", "model_mcu.cc", "-o", "main"]
    subprocess.run(built, cwd=tmp_path, check=True)
    told = subprocess.run([str(tmp_path / "main")], capture_output=True, check=True, text=True).stdout
    total = 0
    for byte in content:
        total = (total * 31 + byte) % 2**32
    assert told == f"{len(content)} {total} 0"
