"""A form's layers compute what its dense weight computes, and cost what is counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from smidgen.forms import (
    CP,
    Dense,
    Form,
    Geometry,
    LowRank,
    Spatial,
    Tucker2,
    dense,
    hollow,
    macs,
    nbytes,
    params,
    stages,
)
from smidgen.model.replace import build_layer

CONV = {1: F.conv1d, 2: F.conv2d}


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype("f4")


def sized(g: Geometry, size: tuple[int, ...]) -> Geometry:
    after = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, g.padding, g.dilation, g.kernel, g.stride, strict=True)
    )
    return g.with_(in_size=size, out_size=after)


@st.composite
def convolutions(draw, grouped=True):
    """Arguments of `geometry`: plain numbers, since the type checker draws at random whenever one is built."""
    axes = draw(st.sampled_from([1, 2]))
    several = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(axes))  # noqa: E731
    groups = draw(st.sampled_from([1, 1, 2, 3])) if grouped else 1
    inp, out = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 4))
    return (inp, out, several(1, 4), several(1, 3), several(0, 3), several(1, 3), groups), several(0, 6)


def geometry(arguments, spare) -> Geometry:
    """The convolution, on an input a little larger than its window."""
    g = Geometry("conv", *arguments)
    return sized(g, tuple(d * (k - 1) + 1 + more for k, d, more in zip(g.kernel, g.dilation, spare, strict=True)))


def run(form: Form, g: Geometry, x: torch.Tensor) -> tuple[torch.Tensor, list[tuple[int, ...]]]:
    """Output of the stages as plain torch layers, and the size after each."""
    sizes = []
    for stage in stages(form, g):
        layer = build_layer(stage.geometry, False)
        with torch.no_grad():
            assert layer.weight.shape == stage.values.shape
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(stage.values)))
            x = layer(x)
        sizes.append(tuple(x.shape[2:]))
    return x, sizes


def agrees(form: Form, g: Geometry) -> None:
    x = torch.from_numpy(random(2, g.in_channels, *g.in_size))
    weight = torch.from_numpy(dense(form))
    expected = CONV[len(g.kernel)](x, weight, None, g.stride, g.padding, g.dilation, g.groups)
    got, sizes = run(form, g, x)
    assert got.shape == expected.shape == (2, g.out_channels, *g.out_size)
    assert torch.allclose(got, expected, atol=1e-4 * max(1.0, float(expected.abs().max())))
    assert sizes == [s.geometry.out_size for s in stages(form, g)], "sizes told are the sizes run"


@settings(max_examples=60, deadline=None)
@given(drawn=convolutions(), rank=st.integers(1, 4), factors=st.sampled_from([2, 3]))
def test_low_rank_layers_equal_the_dense_convolution(drawn, rank, factors):
    g = geometry(*drawn)
    n = g.groups
    v = Dense(random(n * rank, g.in_channels // n, *g.kernel))
    core = Dense(random(n * rank, rank)) if factors == 3 else None
    agrees(LowRank(v=v, u=Dense(random(g.out_channels, rank)), core=core, groups=n), g)


@settings(max_examples=60, deadline=None)
@given(drawn=convolutions(grouped=False), rank=st.integers(1, 5))
def test_cp_layers_equal_the_dense_convolution(drawn, rank):
    g = geometry(*drawn)
    banks = tuple(Dense(random(rank, d, seed=i)) for i, d in enumerate(g.kernel))
    agrees(CP(inp=Dense(random(rank, g.in_channels)), kernel=banks, out=Dense(random(g.out_channels, rank))), g)


@settings(max_examples=60, deadline=None)
@given(drawn=convolutions(), ranks=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_tucker2_layers_equal_the_dense_convolution(drawn, ranks):
    g = geometry(*drawn)
    n, (a, b) = g.groups, ranks
    inp, core, out = random(n * a, g.in_channels // n), random(n * b, a, *g.kernel), random(g.out_channels, b)
    agrees(Tucker2(Dense(inp), Dense(core), Dense(out), groups=n), g)


@settings(max_examples=60, deadline=None)
@given(drawn=convolutions(), rank=st.integers(1, 4), first=st.sampled_from([0, 1]))
def test_spatial_layers_equal_the_dense_convolution(drawn, rank, first):
    (inp, out, kernel, *rest), spare = drawn
    if len(kernel) != 2:
        return
    kernel = tuple(k + 1 for k in kernel)  # both axes have something to split
    g = geometry((inp, out, kernel, *rest), spare)
    n, (y, x) = g.groups, kernel
    windows = ((y, 1), (1, x)) if first == 0 else ((1, x), (y, 1))
    v, u = random(n * rank, inp // n, *windows[0]), random(out, rank, *windows[1])
    agrees(Spatial(Dense(v), Dense(u), groups=n), g)


@pytest.mark.parametrize("groups", [1, 2])
def test_low_rank_layers_equal_the_transposed_convolution(groups):
    g = Geometry("conv_transpose", 6, 8, (3, 2), (2, 2), (1, 0), (1, 1), groups, (4, 5), (8, 10), (1, 0))
    form = LowRank(
        v=Dense(random(2 * groups, 6 // groups)), u=Dense(random(2 * groups, 8 // groups, 3, 2)), groups=groups
    )
    assert dense(form).shape == (6, 8 // groups, 3, 2)
    x = torch.from_numpy(random(2, 6, 4, 5))
    expected = F.conv_transpose2d(x, torch.from_numpy(dense(form)), None, 2, (1, 0), (1, 0), groups)
    got, sizes = run(form, g, x)
    assert torch.allclose(got, expected, atol=1e-4)
    assert sizes == [(4, 5), (8, 10)] == [s.geometry.out_size for s in stages(form, g)]


@pytest.mark.parametrize("factors", [2, 3])
def test_low_rank_layers_equal_the_dense_layer(factors):
    core = Dense(random(3, 3)) if factors == 3 else None
    form = LowRank(v=Dense(random(3, 7)), u=Dense(random(5, 3)), core=core)
    x = torch.from_numpy(random(2, 4, 7))
    got, _ = run(form, Geometry("linear", 7, 5, in_size=(4,), out_size=(4,)), x)
    assert torch.allclose(got, x @ torch.from_numpy(dense(form)).T, atol=1e-5)


# One convolution, 6 → 10 channels, 3x5, stride 2, input 8x9: output 4x5 (padding 1, 2).
STRIDED = sized(Geometry("conv", 6, 10, (3, 5), (2, 2), (1, 2), (1, 1)), (8, 9))


def test_costs_of_a_dense_convolution_by_hand():
    form = Dense(hollow(10, 6, 3, 5))
    assert STRIDED.out_size == (4, 5)
    assert params(form, STRIDED) == 900
    assert macs(form, STRIDED) == 900 * 20
    assert nbytes(form, STRIDED) == 4 * 900 + 105


def test_costs_of_a_strided_cp_by_hand():
    banks = (Dense(hollow(4, 3)), Dense(hollow(4, 5)))
    form = CP(inp=Dense(hollow(4, 6)), kernel=banks, out=Dense(hollow(10, 4)))
    assert params(form, STRIDED) == 4 * (6 + 3 + 5 + 10)
    # 1x1 on 8x9; 3x1 stride (2, 1) onto 4x9; 1x5 stride (1, 2) onto 4x5; 1x1 on 4x5.
    assert macs(form, STRIDED) == 24 * 72 + 12 * 36 + 20 * 20 + 40 * 20
    assert nbytes(form, STRIDED) == 4 * 96 + 4 * 105
    assert [s.geometry.groups for s in stages(form, STRIDED)] == [1, 4, 4, 1]


def test_costs_of_a_strided_spatial_by_hand():
    form = Spatial(v=Dense(hollow(4, 6, 3, 1)), u=Dense(hollow(10, 4, 1, 5)))
    # 3x1 stride (2, 1) onto 4x9; 1x5 stride (1, 2) onto 4x5.
    assert params(form, STRIDED) == 4 * 6 * 3 + 10 * 4 * 5
    assert macs(form, STRIDED) == 72 * 36 + 200 * 20


def test_costs_of_a_strided_tucker2_by_hand():
    form = Tucker2(Dense(hollow(4, 6)), Dense(hollow(5, 4, 3, 5)), Dense(hollow(10, 5)))
    # 1x1 on 8x9; 3x5 onto 4x5; 1x1 on 4x5.
    assert params(form, STRIDED) == 24 + 300 + 50
    assert macs(form, STRIDED) == 24 * 72 + 300 * 20 + 50 * 20


def test_costs_of_a_grouped_low_rank_by_hand():
    g = sized(Geometry("conv", 6, 10, (3, 3), (2, 2), (1, 1), (1, 1), 2), (8, 8))
    core = Dense(hollow(6, 3))
    form = LowRank(v=Dense(hollow(6, 3, 3, 3)), u=Dense(hollow(10, 3)), core=core, groups=2)
    assert g.out_size == (4, 4)
    assert params(form, g) == 6 * 27 + 6 * 3 + 10 * 3
    assert macs(form, g) == (6 * 27 + 6 * 3 + 10 * 3) * 16
    assert nbytes(form, g) == 4 * (162 + 18 + 30) + 3 * 105


def test_costs_of_a_dense_layer_over_positions_by_hand():
    g = Geometry("linear", 30, 20, in_size=(7,), out_size=(7,))
    form = LowRank(v=Dense(hollow(4, 30)), u=Dense(hollow(20, 4)))
    assert (params(form, g), macs(form, g), nbytes(form, g)) == (200, 1400, 920)


def test_costs_of_a_transposed_convolution_by_hand():
    g = Geometry("conv_transpose", 4, 6, (3, 3), (2, 2), (1, 1), (1, 1), 1, (5, 5), (9, 9), (0, 0))
    form = Dense(hollow(4, 6, 3, 3))
    assert (params(form, g), macs(form, g), nbytes(form, g)) == (216, 216 * 25, 4 * 216 + 120)


def test_an_unknown_target_has_no_byte_model():
    with pytest.raises(ValueError, match="'coreml'"):
        nbytes(Dense(hollow(4, 4)), Geometry("linear", 4, 4), "coreml")


def test_bytes_of_an_executorch_program():
    geometry, weight = Geometry("linear", 30, 20), Dense(hollow(20, 30))
    alone = nbytes(Dense(hollow(1, 1)), Geometry("linear", 1, 1), "executorch") - 4
    assert nbytes(weight, geometry, "executorch") == 4 * 600 + alone
    alone = nbytes(Dense(hollow(1, 1)), Geometry("linear", 1, 1), "executorch-int8") - 5
    assert nbytes(weight, geometry, "executorch-int8") == nbytes(weight, geometry, "executorch-int8", 8)
    assert nbytes(weight, geometry, "executorch-int8") == 600 + 4 * 20 + alone, "a scale a row"


def test_stages_tell_the_costs():
    form = CP(inp=Dense(hollow(4, 6)), kernel=(Dense(hollow(4, 3)), Dense(hollow(4, 5))), out=Dense(hollow(10, 4)))
    assert params(form, STRIDED) == sum(s.values.size for s in stages(form, STRIDED))


def test_bytes_of_a_tflite_file_of_integers():
    """Narrow layers take eight bits and one scale, convolutions eight bits, dense layers the width that is asked."""
    wide, narrow = Geometry("linear", 100, 40), Geometry("linear", 5, 40)
    conv = Geometry("conv", 4, 8, (3, 3), (1, 1), (0, 0), (1, 1), in_size=(5, 5), out_size=(3, 3))
    per_layer = nbytes(Dense(hollow(1, 1)), Geometry("linear", 1, 1), "tflite-int8") - 1
    for geometry, weight, bits, extra in (
        (wide, (40, 100), 4, 2000 + 39 * 10), (wide, (40, 100), 8, 4000 + 39 * 10), (wide, (40, 100), None, 4000 + 390),
        (narrow, (40, 5), 4, 200), (conv, (8, 4, 3, 3), 4, 288 + 7 * 10),
    ):  # fmt: skip
        assert nbytes(Dense(hollow(*weight)), geometry, "tflite-int8", bits) == per_layer + extra
