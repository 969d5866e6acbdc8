"""What every runner asks of a batch before its runtime sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smidgen.errors import DataError


def check_batch(path: Path, wanted: Sequence[int | None], x: np.ndarray) -> None:
    """DataError where a batch is not of the shape that a file takes, or empty.

    Args:
        path: the file, for the message.
        wanted: shape of its input, the batch axis first; None where an axis is free.
        x: the batch; its first axis may be of any length but 0.

    >>> check_batch(Path("m.onnx"), (None, 3), np.zeros((2, 4)))
    Traceback (most recent call last):
    smidgen.errors.DataError: runtime: 'm.onnx' takes [n, 3] with n ≥ 1, got [2, 4]; check the preprocessing
    """
    fits = x.ndim == len(wanted) and all(
        size is None or size == given for size, given in zip(wanted[1:], x.shape[1:], strict=True)
    )
    if not fits or not len(x):
        axes = ["n", *("any" if size is None else str(size) for size in wanted[1:])]
        raise DataError(
            f"runtime: '{path.name}' takes [{', '.join(axes)}] with n ≥ 1, got {list(x.shape)}; check the preprocessing"
        )
