"""Peak memory of activations counted from a TFLite file, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from smidgen.errors import LoadError

pytest.importorskip("litert_torch", reason="the tflite extra is not installed")

from smidgen.export.tflite import write_tflite
from smidgen.measure.tflite_activations import tflite_peak


class Branches(nn.Module):
    """x is held until it is added back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x).relu())


def test_the_peak_is_what_is_held_at_once(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    write_tflite(Branches().eval(), torch.zeros(1, 3, 10, 10), path)
    peak = tflite_peak(path)
    assert peak is not None
    # While the second convolution runs: x, the eight channels it reads, and the three it makes.
    assert peak.nbytes == 4 * 100 * (3 + 8 + 3)
    assert "CONV_2D" in peak.node
    assert [size for _, size in peak.tensors] == [3200, 1200, 1200]
    assert ("input", 1200) in peak.tensors


def test_a_chain_holds_two(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    layers = [nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 2)]
    write_tflite(nn.Sequential(*layers).eval(), torch.zeros(1, 10), path)
    peak = tflite_peak(path)
    assert peak is not None
    assert peak.nbytes == 4 * (40 + 30)


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot read"):
        tflite_peak(tmp_path / "none.tflite")
    (tmp_path / "text.tflite").write_text("a few words")
    with pytest.raises(LoadError, match="not a TFLite file"):
        tflite_peak(tmp_path / "text.tflite")
