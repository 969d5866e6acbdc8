"""Folded norms leave the exported graph without a second export, which takes most of the time of a small run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from smidgen.export.onnx import export_base, write
from smidgen.export.prepare import prepare
from smidgen.forms import Dense, LowRank
from smidgen.model.load import load_network
from smidgen.model.replace import with_forms
from smidgen.runtimes.onnxruntime import open_onnx
from smidgen.site import Stored, untouched

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Residual(nn.Module):
    """Convolutions with and without bias, in groups, a norm over a sum that stays, and a dense head with one."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.wide, self.wide_norm = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)
        self.late_norm = nn.BatchNorm2d(8)
        self.hidden, self.hidden_norm = nn.Linear(8, 12, bias=False), nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.stem_norm(self.stem(x)).relu()
        x = self.late_norm(x + self.wide_norm(self.wide(x))).relu()
        return self.head(self.hidden_norm(self.hidden(x.mean((2, 3)))).relu())


class Line(nn.Module):
    """Two norms of equal weights, the last one the output itself."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 6, 3, bias=False), nn.BatchNorm1d(6)
        )

    def forward(self, x):
        return self.layers(x)


def lively(model):
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, NORMS):
                for value in (m.weight, m.bias, m.running_mean):
                    value.copy_(torch.randn(value.shape, generator=noise))
                m.running_var.copy_(torch.rand(m.bias.shape, generator=noise) + 0.05)
    return model.eval()


CASES = [(Residual, (3, 6, 6), 1), (Line, (3, 12), 0)]


@pytest.mark.parametrize(("build", "shape", "left"), CASES)
@pytest.mark.parametrize("live", [True, False])
def test_one_export_gives_the_folded_network(build, shape, left, live, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = build().eval()
    model = lively(model) if live else model
    calls, export = [], torch.onnx.export
    monkeypatch.setattr("torch.onnx.export", lambda *args, **kwargs: calls.append(1) or export(*args, **kwargs))
    ready = prepare(replace(load_network(model), output_names=("y",)), torch.zeros(1, *shape))
    assert len(calls) == 1
    path = tmp_path / "m.onnx"
    nbytes = write(ready.base, ready.sites, {s.name: untouched(s) for s in ready.sites}, path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    graph = onnx.load(path).graph
    assert [node.op_type for node in graph.node].count("BatchNormalization") == left
    again = export_base(ready.module, ready.sites, torch.zeros(1, *shape), output_names=("y",))
    assert nbytes == write(again, ready.sites, {s.name: untouched(s) for s in ready.sites}, tmp_path / "again.onnx")
    for batch in (1, 3):
        x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad(), open_onnx(path) as runner:
            answer = runner.run(x.numpy())[0]
            for expected in (ready.module(x), model(x)):
                assert np.abs(expected.numpy() - answer).max() <= 1e-5 * max(1.0, float(expected.abs().max()))


def test_a_form_gets_the_bias_that_folding_made(tmp_path):
    """A convolution and a dense layer without bias have one afterwards, whatever form they take."""
    model = lively(Residual())
    ready = prepare(load_network(model), torch.zeros(1, 3, 6, 6))
    sites = {site.name: site for site in ready.sites}
    rng = np.random.default_rng(0)

    def leaf(*shape):
        return Dense(rng.normal(size=shape).astype("f4"))

    stored = {name: untouched(site) for name, site in sites.items()}
    assert sites["stem"].bias is not None
    stored["stem"] = Stored(LowRank(leaf(2, 3, 3, 3), leaf(8, 2)), sites["stem"].bias)
    stored["hidden"] = Stored(LowRank(leaf(3, 8), leaf(12, 3)), sites["hidden"].bias)
    write(ready.base, ready.sites, stored, tmp_path / "m.onnx")
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), open_onnx(tmp_path / "m.onnx") as runner:
        expected = with_forms(ready.module, ready.sites, stored)(x).numpy()
        assert np.abs(expected - runner.run(x.numpy())[0]).max() <= 1e-4 * np.abs(expected).max()
