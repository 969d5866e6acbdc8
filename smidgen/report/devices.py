"""What devices measured on the files of a run: read with suspicion, kept in its record, shown as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from smidgen.errors import DataError, LoadError
from smidgen.measure.files import sha256
from smidgen.report import wording
from smidgen.report.benching import faster, milliseconds

LARGEST = 16 << 20  # bytes of a JSON file from elsewhere
LONGEST = 200  # characters of a text from elsewhere
MOST = 1000  # devices, files, timings
HEADERS = ("device", "file", "threads", "latency", "times faster", "energy", "answers")
_TOLD = ("machine", "model", "system", "python", "numpy", "onnxruntime", "ai_edge_litert", "governor")


def read_record(folder: Path) -> dict[str, Any]:
    """``result.json`` of a run.

    Raises:
        LoadError: not there, or not such a record.
    """
    record = _json(folder / "result.json", "give the folder that compress wrote")
    files = record.get("files")
    if not isinstance(files, dict) or not all(isinstance(each, dict) for each in (*files.values(), record)):
        raise LoadError(
            f"bundle: '{folder / 'result.json'}' is no record of a run; give the folder that compress wrote"
        )
    return record


def merge_results(folder: Path, results: Sequence[Path]) -> dict[str, Any]:
    """The record of the run in ``folder`` with what came back from devices; a device measured again is replaced.

    Raises:
        UserError: damaged results, or those of other files.
    """
    record = read_record(folder)
    known: dict[tuple[str, str], str] = {}
    for name, entry in record["files"].items():
        path = folder / Path(str(entry.get("path"))).name
        if path.is_file():
            known[sha256(path), path.name] = name  # two targets may have the same bytes
    before = record.get("devices")
    kept = [each for each in (before if isinstance(before, list) else []) if isinstance(each, dict)]
    devices = {str(each.get("name")): each for each in kept if isinstance(each.get("files"), dict)}
    for path in results:
        device = _device(path, _json(path, "give what bench.py or android.sh wrote"), known, folder)
        devices[device["name"]] = device
    return {**record, "devices": list(devices.values())}


def _json(path: Path, mend: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST:
            raise LoadError(f"bundle: '{path}' is too large; {mend}")
        stored = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadError(f"bundle: '{path}' cannot be read: {error.strerror}; {mend}") from None
    except (ValueError, RecursionError):
        raise LoadError(f"bundle: '{path}' is not JSON; {mend}") from None
    if not isinstance(stored, dict):
        raise LoadError(f"bundle: '{path}' is no JSON object; {mend}")
    return stored


def _device(path: Path, given: Mapping[str, Any], known: Mapping[tuple[str, str], str], folder: Path) -> dict[str, Any]:
    """Only what is known to be of the expected kind goes into the record."""
    about, files = given.get("device"), given.get("files")
    if given.get("schema_version") != 1 or not isinstance(about, dict) or not isinstance(files, list):
        raise DataError(f"bundle: '{path}' holds no results; give what bench.py or android.sh wrote")
    found = {}
    for file in [each for each in files[:MOST] if isinstance(each, dict)]:
        name = known.get((str(file.get("sha256")), str(file.get("path"))))
        if name is None and Path(str(file.get("path"))).stem != "original":
            raise DataError(
                f"bundle: '{path}' was measured on another '{_text(file.get('path'))}' than '{folder}' holds; "
                "bundle this run and measure again"
            )
        found[name or "original"] = _file(file)
    named = _text(about.get("name")) or "device"
    told = {key: _text(about[key]) for key in _TOLD if about.get(key) is not None}
    return {"name": named, **told, "cores": _number(about.get("cores")), "files": found}


def _file(given: Mapping[str, Any]) -> dict[str, Any]:
    timings = given.get("timings")
    outputs = given.get("outputs")
    estimate = given.get("energy_estimate")
    return {
        "nbytes": _number(given.get("nbytes")),
        "error": None if given.get("error") is None else _text(given["error"]),
        "outputs": None if not isinstance(outputs, dict) else {
            "agree": outputs.get("agree") is True,
            **{key: _number(outputs.get(key)) for key in ("max_abs_error", "max_rel_error", "same_answers",
                                                          "step", "within_one_step")},
        },
        "energy_estimate": None if not isinstance(estimate, dict) else {
            "joules": _number(estimate.get("joules")), "source": _text(estimate.get("source")),
        },
        "timings": [_timing(each) for each in (timings if isinstance(timings, list) else [])[:MOST]
                    if isinstance(each, dict)],
    }  # fmt: skip


def _timing(given: Mapping[str, Any]) -> dict[str, Any]:
    quartiles = given.get("latency_quartiles_ms")
    pair = quartiles if isinstance(quartiles, list) and len(quartiles) == 2 else [None, None]
    names = ("threads", "latency_ms", "runs", "speedup", "speedup_error", "joules")
    reason = given.get("joules_reason")
    return {
        **{name: _number(given.get(name)) for name in names},
        "latency_quartiles_ms": [_number(each) for each in pair],
        "joules_reason": None if reason is None else _text(reason),
    }


def _number(value: Any) -> int | float | None:
    """A finite number that is not negative; anything else is None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value if 0 <= value < 1e15 else None


def _text(value: Any) -> str:
    """Printable characters, not too many: what a device calls itself goes to a terminal."""
    return "".join(each for each in str(value) if each.isprintable())[:LONGEST]


def devices_table(devices: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each device, file and thread count.

    >>> timing = {"threads": 1, "latency_ms": 3.0, "joules": None}
    >>> devices_table([{"name": "Pi", "files": {"onnx": {"outputs": None, "timings": [timing]}}}]).row_count
    1
    """
    estimated = False
    table = Table(title="On devices", title_justify="left", caption_justify="left")
    for number, header in enumerate(HEADERS):
        table.add_column(header, justify="left" if number in (0, 1, 6) else "right", overflow="fold")
    for device in devices:
        first = next(iter(device["files"]), None)
        for name, file in device["files"].items():
            for number, timing in enumerate(file["timings"] or [{}]):
                energy, is_estimate = _energy(file, timing)
                estimated |= is_estimate
                about = [device["name"], name, _answers(file)] if number == 0 else [""] * 3
                threads = wording.MISSING if timing.get("threads") is None else str(timing["threads"])
                speedup = wording.MISSING if name == first else faster(timing)
                cells = [*about[:2], threads, milliseconds(timing.get("latency_ms")), speedup, energy, about[2]]
                table.add_row(*(Text(cell) for cell in cells))
    if estimated:
        table.caption = Text("~ no counter: an estimate from MACs and bytes (45 nm, doi:10.1109/ISSCC.2014.6757323)")
    return table


def _energy(file: Mapping[str, Any], timing: Mapping[str, Any]) -> tuple[str, bool]:
    """Joules of a counter, else the estimate with its mark."""
    if timing.get("joules") is not None:
        return f"{wording.number(1e3 * timing['joules'])} mJ", False
    estimate = (file.get("energy_estimate") or {}).get("joules")
    return (wording.MISSING, False) if estimate is None else (f"~{wording.number(1e3 * estimate)} mJ", True)


def _answers(file: Mapping[str, Any]) -> str:
    outputs = file.get("outputs")
    if file.get("error"):
        return f"not run: {file['error']}"
    if outputs is None:
        return "not compared"
    return "as here" if outputs["agree"] else f"DIFFER by {wording.number(outputs['max_abs_error'])}"
