"""A run's folder with small networks that answer known things, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

SIDE, CLASSES = 8, 4


def classifier(path: Path, change: float = 0.0, channels: int = 1) -> Path:
    """Flatten and a dense layer, [n, channels, 8, 8] → 4 logits; the same weights every time, moved by ``change``."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(CLASSES, channels * SIDE * SIDE)) / SIDE
    weight += change * generator.normal(size=weight.shape) / SIDE
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["logits"], transB=1),
    ]
    inputs = [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["n", channels, SIDE, SIDE])]
    outputs = [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", CLASSES])]
    stored = [numpy_helper.from_array(weight.astype(np.float32), "weight")]
    graph = helper.make_graph(nodes, "small", inputs, outputs, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def saved_run(folder: Path, preprocess: dict[str, Any] | None = None, channels: int = 1, change: float = 0.3) -> Path:
    """A folder as compress leaves it, with the original inside."""
    folder.mkdir(parents=True, exist_ok=True)
    classifier(folder / "small.onnx", channels=channels)
    classifier(folder / "model.onnx", change, channels)
    classifier(folder / "model.w8.onnx", channels=channels)
    (folder / "model.smidgen").write_bytes(b"an archive")
    role = {"count": 8, **({} if preprocess is None else {"preprocess": preprocess})}
    write_record(folder, {
        "name": "small", "target": "onnx", "original": {"path": "small.onnx", "accuracy": 0.75},
        "files": {"onnx-w8": {"path": "model.w8.onnx"}, "onnx": {"path": "model.onnx", "accuracy": 0.5},
                  "archive": {"path": "model.smidgen"}},
        "data": {"calibration": role, "selection": None, "test": role},
    })  # fmt: skip
    return folder


def write_record(folder: Path, record: object) -> None:
    (folder / "result.json").write_text(json.dumps(record), encoding="utf-8")
