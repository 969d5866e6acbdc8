"""Networks written as TFLite files of floats, held against torch in LiteRT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from smidgen.errors import LoadError, OutputError

pytest.importorskip("litert_torch", reason="the tflite extra is not installed")

from smidgen.export.tflite import to_tflite, write_tflite
from smidgen.runtimes.litert import runner_of
from smidgen.runtimes.tflite_file import operator_name, parse


def operators(content: bytes) -> list[str]:
    model = parse(content)
    return [operator_name(model, each) for each in model.subgraphs[0].operators]


def answers_alike(network: nn.Module, x: torch.Tensor, content: bytes) -> None:
    with torch.no_grad():
        wanted = network(x)
    for want, got in zip([wanted], runner_of(content).run(x.numpy()), strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5 * float(want.abs().max()))


class Padded(nn.Module):
    """What exporters of channels-last networks leave behind: turned, padded, turned back; read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.beside = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 3, 2), nn.Conv2d(5, 6, 1, 2)
        self.head = nn.Linear(6 * 9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x).relu()
        y = self.second(nn.functional.pad(y, (0, 1, 0, 1))) + self.beside(y)
        return self.head(y.flatten(1))


def test_flattening_takes_no_operator_and_answers_stay() -> None:
    torch.manual_seed(0)
    network, x = Padded().eval(), torch.randn(3, 3, 8, 8)
    content = to_tflite(network, x)
    answers_alike(network, x, content)
    assert "TRANSPOSE" not in operators(content)
    kept = to_tflite(network, x, columns=False)
    answers_alike(network, x, kept)
    assert operators(kept).count("TRANSPOSE") == 1


NETWORKS = {
    "sequences": (nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)), (4, 8)),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.Sigmoid()), (3, 4, 5)),
    "dense": (nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 2, bias=False), nn.Linear(2, 5)), (10,)),
    "factors": (nn.Sequential(nn.Conv2d(3, 2, 3, padding=1, bias=False), nn.Conv2d(2, 7, 1)), (3, 6, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_many_kinds(name: str) -> None:
    torch.manual_seed(0)
    network, shape = NETWORKS[name]
    x = torch.randn(2, *shape)
    answers_alike(network.eval(), x, to_tflite(network.eval(), x))


class Singular(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svd(x)[1]


def test_an_operator_without_counterpart_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network = nn.Sequential()
    network.add_module("deep", nn.Sequential(nn.Linear(5, 5), Singular()))
    with pytest.raises(LoadError, match=r"no operator for aten\._linalg_svd of layer 'deep\.1'") as caught:
        write_tflite(network, torch.randn(1, 5, 5), tmp_path / "no.tflite")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_the_file_is_lean_and_the_network_as_it_was(tmp_path: Path) -> None:
    network, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).train(), torch.randn(1, 4)
    size = write_tflite(network, x, tmp_path / "small.tflite", "in", ("out",))
    assert size == (tmp_path / "small.tflite").stat().st_size < 800, "a converted file takes more than 2,000"
    assert network.training
    with pytest.raises(OutputError):
        write_tflite(network, x, tmp_path / "none" / "small.tflite")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet_mnist", "resnet20_cifar10_jpegft", "resnet8_cifar10_mlperftiny"])
def test_evaluation_networks(name: str, data_dir: Path) -> None:
    from smidgen.model.load import load_network

    loaded = load_network(data_dir / "models" / f"{name}.onnx")
    x = torch.rand(2, *[int(size or 1) for size in loaded.input_shape[1:]])
    content = to_tflite(loaded.module, x)
    answers_alike(loaded.module, x, content)
    assert len(content) < (data_dir / "models" / f"{name}.onnx").stat().st_size + 2000
