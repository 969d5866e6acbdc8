"""Options of a fixed width: what they cost is what they take, wider is nearer, floats stay beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smidgen.errors import PlanError, Refusal
from smidgen.forms import Codebook, Dense, Geometry, Quantized, dense, leaves, nbytes
from smidgen.methods import methods, roundings, sharings
from smidgen.numerics.cancellation import factorise
from smidgen.planning.allocate import allocate
from smidgen.planning.candidates import Label, gather, weights_only
from smidgen.planning.widths import with_widths
from smidgen.site import Curvature, Moment, Site, grouped

GPTQ = roundings()["gptq"]
KMEANS = sharings()["kmeans"]
METHODS = {"svd": methods()["svd"], "cp": methods()["cp"].with_settings(points=3, iterations=5)}
LINEAR = Geometry("linear", 60, 48)
TALL = Geometry("linear", 31, 300)
CONV = Geometry("conv", 6, 10, (3, 3), (1, 1), (1, 1), (1, 1), 1, (6, 6), (6, 6))
GROUPED = Geometry("conv", 24, 16, (3, 3), (1, 1), (1, 1), (1, 1), 4, (6, 6), (6, 6))
DEPTHWISE = Geometry("conv", 64, 64, (3, 3), (1, 1), (1, 1), (1, 1), 64, (6, 6), (6, 6))
KINDS = {"linear": LINEAR, "tall": TALL, "conv": CONV, "grouped": GROUPED, "depthwise": DEPTHWISE}


def site(geometry: Geometry) -> Site:
    shape = (geometry.out_channels, geometry.in_channels // geometry.groups, *geometry.kernel)
    return Site("layer", geometry, np.random.default_rng(0).normal(size=shape).astype("f4"))


def curvature(one: Site) -> Curvature:
    g, draw = one.geometry, np.random.default_rng(1)
    n, out = one.weight.size // one.weight.shape[0], one.weight.shape[0] // g.groups
    x = draw.normal(size=(g.groups, 4 * n, n)) * np.geomspace(0.1, 3.0, n)
    y = draw.normal(size=(g.groups, 4 * out, out)) / 10
    moments = (Moment(matrix=torch.from_numpy(m.swapaxes(1, 2) @ m / len(m[0])).float()) for m in (x, y))
    return Curvature(*moments, "calibration", 50)


def options(one: Site, curved: Curvature, target: str):
    (option,) = gather([one], {one.name: curved}, METHODS)
    return with_widths(option, curved, GPTQ, target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["onnx-w8", "onnx-w4"])
@pytest.mark.parametrize("data", [True, False], ids=["data", "no data"])
def test_options_fall_in_bytes_as_they_rise_in_loss(kind, target, data):
    one = site(KINDS[kind])
    option = options(one, curvature(one) if data else weights_only(one), target)
    assert option.labels[0] == Label(None, None), "the layer in floats, as it is"
    assert (np.diff(option.sizes) < 0).all()
    assert (np.diff(option.losses) > 0).all()
    assert Label(None, None, None, 8) in option.labels
    widths = {label.bits for label in option.labels}
    assert widths <= ({None, 8} if target == "onnx-w8" else {None, 8, 4})
    assert len(set(option.labels)) == len(option.labels)


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_takes_the_bytes_and_about_the_loss_that_were_said(kind):
    one = site(KINDS[kind])
    curved = curvature(one)
    option = options(one, curved, "onnx-w4")
    for i in {*range(0, len(option.labels), 9), len(option.labels) - 1}:
        form = option.form(*option.labels[i])
        if option.labels[i].bits is not None:
            assert all(isinstance(leaf, Quantized) for leaf in leaves(form))
        # Integers of eight bits that happen to be small are stored in four.
        assert nbytes(form, one.geometry, "onnx-w4") <= option.sizes[i]
        change = torch.from_numpy(grouped(one.weight - dense(form), one.geometry.groups)).double()
        assert curved.loss(change) < 4 * option.losses[i] + 1e-12


def test_a_price_mixes_floats_and_both_widths():
    one = site(LINEAR)
    option = options(one, curvature(one), "onnx-w4")
    taken = [allocate([option], price, {}).choices[0] for price in np.geomspace(1e-12, 1e3, 60)]
    assert [c.nbytes for c in taken] == sorted((c.nbytes for c in taken), reverse=True)
    assert [bits for bits in dict.fromkeys(c.bits for c in taken)][:3] == [None, 8, 4]
    assert any(c.method == "svd" and c.bits == 4 for c in taken)
    assert all(c.reason is None for c in taken if c.changed)


def test_what_has_no_rounding_keeps_its_floats():
    turned = Site("up", Geometry("conv_transpose", 4, 2, (2, 2), (2, 2), (0, 0), (1, 1), 1, (3, 3), (6, 6), (0, 0)),
                  np.ones((4, 2, 2, 2), "f4"))  # fmt: skip
    option = options(turned, Curvature(), "onnx-w8")
    assert option.labels == (Label(None, None),)
    assert "transposed" in option.refusals["gptq"]
    with pytest.raises(PlanError, match="cannot be rounded"):
        option.form(None, None, None, 8)
    shared = Site("shared", LINEAR, np.ones((48, 60), "f4"), refusal="its weight is shared")
    assert options(shared, Curvature(), "onnx-w8").labels == (Label(None, None),)


def test_a_rounding_that_refuses_is_told():
    one = site(CONV)
    one.weight[0, 0, 0, 0] = np.nan
    (option,) = gather([one], {}, {})
    told = with_widths(option, Curvature(), GPTQ, "onnx-w8")
    assert "nan" in told.refusals["gptq"]
    assert told.labels == (Label(None, None),)
    with pytest.raises(Refusal):
        GPTQ.fixed(torch.from_numpy(one.matrix)[None].double(), [factorise(torch.eye(54))], 8)
    assert isinstance(told.form(None, None), Dense)


def shared(one: Site, curved: Curvature, target: str, **settings):
    (option,) = gather([one], {one.name: curved}, METHODS)
    return with_widths(option, curved, KMEANS.with_settings(passes=1, **settings), target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["onnx-shared", "archive"])
def test_every_number_of_bits_is_offered_and_costs_what_it_says(kind, target):
    one = site(KINDS[kind])
    curved = curvature(one)
    option = shared(one, curved, target)
    assert option.labels[0] == Label(None, None)
    assert (np.diff(option.sizes) < 0).all()
    assert (np.diff(option.losses) > 0).all()
    assert len({label.bits for label in option.labels} & set(range(1, 9))) >= 4
    for i in {*range(1, len(option.labels), 9), len(option.labels) - 1}:
        form = option.form(*option.labels[i])
        if option.labels[i].bits is not None:
            assert all(isinstance(leaf, Codebook) for leaf in leaves(form))
            if target == "onnx-shared":
                assert nbytes(form, one.geometry, target) <= option.sizes[i] + 250  # fewer values, but bits to unpack
        change = torch.from_numpy(grouped(one.weight - dense(form), one.geometry.groups)).double()
        assert curved.loss(change) < 4 * option.losses[i] + 1e-12


@pytest.mark.parametrize("target", ["onnx-shared", "archive"])
def test_named_bits_are_the_only_ones(target):
    one = site(LINEAR)
    option = shared(one, curvature(one), target, bits=5)
    assert {label.bits for label in option.labels} == {None, 5}
    assert isinstance(option.form(None, None, None, 5), Codebook)


def test_what_has_no_sharing_keeps_its_floats():
    turned = Site("up", Geometry("conv_transpose", 4, 2, (2, 2), (2, 2), (0, 0), (1, 1), 1, (3, 3), (6, 6), (0, 0)),
                  np.ones((4, 2, 2, 2), "f4"))  # fmt: skip
    option = shared(turned, Curvature(), "onnx-shared")
    assert option.labels == (Label(None, None),)
    assert "transposed" in option.refusals["kmeans"]
