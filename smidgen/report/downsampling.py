"""What `smidgen.downsample` found: a row for every change tried, and the network that was chosen."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text
from torch import nn

from smidgen.report import wording
from smidgen.report.measured import Measured, as_text
from smidgen.report.result import Scratch, save_edited

WIDTH = 150


@dataclass(frozen=True, kw_only=True)
class Tried(Measured):
    """One network, as a written file, and what it loses on the selection inputs.

    Args:
        loss: KL against the original, in nats (normalised error where it is no classifier).
        points, points_error: percentage points lost, and one standard error.
    """

    loss: float
    points: float
    points_error: float


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        changes: in words; none for the original, several for a combination.
        measured: None where it was refused.
        reason: why it was refused.
        chosen: whether it is the network that was chosen.
    """

    changes: tuple[str, ...]
    measured: Tried | None = None
    reason: str | None = None
    chosen: bool = False


@dataclass(frozen=True, eq=False)
class Downsampling:
    """A finished run.

    Args:
        model: the chosen network; the original where no change loses little enough.
        rows: the original first, then every change alone, then what was combined on the way, then refusals.
        record: all of it as plain values.
        file: the chosen network as ONNX, in a temporary folder until `save`.
        folder: the temporary folder, removed with the result.
    """

    model: nn.Module
    rows: tuple[Row, ...]
    record: dict[str, Any]
    file: Path
    folder: Scratch

    @property
    def chosen(self) -> Row:
        """The row of the chosen network."""
        return next(row for row in self.rows if row.chosen)

    def table(self) -> str:
        """All rows, as text."""
        return to_text(self.rows)

    def verdict(self) -> str:
        """What came out, in a sentence."""
        first, best = self.rows[0].measured, self.chosen.measured
        limit = f"{self.record['max_drop']:g} points"
        if not self.chosen.changes or first is None or best is None:
            return f"no change loses at most {limit} on the selection inputs: the original is kept"
        return (
            f"chosen: {'; '.join(self.chosen.changes)}: {wording.count(first.macs)} → {wording.count(best.macs)} MACs, "
            f"{best.speedup:.2f}× as fast, {wording.size(first.activation_bytes)} → "
            f"{wording.size(best.activation_bytes)} of activations, asked: at most {limit} lost"
        )

    def save(self, folder: str | Path) -> Path:
        """Write ``model.onnx`` and ``result.json``.

        Args:
            folder: made when it is missing.

        Raises:
            OutputError: when it cannot be written.
        """
        return save_edited(folder, self.file, self.record)


def plain(rows: tuple[Row, ...]) -> list[dict[str, Any]]:
    """The rows for JSON.

    >>> plain((Row(("stride: a takes the stride of b",), reason="no"),))[0]["reason"]
    'no'
    """
    return [{**asdict(row), "changes": list(row.changes)} for row in rows]


def to_text(rows: tuple[Row, ...]) -> str:
    """The table for people.

    >>> "resolution" in to_text((Row(("resolution: half from input on",), reason="no"),))
    True
    """
    table = Table()
    table.add_column("change", overflow="fold", ratio=1)
    for head in ("MACs", "params", "file", "activations", "latency", "as fast", "KL", "lost", "test", "lost"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        if row.measured is not None:
            table.add_row(*(Text(cell) for cell in cells(row, row.measured)))
    refused = [f"not possible: {'; '.join(row.changes)}: {row.reason}" for row in rows if row.reason is not None]
    return "\n".join([as_text(table, WIDTH), *refused])


def cells(row: Row, found: Tried) -> list[str]:
    """One line of the table."""
    name = " + ".join(row.changes) or "original"
    test = found.test or {}
    score = test.get("score")
    return [
        f"{name}{' ← chosen' if row.chosen else ''}", wording.count(found.macs), wording.count(found.params),
        wording.size(found.nbytes), wording.size(found.activation_bytes), f"{found.latency_ms:.3f} ms",
        f"{found.speedup:.2f}×", wording.number(found.loss), wording.signed(found.points),
        wording.MISSING if score is None else f"{100 * score:.2f}", wording.signed(test.get("lost", float("nan"))),
    ]  # fmt: skip
