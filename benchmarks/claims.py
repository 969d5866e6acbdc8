"""Asked against measured: the table every benchmark prints and the record it leaves in benchmarks/results."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from smidgen.report.record import versions

# Pictures, written files and what a killed run goes on from: not kept in the repository.
RESULTS = Path(__file__).resolve().parents[1] / "build" / "benchmarks"
# One JSON a benchmark, committed: RESULTS.md is written from them, and a later run replaces what it measures anew.
RECORDS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Claim:
    """One line of the table.

    Args:
        what: what was measured.
        asked: what the plan asks for, "" where a figure is only reported.
        measured: the figure, with its unit.
        passed: None where nothing was asked.
    """

    what: str
    asked: str
    measured: str
    passed: bool | None = None

    @property
    def verdict(self) -> str:
        """PASS, MISS or nothing."""
        return {True: "PASS", False: "MISS", None: ""}[self.passed]


def show(title: str, claims: Sequence[Claim]) -> None:
    """Print the table."""
    table = Table(title=title, title_justify="left")
    for heading in ("what", "asked", "measured", ""):
        table.add_column(heading)
    for claim in claims:
        colour = {True: "green", False: "red", None: "default"}[claim.passed]
        table.add_row(claim.what, claim.asked, claim.measured, f"[{colour}]{claim.verdict}[/]")
    Console(width=None if os.isatty(1) else 160).print(table)


def earlier(name: str) -> dict[str, Any]:
    """What the last run of a benchmark left in benchmarks/results; empty where there is none."""
    path = RECORDS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def joined(before: dict[str, Any], claims: Sequence[Claim]) -> list[Claim]:
    """The claims of an earlier run, and these in the place of those that say the same."""
    fields = ("what", "asked", "measured", "passed")
    found = {claim["what"]: Claim(*(claim[field] for field in fields)) for claim in before.get("claims", ())}
    return list((found | {claim.what: claim for claim in claims}).values())


def save(name: str, title: str, claims: Sequence[Claim], **measured: Any) -> Path:
    """Write benchmarks/results/<name>.json.

    Args:
        name: of the benchmark.
        title: for the report.
        claims: the table.
        measured: everything behind it, as plain values.

    Returns:
        The file.
    """
    entry = {
        "name": name,
        "title": title,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "claims": [{**asdict(claim), "verdict": claim.verdict} for claim in claims],
        **measured,
    }
    RECORDS.mkdir(exist_ok=True)
    path = RECORDS / f"{name}.json"
    path.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
    return path


def told(what: str) -> Callable[[str, int, int], None]:
    """Progress of a long run as one line for each stage, when it begins.

    Args:
        what: that is under way.
    """
    spoken: set[str] = set()

    def tell(stage: str, done: int, total: int) -> None:
        if stage not in spoken:
            spoken.add(stage)
            print(f"{what}: {stage} {done}/{total}", flush=True)

    return tell


def machine() -> dict[str, Any]:
    """What the figures were measured on; the load tells how busy it was with other work."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", listed.read_text()) if listed.is_file() else None
    return found[1].strip() if found else platform.processor() or "unknown"
