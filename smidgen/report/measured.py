"""What was measured on a written file, and the table of several: before, and after."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from smidgen.report import wording

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


def totals(files: Mapping[str, Measured]) -> str:
    """A line for each file.

    Args:
        files: by what to call them.

    >>> "400" in totals({"original": Measured(400, 1000, 1600, None, 0.1, 1.0, 0.0)})
    True
    """
    table = Table()
    table.add_column("")
    for head in ("MACs", "params", "file", "activations", "latency", "as fast", "test", "lost"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, one in files.items():
        test = one.test or {}
        score = test.get("score")
        table.add_row(*(Text(cell) for cell in (
            name, wording.count(one.macs), wording.count(one.params), wording.size(one.nbytes),
            wording.size(one.activation_bytes), f"{one.latency_ms:.3f} ms", f"{one.speedup:.2f}×",
            wording.MISSING if score is None else f"{100 * score:.2f}",
            wording.signed(test.get("lost", float("nan"))),
        )))  # fmt: skip
    return as_text(table, WIDTH)


def as_text(table: Table, width: int) -> str:
    """A table as plain text.

    >>> "name" in as_text(Table("name"), 40)
    True
    """
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    return stream.getvalue().rstrip()
