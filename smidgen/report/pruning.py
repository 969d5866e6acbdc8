"""What `smidgen.prune` made: the smaller network, its channels layer by layer, and what was measured on its file."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from smidgen.errors import OutputError
from smidgen.report import wording
from smidgen.report.result import ORIGINAL, Scratch, writable_folder

WIDTH = 110


@dataclass(frozen=True)
class Measured:
    """One network, as a written file.

    Args:
        params, macs: counted from the file.
        nbytes: of the file.
        activation_bytes: peak of live activations for one input.
        latency_ms, speedup, speedup_error: of one input, in turns with the original.
        test: scores on the test inputs: metric's name, score, points lost and its 95 % interval.
    """

    params: int
    macs: int | None
    nbytes: int
    activation_bytes: int | None
    latency_ms: float
    speedup: float
    speedup_error: float
    test: dict[str, Any] | None = None

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


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
        return "\n".join([_totals(self.original, self.smaller), _layers(self.layers)])

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
        place = writable_folder(folder)
        try:
            with tempfile.TemporaryDirectory(prefix=".smidgen-", dir=place) as draft:
                own = self.folder.path / ORIGINAL
                for path in (self.file, *([own] if own.is_file() else [])):
                    shutil.copyfile(path, Path(draft) / path.name)
                (Path(draft) / "result.json").write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")
                for path in sorted(Path(draft).iterdir()):
                    path.replace(place / path.name)
        except OSError as error:
            raise OutputError(f"save: cannot write into '{place}': {error.strerror}") from error
        return place


def _totals(before: Measured, after: Measured) -> str:
    table = Table()
    table.add_column("")
    for head in ("MACs", "params", "file", "activations", "latency", "as fast", "test", "lost"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, one in (("original", before), ("pruned", after)):
        test = one.test or {}
        score = test.get("score")
        table.add_row(*(Text(cell) for cell in (
            name, wording.count(one.macs), wording.count(one.params), wording.size(one.nbytes),
            wording.size(one.activation_bytes), f"{one.latency_ms:.3f} ms", f"{one.speedup:.2f}×",
            wording.MISSING if score is None else f"{100 * score:.2f}",
            wording.signed(test.get("lost", float("nan"))),
        )))  # fmt: skip
    return _text(table)


def _layers(rows: tuple[LayerRow, ...]) -> str:
    table = Table()
    table.add_column("layer", overflow="fold")
    table.add_column("outputs", justify="right", no_wrap=True)
    table.add_column("left alone because", overflow="fold")
    for row in rows:
        counts = f"{row.before}" if row.before == row.after else f"{row.before} → {row.after}"
        table.add_row(Text(row.name), Text(counts), Text(row.reason or ""))
    return _text(table)


def _text(table: Table) -> str:
    stream = io.StringIO()
    Console(file=stream, width=WIDTH).print(table)
    return stream.getvalue().rstrip()
