"""The table of rates: near what the coder really writes, and shaped like a cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from smidgen.coding import cost_model, pack


@pytest.mark.parametrize("step", [0.5, 1.0, 2.5])
def test_predicts_the_stream_of_scaled_rows(compiled: None, step: float) -> None:
    source = np.random.default_rng(0)
    values = np.rint(source.laplace(0, 1, (200, 300)) * np.exp(source.normal(0, 0.8, (200, 1))) / step).astype(np.int32)
    model = cost_model(values)
    assert model.bits(values, model.classes).sum() / 8 == pytest.approx(len(pack(values)), rel=0.03)


@pytest.mark.parametrize("step", [0.5, 1.0, 2.5])
def test_predicts_the_streams_of_a_network(compiled: None, data_dir: Path, step: float) -> None:
    layers = load_file(data_dir / "models" / "resnet20_cifar10_jpegft.safetensors").values()
    total = written = 0.0
    for layer in (each for each in layers if each.ndim > 1 and each.size > 2000):
        values = np.rint(layer / (step * layer.std())).astype(np.int32)
        matrix = values.reshape(len(values), -1)
        model = cost_model(matrix)
        total += model.bits(matrix, model.classes).sum() / 8
        written += len(pack(values))
    # The table knows scales but not the predicted values, which the coder uses too.
    assert written < total < 1.10 * written


def test_larger_costs_more_and_both_signs_alike() -> None:
    values = np.rint(np.random.default_rng(1).laplace(0, 2, (50, 60))).astype(np.int32)
    model = cost_model(values)
    classes = np.full(200, int(np.median(model.classes)))
    sizes = np.arange(200)
    bits = model.bits(sizes, classes)
    assert np.array_equal(bits, model.bits(-sizes, classes))
    # Past the values that occurred, every step up costs more.
    assert (np.diff(bits[int(np.abs(values).max()) :]) > 0).all()
    assert np.isfinite(bits).all()


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (1, 1), (5, 1)])
def test_degenerate_matrices_have_finite_rates(shape: tuple[int, int]) -> None:
    for fill in (0, 1, -(2**31)):
        values = np.full(shape, fill, np.int32)
        model = cost_model(values)
        assert np.isfinite(model.bits(values, model.classes)).all()
