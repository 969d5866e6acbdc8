"""compress() and apply() end to end on small networks: every kind of budget, and what a run leaves behind."""

from __future__ import annotations

import copy
import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import smidgen
from smidgen import Budget
from smidgen.data import split_roles
from smidgen.errors import BudgetError, DataError, LoadError, OutputError, PlanError, UserError
from smidgen.pipeline import apply, compress
from smidgen.pipeline.task import data_hash
from smidgen.runtimes.onnxruntime import open_onnx

CLASSES = 4


class Net(nn.Module):
    """A user's class, with BatchNorm and a bias-free convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.body = nn.Conv2d(12, 24, 3, stride=2, padding=1)
        self.hidden = nn.Linear(24 * 16, 48)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, x):
        x = self.body(self.norm(self.stem(x)).relu()).relu()
        return self.head(self.hidden(x.flatten(1)).relu())


def pictures(n=160, seed=0):
    """Images of four kinds, told apart by which quarter is bright."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % CLASSES
    x = 0.3 * rng.normal(size=(n, 2, 8, 8)).astype("f4")
    for i, k in enumerate(y):
        x[i, :, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 0.7
    return x, y.astype("i8")


@pytest.fixture(scope="module", autouse=True)
def _one_export_a_network():
    """Exporting takes nine tenths of a small run: each network is exported once for all tests here."""
    from smidgen.export.prepare import prepare

    done = {}

    def remembered(network, example):
        state = b"".join(v.numpy().tobytes() for v in network.module.state_dict().values())
        key = (network.name, state, tuple(example.shape), network.input_name, network.output_names)
        if key not in done:
            done[key] = prepare(network, example)
        return done[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smidgen.pipeline.task.prepare", remembered)
        yield
    for ready in done.values():
        assert not any(m._forward_hooks for m in ready.module.modules())


@pytest.fixture(scope="module")
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


def nbytes(result):
    return result.record["files"]["onnx"]["nbytes"]


@pytest.fixture(scope="module")
def default(trained):
    before, modes = copy.deepcopy(trained.state_dict()), [m.training for m in trained.modules()]
    result = compress(trained, pictures(), seed=1)
    assert all(torch.equal(before[k], v) for k, v in trained.state_dict().items()), "the given network was changed"
    assert [m.training for m in trained.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in trained.parameters())
    return result


def test_with_no_budget_it_agrees_on_99_of_100_and_is_smaller(default):
    assert default.met
    assert nbytes(default) < 0.5 * default.record["original"]["nbytes"]
    assert all(trial["points"] is not None for trial in default.record["trials"])
    assert default.record["files"]["onnx"]["agreement"] >= 0.9


def test_the_record_has_every_field_of_the_promise(default):
    record = default.record
    assert {
        "mode", "seed", "seconds", "peak_rss_bytes", "original", "files", "schema_version", "target", "versions",
        "threads", "data", "layers",
    } <= set(record)  # fmt: skip
    assert (record["mode"], record["seed"], record["target"]) == ("calibration", 1, "onnx")
    assert record["seconds"] > 0
    assert record["peak_rss_bytes"] > 10**7
    for entry in (record["original"], record["files"]["onnx"]):
        for name in (
            "path",
            "nbytes",
            "params",
            "macs",
            "accuracy",
            "roc_auc",
            "agreement",
            "kl",
            "top5",
            "latency_ms",
        ):
            assert name in entry
            assert entry[name] is not None or entry["why"][name], name
        assert 0 <= entry["accuracy"] <= 1
    assert record["original"]["accuracy"] > 0.9
    for role in ("calibration", "selection", "test"):
        assert record["data"][role]["count"] > 0
        assert record["data"][role]["sha256"]
    assert sum(record["data"][role]["count"] for role in ("calibration", "selection", "test")) <= 160
    for layer in record["layers"]:
        assert {"name", "form", "rank", "nbytes_before", "nbytes_after", "predicted_loss", "reason"} <= set(layer)
        assert (layer["rank"] is None) == (layer["form"] == "dense")
        assert layer["form"] != "dense" or layer["reason"]
    assert [layer["name"] for layer in record["layers"]] == ["stem", "body", "hidden", "head"]
    json.dumps(record, allow_nan=False)


def test_the_written_file_is_what_was_measured(default):
    entry, path = default.record["files"]["onnx"], default.files["onnx"]
    assert path.stat().st_size == entry["nbytes"]
    weights = sum(int(np.prod(t.dims)) for t in onnx.load(path).graph.initializer if t.data_type == 1)
    assert weights == entry["params"] == sum(p.numel() for p in default.model.parameters())
    x, _ = pictures(7, seed=5)
    with open_onnx(path) as runner, torch.no_grad():
        assert np.allclose(runner.run(x)[0], default.model(torch.from_numpy(x)).numpy(), atol=1e-3)


def test_saving_writes_five_files(default, tmp_path):
    out = default.save(tmp_path / "new" / "out")
    assert sorted(p.name for p in out.iterdir()) == [
        "model.onnx",
        "model.safetensors",
        "model.smidgen",
        "plan.json",
        "result.json",
    ]
    assert (out / "model.onnx").stat().st_size == nbytes(default)
    stored = json.loads((out / "result.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert stored["layers"] == default.record["layers"]
    default.save(out)
    assert len(list(out.iterdir())) == 5, "saving again replaces"


def test_a_saved_network_is_rebuilt_by_the_users_class_and_trains(default, tmp_path):
    out = default.save(tmp_path)
    again = smidgen.rebuild_network(Net(), out / "model.safetensors").eval()
    x, y = (torch.from_numpy(part) for part in pictures(16, seed=5))
    assert torch.equal(again(x), default.model(x))
    nn.functional.cross_entropy(again.train()(x), y).backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in again.parameters())


def test_a_folder_that_cannot_be_written_is_told(default, tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputError, match="cannot write") as caught:
            default.save(place)
        assert "\n" not in str(caught.value)


def test_a_save_that_fails_leaves_nothing_half_written(default, tmp_path, monkeypatch):
    def full(source, target):
        with open(target, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OutputError, match="No space left"):
        default.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_plan_replayed_gives_the_same_file(default, trained, tmp_path):
    out = default.save(tmp_path)
    again = apply(trained, (out / "plan.json").read_text(), pictures())
    assert next(iter(again.files.values())).read_bytes() == (out / "model.onnx").read_bytes()
    assert again.plan == default.plan
    assert again.record["layers"] == default.record["layers"]
    assert (again.record["seed"], again.record["budget"]["note"]) == (1, "")


def test_a_plan_tells_what_it_was_made_with(default, trained):
    plan = json.loads(default.plan.to_json())
    assert (plan["version"], plan["target"], plan["seed"], plan["refit"]) == (3, "onnx", 1, True)
    assert len(plan["data"]) == 16
    bare = compress(trained, example=torch.zeros(1, 2, 8, 8), budget=Budget(tradeoff=0.8), refit=False, seed=2)
    assert (bare.plan.seed, bare.plan.refit, bare.plan.data) == (2, False, None)


def test_what_differs_from_the_run_that_made_a_plan_is_noted(default, trained):
    plan, x = default.plan.to_json(), torch.zeros(1, 2, 8, 8)

    def note(*args, **kwargs):
        result = apply(trained, plan, *args, **kwargs)
        json.loads(result.plan.to_json())
        return result.record["budget"]["note"], result.plan

    told, made = note(pictures(seed=4))
    assert told == "the calibration data differ from those the plan was made with"
    assert made.data not in (None, default.plan.data)
    assert note(example=x)[0] == "the plan was made with data, none are given"
    told, made = note(pictures(), seed=5, refit=False)
    assert (made.seed, made.refit) == (5, False)
    assert told == "the plan was made with seed 1, which also divides the data; the plan was made with refit"
    plan = edited(plan, "data", to=None)
    assert note(pictures())[0] == "the plan was made without data"


def test_the_same_pixels_read_otherwise_are_other_data(tmp_path):
    np.savez(tmp_path / "set.npz", x=np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8))
    opened = [smidgen.open_data(tmp_path / "set.npz", preprocess=smidgen.Preprocess(scale=s)) for s in ("1/255", "1")]
    first, second = (data_hash(split_roles(data)) for data in opened)
    assert first != second
    assert first == data_hash(split_roles(opened[0]))


def test_the_same_seed_gives_the_same_bytes(monkeypatch):
    from smidgen.export.prepare import prepare

    monkeypatch.setattr("smidgen.pipeline.task.prepare", prepare)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 4))
    x = np.random.default_rng(0).normal(size=(60, 16)).astype("f4")
    first, second = (compress(net, x, budget=Budget(tradeoff=0.4), seed=3) for _ in range(2))
    assert next(iter(first.files.values())).read_bytes() == next(iter(second.files.values())).read_bytes()
    assert first.plan == second.plan


