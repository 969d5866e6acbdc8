"""The ONNX importer on real networks, and on networks as torch writes them."""

from __future__ import annotations

import copy
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from smidgen.model.onnx import load_onnx
from tests.model.against_onnxruntime import exported, outputs_of, run_onnxruntime

NETWORKS = {
    "ai85cd_catsdogs": 127 / 128,
    "lenet_mnist": 255.0,
    "mobilenet_v1_0.25_128_imagenet": 1.0,
    "mobilenet_v1_0.25_96_vww_mlperftiny": 1.0,
    "mobilenet_v2_1.0_224_imagenet": 1.0,
    "resnet20_cifar10_jpegft": 2.0,
    "resnet8_cifar10_mlperftiny": 255.0,
    "squeezenet1_1_imagenet": 120.0,
    "ultraface_rfb320": 1.0,
}


def sensible_input(name, spec, batch):
    generator = torch.Generator().manual_seed(batch)
    x = torch.rand(batch, *spec.shape[1:], generator=generator)
    # Smooth, as photographs are, and in the range each network expects.
    x = nn.functional.avg_pool2d(x, 3, 1, 1)
    low = {"lenet_mnist": 0.0, "resnet8_cifar10_mlperftiny": 0.0}.get(name, -1.0)
    return (low + (1 - low) * x) * NETWORKS[name]


def answers_of_onnxruntime(path, spec, x):
    dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    if dims[0].dim_value == 1:  # a fixed batch: one by one
        rows = [run_onnxruntime(str(path), {spec.name: row.numpy()}) for row in x.split(1)]
        return [np.concatenate(column) for column in zip(*rows, strict=True)]
    return run_onnxruntime(str(path), {spec.name: x.numpy()})


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_agree_with_onnxruntime(name, data_dir: Path, capsys: pytest.CaptureFixture[str]):
    path = data_dir / "models" / f"{name}.onnx"
    loaded = load_onnx(path)
    (spec,) = loaded.inputs
    assert spec.shape[0] is None
    assert not loaded.module.training
    worst = 0.0
    program = exported(loaded, sensible_input(name, spec, 4)).module()
    for batch in (1, 3):
        x = sensible_input(name, spec, batch)
        wanted = answers_of_onnxruntime(path, spec, x)
        for module in (loaded.module, program):
            ours = outputs_of(module, x)
            assert len(ours) == len(wanted) == len(loaded.output_names)
            for mine, theirs in zip(ours, wanted, strict=True):
                assert tuple(mine.shape) == theirs.shape
                worst = max(worst, float(abs(mine.numpy() - theirs).max() / abs(theirs).max()))
    with capsys.disabled():
        print(f"\n{name}: largest difference {worst:.1e} of the largest output", end="")
    assert worst <= 1e-4


@pytest.mark.parametrize("name", ["resnet20_cifar10_jpegft", "ultraface_rfb320"])
def test_networks_export_to_onnx_again(name, data_dir: Path, tmp_path: Path):
    loaded = load_onnx(data_dir / "models" / f"{name}.onnx")
    x = sensible_input(name, loaded.inputs[0], 2)
    path = tmp_path / "again.onnx"
    with warnings.catch_warnings():
        # torch's exporter warns of its own deprecated parts (pytree specs, node attributes).
        warnings.simplefilter("ignore")
        batch = {"input": {0: torch.export.Dim("b", min=1, max=64)}}
        torch.onnx.export(
            loaded.module, (x,), str(path), dynamo=True, external_data=False, dynamic_shapes=batch, verbose=False
        )
    again = load_onnx(path)
    x = sensible_input(name, loaded.inputs[0], 3)
    for mine, wanted in zip(outputs_of(again.module, x), outputs_of(loaded.module, x), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


def test_networks_are_trainable_layers(data_dir: Path):
    loaded = load_onnx(data_dir / "models" / "resnet20_cifar10_jpegft.onnx")
    layers = dict(loaded.module.named_modules())
    assert sum(isinstance(layer, nn.Conv2d) for layer in layers.values()) == 19
    assert isinstance(layers["layer2_1_conv2"], nn.Conv2d)
    assert isinstance(layers["linear"], nn.Linear)
    before = layers["conv1"].weight.detach().clone()
    optimizer = torch.optim.SGD(loaded.module.parameters(), lr=0.1)
    loaded.module(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in loaded.module.parameters())
    optimizer.step()
    assert not torch.equal(before, layers["conv1"].weight)


def test_import_is_stable_and_can_be_copied(data_dir: Path):
    path = data_dir / "models" / "lenet_mnist.onnx"
    first, second = load_onnx(path), load_onnx(path)
    assert list(first.module.state_dict()) == list(second.module.state_dict())
    assert first.module.code == second.module.code
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(copy.deepcopy(first.module)(x), second.module(x))


# Networks as torch writes them


class Recurrent(nn.Module):
    """An audio network: convolution, recurrence, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.lstm = nn.LSTM(8, 5, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(10, 6, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        h = self.norm(torch.relu(self.conv(x)).transpose(1, 2))
        h = self.gru(self.lstm(h)[0])[0]
        h = h.unsqueeze(1)  # torch exports attention of four axes only
        return self.out(nn.functional.scaled_dot_product_attention(h, h, h)).softmax(-1)


class Pyramid(nn.Module):
    """A U-shaped image network."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.up = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1)
        self.act = nn.PReLU(4)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        h = nn.functional.silu(self.norm(self.down(x)))
        small = nn.functional.interpolate(nn.functional.avg_pool2d(h, 2), scale_factor=2.0, mode="bilinear")
        y = self.bn(self.act(self.up(h + small)))
        y = nn.functional.pixel_shuffle(torch.cat([y, nn.functional.hardswish(y)], 1), 2)
        return nn.functional.adaptive_avg_pool2d(y, 1).flatten(1), y


@pytest.mark.parametrize(("network", "shape"), [(Recurrent, (2, 4, 16)), (Pyramid, (2, 3, 16, 16))])
def test_torch_networks_come_back(network, shape, tmp_path: Path):
    torch.manual_seed(0)
    net, x, path = network().eval(), torch.randn(shape), tmp_path / "net.onnx"
    with warnings.catch_warnings():
        # torch's exporter warns of its own deprecated parts.
        warnings.simplefilter("ignore")
        batch = {"x": {0: torch.export.Dim("b", min=1, max=64)}}
        torch.onnx.export(net, (x,), str(path), dynamo=True, external_data=False, dynamic_shapes=batch, verbose=False)
    loaded = load_onnx(path)
    x = torch.randn(3, *shape[1:])
    for mine, wanted in zip(outputs_of(loaded.module, x), outputs_of(net, x), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
    given = {kind for kind in map(type, net.modules()) if kind is not network}
    kept = {type(layer) for layer in loaded.module.modules()}
    assert given - kept <= {nn.GroupNorm}  # torch writes it as InstanceNormalization between reshapes


def test_a_long_sequence_is_not_gone_through_to_know_its_shapes(tmp_path):
    """On torch's meta device each step runs in Python: 4,096 of them took a minute."""
    net = nn.LSTM(4, 3)
    x = torch.randn(4096, 2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), tmp_path / "long.onnx", dynamo=False)
    began = time.process_time()
    loaded = load_onnx(tmp_path / "long.onnx")
    assert time.process_time() - began < 10
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(x)[0], net(x)[0], atol=1e-5, rtol=1e-4)
