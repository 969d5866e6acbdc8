"""What `smidgen.fastconv` found: every convolution with the time of each algorithm, and the file that was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text
from torch import nn

from smidgen.measure.fastconv import Way
from smidgen.report import wording
from smidgen.report.measured import WIDTH, as_text
from smidgen.report.result import Scratch, save_edited


@dataclass(frozen=True)
class LayerRow:
    """One convolution.

    Args:
        name: of the layer.
        shape: in words.
        ways: that were timed, the direct one first.
        chosen: the algorithm in the written file.
        reasons: why the others are not there, in words.
    """

    name: str
    shape: str
    ways: tuple[Way, ...]
    chosen: str
    reasons: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "ways": [asdict(way) for way in self.ways], "reasons": list(self.reasons)}


@dataclass(frozen=True)
class Trial:
    """One file, timed beside the original.

    Args:
        layers: how many of its convolutions are not direct.
        nbytes: of the file.
        latency_ms: of one input.
        speedup, error: times as fast as the original, and one standard error.
    """

    layers: int
    nbytes: int
    latency_ms: float
    speedup: float
    error: float


@dataclass(frozen=True, eq=False)
class FastConvs:
    """A finished run.

    Args:
        model: the network, with fast convolutions where they were chosen.
        layers: every convolution in running order.
        trials: the original first, then each file that was written and timed.
        taken: which of the trials it is; 0 for the original.
        record: all of it as plain values.
        file: the chosen network as ONNX, in a temporary folder until `save`.
        folder: the temporary folder, removed with the result.
    """

    model: nn.Module
    layers: tuple[LayerRow, ...]
    trials: tuple[Trial, ...]
    taken: int
    record: dict[str, Any]
    file: Path
    folder: Scratch

    def table(self) -> str:
        """The layers, as text."""
        return to_text(self.layers)

    def verdict(self) -> str:
        """What came out, in a sentence."""
        first, best = self.trials[0], self.trials[self.taken]
        if self.taken == 0:
            tried = max((t.speedup for t in self.trials[1:]), default=None)
            told = (
                "no algorithm is faster for any layer" if tried is None else f"in the whole file {tried:.2f}× at best"
            )
            return f"nothing gains: the runtime's own convolution is kept ({told})"
        return (
            f"{best.layers} of {len(self.layers)} convolutions computed otherwise: {first.latency_ms:.3f} → "
            f"{best.latency_ms:.3f} ms for one input, {best.speedup:.2f}× as fast, "
            f"{wording.size(first.nbytes)} → {wording.size(best.nbytes)}"
        )

    def save(self, folder: str | Path) -> Path:
        """Write ``model.onnx`` and ``result.json``.

        Args:
            folder: made when it is missing.

        Raises:
            OutputError: when it cannot be written.
        """
        return save_edited(folder, self.file, self.record)


def to_text(rows: Sequence[LayerRow]) -> str:
    """The table for people: milliseconds, and below each the error and the bytes of its kernel.

    Args:
        rows: one for each layer.

    >>> "0.500 ms" in to_text((LayerRow("conv", "3×3", (Way("direct", 0.5, 400, 0.0),), "direct"),))
    True
    """
    order = max(rows, key=lambda row: len(row.ways)).ways
    names = list(dict.fromkeys(way.algorithm for ways in (order, *(row.ways for row in rows)) for way in ways))
    table = Table()
    table.add_column("layer", overflow="fold", ratio=1)
    table.add_column("shape", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        found = {way.algorithm: way for way in row.ways}
        cells = [_cell(found.get(name), row.chosen) for name in names]
        table.add_row(Text(row.name), Text(row.shape), *map(Text, cells))
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for reason in row.reasons:
            reasons.setdefault(reason, []).append(row.name)
    return "\n".join([as_text(table, WIDTH), *(f"{reason}: {', '.join(found)}" for reason, found in reasons.items())])


def _cell(way: Way | None, chosen: str) -> str:
    if way is None:
        return wording.MISSING
    mark = " ←" if way.algorithm == chosen else ""
    return f"{way.ms:.3f} ms{mark}\n{way.error:.0e}, {wording.size(way.nbytes)}"
