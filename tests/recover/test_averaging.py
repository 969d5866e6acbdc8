"""A running average of the weights: what it is, and that it is what is scored and kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from smidgen.data import Dataset
from smidgen.recover.averaging import Average
from smidgen.recover.loop import Training, fit
from smidgen.recover.schedule import Pruner, Schedule


def parts(net: nn.Module) -> list[torch.Tensor]:
    """What is averaged, as it is now."""
    return [each.detach().clone() for name, each in net.state_dict().items() if "tracked" not in name]


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.InstanceNorm1d(1, affine=True, track_running_stats=True)])
def test_weights_and_statistics_are_averaged_by_the_formula(norm):
    torch.manual_seed(0)
    shape = (-1, 1, 4) if isinstance(norm, nn.InstanceNorm1d) else (-1, 4)
    net = nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, shape[1:]) if len(shape) > 2 else nn.Identity(), norm)
    average, mean = Average(net, list(net.parameters()), decay=0.3), parts(net)
    for step in range(1, 8):
        with torch.no_grad():
            for each in net.parameters():
                each.add_(torch.randn_like(each))
        net(torch.randn(16, 3))  # moves the statistics
        average.step()
        share = min(0.3, (1 + step) / (10 + step))
        mean = [share * old + (1 - share) * new for old, new in zip(mean, parts(net), strict=True)]
    own = parts(net)
    with average.shown():
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(parts(net), mean, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(parts(net), own, strict=True))


def test_the_weights_come_back_when_scoring_fails():
    net = nn.Linear(2, 1)
    average, own = Average(net, list(net.parameters()), 0.5), parts(net)
    with torch.no_grad():
        net.weight.add_(1.0)
    with pytest.raises(ValueError, match="no score"), average.shown():
        raise ValueError("no score")
    assert torch.equal(net.weight.detach(), own[0] + 1)


def test_what_was_pruned_is_gone_from_the_average_too():
    inputs, aims, _ = noisy(64)
    net, shares = nn.Linear(3, 4), []

    def held() -> float:
        shares.append(float((net.weight == 0).float().mean()))
        return -float(len(shares))

    pruner = Pruner(net, Schedule(0.75, every=8, times=2))
    training = Training(epochs=4, batch=8, lr=0.1, average=0.99)
    fit(net, inputs, lambda x, _, aim: (net(x) - aim).square().mean(), training, held=held, hooks=[pruner],
        beside=[aims])  # fmt: skip
    assert shares == pytest.approx([0.0, 8 / 12, 0.75, 0.75], abs=0.1)
    assert int((net.weight == 0).sum()) == 9


def noisy(count: int = 512) -> tuple[Dataset, torch.Tensor, torch.Tensor]:
    """A line with much noise, and its least squares."""
    random = np.random.default_rng(0)
    x = random.standard_normal((count, 3)).astype(np.float32)
    aim = (x @ [1.0, -2.0, 0.5] + 3 * random.standard_normal(count)).astype(np.float32)[:, None]
    least = np.linalg.lstsq(x, aim, rcond=None)[0]
    return Dataset.from_array(x), torch.from_numpy(aim), torch.from_numpy(least.T)


def least_squares(average: float | None) -> tuple[float, list[float]]:
    """How far from the optimum a training at a constant rate ends, and its losses."""
    inputs, aims, least = noisy()
    torch.manual_seed(0)
    net = nn.Linear(3, 1, bias=False)
    training = Training(
        epochs=20, batch=8, optimizer="sgd", lr=0.1, momentum=0.0, schedule="constant", average=average
    )  # fmt: skip
    done = fit(net, inputs, lambda x, _, aim: (net(x) - aim).square().mean(), training, beside=[aims])
    return (net.weight.detach() - least).norm().item(), [line["loss"] for line in done.history]


def test_what_is_kept_is_the_average_and_the_way_there_is_the_same():
    last, losses = least_squares(None)
    mean, same = least_squares(0.995)
    assert losses == same
    assert mean < 0.5 * last


def test_the_average_is_scored_and_its_best_comes_back():
    inputs, aims, _ = noisy(64)
    net, seen, scores = nn.Linear(3, 1), [], iter([2.0, 1.0, 3.0])

    def held() -> float:
        seen.append(parts(net))
        return next(scores)

    last = {}

    def loss(x: torch.Tensor, labels: torch.Tensor | None, aim: torch.Tensor) -> torch.Tensor:
        last["weights"] = parts(net)
        return (net(x) - aim).square().mean()

    done = fit(net, inputs, loss, Training(epochs=3, batch=8, lr=0.1, average=0.9), held=held, beside=[aims])
    assert done.best_epoch == 2
    assert all(torch.equal(a, b) for a, b in zip(parts(net), seen[1], strict=True))
    assert not torch.allclose(last["weights"][0], seen[2][0], atol=1e-3), "the steps have their own weights"
