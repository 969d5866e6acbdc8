"""What `smidgen.bench` measured: a row for each file at each thread count."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from smidgen.export.files import write_bytes
from smidgen.report import wording

WIDTH = 120
HEADERS = ("file", "size", "times smaller", "threads", "latency", "quartiles", "times faster", "runs")


@dataclass(frozen=True)
class Bench:
    """Times of written files.

    Args:
        record: what ``bench.json`` holds.
    """

    record: dict[str, Any]

    def table(self) -> str:
        """All files, the original first, as text."""
        stream = io.StringIO()
        console = Console(file=stream, width=WIDTH, color_system=None, legacy_windows=False)
        console.print(timings_table([self.record["original"], *self.record["files"]]))
        return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())

    def save(self, path: str | Path) -> Path:
        """Write the record in one step.

        Raises:
            OutputError: when it cannot be written.
        """
        write_bytes((json.dumps(self.record, indent=1) + "\n").encode(), Path(path))
        return Path(path)


def timings_table(files: list[dict[str, Any]], title: str | None = None) -> Table:
    """A row for each file at each thread count, the first file being the original.

    >>> timing = {"threads": 1, "latency_ms": 2.0, "speedup": 1.0}
    >>> timings_table([{"path": "a.onnx", "nbytes": 10, "timings": [timing, {**timing, "threads": 2}]}]).row_count
    2
    """
    table = Table(title=title, title_justify="left")
    for number, header in enumerate(HEADERS):
        table.add_column(header, justify="right" if number else "left", no_wrap=number > 0, overflow="fold")
    bases = [Path(str(file["path"])).name for file in files]
    for file, base in zip(files, bases, strict=True):
        name = base if bases.count(base) == 1 else str(file["path"])
        for cells in _cells(files[0], file, name):
            table.add_row(*(Text(cell) for cell in cells))
    return table


def _cells(original: dict[str, Any], file: dict[str, Any], name: str) -> Iterator[list[str]]:
    first = file is original
    smaller = original["nbytes"] / file["nbytes"] if file.get("nbytes") and original.get("nbytes") else None
    for number, timing in enumerate(file["timings"]):
        about = [name, wording.size(file.get("nbytes")), wording.times(None if first else smaller)]
        quartiles = timing.get("latency_quartiles_ms") or [None, None]
        yield [
            *(about if number == 0 else ["", "", ""]),
            str(timing["threads"]),
            milliseconds(timing.get("latency_ms")),
            wording.MISSING if None in quartiles else " – ".join(wording.number(each) for each in quartiles),
            wording.MISSING if first else faster(timing),
            wording.MISSING if timing.get("runs") is None else str(timing["runs"]),
        ]


def faster(timing: dict[str, Any]) -> str:
    """The speed-up to the digits that its standard error leaves."""
    speedup, error = timing.get("speedup"), timing.get("speedup_error")
    if speedup is None:
        return wording.MISSING
    return f"{speedup:.2f}×" if error is None else f"{speedup:.2f} ± {error:.2f}×"


def milliseconds(value: float | int | None) -> str:
    """A time with its unit, a dash where there is none."""
    return wording.MISSING if value is None else f"{wording.number(value)} ms"
