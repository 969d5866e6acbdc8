"""What every runner asks of a batch before its runtime sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def in_portions(
    path: Path,
    names: Sequence[str],
    batch: int,
    x: np.ndarray,
    answer: Callable[[np.ndarray], tuple[np.ndarray, ...]],
) -> tuple[np.ndarray, ...]:
    """Answers of a file with a fixed batch: portions of that size, the last one filled up and the filling cut off.

    Args:
        path, names: the file and its outputs, for the message.
        batch: that the file was written for.
        x: samples ``[n, …]``, as `check_batch` let them through.
        answer: of exactly one batch.

    Raises:
        DataError: an output has no sample axis, so that portions cannot be put together.

    >>> [out.tolist() for out in in_portions(Path("m"), ["y"], 2, np.arange(3), lambda x: (x * 10,))]
    [[0, 10, 20]]
    """
    if batch == len(x):
        return answer(x)

    def portion(part: np.ndarray) -> tuple[np.ndarray, ...]:
        missing = batch - len(part)
        outputs = answer(np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part)
        for name, output in zip(names, outputs, strict=True):
            if output.ndim == 0 or len(output) != batch:
                raise DataError(
                    f"runtime: output '{name}' of '{path.name}' has shape {list(output.shape)}, "
                    f"not {batch} samples first; give {batch} samples at a time"
                )
        return tuple(output[: len(part)] for output in outputs)

    portions = [portion(x[start : start + batch]) for start in range(0, len(x), batch)]
    return tuple(np.concatenate(parts) for parts in zip(*portions, strict=True))
