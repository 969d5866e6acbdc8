"""Weights as integers with a price on their bits: the gradients, the density, and the coder that it stands for."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from smidgen.coding import cost_model, pack_many
from smidgen.errors import PlanError
from smidgen.forms import dense
from smidgen.recover.entropy import PER_OCTAVE, TOGETHER, Entropy, Stepped, refine


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 20), nn.ReLU(), nn.Linear(20, 5)
    )


def test_the_layer_computes_with_integers_times_the_step():
    net = network()
    before = net[3].weight.detach().clone()
    coded = Entropy(net, steps={"3.weight": 0.05})
    torch.testing.assert_close(net[3].weight.detach(), 0.05 * torch.round(before / 0.05))
    assert sorted(coded.forms()) == ["0", "3", "5"]


def test_the_gradient_passes_straight_through_and_the_steps_is_that_of_lsq():
    weight = torch.tensor([[0.3, -0.8], [1.2, 0.05]], requires_grad=True)
    how = Stepped(weight, step=0.5)
    seen = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    (how(weight) * seen).sum().backward()
    assert torch.equal(weight.grad, seen)
    scaled = weight.detach() / 0.5
    expected = (seen * (scaled.round() - scaled) * 0.5).sum()
    assert how.log_step.grad.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_rate_is_the_expected_code_length_under_dither():
    """Its derivative is that of E_u[bits(round(w/Δ + u))], here by exact integration over u."""
    net = nn.Sequential(nn.Linear(30, 40, bias=False))
    torch.manual_seed(1)
    with torch.no_grad():
        net[0].weight.copy_(torch.distributions.Laplace(0.0, 1.0).sample((40, 30)))
    coded = Entropy(net, steps={"0.weight": 1.0})
    coded.refresh()
    coded.rate().backward()
    layer = net[0].parametrizations.weight
    weights = layer.original.detach().numpy().astype(np.float64)
    model = cost_model(np.rint(weights).astype(np.int32))

    def expected(scaled):  # round(scaled + u) is the integer below or above, by the fraction
        below = np.floor(scaled).astype(np.int64)
        part = scaled - below
        low, high = (model.bits(value, model.classes) for value in (below, below + 1))
        return (1 - part) * low + part * high

    away = np.abs(weights - np.rint(weights)) > 1e-3  # at an integer there are two slopes
    slope = (expected(weights + 1e-5) - expected(weights - 1e-5)) / 2e-5
    rising = away & (slope * np.sign(weights) > 0)  # a size that is likelier than the one below it has no price
    assert rising.mean() > 0.7
    # float32 sits between: the sizes it is counted by are those of the parameter
    np.testing.assert_allclose(layer.original.grad.numpy()[rising], slope[rising], rtol=1e-3, atol=1e-3)


def test_one_bit_of_a_fair_sign_and_the_entropy_of_a_laplacian():
    """A large even sample costs what the integral −∫ p log₂ p says, of the rounded density."""
    scale = 1.5
    values = np.random.default_rng(0).laplace(0, scale, (400, 300))
    model = cost_model(np.rint(values).astype(np.int32), even=True)
    found = model.bits(np.rint(values).astype(np.int32), model.classes).mean()
    k = np.arange(-200, 201)
    cumulative = np.where(k + 0.5 < 0, 0.5 * np.exp((k + 0.5) / scale), 1 - 0.5 * np.exp(-np.abs(k + 0.5) / scale))
    chances = np.diff(cumulative, prepend=0.0)
    chances = chances[chances > 1e-300]
    assert found == pytest.approx(-(chances * np.log2(chances)).sum(), rel=2e-3)


def test_predicted_bits_are_near_those_of_the_coder():
    rng = np.random.default_rng(2)
    net = nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 10))
    with torch.no_grad():
        loud = rng.exponential(0.6, (300, 1)) * rng.exponential(0.6, (1, 200))
        net[0].weight.copy_(torch.tensor(rng.laplace(0, 1, (300, 200)) * loud))
    coded = Entropy(net, steps={"0.weight": 1.0, "2.weight": 0.05})
    predicted, nbytes = coded.refresh() / 8, coded.nbytes()
    assert nbytes == len(pack_many(coded.integers()))
    assert predicted == pytest.approx(nbytes, rel=0.1)  # the coder pays for learning on the way


def test_training_on_the_rate_alone_silences_a_layer():
    net = nn.Sequential(nn.Linear(16, 8))
    coded = Entropy(net)
    optimizer = torch.optim.Adam([{"params": g["params"]} for g in coded.groups()], lr=0.02)
    first = coded.refresh()
    for _ in range(200):
        optimizer.zero_grad()
        coded.rate().backward()
        optimizer.step()
        coded.refresh()
    assert coded.refresh() < 0.05 * first
    assert all(not integers.any() for integers in coded.integers())


def test_what_is_written_is_what_was_trained():
    net = network()
    x = torch.randn(3, 1, 8, 8)
    coded = Entropy(net)
    with torch.no_grad():
        before = net(x)
    forms = coded.remove()
    assert type(net[0]) is nn.Conv2d
    assert torch.equal(net(x).detach(), before)
    for name, (weight, bias) in forms.items():
        layer = net.get_submodule(name)
        # The step goes on the grid of the archive: half a place of 1024 an octave.
        np.testing.assert_allclose(dense(weight), layer.weight.detach().numpy(), rtol=math.log(2) / PER_OCTAVE)
        assert bias is not None
        assert not weight.row.any()


def test_a_network_without_layers_is_refused():
    with pytest.raises(PlanError, match="no dense or convolutional layer"):
        Entropy(nn.Sequential(nn.ReLU()))


def test_a_tensor_of_zeros_is_left_in_peace():
    net = nn.Sequential(nn.Linear(4, 3))
    nn.init.zeros_(net[0].bias)
    coded = Entropy(net)
    assert coded.refresh() > 0
    assert torch.isfinite(coded.rate())


def test_pixels_are_counted_as_the_archive_sees_them():
    rows, columns = np.mgrid[:16, :16]
    rng = np.random.default_rng(0)
    maps = [3 * np.sin(rows / rng.uniform(2, 5)) * np.cos(columns / rng.uniform(2, 5)) for _ in range(20)]
    sizes = []
    for shapes in ({}, {"1": (20, 1, 16, 16)}):
        net = nn.Sequential(nn.Flatten(), nn.Linear(256, 20, bias=False))
        with torch.no_grad():
            net[1].weight.copy_(torch.tensor(np.stack(maps).reshape(20, 256)))
        coded = Entropy(net, steps={"1.weight": 1.0}, shapes=shapes)
        sizes.append(coded.nbytes())
        assert coded.forms()["1"]["weight"].integers.shape == (20, 256)
    assert sizes[1] < sizes[0]


def folded():
    """A depthwise layer with a large channel and a small one that the answers hang on, between two others."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8 * 16, 3))
    with torch.no_grad():
        net[0].weight[0] /= 10
        net[1].weight[0] *= 10
        net[1].weight[1:] /= 10
        net[0].weight[1:] *= 10
        net[3].weight *= 30  # answers that are sure
    return net


