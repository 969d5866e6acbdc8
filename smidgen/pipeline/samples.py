"""A few inputs for a written file: of the given data, else drawn."""

from __future__ import annotations

import numpy as np

from smidgen.data import Dataset, check_inputs
from smidgen.errors import DataError
from smidgen.runtimes.opening import Runner


def sample_inputs(runner: Runner, data: Dataset | None, count: int = 1, seed: int = 0) -> np.ndarray:
    """The first inputs of the data; without data uniform numbers from 0 to 1.

    Args:
        runner: an opened file, whose inputs they are.
        data: inputs, or None.
        count: how many at most.
        seed: of what is drawn.

    Returns:
        Inputs ``[n, …]``.

    Raises:
        DataError: data that do not fit, or a file that does not tell the shape of its input.
    """
    if data is not None:
        check_inputs(data, runner.input_shape)
        return np.concatenate(list(data.array(0, min(count, len(data))).batches()))
    shape = runner.input_shape[1:]
    if any(side is None for side in shape):
        raise DataError(f"data: '{runner.path.name}' does not tell its input's shape; give --data")
    generator = np.random.default_rng(seed)
    return generator.random((count, *[int(side or 1) for side in shape]), dtype=np.float32)
