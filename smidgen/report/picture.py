"""A front as PNG and SVG, drawn with matplotlib, so that it reads in grey and with any colour vision."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smidgen.report import wording
from smidgen.report.front import curves_of

# Okabe and Ito's palette (Color Universal Design, 2008); every curve has a marker and a dash of its own too.
STYLES: tuple[tuple[str, str, Any], ...] = (
    ("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"),
    ("#E69F00", "v", (0, (6, 1))), ("#56B4E9", "P", (0, (3, 1, 1, 1, 1, 1))),
)  # fmt: skip
GREY = "#444444"
EXTRA = "pip install 'smidgen[plot]'"
_COSTS = (("nbytes", 1.0, "bytes of the file"), ("macs", 1e6, "million multiply-adds"),
          ("latency_ms", 1.0, "milliseconds of one answer"))  # fmt: skip


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_front(record: dict[str, Any], paths: Sequence[Path]) -> None:
    """Score against bytes, multiply-adds and time: a panel for each that was measured.

    Args:
        record: the dictionary of ``sweep.json``.
        paths: files to write, of the kinds their names say.
    """
    import matplotlib as mpl

    # No window and no state of pyplot's: the caller may have pictures of its own.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    costs = [cost for cost in _COSTS if all(point.get(cost[0]) is not None for point in record["points"])]
    with mpl.rc_context({"svg.hashsalt": "smidgen", "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(5.2 * len(costs), 4.8), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
        for axis, cost in zip(axes, costs, strict=True):
            _panel(axis, record, *cost)
        axes[0].set_ylabel(f"{_plain(record['measure'])} on the test inputs (%)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        figure.suptitle(f"{_plain(record['name'])}: what every size costs")
        for path in paths:
            # A date would make two equal runs two files.
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(axis: Any, record: dict[str, Any], field: str, unit: float, along: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    original = record["original"]
    for (name, points), (colour, marker, dash) in zip(curves_of(record).items(), _styles(), strict=False):
        shown = sorted((point[field] / unit, 100 * point["test"]["score"]) for point in points)
        joint = name == "joint"
        axis.plot(*zip(*shown, strict=True), color=colour, marker=marker, linestyle=dash, ms=5,
                  lw=2.0 if joint else 1.2, zorder=4 if joint else 3,
                  label="joint plan" if joint else f"{_plain(name)} alone")  # fmt: skip
    top = original.get("test_score")
    if original.get(field) is not None:
        axis.plot([original[field] / unit], [100 * (1.0 if top is None else top)], "*", color=GREY, ms=13, mec="black",
                  mew=0.8, label="original", zorder=5)  # fmt: skip
    point = next(each for each in record["points"] if each["name"] == record["chosen"])
    axis.plot([point[field] / unit], [100 * point["test"]["score"]], "o", mfc="none", mec="black", ms=14, mew=1.4,
              label=f"chosen: {wording.size(point['nbytes'])}", zorder=6)  # fmt: skip
    if field == "nbytes":
        for mark in record.get("marks", ()):
            axis.plot([mark["nbytes"]], [100 * mark["score"]], "X", color=GREY, ms=8, zorder=5)
            axis.annotate(_plain(mark["name"]), (mark["nbytes"], 100 * mark["score"]), xytext=(5, -9), fontsize=8,
                          textcoords="offset points", color=GREY)  # fmt: skip
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda nbytes, _: wording.size(nbytes)))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(axis="x", labelsize=8, rotation=30)
    else:
        axis.set_xlim(left=0)
    axis.set_xlabel(along)
    axis.grid(True, which="major", color="#dddddd", lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _styles() -> list[tuple[str, str, Any]]:
    return list(STYLES) * 4


def _plain(text: str) -> str:
    """A name that matplotlib does not read as mathematics."""
    return str(text)[:80].replace("$", r"\$")
