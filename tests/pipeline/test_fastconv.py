"""fastconv(): low-rank kernels among the ways, modules in the network that comes back, and a file never slower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from smidgen.model.fastconv import FFTConv2d
from smidgen.pipeline import fastconv as pipeline
from smidgen.pipeline.fastconv import fastconv
from smidgen.runtimes.onnxruntime import open_onnx

WELL_TIMED = True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "LAYER_SECONDS", 0.4)
    monkeypatch.setattr(pipeline, "TIMES", 1)
    monkeypatch.setattr(pipeline, "RANKS", 4)


def network() -> nn.Sequential:
    """Two kernels of 31×31 on 28×28, the second of them a pair of one-sided filters."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 31, padding=15), nn.ReLU(),
        nn.Conv2d(16, 16, 31, padding=15), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    ).eval()  # fmt: skip
    pair = torch.einsum("trx,rsy->tsyx", torch.randn(16, 2, 31), torch.randn(2, 16, 31)) / 150
    model[4].weight.data = pair
    return model


def test_each_layer_takes_its_own_way(tmp_path: Path) -> None:
    model = network()
    found = fastconv(model, torch.randn(20, 1, 56, 56), low_rank=1e-6)
    rows = {row.name: row for row in found.layers}
    assert {name: row.chosen for name, row in rows.items()} == {"0": "direct", "2": "fft", "4": "spatial"}
    assert "not spatial: no smaller rank stays within 1e-06 of the kernel" in rows["2"].reasons
    spatial = next(way for way in rows["4"].ways if way.algorithm == "spatial")
    assert spatial.nbytes < rows["4"].ways[0].nbytes / 10  # not every rank is tried
    assert spatial.error < 1e-3
    assert isinstance(found.model[2], FFTConv2d)
    assert isinstance(found.model[4], nn.Sequential)
    assert found.trials[found.taken].speedup > 1
    x = torch.randn(3, 1, 56, 56)
    found.save(tmp_path)
    with open_onnx(tmp_path / "model.onnx") as runner, torch.no_grad():
        np.testing.assert_allclose(runner.run(x.numpy())[0], model(x).numpy(), atol=1e-3)
        torch.testing.assert_close(found.model(x), model(x), atol=1e-3, rtol=1e-3)


def test_a_file_that_is_slower_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    # The layers alone promise three times the speed; the whole file does not hold it.
    slower = pipeline.compare_speed

    def timed(original: Path, file: Path, *rest: object, **named: object) -> object:
        return slower(file, original, *rest, **named) if file != original else slower(file, file, *rest, **named)

    monkeypatch.setattr(pipeline, "compare_speed", timed)
    found = fastconv(network(), example=torch.randn(1, 1, 56, 56), algorithms=["fft"])
    assert found.taken == 0
    assert [trial.layers for trial in found.trials] == [0, 2, 1]
    assert {row.chosen for row in found.layers} == {"direct"}
    assert "nothing gains: the runtime's own convolution is kept (in the whole file 0." in found.verdict()
    assert type(found.model[2]) is nn.Conv2d
