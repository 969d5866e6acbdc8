"""The range of every activation in a TFLite file, measured on calibration inputs.

    minmax    the least and the greatest value seen
    mse       the range that least squares prefer: clipping few values may cost less than rounding all of them coarser

The range that least squares prefer is searched by shrinking each end, on a sample of the values (Banner et al. 2019,
arXiv:1810.05723, derive it from a distribution; here it is the values' own).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from smidgen.data import Dataset
from smidgen.runtimes.litert import interpreter_of
from smidgen.runtimes.tflite_file import CHANNELS_LAST, number_of, parse

Range = tuple[float, float]
Choice = Literal["minmax", "mse"]
CHOICES: tuple[Choice, ...] = get_args(Choice)

INPUTS = 128  # calibration inputs run at most
SAMPLE = 1 << 15  # values of a tensor that a range is searched on
SHARES = np.linspace(1.0, 0.2, 33)  # of an end's distance from zero
LEVELS = 255  # steps of eight bits


def observe(content: bytes, inputs: Dataset, most: int = INPUTS) -> Activations:
    """Run a file on calibration inputs and keep what its tensors held.

    Args:
        content: a TFLite file of floats.
        inputs: calibration inputs, as the network takes them.
        most: inputs run at most.
    """
    model = parse(content)
    graph = model.subgraphs[0]
    float32 = number_of("TensorType", "FLOAT32")
    computed = [int(i) for operator in graph.operators for i in operator.outputs]
    watched = [i for i in [*map(int, graph.inputs), *computed] if graph.tensors[i].type == float32]
    count = min(most, len(inputs))
    seen = {i: _Seen(count) for i in watched}
    interpreter = interpreter_of(content, every_tensor=True)
    last = model.description in (CHANNELS_LAST, CHANNELS_LAST.encode())
    for batch in inputs.array(0, count).batches(1):
        fed = np.moveaxis(batch, 1, -1) if last else batch
        interpreter.set_tensor(int(graph.inputs[0]), np.ascontiguousarray(fed, np.float32))
        interpreter.invoke()
        for i, each in seen.items():
            each.add(interpreter.get_tensor(i))
    return Activations(seen, frozenset(int(i) for i in [*graph.inputs, *graph.outputs]))


@dataclass(frozen=True, eq=False)
class Activations:
    """What the tensors of a file held.

    Args:
        seen: by the tensor's number.
        ends: the file's inputs and outputs, which keep all they take.
    """

    seen: Mapping[int, _Seen]
    ends: frozenset[int]

    def ranges(self, choice: Choice) -> dict[int, Range]:
        """Range of every tensor by its number, chosen in one of the two ways."""
        return {i: each.range("minmax" if i in self.ends else choice) for i, each in self.seen.items()}


class _Seen:
    """Extremes of a tensor's values and an even sample of them."""

    def __init__(self, runs: int) -> None:
        self.each = max(1, SAMPLE // max(1, runs))
        self.low, self.high = np.inf, -np.inf
        self.kept: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        flat = values.ravel()
        self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
        rng = np.random.default_rng(len(self.kept))
        self.kept.append(flat if flat.size <= self.each else flat[rng.integers(0, flat.size, self.each)])

    def range(self, choice: Choice) -> Range:
        if choice == "minmax":
            return self.low, self.high
        return least_squares_range(np.concatenate(self.kept), self.low, self.high)


def least_squares_range(values: np.ndarray, low: float, high: float) -> Range:
    """The range around zero whose 255 steps come nearest to the values.

    Args:
        values: a sample.
        low, high: least and greatest value; nothing outside is searched.

    >>> values = np.append(np.random.default_rng(0).normal(size=99_999), 20.0)
    >>> low, high = least_squares_range(values, float(values.min()), 20.0)
    >>> bool(low < -3 and 10 < high < 19)
    True
    """
    low, high = min(low, 0.0), max(high, 0.0)
    best = (low, high)
    for _ in range(2):  # each end by itself, twice over
        best = min(((low * share, best[1]) for share in SHARES), key=lambda each: _error(values, *each))
        best = min(((best[0], high * share) for share in SHARES), key=lambda each: _error(values, *each))
        if low == 0.0:
            break
    return best


def _error(values: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / LEVELS
    if step <= 0:
        return float(np.square(values, dtype=np.float64).sum())
    clipped = np.clip(values, low, high)
    return float(np.square(np.round(clipped / step) * step - values, dtype=np.float64).sum())


def joined(ranges: Mapping[int, Range], places: list[int]) -> Range | None:
    """The range that holds those of several tensors and zero; None where none was measured.

    >>> joined({1: (-1.0, 2.0), 2: (0.5, 3.0)}, [1, 2])
    (-1.0, 3.0)
    """
    known = [ranges[i] for i in places if i in ranges]
    if not known:
        return None
    return min(0.0, *(low for low, _ in known)), max(0.0, *(high for _, high in known))
