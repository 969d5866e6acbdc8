"""``compress --train``: settings reach the training, and those without it are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]


def test_it_trains_and_says_so(run: Run, tmp_path: Path, network: Path, data: Path) -> None:
    asked = ["--target", "onnx-shared", "--bits", "1", "--train", "--epochs", "2", "--batch", "8", "--lr", "0.002"]
    more = ["--time-limit", "1min", "--optimizer", "sgd", "--checkpoint", str(tmp_path / "kept"), "--hold-back", "7"]
    code, out, _ = run("compress", network, "--data", data, *asked, *more, "-o", tmp_path / "out")
    assert code == 0
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    settings = record["training"]["settings"]
    assert (settings["epochs"], settings["batch"], settings["optimizer"]) == (2, 8, "sgd")
    assert (tmp_path / "kept").is_file()
    assert record["data"]["selection"]["count"] == 7
    assert "trained for 2 epochs" in " ".join(out.split())


def test_the_recipe_distil_needs_no_train_and_no_labels(run: Run, tmp_path: Path, network: Path, data: Path) -> None:
    asked = ["--recipe", "distil", "--target", "onnx-shared", "--bits", "1", "--epochs", "1", "--batch", "8"]
    code, out, _ = run("compress", network, "--data", data, *asked, "-o", tmp_path / "out")
    assert code == 0
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["recipe"] == "distil"
    assert record["training"]["settings"]["epochs"] == 1
    assert "Stages of distil" in out


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["--lr", "0.1"], "--lr is given without --train"),
        (["--hold-back", "9"], "--hold-back is given without --train"),
        (["--train", "--hold-back", "0"], "hold_back=0 cannot be; give 1 input or more"),
        (["--train", "--hold-back", "999999"], "999999 of them cannot be held back"),
        (["--gradual"], "--gradual is given without --train"),
        (["--reassign"], "--reassign is given without --train"),
        (["--round-activations"], "--round-activations is given without --train"),
        (["--train", "--batch", "8", "--reassign"], "no weights share values; give target onnx-shared"),
        (["--train", "--batch", "8", "--round-activations"], "a file of onnx computes in floats"),
        (["--checkpoint", "x"], "--checkpoint is given without --train"),
        (["--train", "--time-limit", "soon"], "'soon' is no time"),
        (["--train", "--augment", "blur"], "'blur' is none of"),
        (["--train", "--gradual", "--batch", "8"], "gradual: nothing says how much is removed"),
        (["--train", "--batch", "100000"], "fewer than a batch of 100000"),
        (["--train", "0"], "'0' is no number of epochs; give 1 or more"),
        (["--train=-3"], "'-3' is no number of epochs"),
        (["--train", "2.5"], "'2.5' is no number of epochs"),
        (["--train", "5", "--epochs", "6"], "--train 5 and --epochs 6 differ"),
        (["--recipe", "distill", "--epochs", "2"], "did you mean distil? there are: deep-compression, distil, extreme"),
        (["--recipe", "distil", "--epochs", "0"], "epochs=0 cannot be"),
        (["--recipe", "deep-compression", "--epochs", "2"], "--epochs is given without --train"),
        (["--recipe", "deep-compression", "--train", "--gradual"], "says gradual itself; leave it out"),
        (["--recipe", "deep-compression", "--train", "--target", "onnx-w8"], "says target itself"),
        (["--recipe", "deep-compression", "--ranks", "16"], "takes no settings of"),
        (["--recipe", "deep-compression", "--train", "--batch", "8", "--size", "1kB"], "has no budget of size"),
        (["--recipe", "deep-compression", "--train", "--batch", "8", "--pattern", "2:4"], "in no pattern"),
    ],
)
def test_what_cannot_be_is_one_line(
    run: Run, tmp_path: Path, network: Path, data: Path, given: list[str], text: str
) -> None:
    code, _, err = run("compress", network, "--data", data, *given, "-o", tmp_path / "out")
    assert code == 2
    assert text in " ".join(err.split())
    assert not (tmp_path / "out").exists()
