"""bench(): written files timed beside their original, on this machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smidgen.errors import UserError
from smidgen.measure.files import nbytes, sha256
from smidgen.measure.latency import Latency
from smidgen.measure.speed import compare_speed
from smidgen.model.onnx import whole_onnx
from smidgen.pipeline.samples import sample_inputs
from smidgen.pipeline.task import Data, Progress, as_data
from smidgen.report.benching import Bench
from smidgen.report.record import versions
from smidgen.runtimes.opening import open_file

REPEATS = 5  # measurements of a file, each with both files opened afresh
MOST_REPEATS, MOST_THREADS = 1000, 1024  # more is surely a slip


def bench(
    files: str | Path | Sequence[str | Path],
    against: str | Path | None = None,
    data: Data = None,
    *,
    threads: int | Sequence[int] = 1,
    repeats: int = REPEATS,
    progress: Progress = lambda stage, done, total: None,
) -> Bench:
    """Time written files beside their original: in turns, two at a time, after a warm-up.

    Args:
        files: one file or several, each run by the runtime that its name says.
        against: the original; the first of the files when None.
        data: the first input of it is what they run on, as for `smidgen.compress`; uniform random numbers when None.
        threads: of the runtime, one count or several.
        repeats: measurements of each file, with both files opened afresh: the place in memory that a network happens to
            get is not measured with it.
        progress: called with (stage, done, total).

    Returns:
        Median, quartiles and speed-up of each file at each thread count, for one input.

    Raises:
        UserError: files that cannot be opened, inputs that do not fit, counts that cannot be meant.

    >>> bench("model.onnx", threads=0)
    Traceback (most recent call last):
    smidgen.errors.UserError: bench: threads=0 is not between 1 and 1024; give e.g. 1 or 1,2,4
    """
    counts = _thread_counts(threads)
    if isinstance(repeats, bool) or not 1 <= repeats <= MOST_REPEATS:
        raise UserError(f"bench: repeats={repeats} is not between 1 and {MOST_REPEATS}; give e.g. 5")
    named = [Path(each) for each in ([files] if isinstance(files, (str, Path)) else files)]
    if not named:
        raise UserError("bench: there is nothing to time; give a file")
    original = named[0] if against is None else Path(against)
    rest = [each for each in dict.fromkeys(named) if each != original]
    given = None if data is None else as_data(data)
    whole = {path: whole_onnx(path) for path in (original, *rest)}
    with open_file(whole[original]) as runner:
        one = sample_inputs(runner, given)
    for path in whole.values():
        with open_file(path) as runner:
            runner.run(one)  # told now, not between the measurements
    timings: dict[Path, list[dict[str, Any]]] = {path: [] for path in (original, *rest)}
    total = len(counts) * max(1, len(rest))
    for number, count in enumerate(counts):
        for place, path in enumerate(rest or [original]):
            progress("time", number * max(1, len(rest)) + place, total)
            before, after = compare_speed(whole[original], whole[path], one, count, repeats)
            if place == 0:
                timings[original].append(_timing(count, before))
            if path != original:
                timings[path].append(_timing(count, after))
    record = {
        "schema_version": 1,
        "machine": machine(),
        "versions": versions(),
        "input": {"shape": list(one.shape), "source": "random" if given is None else given.source},
        "repeats": repeats,
        "original": _entry(original, whole[original], timings.pop(original)),
        "files": [_entry(path, whole[path], told) for path, told in timings.items()],
    }
    return Bench(record)


def machine() -> dict[str, Any]:
    """What the processor and the system call themselves."""
    return {"processor": platform.machine(), "system": platform.platform(), "cores": os.cpu_count()}


def _thread_counts(threads: int | Sequence[int]) -> list[int]:
    counts = list(dict.fromkeys([threads] if isinstance(threads, int) else threads))
    for count in counts or [0]:
        if isinstance(count, bool) or not 1 <= count <= MOST_THREADS:
            raise UserError(f"bench: threads={count} is not between 1 and {MOST_THREADS}; give e.g. 1 or 1,2,4")
    return counts


def _timing(threads: int, latency: Latency) -> dict[str, Any]:
    return {
        "threads": threads, "latency_ms": latency.median_ms,
        "latency_quartiles_ms": [latency.low_ms, latency.high_ms], "runs": latency.runs,
        "speedup": latency.speedup, "speedup_error": latency.error,
    }  # fmt: skip


def _entry(path: Path, whole: Path, timings: list[dict[str, Any]]) -> dict[str, Any]:
    return {"path": str(path), "nbytes": nbytes(whole), "sha256": sha256(whole), "timings": timings}
