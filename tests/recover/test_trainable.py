"""Forms that train: nothing lost on the way in and out, constraints that outlive any optimizer, known gradients."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from smidgen.errors import PlanError
from smidgen.forms import (
    CP,
    Codebook,
    Dense,
    Form,
    LowRank,
    Masked,
    Quantized,
    Spatial,
    Tucker2,
    dense,
    leaves,
    scales,
    shape,
)
from smidgen.model.sites import find_sites
from smidgen.recover.constraints import parametrize, plain
from smidgen.recover.trainable import hold, leaf_of, read_back, steps_of, trainable
from smidgen.site import Stored, untouched

OPTIMIZERS = {
    "sgd": lambda net: torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda net: torch.optim.AdamW(net.parameters(), 1e-2),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * 16, 12, bias=False), nn.ReLU(), nn.Linear(12, 5),
    )  # fmt: skip


def rand(*shape: int) -> np.ndarray:
    return 0.3 * np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def integers(*shape: int, columns: int = 1, per_octave: int = 4, most: int = 7) -> Quantized:
    random = np.random.default_rng(sum(shape))
    return Quantized(
        random.integers(-most, most + 1, shape).astype(np.int32),
        random.integers(-4 * per_octave, -2 * per_octave, shape[0]).astype(np.int32),
        random.integers(-per_octave, per_octave, columns).astype(np.int32),
        per_octave,
    )


def book(*shape: int, values: tuple[float, ...] = (-0.5, -0.125, 0.0, 0.25, 0.5)) -> Codebook:
    random = np.random.default_rng(sum(shape))
    return Codebook(random.integers(0, len(values), shape).astype(np.uint8), np.array(values, np.float32))


def masked(*shape: int) -> Masked:
    values = rand(*shape)
    return Masked(np.where(np.abs(values) > 0.25, values, np.float32(0)))


FORMS: dict[str, dict[str, Form]] = {
    "dense": {},
    "pruned": {"0": masked(6, 2, 3, 3), "2": masked(4, 6, 3, 3), "5": masked(12, 64), "7": masked(5, 12)},
    "shared": {"0": book(6, 2, 3, 3), "5": book(12, 64, values=(-1 / 3, 0.1)), "7": book(5, 12)},
    "integers": {
        "0": integers(6, 2, 3, 3), "2": integers(4, 6, 3, 3, columns=54), "5": integers(12, 64, columns=64, most=900),
        "7": integers(5, 12, per_octave=1024),
    },
    "factors": {
        "0": Tucker2(Dense(rand(2, 2)), Dense(rand(3, 2, 3, 3)), Dense(rand(6, 3))),
        "2": CP(Dense(rand(5, 6)), (Dense(rand(5, 3)), Dense(rand(5, 3))), Dense(rand(4, 5))),
        "5": LowRank(Dense(rand(3, 64)), Dense(rand(12, 3)), Dense(rand(3, 3))),
        "7": LowRank(integers(2, 12, columns=12), integers(5, 2, columns=2)),
    },
    "mixed": {
        "0": Spatial(Dense(rand(2, 2, 3, 1)), book(6, 2, 1, 3)),
        "2": LowRank(integers(3, 6, 3, 3), masked(4, 3)),
        "5": LowRank(book(3, 64), integers(12, 3)),
    },
}  # fmt: skip


def made(kind: str) -> tuple[nn.Module, list, dict[str, Stored]]:
    net = network()
    sites = find_sites(net, torch.zeros(1, 2, 6, 6))
    stored = {site.name: untouched(site) for site in sites}
    stored |= {site.name: Stored(FORMS[kind][site.name], site.bias) for site in sites if site.name in FORMS[kind]}
    if kind == "integers":
        bias = integers(5, most=90)
        bias = Quantized(bias.integers, np.zeros(5, np.int32), np.array([-20], np.int32), 4)
        stored["7"] = Stored(stored["7"].form, dense(bias), bias)
    return net, sites, stored


def train(net: nn.Module, optimizer: str, steps: int = 12) -> None:
    step = OPTIMIZERS[optimizer](net)
    x, y = torch.randn(16, 2, 6, 6), torch.arange(16) % 5
    net.train()
    for _ in range(steps):
        step.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        step.step()


def same(one: Stored, other: Stored) -> bool:
    pairs = list(zip(leaves(one.form), leaves(other.form), strict=True))
    fields = [
        (getattr(a, name), getattr(b, name))
        for a, b in pairs for name in ("values", "integers", "row", "column", "indices") if hasattr(a, name)
    ]  # fmt: skip
    fields += [] if one.bias is None else [(one.bias, other.bias)]
    return all(type(a) is type(b) for a, b in pairs) and all(
        np.array_equal(a, b) and a.dtype == b.dtype for a, b in fields
    )


@pytest.mark.parametrize("kind", FORMS)
def test_untouched_it_reads_back_as_it_was(kind):
    net, sites, stored = made(kind)
    held = trainable(net, sites, stored)
    back = read_back(held, sites, stored)
    assert all(same(back[name], stored[name]) for name in stored)
    assert type(back["7"].form) is type(stored["7"].form)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", FORMS)
def test_what_was_evaluated_last_is_what_is_read_back(kind, optimizer):
    net, sites, stored = made(kind)
    before = copy.deepcopy(net.state_dict())
    held = trainable(net, sites, stored)
    train(held, optimizer)
    back = read_back(held, sites, stored)
    assert not any(same(back[name], stored[name]) for name in stored), "nothing was trained"
    for name, entry in stored.items():
        found = held.get_submodule(name)
        chain = list(found) if isinstance(found, nn.Sequential) else [found]
        for layer, leaf, old in zip(chain, leaves(back[name].form), leaves(entry.form), strict=True):
            weight = layer.weight.detach().numpy()
            assert np.isfinite(weight).all()
            assert np.array_equal(dense(leaf).ravel().view(np.int32), weight.ravel().view(np.int32))
            assert shape(leaf) == shape(old)
            kept_within(leaf, old)
        if entry.bias is not None:
            assert np.array_equal(back[name].bias, chain[-1].bias.detach().numpy())
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items()), "the original changed"


def kept_within(leaf, old) -> None:
    if isinstance(old, Masked):
        assert not (leaf.kept & ~old.kept).any()
        assert leaf.survivors == old.survivors
    if isinstance(old, Codebook):
        assert np.array_equal(leaf.indices, old.indices) or (np.diff(leaf.values) >= 0).all()
        assert len(leaf.values) == len(old.values)
        gone = old.values[old.indices] == 0
        assert (dense(leaf)[gone] == 0).all()
    if isinstance(old, Quantized):
        assert leaf.per_octave == old.per_octave
        assert np.array_equal(leaf.column, old.column)


@pytest.mark.parametrize(("target", "most"), [("onnx-w4", 7), ("onnx-w8", 127), ("archive", None)])
def test_integers_stay_within_their_bits(target, most):
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(8, 3))
    sites = find_sites(layer, torch.zeros(1, 8))
    form = Quantized(np.full((3, 8), 3, np.int32), np.full(3, -8, np.int32), np.zeros(1, np.int32), 4)
    stored = {"0": Stored(form, sites[0].bias)}
    held = trainable(layer, sites, stored, target=target, learned_steps=False)
    step = torch.optim.SGD(held.parameters(), 5.0)
    for _ in range(10):
        step.zero_grad()
        (-held(torch.ones(4, 8)).mean() * 10).backward()
        step.step()
    largest = int(np.abs(read_back(held, sites, stored)["0"].form.integers).max())
    assert largest > 127 if most is None else largest == most


@given(
    z=arrays.arrays(np.int32, (3, 8), elements=st.integers(-(1 << 20), 1 << 20)),
    row=arrays.arrays(np.int32, 3, elements=st.integers(-60, 30)),
    column=st.sampled_from([1, 2, 8]),
    per_octave=st.sampled_from([1, 2, 4, 8, 16, 1024]),
)
@settings(max_examples=60, deadline=None)
def test_any_integers_come_back(z, row, column, per_octave):
    form = Quantized(z, row, np.arange(column, dtype=np.int32) - 3, per_octave)
    layer = nn.Linear(8, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(dense(form)))
    hold(layer, form)
    back = leaf_of(layer, form)
    assert isinstance(back, Quantized)
    assert np.array_equal(back.integers, z)
    assert np.array_equal(back.row, row)
    assert np.array_equal(layer.weight.detach().numpy(), dense(form))


@given(
    values=arrays.arrays(np.float32, st.integers(1, 9), elements=st.floats(-4, 4, width=32), unique=True),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_codebook_comes_back(values, seed):
    values = np.sort(values + np.float32(0))
    form = Codebook(np.random.default_rng(seed).integers(0, len(values), (4, 5)).astype(np.uint8), values)
    layer = nn.Linear(5, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(dense(form)))
    hold(layer, form)
    back = leaf_of(layer, form)
    assert isinstance(back, Codebook)
    assert np.array_equal(dense(back), dense(form))
    assert np.array_equal(back.values, values)


def test_the_gradients_of_a_cluster_are_summed():
    form = book(4, 6)
    layer = nn.Linear(6, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(dense(form)))
    free = copy.deepcopy(layer)
    hold(layer, form)
    x = torch.randn(5, 6)
    for each in (layer, free):
        each(x).pow(3).sum().backward()
    sums = np.bincount(form.indices.ravel(), free.weight.grad.numpy().ravel(), minlength=5)
    sums[form.values == 0] = 0
    np.testing.assert_allclose(layer.parametrizations["weight"].original.grad.numpy(), sums, rtol=1e-5)


def test_the_gradient_of_a_step_is_the_published_one():
    weight = np.array([[0.3, -0.9, 2.6], [0.05, 0.2, -0.6]], np.float32)
    form = Quantized(np.zeros((2, 3), np.int32), np.array([-4, -8], np.int32), np.zeros(1, np.int32), 4)
    layer = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
    hold(layer, form, bits=2)
    up = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    (layer.weight * up).sum().backward()
    step = scales(form.row, 4)[:, None]
    inside = np.abs(weight / step) <= 1
    by_step = np.where(inside, np.round(weight / step) - weight / step, np.sign(weight))
    expected = (by_step * up.numpy()).sum(1) * step[:, 0] * np.log(2) / np.sqrt(3 * 1)
    (octaves,) = steps_of(layer)
    np.testing.assert_allclose(octaves.grad.numpy(), expected, rtol=1e-5)
    latent = layer.parametrizations["weight"].original.grad.numpy()
    np.testing.assert_allclose(latent, np.where(inside, up.numpy(), 0))


def test_learned_steps_find_the_scale_of_what_is_asked():
    torch.manual_seed(0)
    target = torch.tensor([[3.0, -3.0, 3.0, -3.0]])
    form = Quantized(np.ones((1, 4), np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32), 16)
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    hold(layer, form, bits=2)
    step = torch.optim.Adam(layer.parameters(), 0.05)
    for _ in range(200):
        step.zero_grad()
        (layer.weight - target).square().sum().backward()
        step.step()
    assert (layer.weight - target).abs().max() < 3 * (2 ** (1 / 16) - 1)


def test_rows_that_shared_a_step_go_on_sharing_it():
    form = Quantized(np.ones((4, 6), np.int32), np.full(4, -9, np.int32), np.zeros(1, np.int32), 16)
    layer = nn.Linear(6, 4)
    hold(layer, form, bits=8)
    train_layer = torch.optim.Adam(layer.parameters(), 0.1)
    for _ in range(10):
        train_layer.zero_grad()
        layer(torch.randn(8, 6)).square().sum().backward()
        train_layer.step()
    row = leaf_of(layer, form).row
    assert len(set(row.tolist())) == 1
    assert row[0] != -9


def test_zeros_among_integers_are_kept_where_asked():
    net, sites, stored = made("integers")
    held = trainable(net, sites, stored, keep_zeros=("0",))
    train(held, "adamw", 30)
    back = read_back(held, sites, stored)
    assert not ((back["0"].form.integers != 0) & (stored["0"].form.integers == 0)).any()
    assert ((back["2"].form.integers != 0) & (stored["2"].form.integers == 0)).any()


def test_what_is_no_sites_stands_still():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.BatchNorm1d(4), nn.Linear(4, 3))
    sites = find_sites(net, torch.zeros(2, 4))
    stored = {site.name: untouched(site) for site in sites}
    held = trainable(net, sites, stored, fixed=("0",))
    before = {name: value.clone() for name, value in held.state_dict().items()}
    held.train()
    step = torch.optim.SGD(held.parameters(), 0.5)
    held(3 + torch.randn(8, 4)).square().sum().backward()
    step.step()
    changed = {name for name, value in held.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"3.weight", "3.bias"}
    assert np.array_equal(read_back(held, sites, stored)["0"].form.values, sites[0].weight)


def test_factors_within_factors_are_refused():
    net = nn.Sequential(nn.Linear(6, 5))
    sites = find_sites(net, torch.zeros(1, 6))
    inner = LowRank(Dense(rand(2, 6)), Dense(rand(3, 2)))
    with pytest.raises(PlanError, match="'0' has factors within factors"):
        trainable(net, sites, {"0": Stored(LowRank(inner, Dense(rand(5, 3))), sites[0].bias)})


@pytest.mark.parametrize("constraint", ["zeros", "values", "steps"])
def test_a_loop_of_ones_own(constraint):
    net = network()
    with torch.no_grad():
        for layer in (net[0], net[5]):
            layer.weight[layer.weight.abs() < 0.05] = 0
    gone = {name: (value == 0) for name, value in net.state_dict().items()}
    whole = net[7].weight.detach().clone()
    bits = {"zeros": None, "values": 3, "steps": 4}[constraint]
    held = parametrize(net, constraint, bits=bits, protect=["7"])
    assert held is net
    train(net, "adamw", 10)
    assert isinstance(plain(net)[0], nn.Conv2d)
    assert set(net.state_dict()) == set(network().state_dict())
    assert not torch.equal(net[7].weight, whole)
    for name in ("0", "2", "5"):
        weight = net.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        if constraint == "values":
            assert len(weight.unique()) <= 8
        if constraint == "steps":
            assert max(len(row.unique()) for row in weight.flatten(1)) <= 15
        else:
            assert bool((weight[gone[f"{name}.weight"]] == 0).all())
    assert len(net[7].weight.unique()) > 50


def test_constraints_that_cannot_be_are_told():
    with pytest.raises(PlanError, match="there is no 'clusters'"):
        parametrize(network(), "clusters")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="bits=9"):
        parametrize(network(), "steps", bits=9)
    with pytest.raises(PlanError, match="no layer to keep"):
        parametrize(nn.ReLU(), "zeros")
    with pytest.raises(PlanError, match="'0' is parametrized already"):
        parametrize(parametrize(network(), "steps"), "values")
