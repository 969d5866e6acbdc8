"""Plans through JSON: whole, or refused with a reason in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf

import numpy as np
import pytest

from smidgen.errors import PlanError
from smidgen.forms import Geometry
from smidgen.planning.plan import Choice, Plan, fingerprint, plan_from_json
from smidgen.site import Site

SITES = [
    Site("a", Geometry("linear", 4, 3), np.ones((3, 4), "f4")),
    Site("b.0", Geometry("conv", 2, 2, (3,), (1,), (1,), (1,)), np.ones((2, 2, 3), "f4")),
]
PLAN = Plan(
    (Choice("a", "svd", 2, 0.25, 100), Choice("b.0", None, None, 0.0, 50, "too small")),
    1e-7, fingerprint(SITES), {"svd": {"factors": 2, "damp": 0.01}},
)  # fmt: skip


@pytest.mark.parametrize("price", [0.0, 1e-12, inf])
def test_a_plan_survives_json(price):
    plan = Plan(PLAN.choices, price, PLAN.network, PLAN.settings, 3, False, "0123456789abcdef")
    text = plan.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert plan_from_json(text) == plan
    plan.check(SITES)


def test_widths_and_the_target_survive_json():
    choices = (Choice("a", "svd", 2, 0.25, 100, bits=4), Choice("b.0", None, None, 0.0, 50, bits=8))
    plan = replace(PLAN, choices=choices, target="onnx-w4")
    again = plan_from_json(plan.to_json())
    assert again == plan
    assert [c.rounded for c in again.choices] == [True, True]
    other = replace(plan, choices=(replace(choices[0], bits=8), choices[1]))
    assert plan.key != other.key, "plans that differ in a width alone are two"


def test_sums():
    assert (PLAN.loss, PLAN.nbytes, PLAN.key) == (0.25, 150, (("svd", 2, None, None), (None, None, None, None)))


def edited(**changes):
    entries = json.loads(PLAN.to_json())
    for path, value in changes.items():
        place, keys = entries, path.split("__")
        for key in keys[:-1]:
            place = place[int(key) if key.isdigit() else key]
        if value is ...:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value
    return json.dumps(entries)


BROKEN = {
    "another version": edited(version=1),
    "the version without widths": edited(version=2),
    "no target": edited(target=...),
    "an unknown target": edited(target="onnx-w2"),
    "target no text": edited(target=["onnx"]),
    "bits of no width": edited(choices__0__bits=9),
    "bits true": edited(choices__0__bits=True),
    "bits fractional": edited(choices__0__bits=8.0),
    "bits beside a step": edited(choices__0__bits=8, choices__0__step=0.5),
    "no version": edited(version=...),
    "unknown field": edited(extra=1),
    "unknown field of a choice": edited(choices__0__extra=1),
    "no choices": edited(choices=...),
    "no settings": edited(settings=...),
    "settings no object": edited(settings=[]),
    "settings of no object": edited(settings={"svd": 3}),
    "no seed": edited(seed=...),
    "seed no number": edited(seed="3"),
    "seed true": edited(seed=True),
    "no refit": edited(refit=...),
    "refit no truth": edited(refit=1),
    "no data": edited(data=...),
    "data no text": edited(data=[1]),
    "network no text": edited(network=7),
    "price no number": edited(price="cheap"),
    "price true": edited(price=True),
    "rank negative": edited(choices__0__rank=-1),
    "rank zero": edited(choices__0__rank=0),
    "rank fractional": edited(choices__0__rank=1.5),
    "rank true": edited(choices__0__rank=True),
    "rank without method": edited(choices__0__method=None),
    "method without rank": edited(choices__0__rank=None),
    "method no text": edited(choices__0__method=3),
    "site no text": edited(choices__0__site=None),
    "loss no number": edited(choices__0__loss="much"),
    "loss not finite": edited(choices__0__loss=float("nan")),
    "nbytes no number": edited(choices__0__nbytes=None),
    "no loss": edited(choices__0__loss=...),
    "not json": "{",
    "a list": "[]",
    "a number": "7",
    "nothing": "",
    "other layers": edited(choices__0__site="z"),
    "other network": edited(network="0" * 16),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_what_is_no_plan_of_this_network_is_refused(text):
    with pytest.raises(PlanError, match=r"^plan: ") as caught:
        plan_from_json(text).check(SITES)
    assert "\n" not in str(caught.value)


def test_a_plan_is_for_one_network():
    other = [SITES[0], Site("b.0", SITES[1].geometry, np.ones((2, 2, 5), "f4"))]
    with pytest.raises(PlanError, match="another network"):
        plan_from_json(PLAN.to_json()).check(other)
    assert fingerprint(SITES) != fingerprint(SITES[::-1])
    changed = [Site(s.name, s.geometry, 2 * s.weight) for s in SITES]
    assert fingerprint(changed) == fingerprint(SITES), "trained further, it is the same network"
