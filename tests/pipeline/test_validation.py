"""A validation set of the user's own: every function that is scored on a test set takes one, and chooses by it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import smidgen
from smidgen import Training
from smidgen.errors import DataError
from tests.pipeline.pictures import Net, pictures

BRIEF = Training(epochs=1, batch=16)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    ).eval()


RUNS: dict[str, Callable[..., Any]] = {
    "compress": lambda data, **held: smidgen.compress(network(), data, **held),
    "compress, trained": lambda data, **held: smidgen.compress(
        network(), data, target="archive", budget=smidgen.Budget(ratio=4), train=BRIEF, **held
    ),
    "compress, extreme": lambda data, **held: smidgen.compress(
        network(), data, recipe="extreme", budget=smidgen.Budget(size="4 kB"), train=BRIEF, **held
    ),
    "sweep": lambda data, **held: smidgen.sweep(network(), data, points=2, **held),
    "prune": lambda data, **held: smidgen.prune(network(), data, params="50%", **held),
    "distil": lambda data, **held: smidgen.distil(network(), network(), data, training=BRIEF, **held),
    "transfer": lambda data, **held: smidgen.transfer(network(), data, training=BRIEF, **held),
}


def test_whatever_takes_a_test_set_takes_one():
    functions = [getattr(smidgen, name) for name in smidgen.__all__]
    scored = [inspect.signature(each).parameters for each in functions if inspect.isfunction(each)]
    scored = [each for each in scored if "test" in each]
    assert len(scored) == 8
    assert all("validation" in each for each in scored)


@pytest.mark.parametrize("name", RUNS)
def test_nothing_of_the_data_is_held_back_to_choose(name):
    data, judges = pictures(100), pictures(24, seed=9)
    roles = RUNS[name](data, validation=judges, test=pictures(20, seed=3), threads=1).record["data"]
    learned = roles.get("training", roles.get("calibration"))
    assert [each["count"] for each in (learned, roles["selection"], roles["test"])] == [100, 24, 20]
    assert roles["selection"]["given"]


def test_labels_are_needed_only_of_what_chooses():
    (x, _), (judges, _) = pictures(100), pictures(40, seed=9)
    torch.manual_seed(0)
    net = Net().eval()
    nn.init.zeros_(net.head.bias)
    wrong = (net(torch.from_numpy(judges)).argmax(1).numpy() + 1) % 4  # no change can lose a right answer
    given: dict[str, Any] = {"budget": smidgen.Budget(ratio=150), "target": "archive", "threads": 1}
    by_labels, by_answers = (
        smidgen.compress(net, x, validation=held, **given).record["trials"][-1]["points"]
        for held in ((judges, wrong), judges)
    )
    assert by_labels < 0 < by_answers, "the smaller network answers otherwise now and then"


def test_a_training_goes_on_only_where_the_same_inputs_choose(tmp_path):
    given: dict[str, Any] = {"training": Training(epochs=2, batch=16), "threads": 1, "checkpoint": tmp_path / "ckpt"}

    def killed(stage: str, done: int, total: int) -> None:
        if done > total // 2 and "train" in stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        smidgen.distil(network(), network(), pictures(100), validation=pictures(24, seed=9), progress=killed, **given)
    with pytest.raises(DataError, match="selection"):
        smidgen.distil(network(), network(), pictures(100), validation=pictures(24, seed=8), **given)
    smidgen.distil(network(), network(), pictures(100), validation=pictures(24, seed=9), **given)


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize("name", ["compress", "distil", "transfer"])
def test_one_of_another_shape_is_refused(name, part):
    other = (np.zeros((5, 3, 8, 8), np.float32), np.arange(5) % 4)
    with pytest.raises(DataError, match=r"gives inputs of shape \(3, 8, 8\) and the network takes \(2, 8, 8\)"):
        RUNS[name](pictures(100), **{part: other}, threads=1)
