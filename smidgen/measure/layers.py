"""Layers timed in ONNX Runtime, each in turns with the one it would replace.

    share = median over openings of the median over rounds of (the chain's time / the layer's in the same round)

On one sample, in a given number of threads. Several files take turns, so that no layer finds its own weights in the
nearest cache, as none does in a network. A file that is opened anew finds its memory elsewhere: with two threads its
time may then be a fifth longer or shorter, so what hangs on one layer's time is timed in several openings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from smidgen.measure.latency import Latency, measure_latency
from smidgen.runtimes.onnxruntime import open_onnx

TURNS = 8  # chains beside the layer
TURNS_NBYTES = 256 << 20  # … and bytes of all of them that are open at once
REPEATS = 40
NEAR = 1.15  # times as long as the fastest: two timings of one layer in two threads may differ by this
MIN_SECONDS = 0.08  # short calls are repeated: a neighbour on the machine comes and goes within tens of milliseconds


def time_chains(
    layer: bytes, chains: Mapping[str, bytes], shape: tuple[int, ...], threads: int, seconds: float, openings: int = 1
) -> tuple[float, dict[str, float]]:
    """Time a layer and the chains that could replace it.

    Args:
        layer: ONNX file of the layer as it is.
        chains: ONNX files by name.
        shape: of one sample, ``[1, …]``.
        threads: of the runtime.
        seconds: to be spent on it, or a little more: every chain gets a few rounds.
        openings: how often every file is opened afresh and timed, within these seconds. Where there are several, what
            comes near to the fastest is timed again, as often and as long.

    Returns:
        Milliseconds of the layer, and each chain's time as a share of it.
    """
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    layer_ms: list[float] = []
    shares: dict[str, list[float]] = {name: [] for name in chains}

    def measure(some: Mapping[str, bytes]) -> None:
        portions = [portion for _ in range(openings) for portion in _portions(layer, some)]
        for portion in portions:
            found = _in_turns({"": layer, **portion}, x, threads, seconds / len(portions))
            layer_ms.append(found[""].median_ms)
            for name in portion:
                shares[name].append(1 / found[name].speedup)

    measure(chains)
    if openings > 1:
        near = _near({name: float(np.median(each)) for name, each in shares.items()})
        if near:
            measure({name: chains[name] for name in near})
    return float(np.median(layer_ms)), {name: float(np.median(each)) for name, each in shares.items()}


def _near(shares: Mapping[str, float]) -> list[str]:
    """Chains that come near to the fastest way, where that leaves a choice; the layer itself is one.

    >>> _near({"a": 0.5, "b": 0.52, "c": 2.0}), _near({"a": 0.5, "b": 0.9}), _near({"a": 0.97})
    (['a', 'b'], [], ['a'])
    """
    most = NEAR * min(1.0, *shares.values()) if shares else 0.0
    near = [name for name, share in shares.items() if share <= most]
    return near if len(near) + (most >= 1) > 1 else []


def _in_turns(files: Mapping[str, bytes], x: np.ndarray, threads: int, seconds: float) -> dict[str, Latency]:
    """Files opened, timed and closed."""
    with TemporaryDirectory(prefix="smidgen-") as folder, ExitStack() as opened:
        runners = {}
        for k, (name, file) in enumerate(files.items()):
            path = Path(folder) / f"{k}.onnx"
            path.write_bytes(file)
            runners[name] = opened.enter_context(open_onnx(path, threads))
            path.unlink()
        return measure_latency(runners, x, repeats=REPEATS, min_seconds=MIN_SECONDS, max_seconds=seconds)


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
