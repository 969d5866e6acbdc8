"""Which fast convolutions make a whole file faster: a layer timed alone says too much.

In its network the runtime joins a convolution with the activation behind it and keeps its own order of channels from
one convolution to the next. So files are written and timed: with all that gains alone, with the half of it that gains
most, …; what the fastest one holds is what a plan may choose from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from smidgen.export.onnx import write
from smidgen.forms import Dense
from smidgen.measure.speed import compare_speed
from smidgen.pipeline.task import Progress, Task, one_input
from smidgen.planning.candidates import Options
from smidgen.planning.fastconv import fastest, keep_fast
from smidgen.site import Stored, untouched

TIMES = 3  # that a file and the original are opened afresh and timed: the verdict hangs on it


def halves(by_gain: Sequence[str]) -> Iterator[list[str]]:
    """All names, the half of them that gains most, a half of that, … down to one.

    What gains least alone is most likely lost to what the runtime joins in the whole file.

    >>> list(halves(["a", "b", "c", "d", "e"]))
    [['a', 'b', 'c', 'd', 'e'], ['a', 'b'], ['a']]
    """
    names = list(by_gain)
    while names:
        yield names
        names = names[: len(names) // 2]


def surely_fastest(speeds: Sequence[tuple[float, float]]) -> int:
    """The place of the fastest; a file that is faster than those before it by luck alone is not taken.

    Args:
        speeds: (times faster than the original, the standard error of that), the original first.

    >>> surely_fastest([(1.0, 0.0), (1.3, 0.1), (1.35, 0.1)])
    1
    """
    best = 0
    for place, (speedup, error) in enumerate(speeds):
        if speedup - error > speeds[best][0]:
            best = place
    return best


def with_gaining(task: Task, options: list[Options], original: Path, folder: Path, progress: Progress) -> list[Options]:
    """Options in which those fast convolutions are left that make the file faster.

    Args:
        task: what is worked on.
        options: with algorithms and times.
        original: the file as it was given.
        folder: for the files that are timed.
        progress: called with (stage, done, total).
    """
    gains = fastest(options)
    if not gains:
        return keep_fast(options, {})
    sites, path = task.prepared.sites, folder / "fast.onnx"
    by_gain = sorted(gains, key=lambda name: -gains[name][1])
    tried, trials = [list[str]()], [_speed(task, original, path, {})]
    for names in halves(by_gain):
        progress(f"file with {len(names)} fast convolutions", 0, 0)
        fast = {site.name: Stored(Dense(site.weight, gains[site.name][0]), site.bias)
                for site in sites if site.name in names}  # fmt: skip
        tried.append(names)
        trials.append(_speed(task, original, path, fast))
    path.unlink(missing_ok=True)
    kept = tried[surely_fastest(trials)]
    return keep_fast(options, {name: gains[name][0] for name in kept})


def _speed(task: Task, original: Path, path: Path, fast: dict[str, Stored]) -> tuple[float, float]:
    """Times faster than the original, and the error of that, of a file with some fast convolutions."""
    stored = {site.name: untouched(site) for site in task.prepared.sites} | fast
    write(task.prepared.base, task.prepared.sites, stored, path)
    _, found = compare_speed(original, path, one_input(task), task.threads, times=TIMES)
    return found.speedup, found.error