@pytest.mark.parametrize("budget", [Budget(size=20_000), Budget(ratio=5)])
def test_a_size_is_kept_by_the_written_file(trained, budget):
    result = compress(trained, pictures(), budget=budget)
    limit = budget.nbytes or result.record["original"]["nbytes"] / 5
    assert result.met
    assert 0.8 * limit < nbytes(result) <= limit, "and most of it is used"
    assert next(iter(result.files.values())).stat().st_size == nbytes(result)


def test_a_size_out_of_reach_keeps_the_best_and_says_so(trained):
    result = compress(trained, pictures(), budget=Budget(size=100))
    assert not result.met
    budget = result.record["budget"]
    assert budget["met"] is False
    assert str(nbytes(result)) in budget["note"]
    assert "100" in budget["note"]
    json.dumps(result.record, allow_nan=False)
    result.plan.to_json()


def test_max_drop_is_kept_on_the_selection(trained):
    result = compress(trained, pictures(), budget=Budget(max_drop=5))
    assert result.met
    kept = [t for t in result.record["trials"] if t["nbytes"] == nbytes(result)]
    assert any(t["points"] + t["error"] <= 5 for t in kept)
    assert all(t["nbytes"] >= nbytes(result) for t in result.record["trials"] if t["points"] + t["error"] <= 5)


