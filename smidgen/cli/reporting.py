"""``smidgen report``: the page of a result written again, or two results side by side."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from smidgen.cli.commands import print_json
from smidgen.errors import OutputError, UserError

DONE = 0


def add_report(parser: argparse.ArgumentParser) -> None:
    """Options of ``smidgen report``."""
    parser.add_argument("folders", metavar="FOLDER", nargs="+", help="what compress or sweep wrote; two to compare")
    parser.add_argument("-o", "--output", metavar="FILE.html", help="where the page goes (report.html in FOLDER; of "
                        "two, comparison.html here)")  # fmt: skip
    parser.add_argument("--open", action="store_true", help="show it in the browser")


def report(options: argparse.Namespace) -> int:
    """``smidgen report``."""
    from smidgen.report.folder import made_of, read_record
    from smidgen.report.page import comparison_page, result_page, sweep_page

    if len(options.folders) > 2:
        raise UserError(f"report: {len(options.folders)} folders are given; give one, or two to compare")
    records = [read_record(folder) for folder in options.folders]
    sweeps = ["points" in record and "files" not in record for record in records]
    if len(records) == 2:
        if any(sweeps):
            raise UserError(f"report: '{options.folders[sweeps.index(True)]}' holds a sweep; two results of compress "
                            "can be compared")  # fmt: skip
        first, second = options.folders
        page = made_of(comparison_page, *records, where=f"'{first}' or '{second}'", names=(first, second))
        place = Path(options.output or "comparison.html")
    else:
        make = sweep_page if sweeps[0] else result_page
        page = made_of(make, *records, where=f"'{options.folders[0]}'")
        place = Path(options.output) if options.output else Path(options.folders[0]) / "report.html"
    try:
        place.write_text(page, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"report: cannot write '{place}': {error.strerror}; choose another file with -o") from error
    if options.json:
        print_json({"page": str(place), "nbytes": len(page.encode())})
    else:
        print(f"files: {place}")
    if options.open:
        webbrowser.open(place.resolve().as_uri())
    return DONE
