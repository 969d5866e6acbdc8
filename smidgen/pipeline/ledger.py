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
from smidgen.measure.activations import peak_activations
from smidgen.measure.ledger import FLOAT_BYTES, Weight, layer_weights, weigh, zipped_nbytes
from smidgen.report.result import Result

UNKNOWN = "only the graph of an ONNX file tells it"
SHOWN = 2  # tensors at the peak that are named: those the running operator reads and writes


def parse_ram(max_ram: int | str | None) -> int | None:
    """Bytes that activations may take at once, None for any.

    Raises:
        BudgetError: not a size.

    >>> parse_ram("64 KiB"), parse_ram(None)
    (65536, None)
    """
    if max_ram is None:
        return None
    try:
        if not isinstance(max_ram, bool):
            return parse_size(str(max_ram))
    except BudgetError:
        pass
    raise BudgetError(f"budget: max_ram={max_ram!r} is no size; for example max_ram='64 KiB', or max_ram=65536")


def with_ledger(result: Result, original: Path, max_ram: int | None = None) -> Result:
    """The result with a ``ledger`` in its record, and its budget not met where activations take more than they may.

    Args:
        result: as the search left it.
        original: the file that sizes are compared with.
        max_ram: bytes that the activations of the target's file may take at once; None for any.
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
    }
    record = {**result.record, "ledger": ledger}
    target = record.get("target") or next(iter(result.files))
    note = None if max_ram is None else _exceeded(files[target], max_ram)
    if note is None:
        return replace(result, record=record)
    budget = {**record["budget"], "met": False}
    budget["note"] = "; ".join(filter(None, (budget.get("note"), note)))
    return replace(result, record={**record, "budget": budget}, met=False)


def _site_weight(weight: np.ndarray, bias: np.ndarray | None) -> Weight:
    parts = [np.ascontiguousarray(each, dtype=np.float32) for each in (weight, bias) if each is not None]
    return weigh((each.tobytes() for each in parts), sum(each.size for each in parts))


def _file(path: Path, opened: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """A file's own line: as stored, zipped, its weights as floats, and the activations of what a runtime opens."""
    peak = peak_activations(opened) if opened.suffix == ".onnx" else None
    params = entry.get("params")
    return {
        "nbytes": path.stat().st_size, "zipped_nbytes": zipped_nbytes(path),
        "memory_nbytes": None if params is None else FLOAT_BYTES * params,
        "peak_activation_bytes": None if peak is None else peak.nbytes,
        "peak": None if peak is None else {**asdict(peak), "tensors": [list(each) for each in peak.tensors[:8]]},
        "why": {} if peak is not None else {"peak_activation_bytes": UNKNOWN},
    }  # fmt: skip


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


def _exceeded(file: dict[str, Any], max_ram: int) -> str | None:
    """What to say where activations take too much, or cannot be counted."""
    nbytes, peak = file["peak_activation_bytes"], file["peak"]
    if nbytes is None:
        return f"max_ram of {format_size(max_ram)} cannot be checked: {UNKNOWN}"
    if nbytes <= max_ram:
        return None
    named = " and ".join(f"'{name}' ({format_size(size)})" for name, size in peak["tensors"][:SHOWN])
    asked = f"asked was {format_size(max_ram)}"
    return f"activations take {format_size(nbytes)} at {peak['node']}, with {named}; {asked}"
