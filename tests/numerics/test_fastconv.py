"""Convolution through transforms: the same as conv2d for any shape, exact to what float32 allows, gradients, limits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d

from smidgen.numerics.fastconv import Bilinear, convolve, fourier, matrices, transform_kernel, winograd

Pair = tuple[int, int]
SIDES, TAPS, ZEROS = (st.tuples(st.integers(*ends), st.integers(*ends)) for ends in ((1, 40), (1, 5), (0, 3)))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def plans(size: Pair, kernel: Pair, padding: Pair, channels: Pair = (3, 4)) -> dict[str, Bilinear]:
    return {
        "winograd2": winograd(size, kernel, padding, 2), "winograd4": winograd(size, kernel, padding, 4),
        "fourier": fourier(size, kernel, padding, channels),
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(SIDES, TAPS, ZEROS, st.integers(1, 3), st.integers(0, 1000))
def test_any_shape_is_what_conv2d_gives(size: Pair, kernel: Pair, padding: Pair, batch: int, seed: int) -> None:
    assume(all(s + 2 * p >= k for s, k, p in zip(size, kernel, padding, strict=True)))
    x, weight = normal(batch, 3, *size, seed=seed), normal(4, 3, *kernel, seed=seed + 1)
    wanted = conv2d(x, weight, padding=padding)
    for name, plan in plans(size, kernel, padding).items():
        found = convolve(x, transform_kernel(plan, weight), plan)
        assert found.shape == wanted.shape, name
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10 * float(wanted.abs().max()))


@pytest.mark.parametrize("channels", [(64, 64), (1, 200)])
@pytest.mark.parametrize(("kernel", "size"), [(31, 14), (31, 60), (7, 90), (15, 28)])
def test_large_kernels_are_cut_or_taken_whole(kernel: int, size: int, channels: Pair) -> None:
    plan = fourier((size, size), (kernel, kernel), (kernel // 2, kernel // 2), channels)
    x, weight = normal(1, 2, size, size), normal(3, 2, kernel, kernel, seed=1)
    found = convolve(x, transform_kernel(plan, weight), plan)
    assert relative(found, conv2d(x, weight, padding=kernel // 2)) < 1e-12
    assert plan.rows.window <= size + kernel


@pytest.mark.parametrize(("name", "most"), [("winograd2", 1e-5), ("winograd4", 1e-4), ("fourier", 1e-5)])
@pytest.mark.parametrize(("size", "channels"), [(14, 128), (56, 16)])
def test_float32_is_as_exact_as_promised(name: str, most: float, size: int, channels: int) -> None:
    x, weight = normal(1, channels, size, size), normal(channels, channels, 3, 3, seed=1)
    plan = plans((size, size), (3, 3), (1, 1), (channels, channels))[name]
    found = convolve(x.float(), transform_kernel(plan, weight.float()), plan)
    assert relative(found.double(), conv2d(x, weight, padding=1)) <= most


def test_stored_numbers_and_multiplications_of_the_paper() -> None:
    two, four = (winograd((56, 56), (3, 3), (1, 1), m) for m in (2, 4))
    assert (two.growth, four.growth) == (16 / 9, 4.0)
    direct = 9 * 56 * 56
    # With many channels the transforms vanish: 2.25 and 4 times fewer multiplications.
    for plan, fewer in ((two, 2.25), (four, 4.0)):
        assert plan.macs(100_000, 100_000) == pytest.approx(direct / fewer * 1e10, rel=0.02)
    assert winograd((56, 56), (3, 1), (1, 0), 4).growth == 2.0
    assert fourier((14, 14), (31, 31), (15, 15), (8, 8)).growth < 1  # taps that no input meets are not stored


@pytest.mark.parametrize("name", ["winograd2", "winograd4", "fourier"])
def test_gradients_are_those_of_the_direct_convolution(name: str) -> None:
    x, weight = normal(2, 3, 33, 9).requires_grad_(), normal(4, 3, 3, 3, seed=1).requires_grad_()
    plan = plans((33, 9), (3, 3), (1, 1))[name]
    direction = normal(2, 4, 33, 9, seed=2)
    found = torch.autograd.grad(convolve(x, transform_kernel(plan, weight), plan), [x, weight], direction)
    wanted = torch.autograd.grad(conv2d(x, weight, padding=1), [x, weight], direction)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_matrices_take_the_type_that_is_asked_for() -> None:
    plan = winograd((9, 9), (3, 3), (1, 1), 2)
    assert {m.dtype for m in matrices(plan, torch.zeros(1, dtype=torch.float16))} == {torch.float16}
    assert transform_kernel(plan, torch.zeros(2, 2, 3, 3)).dtype == torch.float32


def test_a_map_smaller_than_the_kernel_is_told() -> None:
    told = "a kernel of 5 taps does not fit 3 inputs"
    with pytest.raises(ValueError, match=told):
        winograd((3, 9), (5, 5), (0, 0), 2)
    with pytest.raises(ValueError, match=told):
        fourier((9, 3), (5, 5), (0, 0), (1, 1))
