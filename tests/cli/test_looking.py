"""``smidgen glimpse``: the files, the table, and what is said of mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from smidgen.cli.looking import read_boxes
from smidgen.errors import DataError

Run = Callable[..., tuple[int, str, str]]
NETWORK = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 3))

def head():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
"""


@pytest.fixture
def given(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "nets.py").write_text(NETWORK)
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=generator.random((60, 1, 32, 32), dtype=np.float32), y=np.arange(60) % 3)
    np.save(tmp_path / "boxes.npy", np.tile([0.0, 0.0, 0.5], (60, 1)))
    return (f"{tmp_path / 'nets.py'}:net", "--data", str(tmp_path / "x.npz"), "--epochs", "1", "--batch", "16", "-q")


def test_files_and_what_is_expected(run: Run, tmp_path: Path, given: tuple[str, ...]):
    out, boxes = tmp_path / "out", tmp_path / "boxes.npy"
    more = ("--side", "8", "--classifier", f"{tmp_path / 'nets.py'}:head", "--boxes", boxes, "-o", out)
    code, told, err = run("glimpse", *given, *more)
    assert (code, err) == (0, "")
    assert "glimpse" in told
    assert {"model.onnx", "model.safetensors", "result.json", "original.onnx"} == {p.name for p in out.iterdir()}
    record = json.loads((out / "result.json").read_text())
    assert record["asked"]["crop"] == [8, 8]
    assert sum(record["glimpse"]["test"]["shares"]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--side", "wide"), "--side 'wide' is no size in pixels; give 36 or 32x28"),
        (("--side", "8x8x8"), "is no size in pixels"),
        (("--side", "64"), "a crop of 64×64 is no part of images of 32×32"),
        (("--side", "8", "--boxes", "none.npy"), "boxes cannot be read from 'none.npy'"),
        (("--side", "8", "--target", "tflite"), "tflite has no branches"),
        (("--side", "8", "--max-drop", "much"), "max_drop='much'"),
        (("--side", "8", "--ratio", "4", "--tradeoff", "0.1"), "ratio"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(run: Run, tmp_path: Path, given: tuple[str, ...], more, told):
    code, out, err = run("glimpse", *given, "-o", tmp_path / "out", *more)
    assert code == 2
    assert out == ""
    assert told in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_boxes_as_text_and_what_are_none(tmp_path: Path):
    path = tmp_path / "boxes.csv"
    path.write_text("0,0.5,0.25\n-1,1,1\n")
    assert read_boxes(str(path)).tolist() == [[0.0, 0.5, 0.25], [-1.0, 1.0, 1.0]]
    for text in ("", "0,1\n", "a,b,c\n"):
        path.write_text(text)
        with pytest.raises(DataError):
            read_boxes(str(path))
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        read_boxes(str(tmp_path / "objects.npy"))
