"""The same again: one seed gives the same bytes, a plan gives the same file, and what differs is noted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import smidgen
from smidgen import Budget
from smidgen.data import split_roles
from smidgen.errors import UserError
from smidgen.pipeline import apply, compress
from smidgen.pipeline.task import data_hash
from tests.pipeline.pictures import pictures


def edited(text, *path, to):
    entries = json.loads(text)
    place = entries
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return json.dumps(entries)


def test_the_same_seed_gives_the_same_bytes(monkeypatch):
    from smidgen.export.prepare import prepare

    monkeypatch.setattr("smidgen.pipeline.task.prepare", prepare)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 4))
    x = np.random.default_rng(0).normal(size=(60, 16)).astype("f4")
    first, second = (compress(net, x, budget=Budget(tradeoff=0.4), seed=3) for _ in range(2))
    assert next(iter(first.files.values())).read_bytes() == next(iter(second.files.values())).read_bytes()
    assert first.plan == second.plan


def test_the_plan_replayed_gives_the_same_file(default, trained, tmp_path):
    out = default.save(tmp_path)
    again = apply(trained, (out / "plan.json").read_text(), pictures())
    assert next(iter(again.files.values())).read_bytes() == (out / "model.onnx").read_bytes()
    assert again.plan == default.plan
    assert again.record["layers"] == default.record["layers"]
    assert (again.record["seed"], again.record["budget"]["note"]) == (1, "")


def test_a_plan_tells_what_it_was_made_with(default, trained):
    plan = json.loads(default.plan.to_json())
    assert (plan["version"], plan["target"], plan["seed"], plan["refit"]) == (3, "onnx", 1, True)
    assert len(plan["data"]) == 16
    bare = compress(trained, example=torch.zeros(1, 2, 8, 8), budget=Budget(tradeoff=0.8), refit=False, seed=2)
    assert (bare.plan.seed, bare.plan.refit, bare.plan.data) == (2, False, None)


def test_what_differs_from_the_run_that_made_a_plan_is_noted(default, trained):
    plan, x = default.plan.to_json(), torch.zeros(1, 2, 8, 8)

    def note(*args, **kwargs):
        result = apply(trained, plan, *args, **kwargs)
        json.loads(result.plan.to_json())
        return result.record["budget"]["note"], result.plan

    told, made = note(pictures(seed=4))
    assert told == "the calibration data differ from those the plan was made with"
    assert made.data not in (None, default.plan.data)
    assert note(example=x)[0] == "the plan was made with data, none are given"
    told, made = note(pictures(), seed=5, refit=False)
    assert (made.seed, made.refit) == (5, False)
    assert told == "the plan was made with seed 1, which also divides the data; the plan was made with refit"
    plan = edited(plan, "data", to=None)
    assert note(pictures())[0] == "the plan was made without data"


def test_the_same_pixels_read_otherwise_are_other_data(tmp_path):
    np.savez(tmp_path / "set.npz", x=np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8))
    opened = [smidgen.open_data(tmp_path / "set.npz", preprocess=smidgen.Preprocess(scale=s)) for s in ("1/255", "1")]
    first, second = (data_hash(split_roles(data)) for data in opened)
    assert first != second
    assert first == data_hash(split_roles(opened[0]))


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("choices", 2, "method"), "cp"),
        (("choices", 2, "rank"), 10**6),
        (("choices", 2, "loss"), "much"),
        (("choices", 2, "nbytes"), None),
        (("settings", "svd"), 3),
        (("settings", "svd", "factors"), "two"),
        (("settings", "svd", "damp"), -1.0),
        (("price",), "cheap"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else repr(value),
)
def test_a_plan_edited_into_nonsense_is_refused_in_one_line(default, trained, path, to):
    with pytest.raises(UserError) as caught:
        apply(trained, edited(default.plan.to_json(), *path, to=to), pictures(), seed=1)
    assert "\n" not in str(caught.value)
