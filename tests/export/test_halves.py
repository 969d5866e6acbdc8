"""Weights in sixteen bits: half the bytes, the values numpy rounds to, the same answers but for that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from smidgen.export.halves import LEAST, fits, half_weight
from smidgen.export.onnx import write
from smidgen.forms import Dense, nbytes
from smidgen.runtimes.onnxruntime import open_onnx
from smidgen.site import Stored, untouched
from tests.export.kinds import kinds

TARGET = "onnx-fp16"


def test_the_file_computes_with_weights_rounded_to_sixteen_bits(tmp_path: Path) -> None:
    ready = kinds(11)
    write(ready.base, ready.sites, {s.name: untouched(s) for s in ready.sites}, tmp_path / "h.onnx", TARGET)
    rounded = {
        s.name: Stored(Dense(s.weight.astype(np.float16).astype("f4") if s.weight.size >= LEAST else s.weight), s.bias)
        for s in ready.sites
    }
    write(ready.base, ready.sites, rounded, tmp_path / "f.onnx")
    proto = onnx.load(tmp_path / "h.onnx")
    onnx.checker.check_model(proto, full_check=True)
    held = [t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT16]
    assert len(held) == sum(s.weight.size >= LEAST for s in ready.sites) > 3
    x = np.random.default_rng(0).normal(size=(4, 3, 5, 5)).astype("f4")
    with open_onnx(tmp_path / "f.onnx") as floats, open_onnx(tmp_path / "h.onnx") as halves:
        assert floats.run(x)[0].tobytes() == halves.run(x)[0].tobytes()


def test_bytes_are_those_that_are_predicted(tmp_path: Path) -> None:
    ready = kinds(500)
    stored = {s.name: untouched(s) for s in ready.sites}
    written = {}
    for target in ("onnx", TARGET):
        write(ready.base, ready.sites, stored, tmp_path / "x.onnx", target)
        written[target] = (tmp_path / "x.onnx").stat().st_size
    large = [s for s in ready.sites if s.weight.size >= LEAST]
    saved = sum(nbytes(Dense(s.weight), s.geometry) - nbytes(Dense(s.weight), s.geometry, TARGET) for s in large)
    assert written["onnx"] - written[TARGET] == pytest.approx(saved, abs=12 * len(large))


def test_what_sixteen_bits_do_not_hold_stays() -> None:
    graph = onnx.GraphProto()
    assert half_weight(graph, np.full((8, 16), 7e4, np.float32), "w") == []
    assert not graph.initializer
    (node,) = half_weight(graph, np.full((8, 16), 1 / 3, np.float32), "w")
    assert node.op_type == "Cast"
    assert numpy_helper.to_array(graph.initializer[0]).dtype == np.float16
    assert not fits(np.ones(64, np.int64))


def test_tflite_in_sixteen_bits() -> None:
    pytest.importorskip("litert_torch", reason="the tflite extra is not installed")
    from smidgen.export.halves import halved
    from smidgen.export.tflite import to_tflite
    from smidgen.runtimes.litert import runner_of

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16 * 36, 40)
    ).eval()
    x = torch.randn(2, 3, 8, 8)
    floats = to_tflite(network, x)
    half = halved(floats)
    assert len(half) < 0.53 * len(floats)
    (before,), (after,) = (runner_of(content).run(x.numpy()) for content in (floats, half))
    assert 0 < np.abs(before - after).max() < 2e-3 * np.abs(before).max()
