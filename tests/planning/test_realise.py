"""Carrying out a plan: the refit helps, and only what was chosen changes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from smidgen.errors import PlanError
from smidgen.forms import Dense, dense
from smidgen.methods import methods
from smidgen.model.sites import find_sites
from smidgen.planning.allocate import allocate
from smidgen.planning.candidates import gather
from smidgen.planning.plan import Choice, Plan
from smidgen.planning.realise import PASSES, realise, references
from smidgen.site import grouped


def inputs(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype("f4")


def network(inplace=False):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(inplace), nn.Conv2d(12, 16, 3, stride=2), nn.ReLU(inplace),
        nn.Flatten(), nn.Linear(16 * 9, 40), nn.ReLU(inplace), nn.Linear(40, 6),
    ).eval()  # fmt: skip


BATCHES = [inputs(32, 3, 8, 8, seed=s) for s in range(4)]


def asked(model, batches=BATCHES):
    sites = find_sites(model, torch.from_numpy(batches[0][:1]))
    quick = {"svd": methods()["svd"], "cp": methods()["cp"].with_settings(points=3, iterations=5)}
    return sites, gather(sites, {}, quick)


def plan_for(options, wanted):
    """The given (method, rank) by site name, the rest dense."""
    choices = tuple(
        Choice(o.site.name, *wanted.get(o.site.name, (None, None)), 0.0, 0) for o in options
    )  # fmt: skip
    return Plan(choices, 0.0, "", {})


def error(model, smaller, batches=BATCHES):
    with torch.no_grad():
        x = torch.from_numpy(np.concatenate(batches))
        return float((model(x) - smaller(x)).square().mean())


WANTED = {"0": ("svd", 3), "2": ("svd", 6), "5": ("svd", 8)}


@pytest.mark.parametrize("inplace", [False, True])
def test_the_refit_lowers_the_error_of_the_answers(inplace):
    model = network(inplace)
    sites, options = asked(model)
    known = references(model, sites, BATCHES)
    plain = realise(model, options, plan_for(options, WANTED)).model
    refitted = realise(model, options, plan_for(options, WANTED), known).model
    assert error(model, refitted) < 0.75 * error(model, plain)
    fresh = [inputs(64, 3, 8, 8, seed=99)]
    assert error(model, refitted, fresh) < 0.9 * error(model, plain, fresh), "and on inputs it never saw"


def test_a_full_rank_form_is_refitted_to_the_original():
    """Where the form can stand for the weight, least squares leaves no error."""
    model = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 4)).eval()
    with torch.no_grad():
        model[2].weight.copy_(model[2].weight[:, :2] @ torch.randn(2, 30, generator=torch.Generator().manual_seed(0)))
    batches = [inputs(200, 6)]
    sites, options = asked(model, batches)
    known = references(model, sites, batches)
    result = realise(model, options, plan_for(options, {"2": ("svd", 2)}), known)
    assert error(model, result.model, batches) < 1e-6


def test_it_tells_which_sites_were_refitted():
    """A dense layer behind a changed one is refitted too, where the inputs determine it well; without them none is."""
    model = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 8), nn.Tanh(), nn.Linear(8, 4)).eval()
    batches = [inputs(200, 6)]
    sites, options = asked(model, batches)
    known = references(model, sites, batches)
    result = realise(model, options, plan_for(options, {"2": ("svd", 2)}), known)
    assert result.refitted == {"2", "4"}
    assert not torch.equal(result.model[4].weight, model[4].weight)
    assert torch.equal(result.model[0].weight, model[0].weight)
    assert realise(model, options, plan_for(options, {"2": ("svd", 2)})).refitted == frozenset()


def test_only_what_was_chosen_changes():
    model = network()
    before = copy.deepcopy(model.state_dict())
    sites, options = asked(model)
    result = realise(model, options, plan_for(options, {"2": ("cp", options[1].families["cp"].ranks[0])}),
                     references(model, sites, BATCHES))  # fmt: skip
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()), "the original was changed"
    state = result.model.state_dict()
    for name in ("0.weight", "0.bias", "5.weight", "5.bias", "7.weight", "7.bias"):
        assert torch.equal(state[name], before[name])
    assert set(result.stored) == {site.name for site in sites}
    for site in sites:
        if site.name != "2":
            form = result.stored[site.name].form
            assert isinstance(form, Dense)
            assert form.values.tobytes() == site.weight.tobytes()
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in [*model.modules(), *result.model.modules()])


def test_the_model_and_what_is_stored_are_the_same():
    model = network()
    sites, options = asked(model)
    result = realise(model, options, plan_for(options, WANTED), references(model, sites, BATCHES))
    for site in sites:
        if site.name in WANTED:
            chain, stored = result.model.get_submodule(site.name), result.stored[site.name]
            left, right = chain[1].weight.flatten(1), chain[0].weight.flatten(1)
            assert torch.allclose(left @ right, torch.from_numpy(dense(stored.form)).flatten(1), atol=1e-5)
            assert np.array_equal(chain[1].bias.detach().numpy(), stored.bias)


def test_layers_without_bias_get_none():
    model = nn.Sequential(
        nn.Conv1d(4, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8, 5, bias=False)
    ).eval()
    batches = [inputs(40, 4, 10)]
    sites, options = asked(model, batches)
    plan = plan_for(options, {"0": ("svd", 3), "3": ("svd", 2)})
    result = realise(model, options, plan, references(model, sites, batches))
    assert all(stored.bias is None for stored in result.stored.values())
    assert not any(name.endswith("bias") for name in result.model.state_dict())


def test_grouped_convolutions_are_refitted_group_by_group():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 12, 3, groups=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 3)
    ).eval()
    batches = [inputs(40, 8, 4, 4)]
    sites, options = asked(model, batches)
    known = references(model, sites, batches)
    plain = realise(model, options, plan_for(options, {"0": ("svd", 2)}))
    refitted = realise(model, options, plan_for(options, {"0": ("svd", 2)}), known)
    assert error(model, refitted.model, batches) < error(model, plain.model, batches)
    assert np.linalg.matrix_rank(grouped(dense(refitted.stored["0"].form), 2)[0], tol=1e-4) == 2


def test_a_transposed_layer_is_left_as_its_method_made_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.Conv2d(6, 4, 3)).eval()
    sites, options = asked(model)
    result = realise(model, options, plan_for(options, {"0": ("svd", 2), "2": ("svd", 2)}),
                     references(model, sites, BATCHES))  # fmt: skip
    assert result.refitted == {"0", "3"}
    assert np.array_equal(dense(result.stored["2"].form), dense(options[1].form("svd", 2)))


def test_more_layers_than_passes():
    torch.manual_seed(0)
    layers = [layer for _ in range(PASSES + 3) for layer in (nn.Linear(12, 12), nn.Tanh())]
    model = nn.Sequential(*layers).eval()
    batches = [inputs(60, 12)]
    sites, options = asked(model, batches)
    wanted = {site.name: ("svd", 4) for site in sites}
    ticked = []
    result = realise(model, options, plan_for(options, wanted), references(model, sites, batches), tick=ticked.append)
    assert ticked == [site.name for site in sites]
    assert all(isinstance(result.model.get_submodule(site.name), nn.Sequential) for site in sites)


def test_references_are_the_original_outputs_at_their_positions():
    model = network()
    sites, _ = asked(model)
    known = references(model, sites, BATCHES, seed=3)
    with torch.no_grad():
        first = model[0](torch.from_numpy(BATCHES[1]))
        last = model(torch.from_numpy(BATCHES[1]))
    picked = known.positions["0"]
    whole = first.flatten(2) if picked is None else first.flatten(2)[:, :, picked]
    assert torch.equal(known.rows["0"][1][0], whole.mT.reshape(-1, 12))
    assert torch.equal(known.rows["7"][1][0], last)
    assert known.positions["7"] is None


def test_references_do_not_see_in_place_activations():
    first, second = (references(m, asked(m)[0], BATCHES) for m in (network(), network(inplace=True)))
    for name in first.rows:
        assert all(torch.equal(a, b) for a, b in zip(first.rows[name], second.rows[name], strict=True))


def test_one_input_and_dead_inputs_stay_finite():
    model = network()
    for batch in (inputs(1, 3, 8, 8), np.zeros((4, 3, 8, 8), "f4")):
        sites, options = asked(model, [batch])
        result = realise(model, options, plan_for(options, WANTED), references(model, sites, [batch]))
        assert all(bool(torch.isfinite(p).all()) for p in result.model.parameters())


def test_the_same_plan_gives_the_same_network():
    model = network()
    sites, options = asked(model)
    plan = plan_for(options, WANTED)
    first, second = (realise(model, options, plan, references(model, sites, BATCHES)).model for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_what_a_site_cannot_take_is_refused():
    model = network()
    _, options = asked(model)
    for wanted, words in (({"7": ("cp", 2)}, "'7' cannot take cp"), ({"7": ("svd", 99)}, "rank 99 is not offered")):
        with pytest.raises(PlanError, match=words):
            realise(model, options, plan_for(options, wanted))


def test_an_allocated_plan_can_be_realised():
    model = network()
    _, options = asked(model)
    result = realise(model, options, allocate(options, float("inf"), {}))
    assert result.model(torch.zeros(2, 3, 8, 8)).shape == (2, 6)
