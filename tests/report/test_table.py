"""The tables, the sentence and their numbers, read as a reader would."""

from __future__ import annotations

import copy
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from smidgen.report import wording
from smidgen.report.summary import verdict
from smidgen.report.table import layers_table, loss_name, render_table, to_text

ORIGINAL: dict[str, Any] = {
    "path": "nets/lenet.onnx",
    "nbytes": 3_253_851,
    "params": 813_100,
    "macs": 6_079_200,
    "accuracy": 0.9921,
    "top5": 1.0,
    "roc_auc": None,
    "agreement": None,
    "kl": None,
    "output_error": None,
    "metric": None,
    "loss_points": None,
    "loss_interval": None,
    "latency_ms": 0.4,
    "why": {"roc_auc": "needs two classes, the network has 10", "kl": "nothing to compare with"},
}
WRITTEN: dict[str, Any] = {
    **ORIGINAL,
    "path": "out/model.onnx",
    "nbytes": 512_000,
    "accuracy": 0.9914,
    "agreement": 0.9979,
    "kl": 0.00123,
    "output_error": {"logits": 0.002},
    "loss_points": 0.07,
    "loss_interval": [-0.05, 0.19],
    "latency_ms": 0.31,
    "why": {"roc_auc": "needs two classes, the network has 10"},
}
RESULT: dict[str, Any] = {
    "schema_version": 1,
    "mode": "calibration",
    "target": "onnx",
    "budget": {"kind": "size", "value": 512_000, "met": True, "note": ""},
    "original": ORIGINAL,
    "files": {
        "onnx": WRITTEN,
        "archive": {
            **WRITTEN,
            "path": "out/model.smidgen",
            "nbytes": 98_000,
            "latency_ms": None,
            "why": {**WRITTEN["why"], "latency_ms": "an archive is unpacked before it runs"},
        },
    },
    "layers": [
        {"name": "conv1", "form": None, "nbytes_before": 2080, "nbytes_after": 2080, "reason": "too small"},
        {
            "name": "features.conv2.depthwise",
            "form": "lowrank",
            "rank": [20, 12],
            "nbytes_before": 100_200,
            "nbytes_after": 20_000,
            "predicted_loss": 0.00031,
            "reason": None,
        },
    ],
    "predicted": {"loss": 0.0009, "nbytes": 510_000},
    "measured": {"loss": 0.00123, "nbytes": 512_000},
}


@pytest.fixture
def result() -> dict[str, Any]:
    # Through JSON, as a reader of the file gets it.
    return json.loads(json.dumps(RESULT))


