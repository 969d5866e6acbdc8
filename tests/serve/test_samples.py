"""Samples fit the network, are drawn the same way every time, and noise goes through the preprocessing."""

from __future__ import annotations

import numpy as np
import pytest

from smidgen.data import Dataset, Preprocess
from smidgen.errors import DataError
from smidgen.serve.samples import LARGEST_NBYTES, noise, take_samples


def test_samples_are_drawn_from_everywhere() -> None:
    x = np.arange(1000, dtype=np.float32)[:, None]
    data = Dataset.from_array(x, labels=np.arange(1000))
    first, again, other = (take_samples(data, (None, 1), None, 20, seed) for seed in (0, 0, 1))
    assert first.labels is not None
    assert np.array_equal(first.x[:, 0], first.labels), "labels stay with their inputs"
    assert np.array_equal(first.x, again.x)
    assert not np.array_equal(first.x, other.x)
    assert len(set(first.labels.tolist())) == 20
    assert first.labels.max() - first.labels.min() > 500, "not the first ones of a sorted set"


def test_no_more_than_there_are() -> None:
    data = Dataset.from_array(np.zeros((3, 2), np.float32))
    assert len(take_samples(data, (None, 2), None, 20).x) == 3
    large = noise((None, 3, 2048, 2048), None, 20)
    assert len(large.x) == LARGEST_NBYTES // (4 * 3 * 2048 * 2048) == 1


def test_inputs_that_do_not_fit() -> None:
    data = Dataset.from_array(np.zeros((3, 28, 28, 1), np.float32))
    with pytest.raises(DataError, match="--layout nchw"):
        take_samples(data, (None, 1, 28, 28), None)
    for count in (0, -1, 1001):
        with pytest.raises(DataError, match="not between 1 and 1000"):
            take_samples(data, (None, 28, 28, 1), None, count)


@pytest.mark.parametrize(("layout", "shape"), [("nchw", (None, 3, 5, 7)), ("nhwc", (None, 5, 7, 3))])
def test_noise_is_of_pixels(layout: str, shape: tuple[int | None, ...]) -> None:
    preprocess = Preprocess(scale="1/255", mean=(0.0, 1.0, 2.0), std=(1.0, 2.0, 4.0), layout=layout)
    x = noise(shape, preprocess, 50).x
    assert x.shape == (50, *shape[1:])
    channels = x if layout == "nhwc" else np.moveaxis(x, 1, 3)
    restored = (channels * (1.0, 2.0, 4.0) + (0.0, 1.0, 2.0)) * 255
    assert np.abs(restored - np.round(restored)).max() < 1e-3
    assert np.round(restored).min() == 0
    assert np.round(restored).max() == 255


def test_noise_without_preprocessing_or_a_size() -> None:
    x = noise((None, 12), None, 4).x
    assert (x.shape, x.dtype) == ((4, 12), np.float32)
    assert 0 <= x.min() < x.max() < 1
    with pytest.raises(DataError, match="give inputs with --data"):
        noise((None, 3, None, 224), None)