def test_a_selection_too_small_for_any_loss_keeps_what_changes_no_answer(trained):
    """One answer of six weighs 17 points: only a plan that changes none keeps the promise, and one always does."""
    x, y = pictures(30)
    result = compress(trained, (x, y), budget=Budget(max_drop=0.5))
    assert result.met
    assert result.record["data"]["selection"]["count"] == 6
    (kept,) = [t for t in result.record["trials"] if t["nbytes"] == nbytes(result)]
    assert (kept["points"], kept["error"]) == (0.0, 0.0)


def test_bytes_fall_along_the_dial_and_the_ends_are_the_ends(trained):
    results = [compress(trained, pictures(), budget=Budget(tradeoff=t)) for t in (0.0, 0.5, 1.0)]
    sizes = [nbytes(r) for r in results]
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[0] <= results[0].record["original"]["nbytes"]
    assert results[0].record["files"]["onnx"]["kl"] < 1e-6
    assert results[2].plan.key != results[1].plan.key
    for result in results:
        json.loads(result.plan.to_json(), parse_constant=lambda name: pytest.fail(f"{name} in plan.json"))


def test_without_data(trained):
    result = compress(trained, example=torch.zeros(1, 2, 8, 8), budget=Budget(tradeoff=0.8))
    assert result.record["mode"] == "no data"
    assert nbytes(result) < result.record["original"]["nbytes"]
    for name in ("accuracy", "agreement", "kl"):
        assert result.record["files"]["onnx"][name] is None
        assert result.record["files"]["onnx"]["why"][name]
    assert result.record["data"] == {"calibration": None, "selection": None, "test": None}
    with pytest.raises(BudgetError, match="max_drop needs inputs"):
        compress(trained, example=torch.zeros(1, 2, 8, 8), budget=Budget(max_drop=1))
    with pytest.raises(DataError, match="input shape is not known"):
        compress(trained)


def test_a_test_set_alone_is_only_for_scoring(trained):
    result = compress(trained, test=pictures(40, seed=9), budget=Budget(ratio=3))
    assert result.record["mode"] == "no data"
    assert result.record["files"]["onnx"]["accuracy"] is not None
    assert result.record["data"]["test"]["count"] == 40


