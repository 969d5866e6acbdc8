"""The curvature against brute force, and its prediction against the true divergence."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smidgen.calibrate.curvature import Settings, collect, sampled_loss
from smidgen.errors import LoadError
from smidgen.model.sites import find_sites

# No shrinkage of G, every position, whole A: what the formulas say, nothing else.
PLAIN = Settings(shrink=0.0, shrink_inputs=False, positions=10**6)


def inputs(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng([seed, *shape]).normal(size=shape)).astype("f4")


def seeded(make):
    torch.manual_seed(0)
    return make().eval()


def convnet(inplace=False):
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3, stride=2, padding=1), nn.ReLU(inplace),
            nn.Conv2d(6, 4, 3, groups=2), nn.ReLU(inplace), nn.Flatten(), nn.Linear(64, 5),
        )
    )  # fmt: skip


def measure(model, x, settings=PLAIN, seed=0):
    return collect(model, find_sites(model, torch.from_numpy(x[:1])), [x], settings=settings, seed=seed)


def captured(model, x):
    """Input and output of every layer with a weight, the output still in the graph."""
    seen = {}
    handles = [
        m.register_forward_hook(lambda _m, a, out, name=name: seen.__setitem__(name, (a[0].detach(), out)))
        for name, m in model.named_modules()
        if isinstance(m, (nn.Linear, nn.Conv2d))
    ]
    out = model(x)
    for handle in handles:
        handle.remove()
    return seen, out


def test_a_is_the_mean_over_samples_of_the_sum_over_positions():
    model, x = convnet(), inputs(5, 2, 11, 11)
    found = measure(model, x)
    seen, _ = captured(model, torch.from_numpy(x))
    first = F.unfold(seen["0"][0], 3, padding=1, stride=2)
    expected = torch.einsum("ncp,nkp->ck", first, first) / 5
    assert torch.allclose(found["0"].inputs.matrix[0], expected, rtol=1e-4, atol=1e-4)
    second = F.unfold(seen["2"][0], 3).reshape(5, 2, 27, -1)
    expected = torch.einsum("ngcp,ngkp->gck", second, second) / 5
    assert torch.allclose(found["2"].inputs.matrix, expected, rtol=1e-4, atol=1e-4)
    last = seen["5"][0]
    assert torch.allclose(found["5"].inputs.matrix[0], last.T @ last / 5, rtol=1e-4, atol=1e-5)
    assert torch.allclose(found["5"].inputs.mean[0], last.mean(0), atol=1e-5)
    assert found["0"].samples == 5


def exact_fisher(model, x, name, groups=1):
    """G by one gradient a sample and class, weighted by the network's own probabilities (temperature 1)."""
    total, count = 0.0, 0
    for one in torch.from_numpy(x):
        seen, logits = captured(model, one[None])
        probabilities = logits.detach().softmax(1)[0]
        for k, p in enumerate(probabilities):
            (g,) = torch.autograd.grad(-logits.log_softmax(1)[0, k], seen[name][1], retain_graph=True)
            rows = g.flatten(2).mT.reshape(-1, g.shape[1]) if g.ndim > 2 else g
            split = rows.reshape(len(rows), groups, -1)
            total = total + p * torch.einsum("ngo,ngq->goq", split, split)
        count += len(rows)
    return total / count


@pytest.mark.parametrize(("name", "groups"), [("0", 1), ("2", 2), ("5", 1)])
def test_g_is_the_mean_over_samples_and_positions(name, groups):
    model, x = convnet(), inputs(6, 2, 11, 11, scale=0.5)
    assert model(torch.from_numpy(x)).std().item() < 1, "the temperature must be 1 here"
    drawn = PLAIN.__class__(shrink=0.0, positions=10**6, draws=400)
    found = measure(model, x, drawn)[name].outputs.matrix
    exact = exact_fisher(model, x, name, groups)
    assert found.shape == exact.shape
    assert float((found - exact).norm() / exact.norm()) < 0.12
    assert float(torch.diagonal(found, dim1=1, dim2=2).sum() / torch.diagonal(exact, dim1=1, dim2=2).sum()) == (
        pytest.approx(1, abs=0.08)
    )


