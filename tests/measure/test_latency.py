"""Latency on runners whose time is known."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from smidgen.errors import DataError
from smidgen.measure.latency import measure_latency

ONE = np.zeros((1, 2))


class Sleeper:
    """Answers after ``seconds``, and notes each call in ``calls``."""

    def __init__(self, seconds: float, name: str = "", calls: list[str] | None = None) -> None:
        self.seconds, self.name, self.calls = seconds, name, calls if calls is not None else []

    def run(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        time.sleep(self.seconds)
        self.calls.append(self.name)
        return (x,)


def test_medians_order_and_ratio() -> None:
    found = measure_latency({"slow": Sleeper(0.012), "fast": Sleeper(0.003)}, ONE, repeats=9, min_seconds=0.0)
    slow, fast = found["slow"], found["fast"]
    assert 12 <= slow.low_ms <= slow.median_ms <= slow.high_ms
    assert 3 <= fast.median_ms < 12
    assert slow.speedup == 1
    assert 1.5 < fast.speedup < 4.5
    assert slow.runs == fast.runs == 9


def test_rounds_alternate_after_a_warm_up() -> None:
    calls: list[str] = []
    runners = {name: Sleeper(0.0, name, calls) for name in "AB"}
    measure_latency(runners, ONE, repeats=3, min_seconds=0.0)
    assert "".join(calls) == "ABABAB" + "ABBAAB"


def test_of_three_none_is_called_twice_in_a_row_nor_always_after_the_same() -> None:
    calls: list[str] = []
    runners = {name: Sleeper(0.0, name, calls) for name in "ABC"}
    measure_latency(runners, ONE, repeats=6, min_seconds=0.0)
    timed = "".join(calls)[9:]
    assert timed == "ABCBCACAB" * 2
    assert all(a != b for a, b in pairwise(timed[:9]))


def test_an_error_falls_with_the_rounds_and_is_none_where_nothing_varies() -> None:
    runners = {"a": Sleeper(0.001), "b": Sleeper(0.002)}
    found = measure_latency(runners, ONE, repeats=20, min_seconds=0.0)
    assert found["a"].error == 0
    assert 0 < found["b"].error < 0.5


def test_time_is_bounded_and_one_round_is_certain() -> None:
    start = time.perf_counter()
    found = measure_latency({"a": Sleeper(0.05)}, ONE, repeats=1000, max_seconds=0.3)
    assert 1 <= found["a"].runs < 7
    assert time.perf_counter() - start < 1
    assert measure_latency({"a": Sleeper(0.02)}, ONE, max_seconds=0.01)["a"].runs == 1


def test_short_calls_are_repeated_for_the_least_time() -> None:
    found = measure_latency({"a": Sleeper(0.001)}, ONE, repeats=2, min_seconds=0.05)
    assert found["a"].runs > 5


def test_latency_is_of_one_sample() -> None:
    with pytest.raises(DataError, match=r"one sample \[1, …\], got shape \[2, 2\]"):
        measure_latency({"a": Sleeper(0.0)}, np.zeros((2, 2)))
    with pytest.raises(ValueError, match="nothing to time"):
        measure_latency({}, ONE)
