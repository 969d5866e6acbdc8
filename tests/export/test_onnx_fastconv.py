"""Fast convolutions as nodes: onnxruntime gives what the direct node gives, alone and in a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from smidgen.export.onnx import fill, write
from smidgen.export.onnx_chain import chain_file
from smidgen.export.onnx_fastconv import kernel_first
from smidgen.export.prepare import prepare
from smidgen.forms import FLOATS, Dense, Stage, hollow
from smidgen.forms.fastconv import plan_layer
from smidgen.model.fastconv import geometry_of
from smidgen.model.load import load_network
from smidgen.site import Stored, untouched


def answer(file: bytes | Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(file if isinstance(file, bytes) else str(file))
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.mark.parametrize("algorithm", ["winograd2", "winograd4", "fft"])
@pytest.mark.parametrize(
    ("kernel", "padding", "size"),
    [((3, 3), (1, 1), (14, 14)), ((3, 3), (0, 2), (57, 31)), ((3, 1), (1, 0), (9, 30)), ((1, 5), (0, 2), (30, 9))],
)
def test_a_layer_alone(
    algorithm: str, kernel: tuple[int, int], padding: tuple[int, int], size: tuple[int, int]
) -> None:
    geometry = geometry_of(nn.Conv2d(6, 5, kernel, padding=padding), size)
    x = np.random.default_rng(0).normal(size=(1, 6, *size)).astype(np.float32)
    # Both files hold the same noise.
    direct = answer(chain_file((Stage(Dense(hollow()), geometry),)), x)
    found = answer(chain_file((Stage(Dense(hollow(), algorithm), geometry),)), x)
    np.testing.assert_allclose(found, direct, atol=1e-4 * np.abs(direct).max())


@pytest.mark.parametrize("size", [(14, 14), (20, 9)])
def test_the_kernel_stands_first_in_a_product_of_few_rows(size: tuple[int, int]) -> None:
    geometry = geometry_of(nn.Conv2d(144, 120, 7, padding=3), size)
    plan, x = plan_layer(geometry, "fft"), np.random.default_rng(0).normal(size=(1, 144, *size)).astype(np.float32)
    assert kernel_first(plan, 144, 120)
    assert not kernel_first(plan, 40, 36)
    found = chain_file((Stage(Dense(hollow(), "fft"), geometry),))
    kernel = next(t for t in onnx.load_from_string(found).graph.initializer if t.name.endswith(".kernel"))
    assert list(kernel.dims) == [plan.points, 240, 144]
    direct = answer(chain_file((Stage(Dense(hollow()), geometry),)), x)
    np.testing.assert_allclose(answer(found, x), direct, atol=1e-4 * np.abs(direct).max())


def test_a_network_with_some_of_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.Flatten(), nn.Linear(6 * 144, 4),
    ).eval()  # fmt: skip
    x = torch.randn(3, 3, 12, 12)
    prepared = prepare(load_network(model), x)
    stored = {
        site.name: Stored(Dense(site.weight, "winograd4"), site.bias) if site.name in ("0", "3") else untouched(site)
        for site in prepared.sites
    }
    path = tmp_path / "fast.onnx"
    assert write(prepared.base, prepared.sites, stored, path) == path.stat().st_size
    for target in FLOATS[1:]:  # other files hold the weight itself
        if target.startswith("onnx"):
            other = fill(prepared.base, prepared.sites, stored, target)
            assert sum(node.op_type == "Conv" for node in other.graph.node) == 3
    proto = onnx.load(path)
    onnx.checker.check_model(proto)
    assert sum(node.op_type == "Conv" for node in proto.graph.node) == 1
    # Both layers have the same square map: one matrix is L and R of both, another L' and R'.
    assert len({t.name for t in proto.graph.initializer}) == len(proto.graph.initializer)
    assert [sum(t.dims == dims for t in proto.graph.initializer) for dims in ([18, 12], [12, 18])] == [1, 1]
    np.testing.assert_allclose(answer(path, x.numpy()), model(x).detach().numpy(), atol=1e-4)