def test_a_given_test_set_is_the_test(trained):
    result = compress(trained, pictures(), test=pictures(40, seed=9), budget=Budget(tradeoff=0.3))
    assert result.record["data"]["test"]["count"] == 40
    assert result.record["data"]["calibration"]["count"] + result.record["data"]["selection"]["count"] == 160


def test_a_metric_of_ones_own_replaces_accuracy(trained):
    calls = []

    def never_the_last_class(outputs, labels):
        calls.append(len(labels))
        return float((outputs[0] if isinstance(outputs, (tuple, list)) else outputs)[:, :-1].max(1).mean())

    result = compress(trained, pictures(), budget=Budget(tradeoff=0.3), metric=never_the_last_class)
    assert calls
    assert result.record["files"]["onnx"]["metric_name"] == "never_the_last_class"
    assert result.record["files"]["onnx"]["loss_metric"] not in ("accuracy", "agreement")


def test_methods_can_be_chosen_by_kind(trained):
    result = compress(trained, pictures(), budget=Budget(tradeoff=1.0), methods={"conv": ["cp"], "linear": ["svd"]})
    forms = {layer["name"]: layer["method"] for layer in result.record["layers"]}
    assert {forms["stem"], forms["body"]} <= {"cp", None}
    assert forms["hidden"] == "svd"
    with pytest.raises(PlanError, match="no method 'cq'"):
        compress(trained, pictures(), methods="cq")


def test_without_labels_agreement_is_what_may_drop(trained):
    result = compress(trained, pictures()[0], budget=Budget(max_drop=2))
    assert result.met
    assert result.record["files"]["onnx"]["accuracy"] is None
    assert result.record["files"]["onnx"]["agreement"] is not None
    assert result.record["files"]["onnx"]["loss_metric"] == "agreement"


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.boxes, self.scores = nn.Linear(20, 64), nn.Linear(64, 8), nn.Linear(64, 3)

    def forward(self, x):
        y = self.body(x).relu()
        return self.boxes(y), self.scores(y).softmax(1)


def test_several_outputs_are_judged_by_their_error():
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(80, 20)).astype("f4")
    result = compress(TwoHeads(), x, budget=Budget(tradeoff=0.4))
    entry = result.record["files"]["onnx"]
    assert entry["accuracy"] is None
    assert len(entry["output_error"]) == 2
    assert entry["loss_points"] is not None
    assert [y.shape for y in result.model(torch.from_numpy(x[:2]))] == [(2, 8), (2, 3)]


def test_an_onnx_file_goes_in(default, trained, tmp_path):
    """What smidgen wrote is read again, and a file is never made larger."""
    path = default.save(tmp_path) / "model.onnx"
    result = compress(path, pictures(), budget=Budget(tradeoff=0.0))
    assert nbytes(result) <= path.stat().st_size
    assert result.record["original"]["nbytes"] == path.stat().st_size