def cells(text: str) -> dict[str, list[str]]:
    """Rows of the printed tables by their first cell."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]
    return {row[0]: row[1:] for row in rows}


def test_every_number_stands_in_its_row_and_column(result: dict[str, Any]) -> None:
    rows = cells(to_text(result))
    assert rows["file"] == ["lenet.onnx", "model.onnx", "model.smidgen"]
    assert rows["size"] == ["3.25 MB", "512 kB", "98.0 kB"]
    assert rows["times smaller"] == ["–", "6.4×", "33×"]
    assert rows["parameters"] == ["813 k"] * 3
    assert rows["MACs"] == ["6.08 M"] * 3
    assert rows["accuracy"] == ["99.21 %", "99.14 %", "99.14 %"]
    assert rows["lost points of accuracy"] == ["–", "0.07", "0.07"]
    assert rows["95 % interval"] == ["–", "−0.05 … 0.19", "−0.05 … 0.19"]
    assert rows["top-5"] == ["100.00 %"] * 3
    assert rows["agreement"] == ["–", "99.79 %", "99.79 %"]
    assert rows["KL, nats"] == ["–", "0.00123", "0.00123"]
    assert rows["error of 'logits'"] == ["–", "0.002", "0.002"]
    assert rows["latency"] == ["0.4 ms", "0.31 ms", "–"]
    assert rows["times faster"] == ["–", "1.3×", "–"]


def test_what_is_missing_has_its_reason_under_the_table(result: dict[str, Any]) -> None:
    text = to_text(result)
    assert "ROC AUC" not in cells(text)
    assert "– ROC AUC: needs two classes, the network has 10" in text
    assert "– latency (archive): an archive is unpacked before it runs" in text
    assert "nothing to compare" not in text
    assert "predicted size 510 kB, measured 512 kB" in text


def test_the_title_says_mode_and_budget(result: dict[str, Any]) -> None:
    assert to_text(result).startswith("mode: calibration, budget: size 512 kB met\n")
    result["budget"] = {"kind": "max_drop", "value": 0.005, "met": False, "note": "0.7 was best"}
    assert "budget: max_drop 0.005 NOT met (0.7 was best)" in " ".join(to_text(result).split())


def test_layers_tell_what_became_of_them(result: dict[str, Any]) -> None:
    rows = cells(to_text(result))
    assert rows["conv1"] == ["left alone: too small", "–", "2.08 kB", "–", "–", "–"]
    assert rows["features.conv2.depthwise"] == ["lowrank", "20×12", "100 kB → 20.0 kB", "5.0×", "0.00031", "–"]
    assert layers_table({"layers": []}).row_count == 0


def test_a_dense_layer_that_was_refitted_was_not_left_alone(result: dict[str, Any]) -> None:
    result["layers"][0] |= {"form": "dense", "refitted": True, "predicted_loss": 0.0}
    result["layers"][1] |= {"refitted": True}
    rows = cells(to_text(result))
    assert rows["conv1"] == ["dense, refitted", "–", "2.08 kB", "–", "–", "–"]
    assert rows["features.conv2.depthwise"][0] == "lowrank"
    assert "left alone" not in verdict(result)


def test_names_and_reasons_are_never_read_as_markup(result: dict[str, Any]) -> None:
    result["layers"][0]["name"] = "[red]conv[/red]"
    result["layers"][0]["reason"] = "shape [a, 3, 3]"
    result["original"]["why"]["roc_auc"] = "the output [n, 3, 4] is no list of classes"
    result["files"]["onnx"]["output_error"] = {"[bold]": 0.5}
    text = to_text(result)
    assert all(part in text for part in ("[red]conv[/red]", "shape [a, 3, 3]", "[n, 3, 4]", "error of '[bold]'"))


def test_a_narrow_terminal_folds_and_cuts_nothing_off(result: dict[str, Any]) -> None:
    stream = io.StringIO()
    Console(file=stream, width=80).print(render_table(result), layers_table(result))
    shown = stream.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    assert all(line.rstrip().endswith("│") for line in shown.splitlines() if line.startswith("│"))
    assert shown.count("…") == shown.count(" … ") == 2
    for whole in ("100 kB → 20.0 kB", "0.00031", "−0.05 … 0.19", "model.smidgen", "loss, nats"):
        assert whole in shown


def test_a_bare_result_has_a_table() -> None:
    bare = {"original": {"path": "a.onnx", "nbytes": 10}, "files": {}}
    assert list(cells(to_text(bare))) == ["file", "size"]
    assert verdict(bare) == "10 B: nothing was written"


def test_printing_changes_nothing(result: dict[str, Any]) -> None:
    before = copy.deepcopy(result)
    to_text(result)
    verdict(result)
    assert result == before


def test_the_verdict_is_one_sentence(result: dict[str, Any]) -> None:
    assert verdict(result) == (
        "3.25 MB → 512 kB (6.4× smaller), accuracy 99.21 % → 99.14 % "
        "(lost 0.07 points, 95 % interval −0.05 … 0.19), 1.3× faster; 1 layer left alone: too small"
    )


def test_the_verdict_hides_nothing_unpleasant(result: dict[str, Any]) -> None:
    result["files"]["onnx"] |= {"nbytes": 6_507_702, "latency_ms": 0.8}
    result["budget"] |= {"met": False, "note": "nothing smaller holds the drop"}
    said = verdict(result)
    assert "3.25 MB → 6.51 MB (2.0× larger)" in said
    assert "2.0× slower" in said
    assert said.endswith("the budget was not met (nothing smaller holds the drop)")


@pytest.mark.parametrize(
    ("kind", "met", "count", "counts", "told"),
    [
        ("max_drop", True, 24, {}, True),
        ("max_drop", True, 24, {"accuracy": None}, True),  # agreement
        ("max_drop", True, 199, {}, True),
        ("max_drop", True, 200, {}, False),  # one answer is just what may be lost
        ("max_drop", False, 24, {}, False),  # nothing was promised
        ("max_drop", True, 24, {"metric": 0.9, "metric_name": "auc"}, False),  # no count of answers
        ("max_drop", True, 24, {"accuracy": None, "agreement": None}, False),  # no classifier
        ("size", True, 24, {}, False),
    ],
)
def test_a_loss_promised_on_few_inputs_says_so(result: dict[str, Any], kind, met, count, counts, told) -> None:
    result["budget"] = {"kind": kind, "value": 0.5, "met": met, "note": ""}
    result["data"] = {"selection": {"count": count}}
    result["files"]["onnx"] |= counts
    said = verdict(result)
    assert ("give more to be surer" in said) == told
    if count == 24 and told:
        assert "max_drop 0.5 was judged on 24 inputs, of which one is 4.17 points" in said


@pytest.mark.parametrize(
    ("accuracy", "counts", "told"),
    [(0.2167, {}, True), (0.5, {}, False), (None, {"accuracy": None}, False), (0.2167, {"metric": 0.9}, False)],
)
def test_an_original_that_is_hardly_right_is_told_of(result: dict[str, Any], accuracy, counts, told) -> None:
    result["original"]["accuracy"] = accuracy
    result["files"]["onnx"] |= counts
    assert ("the original is right on 21.67 % of these inputs: if" in verdict(result)) == told


def test_a_gain_is_told_as_one(result: dict[str, Any]) -> None:
    result["files"]["onnx"] |= {"accuracy": 0.993, "loss_points": -0.09, "loss_interval": [-0.2, 0.02]}
    assert "(gained 0.09 points, 95 % interval −0.02 … 0.20)" in verdict(result)


def test_the_measure_is_named_for_what_it_is(result: dict[str, Any]) -> None:
    result["files"] = {"onnx": result["files"]["onnx"]}
    result["original"]["accuracy"] = result["files"]["onnx"]["accuracy"] = None
    assert "99.79 % of the answers as before (lost 0.07 points" in verdict(result)
    assert "lost points of agreement" in cells(to_text(result))
    result["files"]["onnx"]["agreement"] = None
    assert "normalised error 0.07 points, 95 % interval" in verdict(result)
    result["files"]["onnx"] |= {"metric": 0.81, "metric_name": "f1"}
    result["original"] |= {"metric": 0.83, "metric_name": "f1"}
    assert "f1 0.83 → 0.81 (lost" in verdict(result)
    rows = cells(to_text(result))
    assert rows["f1"] == ["0.83", "0.81"]
    assert loss_name(result["files"]["onnx"]) == "f1"


@given(st.integers(0, 10**12))
def test_sizes_have_three_digits_and_keep_the_value(nbytes: int) -> None:
    text = wording.size(nbytes)
    value, unit = text.split()
    factor = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    assert float(value) * factor == pytest.approx(nbytes, rel=0.005)
    assert len(value) <= 4


@given(st.floats(-1e6, 1e6))
def test_signed_numbers_keep_their_value_and_never_show_minus_zero(value: float) -> None:
    text = wording.signed(value)
    assert float(text.replace("−", "-")) == pytest.approx(value, abs=0.00501)
    assert text != "−0.00"
