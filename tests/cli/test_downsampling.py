"""``smidgen downsample``: the table, the files, and what is said of mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convolution and average pooling without activation, dense: one change is exact."""
    generator = np.random.default_rng(0)
    arrays = {
        "conv.weight": generator.normal(size=(4, 1, 3, 3)), "fc.weight": generator.normal(size=(4, 64)),
        "fc.bias": generator.normal(size=4),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["input", "conv.weight"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("AveragePool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "fc.weight", "fc.bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "pooled", [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("pooled") / "pooled.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_the_best_network_is_written_and_can_be_compressed(run: Run, tmp_path: Path, pooled: Path, data: Path) -> None:
    out, unlabelled = tmp_path / "out", tmp_path / "set.npz"
    np.savez(unlabelled, x=np.load(data)["x"])  # random labels would tell nothing
    code, told, err = run("downsample", pooled, "--data", unlabelled, "--max-drop", "0.5%", "-o", out, "-q")
    assert (code, err) == (0, "")
    assert "chosen: pooling: conv takes avg_pool2d in, wider kernel: " in told
    assert sorted(path.name for path in out.iterdir()) == ["model.onnx", "result.json"]
    x = np.random.default_rng(1).normal(size=(3, 1, 8, 8)).astype(np.float32)
    answers = [onnxruntime.InferenceSession(path).run(None, {"input": x})[0] for path in (pooled, out / "model.onnx")]
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-4)
    assert run("compress", out / "model.onnx", "--ratio", "1.1", "-q", "-o", tmp_path / "small")[0] in (0, 3)


def test_json_is_the_record_and_nothing_is_written(run: Run, tmp_path: Path, pooled: Path, data: Path) -> None:
    code, told, err = run("downsample", pooled, "--data", data, "--json", "-q", "--no-refit")
    record = json.loads(told)
    assert (code, err) == (0, "")
    assert record["max_drop"] == 1
    chosen = [row for row in record["rows"] if row["chosen"]]
    assert len(chosen) == 1
    assert chosen[0]["measured"]["macs"] < record["rows"][0]["measured"]["macs"]
    assert chosen[0]["measured"]["activation_bytes"] < record["rows"][0]["measured"]["activation_bytes"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "--data"),
        (["--data", "DATA", "--max-drop", "much"], "max_drop"),
        (["--data", "no-such.npz"], "no-such.npz"),
        (["--data", "DATA", "--size", "3kB"], "--size"),
    ],
)
def test_mistakes_get_a_line(run: Run, pooled: Path, data: Path, options: list[str], told: str) -> None:
    code, out, err = run("downsample", pooled, *(str(data) if o == "DATA" else o for o in options), "-q")
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1


def test_a_network_without_a_map_is_told(run: Run, tmp_path: Path, network: Path, data: Path) -> None:
    np.savez(tmp_path / "flat.npz", x=np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32))
    code, _, err = run("downsample", network, "--data", tmp_path / "flat.npz", "-q")
    assert code == 2
    assert err.count("\n") == 1
    code, told, _ = run("downsample", network, "--data", data, "-q", "--max-drop", "0.5%")
    assert code == 0
    assert "resolution" in told
