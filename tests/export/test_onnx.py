"""Written files: what onnxruntime answers is what torch answers, whatever form each site takes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from smidgen.errors import LoadError, OutputError, Refusal
from smidgen.export.onnx import DOMAIN, export_base, fill, write
from smidgen.export.onnx_strip import strip
from smidgen.export.prepare import prepare
from smidgen.forms import CP, Dense, LowRank
from smidgen.methods import methods
from smidgen.model.load import load_network
from smidgen.model.replace import with_forms
from smidgen.model.sites import find_sites
from smidgen.planning.candidates import weights_only
from smidgen.runtimes.onnxruntime import open_onnx
from smidgen.site import Stored, untouched


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype("f4")


def opened(model, *shape, **names):
    torch.manual_seed(0)
    example = torch.from_numpy(random(1, *shape))
    sites = find_sites(model.eval(), example)
    return sites, export_base(model, sites, example, **names)


def answers(path, x):
    with open_onnx(path) as runner:
        return runner.run(x)


def agrees(model, path, x, tolerance=1e-4):
    with torch.no_grad():
        expected = model(torch.from_numpy(x))
    expected = expected if isinstance(expected, tuple) else (expected,)
    got = answers(path, x)
    assert len(got) == len(expected)
    for want, have in zip(expected, got, strict=True):
        assert have.shape == tuple(want.shape)
        assert np.abs(want.numpy() - have).max() <= tolerance * max(1.0, float(want.abs().max()))


class Images(nn.Module):
    """Convolutions of every kind, one after another, then a head with two outputs."""

    def __init__(self):
        super().__init__()
        self.strided = nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2))
        self.grouped = nn.Conv2d(8, 12, 3, groups=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.dilated = nn.Conv2d(12, 10, 3, dilation=2, padding="same")
        self.depthwise = nn.Conv2d(10, 10, 3, groups=10)
        self.up = nn.ConvTranspose2d(10, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.plain = nn.ConvTranspose2d(6, 6, 2, bias=False)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.norm(self.grouped(self.strided(x).relu())).relu()
        x = self.plain(self.up(self.depthwise(self.dilated(x).relu())).relu())
        return self.head(x.mean((2, 3))), x


class Sounds(nn.Module):
    """1-D convolutions, dense layers over positions with and without bias, two layers that read one value."""

    def __init__(self):
        super().__init__()
        self.line = nn.Conv1d(4, 12, 5, stride=2, padding=2)
        self.left, self.right = nn.Linear(12, 16), nn.Linear(12, 16)
        self.bare = nn.Linear(16, 12, bias=False)
        self.flat = nn.Linear(12, 9, bias=False)
        self.last = nn.Linear(9, 3)

    def forward(self, x):
        x = self.line(x).relu().mT
        x = self.bare(torch.sigmoid(self.left(x)) * self.right(x))
        return self.last(self.flat(x.mean(1)).relu())


@pytest.fixture(scope="module")
def images():
    model = Images()
    with torch.no_grad():
        model.norm.running_mean.add_(0.2)
        model.norm.running_var.mul_(1.7)
    return model, *opened(model, 3, 10, 9)


@pytest.fixture(scope="module")
def sounds():
    model = Sounds()
    return model, *opened(model, 4, 14)


def dense_files(sites):
    return {site.name: untouched(site) for site in sites}


def factored(sites):
    """A form for every site that a method takes, a bias of its own kept."""
    stored, forms = dense_files(sites), set()
    for i, site in enumerate(sites):
        for name in ("cp", "svd") if i % 2 else ("svd", "cp"):
            try:
                family = methods()[name].with_settings(**({"points": 3} if name == "cp" else {"factors": 2 + i % 2}))
                offered = family.family(site, weights_only(site))
            except Refusal:
                continue
            stored[site.name] = Stored(offered.form(offered.ranks[len(offered.ranks) // 2]), site.bias)
            forms.add(name)
            break
    assert forms
    return stored


def test_every_layer_with_a_weight_is_open(images, sounds):
    for _, sites, base in (images, sounds):
        assert base.sites == {site.name for site in sites}
        assert base.dynamic_batch
        assert sum(node.domain == DOMAIN for node in base.proto.graph.node) == len(sites)


@pytest.mark.parametrize("form", ["dense", "factored"])
@pytest.mark.parametrize("which", ["images", "sounds"])
def test_the_file_answers_as_the_network(which, form, request, tmp_path):
    model, sites, base = request.getfixturevalue(which)
    stored = dense_files(sites) if form == "dense" else factored(sites)
    nbytes = write(base, sites, stored, tmp_path / "m.onnx")
    assert nbytes == (tmp_path / "m.onnx").stat().st_size
    smaller = with_forms(model, sites, stored)
    shape = {"images": (3, 10, 9), "sounds": (4, 14)}[which]
    for batch in (1, 2, 5):
        agrees(smaller, tmp_path / "m.onnx", random(batch, *shape, seed=batch))
    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"), full_check=True)


def test_two_layers_that_read_the_same_value_stay_two(sounds, tmp_path):
    """The optimiser once merged them: same operator, same input, same attributes."""
    _, sites, base = sounds
    changed = {site.name: site for site in sites}
    stored = dense_files(sites)
    stored["right"] = Stored(Dense(0 * changed["right"].weight), changed["right"].bias)
    write(base, sites, stored, tmp_path / "m.onnx")
    write(base, sites, dense_files(sites), tmp_path / "n.onnx")
    x = random(2, 4, 14)
    assert np.abs(answers(tmp_path / "m.onnx", x)[0] - answers(tmp_path / "n.onnx", x)[0]).max() > 1e-4


def test_forms_by_hand(images, tmp_path):
    model, sites, base = images
    at = {site.name: site for site in sites}
    stored = dense_files(sites)
    stored["grouped"] = Stored(
        LowRank(Dense(random(4, 4, 3, 3)), Dense(random(12, 2)), Dense(random(4, 2)), groups=2), None
    )
    bank = (Dense(random(5, 3)), Dense(random(5, 3, seed=1)))
    stored["dilated"] = Stored(CP(Dense(random(5, 12)), bank, Dense(random(10, 5))), at["dilated"].bias)
    write(base, sites, stored, tmp_path / "m.onnx")
    agrees(with_forms(model, sites, stored), tmp_path / "m.onnx", random(3, 3, 10, 9))
    kinds = [n.op_type for n in onnx.load(tmp_path / "m.onnx").graph.node]
    assert kinds.count("Conv") == 1 + 3 + 4 + 1


def test_a_folded_norm_leaves_no_trace_in_the_file(tmp_path):
    model = Images()
    ready = prepare(load_network(model), torch.zeros(1, 3, 10, 9))
    write(ready.base, ready.sites, dense_files(ready.sites), tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    agrees(model.eval(), tmp_path / "m.onnx", random(2, 3, 10, 9))
    assert not any(site.refusal for site in ready.sites)


def test_shared_weights_are_written_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.c(self.c.weight.sum() + self.b(self.a(x).relu()))

    model = Tied()
    sites, base = opened(model, 24)
    assert base.sites == frozenset()
    nbytes = write(base, sites, {}, tmp_path / "m.onnx")
    agrees(model, tmp_path / "m.onnx", random(2, 24))
    assert nbytes < 4 * (24 * 24 + 24 * 3 + 24 + 24 + 3) + 1000


def test_a_bias_that_another_layer_shares_stays_with_it(tmp_path):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Conv1d(8, 8, 1)
            self.b.bias = self.c.bias = self.a.bias

        def forward(self, x):
            y = self.a(x).relu()
            return self.c((self.b(y) * self.b.weight.sum())[:, :, None])

    model = Shared()
    sites, base = opened(model, 8)
    assert base.sites == {"a", "c"}
    assert {site.name for site in sites if site.refusal} == {"b"}
    for stored in (dense_files(sites), {**dense_files(sites), "a": Stored(Dense(random(8, 8)), random(8))}):
        write(base, sites, stored, tmp_path / "m.onnx")
        agrees(with_forms(model, sites, stored), tmp_path / "m.onnx", random(2, 8))
        onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"), full_check=True)


def test_names_of_inputs_and_outputs_are_kept_and_nothing_else(tmp_path):
    sites, base = opened(Images(), 3, 10, 9, input_name="picture", output_names=("scores", "map"))
    write(base, sites, dense_files(sites), tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx")
    assert [v.name for v in proto.graph.input] == ["picture"]
    assert [v.name for v in proto.graph.output] == ["scores", "map"]
    assert not proto.metadata_props
    assert not proto.producer_name
    assert not proto.graph.value_info
    for node in proto.graph.node:
        assert not node.name
        assert not node.doc_string
        assert not node.metadata_props
    weights = {t.name for t in proto.graph.initializer}
    between = {name for node in proto.graph.node for name in node.output} - {"scores", "map"}
    assert max(map(len, between)) <= 2
    assert "head.weight" in weights


@pytest.mark.filterwarnings("ignore")  # of torch's own exporter
def test_it_is_never_larger_than_the_export_of_torch(tmp_path):
    model = Sounds().eval()
    sites, base = opened(model, 4, 14)
    ours = write(base, sites, dense_files(sites), tmp_path / "m.onnx")
    program = torch.onnx.export(
        model, (torch.zeros(2, 4, 14),), dynamo=True, external_data=False, optimize=True, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    assert ours < len(program.model_proto.SerializeToString())


def test_the_same_forms_give_the_same_bytes(sounds, tmp_path):
    _, sites, base = sounds
    before = base.proto.SerializeToString()
    for name in ("a", "b"):
        write(base, sites, factored(sites), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert base.proto.SerializeToString() == before, "the base serves every plan"


def test_a_file_is_replaced_whole_or_not_at_all(sounds, tmp_path, monkeypatch):
    _, sites, base = sounds
    path = tmp_path / "m.onnx"
    path.write_text("what was there")

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write(base, sites, dense_files(sites), path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert path.read_text() == "what was there"


@pytest.mark.parametrize("place", ["missing/m.onnx", "file/m.onnx", "folder"])
def test_a_place_that_cannot_be_written_is_told(sounds, tmp_path, place):
    _, sites, base = sounds
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="cannot write") as caught:
        write(base, sites, dense_files(sites), tmp_path / place)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_torch_cannot_export_is_told_in_one_line():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else self.layer(-x)

    with pytest.raises(LoadError, match="torch cannot export this network") as caught:
        opened(Branch(), 3)
    assert "\n" not in str(caught.value)


def test_stripping_drops_what_nothing_reads():
    helper = onnx.helper
    node = helper.make_node("Add", ["x", "w"], ["a long name"], name="n", doc_string="d")
    dead = helper.make_node("Mul", ["x", "unused"], ["nothing"])
    last = helper.make_node("Relu", ["a long name"], ["y"])
    value = lambda name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 2])  # noqa: E731
    tensors = [onnx.numpy_helper.from_array(np.ones(2, "f4"), name) for name in ("w", "unused")]
    proto = helper.make_model(helper.make_graph([node, dead, last], "graph", [value("x")], [value("y")], tensors))
    before = proto.SerializeToString()
    small = strip(proto)
    assert proto.SerializeToString() == before
    assert [n.op_type for n in small.graph.node] == ["Add", "Relu"]
    assert [t.name for t in small.graph.initializer] == ["w"]
    assert small.graph.node[0].output[0] == "a"
    onnx.checker.check_model(small)


def test_fill_leaves_no_placeholder(sounds):
    _, sites, base = sounds
    proto = fill(base, sites, dense_files(sites))
    assert {node.domain for node in proto.graph.node} == {""}
    assert {entry.domain for entry in proto.opset_import} == {""}


@pytest.mark.parametrize("name", ["linear_1", "linear", "relu", "a", "0.weight", "output"])
def test_names_that_torch_would_take_too(name, tmp_path):
    """Torch renames the output without looking: a value in between once had the same name."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Linear(4, 3))
    sites, base = opened(model, 6, input_name="val_0", output_names=(name,))
    write(base, sites, dense_files(sites), tmp_path / "m.onnx")
    agrees(model, tmp_path / "m.onnx", random(3, 6))
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert ([v.name for v in graph.input], [v.name for v in graph.output]) == (["val_0"], [name])
