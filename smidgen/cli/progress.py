"""Progress on stderr: a line that moves on a terminal, a line a stage elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

PATIENCE = 2.0  # seconds of silence that need no explanation


class Progress:
    """Shows where a run is, in a ``with`` block; an instance is what the library calls with (stage, done, total).

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._line: Any = None
        self._task: Any = None
        self._stage = ""
        self._spoken = time.monotonic()

    def __enter__(self) -> Progress:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Line

            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TimeElapsedColumn(),
            )
            self._line = Line(*columns, console=Console(stderr=True), transient=True)
            self._task = self._line.add_task("opening", total=None)
            self._line.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._line is not None:
            self._line.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Told by the library: the stage, and how far it is (total 0 where that is not known)."""
        text = f"{stage} {done}/{total}" if total > 1 else stage
        if self._line is not None:
            self._line.update(self._task, description=text, completed=done, total=total or None)
        elif not self._quiet and self._due(stage):
            print(f"smidgen: {text}", file=sys.stderr, flush=True)

    def _due(self, stage: str) -> bool:
        """Whether it is time for another line: a new stage, or the old one has taken long."""
        wait = PATIENCE if stage != self._stage else 5 * PATIENCE
        if time.monotonic() - self._spoken < wait:
            return False
        self._stage, self._spoken = stage, time.monotonic()
        return True
