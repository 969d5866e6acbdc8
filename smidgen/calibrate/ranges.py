"""Ranges of activations: what values a network takes between its layers, and which of them integers should hold.

    s = (high − low) / 255,   z = round(−low / s),   q = clamp(round(x / s) + z, 0, 255)

A range that holds every value seen wastes steps where few values are large. Which is best is a matter of the network:

    minmax        every value seen
    percentile    all but one in ten thousand on each side (Wu et al. 2020, arXiv:2004.09602, section 3.3)
    mse           least mean of (x − s (q − z))², each end drawn towards zero by itself: clipping few may cost less than
                  rounding all of them coarser (Banner et al., arXiv:1810.05723, from a distribution)
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnx
from jaxtyping import Float

from smidgen.errors import DataError
from smidgen.runtimes.onnxruntime import open_onnx

How = Literal["minmax", "percentile", "mse"]
HOWS: tuple[How, ...] = get_args(How)

LEVELS = 255  # steps of eight bits
TAIL = 1e-4  # of the values, left out on each side by "percentile"
SHARES = np.linspace(1.0, 0.2, 33)  # of an end's distance from zero, tried by "mse"
KEPT = 1 << 17  # values of each activation kept for the choice, and of one portion of the inputs
KEPT_OF_ONE = 1 << 15
RUN_NBYTES = 256 << 20  # activations held at a time
_SMALLEST = 1e-8  # of a range: a value that never moves still needs a scale


@dataclass(frozen=True)
class Range:
    """The values that integers hold; zero is always among them, so that padding and dead units stay exact.

    >>> Range(0.5, 2.0), Range(-1.0, 1.0).zero
    (Range(low=0.0, high=2.0), 128)
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", min(self.low, 0.0))
        object.__setattr__(self, "high", max(self.high, 0.0, self.low + _SMALLEST))

    @property
    def scale(self) -> np.float32:
        """s, rounded so that 255 s is not above the range: a bound that an activation clips at stays one."""
        scale = np.float32((self.high - self.low) / LEVELS)
        over = float(scale) * LEVELS > self.high - self.low
        return np.nextafter(scale, np.float32(0)) if over else scale

    @property
    def zero(self) -> int:
        """z, the integer that stands for zero."""
        return int(np.clip(round(-self.low / float(self.scale)), 0, LEVELS))


@dataclass(frozen=True, eq=False)
class Activations:
    """How the activations of a network become integers.

    Args:
        ranges: of values, by their names in the exported graph.
        floats: values that stay floats.
    """

    ranges: Mapping[str, Range]
    floats: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Seen:
    """What one activation took on the calibration inputs.

    Args:
        low, high: of all values.
        values: a random part of them, float32.
    """

    low: float
    high: float
    values: Float[np.ndarray, " n"]

    def range(self, how: How = "minmax") -> Range:
        """The range that integers should hold.

        >>> values = np.float32(np.random.default_rng(0).normal(size=50_000))
        >>> seen = Seen(float(values.min()), float(values.max()), values)
        >>> seen.range("minmax").high > seen.range("mse").high > seen.range("percentile").high
        True
        """
        if how == "minmax":
            return Range(self.low, self.high)
        if how == "percentile":
            low, high = np.quantile(self.values, [TAIL, 1 - TAIL])
            return Range(float(low), float(high))
        return least_squares_range(self.values, self.low, self.high)


class Watch:
    """Extremes of one value and an even sample of what it takes, a portion of the inputs at a time.

    Args:
        each: values kept of a portion at most.
        seed: of the sample.
    """

    def __init__(self, each: int, seed: int = 0) -> None:
        self.each, self.rng = each, np.random.default_rng(seed)
        self.low, self.high = np.inf, -np.inf
        self.kept: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        """See a portion."""
        flat = values.reshape(-1)
        self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
        kept = flat if flat.size <= self.each else flat[self.rng.integers(0, flat.size, self.each)]
        self.kept.append(np.array(kept, np.float32))

    def seen(self) -> Seen:
        """What it took so far."""
        values = np.concatenate(self.kept)
        if values.size > KEPT:
            values = values[self.rng.integers(0, values.size, KEPT)]
        return Seen(self.low, self.high, values)


def least_squares_range(values: np.ndarray, low: float, high: float) -> Range:
    """The range around zero whose 255 steps come nearest to the values.

    Args:
        values: a sample.
        low, high: least and greatest value; nothing outside is searched.

    >>> values = np.append(np.random.default_rng(0).normal(size=99_999), 20.0)
    >>> found = least_squares_range(values, float(values.min()), 20.0)
    >>> bool(found.low < -3 and 10 < found.high < 19)
    True
    """
    low, high = min(low, 0.0), max(high, 0.0)
    best = (low, high)
    for _ in range(2):  # each end by itself, twice over
        best = min(((low * share, best[1]) for share in SHARES), key=lambda each: _error(values, *each))
        best = min(((best[0], high * share) for share in SHARES), key=lambda each: _error(values, *each))
        if low == 0.0:
            break
    return Range(float(best[0]), float(best[1]))


def _error(values: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / LEVELS
    if step <= 0:
        return float(np.square(values, dtype=np.float64).sum())
    clipped = np.clip(values, low, high)
    return float(np.square(np.round(clipped / step) * step - values, dtype=np.float64).sum())


def watch(
    model: onnx.ModelProto, names: Sequence[str], batches: Iterable[np.ndarray], *, threads: int = 1, seed: int = 0
) -> dict[str, Seen]:
    """Run inputs through a network and see what some of its values take.

    Args:
        model: the network, in floats.
        names: of the values; the network's input and outputs may be among them.
        batches: inputs ``[n, …]``.
        threads: of the runtime.
        seed: of the part of the values that is kept.

    Raises:
        DataError: without inputs, or where a value is nan or infinite.
    """
    found = {name: Watch(KEPT_OF_ONE, seed) for name in names}
    # Closed at once where one is refused: its folder is not left to the garbage collector.
    with closing(values_of(model, names, batches, threads=threads)) as portions:
        for answers in portions:
            for name, values in answers.items():
                found[name].add(values)
                if not np.isfinite([found[name].low, found[name].high]).all():
                    raise DataError(
                        f"ranges: value '{name}' is nan or infinite on a calibration input; check the preprocessing"
                    )
    if not all(each.kept for each in found.values()):
        raise DataError("ranges: there are no calibration inputs; give at least one")
    return {name: each.seen() for name, each in found.items()}


def values_of(
    model: onnx.ModelProto,
    names: Sequence[str],
    batches: Iterable[np.ndarray],
    *,
    threads: int = 1,
    at_once: bool = False,
) -> Generator[Mapping[str, np.ndarray], None, None]:
    """Values inside a network by name, a portion of the inputs at a time so that memory stays bounded.

    Args:
        model, names, batches, threads: as for `watch`.
        at_once: each batch whole.
    """
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    there = {output.name for output in exposed.graph.output}
    ends = {value.name for value in exposed.graph.input}
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there | ends)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exposed.onnx"
        path.write_bytes(exposed.SerializeToString())
        with open_onnx(path, threads) as runner:
            portion = 0
            for batch in batches:
                if not portion:
                    each = sum(values.nbytes for values in runner.run(batch[:1]))
                    portion = len(batch) if at_once else max(1, RUN_NBYTES // max(each, 1))
                for start in range(0, len(batch), portion):
                    x = batch[start : start + portion]
                    answers = dict(zip(runner.output_names, runner.run(x), strict=True))
                    answers[runner.input_name] = np.asarray(x, np.float32)
                    yield {name: answers[name] for name in names}
