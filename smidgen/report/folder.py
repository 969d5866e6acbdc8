"""A record read back from a folder that anybody may have written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from smidgen.errors import LoadError, one_line

LARGEST_RECORD = 64 << 20  # bytes; a record has one entry a layer
RESULT, SWEEP = "result.json", "sweep.json"


def read_record(folder: str | Path) -> dict[str, Any]:
    """``result.json`` or ``sweep.json`` of a folder.

    Args:
        folder: what a command wrote.

    Raises:
        LoadError: no such folder, nothing in it, or a record that is damaged or unfinished.

    >>> read_record("no-such-folder")
    Traceback (most recent call last):
    smidgen.errors.LoadError: report: there is no folder 'no-such-folder'; give one that compress or sweep wrote
    """
    place = Path(folder)
    if not place.is_dir():
        raise LoadError(f"report: there is no folder '{folder}'; give one that compress or sweep wrote")
    path = next((place / name for name in (RESULT, SWEEP) if (place / name).is_file()), None)
    if path is None:
        unfinished = (place / "points").is_dir()
        mend = "the sweep in it was not finished; run it again with the same -o, it goes on" if unfinished else (
            "give one that compress or sweep wrote"
        )  # fmt: skip
        raise LoadError(f"report: '{folder}' holds neither {RESULT} nor {SWEEP}; {mend}")
    record = parsed(path, "report")
    needed = ("original", "points", "chosen") if path.name == SWEEP else ("original", "files")
    if not all(name in record for name in needed):
        raise LoadError(f"report: '{path}' is damaged or half-written; run the command that wrote it again")
    return record


def parsed(path: Path, who: str) -> dict[str, Any]:
    """A record's file as plain values, however little it may be one.

    Args:
        path: the file.
        who: asks, for messages.

    Raises:
        LoadError: it cannot be read, is too large, or holds no record.
    """
    try:
        if path.stat().st_size > LARGEST_RECORD:
            raise LoadError(f"{who}: '{path}' is too large to be a record; compress again")
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadError(f"{who}: '{path}' cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise LoadError(f"{who}: '{path}' is damaged or half-written; run the command that wrote it again")
    return record


def made_of(make: Callable[..., str], *records: Mapping[str, Any], where: str, **more: Any) -> str:
    """A page of records that may say anything.

    Args:
        make: the page of the records.
        records: from `read_record`.
        where: what to name in a message.
        more: for ``make``.

    Raises:
        LoadError: a field that holds what no smidgen wrote.
    """
    try:
        return make(*records, **more)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration, OverflowError) as error:
        fault = f"{type(error).__name__} {one_line(error, 80)}"
        raise LoadError(
            f"report: the record of {where} does not say what a report needs ({fault}); run its command again"
        ) from error
