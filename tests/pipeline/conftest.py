"""A trained network and its run without a budget, made once for all files here."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from smidgen.export.prepare import prepare
from smidgen.pipeline import compress
from tests.pipeline.pictures import Net, pictures

PREPARE = "smidgen.pipeline.task.prepare"


@pytest.fixture(scope="session")
def prepare_once():
    """`prepare`, which exports each network once and remembers."""
    done = {}

    def remembered(network, example):
        state = b"".join(v.numpy().tobytes() for v in network.module.state_dict().values())
        key = (network.name, state, tuple(example.shape), network.input_name, network.output_names)
        if key not in done:
            done[key] = prepare(network, example)
        return done[key]

    yield remembered
    for ready in done.values():
        assert not any(m._forward_hooks for m in ready.module.modules())


@pytest.fixture(autouse=True)
def _one_export_a_network(prepare_once, monkeypatch):
    """Exporting takes nine tenths of a small run: each network is exported once for all tests here."""
    monkeypatch.setattr(PREPARE, prepare_once)


@pytest.fixture(autouse=True)
def _untimed(monkeypatch):
    """Runs here do not depend on the clock; those that do time layers themselves."""
    monkeypatch.setattr("smidgen.pipeline.running.with_times", untimed)


def untimed(options, threads, progress):
    return list(options)


@pytest.fixture(scope="session")
def trained():
    torch.manual_seed(0)
    net, (x, y) = Net(), pictures()
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(25):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimiser.step()
    net.zero_grad(set_to_none=True)
    return net.train()


@pytest.fixture(scope="session")
def default(trained, prepare_once):
    before, modes = copy.deepcopy(trained.state_dict()), [m.training for m in trained.modules()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PREPARE, prepare_once)
        patch.setattr("smidgen.pipeline.running.with_times", untimed)
        result = compress(trained, pictures(), seed=1)
    assert all(torch.equal(before[k], v) for k, v in trained.state_dict().items()), "the given network was changed"
    assert [m.training for m in trained.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in trained.parameters())
    return result
