"""The search for the TFLite file of integers that loses least: ranges are seen, tried and chosen by what it loses.

    observe → quantise, run and measure each way to choose ranges → values back to floats

Measured on selection inputs, in LiteRT, against the file of floats. A value of which eight bits cost too much stays in
floats: what makes it and what reads it do too, their weights still int8 in the file, made floats on opening. Sixteen
bits beside eight would need the same operators around them, for kernels without XNNPACK's speed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from smidgen.calibrate.answers import true_losses
from smidgen.calibrate.tflite_ranges import CHOICES, INPUTS, Activations, Range, observe
from smidgen.data import Dataset
from smidgen.export.tflite_graph import Graph
from smidgen.export.tflite_int8 import COPYING, Steps, quantized
from smidgen.runtimes.litert import runner_of
from smidgen.runtimes.tflite_file import parse

# As of `smidgen.export.static`: nats from which on values may return to floats, the share that must be left at most
# where one does, and how many do and are tried each time.
HIGH, WORTH, MOST_FLOATS, MOST_TRIED = 0.02, 0.8, 4, 4


def calibrated(
    content: bytes,
    inputs: Dataset,
    integers: Sequence[np.ndarray] = (),
    threads: int = 1,
    *,
    held: Dataset | None = None,
    micro: bool = False,
) -> bytes:
    """The file in integers of eight bits, with those ranges of its activations that cost it least.

    None is best for all networks: SqueezeNet and MobileNetV2 gain by clipping, ResNet-20 loses.

    Args:
        content, integers, micro: see `smidgen.export.tflite_int8.quantized`; with ``micro`` nothing returns to floats.
        inputs: calibration inputs, on which ranges are seen.
        held: selection inputs, on which ways are compared; some of the calibration inputs when None.
        threads: of the runtime.
    """
    return _Static(content, inputs, inputs.array(0, min(INPUTS, len(inputs))) if held is None else held, integers,
                   threads, micro).best()  # fmt: skip


def answers_of(content: bytes, inputs: Dataset, threads: int) -> list[list[torch.Tensor]]:
    """Outputs of a file, batch by batch."""
    with runner_of(content, threads) as runner:
        return [[torch.from_numpy(each) for each in runner.run(batch)] for batch in inputs.batches()]


class _Static:
    def __init__(
        self, content: bytes, inputs: Dataset, held: Dataset, integers: Sequence[np.ndarray], threads: int, micro: bool
    ) -> None:
        self.content, self.held, self.integers, self.threads, self.micro = content, held, integers, threads, micro
        self.activations: Activations = observe(content, inputs)
        self.reference = answers_of(content, held, threads)

    def best(self) -> bytes:
        ways = [self.activations.ranges(choice) for choice in CHOICES]
        made = [self._made(ranges) for ranges in ways]
        losses = [self._loss(each) for each in made]
        chosen = int(np.argmin(losses))
        if self.micro:
            return made[chosen]
        return self._with_floats(made[chosen], losses[chosen], ways[chosen])

    def _with_floats(self, best: bytes, least: float, ranges: dict[int, Range]) -> bytes:
        """Values that cost most go back to floats, one at a time, while the loss is high and that helps."""
        floats: frozenset[int] = frozenset()
        suspects = self._suspects(ranges) if least > HIGH else []
        for _ in range(MOST_FLOATS):
            tried = [floats | around for around in suspects if not around <= floats][:MOST_TRIED]
            if least <= HIGH or not tried:
                break
            made = [self._made(ranges, each) for each in tried]
            losses = [self._loss(each) for each in made]
            i = int(np.argmin(losses))
            if losses[i] > WORTH * least:
                break
            best, least, floats = made[i], losses[i], tried[i]
        return best

    def _suspects(self, ranges: dict[int, Range]) -> list[frozenset[int]]:
        """Operators around each value, in falling order of its error in integers as a share of its size."""
        graph = Graph(parse(self.content))
        found = []
        for i, seen in self.activations.seen.items():
            maker = [n for n, o in enumerate(graph.graph.operators) if i in map(int, o.outputs)]
            if i not in ranges or (maker and graph.name(graph.graph.operators[maker[0]]) in COPYING):
                continue
            steps, values = Steps.of(*ranges[i]), seen.values
            error = (steps.stored(values).astype(np.float64) - steps.zero) * steps.scale - values
            share = float(np.square(error).mean() / max(float(np.square(values, dtype=np.float64).mean()), 1e-30))
            found.append((share, frozenset([*maker, *_readers(graph, i)])))
        return [around for _, around in sorted(found, key=lambda each: -each[0])]

    def _made(self, ranges: dict[int, Range], floats: frozenset[int] = frozenset()) -> bytes:
        return quantized(self.content, ranges, self.integers, floats=floats, micro=self.micro)

    def _loss(self, content: bytes) -> float:
        return float(true_losses(self.reference, answers_of(content, self.held, self.threads)).mean())


def _readers(graph: Graph, i: int) -> set[int]:
    """Numbers of the operators that read a value, also once it was moved or compared."""
    found: set[int] = set()
    for n, operator in enumerate(graph.graph.operators):
        if i in map(int, operator.inputs):
            found.add(n)
            if graph.name(operator) in COPYING:
                found |= set().union(*(_readers(graph, int(k)) for k in operator.outputs))
    return found