def test_shrinkage_keeps_the_trace_and_excites_dead_rows():
    model = convnet()
    with torch.no_grad():
        model[5].weight[:, :32] = 0  # the first group's two channels reach no class
    whole, shrunk = (measure(model, inputs(8, 2, 11, 11), Settings(shrink=s))["2"].outputs.matrix for s in (0.0, 0.5))
    diagonal = torch.diagonal(shrunk, dim1=1, dim2=2)
    assert torch.allclose(diagonal.sum(1), torch.diagonal(whole, dim1=1, dim2=2).sum(1), rtol=1e-4)
    assert float(whole[0].abs().max()) < 1e-30  # what keeps the mean of nothing above zero
    assert float(diagonal[1].min()) > 0


def test_a_convolution_at_one_position_and_a_dense_layer_predict_alike():
    """The normalisation over positions: 1x1 positions, and the same work spread over a sum of positions."""
    dense = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)))
    conv = nn.Sequential(nn.Conv2d(6, 5, 1), nn.Tanh(), nn.Flatten(), nn.Linear(5, 4)).eval()
    whole = nn.Sequential(nn.Conv2d(2, 5, (3, 1)), nn.Tanh(), nn.Flatten(), nn.Linear(5, 4)).eval()
    with torch.no_grad():
        for other in (conv, whole):
            other[0].weight.copy_(dense[0].weight.reshape(other[0].weight.shape))
            other[0].bias.copy_(dense[0].bias)
            other[3].load_state_dict(dense[2].state_dict())
    x = inputs(40, 6)
    change = torch.from_numpy(0.05 * inputs(1, 5, 6))
    losses = [
        measure(model, x.reshape(40, *shape))["0"].loss(change)
        for model, shape in ((dense, (6,)), (conv, (6, 1, 1)), (whole, (2, 3, 1)))
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)


def true_kl(model, x, name, change):
    changed = copy.deepcopy(model)
    weight = changed.get_submodule(name).weight
    with torch.no_grad():
        weight += change.reshape(weight.shape)
        p, q = (m(torch.from_numpy(x)).double().log_softmax(1) for m in (model, changed))
    return float((p.exp() * (p - q)).sum(1).mean())


@pytest.mark.parametrize(("name", "relative"), [("0", 0.02), ("2", 0.02), ("5", 0.02)])
def test_the_prediction_is_the_true_divergence_within_a_factor_of_two(name, relative):
    """Random small changes of one layer of a classifier that is not sure of itself."""
    model = convnet()
    x = inputs(200, 2, 11, 11, scale=0.7)
    curvature = measure(model, x, Settings(positions=10**6, draws=20, shrink=0.0))[name]
    weight = model.get_submodule(name).weight
    groups = curvature.inputs.matrix.shape[0]
    for seed in range(4):
        change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * weight.std() * relative
        true = true_kl(model, x, name, change.detach())
        predicted = curvature.loss(change.detach().reshape(groups, weight.shape[0] // groups, -1).double())
        assert 0.5 < predicted / true < 2, (predicted, true)


def test_spread_over_positions_the_prediction_still_holds():
    """The mean pooled 64 positions: with A averaged over positions it would be 64 times too small."""
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                                         nn.Flatten(), nn.Linear(8, 5)))  # fmt: skip
    x = inputs(200, 3, 8, 8)
    curvature = measure(model, x, Settings(positions=10**6, draws=20, shrink=0.0))["0"]
    ratios = []
    for seed in range(4):
        change = 0.01 * torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
        ratios.append(curvature.loss(change.reshape(1, 8, -1).double()) / true_kl(model, x, "0", change))
    # Gradients at the positions of one sample are all alike here, inputs are not: K-FAC's worst case.
    assert 0.25 < np.median(ratios) < 4, ratios


def test_fewer_positions_are_unbiased():
    model, x = convnet(), inputs(60, 2, 11, 11)
    full, sites = measure(model, x)["0"].inputs.matrix, find_sites(model, torch.from_numpy(x[:1]))
    few = Settings(positions=12, draws=1, shrink_inputs=False)
    parts = [collect(model, sites, np.split(x, 20), settings=few, seed=seed)["0"].inputs.matrix for seed in range(16)]
    single = np.mean([float((part - full).norm() / full.norm()) for part in parts])
    error = float((torch.stack(parts).mean(0) - full).norm() / full.norm())
    assert error < 0.4 * single, "the mean must come closer, as 1/√16"
    assert float(torch.stack(parts).mean(0)[0].trace() / full[0].trace()) == pytest.approx(1, abs=0.02)


