"""``smidgen distil`` and ``smidgen transfer``: the tables, the files, and what is said of mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

Run = Callable[..., tuple[int, str, str]]
STUDENT = """
from torch import nn

def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 4))

def wrong():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
"""


@pytest.fixture
def student(tmp_path: Path) -> Path:
    path = tmp_path / "student.py"
    path.write_text(STUDENT)
    return path


def test_a_student_is_taught_and_written(run: Run, tmp_path: Path, network: Path, data: Path, student: Path):
    out, place = tmp_path / "out", tmp_path / "run.ckpt"
    given = ("--data", data, "--epochs", "3", "--batch", "16", "--lr", "0.01", "--checkpoint", place, "-q", "-o", out)
    code, told, err = run("distil", network, f"{student}:small", *given)
    assert (code, err) == (0, "")
    assert "teacher" in told
    assert "× smaller" in told
    assert sorted(path.name for path in out.iterdir()) == ["model.onnx", "model.safetensors", "result.json"]
    record = json.loads((out / "result.json").read_text())
    assert record["training"]["lr"] == 0.01
    assert record["asked"] == {"temperature": 4.0, "mix": 0.9, "features": 0.0}
    assert set(record["data"]) == {"training", "selection", "test"}
    x = np.random.default_rng(1).normal(size=(3, 1, 8, 8)).astype(np.float32)
    assert onnxruntime.InferenceSession(out / "model.onnx").run(None, {"input": x})[0].shape == (3, 4)
    first = load_file(out / "model.safetensors")
    assert run("distil", network, f"{student}:small", *given)[0] == 0  # goes on from the end: nothing is left to do
    again = load_file(out / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    code, _, err = run("distil", network, f"{student}:small", *given, "--mix", "0.5")
    assert code == 2
    assert "mix=0.9 and now it is 0.5" in err


def test_other_classes_are_taught_and_compressed(run: Run, tmp_path: Path, network: Path):
    generator, path, out = np.random.default_rng(0), tmp_path / "set.npz", tmp_path / "out"
    x = generator.normal(size=(120, 1, 8, 8)).astype(np.float32)
    np.savez(path, x=x, y=(x[:, 0, 0, 0] > 0).astype(np.int64))
    given = ("--data", path, "--epochs", "2", "--batch", "16", "--freeze-epochs", "1", "--json", "-q", "-o", out)
    code, told, err = run("transfer", network, *given)
    assert (code, err) == (0, "")
    record = json.loads(told)
    assert record["asked"]["classes"] == 2
    assert record["head"]["epochs"] == 1
    assert run("compress", out / "model.onnx", "--ratio", "1.1", "-q", "-o", tmp_path / "small")[0] in (0, 3)
    code, told, _ = run("transfer", network, *given, "--ratio", "2", "--target", "archive")
    assert code == 0
    assert json.loads(told)["budget"]["met"]
    assert (out / "model.smidgen").stat().st_size * 2 <= (out / "transferred" / "model.onnx").stat().st_size


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--epochs", "0"], "epochs=0 cannot be"),
        (["--lr", "nan"], "lr=nan cannot be"),
        (["--batch", "512"], "fewer than a batch of 512"),
        (["--augment", "shift2,blur"], "'blur' is none of"),
        (["--time-limit", "soon"], "'soon' is no time"),
        (["--optimizer", "lion"], "adamw"),
        (["--mix", "2"], "mix=2.0 is no share"),
        (["--temperature", "0"], "temperature=0.0 cannot be"),
        (["--epoch", "3"], "did you mean '--epochs'?"),
        (["--seed", "-1"], "seed: -1"),
        (["--test", "nowhere.npz"], "nowhere.npz"),
    ],
)
def test_mistakes_are_one_line(
    run: Run, tmp_path: Path, network: Path, data: Path, student: Path, given: list[str], told: str
):
    out = tmp_path / "out"
    code, text, err = run("distil", network, f"{student}:small", "--data", data, *given, "-q", "-o", out)
    assert (code, text) == (2, "")
    assert told in err
    assert err.count("\n") == 1
    assert not out.exists()


def test_what_does_not_fit_is_one_line(run: Run, tmp_path: Path, network: Path, data: Path, student: Path):
    unlabelled, damaged, out = tmp_path / "x.npz", tmp_path / "run.ckpt", tmp_path / "out"
    np.savez(unlabelled, x=np.zeros((40, 1, 8, 8), np.float32) + np.arange(40, dtype=np.float32)[:, None, None, None])
    damaged.write_bytes(b"not a checkpoint")
    small = ("distil", network, f"{student}:small")
    given = [
        (("distil", network, f"{student}:wrong", "--data", data), "answers with [3] for each input"),
        (small, "give --data"),
        ((*small, "--data", unlabelled, "--mix", "0.5"), "then the original's answers are enough"),
        (
            ("distil", network, f"{student}:small", "--data", data, "--batch", "16", "--checkpoint", damaged),
            "start over",
        ),
        (("transfer", network, "--data", unlabelled), "learns from labels"),
        (("transfer", network, "--data", data, "--classes", "2"), "outside 0..1"),
        (("transfer", f"{student}:wrong", "--data", data, "--body-rate", "2"), "body_rate=2.0"),
    ]
    for arguments, told in given:
        code, text, err = run(*arguments, "-q", "-o", out)
        assert (code, text) == (2, ""), arguments
        assert told in err
        assert err.count("\n") == 1
        assert not out.exists()
    assert damaged.read_bytes() == b"not a checkpoint"
