"""Channels weighed against every other method: taken where the written file is better by it, replayed to the byte."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from smidgen import Budget
from smidgen.errors import PlanError, UserError
from smidgen.forms import Geometry
from smidgen.pipeline import apply, compress
from smidgen.pipeline.channels import STEEPEST, _finite, split_channels
from smidgen.planning.candidates import Label, Options
from smidgen.site import Site
from tests.pipeline.pictures import pictures


def doubled():
    """A network of which every other channel is a copy: half the channels are worth nothing."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 4),
    )  # fmt: skip
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight[16:], layer.bias[16:] = 1.5 * layer.weight[:16], 1.5 * layer.bias[:16]
    return net


@pytest.mark.parametrize("target", ["onnx", "archive"])
def test_channels_that_are_worth_nothing_go_first(tmp_path, target):
    net, x = doubled(), pictures(300)[0]
    size = 16_000 if target == "onnx" else 4_000
    budget = Budget(size=size)
    settings = {"channels": {"multiple": 4}}
    result = compress(net, x, budget=budget, target=target, methods=["svd", "channels"], settings=settings)
    told = result.record["channels"]
    assert told["taken"], told
    assert result.met
    assert result.files[target].stat().st_size <= size
    assert told["cut"]["loss"] < told["whole"]["loss"]
    assert all(row["after"] < row["before"] for row in told["layers"])
    assert {row["name"] for row in told["layers"]} <= {"0", "2"}
    assert "channels" in result.table()

    out = result.save(tmp_path / "out")
    assert not (out / "model.safetensors").exists(), "the user's class cannot take these weights"
    again = apply(net, (out / "plan.json").read_text(), x)
    assert again.files[target].read_bytes() == result.files[target].read_bytes()
    session = onnxruntime.InferenceSession(out / "model.onnx")
    (given,) = session.run(None, {session.get_inputs()[0].name: x[:20]})
    with torch.no_grad():
        np.testing.assert_allclose(given, result.model(torch.from_numpy(x[:20])).numpy(), atol=1e-3)


def test_channels_go_for_a_share_of_the_multiplications():
    net, x = doubled(), pictures(300)[0]
    result = compress(
        net, x, budget=Budget(macs="30%"), methods=["svd", "channels"], settings={"channels": {"multiple": 4}}
    )
    assert result.met, result.record["budget"]
    assert result.record["channels"]["taken"], result.record["channels"]
    assert result.record["files"]["onnx"]["macs"] <= 0.3 * result.record["original"]["macs"]


@pytest.mark.parametrize(("amounts", "middle"), [((4000, 1000), 0.002), ((2.0, None), 2.5), ((None, None), 1.0)])
def test_where_a_plan_has_no_price_it_is_reckoned_in_what_is_asked_for(amounts, middle):
    site = Site("a", Geometry("linear", 2, 2), np.ones((2, 2), "f4"))
    option = Options(site, {}, np.zeros(1), np.array([16]), (Label(None, None),), worth=5.0)
    counted = [None if each is None else np.array([float(each)]) for each in amounts]
    options = [option, option]
    assert _finite(np.inf, options, counted) == pytest.approx(middle)
    assert _finite(0.0, options, counted) == pytest.approx(middle / STEEPEST)
    assert _finite(3.0, options, counted) == 3.0


def test_channels_that_are_all_needed_stay(trained):
    result = compress(trained, pictures(200), budget=Budget(tradeoff=0.0), methods=["svd", "channels"])
    told = result.record["channels"]
    assert (told["taken"], told["why"]) == (False, "at the plan's price no channel is worth removing")
    assert "none removed, at the plan's price" in result.table()
    assert result.plan.cut is None


def test_a_plan_with_a_cut_that_does_not_fit_is_refused():
    net, x = doubled(), pictures(100)[0]
    settings = {"channels": {"multiple": 4}}
    plan = compress(net, x, budget=Budget(size=16_000), methods=["svd", "channels"], settings=settings).plan
    assert plan.cut is not None
    entries = json.loads(plan.to_json())
    name = next(iter(entries["cut"]["removed"]))
    for places, words in (([10_000], "cannot go"), (list(range(32)), "all channels")):
        changed = {**entries, "cut": {**entries["cut"], "removed": {name: places}}}
        with pytest.raises(PlanError, match=words):
            apply(net, json.dumps(changed), x)
    for broken in ({"network": 3, "removed": {}}, {"network": "a", "removed": {"0": [-1]}}, {"removed": {}}, "no"):
        with pytest.raises(PlanError, match="not a plan file"):
            apply(net, json.dumps({**entries, "cut": broken}), x)
    with pytest.raises(PlanError, match="another network"):
        apply(nn.Sequential(nn.Linear(4, 3)), plan.to_json(), torch.randn(40, 4).numpy())


def test_what_is_wrong_is_told(trained):
    with pytest.raises(PlanError, match="give --data"):
        compress(trained, methods=["auto", "channels"], example=torch.zeros(1, 2, 8, 8))
    with pytest.raises(PlanError, match="smidgen prune"):
        compress(trained, pictures(), methods="channels", budget=Budget(ratio=2))
    with pytest.raises(UserError, match=r"no layer 'hiden'.*hidden"):
        compress(trained, pictures(), methods=["svd", "channels"], settings={"channels": {"protect": ["hiden"]}})
    for settings in ({"multiple": 0}, {"ratio": 3}):
        with pytest.raises(PlanError, match="its settings are"):
            split_channels("channels", {"channels": settings})
    with pytest.raises(PlanError, match="do not go with obs"):
        split_channels(["obs", "channels"], {})
    with pytest.raises(PlanError, match="auto,channels"):
        split_channels({"conv": ["channels"], "channels": []}, {})
