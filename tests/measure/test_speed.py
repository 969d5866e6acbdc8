"""Files timed beside their original, two at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from smidgen.errors import LoadError
from smidgen.export.onnx_chain import chain_file, input_shape
from smidgen.forms import Dense, Geometry, Stage, hollow
from smidgen.measure import speed
from smidgen.measure.latency import Latency, joined
from smidgen.measure.speed import compare_speed

WELL_TIMED = True


def written(folder: Path, channels: int) -> Path:
    g = Geometry("conv", 8, channels, (3, 3), (1, 1), (1, 1), (1, 1), in_size=(24, 24), out_size=(24, 24))
    path = folder / f"{channels}.onnx"
    path.write_bytes(chain_file((Stage(Dense(hollow()), g),)))
    assert input_shape((Stage(Dense(hollow()), g),)) == (1, 8, 24, 24)
    return path


X = np.ones((1, 8, 24, 24), np.float32)


def test_an_eighth_of_the_work_is_faster(tmp_path: Path) -> None:
    before, after = compare_speed(written(tmp_path, 64), written(tmp_path, 8), X, 1)
    assert before.speedup == 1
    assert after.speedup > 1.3
    assert after.median_ms < before.median_ms


def test_it_is_measured_as_often_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speedups = iter([2.0, 2.2, 2.1])

    def measured(runners: dict[str, object], *_: object, **__: object) -> dict[str, Latency]:
        assert list(runners) == ["original", "file"]
        return {"original": Latency(2.0, 2.0, 2.0, 30, 1.0), "file": Latency(1.0, 1.0, 1.0, 30, next(speedups), 0.01)}

    monkeypatch.setattr(speed, "measure_latency", measured)
    before, after = compare_speed(written(tmp_path, 8), written(tmp_path, 8), X, 1, times=3)
    assert (before.runs, after.runs, after.speedup) == (90, 90, 2.1)
    assert after.error == pytest.approx(0.1 / 3**0.5)


def test_one_measurement_alone_stays_what_it_is() -> None:
    alone = Latency(1.0, 0.9, 1.2, 30, 2.0, 0.05)
    assert joined([alone]) == alone


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no file"):
        compare_speed(written(tmp_path, 8), tmp_path / "none.onnx", X, 1)
