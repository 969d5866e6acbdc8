"""``smidgen bench``: the table, the record, and what is said of mistakes."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

WELL_TIMED = True

Run = Callable[..., tuple[int, str, str]]


def chain(path: Path, width: int) -> Path:
    """Four dense layers in a row, for inputs of 64 numbers."""
    generator = np.random.default_rng(0)
    sides = [64, width, width, width, 4]
    weights = [generator.normal(size=(a, b)).astype(np.float32) for a, b in itertools.pairwise(sides)]
    names = ["input", "a", "b", "c", "logits"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(4)], "chain",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(array, f"w{i}") for i, array in enumerate(weights)],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("chains")
    return [chain(folder / f"{width}.onnx", width) for width in (1024, 64, 128)]


def test_narrow_chains_are_faster_than_the_wide_one(run: Run, tmp_path: Path, chains: list[Path]) -> None:
    wide, narrow, other = chains
    place = tmp_path / "bench.json"
    code, told, err = run(
        "bench", narrow, other, "--against", wide, "--threads", "1,2", "--repeats", "2", "-q", "-o", place
    )
    assert (code, err) == (0, "")
    assert told.count("64.onnx") == 1
    assert "one input [64] (random)" in told
    record = json.loads(place.read_text())
    assert record["original"]["path"] == str(wide)
    assert [file["path"] for file in record["files"]] == [str(narrow), str(other)]
    for file in (record["original"], *record["files"]):
        assert [timing["threads"] for timing in file["timings"]] == [1, 2]
        assert file["nbytes"] == Path(file["path"]).stat().st_size
        assert file["sha256"] == hashlib.sha256(Path(file["path"]).read_bytes()).hexdigest()
        for timing in file["timings"]:
            low, high = timing["latency_quartiles_ms"]
            assert 0 < low <= timing["latency_ms"] <= high
            assert timing["runs"] >= 2
    assert {timing["speedup"] for timing in record["original"]["timings"]} == {1.0}
    assert record["files"][0]["timings"][0]["speedup"] > 2
    assert record["machine"]["cores"] >= 1


def test_inputs_come_from_the_data(run: Run, network: Path, data: Path) -> None:
    code, told, err = run("bench", network, "--data", data, "--repeats", "1", "--json", "-q")
    record = json.loads(told)
    assert (code, err) == (0, "")
    assert record["input"] == {"shape": [1, 1, 8, 8], "source": "set.npz"}
    assert record["files"] == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none.onnx"], "none.onnx"),
        (["{network}", "--threads", "two"], "'two' is no count of threads"),
        (["{network}", "--threads", "0"], "threads=0 is not between"),
        (["{network}", "--repeats", "0"], "repeats=0 is not between"),
        (["{network}", "--repeat", "3"], "did you mean '--repeats'?"),
        (["{network}", "-o", "{network}"], "is one of the files to time"),
        (["{network}", "-o", "no-such/bench.json"], "no-such"),
        (["{network}", "--against", "{chain}"], "takes"),
    ],
)
def test_mistakes_are_one_line(run: Run, network: Path, chains: list[Path], arguments: list[str], told: str) -> None:
    filled = [each.format(network=network, chain=chains[0]) for each in arguments]
    code, out, err = run("bench", *filled, "-q")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert told in err


def test_data_that_do_not_fit(run: Run, network: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 1, 9, 9), np.float32))
    code, _, err = run("bench", network, "--data", tmp_path / "x.npy", "-q")
    assert code == 2
    assert "9" in err
