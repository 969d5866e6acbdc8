"""Inputs that both networks answer, and what a browser must know to make more of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smidgen.data import Dataset, Preprocess, check_inputs
from smidgen.errors import DataError

SAMPLES = 20
LARGEST_NBYTES = 64 << 20  # of all samples: a phone loads them


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs for the page.

    Args:
        x: float32 (n, …), ready for the networks.
        labels: (n,), or None.
        source: where they come from; None for noise.
        preprocess: how a picture becomes such an input; None where nothing was declared.
    """

    x: np.ndarray
    labels: np.ndarray | None
    source: str | None
    preprocess: Preprocess | None


def take_samples(
    data: Dataset, shape: Sequence[int | None], preprocess: Preprocess | None, count: int = SAMPLES, seed: int = 0
) -> Samples:
    """A few inputs of a set, drawn at random: many sets are sorted by class.

    Args:
        data: the set.
        shape: what the network takes, with its batch axis; None where any size fits.
        preprocess: how a picture becomes such an input, for the page.
        count: how many, fewer where the set or 64 MiB hold fewer.
        seed: of the draw.

    Raises:
        DataError: inputs that do not fit the network.

    >>> data = Dataset.from_array(np.eye(30, dtype=np.float32))
    >>> take_samples(data, (None, 30), None, count=4).x.shape
    (4, 30)
    """
    check_inputs(data, shape)
    order = np.random.default_rng(seed).permutation(len(data))[: _fitting(count, data.shape)]
    chosen = data.take(order)
    return Samples(np.concatenate(list(chosen.batches())), chosen.labels, data.source, preprocess)


def noise(shape: Sequence[int | None], preprocess: Preprocess | None, count: int = SAMPLES, seed: int = 0) -> Samples:
    """Inputs of noise, where there are no others: they show that both networks run, and how fast.

    Args:
        shape: what the network takes, with its batch axis.
        preprocess: what pixels of noise go through; without it the values lie in 0..1.
        count, seed: as in `take_samples`.

    Raises:
        DataError: a shape that is not known.

    >>> noise((None, 1, 2, 2), Preprocess(scale=2), count=3).x.shape
    (3, 1, 2, 2)
    """
    sides = [side for side in shape[1:] if side is not None]
    if len(sides) != len(shape) - 1:
        raise DataError("serve: the network does not tell its input's size; give inputs with --data")
    generator, number = np.random.default_rng(seed), _fitting(count, sides)
    if preprocess is None or len(sides) != 3:
        return Samples(generator.random((number, *sides), dtype=np.float32), None, None, preprocess)
    height, width, channels = sides if preprocess.layout == "nhwc" else (sides[1], sides[2], sides[0])
    pixels = generator.integers(0, 256, (number, height, width, channels), dtype=np.uint8)
    return Samples(preprocess.arithmetic(pixels), None, None, preprocess)


def _fitting(count: int, sides: Sequence[int]) -> int:
    if not 1 <= count <= 1000:
        raise DataError(f"serve: {count} samples are not between 1 and 1000; leave --samples out for {SAMPLES}")
    return max(1, min(count, LARGEST_NBYTES // (4 * max(1, int(np.prod(sides))))))