def linear_moment(count, width, seed, **settings):
    """A of a dense layer on correlated inputs, and what infinitely many samples would give."""
    mix = np.random.default_rng(0).normal(size=(width, width)) * np.geomspace(1.0, 0.05, width)[:, None]
    x = np.random.default_rng(seed).normal(size=(count, width)) @ mix
    model = seeded(lambda: nn.Sequential(nn.Linear(width, 3)))
    found = measure(model, x.astype("f4"), Settings(draws=1, **settings))["0"].inputs
    return found, torch.from_numpy(mix.T @ mix).float()


@pytest.mark.parametrize("count", [12, 40, 200])
def test_shrinking_brings_a_nearer_to_that_of_all_inputs(count):
    errors = []
    for seed in range(1, 6):
        (kept, truth), (plain, _) = (linear_moment(count, 60, seed, shrink_inputs=on) for on in (True, False))
        assert torch.allclose(kept.matrix[0].diagonal(), plain.matrix[0].diagonal(), rtol=1e-4)
        errors.append([float((each.matrix[0] - truth).norm()) for each in (kept, plain)])
    shrunk, plain = np.mean(errors, axis=0)
    assert shrunk < plain * (0.9 if count < 60 else 1.0)


def test_many_samples_hardly_shrink_and_one_leaves_the_diagonal():
    (kept, _), (plain, _) = (linear_moment(20000, 12, 1, shrink_inputs=on) for on in (True, False))
    assert torch.allclose(kept.matrix, plain.matrix, atol=0.01 * float(plain.matrix.abs().max()))
    one, _ = linear_moment(1, 12, 1)
    assert torch.equal(one.matrix[0], torch.diag(one.matrix[0].diagonal()))


def test_rows_are_shrunk_as_the_whole_moment_is():
    (whole, _), (rows, _) = (linear_moment(20, 60, 1, widest=n, rows=30) for n in (100, 8))
    assert rows.matrix is None
    again = rows.rows.mT @ rows.rows + torch.diag_embed(rows.diagonal)
    assert torch.allclose(again, whole.matrix, rtol=1e-3, atol=1e-4 * float(whole.matrix.abs().max()))
    left = torch.randn(1, 4, 60, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(rows.between(left, left), whole.between(left, left), rtol=1e-3)


def test_a_sketch_is_exact_while_its_rows_suffice():
    model, x = convnet(), inputs(5, 2, 11, 11)
    whole = measure(model, x)["5"].inputs.matrix
    sketch = measure(model, x, Settings(widest=8, rows=6, positions=10**6, shrink_inputs=False))["5"].inputs
    assert sketch.matrix is None
    assert sketch.rows.shape == (1, 6, 64)
    assert torch.allclose(sketch.rows.mT @ sketch.rows, whole, rtol=1e-4, atol=1e-5)


def test_a_sketch_is_unbiased():
    model, x = convnet(), inputs(200, 2, 11, 11)
    whole = measure(model, x)["5"].inputs.matrix[0]
    total, single = torch.zeros_like(whole), []
    for seed in range(60):
        rows = measure(model, x, Settings(widest=8, rows=12, draws=1, shrink_inputs=False), seed)["5"].inputs.rows[0]
        total += rows.T @ rows / 60
        single.append(float((rows.T @ rows - whole).norm() / whole.norm()))
    error = float((total - whole).norm() / whole.norm())
    assert error < 0.2 * np.mean(single), "the mean of sketches must come closer, as 1/√60"


def test_batches_do_not_matter():
    model, x = convnet(), inputs(12, 2, 11, 11)
    sites = find_sites(model, torch.from_numpy(x[:1]))
    one, many = (collect(model, sites, batches, settings=PLAIN) for batches in ([x], np.split(x, 4)))
    for name in one:
        assert torch.allclose(one[name].inputs.matrix, many[name].inputs.matrix, rtol=1e-4, atol=1e-4)


def test_a_final_softmax_is_seen_through():
    plain = convnet()
    ending = nn.Sequential(*copy.deepcopy(plain), nn.Softmax(1)).eval()
    x = inputs(20, 2, 11, 11, scale=0.5)
    # Logs of probabilities are logits less a constant: the same spread within a sample, so the same draw.
    first, second = measure(plain, x), measure(ending, x)
    for name in first:
        assert torch.allclose(first[name].outputs.matrix, second[name].outputs.matrix, rtol=1e-2, atol=1e-6)


def test_a_sure_network_still_has_a_curvature():
    model = convnet()
    with torch.no_grad():
        model[5].weight *= 1000
    g = measure(model, inputs(20, 2, 11, 11))["0"].outputs.matrix
    assert float(g.abs().max()) > 1e-3


def test_several_outputs_weigh_alike_whatever_their_scale():
    class Two(nn.Module):
        def __init__(self, scale):
            super().__init__()
            torch.manual_seed(0)
            self.body, self.scale = nn.Linear(6, 5), scale

        def forward(self, x):
            y = self.body(x)
            return y[:, :2], self.scale * y[:, 2:]

    small, large = (measure(Two(s).eval(), inputs(300, 6), Settings(shrink=0.0, draws=20)) for s in (1.0, 1000.0))
    a, b = (torch.diagonal(one["body"].outputs.matrix[0]) for one in (small, large))
    assert torch.allclose(a, b, rtol=0.05)


def test_class_numbers_beside_the_scores_are_left_out():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(6, 4)

        def forward(self, x):
            y = self.body(x)
            return y, y.argmax(1)

    assert float(measure(Both().eval(), inputs(9, 6))["body"].outputs.matrix.abs().max()) > 0


def test_a_network_without_gradients_is_told():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(6, 4)

        @torch.no_grad()
        def forward(self, x):
            return self.body(x)

    with pytest.raises(LoadError, match="no output has a gradient"):
        measure(Frozen().eval(), inputs(3, 6))


def test_with_nothing_to_measure_nothing_runs():
    assert collect(nn.ReLU(), [], [inputs(3, 4)]) == {}


def test_the_network_is_left_as_it_was():
    model = convnet()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    with torch.no_grad():
        measure(model, inputs(6, 2, 11, 11))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not m._forward_hooks for m in model.modules())


