"""Forms as ordinary layers: the result runs, trains, saves without pickle, and is rebuilt by the user's own class."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from smidgen.errors import LoadError
from smidgen.export.prepare import prepare
from smidgen.forms import CP, Dense, LowRank, dense
from smidgen.methods import methods
from smidgen.model.load import load_network
from smidgen.model.replace import rebuild_network, save_network, with_forms
from smidgen.model.sites import find_sites
from smidgen.planning.candidates import weights_only
from smidgen.site import Stored

SHAPE = (3, 12, 12)


class Net(nn.Module):
    """A user's class: never changed by smidgen."""

    def __init__(self, classes=4):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.body = nn.ModuleDict({"one": nn.Conv2d(12, 16, 3, stride=2, padding=1), "two": nn.Conv2d(16, 16, 1)})
        self.head = nn.Linear(16, classes)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        for layer in self.body.values():
            x = layer(x).relu()
        return self.head(x.mean((2, 3)))


def net(**kwargs):
    torch.manual_seed(0)
    return Net(**kwargs).eval()


def images(n=3):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(1))


def forms(sites, wanted):
    """A middle rank of a method for some sites, by name."""
    stored = {}
    for site in sites:
        if site.name in wanted:
            family = methods()[wanted[site.name]].family(site, weights_only(site))
            stored[site.name] = Stored(family.form(family.ranks[len(family.ranks) // 2]), site.bias)
    return stored


WANTED = {"stem": "svd", "body.one": "cp", "body.two": "svd"}


def smaller():
    model = net()
    sites = find_sites(model, images(1))
    return model, sites, forms(sites, WANTED)


def test_the_result_answers_as_a_network_with_the_dense_weights():
    model, sites, stored = smaller()
    result = with_forms(model, sites, stored)
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for name, one in stored.items():
            expected.get_submodule(name).weight.copy_(torch.from_numpy(dense(one.form)))
        assert torch.allclose(result(images()), expected(images()), atol=1e-4)


def test_the_original_is_untouched_and_nothing_is_shared_with_it():
    model, sites, stored = smaller()
    before, answer = copy.deepcopy(model.state_dict()), model(images())
    result = with_forms(model, sites, stored)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.zero_()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(model(images()), answer)
    assert type(model.stem) is nn.Conv2d


def test_sites_not_named_stay_bit_for_bit():
    model, sites, stored = smaller()
    result = with_forms(model, sites, stored)
    assert torch.equal(result.head.weight, model.head.weight)
    assert result.state_dict().keys() >= {"head.weight", "stem.0.weight", "stem.1.weight", "body.one.3.weight"}


def test_the_result_is_made_of_plain_layers_and_trains():
    model, sites, stored = smaller()
    result = with_forms(model, sites, stored).train()
    plain = {nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.Sequential, nn.ModuleDict, Net}
    assert {type(m) for m in result.modules()} <= plain
    labels = torch.tensor([0, 1, 2])
    optimiser = torch.optim.Adam(result.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(result(images()), labels)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in result.parameters())
    assert losses[-1] < 0.7 * losses[0]


def test_precision_mode_and_place_follow_the_layer_replaced():
    model = net().double()
    sites = find_sites(model, images(1).double())
    result = with_forms(model.train(), sites, forms(sites, WANTED))
    assert {p.dtype for p in result.parameters()} == {torch.float64}
    assert all(m.training for m in result.modules())


@pytest.mark.parametrize("trained", [False, True])
def test_a_saved_network_is_rebuilt_by_the_unchanged_class(tmp_path, trained):
    model, sites, stored = smaller()
    result = with_forms(model, sites, stored)
    if trained:
        with torch.no_grad():
            for parameter in result.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    save_network(result, sites, stored, tmp_path / "small.safetensors")
    fresh = Net()
    again = rebuild_network(fresh, tmp_path / "small.safetensors").eval()
    assert torch.equal(again(images()), result.eval()(images()))
    assert type(fresh.stem) is nn.Conv2d, "the given network is not changed"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.safetensors"]


def test_a_network_whose_norms_were_folded_is_rebuilt(tmp_path):
    """The user's class makes the BatchNorm, and a convolution without bias: the file has neither."""
    model = net()
    with torch.no_grad():
        model.norm.running_mean += 0.3
    ready = prepare(load_network(model), images(1))
    assert type(ready.module.norm) is nn.Identity
    stored = forms(ready.sites, {"body.one": "cp"})
    result = with_forms(ready.module, ready.sites, stored)
    save_network(result, ready.sites, stored, tmp_path / "small.safetensors")
    again = rebuild_network(Net(), tmp_path / "small.safetensors").eval()
    assert torch.equal(again(images()), result(images()))
    again.train()(images()).sum().backward()


def test_the_file_is_no_pickle(tmp_path):
    model, sites, stored = smaller()
    path = tmp_path / "small.safetensors"
    save_network(with_forms(model, sites, stored), sites, stored, path)
    with safe_open(str(path), framework="np") as file:
        header = file.metadata()
    assert set(json.loads(header["chains"])) == set(WANTED)
    assert int.from_bytes(path.read_bytes()[:8], "little") < path.stat().st_size


def saved(tmp_path):
    model, sites, stored = smaller()
    path = tmp_path / "small.safetensors"
    save_network(with_forms(model, sites, stored), sites, stored, path)
    return path


@pytest.mark.parametrize(
    "other", [lambda: Net(classes=5), lambda: nn.Sequential(nn.Linear(3, 3)), lambda: nn.Conv2d(3, 12, 3)]
)
def test_another_network_is_refused(tmp_path, other):
    with pytest.raises(LoadError, match="does not fit this network") as caught:
        rebuild_network(other(), saved(tmp_path))
    assert "\n" not in str(caught.value)


def test_damaged_files_are_refused(tmp_path):
    path = saved(tmp_path)
    payload = path.read_bytes()
    for broken in (b"", b"not a file", payload[:100], payload[: len(payload) // 2]):
        path.write_bytes(broken)
        with pytest.raises(LoadError):
            rebuild_network(Net(), path)
    with pytest.raises(LoadError):
        rebuild_network(Net(), tmp_path / "nowhere.safetensors")


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"head.weight": torch.zeros(4, 16)}, tmp_path / "foreign.safetensors")
    with pytest.raises(LoadError, match="was not written by smidgen"):
        rebuild_network(Net(), tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("name", ["chains", "biased", "identities"])
def test_a_file_without_a_header_is_refused_by_its_name(tmp_path, name):
    from safetensors.torch import load_file, save_file

    path = saved(tmp_path)
    with safe_open(str(path), framework="np") as file:
        header = {key: value for key, value in file.metadata().items() if key != name}
    save_file(load_file(path), path, metadata=header)
    with pytest.raises(LoadError, match=f"lacks the header '{name}'; write it again"):
        rebuild_network(Net(), path)


def test_an_older_format_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    path = saved(tmp_path)
    with safe_open(str(path), framework="np") as file:
        header = file.metadata()
    save_file(load_file(path), path, metadata={**header, "format": "smidgen-modules-1"})
    with pytest.raises(LoadError, match="format 'smidgen-modules-1'"):
        rebuild_network(Net(), path)


@pytest.mark.parametrize("field", ["in_channels", "out_channels", "groups", "kernel", "kind"])
def test_a_file_that_lies_about_sizes_is_refused_before_memory_is_taken(tmp_path, field):
    from safetensors.torch import load_file, save_file

    path = saved(tmp_path)
    with safe_open(str(path), framework="np") as file:
        header = file.metadata()
    chains = json.loads(header["chains"])
    chains["stem"][0][field] = {"kernel": [2**20, 2**20], "kind": "magic"}.get(field, 2**30)
    save_file(load_file(path), path, metadata={**header, "chains": json.dumps(chains)})
    with pytest.raises(LoadError, match="does not fit"):
        rebuild_network(Net(), path)


def test_every_form_can_stand_in_every_convolution(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.grouped = nn.Conv2d(8, 8, 3, groups=2, stride=2, padding=1)
            self.line = nn.Conv1d(8, 10, 5, padding=2, dilation=1)
            self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1)

        def forward(self, x):
            y = self.grouped(x)
            return self.line(y.flatten(2)), self.up(y)

    torch.manual_seed(0)
    model, x = Odd().eval(), torch.randn(2, 8, 6, 6)
    sites = {site.name: site for site in find_sites(model, x)}
    rng = np.random.default_rng(0)

    def leaf(*shape):
        return Dense(rng.normal(size=shape).astype("f4"))

    stored = {
        "grouped": Stored(LowRank(leaf(4, 4, 3, 3), leaf(8, 2), leaf(4, 2), groups=2), sites["grouped"].bias),
        "line": Stored(CP(leaf(3, 8), (leaf(3, 5),), leaf(10, 3)), None),
        "up": Stored(Dense(2 * sites["up"].weight), sites["up"].bias),
    }
    result = with_forms(model, list(sites.values()), stored)
    assert [y.shape for y in result(x)] == [y.shape for y in model(x)]
    assert torch.allclose(
        result.up(x) - model.up.bias[:, None, None], 2 * (model.up(x) - model.up.bias[:, None, None]), atol=1e-5
    )
    assert result.line[-1].bias is None
    save_network(result, list(sites.values()), stored, tmp_path / "odd.safetensors")
