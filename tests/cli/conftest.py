"""A tiny network and data it fits, as files, and a way to run the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from smidgen.cli import main

CLASSES = 4
Run = Callable[..., tuple[int, str, str]]


def tiny_network(path: Path) -> Path:
    """Flatten, dense 64 → 48, ReLU, dense 48 → 4; the first weight has a falling spectrum, as trained ones do."""
    generator = np.random.default_rng(0)
    u, _, v = np.linalg.svd(generator.normal(size=(48, 64)), full_matrices=False)
    first = (u * np.geomspace(4, 1e-3, 48)) @ v
    arrays = {
        "fc1.weight": first,
        "fc1.bias": generator.normal(size=48),
        "fc2.weight": generator.normal(size=(CLASSES, 48)),
        "fc2.bias": generator.normal(size=CLASSES),
    }
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc1.weight", "fc1.bias"], ["hidden"], transB=1),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "fc2.weight", "fc2.bias"], ["logits"], transB=1),
    ]
    inputs = [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["n", 1, 8, 8])]
    outputs = [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", CLASSES])]
    weights = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def image_folder(folder: Path, count: int, side: int = 8, classes: int = CLASSES) -> Path:
    """Gray noise, one folder a class."""
    generator = np.random.default_rng(1)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (side, side), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_network(tmp_path_factory.mktemp("network") / "tiny.onnx")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(2)
    path = tmp_path_factory.mktemp("data") / "set.npz"
    np.savez(path, x=generator.normal(size=(80, 1, 8, 8)).astype(np.float32), y=generator.integers(0, CLASSES, 80))
    return path


@pytest.fixture(scope="session")
def make_images() -> Callable[..., Path]:
    return image_folder


@pytest.fixture(autouse=True)
def _untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands here do not depend on the clock; those that do time layers themselves."""
    for module in ("smidgen.pipeline.running", "smidgen.cli.layers"):
        monkeypatch.setattr(f"{module}.with_times", lambda options, threads, progress: list(options))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process: exit code, stdout, stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run
