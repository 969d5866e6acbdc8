"""The training loop after a kill: it goes on to the bit, and a checkpoint that does not fit is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from smidgen.errors import DataError, LoadError, SmidgenError
from smidgen.recover import loop
from smidgen.recover.loop import Fitted, Training, fit
from smidgen.recover.schedule import Pruner, Schedule
from tests.recover.fitting import cross_entropy, network, points, same


class Killed(BaseException):
    """As Ctrl-C or the system would."""


def run(place: Path | None, kill: int | None = None, **settings: object) -> tuple[nn.Module, Pruner, Fitted | None]:
    """Six epochs, killed in the middle of a step where asked."""
    net, inputs = network(), points()
    pruner, calls = Pruner(net, Schedule(0.6, every=2, times=6)), itertools.count()

    def loss(x: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        if next(calls) == kill:
            raise Killed
        return nn.functional.cross_entropy(net(x), labels)

    def held() -> float:
        with torch.no_grad():
            answer = net(torch.from_numpy(np.asarray(inputs)))
        return float(nn.functional.cross_entropy(answer, torch.from_numpy(inputs.labels.copy())))

    training = Training(**{"epochs": 6, "batch": 16, "lr": 0.01, "weight_decay": 0.1, **settings})
    try:
        done = fit(net, inputs, loss, training, held=held, hooks=[pruner], checkpoint=place)
    except Killed:
        done = None
    return net, pruner, done


@pytest.mark.parametrize("average", [None, 0.9], ids=["last weights", "average"])
@pytest.mark.parametrize("every", [60.0, 0.0], ids=["each epoch", "each step"])
@pytest.mark.parametrize("kill", [3, 6 * 3 + 2])
def test_it_goes_on_to_the_bit_after_a_kill(tmp_path, monkeypatch, kill, every, average):
    monkeypatch.setattr(loop, "SAVE_SECONDS", every)
    whole, masks, done = run(None, average=average)
    place = tmp_path / "run.ckpt"
    assert run(place, kill, average=average)[2] is None
    assert place.exists() == (kill > 6 or every == 0)
    resumed, again, told = run(place, average=average)
    assert same(whole, resumed)
    assert all(torch.equal(a, b) for a, b in zip(masks.masks, again.masks, strict=True))
    assert done is not None
    assert told is not None
    assert (told.history, told.best, told.steps) == (done.history, done.best, done.steps)
    assert [path.name for path in tmp_path.iterdir()] == ["run.ckpt"], "no half-written file is left"
    finished, _, told = run(place, kill=0, average=average)  # a run that is done takes no step again
    assert same(whole, finished)
    assert told is not None


def test_another_seed_is_another_run():
    one, other, third = (run(None, seed=seed)[0] for seed in (0, 0, 1))
    assert same(one, other)
    assert not same(one, third)


def test_a_time_limit_is_kept_and_a_longer_one_goes_on(tmp_path, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)) / 10)
    place = tmp_path / "run.ckpt"
    _, _, first = run(place, time_limit=3.0)
    assert first is not None
    assert first.stopped == "time"
    assert 0 < first.steps < 36
    assert first.best is not None, "an epoch that was cut short is scored too"
    _, _, again = run(place, time_limit=3.0)
    assert again is not None
    assert again.steps == first.steps
    _, _, longer = run(place)
    assert longer is not None
    assert (longer.stopped, longer.steps) == ("done", 36)


def test_a_checkpoint_of_another_run_is_refused_and_stays(tmp_path):
    place = tmp_path / "run.ckpt"
    run(place)
    written = place.read_bytes()
    wider = nn.Sequential(nn.Linear(6, 17), nn.Linear(17, 2))
    cases = [
        (wider, points(), Training(epochs=6, batch=16, lr=0.01, weight_decay=0.1), (), DataError, "another network"),
        (network(), points(seed=1), Training(epochs=6, batch=16), (), DataError, "other data"),
        (network(), points(), Training(epochs=7, batch=16), (), DataError, "epochs=6 and now it is 7"),
    ]
    for net, inputs, training, hooks, kind, told in cases:
        with pytest.raises(kind, match=told) as caught:
            fit(net, inputs, cross_entropy(net), training, hooks=hooks, checkpoint=place)
        assert "\n" not in str(caught.value)
    net, settings = network(), Training(epochs=6, batch=16, lr=0.01, weight_decay=0.1)
    with pytest.raises(DataError, match="hooks="):
        fit(net, points(), cross_entropy(net), settings, checkpoint=place)
    assert place.read_bytes() == written


def test_a_checkpoint_from_before_a_setting_was_known_goes_on(tmp_path):
    place, _ = tmp_path / "run.ckpt", run(tmp_path / "whole.ckpt")
    assert run(place, kill=20)[2] is None
    found = torch.load(place, weights_only=True)
    known = {name: value for name, value in json.loads(found["made"]["settings"]).items() if name != "average"}
    torch.save({**found, "made": {**found["made"], "settings": json.dumps(known)}}, place)
    assert same(run(place)[0], run(tmp_path / "whole.ckpt")[0])
    run(tmp_path / "other.ckpt", average=0.9)
    with pytest.raises(DataError, match=r"average=0\.9 and now it is None"):
        run(tmp_path / "other.ckpt")


def test_a_checkpoint_of_another_version_is_refused_and_stays(tmp_path):
    place = tmp_path / "run.ckpt"
    run(place)
    torch.save({**torch.load(place, weights_only=True), "version": 99}, place)
    written = place.read_bytes()
    with pytest.raises(DataError, match="of version 99 and this is 1"):
        run(place)
    assert place.read_bytes() == written


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "other"])
def test_a_damaged_checkpoint_is_refused_and_stays(tmp_path, damage):
    place = tmp_path / "run.ckpt"
    run(place)
    payload = place.read_bytes()
    if damage == "other":
        torch.save({"weights": torch.zeros(3)}, place)
    else:
        place.write_bytes({
            "cut": payload[: len(payload) // 2], "empty": b"", "text": b"smidgen" * 20,
            "flipped": payload[:40] + bytes(255 - byte for byte in payload[40:400]) + payload[400:],
        }[damage])  # fmt: skip
    written = place.read_bytes()
    with pytest.raises(LoadError, match=r"checkpoint: .*(start over|name another)") as caught:
        run(place)
    assert "\n" not in str(caught.value)
    assert place.read_bytes() == written


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "boom",))

    place = tmp_path / "run.ckpt"
    torch.save({"kind": Bomb()}, place)
    with pytest.raises(LoadError, match="cannot be read"):
        run(place)
    assert not (tmp_path / "boom").exists()


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SmidgenError, match="cannot write"):
        run(tmp_path / "file" / "run.ckpt")
