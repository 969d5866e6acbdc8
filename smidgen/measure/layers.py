"""Layers timed in ONNX Runtime, each in turns with the one it would replace.

    share = median over rounds of (the chain's time / the layer's time in the same round)

On one sample, in a given number of threads. Several files take turns, so that no layer finds its own weights in the
nearest cache, as none does in a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from smidgen.measure.latency import measure_latency
from smidgen.runtimes.onnxruntime import open_onnx

TURNS = 8  # chains beside the layer
TURNS_NBYTES = 256 << 20  # … and bytes of all of them that are open at once
REPEATS = 40
MIN_SECONDS = 0.08  # short calls are repeated: a neighbour on the machine comes and goes within tens of milliseconds


def time_chains(
    layer: bytes, chains: Mapping[str, bytes], shape: tuple[int, ...], threads: int, seconds: float
) -> tuple[float, dict[str, float]]:
    """Time a layer and the chains that could replace it.

    Args:
        layer: ONNX file of the layer as it is.
        chains: ONNX files by name.
        shape: of one sample, ``[1, …]``.
        threads: of the runtime.
        seconds: to be spent on it, or a little more: every chain gets a few rounds.

    Returns:
        Milliseconds of the layer, and each chain's time as a share of it.
    """
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    portions = list(_portions(layer, chains))
    layer_ms, shares = [], {}
    for portion in portions:
        with TemporaryDirectory(prefix="smidgen-") as folder, ExitStack() as opened:
            runners = {}
            for k, (name, file) in enumerate({"": layer, **portion}.items()):
                path = Path(folder) / f"{k}.onnx"
                path.write_bytes(file)
                runners[name] = opened.enter_context(open_onnx(path, threads))
                path.unlink()
            found = measure_latency(
                runners, x, repeats=REPEATS, min_seconds=MIN_SECONDS, max_seconds=seconds / len(portions)
            )
        layer_ms.append(found[""].median_ms)
        shares.update({name: 1 / found[name].speedup for name in portion})
    return float(np.median(layer_ms)), shares


def _portions(layer: bytes, chains: Mapping[str, bytes]) -> Iterator[dict[str, bytes]]:
    """The chains, as many at once as may be open; one empty portion where there are none."""
    portion: dict[str, bytes] = {}
    for name, file in chains.items():
        weighs = len(layer) + sum(map(len, portion.values())) + len(file)
        if portion and (len(portion) == TURNS or weighs > TURNS_NBYTES):
            yield portion
            portion = {}
        portion[name] = file
    yield portion
