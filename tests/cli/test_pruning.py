"""``smidgen prune``: the table, the files, and what is said of mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

Run = Callable[..., tuple[int, str, str]]


def test_the_smaller_network_is_written_and_can_be_compressed(run: Run, tmp_path: Path, network: Path, data: Path):
    out = tmp_path / "out"
    code, told, err = run("prune", network, "--data", data, "--macs", "50%", "-o", out, "-q")
    assert (code, err) == (0, "")
    assert "of the multiplications" in told
    assert "48 → " in told
    assert "they are the network's outputs" in told
    assert sorted(path.name for path in out.iterdir()) == ["model.onnx", "result.json"]
    record = json.loads((out / "result.json").read_text())
    assert record["smaller"]["macs"] <= 0.5 * record["original"]["macs"]
    assert {row["name"]: row["after"] % 8 for row in record["layers"]}["fc1"] == 0
    x = np.random.default_rng(1).normal(size=(3, 1, 8, 8)).astype(np.float32)
    assert onnxruntime.InferenceSession(out / "model.onnx").run(None, {"input": x})[0].shape == (3, 4)
    assert run("compress", out / "model.onnx", "--ratio", "1.1", "-q", "-o", tmp_path / "small")[0] in (0, 3)


def test_json_is_the_record(run: Run, tmp_path: Path, network: Path, data: Path):
    given = ("--macs", "0.5", "--round", "4", "--criterion", "l1", "--no-refit", "--protect", "fc2", "--json", "-q")
    code, told, err = run("prune", network, "--data", data, *given, "-o", tmp_path / "out")
    record = json.loads(told)
    assert (code, err) == (0, "")
    assert record["asked"] == {"macs": 0.5, "criterion": "l1", "multiple": 4, "rounds": 1, "protect": ["fc2"]}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "--macs 50% or --params 50%"),
        (["--macs", "0"], "macs='0' is no share"),
        (["--macs", "1"], "macs='1' is no share"),
        (["--macs", "-0.5"], "macs='-0.5' is no share"),
        (["--params", "nan"], "params='nan' is no share"),
        (["--macs", "50%", "--params", "50%"], "--macs 50% or --params 50%"),
        (["--macs", "50%", "--criterion", "curvatur"], "did you mean 'curvature'?"),
        (["--macs", "50%", "--protect", "fc3"], "there is no layer 'fc3' to protect; near: fc"),
        (["--macs", "50%", "--round", "0"], "multiples of 0"),
        (["--macs", "1%"], "no layer may be emptied"),
        (["--macs", "50%", "--criterion", "apoz"], "needs inputs to run"),
        (["--macs", "50%", "--device", "meta"], "computes on the cpu"),
    ],
)
def test_mistakes_are_one_line(run: Run, tmp_path: Path, network: Path, given: list[str], told: str):
    code, out, err = run("prune", network, *given, "-q", "-o", tmp_path / "out")
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