def test_a_lean_original_is_kept_rather_than_outgrown(tmp_path):
    """Weights in half precision: our float file would be larger, compressed or not."""
    helper, rng, kind = onnx.helper, np.random.default_rng(0), onnx.TensorProto
    nodes, tensors, value = [], [], "x"
    for i in range(2):
        tensors.append(onnx.numpy_helper.from_array((rng.normal(size=(64, 64)) / 8).astype("f2"), f"w{i}"))
        nodes.append(helper.make_node("Cast", [f"w{i}"], [f"c{i}"], to=kind.FLOAT))
        nodes.append(helper.make_node("MatMul", [value, f"c{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [f"r{i}"]))
        value = f"r{i}"
    ends = [helper.make_tensor_value_info(name, kind.FLOAT, ["n", 64]) for name in ("x", value)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    path = tmp_path / "half.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    x = rng.normal(size=(60, 64)).astype("f4")
    result = compress(path, x, budget=Budget(tradeoff=0.2))
    assert nbytes(result) <= path.stat().st_size
    assert "original is kept" in result.record["budget"]["note"]
    assert {layer["form"] for layer in result.record["layers"]} == {"dense"}
    with open_onnx(next(iter(result.files.values()))) as runner, torch.no_grad():
        assert np.allclose(runner.run(x)[0], result.model(torch.from_numpy(x)).numpy(), atol=1e-3)


def edited(text, *path, to):
    entries = json.loads(text)
    place = entries
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return json.dumps(entries)


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("choices", 2, "method"), "cp"),
        (("choices", 2, "rank"), 10**6),
        (("choices", 2, "loss"), "much"),
        (("choices", 2, "nbytes"), None),
        (("settings", "svd"), 3),
        (("settings", "svd", "factors"), "two"),
        (("settings", "svd", "damp"), -1.0),
        (("price",), "cheap"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else repr(value),
)
def test_a_plan_edited_into_nonsense_is_refused_in_one_line(default, trained, path, to):
    with pytest.raises(UserError) as caught:
        apply(trained, edited(default.plan.to_json(), *path, to=to), pictures(), seed=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.random.default_rng(0).random((20, 3, 8, 8), "f4"), "cannot run on an input of shape"),
        (np.full((20, 2, 8, 8), np.nan, "f4"), "NaN"),
        (np.zeros((1, 2, 8, 8), "f4"), "too few"),
        ((pictures(20)[0], np.full(20, 9)), "label"),
        ([], "no "),
    ],
    ids=["shape", "nan", "one image", "label out of range", "empty"],
)
def test_data_that_does_not_fit_is_told_in_one_line(trained, data, words):
    with pytest.raises((DataError, LoadError), match=words) as caught:
        compress(trained, data)
    assert "\n" not in str(caught.value)


def test_networks_with_nothing_to_compress_come_back_whole():
    result = compress(nn.Sequential(nn.Linear(3, 2)), np.random.default_rng(0).normal(size=(30, 3)).astype("f4"))
    assert [layer["form"] for layer in result.record["layers"]] == ["dense"]
    assert result.record["layers"][0]["reason"]
    assert nbytes(result) <= result.record["original"]["nbytes"]


class Answers(nn.Module):
    """A network that answers in a way of its own."""

    def __init__(self, way):
        super().__init__()
        self.body, self.head, self.way = nn.Linear(30, 40), nn.Linear(40, 20), way

    def forward(self, x):
        return self.way(self.head(self.body(x).relu()))


@pytest.mark.parametrize(
    ("way", "words"),
    [
        (lambda y: {"scores": y}, "returns a value of type dict; make forward return a tensor"),
        (lambda y: (y, (y, y)), "returns a value of type tuple in a tuple; "),
        (lambda y: [y, None], "returns a value of type NoneType in a list; "),
        (lambda y: (), "returns nothing; "),
        (lambda y: y.argmax(1), "no output has a gradient .*; return the scores, or leave the data out"),
        (lambda y: y.argmax(1, keepdim=True), "no output has a gradient"),
    ],
    ids=["dict", "nested", "none", "empty", "class numbers", "class numbers in a column"],
)
def test_answers_that_cannot_be_calibrated_are_told_in_one_line(way, words):
    x = np.random.default_rng(0).normal(size=(40, 30)).astype("f4")
    for data in (x, (x, np.arange(40) % 20)):
        with pytest.raises(LoadError, match=words) as caught:
            compress(Answers(way), data)
        assert "\n" not in str(caught.value)


def test_class_numbers_are_enough_without_data():
    torch.manual_seed(0)
    result = compress(Answers(lambda y: y.argmax(1)), example=torch.zeros(1, 30), budget=Budget(ratio=2))
    assert result.met
    assert result.model(torch.zeros(3, 30)).shape == (3,)


def test_a_single_layer_is_a_network_too(tmp_path):
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    result = compress(layer, torch.randn(60, 64), budget=Budget(ratio=2))
    assert result.met
    assert [(entry["name"], entry["form"]) for entry in result.record["layers"]] == [("0", "low-rank")]
    x = torch.randn(3, 64)
    again = smidgen.rebuild_network(layer, result.save(tmp_path) / "model.safetensors")
    assert torch.equal(again(x), result.model(x))
    assert isinstance(layer, nn.Linear)
