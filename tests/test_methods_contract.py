"""The laws every method obeys, over all methods there are and all kinds of layers."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, is_dataclass

import numpy as np
import pytest
import torch

from smidgen.errors import PlanError, Refusal
from smidgen.forms import Codebook, Geometry, dense, leaves, macs, nbytes, params
from smidgen.forms import rank as rank_of
from smidgen.methods import (
    Family,
    Method,
    methods,
    prunings,
    roundings,
    sharings,
)
from smidgen.planning.candidates import weights_only
from smidgen.planning.metric import metric_of
from smidgen.site import Curvature, Moment, Site, grouped


def conv(inp, out, kernel, size, *, stride=None, padding=None, dilation=None, groups=1):
    axes = len(kernel)
    stride, padding, dilation = stride or (1,) * axes, padding or (0,) * axes, dilation or (1,) * axes
    after = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, kernel, stride, strict=True)
    )
    return Geometry("conv", inp, out, kernel, stride, padding, dilation, groups, size, after)


def site(name, geometry, weight=None, seed=0):
    if geometry.kind == "linear":
        shape = (geometry.out_channels, geometry.in_channels)
    elif geometry.kind == "conv":
        shape = (geometry.out_channels, geometry.in_channels // geometry.groups, *geometry.kernel)
    else:
        shape = (geometry.in_channels, geometry.out_channels // geometry.groups, *geometry.kernel)
    values = np.random.default_rng(seed).normal(size=shape) if weight is None else np.full(shape, weight)
    return Site(name, geometry, values.astype("f4"))


LINEAR = Geometry("linear", 20, 14)
CONV = conv(6, 10, (3, 3), (9, 9), stride=(2, 2), padding=(1, 1))
TRANSPOSED = Geometry(
    "conv_transpose", 6, 8, (3, 3), (2, 2), (1, 1), (1, 1), 1, in_size=(4, 4), out_size=(8, 8), output_padding=(1, 1)
)
SITES = [
    site("linear", LINEAR),
    site("linear over positions", LINEAR.with_(in_size=(5,), out_size=(5,))),
    site("wide", Geometry("linear", 300, 4)),
    site("tall", Geometry("linear", 3, 200)),
    site("tiny", Geometry("linear", 2, 2)),
    site("single row", Geometry("linear", 30, 1)),
    site("zero", LINEAR, 0.0),
    site("constant", LINEAR, 0.5),
    site("conv 3x3 stride 2", CONV),
    site("conv 1x1", conv(12, 10, (1, 1), (5, 5))),
    site("conv dilated", conv(8, 8, (3, 3), (9, 9), dilation=(2, 2), padding=(2, 2))),
    site("conv 5x2", conv(7, 9, (5, 2), (8, 8), padding=(2, 0))),
    site("conv zero", CONV, 0.0),
    site("conv constant", CONV, -0.25),
    site("conv1d", conv(8, 12, (5,), (16,), stride=(2,), padding=(2,))),
    site("conv grouped", conv(12, 12, (3, 3), (6, 6), groups=3, padding=(1, 1))),
    site("conv depthwise", conv(8, 8, (3, 3), (6, 6), groups=8, padding=(1, 1))),
    site("conv tiny", conv(1, 1, (3, 3), (6, 6))),
    site("conv_transpose", TRANSPOSED),
]


def random_moment(groups, n, seed, rank=None):
    x = np.random.default_rng(seed).normal(size=(groups, rank or 3 * n, n)) * np.linspace(0.2, 3.0, n)
    return torch.from_numpy(np.einsum("gkn,gkm->gnm", x, x) / x.shape[1]).float()


def data_curvature(one: Site, seed=1) -> Curvature:
    g = one.geometry
    out, columns = g.out_channels // g.groups, one.matrix.shape[1]
    if g.kind == "conv_transpose":
        columns = g.in_channels // g.groups
    return Curvature(
        Moment(matrix=random_moment(g.groups, columns, seed)),
        Moment(matrix=random_moment(g.groups, out, seed + 1) / 50),
        "calibration",
        64,
    )


CURVATURES = {"no data": weights_only, "data": data_curvature}

QUICK = {
    "cp": {"points": 4, "iterations": 8},
    "spatial": {"points": 4, "sweeps": 2},
    "tucker2": {"points": 4, "sweeps": 2},
}


def offered(method: Method, one: Site, kind: str, seed: int = 0, **settings) -> Family:
    return method.with_settings(**QUICK.get(method.name, {}), **settings).family(one, CURVATURES[kind](one), seed=seed)


def refuses(method: Method, one: Site) -> bool:
    try:
        offered(method, one, "no data")
    except Refusal:
        return True
    return False


# Where a method refuses, `test_a_refusal_has_its_reason` looks.
CASES = [
    pytest.param(method, one, kind, id=f"{name}-{one.name}-{kind}")
    for name, method in sorted(methods().items())
    for one in SITES
    if not refuses(method, one)
    for kind in CURVATURES
]


def some(ranks):
    return sorted({ranks[0], ranks[len(ranks) // 2], ranks[-1]})


@pytest.mark.parametrize(("method", "one", "kind"), CASES)
def test_shapes_types_and_finite_values(method, one, kind):
    before = one.weight.copy()
    family = offered(method, one, kind)
    assert family.method == method.name
    for rank in some(family.ranks):
        form = family.form(rank)
        full = dense(form)
        assert full.shape == one.weight.shape
        assert full.dtype == np.float32
        assert all(leaf.values.dtype == np.float32 and np.isfinite(leaf.values).all() for leaf in leaves(form))
        assert 1 <= rank_of(form) <= rank  # the best so far may be a smaller one
    assert one.weight.tobytes() == before.tobytes(), "the input was changed"


@pytest.mark.parametrize(("method", "one", "kind"), CASES)
def test_more_rank_never_more_loss(method, one, kind):
    family = offered(method, one, kind)
    losses = np.array(family.losses)
    assert len(losses) == len(family.ranks) == len(set(family.ranks))
    assert list(family.ranks) == sorted(family.ranks)
    assert family.ranks[0] >= 1
    assert np.isfinite(losses).all()
    assert (losses >= 0).all()
    assert (np.diff(losses) <= 0).all()


@pytest.mark.parametrize(("method", "one", "kind"), CASES)
def test_an_outline_costs_what_its_form_costs(method, one, kind):
    family, g = offered(method, one, kind), one.geometry
    for rank in some(family.ranks):
        form, outline = family.form(rank), family.outline(rank)
        assert [leaf.values.shape for leaf in leaves(outline)] == [leaf.values.shape for leaf in leaves(form)]
        assert params(outline, g) == params(form, g) == sum(leaf.values.size for leaf in leaves(form))
        assert nbytes(outline, g) == nbytes(form, g)
        assert macs(outline, g) == macs(form, g)
    sizes = [nbytes(family.outline(rank), g) for rank in family.ranks]
    assert sizes == sorted(sizes), "a larger rank must not take fewer bytes"


@pytest.mark.parametrize(("method", "one", "kind"), CASES)
def test_the_predicted_loss_is_that_of_the_form(method, one, kind):
    """The closed form against the curvature of W − dense(form), computed directly."""
    family = offered(method, one, kind, **({"damp": 0.0} if method.name == "svd" else {}))
    curvature = CURVATURES[kind](one)
    whole = curvature.loss_as_stored(one.weight.astype("f8"), one.geometry)
    for rank in some(family.ranks):
        direct = curvature.loss_as_stored(one.weight.astype("f8") - dense(family.form(rank)), one.geometry)
        assert family.losses[family.ranks.index(rank)] == pytest.approx(direct, rel=1e-3, abs=1e-6 * max(whole, 1e-30))


@pytest.mark.parametrize(("method", "one", "kind"), CASES)
def test_the_same_seed_gives_the_same_form(method, one, kind):
    first, second = offered(method, one, kind, seed=3), offered(method, one, kind, seed=3)
    assert first.ranks == second.ranks
    assert first.losses == second.losses
    for rank in some(first.ranks):
        pairs = zip(leaves(first.form(rank)), leaves(second.form(rank)), strict=True)
        assert all(a.values.tobytes() == b.values.tobytes() for a, b in pairs)


@pytest.mark.parametrize("method", methods().values(), ids=methods())
def test_what_is_offered_at_the_top_is_smaller_than_the_layer(method):
    for one in SITES:
        if refuses(method, one):
            continue
        family = offered(method, one, "no data")
        assert params(family.outline(family.ranks[-1]), one.geometry) < one.weight.size


@pytest.mark.parametrize("method", methods().values(), ids=methods())
def test_a_refusal_has_its_reason(method):
    reasons = {}
    for one in SITES:
        try:
            offered(method, one, "no data")
        except Refusal as refusal:
            reasons[one.name] = str(refusal)
    assert reasons, "every method refuses something in this list"
    for reason in reasons.values():
        assert reason.startswith(f"{method.name}: ")
        assert len(reason) > len(method.name) + 10
        assert "\n" not in reason
    assert {"tiny", "conv depthwise"} <= set(reasons)


@pytest.mark.parametrize("method", methods().values(), ids=methods())
def test_an_offered_rank_is_built_and_another_is_refused(method):
    family = offered(method, SITES[8], "no data")
    for rank in (0, -1, family.ranks[-1] + 1):
        with pytest.raises(PlanError, match=f"rank {rank} is not offered"):
            family.form(rank)


@pytest.mark.parametrize("method", methods().values(), ids=methods())
def test_settings_survive_json(method):
    assert is_dataclass(method.settings)
    stored = json.loads(json.dumps(asdict(method.settings)))
    assert method.with_settings(**stored) == method
    assert method.with_settings(ranks="fixed", rank=3).settings.rank == 3
    assert method.settings.rank == 0, "the method itself is frozen"
    with pytest.raises(TypeError):
        method.with_settings(no_such_setting=1)


@pytest.mark.parametrize("name", sorted(roundings()))
@pytest.mark.parametrize("one", [s for s in SITES if s.geometry.kind != "conv_transpose"], ids=lambda s: s.name)
def test_every_rounding_gives_integers_that_come_nearer_with_finer_steps(name, one):
    metric = metric_of(one, data_curvature(one))
    weight = torch.from_numpy(grouped(one.weight, one.geometry.groups)).double()
    rows = metric.rows(*weight.shape[:2])
    losses, before = [], weight.clone()
    for step in (2.0, 0.25, 2.0**-6):
        form = roundings()[name].rounded(weight, metric.factors, rows, step)
        again = roundings()[name].rounded(weight, metric.factors, rows, step)
        assert form.integers.dtype == np.int32
        assert form.integers.shape == (weight.shape[0] * weight.shape[1], weight.shape[2])
        assert (form.integers == again.integers).all()
        assert weight.shape[2] % len(form.column) == 0
        change = weight - torch.from_numpy(dense(form)).reshape(weight.shape)
        assert torch.isfinite(change).all()
        losses.append(float((metric.inputs.between(change, change).diagonal(dim1=1, dim2=2) * rows).sum()))
    assert torch.equal(weight, before)
    assert losses[2] <= losses[1] + 1e-12
    assert losses[1] <= losses[0] + 1e-12


@pytest.mark.parametrize("name", sorted(roundings()))
@pytest.mark.parametrize("one", [s for s in SITES if s.geometry.kind != "conv_transpose"], ids=lambda s: s.name)
def test_every_rounding_fits_a_width_and_comes_nearer_with_a_wider_one(name, one):
    metric = metric_of(one, data_curvature(one))
    weight = torch.from_numpy(grouped(one.weight, one.geometry.groups)).double()
    losses, before = [], weight.clone()
    for bits in (4, 8):
        form = roundings()[name].fixed(weight, metric.factors, bits)
        again = roundings()[name].fixed(weight, metric.factors, bits)
        assert form.integers.dtype == np.int32
        assert form.integers.shape == (weight.shape[0] * weight.shape[1], weight.shape[2])
        assert np.abs(form.integers).max() <= 2 ** (bits - 1) - 1
        assert form.column.tolist() == [0], "one float32 product gives the weight"
        assert (form.integers == again.integers).all()
        assert (form.row == again.row).all()
        change = weight - torch.from_numpy(dense(form)).reshape(weight.shape)
        assert torch.isfinite(change).all()
        losses.append(float(metric.inputs.between(change, change).diagonal(dim1=1, dim2=2).sum()))
    assert torch.equal(weight, before)
    assert losses[1] <= losses[0]


@pytest.mark.parametrize("name", sorted(sharings()))
@pytest.mark.parametrize("one", [s for s in SITES if s.geometry.kind != "conv_transpose"], ids=lambda s: s.name)
def test_every_sharing_has_as_many_values_as_asked_and_comes_nearer_with_more(name, one):
    metric = metric_of(one, data_curvature(one))
    weight = torch.from_numpy(grouped(one.weight, one.geometry.groups)).double()
    rows = metric.rows(*weight.shape[:2])
    losses, before = [], weight.clone()
    for bits in (1, 3, 5, 8):
        form = sharings()[name].shared(weight, metric.factors, rows, bits)
        again = sharings()[name].shared(weight, metric.factors, rows, bits)
        assert isinstance(form, Codebook)
        assert (form.indices.dtype, form.values.dtype) == (np.uint8, np.float32)
        assert form.indices.shape == (weight.shape[0] * weight.shape[1], weight.shape[2])
        assert 1 <= len(form.values) <= 2**bits
        assert form.bits <= bits
        assert int(form.indices.max()) < len(form.values)
        assert (np.diff(form.values) > 0).all()
        assert (form.indices == again.indices).all()
        assert form.values.tobytes() == again.values.tobytes()
        assert dense(form).dtype == np.float32
        change = weight - torch.from_numpy(dense(form)).reshape(weight.shape)
        assert torch.isfinite(change).all()
        losses.append(float((metric.inputs.between(change, change).diagonal(dim1=1, dim2=2) * rows).sum()))
    assert torch.equal(weight, before)
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(losses))


FLAT = [s for s in SITES if s.geometry.kind != "conv_transpose"]


@pytest.mark.parametrize("name", sorted(prunings()))
@pytest.mark.parametrize("one", FLAT, ids=lambda s: s.name)
def test_every_pruning_scores_and_keeps_what_it_is_told(name, one):
    metric, pruning = metric_of(one, data_curvature(one)), prunings()[name]
    weight = torch.from_numpy(grouped(one.weight, one.geometry.groups)).double()
    rows, before = metric.rows(*weight.shape[:2]), weight.clone()
    losses = []
    scores = pruning.scores(weight, metric.factors, rows, 0.0)
    assert scores.shape == weight.shape
    assert torch.isfinite(scores).all()
    assert (scores >= 0).all()
    assert torch.equal(scores, pruning.scores(weight, metric.factors, rows, 0.0))
    order = torch.argsort(torch.argsort(scores.flatten())).reshape(scores.shape)
    # One whole second moment, damped as its factors are.
    moment = metric.inputs.matrix.double()
    moment = moment + 0.01 * torch.eye(moment.shape[1]) * moment.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    for share in (0.9, 0.5, 0.1):
        kept = order >= round(share * weight.numel())
        found = pruning.values(weight, moment, metric.factors, kept)
        assert torch.isfinite(found).all()
        assert (found[~kept] == 0).all()
        assert torch.equal(found, pruning.values(weight, moment, metric.factors, kept))
        change = weight - found
        losses.append(float(((change @ moment) * change).sum()))
        plain = weight * ~kept
        assert losses[-1] <= float(((plain @ moment) * plain).sum()) * (1 + 1e-9) + 1e-12
    assert torch.equal(weight, before), "the input was changed"
    assert losses[2] <= losses[1] + 1e-9
    assert losses[1] <= losses[0] + 1e-9


@pytest.mark.parametrize("name", [*sorted(roundings()), *sorted(sharings())])
@pytest.mark.parametrize("one", FLAT, ids=lambda s: s.name)
def test_zeros_of_a_pruned_weight_stay_zeros(name, one):
    metric = metric_of(one, data_curvature(one))
    weight = torch.from_numpy(grouped(one.weight, one.geometry.groups)).double()
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    weight = torch.where(kept, weight, 0.0)
    rows = metric.rows(*weight.shape[:2])
    if name in sharings():
        found = [sharings()[name].shared(weight, metric.factors, rows, bits, kept) for bits in (2, 5)]
        assert all(0.0 in form.values.tolist() for form in found)
    else:
        rounding = roundings()[name]
        found = [rounding.rounded(weight, metric.factors, rows, 0.1, 1, kept),
                 *(rounding.fixed(weight, metric.factors, bits, kept=kept) for bits in (4, 8))]  # fmt: skip
    for form in found:
        assert (torch.from_numpy(dense(form)).reshape(weight.shape)[~kept] == 0).all()
