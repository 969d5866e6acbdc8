"""The training loop: it learns, keeps the best, and survives what goes wrong."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from smidgen.data import Dataset
from smidgen.errors import DataError, UserError
from smidgen.recover import loop
from smidgen.recover.distil import label_loss
from smidgen.recover.loop import Fitted, Training, fit
from tests.recover.fitting import cross_entropy, network, points


def squares(count: int = 64) -> tuple[Dataset, torch.Tensor]:
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(1))
    return Dataset.from_array(x.numpy()), x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 3


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_known_optimum_is_reached(optimizer):
    inputs, aims = squares()
    net = nn.Linear(3, 1)
    training = Training(epochs=80, batch=16, lr=0.1 if optimizer == "adamw" else 0.05, optimizer=optimizer)
    done = fit(net, inputs, lambda x, _, aim: (net(x) - aim).square().mean(), training, beside=[aims])
    assert done.stopped == "done"
    assert (done.epochs, done.steps, len(done.history)) == (80, 320, 80)
    assert net.weight.detach().flatten().tolist() == pytest.approx([1, -2, 0.5], abs=1e-3)
    assert net.bias.item() == pytest.approx(3, abs=1e-3)
    assert not net.training
    assert all(part.grad is None for part in net.parameters())


def test_the_best_weights_come_back():
    net, seen = network(), []
    scores = iter([5.0, 3.0, 1.0, 2.0, math.nan, 4.0])

    def held() -> float:
        assert not net.training
        seen.append({name: value.clone() for name, value in net.state_dict().items()})
        return next(scores)

    done = fit(net, points(), cross_entropy(net), Training(epochs=6, batch=32), held=held)
    assert (done.best, done.best_epoch, done.stopped) == (1.0, 3, "done")
    assert all(torch.equal(value, seen[2][name]) for name, value in net.state_dict().items())
    assert [line["held"] for line in done.history][:4] == [5.0, 3.0, 1.0, 2.0]


def test_an_epoch_counts_only_once_it_may():
    scores, asked = iter([1.0, 2.0, 4.0, 3.0]), iter([False, False, True, True])
    net = network()
    done = fit(
        net, points(), cross_entropy(net), Training(epochs=4, batch=32, patience=1),
        held=lambda: next(scores), keep=lambda: next(asked),
    )  # fmt: skip
    assert (done.best, done.best_epoch) == (3.0, 4)


def test_it_stops_when_nothing_gets_better():
    scores, net = iter([3.0, 2.0, 2.5, 2.5, 2.5, 2.5]), network()
    done = fit(net, points(), cross_entropy(net), Training(epochs=6, batch=32, patience=2), held=lambda: next(scores))
    assert (done.stopped, done.epochs, done.best_epoch) == ("patience", 4, 2)


def test_the_last_of_those_that_noise_cannot_tell_apart_is_kept():
    given, weights = [4.0, 2.0, 5.0, 2.5, 3.1, 1.5, 2.4, 2.6, float("nan"), 2.45], []
    net = network()

    def held(scores: list[float]) -> float:
        weights.append([each.detach().clone() for each in net.parameters()])
        return scores.pop(0)

    def train(scores: list[float], **more: object) -> Fitted:
        training = Training(epochs=len(given), batch=32, **more)
        return fit(net, points(), cross_entropy(net), training, held=lambda: held(scores), within=lambda lowest: 1.0)

    done = train(list(given))
    assert (done.best, done.best_epoch) == (2.45, 10)
    done = train([*given[:6], 2.5, 9.0, 9.0, 9.0])
    assert (done.best, done.best_epoch) == (1.5, 6), "as far off as that is not within it"
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), weights[len(given) + 5], strict=True))
    done = train(list(given), patience=3)
    assert (done.stopped, done.epochs, done.best_epoch) == ("patience", 5, 4), "patience is for the lowest"


def test_it_does_not_touch_the_random_numbers_around_it():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    net = network()
    torch.manual_seed(5)
    fit(net, points(), cross_entropy(net), Training(epochs=1, batch=32))
    assert torch.equal(torch.rand(3), expected)


def test_an_exploding_loss_is_taken_back():
    net, inputs = network(), points()
    calls, told = itertools.count(), []

    def loss(x: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        found = nn.functional.cross_entropy(net(x), labels)
        return found * math.nan if next(calls) == 8 else found

    done = fit(net, inputs, loss, Training(epochs=4, batch=16, schedule="constant", warmup=0.0),
               progress=lambda stage, at, total: told.append(stage))  # fmt: skip
    assert (done.stopped, done.epochs, done.steps, done.rollbacks) == ("done", 4, 24, 1)
    assert [line["lr"] for line in done.history] == [1e-3, 5e-4, 5e-4, 5e-4]
    assert any("exploded in epoch 2" in stage for stage in told)
    assert all(bool(value.isfinite().all()) for value in net.state_dict().values())


def test_what_keeps_exploding_ends_with_the_best_so_far():
    net, best = network(), {}
    calls = itertools.count()

    def loss(x: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        found = nn.functional.cross_entropy(net(x), labels)
        return found * 1e9 if next(calls) > 8 else found

    def held() -> float:
        best.update({name: value.clone() for name, value in net.state_dict().items()})
        return 1.0

    done = fit(net, points(), loss, Training(epochs=5, batch=16), held=held)
    assert (done.stopped, done.epochs, done.best_epoch, done.rollbacks) == ("nan", 1, 1, 3)
    assert all(torch.equal(value, best[name]) for name, value in net.state_dict().items())


def test_groups_decay_and_scale_as_they_say():
    inputs, aims = squares(16)
    net = nn.Linear(3, 1)
    before = net.weight.detach().clone()
    beyond = nn.Parameter(torch.zeros(1))
    groups = [
        {"params": [net.weight], "lr_scale": 0.0},
        {"params": [net.bias, beyond], "weight_decay": 0.0},
    ]
    fit(net, inputs, lambda x, _, aim: (net(x) + beyond - aim).square().mean(), Training(epochs=20, batch=8, lr=0.1),
        groups=groups, beside=[aims])  # fmt: skip
    assert torch.equal(net.weight.detach(), before)
    assert beyond.item() != 0


class ViewedGradient(torch.autograd.Function):
    """Code whose gradient alone takes a view."""

    @staticmethod
    def forward(ctx, x):
        return 1 * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient.view(-1).view(gradient.shape)


def plain(net, x):
    return x.flatten(1)


def viewed(net, x):
    return x.view(len(x), -1)


# By name: what comes after the convolution, and how it is made flat.
FLAT = {
    "as any": (nn.Identity(), plain),
    "viewed": (nn.Identity(), viewed),
    "viewed in training": (nn.Identity(), lambda net, x: (viewed if net.training else plain)(net, x)),
    "viewed backwards": (ViewedGradient.apply, plain),
}


@pytest.mark.parametrize("way", FLAT)
def test_images_have_their_channels_last_in_memory_unless_the_code_takes_views(way):
    x = np.random.default_rng(0).random((24, 3, 6, 6), dtype=np.float32)
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, 2)])
    conv, norm, head = net
    through, flat = FLAT[way]
    seen, counted = [], []

    def loss(x: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        seen.append(x.is_contiguous(memory_format=torch.channels_last))
        counted.append(int(norm.num_batches_tracked))
        return nn.functional.cross_entropy(head(flat(net, norm(through(conv(x))))), labels)

    done = fit(net, Dataset.from_array(x, np.arange(24) % 2), loss, Training(epochs=2, batch=8))
    assert done.stopped == "done"
    assert seen == [True, *[way == "as any"] * 6]
    assert counted == [0, *range(6)], "the step that found out left nothing"


def test_biases_do_not_decay():
    net = nn.Linear(3, 2)
    weight, bias = net.weight.detach().clone(), net.bias.detach().clone()
    training = Training(epochs=1, batch=8, optimizer="sgd", lr=0.1, momentum=0.0, weight_decay=0.5, warmup=0.0)
    fit(net, squares(8)[0], lambda x, _: 0 * net(x).sum(), training)
    assert torch.allclose(net.weight, weight * 0.95)
    assert torch.equal(net.bias.detach(), bias)


@pytest.mark.parametrize(("native", "computed"), [(True, torch.bfloat16), (False, torch.float32)])
def test_augmented_batches_and_bfloat16_where_it_is_multiplied_train_too(monkeypatch, native, computed):
    monkeypatch.setattr(loop, "multiplies_bfloat16", lambda device: native)
    x = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    shapes = set()

    def loss(x: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        shapes.add((tuple(x.shape), net(x).dtype))
        return nn.functional.cross_entropy(net(x).float(), labels)

    inputs = Dataset.from_array(x, np.arange(40) % 2)
    done = fit(net, inputs, loss, Training(epochs=2, batch=8, precision="mixed", augment=("shift2", "flip")))
    assert done.stopped == "done"
    assert shapes == {((8, 1, 8, 8), computed)}
    assert f"torch.{done.precision}" == str(computed)
    assert net[1].weight.dtype == torch.float32


def test_labels_of_mixed_images_are_shares_of_classes():
    x = np.zeros((40, 1, 4, 4), np.float32)
    x[1::2] = 1.0
    net, met = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), list[torch.Tensor]()

    def loss(x: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        assert labels is not None
        met.append(labels)
        assert torch.allclose(labels[:, 1], x[:, 0, 0, 0]), "shifted and mirrored first, mixed then"
        return label_loss(net(x).float(), labels)

    inputs = Dataset.from_array(x, np.arange(40) % 2)
    fit(net, inputs, loss, Training(epochs=2, batch=8, augment=("mixup", "shift1")))
    assert {tuple(each.shape) for each in met} == {(8, 2)}
    assert len(torch.cat(met)[:, 1].unique()) > 20
    with pytest.raises(DataError, match="mixup mixes inputs"):
        fit(net, inputs, loss, Training(batch=8, augment=("mixup",)), beside=[torch.zeros(40)])


def test_what_cannot_be_is_told():
    net = network()
    with pytest.raises(DataError, match=r"96 inputs of 'array' are fewer than a batch of 128; .* --batch 96"):
        fit(net, points(), cross_entropy(net), Training())
    with pytest.raises(DataError, match="augment: shift2 changes images"):
        fit(net, points(), cross_entropy(net), Training(batch=8, augment=("shift2",)))
    with pytest.raises(DataError, match="rows beside"):
        fit(net, points(), cross_entropy(net), Training(batch=8), beside=[torch.zeros(3)])
    with pytest.raises(UserError, match="one number"):
        fit(net, points(), lambda x, labels: net(x), Training(batch=8))
    for part in net.parameters():
        part.requires_grad_(False)
    with pytest.raises(UserError, match="no parameters to train"):
        fit(net, points(), cross_entropy(net), Training(batch=8))
