"""Settings of a training: what they mean at each step, and what cannot be meant."""

from __future__ import annotations

import json

import pytest

from smidgen.errors import UserError
from smidgen.recover.training import Training


@pytest.mark.parametrize("schedule", ["cosine", "constant", "rewind"])
def test_the_rate_rises_first_and_never_again(schedule):
    plan = Training(schedule=schedule, warmup=0.1)
    rates = [plan.rate(step, 100) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert 0 < rates[0] < 0.2
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx({"cosine": 0.0, "constant": 1.0, "rewind": 0.01}[schedule], abs=1e-3)


def test_settings_survive_json():
    training = Training(epochs=3, augment=("shift2", "flip"), time_limit=60.0, patience=2)
    assert Training.from_plain(json.loads(json.dumps(training.plain()))) == training
    with pytest.raises(UserError, match="no setting 'epoch'"):
        Training.from_plain({"epoch": 3})


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"batch": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"weight_decay": -1.0}, {"momentum": 1.0},
        {"warmup": 1.0}, {"clip": 0.0}, {"patience": 0}, {"time_limit": 0.0}, {"seed": -1}, {"augment": ("shift",)},
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(wrong):
    told = "augment: 'shift'" if "augment" in wrong else f"training: {next(iter(wrong))}="
    with pytest.raises(UserError, match=told):
        Training(**wrong)
