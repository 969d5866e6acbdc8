"""Tables of the benchmarks' records, for the pages of the site: no figure in them is typed.

A page asks for one where it wants it, in a comment of a line of its own:

    <!-- record tflite: beside -->                         a line a network, a column a file
    <!-- record int8: claims against|speed -->             asked and measured, of the lines that hold the words
    <!-- record mobile: table files -->                    a table of the record, by name
    <!-- record mobile: table files / kB -->               of it the rows that hold the words
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "benchmarks" / "results"
MARK = re.compile(r"^<!-- record (\w+): (beside|claims|table) ?(.*?) ?-->$", re.MULTILINE)

Rows = list[Sequence[str]]


@cache
def record(name: str) -> dict[str, Any]:
    """What a benchmark left in benchmarks/results; empty where nothing is kept yet."""
    path = RECORDS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


@cache
def script(name: str) -> Path:
    """The benchmark that writes a record.

    >>> script("executorch").name, script("tflite").name
    ('executorch_programs.py', 'tflite.py')
    """
    saves = re.compile(rf'\bsave\(\s*"{name}"')
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        if saves.search(path.read_text(encoding="utf-8")):
            return path
    path = ROOT / "benchmarks" / f"{name}.py"
    if not path.is_file():
        raise LookupError(f"no script in benchmarks/ writes a record '{name}'")
    return path


def filled(markdown: str, up: str) -> str:
    """A page with a table for each of its marks.

    Args:
        markdown: the page.
        up: the way from its folder to the repository's root, "../" for a page of docs/.

    Raises:
        LookupError: for a record, table or words that are not there.
    """
    return MARK.sub(lambda mark: _table(mark[1], mark[2], mark[3], up), markdown)


def _table(name: str, kind: str, which: str, up: str) -> str:
    if not record(name):
        raise LookupError(f"benchmarks/results holds no record '{name}'")
    if kind == "claims":
        head, rows = ("what", "asked", "measured", ""), claims(name, which)
    elif kind == "beside":
        head, rows = beside(name, which)
    else:
        head, rows = table(name, which)
    if not rows:
        _missing(name, which)
    return f"{markdown_table(head, rows)}\n\n{told(name, up)}"


def _missing(name: str, which: str) -> Any:
    raise LookupError(f"the record '{name}' holds nothing named '{which}'")


def claims(name: str, words: str = "") -> Rows:
    """What was asked and measured, of the lines whose name holds one of the words (a regular expression)."""
    lines = record(name).get("claims", ())
    return [(c["what"], c["asked"], c["measured"], c["verdict"]) for c in lines if re.search(words, c["what"])]


def beside(name: str, words: str = "") -> tuple[list[str], Rows]:
    """Claims named "network: file" as a line a network and a column a file."""
    cells: dict[str, dict[str, str]] = {}
    for what, _, measured, _ in claims(name, words):
        network, _, file = what.partition(": ")
        cells.setdefault(network, {})[file] = measured
    files = list(dict.fromkeys(file for row in cells.values() for file in row))
    return ["network", *files], [[network, *(row.get(file, "–") for file in files)] for network, row in cells.items()]


def table(name: str, which: str) -> tuple[Sequence[str], Rows]:
    """A table of the record: its name, then, behind a slash, words (a regular expression) that a row is to hold."""
    title, _, words = which.partition(" / ")
    head, *rows = record(name)["tables"].get(title) or _missing(name, title)
    return head, [row for row in rows if any(re.search(words, cell) for cell in row)]


def told(name: str, up: str) -> str:
    """Which script measured it, when, on what."""
    entry, path = record(name), script(name).name
    machine, versions = entry["machine"], entry["versions"]
    packages = ", ".join(f"{package} {versions[package]}" for package in ("torch", "onnxruntime"))
    return (
        f"*[benchmarks/{path}]({up}benchmarks/{path}), {entry['date'][:10]}; {machine['processor']}, "
        f"{machine['cores']} shared cores; {packages}.*"
    )


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of a table; what would end a cell is escaped.

    >>> print(markdown_table(("a",), [("1|2",)]))
    | a |
    | --- |
    | 1\\|2 |
    """
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
