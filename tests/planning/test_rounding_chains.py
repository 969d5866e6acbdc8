"""Spatial, Tucker-2 and CP chains in integers: laws of the step, the value of a refit, and files that hold them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import smidgen
from smidgen.errors import Refusal
from smidgen.forms import CP, Dense, Geometry, Quantized, Spatial, Tucker2, dense, leaves
from smidgen.methods import roundings
from smidgen.planning.metric import metric_of
from smidgen.planning.precision import Precision, whole_loss
from smidgen.planning.rounding import round_form
from smidgen.runtimes.onnxruntime import open_onnx
from smidgen.site import Curvature, Moment, Site

CONV = Geometry("conv", 6, 10, (3, 3), (1, 1), (1, 1), (1, 1), 1, (6, 6), (6, 6))
OBLONG = Geometry("conv", 6, 10, (5, 2), (1, 1), (2, 0), (1, 1), 1, (6, 6), (6, 5))
GROUPED = Geometry("conv", 8, 12, (3, 3), (1, 1), (1, 1), (1, 1), 2, (6, 6), (6, 6))


def values(draw, *shape):
    return Dense(draw.normal(size=shape).astype("f4"))


def form_of(kind: str, g: Geometry, seed: int = 0):
    draw, groups = np.random.default_rng(seed), g.groups
    inp, out, (y, x) = g.in_channels // groups, g.out_channels, g.kernel
    match kind:
        case "vertical":
            return Spatial(values(draw, groups * 4, inp, y, 1), values(draw, out, 4, 1, x), groups)
        case "horizontal":
            return Spatial(values(draw, groups * 4, inp, 1, x), values(draw, out, 4, y, 1), groups)
        case "tucker2":
            core = values(draw, groups * 4, 3, y, x)
            return Tucker2(values(draw, groups * 3, inp), core, values(draw, out, 4), groups)
        case _:
            return CP(values(draw, 7, inp), (values(draw, 7, y), values(draw, 7, x)), values(draw, out, 7))


CASES = [
    (kind, g)
    for kind in ("vertical", "horizontal", "tucker2", "cp")
    for g in (CONV, OBLONG, GROUPED)
    if not (kind == "cp" and g.groups > 1)
]
IDS = [f"{kind}-{'x'.join(map(str, g.kernel))}-{g.groups}" for kind, g in CASES]


def precision_of(kind: str, g: Geometry, method: str = "gptq") -> tuple[Precision, object]:
    """A layer that is its form exactly, under moments of correlated inputs."""
    form, draw = form_of(kind, g), np.random.default_rng(1)
    one = Site("layer", g, dense(form))
    n, out = one.weight[0].size, g.out_channels // g.groups
    x = draw.normal(size=(g.groups, 3 * n, n)) @ draw.normal(size=(g.groups, n, n)) / n**0.5
    y = draw.normal(size=(g.groups, 4 * out, out))
    moments = [Moment(matrix=torch.from_numpy(v.swapaxes(1, 2) @ v / len(v[0])).float()) for v in (x, y)]
    curved = Curvature(*moments, "calibration", 50)
    return Precision(one, metric_of(one, curved), roundings()[method]), form


@pytest.mark.parametrize(("kind", "g"), CASES, ids=IDS)
def test_fine_steps_keep_the_weight_and_coarser_ones_lose_with_their_square(kind, g):
    precision, form = precision_of(kind, g)
    losses = [whole_loss(precision, precision.form(form, step)) for step in (2.0**-10, 2.0**-7, 2.0**-4)]
    whole = whole_loss(precision, Dense(np.zeros_like(precision.site.weight)))
    assert losses[0] < 1e-4 * whole
    for fine, coarse in pairwise(losses):
        assert 16 < coarse / fine < 256, "eight times the step, about 64 times the loss"


@pytest.mark.parametrize(("kind", "g"), CASES, ids=IDS)
def test_all_leaves_are_integers_in_their_own_shapes(kind, g):
    precision, form = precision_of(kind, g)
    rounded = precision.form(form, 2.0**-4)
    assert type(rounded) is type(form)
    for before, after in zip(leaves(form), leaves(rounded), strict=True):
        assert isinstance(after, Quantized)
        assert after.integers.shape == before.values.shape
    assert dense(rounded).shape == precision.site.weight.shape


@pytest.mark.parametrize(("kind", "g"), CASES, ids=IDS)
def test_fitting_the_last_leaf_beats_rounding_it_as_it_was(kind, g):
    precision, form = precision_of(kind, g)
    metric = precision.metric

    def kept(seen, start):  # the moments of what is passed on, and the factor that was there
        return metric.inputs.between(seen, seen), start

    def loss(step, refit):
        return whole_loss(precision, round_form(form, precision.weight, g, metric, precision.leaf(step), refit))

    steps = (0.25, 0.5, 1.0, 2.0)
    assert sum(loss(step, None) for step in steps) < sum(loss(step, kept) for step in steps)


@pytest.mark.parametrize(("kind", "g"), CASES, ids=IDS)
def test_widths_lose_less_the_wider_they_are(kind, g):
    precision, form = precision_of(kind, g)
    losses = [whole_loss(precision, precision.form(form, None, bits)) for bits in (4, 8)]
    assert losses[1] < 0.05 * losses[0]


def test_inputs_known_by_a_sketch_alone_are_refused():
    precision, form = precision_of("vertical", CONV)
    sketch = replace(precision.metric, inputs=Moment(rows=torch.randn(1, 8, 54)))
    with pytest.raises(Refusal, match="no whole second moment"):
        replace(precision, metric=sketch).form(form, 0.1)


@pytest.mark.parametrize("method", ["spatial", "tucker2", "cp"])
@pytest.mark.parametrize("target", ["archive", "onnx-w8"])
def test_files_hold_the_integers_and_answer_as_the_network(method, target, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(24 * 36, 5)).eval()  # fmt: skip
    form = form_of({"spatial": "vertical"}.get(method, method), CONV.with_(in_channels=16, out_channels=24))
    with torch.no_grad():
        model[2].weight.copy_(torch.from_numpy(dense(form)) / 20)
    x = np.random.default_rng(0).normal(size=(60, 3, 10, 10)).astype("f4")
    result = smidgen.compress(model, x, methods={"conv": [method]}, target=target, settings={method: {"points": 12}},
                              budget=smidgen.Budget(tradeoff=0.3), threads=1)  # fmt: skip
    chosen = result.stored["2"].form
    assert isinstance(chosen, {"spatial": Spatial, "tucker2": Tucker2, "cp": CP}[method])
    assert all(isinstance(leaf, Quantized) for leaf in leaves(chosen))
    written = result.files[target]
    if target == "archive":
        written = tmp_path / "back.onnx"
        onnx.save(smidgen.unpack(result.files["archive"]), str(written))
    with open_onnx(written, 1) as runner, torch.no_grad():
        (answer,) = runner.run(x[:8])
        assert np.allclose(answer, result.model(torch.from_numpy(x[:8])).numpy(), atol=1e-3)
