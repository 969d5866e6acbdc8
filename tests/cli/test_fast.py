"""``smidgen fastconv``: the table, the file and its answers, the byte budget, and what is said of mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

WELL_TIMED = True

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 3×3 convolution with a stride, then one of 31×31, which Fourier's way computes several times faster."""
    generator = np.random.default_rng(0)
    arrays = {
        "stem.weight": generator.normal(size=(24, 1, 3, 3)) / 3, "body.weight": generator.normal(size=(24, 24, 31, 31)),
        "body.bias": generator.normal(size=24), "fc.weight": generator.normal(size=(4, 24)),
    }  # fmt: skip
    arrays["body.weight"] /= 150
    nodes = [
        helper.make_node("Conv", ["input", "stem.weight"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "body.weight", "body.bias"], ["c"], pads=[15, 15, 15, 15]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "fc.weight"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "large", [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["n", 1, 56, 56])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("large") / "large.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smidgen.pipeline.fastconv.LAYER_SECONDS", 0.4)
    monkeypatch.setattr("smidgen.pipeline.fastconv.TIMES", 1)


def test_the_faster_file_answers_as_the_original(run: Run, tmp_path: Path, large: Path) -> None:
    out = tmp_path / "out"
    code, told, err = run("fastconv", large, "-o", out, "-q")
    assert (code, err) == (0, "")
    assert "not winograd2: stride 2×2: stem" in told
    assert "not winograd4: F(4, 31) loses too many digits; at most 8 points: body" in told
    assert "1 of 2 convolutions computed otherwise" in told
    assert sorted(path.name for path in out.iterdir()) == ["model.onnx", "result.json"]
    record = json.loads((out / "result.json").read_text())
    body = next(row for row in record["layers"] if row["name"] == "body")
    assert body["chosen"] == "fft"
    assert {way["algorithm"]: way["error"] < 1e-5 for way in body["ways"]} == {"direct": True, "fft": True}
    assert record["trials"][record["taken"]]["speedup"] > 1
    x = np.random.default_rng(1).normal(size=(3, 1, 56, 56)).astype(np.float32)
    answers = [onnxruntime.InferenceSession(path).run(None, {"input": x})[0] for path in (large, out / "model.onnx")]
    np.testing.assert_allclose(answers[1], answers[0], rtol=1e-3, atol=1e-4)


def test_where_bytes_do_not_suffice_the_original_is_kept(run: Run, tmp_path: Path, large: Path) -> None:
    out, most = tmp_path / "out", large.stat().st_size + 10_000
    code, told, err = run("fastconv", large, "-o", out, "-q", "--json", "--max-size", f"{most}", "--algorithms", "fft")
    record = json.loads(told)
    assert (code, err) == (0, "")
    assert {row["chosen"] for row in record["layers"]} == {"direct"}
    assert record["asked"] == {"algorithms": ["fft"], "max_size": most, "low_rank": None}
    assert (out / "model.onnx").read_bytes() == large.read_bytes()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--algorithms", "winogard2"], "did you mean winograd2 or winograd4?"),
        (["--algorithms", "fft,karatsuba"], "no algorithm 'karatsuba'. There are: winograd2"),
        (["--max-size", "much"], "much"),
        (["--max-size", "1kB"], "the network takes as it is; compress it first"),
        (["--low-rank", "some"], "--low-rank 'some' is no share"),
        (["--low-rank", "200%"], "low_rank=2.0 is no share"),
        (["--device", "meta"], "it times on the cpu"),
        (["--data", "no-such.npz"], "no-such.npz"),
        (["--sized", "3kB"], "--sized"),
    ],
)
def test_mistakes_get_a_line(run: Run, large: Path, options: list[str], told: str) -> None:
    code, out, err = run("fastconv", large, *options, "-q")
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1


def test_a_file_of_integers_is_refused(run: Run, tmp_path: Path, large: Path) -> None:
    model = onnx.load(large)
    model.graph.node[0].input[1] = "stem.floats"
    weight = model.graph.initializer[0]
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array((values * 60).astype(np.int8), weight.name))
    model.graph.initializer.append(numpy_helper.from_array(np.array(1 / 60, dtype=np.float32), "scale"))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["stem.weight", "scale"], ["stem.floats"]))
    onnx.save(model, tmp_path / "int8.onnx")
    code, out, err = run("fastconv", tmp_path / "int8.onnx", "-q")
    assert (code, out) == (2, "")
    assert "holds integers" in err


def test_a_network_without_a_convolution_is_told(run: Run, network: Path) -> None:
    code, out, err = run("fastconv", network, "-q")
    assert (code, out) == (2, "")
    assert "has no convolution of two axes; there is nothing to choose" in err
