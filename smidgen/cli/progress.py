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
        verbose: a line for every step.
    """

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self._quiet, self._verbose = quiet, verbose and not quiet
        self._pace = Pace()
        self._line: Any = None
        self._task: Any = None
        self._stage = ""
        self._spoken = time.monotonic()

    def __enter__(self) -> Progress:
        if not self._quiet and not self._verbose and sys.stderr.isatty():
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
        text += self._pace.left(stage, done, total, time.monotonic())
        if self._line is not None:
            self._line.update(self._task, description=text, completed=done, total=total or None)
        elif not self._quiet and self._due(stage):
            print(f"smidgen: {text}", file=sys.stderr, flush=True)

    def _due(self, stage: str) -> bool:
        """Whether it is time for another line: a new stage, or the old one has taken long."""
        if self._verbose:
            return True
        wait = PATIENCE if stage != self._stage else 5 * PATIENCE
        if time.monotonic() - self._spoken < wait:
            return False
        self._stage, self._spoken = stage, time.monotonic()
        return True


class Pace:
    """How long a stage still takes, from the time its steps took so far.

    >>> pace = Pace()
    >>> [pace.left("calibrate", done, 100, now) for done, now in ((10, 0.0), (20, 4.0), (60, 20.0))]
    ['', ', 32 s left', ', 16 s left']
    """

    def __init__(self) -> None:
        self._stage: str | None = None
        self._since, self._first = 0.0, 0

    def left(self, stage: str, done: int, total: int, now: float) -> str:
        """The words for what is left, none where that is not known or soon over."""
        if stage != self._stage or done < self._first:
            self._stage, self._since, self._first = stage, now, done
            return ""
        steps, spent = done - self._first, now - self._since
        if steps < 1 or total <= done or spent < PATIENCE:
            return ""
        seconds = spent / steps * (total - done)
        if seconds < PATIENCE:
            return ""
        return f", {seconds:.0f} s left" if seconds < 100 else f", {seconds / 60:.0f} min left"
