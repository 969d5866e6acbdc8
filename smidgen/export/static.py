"""From a realised network to its static int8 ONNX file: ranges are seen, tried and chosen by what the file loses.

    fill → simplified → layout → watch → write, run and measure each way to choose ranges → values back to floats
         → weights whose products would saturate on some processors rounded more, or as uint8

Measured on selection inputs, in the runtime, against the same network with activations in floats.

Tried and left out: taking off each bias what the mean of its outputs moved by (arXiv:1906.04721, section 4.2), on 128
calibration inputs, layer after layer, each behind those corrected before it. KL of ResNet-20 on 2,000 other training
inputs, ranges by least squares: 0.00068 ± 0.00004 without and with; least and greatest: 0.00073, 0.00076; SqueezeNet:
0.0033, 0.0048, and 0.0065, 0.0076. What clips few large values moves a mean that all the small ones then pay for. All
layers at once is worse still: each makes good what those before it just did (SqueezeNet from 0.005 to 0.037).
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import inf
from pathlib import Path

import numpy as np
import onnx
import torch
from jaxtyping import Float

from smidgen.calibrate.answers import true_losses
from smidgen.calibrate.ranges import HOWS, Activations, How, Range, Seen, values_of, watch
from smidgen.data import Dataset
from smidgen.errors import DataError
from smidgen.export.files import write_bytes
from smidgen.export.onnx import fill
from smidgen.export.onnx_layout import layout, simplified
from smidgen.export.onnx_saturation import SAMPLES, narrowed, saturating, unsigned, weights_in
from smidgen.export.onnx_static import static
from smidgen.export.onnx_strip import strip
from smidgen.export.prepare import Prepared
from smidgen.runtimes.onnxruntime import open_onnx
from smidgen.runtimes.opening import run_dataset
from smidgen.site import Stored

TARGET = "onnx-int8"
WATCHED = 512  # calibration inputs that ranges are seen on at most
COMPARED = 32  # calibration inputs on which values are compared with their floats
HIGH = 0.02  # nats lost to activations in integers, from which on values may return to floats: ten times LeNet's
WORTH = 0.8  # share of the loss that must be left at most where one does; each costs time
# Times the loss, or nats more, at most for weights that are rounded more and run as fast as int8 does everywhere.
HARDLY, NOTHING = 1.1, 1e-4
MOST_FLOATS, MOST_TRIED = 4, 4  # values that return to floats, and that are tried each time


def write_static(
    prepared: Prepared,
    stored: Mapping[str, Stored],
    path: Path,
    inputs: Dataset | None,
    held: Dataset | None,
    threads: int = 1,
    activations: Activations | None = None,
) -> int:
    """Write a network with weights and activations as integers of eight bits.

    Args:
        prepared: the network's graph and sites.
        stored: form and bias of every site, integers where they are.
        path: file to write.
        inputs: calibration inputs, on which ranges are seen.
        held: selection inputs, on which ways to choose them are compared; the widest ranges when None.
        threads: of the runtime.
        activations: from `chosen_activations`, where they are known already: the network was trained with them.

    Returns:
        The file's size in bytes.

    Raises:
        DataError: without calibration inputs.
    """
    if inputs is None:
        raise DataError("onnx-int8: activations have no ranges without inputs; give --data, or take onnx-w8")
    model = simplified(fill(prepared.base, prepared.sites, stored, TARGET))
    work = _Static(model, list(_batches(inputs)), held, threads)
    chosen = activations or work.best()
    few = next(inputs.array(0, min(len(inputs), SAMPLES)).batches(SAMPLES))
    return write_bytes(strip(work.portable(chosen, few)).SerializeToString(), path)


def chosen_activations(
    prepared: Prepared, stored: Mapping[str, Stored], inputs: Dataset, held: Dataset | None, threads: int = 1
) -> Activations:
    """The ranges that a network's file of integers would have.

    Args:
        prepared, stored, inputs, held, threads: see `write_static`.
    """
    model = simplified(fill(prepared.base, prepared.sites, stored, TARGET))
    return _Static(model, list(_batches(inputs)), held, threads).best()


def ranges_in(model: onnx.ModelProto, activations: Activations) -> dict[str, Range]:
    """The range of each value of a graph that becomes integers, and needs one of its own.

    What is moved from a value that was integers has a range of its own once that is floats: the same one.

    Args:
        model: simplified, its weights integers.
        activations: chosen for it.
    """
    roots = layout(model).roots
    ranged = layout(model, activations.floats).ranged
    return {name: activations.ranges[roots.get(name, name)] for name in ranged}


def static_losses(
    model: onnx.ModelProto,
    reference: Sequence[torch.Tensor],
    inputs: Dataset,
    held: Dataset,
    threads: int = 1,
) -> Float[torch.Tensor, " samples"]:
    """What a network in integers loses on each selection input, with the best way to choose ranges.

    Args:
        model: with integer weights, from `smidgen.export.onnx.fill`.
        reference: the answers that it should give.
        inputs, held, threads: see `write_static`.
    """
    work = _Static(simplified(model), list(_batches(inputs)), held, threads)
    made = [work.answers(static(work.model, work.parts, work.ranges(how))) for how in HOWS]
    losses = [true_losses([list(reference)], [answers]) for answers in made]
    return min(losses, key=lambda each: float(each.mean()))


def _batches(inputs: Dataset) -> Iterator[np.ndarray]:
    return inputs.array(0, min(len(inputs), WATCHED)).batches()


class _Static:
    """The search for the graph of integers that loses least."""

    def __init__(
        self, model: onnx.ModelProto, batches: Sequence[np.ndarray], held: Dataset | None, threads: int
    ) -> None:
        self.model, self.batches, self.held, self.threads = model, batches, held, threads
        self.parts = layout(model)
        graph = model.graph
        self.ends = {self.parts.roots.get(end.name, end.name) for end in [*graph.input, *graph.output]}
        self.readers = Counter(name for node in graph.node for name in node.input)

    @cached_property
    def seen(self) -> dict[str, Seen]:
        """What each value was on the calibration inputs; not needed where ranges are known."""
        return watch(self.model, self.parts.ranged, self.batches, threads=self.threads)

    @cached_property
    def reference(self) -> list[torch.Tensor]:
        """Answers with activations in floats, which others are held against."""
        return self.answers(self.model)

    def best(self) -> Activations:
        ways = {how: Activations(self.ranges(how)) for how in HOWS}
        if self.held is None:
            return ways["minmax"]
        losses = {how: self._loss(self._made(self.model, each)) for how, each in ways.items()}
        how = min(losses, key=losses.__getitem__)
        return self._with_floats(ways[how], losses[how])

    def portable(self, chosen: Activations, inputs: np.ndarray) -> onnx.ModelProto:
        """The graph of integers that answers alike on every processor: the faster way, where it loses hardly more."""
        made = self._made(self.model, chosen)
        found = saturating(made, inputs, self.threads)
        safe = unsigned(made, found)
        rounded = {name: weight for name, weight in found.items() if weight.cheap}
        if self.held is None or not rounded:
            return safe
        fast = unsigned(self._made(narrowed(self.model, rounded), chosen), found.keys() - rounded)
        least = self._loss(safe)
        return fast if self._loss(fast) <= max(HARDLY * least, least + NOTHING) else safe

    def _range(self, name: str, how: How) -> Range:
        """Nothing of an input or an output is clipped: the largest score is the answer."""
        return self.seen[name].range("minmax" if name in self.ends else how)

    def ranges(self, how: How) -> dict[str, Range]:
        """Of all values; what is joined has the range of its widest part, whose integers are copied as they are.

        So has a part that nothing else reads: its integers would be rounded to those steps anyway, once more and at
        the cost of time (SqueezeNet: the joins took 0.36 ms of 2.4, now 0.08 of 2.1).
        """
        found = {name: self._range(name, how) for name in self.seen}
        joins = [n for n in self.model.graph.node if n.op_type == "Concat" and n.output[0] in self.parts.computed]
        joins = [node for node in joins if node.output[0] in found]
        for node in joins:
            parts = [found[self.parts.roots[name]] for name in node.input]
            found[node.output[0]] = Range(min(part.low for part in parts), max(part.high for part in parts))
        for node in reversed(joins):
            for name in node.input:
                if self.parts.roots[name] == name and self.readers[name] == 1 and name not in self.ends:
                    found[name] = found[node.output[0]]
        return found

    def _with_floats(self, best: Activations, least: float) -> Activations:
        """Values that cost most go back to floats, one at a time, while the loss is high and that helps."""
        while least > HIGH and len(best.floats) < MOST_FLOATS:
            found, lowest = best, inf
            for name in self._suspects(self._made(self.model, best)):
                tried = replace(best, floats=(*best.floats, name))
                loss = self._loss(self._made(self.model, tried))
                if loss < lowest:
                    found, lowest = tried, loss
            if lowest > WORTH * least:
                break
            best, least = found, lowest
        return best

    def _suspects(self, made: onnx.ModelProto) -> list[str]:
        """Values at which the error, as a share of their size, has grown most."""
        there = {output for node in made.graph.node for output in node.output}
        names = [name for name in self.parts.ranged if f"{name}~d" in there]
        batch = [self.batches[0][:COMPARED]]
        (before,) = values_of(self.model, names, batch, threads=self.threads, at_once=True)
        read = [f"{name}~d" for name in names]
        (after,) = values_of(made, read, batch, threads=self.threads, at_once=True)
        errors = [0.0]
        for name, one in zip(names, read, strict=True):
            size = max(float(np.square(before[name]).mean()), 1e-30)
            errors.append(float(np.square(after[one] - before[name]).mean()) / size)
        return [names[i] for i in np.argsort(-np.diff(errors))[:MOST_TRIED]]

    @staticmethod
    def _made(model: onnx.ModelProto, activations: Activations) -> onnx.ModelProto:
        return static(model, layout(model, activations.floats), ranges_in(model, activations))

    def _loss(self, model: onnx.ModelProto) -> float:
        return float(true_losses([self.reference], [self.answers(model)]).mean())

    def answers(self, model: onnx.ModelProto) -> list[torch.Tensor]:
        assert self.held is not None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            # What is compared must not depend on the processor: none saturates with weights in uint8.
            path.write_bytes(unsigned(model, weights_in(model)).SerializeToString())
            with open_onnx(path, self.threads) as runner:
                return [torch.from_numpy(np.asarray(a)) for a in run_dataset(runner, self.held.batches())]
