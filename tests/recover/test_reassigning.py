"""Shared weights that may take other values: where gradients go, what moves, and what is written."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from smidgen.forms import Codebook, dense
from smidgen.recover.centroids import Reassigning
from smidgen.recover.trainable import hold, leaf_of

BOOK = Codebook(np.array([[0, 1, 2, 2], [1, 0, 1, 2]], np.uint8), np.array([-0.5, 0.0, 0.75], np.float32))


def layer() -> nn.Linear:
    made = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(dense(BOOK)))
    hold(made, BOOK, reassign=True)
    return made


def held(made: nn.Linear):
    return made.parametrizations["weight"][0]


def test_the_gradient_goes_to_the_values_summed_and_to_each_weight():
    made, x = layer(), torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    made(x).sum().backward()
    assert made.parametrizations["weight"].original.grad.tolist() == [1 + 2, 0, 4 + 8 + 8]
    assert held(made).shadow.grad.tolist() == [1, 2, 4, 8] * 2


def test_only_what_is_nearer_to_another_value_moves_and_what_was_pruned_never():
    made = layer()
    with torch.no_grad():
        held(made).shadow.add_(torch.tensor([0.24, 9.0, -0.38, -0.37, 9.0, 0.26, 9.0, -2.0]))
    hook = Reassigning(made, every=3)
    assert [hook.step() for _ in range(7)] == [0, 0, 0, 3, 0, 0, 0]
    assert held(made).indices.tolist() == [0, 1, 1, 2, 1, 1, 1, 0]


def test_a_weight_that_moved_may_come_back():
    made = layer()
    shadow = held(made).shadow.data
    for there, index in ((-0.4, 0), (0.8, 2)):
        shadow[2] = there
        held(made).reassign(made.parametrizations["weight"].original)
        assert int(held(made).indices[2]) == index


def test_what_is_computed_is_what_is_written():
    made = layer()
    optimiser, hook = torch.optim.Adam(made.parameters(), 0.1), Reassigning(made, every=2)
    x, aim = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([[-1.0, 0.5, 0.2, 0.9]])
    moved = 0
    for _ in range(20):
        optimiser.zero_grad()
        (made(x) - (x @ aim.T)).square().mean().backward()
        optimiser.step()
        moved += hook.step()
    assert moved > 0
    form = leaf_of(made, BOOK)
    assert isinstance(form, Codebook)
    assert np.array_equal(dense(form), made.weight.detach().numpy())
    assert not dense(form)[dense(BOOK) == 0].any()


def test_places_are_part_of_a_checkpoint():
    made = layer()
    hook = Reassigning(made, every=1)
    state, told = copy.deepcopy(made.state_dict()), hook.state_dict()
    held(made).shadow.data[0] = 0.7
    hook.step()
    assert hook.step() == 1
    made.load_state_dict(state)
    hook.load_state_dict(told)
    assert held(made).indices.tolist() == BOOK.indices.ravel().tolist()
    assert hook.steps == 0
