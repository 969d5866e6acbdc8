"""Write benchmarks/RESULTS.md from the JSON files that the benchmarks left in benchmarks/results.

Every figure in that page comes from a run; nothing is typed by hand.

    python benchmarks/report.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from claims import RECORDS

PAGE = Path(__file__).resolve().parent / "RESULTS.md"
CURVE_COLUMNS = ("budget", "bytes", "ratio", "accuracy", "points lost (95 %)", "agreement", "KL (nats)")


def page(results: list[dict[str, Any]]) -> str:
    """The whole page as Markdown."""
    head = [
        "# Results",
        "",
        "Written by `benchmarks/report.py` from the runs' records; [README.md](README.md) says what each measures.",
    ]
    return "\n".join([*head, *(line for result in results for line in section(result))]) + "\n"


def section(result: dict[str, Any]) -> list[str]:
    """One benchmark: what it ran on, its claims, its tables and curves."""
    rows = [(c["what"], c["asked"], c["measured"], c["verdict"]) for c in result["claims"]]
    lines = ["", f"## {result['title']}", "", _where(result), "", *table(("what", "asked", "measured", ""), rows)]
    for name, (heads, *lines_of) in result.get("tables", {}).items():
        lines += ["", f"### {name}", "", *table(tuple(heads), [tuple(row) for row in lines_of])]
    for name, points in curves(result.get("sweep", {})):
        lines += ["", f"### {name}", "", *table(CURVE_COLUMNS, [_row(point) for point in points])]
    return lines


def curves(sweep: dict[str, Any], name: str = "") -> list[tuple[str, list[dict[str, Any]]]]:
    """Every list of points in a sweep, however deep, with the way to it as its name."""
    found = []
    for key, value in sweep.items():
        path = f"{name}, {key}" if name else key
        if isinstance(value, dict):
            found += curves(value, path)
        elif isinstance(value, list) and value:
            found.append((path, value))
    return found


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Markdown lines."""
    return [_line(heads), _line(("---",) * len(heads)), *(_line(row) for row in rows)]


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _row(point: dict[str, Any]) -> tuple[str, ...]:
    lost = f"{point['lost']:.2f} ({point['lost_low']:.2f} to {point['lost_high']:.2f})"
    kl = "" if point["kl"] is None else f"{point['kl']:.4f}"
    return (
        point["asked"], f"{point['nbytes']:,}", f"{point['ratio']:.2f}×", f"{100 * point['accuracy']:.2f} %", lost,
        f"{100 * point['agreement']:.2f} %", kl,
    )  # fmt: skip


def _where(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "onnxruntime"))
    return (
        f"{result['date'][:10]}; {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, load average {machine['load_average']}; {packages}."
    )


def main() -> None:
    files = sorted(RECORDS.glob("*.json"))
    if not files:
        raise SystemExit("benchmarks/results holds no results; run a benchmark first")
    results = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    # The matrix of targets has no claims: its script writes it as a page of its own.
    PAGE.write_text(page([result for result in results if result["claims"]]), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
