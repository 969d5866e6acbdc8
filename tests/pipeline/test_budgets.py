"""What a run is asked for is kept, or the record says that it is not: sizes, drops, the dial, methods, a metric."""

from __future__ import annotations

import json

import pytest

from smidgen import Budget
from smidgen.errors import BudgetError, PlanError
from smidgen.pipeline import compress
from tests.pipeline.pictures import nbytes, pictures


def test_with_no_budget_it_agrees_on_99_of_100_and_is_smaller(default):
    assert default.met
    assert nbytes(default) < 0.5 * default.record["original"]["nbytes"]
    assert all(trial["points"] is not None for trial in default.record["trials"])
    assert default.record["files"]["onnx"]["agreement"] >= 0.9


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


@pytest.mark.parametrize("target", ["onnx", "onnx-int8", "onnx-w8", "archive"])
def test_a_share_of_the_multiplications_is_kept_by_the_written_file(trained, target):
    result = compress(trained, pictures(), budget=Budget(macs="50%"), target=target)
    assert result.met, result.record["budget"]
    left = [result.record[part]["macs"] for part in ("original",)] + [result.record["files"][target]["macs"]]
    assert 0.4 * left[0] < left[1] <= 0.5 * left[0]
    assert left[1] == sum(layer["macs_after"] for layer in result.record["layers"])
    assert "budget: macs 50 % met" in result.table()
    if target != "onnx":  # a file of integers was asked for: its layers are not left in floats
        assert all(layer["bits"] or layer["step"] for layer in result.record["layers"])


def test_a_share_of_the_multiplications_out_of_reach_keeps_the_fewest_and_says_so(trained):
    result = compress(trained, pictures(), budget=Budget(macs=0.001))
    assert not result.met
    note = result.record["budget"]["note"]
    assert note.startswith("the fewest multiply-accumulates found are")
    assert note.endswith("asked were 0.1%")
    json.dumps(result.record, allow_nan=False)


def test_zeros_are_multiplied_like_other_weights(trained):
    with pytest.raises(BudgetError, match="zeros are multiplied like other weights"):
        compress(
            trained,
            pictures(),
            budget=Budget(macs=0.5),
            settings={"magnitude": {"sparsity": 0.7}},
            target="onnx-sparse",
        )


def test_a_file_of_integers_that_is_fast_enough_is_no_file_of_floats(trained):
    result = compress(trained, pictures(), budget=Budget(latency="10 s"), target="onnx-w8")
    assert result.met
    assert all(layer["bits"] == 8 for layer in result.record["layers"])


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


def test_without_labels_agreement_is_what_may_drop(trained):
    result = compress(trained, pictures()[0], budget=Budget(max_drop=2))
    assert result.met
    assert result.record["files"]["onnx"]["accuracy"] is None
    assert result.record["files"]["onnx"]["agreement"] is not None
    assert result.record["files"]["onnx"]["loss_metric"] == "agreement"


def test_bytes_fall_along_the_dial_and_the_ends_are_the_ends(trained):
    results = [compress(trained, pictures(), budget=Budget(tradeoff=t)) for t in (0.0, 0.5, 1.0)]
    sizes = [nbytes(r) for r in results]
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[0] <= results[0].record["original"]["nbytes"]
    assert results[0].record["files"]["onnx"]["kl"] < 1e-6
    assert results[2].plan.key != results[1].plan.key
    for result in results:
        json.loads(result.plan.to_json(), parse_constant=lambda name: pytest.fail(f"{name} in plan.json"))


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
