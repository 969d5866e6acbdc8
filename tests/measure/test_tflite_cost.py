"""Parameters and multiplications counted from a TFLite file, by hand and as from the ONNX file of the same network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from smidgen.errors import LoadError

pytest.importorskip("litert_torch", reason="the tflite extra is not installed")

from smidgen.export.tflite import write_tflite
from smidgen.measure.cost import file_cost
from smidgen.measure.tflite_cost import tflite_cost

COSTS = {
    "conv": (nn.Conv2d(3, 8, 3), (3, 6, 6), 216 + 8, 16 * 216),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (4, 6, 6), 72 + 8, 16 * 72),
    "transposed": (nn.ConvTranspose2d(3, 5, 2, 2), (3, 4, 4), 60 + 5, 16 * 60),
    "dense": (nn.Linear(7, 5), (7,), 35 + 5, 35),
}


@pytest.mark.parametrize("name", COSTS)
def test_layers_are_counted(name: str, tmp_path: Path) -> None:
    layer, shape, params, macs = COSTS[name]
    torch.manual_seed(0)
    nn.init.normal_(layer.bias)  # type: ignore[arg-type]
    write_tflite(nn.Sequential(layer), torch.zeros(1, *shape), tmp_path / "one.tflite")
    assert file_cost(tmp_path / "one.tflite") == (params, macs)


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot read"):
        tflite_cost(tmp_path / "none.tflite")
    (tmp_path / "text.tflite").write_text("a few words")
    with pytest.raises(LoadError, match="not a TFLite file"):
        file_cost(tmp_path / "text.tflite")
