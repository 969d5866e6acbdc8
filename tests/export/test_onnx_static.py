"""Static int8: which operators compute in integers, what the runtime makes of them, and how near the answers are."""

from __future__ import annotations

import collections

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.parser import parse_model
from torch import nn

from smidgen.calibrate.ranges import Range, watch
from smidgen.data import Dataset
from smidgen.errors import DataError
from smidgen.export.onnx import fill
from smidgen.export.onnx_layout import layout, simplified
from smidgen.export.onnx_static import static
from smidgen.export.prepare import prepare
from smidgen.export.static import _Static, write_static
from smidgen.forms import Dense
from smidgen.methods import methods, roundings
from smidgen.model.load import load_network
from smidgen.planning.candidates import weights_only
from smidgen.planning.metric import metric_of
from smidgen.planning.precision import Precision
from smidgen.runtimes.onnxruntime import open_onnx
from smidgen.site import Stored


class Block(nn.Module):
    """All that static int8 treats in its own way: padding, residual sums, concatenation, strided shortcuts, means."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.second = nn.Conv2d(8, 16, 3, stride=2)
        self.side = nn.Conv2d(16, 4, 1, bias=False)
        self.hidden = nn.Linear(20, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.clamp(x + self.first(x), 0, 6)
        short = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = torch.relu(short + self.second(nn.functional.pad(x, (0, 1, 0, 1))))
        x = torch.cat([x, torch.tanh(self.side(x))], 1)
        x = nn.functional.max_pool2d(x, 2).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


@pytest.fixture(scope="module")
def ready():
    torch.manual_seed(1)
    return prepare(load_network(Block().eval()), torch.zeros(1, 3, 8, 8))


@pytest.fixture(scope="module")
def stored(ready):
    found = {}
    for site in ready.sites:
        precision = Precision(site, metric_of(site, weights_only(site)), roundings()["gptq"])
        form = (
            methods()["svd"].family(site, weights_only(site)).form(4) if site.name == "hidden" else Dense(site.weight)
        )
        found[site.name] = Stored(precision.form(form, None, 8), site.bias)
    return found


@pytest.fixture(scope="module")
def inputs():
    return np.random.default_rng(0).normal(size=(96, 3, 8, 8)).astype(np.float32)


def integers_of(model, inputs, floats=()):
    parts = layout(model, floats)
    whole = watch(model, layout(model).ranged, [inputs])
    roots = layout(model).roots
    return static(model, parts, {name: whole[roots[name]].range() for name in parts.ranged})


def run(model, x, path):
    """What the file says: a processor without VNNI saturates where the runtime fuses."""
    path.write_bytes(model.SerializeToString())
    with open_onnx(path, fused=False) as runner:
        return runner.run(x)[0]


def fused(model, folder):
    """Operators of the graph that ONNX Runtime makes."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return collections.Counter(n.op_type for n in onnx.load(folder / "optimised.onnx").graph.node)


def test_the_runtime_computes_every_layer_in_integers(ready, stored, inputs, tmp_path):
    model = simplified(fill(ready.base, ready.sites, stored, "onnx-int8"))
    made = integers_of(model, inputs)
    onnx.checker.check_model(made, full_check=True)
    ops = fused(made, tmp_path)
    assert ops["QLinearConv"] == 4
    assert ops["QGemm"] == 3  # one of the layers has two factors
    assert ops["QLinearAdd"] == 2
    assert ops["QLinearGlobalAveragePool"] == 1
    assert not {"Conv", "Gemm", "Add", "GlobalAveragePool", "ReduceMean", "Relu", "Clip"} & ops.keys()
    # tanh has no integer form: floats between integers.
    assert ops["Tanh"] == 1


