"""Files appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from smidgen.errors import OutputError


def write_bytes(payload: bytes, path: Path) -> int:
    """Write a file in one step.

    Args:
        payload: its content.
        path: replaced if it exists.

    Returns:
        The file's size in bytes.

    Raises:
        OutputError: when it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(payload)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OutputError(f"export: cannot write '{path}': {error.strerror}; choose another folder with -o") from error
    return len(payload)
