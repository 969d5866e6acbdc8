"""Written files timed beside their original, always two at a time.

A third file that takes turns with them would cost each of them its place in the processor's cache: ResNet-20 compressed
is 1.67 times faster than the original beside it alone, 1.62 times where three take turns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from smidgen.measure.latency import Latency, joined, measure_latency
from smidgen.runtimes.opening import open_file

SECONDS = 0.3  # of one measurement, at least
MOST_SECONDS = 2.0  # … and at most, but for a single round


def compare_speed(original: Path, file: Path, x: np.ndarray, threads: int, times: int = 1) -> tuple[Latency, Latency]:
    """Time a file and its original in turns.

    Args:
        original, file: ONNX files; they may be the same.
        x: one sample, ``[1, …]``.
        threads: of the runtime.
        times: that both are opened afresh and measured; more where a promise hangs on it.

    Returns:
        The latency of the original and that of the file, whose ``speedup`` says how many times faster it is.
    """
    blocks: list[dict[str, Latency]] = []
    for _ in range(times):
        with open_file(original, threads) as before, open_file(file, threads) as after:
            runners = {"original": before, "file": after}
            blocks.append(measure_latency(runners, x, min_seconds=SECONDS, max_seconds=MOST_SECONDS))
    return joined([block["original"] for block in blocks]), joined([block["file"] for block in blocks])