def test_what_is_joined_and_read_by_nothing_else_has_the_range_of_the_join(tmp_path):
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[n, 1, 4, 4] x) => (float[n, 1, 4, 4] y)
        <int8[1, 1, 1, 1] w = {100}, float[1] s = {0.01}, float[1] t = {0.05}, int8[1, 2, 1, 1] v = {100, 50}>
        { a = DequantizeLinear<axis = 0>(w, s)  b = DequantizeLinear<axis = 0>(w, t)
          c = DequantizeLinear<axis = 0>(v, s)
          p = Conv(x, a)  q = Conv(x, b)  r = Conv(x, a)  j = Concat<axis = 1>(p, q)  k = Concat<axis = 1>(r, q)
          m = Conv(j, c)  o = Conv(k, c)  i = Add(m, o)  h = Add(i, r)  l = Relu(h)  y = Conv(l, a) }"""
    x = np.random.default_rng(0).normal(size=(4, 1, 4, 4)).astype(np.float32)
    work = _Static(parse_model(text), [x], None, 1)
    found = work.ranges("minmax")
    assert found["p"] == found["j"] == found["q"]  # q is joined twice, p once
    assert found["r"].high == pytest.approx(float(x.max()))  # something else reads it
    assert found["k"] == found["j"]
    assert found["q"].high == pytest.approx(5 * float(x.max()))


def test_answers_are_near_those_of_floats(ready, stored, inputs, tmp_path):
    model = simplified(fill(ready.base, ready.sites, stored, "onnx-int8"))
    before = run(fill(ready.base, ready.sites, stored, "onnx"), inputs, tmp_path / "f.onnx")
    after = run(integers_of(model, inputs), inputs, tmp_path / "i.onnx")
    assert np.abs(before - after).max() <= 0.05 * np.abs(before).max()
    assert np.abs(before - after).max() > 0
    assert np.abs(run(model, inputs, tmp_path / "s.onnx") - before).max() <= 1e-5


def test_padding_and_means_become_what_runtimes_have(ready, stored):
    kinds = [n.op_type for n in simplified(fill(ready.base, ready.sites, stored, "onnx-int8")).graph.node]
    assert kinds.count("Pad") == 1  # that of the channels; the other is the convolution's own now
    assert "ReduceMean" not in kinds
    assert "GlobalAveragePool" in kinds


def test_a_layer_can_stay_in_floats(ready, stored, inputs, tmp_path):
    model = simplified(fill(ready.base, ready.sites, stored, "onnx-int8"))
    first = layout(model).heavy[0]
    made = integers_of(model, inputs, floats=(first,))
    assert first not in layout(model, (first,)).heavy
    assert fused(made, tmp_path)["Conv"] == 1


def test_the_last_product_gives_floats():
    net = parse_model("""<ir_version: 8, opset_import: ["": 17]> g (float[n, 2] x) => (float[n, 2] y)
        <int8[2, 2] w = {1, 2, 3, 4}, float[2] s = {0.5, 0.25}>
        { f = DequantizeLinear<axis = 0>(w, s)  y = Gemm<transB = 1>(x, f) }""")
    parts = layout(net)
    assert parts.ranged == ("x",)
    made = static(net, parts, {"x": Range(-1.0, 1.0)})
    assert [n.op_type for n in made.graph.node].count("QuantizeLinear") == 1
    assert made.graph.node[-1].output[0] == "y"


def test_an_output_that_is_also_read_keeps_its_name(tmp_path):
    net = parse_model("""<ir_version: 8, opset_import: ["": 17]> g (float[n, 1, 2, 2] x)
            => (float[n, 1, 2, 2] y, float[n, 1, 2, 2] z)
        <int8[1, 1, 1, 1] w = {100}, float[1] s = {0.02}>
        { f = DequantizeLinear<axis = 0>(w, s)  y = Conv(x, f)  z = Tanh(y) }""")
    made = static(net, layout(net), {"x": Range(-1.0, 1.0), "y": Range(-2.0, 2.0)})
    onnx.checker.check_model(made, full_check=True)
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    x = np.linspace(-1, 1, 4, dtype=np.float32).reshape(1, 1, 2, 2)
    with open_onnx(path) as runner:
        y, z = runner.run(x)
    np.testing.assert_allclose(y, 2 * x, atol=0.02)
    np.testing.assert_allclose(z, np.tanh(2 * x), atol=0.02)


def test_a_layer_that_costs_much_goes_back_to_floats(tmp_path):
    """One hidden value a thousand times the others: eight bits of it leave the others none."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    with torch.no_grad():
        net[0].weight[0] *= 3000
        net[2].weight[:, 0] /= 3000
        net[4].weight *= 30
    prepared = prepare(load_network(net), torch.zeros(1, 16))
    stored = {}
    for site in prepared.sites:
        precision = Precision(site, metric_of(site, weights_only(site)), roundings()["gptq"])
        form = Dense(site.weight) if site.name != "2" else precision.form(Dense(site.weight), None, 8)
        stored[site.name] = Stored(precision.form(form, None, 8) if site.name != "2" else form, site.bias)
    x = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
    data, held = Dataset.from_array(x[:300]), Dataset.from_array(x[300:])
    write_static(prepared, stored, tmp_path / "whole.onnx", data, None)
    write_static(prepared, stored, tmp_path / "chosen.onnx", data, held)
    reference = run(fill(prepared.base, prepared.sites, stored, "onnx-int8"), x[300:], tmp_path / "f.onnx")
    whole, chosen = (
        np.square(run(onnx.load(tmp_path / name), x[300:], tmp_path / "r.onnx") - reference).mean()
        for name in ("whole.onnx", "chosen.onnx")
    )
    assert chosen < 0.5 * whole


def test_without_inputs_there_are_no_ranges(ready, stored, tmp_path):
    with pytest.raises(DataError, match="give --data"):
        write_static(ready, stored, tmp_path / "m.onnx", None, None)
