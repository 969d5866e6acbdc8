"""The byte ledger as a table: a column a stage, a row a layer, and what the files take on disk and in memory."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from smidgen.report import wording

SHOWN = 8  # layers with a row of their own, the largest of the original
_WHOLE = (
    ("file", "nbytes"), ("file, zipped", "zipped_nbytes"), ("weights in memory, as floats", "memory_nbytes"),
    ("activations at their peak", "peak_activation_bytes"), ("flash", "flash_bytes"),
    ("arena of TensorFlow Lite Micro", "arena_bytes"),
)  # fmt: skip


def ledger_table(ledger: dict[str, Any]) -> Table:
    """Bytes of each layer as stored (zipped), and of each file.

    >>> file = {"nbytes": 10, "zipped_nbytes": 9, "memory_nbytes": 8, "peak_activation_bytes": None}
    >>> ledger_table({"files": {"original": file}, "layers": []}).row_count
    3
    """
    files, layers = ledger["files"], ledger["layers"]
    notes = [f"– {note}" for note in ledger.get("grew") or []]
    table = Table(title="Bytes: stored (zipped)", title_justify="left", caption_justify="left")
    table.caption = Text("\n".join(notes)) if notes else None
    table.add_column("", no_wrap=False, overflow="fold")
    for name in files:
        table.add_column(Text(name), justify="right", no_wrap=True)
    ordered = sorted(layers, key=lambda each: -each["files"]["original"]["nbytes"])
    shown = {each["name"] for each in ordered[:SHOWN]}
    for layer in layers:
        if layer["name"] in shown:
            table.add_row(Text(layer["name"]), *(Text(_cell(layer["files"].get(name))) for name in files))
    rest = [each for each in layers if each["name"] not in shown]
    if rest:
        table.add_row(f"{len(rest)} more", *(Text(_sum(rest, name)) for name in files))
    for label, key in _WHOLE:
        cells = [wording.size(file.get(key)) for file in files.values()]
        if any(cell != wording.MISSING for cell in cells):
            table.add_row(label, *(Text(cell) for cell in cells))
    return table


def _cell(weight: dict[str, int] | None) -> str:
    if weight is None:
        return wording.MISSING
    return f"{wording.size(weight['nbytes'])} ({wording.size(weight['zipped_nbytes'])})"


def _sum(layers: list[dict[str, Any]], name: str) -> str:
    found = [each["files"][name] for each in layers if name in each["files"]]
    if not found:
        return wording.MISSING
    return _cell({key: sum(each[key] for each in found) for key in ("nbytes", "zipped_nbytes")})
