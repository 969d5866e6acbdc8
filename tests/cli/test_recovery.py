"""``compress --train``: settings reach the training, and those without it are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]


def test_it_trains_and_says_so(run: Run, tmp_path: Path, network: Path, data: Path) -> None:
    asked = ["--target", "onnx-shared", "--bits", "1", "--train", "--epochs", "2", "--batch", "8", "--lr", "0.002"]
    more = ["--time-limit", "1min", "--optimizer", "sgd", "--checkpoint", str(tmp_path / "kept")]
    code, out, _ = run("compress", network, "--data", data, *asked, *more, "-o", tmp_path / "out")
    assert code == 0
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    settings = record["training"]["settings"]
    assert (settings["epochs"], settings["batch"], settings["optimizer"]) == (2, 8, "sgd")
    assert (tmp_path / "kept").is_file()
    assert "trained for 2 epochs" in " ".join(out.split())


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["--lr", "0.1"], "--lr is given without --train"),
        (["--gradual"], "--gradual is given without --train"),
        (["--checkpoint", "x"], "--checkpoint is given without --train"),
        (["--train", "--time-limit", "soon"], "'soon' is no time"),
        (["--train", "--augment", "blur"], "'blur' is none of"),
        (["--train", "--gradual", "--batch", "8"], "gradual: nothing says how much is removed"),
        (["--train", "--batch", "100000"], "fewer than a batch of 100000"),
    ],
)
def test_what_cannot_be_is_one_line(
    run: Run, tmp_path: Path, network: Path, data: Path, given: list[str], text: str
) -> None:
    code, _, err = run("compress", network, "--data", data, *given, "-o", tmp_path / "out")
    assert code == 2
    assert text in " ".join(err.split())
    assert not (tmp_path / "out").exists()
