"""Rows of inputs and outputs against torch's own unfold and convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from smidgen.calibrate.columns import choose_positions, input_rows, output_rows
from smidgen.forms import Geometry

CONVS = [
    Geometry("conv", 3, 4, (3, 3), (1, 1), (1, 1), (1, 1), 1, (6, 5), (6, 5)),
    Geometry("conv", 3, 4, (3, 2), (2, 3), (1, 0), (1, 2), 1, (9, 8), (5, 2)),
    Geometry("conv", 6, 4, (3, 3), (2, 1), (0, 2), (1, 1), 2, (7, 5), (3, 7)),
    Geometry("conv", 4, 4, (3, 3), (1, 1), (1, 1), (1, 1), 4, (4, 4), (4, 4)),
]


def by_unfold(x, g):
    """[groups, n · positions, columns] through torch's unfold."""
    columns = F.unfold(x, g.kernel, g.dilation, g.padding, g.stride)  # n, channels·kernel, positions
    n, _, positions = columns.shape
    return columns.reshape(n, g.groups, -1, positions).permute(1, 0, 3, 2).reshape(g.groups, n * positions, -1)


@pytest.mark.parametrize("g", CONVS)
def test_rows_are_those_of_unfold(g):
    x = torch.randn(2, g.in_channels, *g.in_size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(input_rows(x, g), by_unfold(x, g))


@pytest.mark.parametrize("g", CONVS)
def test_rows_times_weight_are_the_outputs(g):
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(2, g.in_channels, *g.in_size, generator=noise)
    weight = torch.randn(g.out_channels, g.in_channels // g.groups, *g.kernel, generator=noise)
    y = F.conv2d(x, weight, None, g.stride, g.padding, g.dilation, g.groups)
    rows = input_rows(x, g) @ weight.reshape(g.groups, g.out_channels // g.groups, -1).mT
    assert torch.allclose(rows, output_rows(y, g), atol=1e-5)


def test_one_axis():
    g = Geometry("conv", 6, 4, (3,), (2,), (1,), (2,), 2, (9,), (4,))
    noise = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 6, 9, generator=noise), torch.randn(4, 3, 3, generator=noise)
    y = F.conv1d(x, weight, None, 2, 1, 2, 2)
    assert torch.allclose(input_rows(x, g) @ weight.reshape(2, 2, -1).mT, output_rows(y, g), atol=1e-5)


@pytest.mark.parametrize("g", CONVS)
def test_chosen_positions_are_those_rows(g):
    x = torch.randn(2, g.in_channels, *g.in_size, generator=torch.Generator().manual_seed(0))
    picked = torch.tensor([g.positions - 1, 0, 2])
    whole = input_rows(x, g).reshape(g.groups, 2, g.positions, -1)
    assert torch.equal(input_rows(x, g, picked), whole[:, :, picked].reshape(g.groups, 6, -1))


def test_a_dense_layer_over_positions():
    g = Geometry("linear", 4, 3, in_size=(5,), out_size=(5,))
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(input_rows(x, g)[0], x.reshape(10, 4))
    assert torch.equal(input_rows(x, g, torch.tensor([3, 1]))[0], x[:, [3, 1]].reshape(4, 4))
    assert torch.equal(output_rows(x, g)[0], x.reshape(10, 4))


def test_positions_are_drawn_only_where_there_are_too_many():
    g = CONVS[0]
    assert choose_positions(g, 30, torch.Generator()) is None
    picked = choose_positions(g, 29, torch.Generator().manual_seed(0))
    assert len(set(picked.tolist())) == 29
    assert set(picked.tolist()) <= set(range(30))
