"""A replay answers as the network does, from wherever it begins, and begins later as layers become final."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import fx, nn

from smidgen.model.replay import Enough, Replay

BATCHES = [np.random.default_rng(i).normal(size=(n, 6)).astype("f4") for i, n in enumerate((5, 3))]


class Branches(nn.Module):
    """Two paths that meet again, so that more than one value is alive in between."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.relu, self.last = nn.ReLU(inplace), nn.Linear(6, 2)

    def forward(self, x):
        x = self.first(x)
        skip = x * 1  # a node of its own
        x = self.left(self.relu(x))
        return self.last(self.right(x) + skip)


NAMES = ["first", "left", "right", "last"]


def direct(model):
    with torch.no_grad():
        return [model(torch.from_numpy(batch)) for batch in BATCHES]


def same(got, want):
    return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("most_nbytes", [0, 400, 1 << 20])
def test_it_answers_as_the_network_after_every_change(traced, inplace, most_nbytes):
    model = Branches(inplace).eval()
    model = fx.symbolic_trace(model) if traced else model
    replay = Replay(model, BATCHES, most_nbytes=most_nbytes)
    for i, name in enumerate(NAMES):
        assert same(replay.run(NAMES[i:]), direct(model))
        with torch.no_grad():
            model.get_submodule(name).weight.mul_(1.5)
        assert same(replay.run(NAMES[i:]), direct(model))


def test_it_begins_later_each_time_where_there_is_room():
    replay = Replay(fx.symbolic_trace(Branches()).eval(), BATCHES)
    begins = []
    for i in range(len(NAMES)):
        replay.run(NAMES[i:])
        begins.append(replay.begins)
    assert begins == sorted(set(begins))


def test_without_room_it_begins_at_the_start():
    replay = Replay(fx.symbolic_trace(Branches()).eval(), BATCHES, most_nbytes=0)
    replay.run(["last"])
    assert replay.begins == 0


def test_going_back_starts_anew():
    model = fx.symbolic_trace(Branches()).eval()
    replay = Replay(model, BATCHES)
    replay.run(["last"])
    model.first = nn.Linear(6, 6)
    assert same(replay.run(["first"]), direct(model))


def test_an_unknown_layer_is_no_reason_to_skip_anything():
    replay = Replay(fx.symbolic_trace(Branches()).eval(), BATCHES)
    replay.run(["nowhere", "last"])
    assert replay.begins == 0


def test_enough_ends_a_pass_and_runs_nothing_behind_it():
    model, seen = fx.symbolic_trace(Branches()).eval(), []

    def stop(*_):
        raise Enough

    handles = [model.left.register_forward_pre_hook(stop), model.last.register_forward_hook(lambda *_: seen.append(1))]
    assert Replay(model, BATCHES).run(["left", "last"]) == [None, None]
    assert not seen
    for handle in handles:
        handle.remove()
