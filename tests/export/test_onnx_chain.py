"""Chains as files of their own compute what the layers say, with the exporter's nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from smidgen.export.onnx_chain import chain_file, input_shape
from smidgen.forms import CP, Dense, Geometry, LowRank, hollow, stages
from smidgen.runtimes.onnxruntime import open_onnx

CONV = Geometry("conv", 8, 12, (3, 3), (2, 2), (1, 1), (1, 1), in_size=(9, 9), out_size=(5, 5))
GROUPED = Geometry("conv", 8, 12, (3,), (1,), (0,), (1,), groups=4, in_size=(9,), out_size=(7,))
DENSE = Geometry("linear", 30, 20)
POSITIONS = Geometry("linear", 30, 20, in_size=(7,), out_size=(7,))
UP = Geometry("conv_transpose", 8, 12, (2, 2), (2, 2), (0, 0), (1, 1), in_size=(4, 4), out_size=(8, 8))

CASES = {
    "conv": (Dense(hollow(12, 8, 3, 3)), CONV, ["Conv"]),
    "svd": (LowRank(v=Dense(hollow(4, 8, 3, 3)), u=Dense(hollow(12, 4))), CONV, ["Conv"] * 2),
    "cp": (
        CP(Dense(hollow(5, 8)), (Dense(hollow(5, 3)), Dense(hollow(5, 3))), Dense(hollow(12, 5))), CONV, ["Conv"] * 4,
    ),
    "grouped": (Dense(hollow(12, 2, 3)), GROUPED, ["Conv"]),
    "dense": (LowRank(v=Dense(hollow(4, 30)), u=Dense(hollow(20, 4))), DENSE, ["Gemm"] * 2),
    "positions": (LowRank(v=Dense(hollow(4, 30)), u=Dense(hollow(20, 4))), POSITIONS, ["MatMul", "MatMul", "Add"]),
    "transposed": (Dense(hollow(8, 12, 2, 2)), UP, ["ConvTranspose"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_chain_runs_and_gives_the_layers_shape(name: str, tmp_path: Path) -> None:
    form, geometry, operators = CASES[name]
    chain = stages(form, geometry)
    file = chain_file(chain)
    assert [node.op_type for node in onnx.load_from_string(file).graph.node] == operators
    onnx.checker.check_model(file, full_check=True)
    path = tmp_path / "chain.onnx"
    path.write_bytes(file)
    with open_onnx(path) as runner:
        (answer,) = runner.run(np.ones(input_shape(chain), np.float32))
    last = geometry.out_channels
    assert answer.shape == (
        (1, *geometry.out_size, last) if geometry.kind == "linear" else (1, last, *geometry.out_size)
    )
    assert np.isfinite(answer).all()
    assert answer.std() > 0
