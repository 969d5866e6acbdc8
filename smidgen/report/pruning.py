"""What `smidgen.prune` made: the smaller network, its channels layer by layer, and what was measured on its file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text
from torch import nn

from smidgen.report import wording
from smidgen.report.measured import WIDTH, Measured, as_text, totals
from smidgen.report.result import ORIGINAL, Scratch, save_edited


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Args:
        name: of the layer.
        before, after: outputs.
        reason: why all stay, where they must.
    """

    name: str
    before: int
    after: int
    reason: str | None = None

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Pruning:
    """A finished run.

    Args:
        model: the smaller network, an ordinary module with the original's inputs and outputs.
        original, smaller: what was measured.
        layers: in running order.
        record: all of it as plain values.
        file: the smaller network as ONNX, in a temporary folder until `save`.
        folder: the temporary folder, removed with the result.
    """

    model: nn.Module
    original: Measured
    smaller: Measured
    layers: tuple[LayerRow, ...]
    record: dict[str, Any]
    file: Path
    folder: Scratch

    def table(self) -> str:
        """Before and after, and the layers, as text."""
        return "\n".join([totals({"original": self.original, "pruned": self.smaller}), _layers(self.layers)])

    def verdict(self) -> str:
        """What came out, in a sentence."""
        first, best = self.original, self.smaller
        share = best.macs / first.macs if best.macs is not None and first.macs else float("nan")
        told = f"{100 * share:.1f} % of the multiplications, {100 * best.params / first.params:.1f} % of the weights, "
        told += f"{best.speedup:.2f}× as fast"
        if best.test is not None:
            told += f", {wording.signed(best.test['lost'])} points of {best.test['metric']} lost"
        return told

    def save(self, folder: str | Path) -> Path:
        """Write ``model.onnx`` and ``result.json``, and ``original.onnx`` where a module was given.

        Args:
            folder: made when it is missing.

        Raises:
            OutputError: when it cannot be written.
        """
        return save_edited(folder, self.file, self.record, self.folder.path / ORIGINAL)


def _layers(rows: tuple[LayerRow, ...]) -> str:
    table = Table()
    table.add_column("layer", overflow="fold")
    table.add_column("outputs", justify="right", no_wrap=True)
    table.add_column("left alone because", overflow="fold")
    for row in rows:
        counts = f"{row.before}" if row.before == row.after else f"{row.before} → {row.after}"
        table.add_row(Text(row.name), Text(counts), Text(row.reason or ""))
    return as_text(table, WIDTH)
