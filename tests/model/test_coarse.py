"""Layers for a smaller map do exactly what they stand for, where that can be said exactly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smidgen.errors import Refusal
from smidgen.model.coarse import coarse_conv, folded_dense, narrow_conv, pooled_conv


def random(seed=0, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv(*args, seed=0, **named):
    torch.manual_seed(seed)
    return nn.Conv2d(*args, **named).double().eval()


WINDOWS = [
    {"kernel_size": 3, "padding": 1}, {"kernel_size": 5}, {"kernel_size": 1},
    {"kernel_size": (3, 2), "padding": (1, 0)}, {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 3, "padding": 1, "stride": 2}, {"kernel_size": 3, "padding": 1, "groups": 4},
    {"kernel_size": 3, "padding": 1, "bias": False},
]  # fmt: skip


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize(("pool", "stride"), [(2, 2), (3, 2), (3, 3)])
def test_an_average_pooling_is_taken_in_exactly(window, pool, stride):
    layer, x = conv(4, 8, **window), random(1, 2, 4, 17, 16)
    both = pooled_conv(layer, (pool, pool), stride, (0, 0))
    torch.testing.assert_close(both(x), F.avg_pool2d(layer(x), pool, stride))


@pytest.mark.parametrize("window", [w for w in WINDOWS if w["kernel_size"] != (3, 2)], ids=str)
@pytest.mark.parametrize("factor", [2, 3])
def test_a_coarse_convolution_is_upsample_convolve_and_average(window, factor):
    layer, x = conv(4, 8, **window), random(1, 2, 4, 12, 9)
    fine = F.avg_pool2d(layer(F.interpolate(x, scale_factor=factor)), factor)
    wanted = tuple(fine.shape[2:])
    coarse = coarse_conv(layer, factor, (12, 9), [wanted])
    torch.testing.assert_close(coarse(x), fine)


def test_a_coarse_kernel_is_no_larger():
    for kernel in (3, 5, 7):
        layer = conv(1, 1, kernel_size=kernel, padding=kernel // 2)
        assert coarse_conv(layer, 2, (8, 8), [(8, 8)]).kernel_size[0] <= kernel


def test_a_rejoining_convolution_keeps_the_originals_grid():
    layer, x = conv(3, 4, kernel_size=3, stride=2, padding=1), random(1, 1, 3, 8, 8)
    fine = layer(F.interpolate(x, scale_factor=2))
    coarse = coarse_conv(layer, 2, (8, 8), [(8, 8)], rejoining=True)
    assert coarse.stride == (1, 1)
    torch.testing.assert_close(coarse(x), fine)


@pytest.mark.parametrize(
    ("before", "after"), [((8, 8), (4, 4)), ((13, 11), (5, 4)), ((7, 7), (4, 4)), ((5, 6), (1, 1))]
)
def test_a_folded_dense_layer_stands_for_nearest_upsampling(before, after):
    torch.manual_seed(0)
    layer, x = nn.Linear(3 * before[0] * before[1], 4).double(), random(1, 2, 3, *after)
    small = folded_dense(layer, before, after)
    torch.testing.assert_close(small(x.flatten(1)), layer(F.interpolate(x, before).flatten(1)))


def test_a_narrow_convolution_is_the_original_at_one_place_of_each_window():
    layer, x = conv(3, 4, kernel_size=3, padding=1), random(1, 1, 3, 8, 8)
    narrow = narrow_conv(layer, (2, 2), 2, (0, 0), (8, 8), (4, 4))
    torch.testing.assert_close(narrow(x), layer(x)[:, :, ::2, ::2])


def test_what_fits_no_size_is_refused():
    layer = conv(1, 1, kernel_size=3)
    with pytest.raises(Refusal, match="7×7"):
        narrow_conv(layer, (2, 2), 2, (0, 0), (8, 8), (7, 7))
    with pytest.raises(Refusal, match="20×20"):
        coarse_conv(layer, 2, (8, 8), [(20, 20)])
