"""A bundle's script on emulated ARM64: the answers there against those of this machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smidgen


def arm64_root() -> Path:
    """The folder that tools/arm64_root.sh makes; the test is skipped where there is none."""
    if platform.machine() in ("aarch64", "arm64"):
        pytest.skip("this machine is ARM64 itself: there is nothing to compare")
    named = os.environ.get("SMIDGEN_ARM64_ROOT")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "build" / "arm64"
    if not (folder / ".made").is_file():
        pytest.skip(f"no emulated ARM64 in '{folder}': 'make arm64' makes it, or name one in SMIDGEN_ARM64_ROOT")
    return folder


def static_int8(source: Path, target: Path, inputs: np.ndarray) -> None:
    """Weights and activations as 8-bit integers, by ONNX Runtime's own quantizer."""
    quantization = pytest.importorskip("onnxruntime.quantization", reason="onnxruntime comes without its quantizer")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"input": inputs[i : i + 1]} for i in range(len(inputs))]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    kinds = quantization.QuantType
    quantization.quantize_static(
        source, target, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
        activation_type=kinds.QUInt8, weight_type=kinds.QInt8,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the quantizer's
def test_float_w8_and_int8_answer_on_arm64_as_here(data_dir: Path, tmp_path: Path) -> None:
    root = arm64_root()
    network = data_dir / "models" / "lenet_mnist.onnx"
    inputs = np.asarray(smidgen.open_data(data_dir / "mnist" / "t10k-images-idx3-ubyte.gz").take(range(64)))
    out, bundle = tmp_path / "out", tmp_path / "bundle"
    smidgen.compress(network, budget=smidgen.Budget(ratio=4), target=["onnx-w8", "onnx"]).save(out)
    static_int8(network, out / "model.int8.onnx", inputs)
    record: dict[str, Any] = json.loads((out / "result.json").read_text())
    record["files"]["onnx-int8"] = {"path": "model.int8.onnx"}
    (out / "result.json").write_text(json.dumps(record))
    smidgen.bundle(out, bundle, against=network, data=inputs, samples=64)
    done = subprocess.run(
        [root / "run", root / "root/usr/bin/python3", bundle / "bench.py", "--threads", "1", "--seconds", "0.05"],
        capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    device = smidgen.merge(bundle / "results.json", out)["devices"][0]
    assert device["machine"] == "aarch64"
    assert list(device["files"]) == ["original", "onnx-w8", "onnx", "onnx-int8"]
    for name, file in device["files"].items():
        told = file["outputs"]
        assert told["agree"], (name, told)
        assert told["same_answers"] == 1
        if name != "onnx-int8":
            assert told["max_rel_error"] <= 1e-4
        assert file["timings"][0]["latency_ms"] > 0
    assert device["files"]["onnx-int8"]["outputs"]["within_one_step"] >= 0.999
