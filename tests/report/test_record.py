"""The record: its fields and their types, numbers that are known beforehand, and a reason for every null."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf

import numpy as np
import onnx
import pytest

from smidgen.budget import Budget
from smidgen.data import Dataset, split_roles
from smidgen.forms import Geometry
from smidgen.measure.memory import UNKNOWN
from smidgen.methods import methods
from smidgen.planning.candidates import gather
from smidgen.planning.plan import Choice, Plan
from smidgen.planning.search import Outcome, Trial
from smidgen.report.record import SCORED, layers, measure_files, measured_loss, record, versions
from smidgen.report.table import to_text
from smidgen.site import Site

WEIGHT = np.random.default_rng(0).normal(size=(4, 16)).astype("f4")
X = np.random.default_rng(1).normal(size=(30, 16)).astype("f4")
LABELS = (X @ WEIGHT.T).argmax(1)  # what the original answers: all of them right


def written(path, weight):
    """A file that multiplies by a weight."""
    h, kind = onnx.helper, onnx.TensorProto.FLOAT
    x, y = (h.make_tensor_value_info(name, kind, ["n", size]) for name, size in (("x", 16), ("y", len(weight))))
    tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(weight.T), "w")
    graph = h.make_graph([h.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return {"original": written(folder / "net.onnx", WEIGHT), "onnx": written(folder / "model.onnx", -WEIGHT)}


def measured(paths, test, metric=None):
    return measure_files(paths, test, metric, X[:1], 1)


@pytest.fixture(scope="module")
def labelled(paths):
    return measured(paths, Dataset.from_array(X, LABELS))


@pytest.fixture(scope="module")
def unscored(paths):
    return measured(paths, None)


def test_a_file_is_measured(paths, labelled):
    original, file = labelled["original"], labelled["onnx"]
    for name, entry in labelled.items():
        assert entry["path"] == paths[name].name, "no folder of this machine in a report"
        assert entry["nbytes"] == paths[name].stat().st_size
        assert (entry["params"], entry["macs"]) == (64, 64)
        low, high = entry["latency_quartiles_ms"]
        assert 0 < low <= entry["latency_ms"] <= high
        assert entry["speedup"] > 0
    wrong = np.mean((X @ -WEIGHT.T).argmax(1) != LABELS)
    assert (original["accuracy"], file["accuracy"], file["agreement"]) == (1.0, 1 - wrong, 1 - wrong)
    assert file["loss_points"] == pytest.approx(100 * wrong)
    assert file["loss_interval"][0] <= file["loss_points"] <= file["loss_interval"][1]
    assert file["loss_metric"] == original["loss_metric"] == "accuracy"
    assert file["kl"] > 0


def test_every_null_of_a_file_has_its_reason(labelled, unscored, paths):
    unlabelled = measured(paths, Dataset.from_array(X))
    for files in (labelled, unscored, unlabelled):
        for entry in files.values():
            for name in SCORED:
                if entry[name] is None and name != "metric":
                    assert entry["why"][name], name
                else:
                    assert name not in entry["why"] or name == "metric"
    assert labelled["original"]["why"]["agreement"] == "nothing to compare with"
    assert labelled["original"]["why"]["loss_points"] == "it is the original"
    assert labelled["onnx"]["why"]["roc_auc"] == "needs two classes, the network has 4"
    assert "label" in unlabelled["onnx"]["why"]["accuracy"]
    assert unlabelled["onnx"]["loss_metric"] == "agreement"
    assert set(unscored["onnx"]["why"]) == set(SCORED)
    assert set(unscored["onnx"]["why"].values()) == {"no data to score on"}
    assert unscored["onnx"]["loss_points"] is None
    assert unscored["onnx"]["loss_interval"] is None


def test_a_metric_of_ones_own(paths):
    def first_class(outputs, labels):
        return float((outputs[0] if isinstance(outputs, tuple) else outputs).argmax(1).mean())

    file = measured(paths, Dataset.from_array(X, LABELS), first_class)["onnx"]
    assert file["metric_name"] == file["loss_metric"] == "first_class"
    assert file["metric"] == pytest.approx((X @ -WEIGHT.T).argmax(1).mean())
    assert file["accuracy"] is None
    assert "first_class" in file["why"]["accuracy"]


SITES = [
    Site("body", Geometry("linear", 30, 20), np.ones((20, 30), "f4")),
    Site("head", Geometry("linear", 20, 4), np.ones((4, 20), "f4")),
    Site("odd", Geometry("linear", 4, 4), np.ones((4, 4), "f4"), refusal="runs 2 times in one forward pass"),
]
PLAN = Plan(
    (
        Choice("body", "svd", 3, 0.25, 720),
        Choice("head", None, None, 0.0, 380, "dense is best at this price"),
        Choice("odd", None, None, 0.0, 124, "runs 2 times in one forward pass"),
    ),
    inf, "0" * 16, {"svd": {"factors": 2, "damp": 0.01}},
)  # fmt: skip


@pytest.fixture(scope="module")
def options():
    return gather(SITES, {}, {"svd": methods()["svd"]})


def made(files, options, *, budget=None, roles=None, test=None, met=True, note=""):
    trials = (Trial(PLAN, 2000, 0.5, error=0.25), Trial(Plan(PLAN.choices, 1e-7, PLAN.network, {}), 1500, None))
    return record(
        files, outcome=Outcome(trials[0], met, trials, note), budget=budget or Budget(size=1000), options=options,
        refitted=frozenset({"body", "head"}), roles=roles, test=test, seed=7, threads=2, seconds=1.5, name="net",
    )  # fmt: skip


TYPES = {
    "schema_version": int, "name": str, "mode": str, "target": str, "seed": int, "seconds": float,
    "peak_rss_bytes": int, "why": dict, "threads": int, "versions": dict, "machine": dict, "budget": dict,
    "data": dict,
    "original": dict, "files": dict, "layers": list, "predicted": dict, "measured": dict, "trials": list,
}  # fmt: skip


def test_the_fields_and_their_types(unscored, options):
    entries = made(unscored, options)
    assert {name: type(value) for name, value in entries.items()} == TYPES
    assert (entries["name"], entries["seed"], entries["threads"], entries["seconds"]) == ("net", 7, 2, 1.5)
    assert (entries["mode"], entries["target"]) == ("no data", "onnx")
    assert entries["data"] == {"calibration": None, "selection": None, "test": None}
    assert entries["original"] == unscored["original"]
    assert entries["files"] == {"onnx": unscored["onnx"]}
    assert json.loads(json.dumps(entries, allow_nan=False)) == entries


def test_channels_that_were_equalised_are_told(unscored, options):
    trial = Trial(replace(PLAN, equalised=0.5), 2000, 0.5, error=0.25)
    entries = record(
        unscored, outcome=Outcome(trial, True, (trial,), ""), budget=Budget(size=1000), options=options,
        refitted=frozenset(), roles=None, test=None, seed=7, threads=2, seconds=1.5, name="net",
    )  # fmt: skip
    assert entries["equalised"] == 0.5
    assert "nearer to one size before they became integers (α = 0.5)" in " ".join(to_text(entries).split())


def test_the_budget_is_told_as_it_was_asked(unscored, options):
    assert made(unscored, options)["budget"] == {"kind": "size", "value": 1000, "met": True, "note": ""}
    missed = made(unscored, options, budget=Budget(ratio=6), met=False, note="close")["budget"]
    assert missed == {"kind": "ratio", "value": 6, "met": False, "note": "close"}
    assert made(unscored, options, budget=Budget())["budget"]["value"] is None


def test_predicted_stands_beside_measured(unscored, labelled, options):
    entries = made(unscored, options)
    outside = unscored["original"]["nbytes"] - sum(int(option.sizes[0]) for option in options)
    assert entries["predicted"] == {"loss": 0.25, "nbytes": 720 + 380 + 124 + outside, "unit": "relative error"}
    assert entries["measured"] == {"loss": None, "nbytes": unscored["onnx"]["nbytes"]}
    roles = split_roles(Dataset.from_array(X, LABELS))
    entries = made(labelled, options, roles=roles, test=roles.test)
    assert (entries["mode"], entries["predicted"]["unit"]) == ("calibration", "nats")
    assert entries["measured"]["loss"] == labelled["onnx"]["kl"]
    assert [entries["data"][role]["count"] for role in ("calibration", "selection", "test")] == [18, 6, 6]
    assert all(len(entries["data"][role]["sha256"]) == 64 for role in ("calibration", "selection", "test"))


def test_a_network_that_is_no_classifier_is_measured_in_its_own_unit(labelled, options):
    file = {**labelled["onnx"], "kl": None, "output_error": {"boxes": 0.5, "marks": 0.25}}
    assert measured_loss(file) == 0.375
    roles = split_roles(Dataset.from_array(X))
    entries = made({**labelled, "onnx": file}, options, roles=roles, test=roles.test)
    assert entries["predicted"]["unit"] == "half the normalised squared error"


def test_trials_are_told_in_their_order(unscored, options):
    assert made(unscored, options)["trials"] == [
        {"nbytes": 2000, "points": 0.5, "error": 0.25, "price": None, "predicted_loss": 0.25},
        {"nbytes": 1500, "points": None, "error": None, "price": 1e-7, "predicted_loss": 0.25},
    ]


def test_layers_say_what_became_of_them_and_why(options):
    outcome = Outcome(Trial(PLAN, 2000, 0.5), True)
    body, head, odd = layers(outcome, options, frozenset({"body", "head"}), {"body": 0.5})
    assert (body["form"], body["method"], body["rank"], body["reason"]) == ("low-rank", "svd", 3, None)
    assert (body["params_before"], body["params_after"]) == (600, 150)
    assert (body["macs_before"], body["macs_after"]) == (600, 150)
    assert body["nbytes_before"] - body["nbytes_after"] == 4 * 450 - 60
    assert (body["shape"], body["predicted_loss"], body["measured_loss"]) == ([20, 30], 0.25, 0.5)
    assert (head["form"], head["rank"], head["reason"]) == ("dense", None, "dense is best at this price")
    assert odd["reason"] == "runs 2 times in one forward pass"
    assert [entry["refitted"] for entry in (body, head, odd)] == [True, True, False]
    for entry in (head, odd):
        assert entry["nbytes_before"] == entry["nbytes_after"]


def test_memory_is_told_or_its_absence_explained(unscored, options, monkeypatch):
    entries = made(unscored, options)
    assert entries["peak_rss_bytes"] > 10**6
    assert entries["why"] == {}
    monkeypatch.setattr("smidgen.report.record.peak_rss_bytes", lambda: None)
    entries = made(unscored, options)
    assert entries["peak_rss_bytes"] is None
    assert entries["why"] == {"peak_rss_bytes": UNKNOWN}


def test_versions_name_what_a_result_depends_on():
    found = versions()
    assert {"python", "torch", "onnx", "onnxruntime", "numpy"} <= set(found)
    assert all(isinstance(value, str) and value for value in found.values())