def test_a_failing_run_leaves_the_network_as_it_was():
    model = convnet()
    with pytest.raises(RuntimeError):
        collect(model, find_sites(model, torch.zeros(1, 2, 11, 11)), [inputs(2, 2, 11, 11), inputs(2, 3, 11, 11)])
    assert all(p.requires_grad for p in model.parameters())
    assert all(not m._forward_hooks for m in model.modules())


def test_in_place_activations_do_not_matter():
    x = inputs(8, 2, 11, 11)
    first, second = measure(convnet(), x), measure(convnet(inplace=True), x)
    for name in first:
        assert torch.equal(first[name].inputs.matrix, second[name].inputs.matrix)
        assert torch.allclose(first[name].outputs.matrix, second[name].outputs.matrix, rtol=1e-5)


def test_the_same_seed_gives_the_same_curvature():
    x = inputs(8, 2, 11, 11)
    first, second, other = (measure(convnet(), x, Settings(positions=9), seed)["0"] for seed in (1, 1, 2))
    assert torch.equal(first.inputs.matrix, second.inputs.matrix)
    assert torch.equal(first.outputs.matrix, second.outputs.matrix)
    assert not torch.equal(first.outputs.matrix, other.outputs.matrix)


@pytest.mark.parametrize("case", ["one sample", "constant pixels", "dead channels", "zeros", "huge"])
def test_degenerate_inputs_give_finite_numbers(case):
    x = {
        "one sample": inputs(1, 2, 11, 11), "constant pixels": np.full((4, 2, 11, 11), 0.3, "f4"),
        "dead channels": inputs(4, 2, 11, 11) * np.array([0, 1], "f4")[:, None, None],
        "zeros": np.zeros((4, 2, 11, 11), "f4"), "huge": inputs(4, 2, 11, 11, scale=1e6),
    }[case]  # fmt: skip
    for curvature in measure(convnet(), x, Settings()).values():
        assert bool(torch.isfinite(curvature.inputs.matrix).all())
        assert bool(torch.isfinite(curvature.outputs.matrix).all())


def test_refused_sites_are_left_out():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(64, 3)).eval()
    assert set(measure(model, inputs(3, 2, 4, 4))) == {"2"}


def test_a_classifier_is_told_from_a_map():
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    pair = [sampled_loss(z, 1.0, torch.Generator().manual_seed(0)) for z in (logits, logits[:, :, None, None])]
    assert torch.equal(pair[0], pair[1]), "trailing axes of length one are dropped"
    sampled_loss(logits, 1.0, torch.Generator().manual_seed(0)).backward()
    assert torch.allclose(logits.grad.sum(1), torch.zeros(4), atol=1e-6), "softmax gradients sum to zero"
