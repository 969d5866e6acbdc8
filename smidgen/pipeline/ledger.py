"""The byte ledger of a result: what each stage made of each layer, and the memory that each file's activations take.

    original → onnx (factors, floats) → each other target (integers, entropy coding)

Stored, zipped, and in memory as floats. A stage that made the file grow is told.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from smidgen.budget import format_size, parse_size
from smidgen.errors import BudgetError
from smidgen.measure.ledger import FLOAT_BYTES, Weight, layer_weights, weigh, zipped_nbytes
from smidgen.measure.peak import peak_of
from smidgen.report.result import Result
from smidgen.runtimes.micro import MICRO_END, arena_nbytes

UNKNOWN = "the file's graph does not tell it"
SHOWN = 2  # tensors at the peak that are named: those the running operator reads and writes


def parse_limit(name: str, given: int | str | None) -> int | None:
    """Bytes that something may take, None for any.

    Raises:
        BudgetError: not a size.

    >>> parse_limit("max_ram", "64 KiB"), parse_limit("max_flash", None)
    (65536, None)
    """
    if given is None:
        return None
    try:
        if not isinstance(given, bool):
            return parse_size(str(given))
    except BudgetError:
        pass
    raise BudgetError(f"budget: {name}={given!r} is no size; for example {name}='64 KiB', or {name}=65536")


def with_ledger(result: Result, original: Path, max_ram: int | None = None, max_flash: int | None = None) -> Result:
    """The result with a ``ledger`` in its record, and its budget not met where memory takes more than it may.

    Args:
        result: as the search left it.
        original: the file that sizes are compared with.
        max_ram: bytes that the activations of the target's file may take at once, or the arena that it runs in on a
            microcontroller; None for any.
        max_flash: bytes that the target's file may have; None for any.
    """
    layers = {site.name: {"original": _site_weight(site.weight, site.bias).as_dict()} for site in result.sites}
    files: dict[str, dict[str, Any]] = {"original": _file(original, original, result.record["original"])}
    for name, path in result.files.items():
        # What an archive unpacks to is the file of floats with shorter names.
        opened = result.files.get("onnx", path) if name == "archive" else path
        files[name] = _file(path, opened, result.record["files"][name])
        if opened == path and path.suffix == ".onnx":
            for layer, weight in layer_weights(path, layers).items():
                layers[layer][name] = weight.as_dict()
    ledger = {
        "files": files,
        "layers": [{"name": name, "files": told} for name, told in layers.items()],
        "grew": _grown(files),
        "max_ram": max_ram,
        "max_flash": max_flash,
    }
    record = {**result.record, "ledger": ledger}
    target = record.get("target") or next(iter(result.files))
    beyond = (
        None if max_flash is None else _beyond_flash(files[target], max_flash),
        None if max_ram is None else _exceeded(files[target], max_ram),
    )
    note = "; ".join(filter(None, beyond))
    if not note:
        return replace(result, record=record)
    budget = {**record["budget"], "met": False}
    budget["note"] = "; ".join(filter(None, (budget.get("note"), note)))
    return replace(result, record={**record, "budget": budget}, met=False)


def _site_weight(weight: np.ndarray, bias: np.ndarray | None) -> Weight:
    parts = [np.ascontiguousarray(each, dtype=np.float32) for each in (weight, bias) if each is not None]
    return weigh((each.tobytes() for each in parts), sum(each.size for each in parts))


def _file(path: Path, opened: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """A file's own line: as stored, zipped, its weights as floats, and the activations of what a runtime opens."""
    peak, params = peak_of(opened), entry.get("params")
    told = {
        "nbytes": path.stat().st_size, "zipped_nbytes": zipped_nbytes(path),
        "memory_nbytes": None if params is None else FLOAT_BYTES * params,
        "peak_activation_bytes": None if peak is None else peak.nbytes,
        "peak": None if peak is None else {**asdict(peak), "tensors": [list(each) for each in peak.tensors[:8]]},
        "why": {} if peak is not None else {"peak_activation_bytes": UNKNOWN},
    }  # fmt: skip
    if not path.name.endswith(MICRO_END):
        return told
    return {**told, "flash_bytes": told["nbytes"], "arena_bytes": arena_nbytes(path)}


def _grown(files: dict[str, dict[str, Any]]) -> list[str]:
    """Stages that made the file larger: the float file against the original, every other against the float file."""
    told = []
    for name, file in files.items():
        before = "original" if name == "onnx" else "onnx"
        if name == "original" or before not in files:
            continue
        more = file["nbytes"] - files[before]["nbytes"]
        if more > 0:
            told.append(f"{name} is {format_size(more)} larger than {before}")
    return told


def _beyond_flash(file: dict[str, Any], max_flash: int) -> str | None:
    """What to say where a file is too large."""
    if file["nbytes"] <= max_flash:
        return None
    return f"the file takes {format_size(file['nbytes'])} of flash; asked was {format_size(max_flash)}"


def _exceeded(file: dict[str, Any], max_ram: int) -> str | None:
    """What to say where activations, or the arena they lie in, take too much or cannot be counted."""
    peak, arena = file["peak"], file.get("arena_bytes")
    nbytes = file["peak_activation_bytes"] if arena is None else arena
    if nbytes is None:
        return f"max_ram of {format_size(max_ram)} cannot be checked: {UNKNOWN}"
    if nbytes <= max_ram:
        return None
    named = " and ".join(f"'{name}' ({format_size(size)})" for name, size in peak["tensors"][:SHOWN])
    asked = f"asked was {format_size(max_ram)}"
    if arena is not None:
        activations = format_size(file["peak_activation_bytes"])
        return f"the arena takes {format_size(arena)}, {activations} of it at {peak['node']}, with {named}; {asked}"
    return f"activations take {format_size(nbytes)} at {peak['node']}, with {named}; {asked}"
