"""A change priced in the layout its layer stores, against the loss itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smidgen.forms import Geometry
from smidgen.planning.candidates import gather, weights_only
from smidgen.site import Curvature, Moment, Site, grouped


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng([seed, *shape]).normal(size=shape))


def second_moment(n, groups):
    x = drawn(groups, 3 * n, n)
    return x.mT @ x / (3 * n)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", [(2,), (2, 3)])
def test_a_transposed_convolution_is_priced_exactly_where_its_windows_do_not_overlap(groups, kernel):
    """½ E[sum over output positions of Δyᵀ G Δy], computed from the outputs themselves."""
    inp, out, size = 4, 6, (5,) * len(kernel)
    g = Geometry(
        "conv_transpose", inp, out, kernel, kernel, (0,) * len(kernel), (1,) * len(kernel), groups,
        size, tuple(5 * k for k in kernel),
    )  # fmt: skip
    change, x = drawn(inp, out // groups, *kernel), drawn(20, inp, *size)
    rows = x.flatten(2).mT.reshape(-1, groups, inp // groups).transpose(0, 1)
    bend = second_moment(out // groups, groups)
    curvature = Curvature(Moment(matrix=rows.mT @ rows / 20), Moment(matrix=bend), "calibration", 20)
    run = {1: F.conv_transpose1d, 2: F.conv_transpose2d}[len(kernel)]
    moved = run(x, change, stride=kernel, groups=groups).flatten(2).reshape(20, groups, out // groups, -1)
    expected = 0.5 * torch.einsum("ngop,gok,ngkp->", moved, bend, moved) / 20
    assert curvature.loss_as_stored(change.numpy(), g) == pytest.approx(float(expected), rel=1e-6)


def test_other_layers_are_priced_by_their_im2col_rows():
    g = Geometry("conv", 4, 6, (3, 3), (1, 1), (1, 1), (1, 1), 2, (5, 5), (5, 5))
    change = drawn(6, 2, 3, 3).numpy()
    curvature = Curvature(Moment(matrix=second_moment(18, 2)), Moment(matrix=second_moment(3, 2)), "calibration", 9)
    rows = torch.from_numpy(grouped(change, 2))
    assert curvature.loss_as_stored(change, g) == pytest.approx(curvature.loss(rows), rel=1e-9)


def test_losing_a_transposed_convolution_is_worth_all_of_it_without_data():
    g = Geometry("conv_transpose", 4, 6, (2,), (2,), (0,), (1,), 1, (5,), (10,))
    site = Site("up", g, drawn(4, 6, 2).float().numpy())
    assert weights_only(site).loss_as_stored(site.weight, g) == pytest.approx(1.0, rel=1e-6)
    (option,) = gather([site], {}, {})
    assert option.worth == 0.0, "no method may touch it"
