"""The output folder: known to be writable before the work starts, and left as it was found when the work fails."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smidgen.budget import FILES
from smidgen.errors import OutputError
from smidgen.report.result import writable_folder

WRITTEN = (
    *FILES.values(),
    "model.huffman.smidgen",
    "model_mcu.cc",
    "model_mcu.h",
    "model.safetensors",
    "plan.json",
    "result.json",
    "report.html",
)


@contextlib.contextmanager
def output_folder(named: str, *given: str | None) -> Iterator[Path]:
    """The folder for the time of a run; folders that were made for it and stay empty are removed again.

    Args:
        named: the folder.
        given: files that the run reads, and must not overwrite.

    Raises:
        OutputError: when it cannot be made or written, before anything else happens.
    """
    place = Path(named)
    for path in (Path(each) for each in given if each is not None):
        if path.name in WRITTEN and path.exists() and path.resolve() == (place / path.name).resolve():
            raise OutputError(f"save: '{path}' would be overwritten by the result; choose another folder with -o")
    missing = [each for each in (place, *place.parents) if not each.exists()]
    try:
        yield writable_folder(place)
    finally:
        for each in missing:
            with contextlib.suppress(OSError):  # it holds files, or was never made
                each.rmdir()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C waits until the block is through: files that belong together are written together."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *about: pressed.append(about))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