def apart_from(net, plain, shape):
    x = torch.randn(32, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = plain(x).log_softmax(1)

    def apart() -> float:
        found = net(x).detach().log_softmax(1)
        return float(nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True))

    return apart


def test_first_steps_are_finer_where_rounding_spoils_the_answers():
    net = folded()
    coded = Entropy(net)
    apart, before = apart_from(net, folded(), (1, 8, 8)), coded.steps()
    assert apart() > TOGETHER
    refine(coded, apart)
    assert apart() <= TOGETHER
    finer = {name: math.log2(before[name] / step) for name, step in coded.steps().items()}
    assert all(each == pytest.approx(round(each), abs=1e-4) and each >= -1e-4 for each in finer.values()), "by halves"
    assert finer["1.weight"] > finer["3.weight"] + 0.5, "most where it is needed"
    steps = coded.steps()
    refine(coded, apart)
    assert coded.steps() == steps


@pytest.mark.parametrize("cost", [0.0, TOGETHER])
def test_first_steps_stay_where_rounding_costs_little(cost):
    coded, asked = Entropy(network()), []
    before = coded.steps()
    refine(coded, lambda: asked.append(cost) or cost)
    assert (coded.steps(), len(asked)) == (before, 1)


def test_first_steps_come_back_where_nothing_helps():
    coded = Entropy(network())
    before = coded.steps()
    refine(coded, lambda: math.nan)
    assert coded.steps() == before


def test_one_tensor_that_no_step_suits_makes_no_other_finer():
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    with torch.no_grad():
        net[2].weight[0, 0] = 1e5  # rounds all others of its layer to nothing …
        net[1].weight[0], net[1].bias[0] = 0.0, 0.0  # … and nothing ever reaches it
        net[3].weight *= 20
    plain, coded = copy.deepcopy(net), Entropy(net)
    before = coded.steps()
    refine(coded, apart_from(net, plain, (8,)))
    finer = {name: math.log2(before[name] / step) for name, step in coded.steps().items()}
    others = max(each for name, each in finer.items() if name != "2.weight")
    assert finer["2.weight"] > others + 8
