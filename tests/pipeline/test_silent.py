"""Silent channels: which are, what is left without them, and the order of the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from smidgen.forms import Quantized, dense
from smidgen.model.replace import with_forms
from smidgen.pipeline.silent import in_order, integers_of, without_silent
from smidgen.pipeline.task import open_task
from smidgen.site import Stored


class Residual(nn.Module):
    """Two branches that meet, so that channels hang together, and a depthwise layer that passes them on."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.deep = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.branch = nn.Conv2d(6, 6, 1)
        self.hidden = nn.Linear(6 * 16, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.branch(self.deep(x).relu())).relu()
        return self.head(self.hidden(x.flatten(1)).relu())


def task_of(net):
    return open_task(net, None, None, None, torch.zeros(1, 1, 4, 4), None, 1, "cpu", 0)


def rounded(task, seed=0):
    """Random integers for each site, sparse enough that some channels are unequal."""
    rng = np.random.default_rng(seed)
    stored = {}
    for site in task.prepared.sites:
        share = rng.uniform(0.1, 1.0, (len(site.weight), *[1] * (site.weight.ndim - 1)))
        weight = rng.integers(-2, 3, site.weight.shape) * (rng.random(site.weight.shape) < share)
        forms = [Quantized(z.astype(np.int32), np.zeros(len(z), np.int32), np.array([-3072], np.int32), 1024)
                 for z in (weight, rng.integers(-1, 2, len(weight)))]  # fmt: skip
        stored[site.name] = Stored(forms[0], dense(forms[1]), forms[1])
    return stored


def silenced(stored, name, channels, reader=None, columns=()):
    """The same with rows of a layer, bias included, and columns of another at zero."""
    one = stored[name]
    one.form.integers[channels] = 0
    one.bias_form.integers[channels] = 0
    stored[name] = Stored(one.form, dense(one.bias_form), one.bias_form)
    if reader is not None:
        stored[reader].form.integers[:, columns] = 0
    return stored


def answers(module, sites, stored, x):
    with torch.no_grad():
        return with_forms(module, sites, stored)(x)


@pytest.mark.parametrize("seed", range(3))
def test_a_neuron_that_is_not_made_or_not_read_is_cut(seed):
    task = task_of(Residual())
    stored = silenced(rounded(task, seed), "hidden", [2, 5], "head", [7])
    smaller = without_silent(task, stored, integers_of(stored))
    assert smaller is not None
    shapes = {site.name: site.weight.shape for site in smaller.sites}
    assert shapes["hidden"][0] <= 9
    assert shapes["head"][1] == shapes["hidden"][0]
    x = torch.randn(5, 1, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(smaller.module(x), answers(task.prepared.module, task.prepared.sites, stored, x))


def test_a_channel_of_a_sum_goes_when_no_branch_makes_it():
    task = task_of(Residual())
    half = silenced(rounded(task), "stem", [1])
    for name in ("stem", "branch", "deep", "hidden", "head"):  # nothing else is silent
        form = half[name].form
        form.integers[form.integers == 0] = 1
        half[name].bias_form.integers[:] = 1
    half = silenced(half, "stem", [1])
    assert without_silent(task, half, integers_of(half)) is None
    whole = silenced(half, "branch", [1])
    whole = silenced(whole, "deep", [1])
    smaller = without_silent(task, whole, integers_of(whole))
    assert smaller is not None
    assert {site.name: site.weight.shape[0] for site in smaller.sites}["stem"] == 5


def test_names_stay_as_they_were():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    task = task_of(net)
    stored = silenced(rounded(task), "1", [0, 3])
    smaller = without_silent(task, stored, integers_of(stored))
    assert smaller is not None
    assert [site.name for site in smaller.sites] == ["1", "3"]


def test_a_layer_that_falls_silent_altogether_keeps_a_channel():
    task = task_of(Residual())
    stored = silenced(rounded(task), "hidden", list(range(12)))
    smaller = without_silent(task, stored, integers_of(stored))
    assert smaller is not None
    assert {site.name: site.weight.shape for site in smaller.sites}["hidden"][0] == 1


def test_another_order_gives_the_same_answers_in_no_more_bytes():
    from smidgen.coding import pack_many

    task = task_of(Residual())
    changed = 0
    for seed in range(6):
        stored = rounded(task, seed)
        x = torch.randn(4, 1, 4, 4)
        moved = in_order(task, stored, x)
        changed += moved is not stored
        sites, module = task.prepared.sites, task.prepared.module
        torch.testing.assert_close(answers(module, sites, dict(moved), x), answers(module, sites, stored, x))
        sizes = [len(pack_many([one.form.integers for one in each.values()])) for each in (moved, stored)]
        assert sizes[0] <= sizes[1]
    assert changed > 0
