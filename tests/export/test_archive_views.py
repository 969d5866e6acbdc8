"""Dense layers seen as images: which shape they get, and that an archive gives the same bytes back."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from smidgen.export.archive import pack_archive, unpack_archive
from smidgen.export.archive_views import image_shapes, viewed
from smidgen.export.onnx import integer_tensors, write
from smidgen.export.onnx_strip import shortened
from smidgen.forms import Quantized
from smidgen.pipeline.targets import packed_archive
from smidgen.pipeline.task import open_task
from smidgen.site import Stored


def prepared(net, *shape):
    return open_task(net, None, None, None, torch.zeros(1, *shape), None, 1, "cpu", 0).prepared


def form(integers):
    return Quantized(integers.astype(np.int32), np.zeros(len(integers), np.int32), np.array([-2048], np.int32), 1024)


def test_pixels_and_flattened_maps_are_images_and_hidden_layers_are_not():
    first = prepared(nn.Sequential(nn.Flatten(), nn.Linear(2 * 5 * 7, 6), nn.ReLU(), nn.Linear(6, 3)), 2, 5, 7)
    assert image_shapes(first.base, first.sites) == {"1": (6, 2, 5, 7)}
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5))
    second = prepared(net, 1, 8, 8)
    assert image_shapes(second.base, second.sites) == {"4": (5, 4, 3, 3)}
    pooled = prepared(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)), 1, 8, 8
    )
    assert image_shapes(pooled.base, pooled.sites) == {}


def test_smooth_weights_take_fewer_bytes_and_unpack_to_the_bit(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(400, 30), nn.ReLU(), nn.Linear(30, 3))
    ready = prepared(net, 1, 20, 20)
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:20, :20]
    maps = [np.rint(3 * np.sin(rows / rng.uniform(2, 5) + rng.uniform(0, 6)) * np.cos(columns / rng.uniform(2, 5)))
            for _ in range(30)]  # fmt: skip
    weights = {"1": np.stack(maps).reshape(30, 400), "3": rng.integers(-2, 3, (3, 30))}
    stored = {site.name: Stored(form(weights[site.name]), site.bias) for site in ready.sites}
    found = viewed(stored, image_shapes(ready.base, ready.sites))
    assert found["1"].integers.shape == (30, 1, 20, 20)
    path = tmp_path / "model.onnx"
    write(ready.base, ready.sites, stored, path)
    data = packed_archive(ready, stored, path)
    assert unpack_archive(data) == shortened(path.read_bytes())[0]
    flat = pack_archive(*_unviewed(ready, stored, path))
    assert len(data) < 0.95 * len(flat)


def _unviewed(ready, stored, path):
    model, names = shortened(path.read_bytes())
    integers = integer_tensors(ready.base, ready.sites, stored)
    return model, {names.get(name, name): each for name, each in integers.items()}


def test_noise_is_left_as_it_is():
    stored = {"fc": Stored(form(np.random.default_rng(0).integers(-3, 4, (8, 16))))}
    assert viewed(stored, {"fc": (8, 1, 4, 4)}) == {}
