"""Rounding a site's forms: laws over the ladder of steps, and what a refit on moments adds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smidgen.calibrate.columns import input_rows
from smidgen.errors import PlanError, Refusal
from smidgen.forms import Dense, Geometry, LowRank, Quantized, dense, leaves
from smidgen.methods import methods, roundings
from smidgen.planning.candidates import gather
from smidgen.planning.metric import Metric, metric_of
from smidgen.planning.precision import Precision, with_precision
from smidgen.planning.refit import Moments, rounded
from smidgen.planning.rounding import round_bias, round_form
from smidgen.site import Curvature, Moment, Site, Stored, grouped

GPTQ = roundings()["gptq"]
LINEAR = Geometry("linear", 40, 24)
CONV = Geometry("conv", 6, 10, (3, 3), (1, 1), (1, 1), (1, 1), 1, (6, 6), (6, 6))
GROUPED = Geometry("conv", 12, 8, (3, 3), (1, 1), (1, 1), (1, 1), 4, (6, 6), (6, 6))
DEPTHWISE = Geometry("conv", 8, 8, (3, 3), (1, 1), (1, 1), (1, 1), 8, (6, 6), (6, 6))


def site(geometry: Geometry, seed: int = 0, bias: bool = False) -> Site:
    shape = (geometry.out_channels, geometry.in_channels // geometry.groups, *geometry.kernel)
    draw = np.random.default_rng(seed)
    values = draw.normal(size=shape).astype("f4")
    return Site("layer", geometry, values, draw.normal(size=shape[0]).astype("f4") if bias else None)


def curvature(one: Site, seed: int = 1) -> Curvature:
    g, draw = one.geometry, np.random.default_rng(seed)
    n, out = one.weight.size // one.weight.shape[0], one.weight.shape[0] // g.groups
    x = draw.normal(size=(g.groups, 4 * n, n)) * np.geomspace(0.1, 3.0, n)
    y = draw.normal(size=(g.groups, 4 * out, out)) / 10
    return Curvature(
        Moment(matrix=torch.from_numpy(x.swapaxes(1, 2) @ x / len(x[0])).float()),
        Moment(matrix=torch.from_numpy(y.swapaxes(1, 2) @ y / len(y[0])).float()),
        "calibration", 50,
    )  # fmt: skip


def options(one: Site, curved: Curvature):
    (option,) = gather([one], {one.name: curved}, {"svd": methods()["svd"]})
    return with_precision(option, curved, GPTQ)


@pytest.mark.parametrize("geometry", [LINEAR, CONV, GROUPED, DEPTHWISE], ids=["linear", "conv", "grouped", "depthwise"])
@pytest.mark.parametrize("data", [True, False], ids=["data", "no data"])
def test_the_ladder_falls_in_bytes_as_it_rises_in_loss(geometry, data):
    one = site(geometry)
    option = options(one, curvature(one) if data else Curvature(scale=0.01))
    assert option.labels[0] == (None, None, None, None)
    assert len(option.labels) > 10
    assert (np.diff(option.sizes) < 0).all()
    assert (np.diff(option.losses) > 0).all()
    assert all(label.step is not None for label in option.labels[1:])
    # The coarsest is hardly worse than no layer at all, though rows count by shares shrunk toward their mean.
    assert option.losses[-1] <= 1.5 * option.worth


@pytest.mark.parametrize("geometry", [LINEAR, CONV, GROUPED, DEPTHWISE], ids=["linear", "conv", "grouped", "depthwise"])
def test_every_option_can_be_made_and_costs_about_what_was_said(geometry):
    one = site(geometry)
    curved = curvature(one)
    option = options(one, curved)
    for i in range(1, len(option.labels), 7):
        form = option.form(*option.labels[i])
        assert all(isinstance(leaf, Quantized) for leaf in leaves(form))
        assert dense(form).shape == one.weight.shape
        assert np.isfinite(dense(form)).all()
        change = torch.from_numpy(grouped(one.weight - dense(form), geometry.groups)).double()
        true = curved.loss(change)
        # Rows are taken one by one and rows of little gradient count more than they should: an upper estimate.
        assert true < 4 * option.losses[i] + 1e-12


def test_a_fine_step_gives_the_weight_back():
    one = site(CONV)
    precision = Precision(one, metric_of(one, curvature(one)), GPTQ)
    form = precision.form(Dense(one.weight), 2.0**-14)
    np.testing.assert_allclose(dense(form), one.weight, atol=1e-2)
    again = precision.form(Dense(one.weight), 2.0**-14)
    assert isinstance(form, Quantized)
    assert isinstance(again, Quantized)
    assert (form.integers == again.integers).all()


def test_error_feedback_beats_rounding_to_the_nearest():
    one = site(LINEAR)
    metric = metric_of(one, curvature(one))
    precision = Precision(one, metric, GPTQ)
    form = precision.form(Dense(one.weight), 0.2)
    assert isinstance(form, Quantized)
    steps = dense(Quantized(np.ones_like(form.integers), form.row, form.column, form.per_octave))
    nearest = np.round(one.weight / steps) * steps
    losses = [
        curvature(one).loss(torch.from_numpy(one.weight - w)[None].double()) for w in (dense(form), nearest)
    ]  # fmt: skip
    assert losses[0] < losses[1]


def test_the_last_factor_makes_good_what_the_first_lost():
    one = site(LINEAR)
    curved = curvature(one)
    (option,) = gather([one], {one.name: curved}, {"svd": methods()["svd"]})
    form = option.form("svd", 10)
    metric = metric_of(one, curved)
    target = torch.from_numpy(grouped(one.weight, 1)).double()
    result = round_form(form, target, LINEAR, metric, Precision(one, metric, GPTQ).leaf(0.3))
    assert isinstance(result, LowRank)
    assert isinstance(form, LowRank)
    kept = LowRank(v=result.v, u=form.u)

    def loss(w: np.ndarray) -> float:
        return curved.loss(torch.from_numpy(one.weight - w)[None].double())

    assert loss(dense(result)) < 1.5 * loss(dense(kept))


def test_what_has_no_rounding_says_so():
    one = site(CONV)
    target, metric = torch.from_numpy(grouped(one.weight, 1)).double(), metric_of(one, Curvature())
    v, u, core = (Dense(np.ones(shape, "f4")) for shape in ((2, 6, 3, 3), (10, 2), (2, 2)))
    with pytest.raises(Refusal, match="factors=2"):
        round_form(LowRank(v, u, core), target, CONV, metric, Precision(one, metric, GPTQ).leaf(0.1))
    turned = Site("up", Geometry("conv_transpose", 4, 2, (2, 2), (2, 2), (0, 0), (1, 1), 1, (3, 3), (6, 6), (0, 0)),
                  np.ones((4, 2, 2, 2), "f4"))  # fmt: skip
    option = options(turned, Curvature())
    assert "transposed" in option.refusals["gptq"]
    with pytest.raises(PlanError, match="cannot be rounded"):
        option.form(None, None, 0.1)


def test_dead_inputs_and_dead_rows_are_handled():
    one = site(LINEAR)
    curved = curvature(one)
    assert curved.inputs.matrix is not None
    assert curved.outputs.matrix is not None
    curved.inputs.matrix[:, :5] = 0
    curved.inputs.matrix[:, :, :5] = 0
    curved.outputs.matrix[:, 3] = 0
    curved.outputs.matrix[:, :, 3] = 0
    option = options(one, curved)
    assert np.isfinite(option.losses).all()
    assert np.isfinite(dense(option.form(*option.labels[5]))).all()


def test_a_moment_of_zeros_is_handled():
    one = site(CONV)
    zero = Curvature(Moment(matrix=torch.zeros(1, 54, 54)), Moment(matrix=torch.zeros(1, 10, 10)), "calibration", 1)
    option = options(one, zero)
    assert np.isfinite(option.losses).all()


def test_a_bias_is_a_column_of_ones():
    bias = np.array([0.5, -0.25, 3.0], np.float32)
    form = round_bias(bias, torch.ones(1, 3), 16, 0.01)
    assert np.abs(dense(form) - bias).max() <= 0.01 / 4  # half of 0.01 / sqrt(16), on a grid of a quarter octave


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("count", [7, 90])  # fewer rows than columns, and more
def test_moments_through_a_factor_are_those_of_its_outputs(count: int, intercept: bool):
    draw = torch.Generator().manual_seed(0)
    z, y, v = (torch.randn(2, *size, generator=draw) for size in ((count, 40), (count, 5), (3, 40)))
    whole, inner = Moments(), Moments()
    for part in (slice(0, 4), slice(4, count)):
        whole.add(y[:, part], z[:, part])
        inner.add(y[:, part], z[:, part] @ v.mT)
    assert (whole.rows is None) == (count > 40)
    for got, want in zip(
        whole.through(v.double(), intercept=intercept), inner.centred(intercept=intercept), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_rounding_aims_at_the_originals_outputs_on_the_inputs_it_gets():
    one = site(LINEAR, bias=True)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 40, generator=draw)
    y = x @ torch.from_numpy(one.weight).T + torch.from_numpy(np.asarray(one.bias))
    shifted = 0.8 * x + 0.3  # what the layers before make of it
    sums = Moments()
    sums.add(y[None], input_rows(shifted, LINEAR, None))
    precision = Precision(one, Metric(Moment(matrix=(x.T @ x / 2000)[None])), GPTQ)
    stored = rounded(Stored(Dense(one.weight), one.bias), precision, 2.0**-8, sums, determined=True)
    assert stored.bias_form is not None
    assert (dense(stored.bias_form) == stored.bias).all()
    answer = shifted @ torch.from_numpy(dense(stored.form)).T + torch.from_numpy(np.asarray(stored.bias))
    untouched = shifted @ torch.from_numpy(one.weight).T + torch.from_numpy(np.asarray(one.bias))
    assert float((answer - y).square().mean()) < 0.01 * float((untouched - y).square().mean())


def test_a_channel_that_no_gradient_reached_is_rounded_too():
    g = torch.full((6, 1, 1), 2.0)
    g[3] = 1e-39  # what shrinking leaves of a zero in float32
    rows = Metric(Moment(), g).rows(6, 1)
    assert float(rows.min()) > 0.4 * float(rows.max())


def test_values_between_factors_are_brought_to_equal_energy():
    """V's integers stay, its row scales change; the product is as near to the weight as before."""
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.normal(size=(500, 20)) * np.linspace(0.2, 3, 20))
    metric = Metric(Moment(matrix=(x.T @ x / 500)[None]))
    one = site(Geometry("linear", 20, 9))
    weight = torch.from_numpy(one.weight)[None].double()
    u, s, v = np.linalg.svd(one.weight, full_matrices=False)
    form = LowRank(v=Dense((s[:4, None] * v[:4]).astype("f4")), u=Dense(u[:, :4].astype("f4")))
    found = {}
    for static in (False, True):
        rounded = Precision(one, metric, GPTQ, static, narrow=static).form(form, None, 8)
        assert isinstance(rounded, LowRank)
        found[static] = rounded
    assert np.array_equal(found[True].v.integers, found[False].v.integers)
    assert len(set(found[True].u.row.tolist())) == 1, "four columns: one scale"
    energies = [(torch.from_numpy(dense(found[k].v)).double() @ x.T).square().mean(1) for k in (False, True)]
    assert float(energies[0].max() / energies[0].min()) > 2
    assert float(energies[1].max() / energies[1].min()) < 1.2
    errors = [metric.inputs.between(d, d).diagonal(dim1=1, dim2=2).sum() for d in (
        weight - torch.from_numpy(dense(found[k])).double()[None] for k in (False, True)
    )]  # fmt: skip
    assert float(errors[1]) < 1.02 * float(errors[0])


@pytest.mark.parametrize("taps", [9, 700])  # summed in float64 and in float32
def test_a_refit_of_a_channel_held_at_a_bound_stays_at_its_start(taps: int):
    draw = torch.Generator().manual_seed(0)
    z = torch.full((2, 2000, taps), 5.9)
    z[1] += torch.randn(2000, taps, generator=draw)
    y, start = torch.randn(2, 2000, 1, generator=draw), torch.randn(2, 1, taps, generator=draw).double()
    sums = Moments()
    for part in range(0, 2000, 100):
        sums.add(y[:, part : part + 100], z[:, part : part + 100])
    for found in (sums.solve(start, intercept=True), sums.solve_kept(start, intercept=True)):
        torch.testing.assert_close(found[0], start[0], rtol=0.05, atol=0.05)
        assert float(found[1].abs().max()) < 0.2  # y says nothing of z, and so do the weights of one that varies
