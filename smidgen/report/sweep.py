"""A front as a user gets it: the points, the chosen one, and the files that tell of them."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from smidgen.budget import parse_size
from smidgen.errors import OutputError, UserError
from smidgen.report import wording
from smidgen.report.front import sweep_verdict
from smidgen.report.page import in_notebook, sweep_page
from smidgen.report.picture import can_draw, draw_front
from smidgen.report.result import Scratch, save_together

RECORD, TABLE, PICTURES = "sweep.json", "sweep.csv", ("sweep.png", "sweep.svg")
LARGEST_MARKS = 1 << 20  # bytes of a file of marks
MOST_MARKS = 200
COLUMNS = (
    "name", "curves", "nbytes", "ratio", "params", "macs", "latency_ms", "speedup", "selection_score",
    "selection_points", "selection_error", "test_score", "test_points", "test_low", "test_high", "agreement", "kl",
    "predicted_loss", "price", "front", "chosen", "plan", "file",
)  # fmt: skip


@dataclass(frozen=True)
class Mark:
    """A point of somebody else's, to be seen beside a front.

    Args:
        name: of the method or paper.
        nbytes: of its file.
        score: a fraction; what of the front's measure corresponds to it.
    """

    name: str
    nbytes: int
    score: float

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "nbytes": self.nbytes, "score": self.score}


def read_mark(text: str) -> Mark:
    """A mark as it is typed: name, bytes, and the score as a fraction or in percent.

    Raises:
        UserError: it cannot be meant.

    >>> read_mark("Deep compression: 27 kB: 99.26 %")
    Mark(name='Deep compression', nbytes=27000, score=0.9926)
    """
    parts = [part.strip() for part in text.rsplit(":", 2)]
    if len(parts) != 3 or not parts[0]:
        raise UserError(f"mark: {text!r:.80} cannot be read; give name:bytes:accuracy, as in 'paper:27kB:99.26%'")
    return _mark(*parts)


def _mark(name: str, nbytes: str, score: str) -> Mark:
    number, percent = score.strip().removesuffix("%").strip(), score.strip().endswith("%")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    value = value / 100 if percent or value > 1 else value
    if not 0 <= value <= 1:
        raise UserError(f"mark: the score {score!r:.40} of '{name:.40}' is no share; give 0.9926 or 99.26%")
    return Mark(name[:80], parse_size(nbytes), value)


def read_marks(path: str | Path) -> list[Mark]:
    """Marks from a CSV file with the columns name, bytes, accuracy (a first line of these names may be there).

    Raises:
        UserError: it cannot be read as that.
    """
    place = Path(path)
    try:
        if place.stat().st_size > LARGEST_MARKS:
            raise UserError(f"mark: '{path}' is too large for a list of marks; give a CSV of name,bytes,accuracy")
        rows = [row for row in csv.reader(io.StringIO(place.read_text(encoding="utf-8"))) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"mark: '{path}' cannot be read: {reason}; give a CSV of name,bytes,accuracy") from None
    if rows and [cell.strip().lower() for cell in rows[0]][:2] == ["name", "bytes"]:
        rows = rows[1:]
    for number, row in enumerate(rows, start=1):
        if len(row) != 3:
            raise UserError(f"mark: row {number} of '{path}' has {len(row)} columns; give name,bytes,accuracy")
    if len(rows) > MOST_MARKS:
        raise UserError(f"mark: '{path}' has {len(rows)} marks; at most {MOST_MARKS} can be shown")
    return [_mark(*row) for row in rows]


@dataclass(frozen=True, eq=False)
class Sweep:
    """A finished front.

    Args:
        record: what ``sweep.json`` holds.
        folder: where its points and plans lie.
        scratch: the temporary folder, removed with this object; None where the folder is the user's.
    """

    record: dict[str, Any]
    folder: Path
    scratch: Scratch | None = None

    def chosen(self) -> dict[str, Any]:
        """The point that was chosen on the selection inputs."""
        return next(point for point in self.record["points"] if point["name"] == self.record["chosen"])

    def plan(self, name: str) -> str:
        """A point's plan, for `smidgen.apply`.

        Args:
            name: of the point, such as ``joint-03``.
        """
        found = next((point for point in self.record["points"] if point["name"] == name), None)
        if found is None:
            names = ", ".join(point["name"] for point in self.record["points"])
            raise UserError(f"sweep: there is no point '{name}'; there are: {names}")
        return (self.folder / found["plan"]).read_text(encoding="utf-8")

    def table(self) -> str:
        """All points, the largest file first, as text."""
        stream = io.StringIO()
        Console(file=stream, width=120, color_system=None, legacy_windows=False).print(points_table(self.record))
        return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())

    def verdict(self) -> str:
        """The chosen point in one sentence."""
        return sweep_verdict(self.record)

    def save(self, folder: str | Path) -> Path:
        """Write ``sweep.json``, ``sweep.csv``, ``report.html``, the pictures where matplotlib is installed, and every
        point's plan and network.

        Args:
            folder: made when it is missing; that of the sweep itself keeps the points it has.

        Returns:
            The folder.

        Raises:
            OutputError: when it cannot be written.
        """
        place = Path(folder)
        if place.resolve() != self.folder.resolve():
            try:
                for part in ("points", "plans"):
                    shutil.copytree(self.folder / part, place / part, dirs_exist_ok=True)
            except OSError as error:
                raise OutputError(f"save: cannot write into '{folder}': {error.strerror}") from error

        def write(draft: Path) -> None:
            (draft / RECORD).write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")
            (draft / TABLE).write_text(to_csv(self.record), encoding="utf-8", newline="")
            (draft / "report.html").write_text(sweep_page(self.record), encoding="utf-8")
            if can_draw():
                draw_front(self.record, [draft / name for name in PICTURES])

        return save_together(place, write)

    def _repr_html_(self) -> str:
        return in_notebook(sweep_page(self.record))


def points_table(record: dict[str, Any]) -> Table:
    """A row a point, the chosen one with an arrow."""
    measure = record["measure"]
    table = Table(title=Text(f"{record['name']}: {measure} against bytes"), title_justify="left")
    heads = ("", "point", "bytes", "times", "MACs", "latency", "faster", f"{measure}, selection", "test", "lost (95 %)")
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place < 2 else "right", no_wrap=place != 7)
    original = record["original"]
    table.add_row("", "original", wording.size(original["nbytes"]), "", wording.count(original["macs"]),
                  _ms(original["latency_ms"]), "", wording.share(original["selection_score"]),
                  wording.share(original["test_score"]), "")  # fmt: skip
    for point in record["points"]:
        low, high = point["test"]["interval"]
        table.add_row(
            "→" if point["name"] == record["chosen"] else "·" if point["front"] else "", Text(point["name"]),
            wording.size(point["nbytes"]), wording.times(point["ratio"]), wording.count(point["macs"]),
            _ms(point.get("latency_ms")), wording.times(point.get("speedup")) if point.get("speedup") else "–",
            wording.share(point["selection"]["score"]), wording.share(point["test"]["score"]),
            f"{wording.signed(point['test']['points'])} ({wording.interval([low, high])})",
        )  # fmt: skip
    left = f"; {record['left']} points were left for want of time" if record.get("left") else ""
    table.caption = Text(f"→ chosen and · on the front, both by the selection inputs; the test chose nothing{left}")
    table.caption_justify = "left"
    return table


def to_csv(record: dict[str, Any]) -> str:
    """A line a point; numbers as they are, names that a spreadsheet could take for a formula quoted."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(COLUMNS)
    for point in record["points"]:
        test, selection = point["test"], point["selection"]
        row = {
            **{name: point.get(name) for name in COLUMNS}, "curves": " ".join(point["curves"]),
            "selection_score": selection["score"], "selection_points": selection["points"],
            "selection_error": selection["error"], "test_score": test["score"], "test_points": test["points"],
            "test_low": test["interval"][0], "test_high": test["interval"][1], "agreement": test["agreement"],
            "kl": test["kl"], "chosen": point["name"] == record["chosen"],
        }  # fmt: skip
        writer.writerow([_cell(row[name]) for name in COLUMNS])
    return stream.getvalue()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@" and value else value


def _ms(value: float | None) -> str:
    return wording.MISSING if value is None else f"{wording.number(value)} ms"
