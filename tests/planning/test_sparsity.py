"""One threshold for a network: exactly the share that was asked, patterns, protected layers, layers left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smidgen.errors import PlanError
from smidgen.forms import Geometry, Masked
from smidgen.methods import prunings
from smidgen.planning.candidates import gather, weights_only
from smidgen.planning.sparsity import largest_kept, pattern_kept, pruned_plan, with_pruned
from smidgen.site import Curvature, Moment, Site, stacked

ALL = dict.fromkeys(("linear", "conv", "conv_transpose"), tuple(prunings()))


def site(name: str, geometry: Geometry, scale: float = 1.0, seed: int = 0) -> Site:
    shape = (geometry.out_channels, geometry.in_channels // geometry.groups, *geometry.kernel)
    if geometry.kind == "conv_transpose":
        shape = (geometry.in_channels, geometry.out_channels, *geometry.kernel)
    return Site(name, geometry, (scale * np.random.default_rng(seed).normal(size=shape)).astype("f4"))


def conv(inp: int, out: int, groups: int = 1) -> Geometry:
    return Geometry("conv", inp, out, (3, 3), (1, 1), (1, 1), (1, 1), groups, (6, 6), (6, 6))


def known(one: Site, seed: int = 1) -> Curvature:
    g = one.geometry
    n, out = g.columns, g.out_channels // g.groups
    n = g.in_channels // g.groups if g.kind == "conv_transpose" else n
    x = np.random.default_rng(seed).normal(size=(g.groups, 4 * n, n)) * np.linspace(0.3, 2, n)
    moment = torch.from_numpy(np.einsum("gkn,gkm->gnm", x, x) / x.shape[1]).float()
    rows = torch.diag_embed(torch.linspace(0.5, 2, out).expand(g.groups, out)) / 50
    return Curvature(Moment(matrix=moment), Moment(matrix=rows), "calibration", 64)


SITES = [site("conv1", conv(8, 12)), site("body.conv", conv(12, 12, 3), 0.6, 1),
         site("head", Geometry("linear", 40, 10), 0.5, 2)]  # fmt: skip
CURVATURES = {each.name: known(each) for each in SITES}


def forms(name: str, sites=SITES, curvatures=CURVATURES, **changes) -> dict[str, Masked]:
    pruning = prunings()[name].with_settings(**changes)
    options = with_pruned(gather(sites, curvatures, {}), curvatures, pruning, ALL)
    found = {}
    for option, choice in zip(options, pruned_plan(options, {name: pruning}).choices, strict=True):
        assert choice.method in (None, name)
        if choice.method is not None:
            found[option.site.name] = option.form(*choice.taken)
            assert choice.rank == found[option.site.name].survivors
    return found


@pytest.mark.parametrize("name", sorted(prunings()))
@pytest.mark.parametrize("sparsity", [0.07, 0.5, 0.9])
def test_a_global_sparsity_is_exact(name, sparsity):
    found = forms(name, sparsity=sparsity, scope="global")
    total = sum(each.weight.size for each in SITES)
    assert sum(each.survivors for each in found.values()) == total - round(sparsity * total)


@pytest.mark.parametrize("name", sorted(prunings()))
def test_a_sparsity_of_each_layer_and_row_is_exact(name):
    for one in SITES:
        assert forms(name, sparsity=0.6, scope="layer")[one.name].survivors == one.weight.size - round(
            0.6 * one.weight.size
        )
        kept = forms(name, sparsity=0.6, scope="row")[one.name].kept.reshape(len(one.weight), -1)
        assert set(kept.sum(1)) == {kept.shape[1] - round(0.6 * kept.shape[1])}


@pytest.mark.parametrize("name", sorted(prunings()))
@pytest.mark.parametrize(("kept", "of"), [(2, 4), (1, 3), (4, 8)])
def test_a_pattern_is_exact_along_input_channels(name, kept, of):
    found = forms(name, sites=[SITES[0], SITES[2]], pattern=f"{kept}:{of}")
    for one in found.values():
        there = np.moveaxis(one.kept, 1, -1)
        whole = there[..., : there.shape[-1] // of * of].reshape(*there.shape[:-1], -1, of)
        assert set(whole.sum(-1).ravel()) == {kept}
        assert there[..., whole.shape[-2] * of :].sum(-1).max(initial=0) <= kept


def test_a_layer_without_so_many_channels_has_no_pattern():
    pruning = prunings()["obs"].with_settings(pattern="2:8")
    options = with_pruned(gather(SITES, CURVATURES, {}), CURVATURES, pruning, ALL)
    assert options[1].labels[-1].method is None
    assert "4 input channels have no pattern of 2:8" in options[1].refusals["obs"]


def test_magnitude_takes_the_smallest_of_all_layers():
    found = forms("magnitude", sparsity=0.5)
    values = np.concatenate([np.abs(each.weight).ravel() for each in SITES])
    threshold = np.sort(values)[round(0.5 * values.size) - 1]
    for one in SITES:
        assert np.array_equal(found[one.name].values, np.where(np.abs(one.weight) > threshold, one.weight, 0))


def test_curvature_loses_less_than_magnitude_and_wanda():
    def lost(name: str) -> float:
        found = forms(name, sparsity=0.6, scope="global")
        return sum(
            CURVATURES[one.name].loss_as_stored(one.weight - found[one.name].values, one.geometry) for one in SITES
        )

    assert lost("obs") < 0.95 * min(lost("wanda"), lost("magnitude"))


def test_on_a_diagonal_metric_curvature_is_magnitude():
    flat = {each.name: weights_only(each) for each in SITES[:1]}
    a = forms("obs", SITES[:1], flat, sparsity=0.7)["conv1"]
    b = forms("magnitude", SITES[:1], flat, sparsity=0.7)["conv1"]
    assert np.array_equal(a.kept, b.kept)
    np.testing.assert_allclose(a.values, b.values, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(prunings()))
@pytest.mark.parametrize("how", [{"sparsity": 0.6}, {"sparsity": 0.5, "scope": "row"}, {"pattern": "2:4"}])
def test_a_transposed_convolution_is_pruned_as_the_dense_layer_that_it_is(name, how):
    """Windows that do not overlap: the same products as a 1×1 convolution with an output for each tap."""
    turned = Geometry("conv_transpose", 8, 6, (2, 3), (2, 3), (0, 0), (1, 1), 2, (3, 3), (6, 9), (0, 0))
    flat = Geometry("conv", 8, 36, (1, 1), (1, 1), (0, 0), (1, 1), 2, (3, 3), (3, 3))
    up = Site("up", turned, np.random.default_rng(0).normal(size=(8, 3, 2, 3)).astype("f4"))
    same = Site("same", flat, stacked(up.weight, turned).reshape(36, 4, 1, 1))
    curvature = known(up)
    tiled = torch.stack([torch.kron(torch.eye(6), each) for each in curvature.outputs.matrix])
    as_dense = Curvature(curvature.inputs, Moment(matrix=tiled), "calibration", 64)
    a = forms(name, [up], {"up": curvature}, **how)["up"]
    b = forms(name, [same], {"same": as_dense}, **how)["same"]
    np.testing.assert_allclose(stacked(a.values, turned).reshape(36, 4), b.values.reshape(36, 4), rtol=1e-5)


def test_protected_layers_stay_whole():
    pruning = prunings()["magnitude"].with_settings(sparsity=0.5, protect=["conv1", "bo*"])
    options = with_pruned(gather(SITES, {}, {}), {}, pruning, ALL)
    assert [option.labels[-1].method for option in options] == [None, None, "magnitude"]
    assert "protected" in options[1].refusals["magnitude"]
    with pytest.raises(PlanError, match="no layer is called 'hed'; did you mean head"):
        forms("magnitude", sparsity=0.5, protect="hed")


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=1, max_size=9), min_size=1, max_size=4),
       st.floats(0.01, 0.99))  # fmt: skip
def test_the_largest_stay_and_no_layer_is_empty(rows, share):
    scores = {str(i): torch.tensor(row) for i, row in enumerate(rows)}
    total = sum(map(len, rows))
    if round(share * total) > total - len(rows):
        with pytest.raises(PlanError, match="leave a layer empty"):
            largest_kept(scores, share)
        return
    kept = largest_kept(scores, share)
    assert sum(int(each.sum()) for each in kept.values()) == total - round(share * total)
    assert all(bool(each.any()) for each in kept.values())
    gone = [float(scores[k][~kept[k]].max()) for k in kept if not kept[k].all()]
    for key, each in kept.items():
        there = scores[key][each].sort().values[: int(each.sum()) - 1]  # but for the one that is always kept
        assert not gone or not len(there) or max(gone) <= float(scores[key].max())


def test_equals_of_a_pattern():
    assert pattern_kept(torch.zeros(1, 2, 6), 6, 1, 4).sum(-1).tolist() == [[2, 2]]


@pytest.mark.parametrize("wrong", [0, 1, -0.1, 1.5, 70, float("nan"), True])
def test_a_share_that_is_none_is_told(wrong):
    for pruning in prunings().values():
        with pytest.raises(ValueError, match="must be above 0 and below 1"):
            pruning.with_settings(sparsity=wrong)
