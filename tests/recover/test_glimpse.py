"""Where a teacher looks, thresholds that keep a promise, and boxes that mean nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from smidgen.data import Dataset
from smidgen.errors import UserError
from smidgen.model.glimpse import Glimpse, Localizer, Look
from smidgen.recover.glimpse import (
    Answers,
    Fading,
    activation_boxes,
    boxes_of,
    choose_sureness,
    collapsed,
)


class Brightest(nn.Module):
    """Two classes by which of two channels is brightest anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(2, 2, 1)
        with torch.no_grad():
            self.same.weight.copy_(torch.eye(2)[..., None, None])
            nn.init.zeros_(self.same.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.same(x).amax((2, 3))


def test_a_teacher_looks_where_it_found_its_answer():
    x = np.zeros((3, 2, 16, 16), np.float32)
    spots = [(2, 3), (12, 8), (7, 14)]
    for image, (row, column) in zip(x, spots, strict=True):
        image[row % 2, row, column] = 5.0
    boxes = activation_boxes(Brightest(), Dataset.from_array(x))
    for box, (row, column) in zip(boxes.tolist(), spots, strict=True):
        assert box[:2] == pytest.approx([(2 * column + 1) / 16 - 1, (2 * row + 1) / 16 - 1], abs=1e-5)
        assert box[2] == pytest.approx(2 / 16)


class Pooled(nn.Module):
    """The same, its answer found on a map of 16×16 and again on one of 4×4."""

    def __init__(self) -> None:
        super().__init__()
        self.same = Brightest().same
        self.last = Brightest().same

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(nn.functional.max_pool2d(self.same(x), 4)).amax((2, 3))


def test_the_map_is_as_fine_as_asked():
    x = np.zeros((1, 2, 16, 16), np.float32)
    x[0, 0, 5, 9] = 5.0
    coarse, fine = (activation_boxes(Pooled(), Dataset.from_array(x), cells)[0].tolist() for cells in (4, 5))
    assert coarse == pytest.approx([2.5 / 2 - 1, 1.5 / 2 - 1, 2 / 4], abs=1e-5)
    assert fine == pytest.approx([9.5 / 8 - 1, 5.5 / 8 - 1, 2 / 16], abs=1e-5)
    assert activation_boxes(Pooled(), Dataset.from_array(x), 99)[0].tolist() == fine, "the finest there is"


def test_what_little_there_is_elsewhere_does_not_widen_a_box():
    maps = torch.zeros(1, 32, 32)
    maps[0, 4:7, 4:7] = 1.0
    alone = boxes_of(maps)
    maps[0, 30, 30] = 0.5
    assert torch.allclose(boxes_of(maps), alone, atol=1e-6)


def test_a_network_without_maps_tells_no_place():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(32, 2))
    with pytest.raises(UserError, match="no convolution whose map tells a place; give boxes"):
        activation_boxes(flat, Dataset.from_array(np.zeros((2, 2, 4, 4), np.float32)))


def test_a_map_that_holds_nothing_gives_the_middle():
    assert boxes_of(torch.zeros(2, 5, 5)).tolist() == [[0.0, 0.0, 0.5]] * 2


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.0, 30.0))
def test_thresholds_keep_the_promise_and_expect_what_happens(seed, points):
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (40,), generator=random)

    def scores(skill: float) -> torch.Tensor:
        return torch.randn(40, 3, generator=random) + skill * nn.functional.one_hot(labels, 3)

    answers = Answers(scores(1.0), scores(2.0), scores(4.0), labels)
    costs = (1.0, 5.0, 100.0)
    found = choose_sureness(answers, costs, points)
    sure = [each.softmax(1).amax(1) for each in (answers.glance, answers.crop)]
    stage = torch.where(sure[0] >= found.sure[0], 0, torch.where(sure[1] >= found.sure[1], 1, 2))
    taken = torch.stack([answers.glance, answers.crop, answers.full])[stage, torch.arange(40)]
    lost = 100 * float((answers.full.argmax(1) == labels).double().mean() - (taken.argmax(1) == labels).double().mean())
    assert lost == pytest.approx(found.lost, abs=1e-6)
    assert lost <= points + 1e-6
    expected = [1.0, 6.0, 106.0]
    assert found.macs == pytest.approx(sum(expected[int(each)] for each in stage) / 40)


def test_without_a_fallback_what_loses_least_is_taken():
    right, wrong = torch.eye(2) * 3, torch.eye(2).flip(0) * 3
    answers = Answers(wrong, wrong, right, torch.tensor([0, 1]))
    assert choose_sureness(answers, (1.0, 5.0, 9.0), 0.0).shares == (0.0, 0.0, 1.0)
    alone = choose_sureness(answers, (1.0, 5.0, 9.0), 0.0, fallback=False)
    assert alone.shares[2] == 0.0
    assert alone.lost == 100.0


def test_a_collapse_is_told_and_a_choice_is_none():
    moving = torch.tensor([[-0.5, 0.2, 0.3], [0.5, -0.2, 0.3]])
    still = torch.tensor([[0.7, 0.7, 0.3], [0.7, 0.7, 0.3]])
    assert collapsed(moving) is None
    assert "looks at one place, (0.70, 0.70)" in str(collapsed(still, moving))
    assert collapsed(still, still) is None  # all objects stand there
    assert "whole image" in str(collapsed(torch.tensor([[0.0, 0.0, 0.99], [0.1, 0.0, 0.99]])))


def test_boxes_fade_and_go_on_from_a_checkpoint():
    fading = Fading(10)
    left = [fading.left]
    for _ in range(6):
        fading.step()
        left.append(fading.left)
    assert left == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0])
    again = Fading(10)
    again.load_state_dict(fading.state_dict())
    assert again.left == 0.0


def test_a_box_moves_where_the_answer_is():
    """The gradient of the answer reaches the localizer through the crop."""
    torch.manual_seed(0)
    net = Glimpse(Localizer(1, 2, 2), nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), None, (4, 4))
    net.looks(torch.rand(3, 1, 16, 16)).crop.sum().backward()
    slopes = net.localizer.place.weight.grad
    assert slopes is not None
    assert bool((slopes != 0).any())


@settings(deadline=None, max_examples=25)
@given(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5), st.floats(0.05, 1.0))
def test_a_crop_lies_within_the_image(x, y, size):
    image = torch.ones(1, 1, 40, 40)
    crop = Look((8, 8))(image, torch.tensor([[x, y, size]]))
    assert float(crop.min()) > 0.999
