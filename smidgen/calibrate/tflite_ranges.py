"""The range of every activation in a TFLite file, measured on calibration inputs in LiteRT.

How a range is chosen from what was seen is in `smidgen.calibrate.ranges`; here tensors go by their numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from smidgen.calibrate.ranges import Seen, Watch
from smidgen.data import Dataset
from smidgen.runtimes.litert import interpreter_of
from smidgen.runtimes.tflite_file import CHANNELS_LAST, number_of, parse

Range = tuple[float, float]
Choice = Literal["minmax", "mse"]
CHOICES: tuple[Choice, ...] = get_args(Choice)

INPUTS = 300  # calibration inputs run at most
SAMPLE = 1 << 16  # values of a tensor that a range is searched on


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
    seen = {i: Watch(max(1, SAMPLE // max(1, count))) for i in watched}
    interpreter = interpreter_of(content, every_tensor=True)
    last = model.description in (CHANNELS_LAST, CHANNELS_LAST.encode())
    for batch in inputs.array(0, count).batches(1):
        fed = np.moveaxis(batch, 1, -1) if last else batch
        interpreter.set_tensor(int(graph.inputs[0]), np.ascontiguousarray(fed, np.float32))
        interpreter.invoke()
        for i, each in seen.items():
            each.add(interpreter.get_tensor(i))
    return Activations(
        {i: each.seen() for i, each in seen.items()}, frozenset(int(i) for i in [*graph.inputs, *graph.outputs])
    )


@dataclass(frozen=True, eq=False)
class Activations:
    """What the tensors of a file held.

    Args:
        seen: by the tensor's number.
        ends: the file's inputs and outputs, which keep all they take.
    """

    seen: Mapping[int, Seen]
    ends: frozenset[int]

    def ranges(self, choice: Choice) -> dict[int, Range]:
        """Range of every tensor by its number, chosen in one of the two ways."""
        return {i: self._range(i, choice) for i in self.seen}

    def _range(self, number: int, choice: Choice) -> Range:
        seen = self.seen[number]
        if seen.low == seen.high:
            return seen.low, seen.high  # it never moves, and needs no extent
        found = seen.range("minmax" if number in self.ends else choice)
        return found.low, found.high


def joined(ranges: Mapping[int, Range], places: list[int]) -> Range | None:
    """The range that holds those of several tensors and zero; None where none was measured.

    >>> joined({1: (-1.0, 2.0), 2: (0.5, 3.0)}, [1, 2])
    (-1.0, 3.0)
    """
    known = [ranges[i] for i in places if i in ranges]
    if not known:
        return None
    return min(0.0, *(low for low, _ in known)), max(0.0, *(high for _, high in known))
