"""How long an answer takes, measured side by side so that whatever slows the machine slows all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from smidgen.errors import DataError

# The first calls pay for allocation, page faults and caches; two more show whether they are over.
_WARM_UP = 3


@runtime_checkable
class Runner(Protocol):
    """Anything that answers a batch."""

    def run(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """One array an output for the batch ``x`` [n, …]."""
        ...


@dataclass(frozen=True)
class Latency:
    """Time of one call in milliseconds: median and quartiles over ``runs`` calls.

    ``speedup`` is the median over rounds of (the first runner's time) / (this one's time in the same round): above
    one is faster than the first. It is 1 for the first runner itself. ``error`` is one standard error of it, told from
    the quartiles of the rounds: whatever else the machine does now and then does not count.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    speedup: float
    error: float = 0.0


def measure_latency(
    runners: Mapping[str, Runner],
    x: np.ndarray,
    *,
    repeats: int = 30,
    min_seconds: float = 0.3,
    max_seconds: float = 3.0,
) -> dict[str, Latency]:
    """Latency of each runner on the single sample ``x`` [1, …]; the first runner is the one compared with.

    After a warm-up, every round calls each runner once and begins with the next one (A B C, B C A, …), so drift and
    neighbours hit all of them, and none finds its weights in the cache more often than another. Rounds go on until
    there are ``repeats`` and ``min_seconds`` have passed, or until ``max_seconds`` have, warm-up included; there is
    always one. Returns a Latency for each name.
    DataError when ``x`` is not one sample, ValueError without runners.

    >>> class Sleeper:
    ...     def run(self, x):
    ...         time.sleep(0.002)
    ...         return (x,)
    >>> found = measure_latency({"sleeper": Sleeper()}, np.zeros((1, 3)), repeats=3, min_seconds=0.0)
    >>> 2 <= found["sleeper"].median_ms < 50, found["sleeper"].runs
    (True, 3)
    """
    if not runners:
        raise ValueError("there is nothing to time; give at least one runner")
    if x.ndim < 1 or len(x) != 1:
        raise DataError(f"latency: it is measured on one sample [1, …], got shape {list(x.shape)}; give x[:1]")
    start = time.perf_counter()
    names = list(runners)
    for _ in range(_WARM_UP):
        for name in names:
            runners[name].run(x)
        # A slow network is warm after one call, and the bound is a promise.
        if time.perf_counter() - start > max_seconds / 4:
            break
    rounds: list[dict[str, float]] = []
    begun = time.perf_counter()
    while not rounds or (
        (len(rounds) < repeats or time.perf_counter() - begun < min_seconds)
        and time.perf_counter() - start < max_seconds
    ):
        first = len(rounds) % len(names)
        order = names[first:] + names[:first]
        rounds.append({name: _milliseconds(runners[name], x) for name in order})
    return {name: _summary(rounds, name, names[0]) for name in names}


def joined(blocks: Sequence[Latency]) -> Latency:
    """Several measurements of one runner as one: medians of medians, and what the measurements differ by in the error.

    Neighbours and the places that a network's memory happens to get shift a whole measurement, which the spread of its
    rounds does not tell.

    Args:
        blocks: at least one.

    >>> both = joined([Latency(1.0, 0.9, 1.1, 30, 2.0, 0.01), Latency(3.0, 2.9, 3.1, 30, 2.2, 0.01)])
    >>> both.median_ms, both.speedup, round(both.error, 3)
    (2.0, 2.1, 0.1)
    """
    speedups = np.array([each.speedup for each in blocks])
    between = float(speedups.std(ddof=1)) / math.sqrt(len(blocks)) if len(blocks) > 1 else 0.0
    within = float(np.mean([each.error for each in blocks])) / math.sqrt(len(blocks))
    low, median, high = (
        float(np.median(values)) for values in zip(*((b.low_ms, b.median_ms, b.high_ms) for b in blocks), strict=True)
    )
    runs = sum(each.runs for each in blocks)
    return Latency(median, low, high, runs, float(np.median(speedups)), max(between, within))


def _milliseconds(runner: Runner, x: np.ndarray) -> float:
    start = time.perf_counter_ns()
    runner.run(x)
    # The clock's own step keeps a call that took no measurable time from dividing by zero.
    return max(time.perf_counter_ns() - start, 1) / 1e6


def _summary(rounds: list[dict[str, float]], name: str, first: str) -> Latency:
    times = np.array([each[name] for each in rounds])
    low, median, high = (float(q) for q in np.quantile(times, (0.25, 0.5, 0.75)))
    ratios = np.array([each[first] / each[name] for each in rounds])
    least, speedup, most = (float(q) for q in np.quantile(ratios, (0.25, 0.5, 0.75)))
    # Of a median: √(π/2) σ / √n, and 1.349 σ lie between the quartiles of a normal distribution.
    error = math.sqrt(math.pi / 2) * (most - least) / 1.349 / math.sqrt(len(rounds))
    return Latency(median, low, high, len(rounds), speedup, error)
