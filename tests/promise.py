"""What every run promises: the files it saves, and a record that holds a value or a reason in every field."""

from __future__ import annotations

import json

SAVED = ["model.onnx", "model.safetensors", "model.smidgen", "plan.json", "report.html", "result.json"]

RECORD = {
    "mode", "seed", "seconds", "peak_rss_bytes", "original", "files", "schema_version", "target", "versions",
    "threads", "data", "layers", "budget",
}  # fmt: skip
SCORES = {"path", "nbytes", "params", "macs", "accuracy", "roc_auc", "agreement", "kl", "top5", "latency_ms"}
LAYER = {"name", "form", "rank", "nbytes_before", "nbytes_after", "predicted_loss", "reason"}


def assert_whole(record):
    """The record of a run with data has every field, and says why where it has no number."""
    assert record.keys() >= RECORD
    for file in (record["original"], *record["files"].values()):
        assert file.keys() >= {*SCORES, "why"}
        for name in SCORES:
            assert file[name] is not None or file["why"][name], name
    for layer in record["layers"]:
        assert layer.keys() >= LAYER
    assert record["data"].keys() == {"calibration", "selection", "test"}
    for role in record["data"].values():
        assert role["count"] > 0
        assert len(role["sha256"]) == 64
    json.dumps(record, allow_nan=False)
